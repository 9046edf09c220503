# Feature Assets. `make` lists what there is; each target makes the environment first where it needs one.

PYTHON ?= python3
# Test workers: as many as there are processors, up to four.
WORKERS ?= auto
PYTEST_ARGS ?=

# Runs, logs and schedules of `make demo` and `make dev` are kept here, so the UI shows what the demo did.
DAGSTER_HOME ?= $(CURDIR)/.dagster

export PYTHON
export DAGSTER_DISABLE_TELEMETRY ?= yes

BIN := .venv/bin
STAMP := .venv/.installed
TYPED := feature_assets tools $(wildcard definitions.py)
CODE := feature_assets tests tools $(wildcard definitions.py examples benchmarks docs deploy README.md)

.DEFAULT_GOAL := help
.PHONY: help demo demo-aws demo-stream test acceptance dev lint format docs benchmark lock clean

help: ## list these targets
	@printf '\nFeature Assets\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  \033[36mmake %-12s\033[0m %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@printf '\n  make test PYTEST_ARGS="-k join"   a part of the tests\n  make test PYTHON=python3.12       with another Python (after make clean)\n\n'

demo: $(STAMP) $(DAGSTER_HOME)/dagster.yaml ## run the example platform on real data, end to end
	@DAGSTER_HOME=$(DAGSTER_HOME) $(BIN)/python -m examples.nyc_flights

demo-aws: $(STAMP) ## the same on S3 and DynamoDB, which a server on this machine plays
	@$(BIN)/python -m examples.nyc_flights.demo_aws

demo-stream: $(STAMP) ## a day of flights as a stream through a broker, which keeps a view fresh
	@$(BIN)/python -m examples.nyc_flights.demo_stream

test: $(STAMP) ## run every test
	@$(BIN)/python -m pytest -q -n $(WORKERS) --maxprocesses=4 --dist=loadgroup --max-worker-restart=0 $(PYTEST_ARGS)

acceptance: $(STAMP) ## run what takes minutes, or programs of others such as Feast
	@ACCEPTANCE=1 $(BIN)/python -m pytest -q -s tests/acceptance $(PYTEST_ARGS)

dev: $(STAMP) $(DAGSTER_HOME)/dagster.yaml ## Dagster's UI and the feature server together; Ctrl-C stops both
	@DAGSTER_HOME=$(DAGSTER_HOME) PYTHONWARNINGS='ignore:Function `dev_command` is superseded' \
		$(BIN)/python tools/dev.py -- dagster dev -w workspace.yaml -- feature-assets serve

lint: $(STAMP) ## check style, format and types
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/mypy $(TYPED)

format: $(STAMP) ## fix style and format in place
	@$(BIN)/ruff check --fix-only --quiet $(CODE)
	@$(BIN)/ruff format $(CODE)

docs: $(STAMP) ## check the docs: every example in them is run
	@$(BIN)/python -m pytest -q tests/test_docs.py $(PYTEST_ARGS)

benchmark: $(STAMP) ## measure; prints tables and changes nothing
	@$(BIN)/python -m benchmarks

lock: ## write requirements.lock anew from pyproject.toml (UPGRADE=1 takes newer versions); needs uv
	@sh tools/lock.sh $(if $(UPGRADE),--upgrade)

clean: ## remove the environment, caches and everything the demo wrote
	@rm -rf .venv .venv-aws .venv-aws.lock .venv-feast .venv-torch .dagster .feature_assets .tmp_dagster_home_* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(STAMP): requirements.lock pyproject.toml tools/setup.sh tools/build-constraints.txt
	@sh tools/setup.sh

# Dagster reads its settings from its home; ours are kept in the repository's root. A home that has its own keeps it.
$(DAGSTER_HOME)/dagster.yaml: | dagster.yaml
	@mkdir -p $(@D)
	@ln -sf $(CURDIR)/dagster.yaml $@
