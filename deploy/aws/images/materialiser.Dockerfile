# Runs what Dagster launches: the code location, the webserver, the daemon and each run.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
RUN groupadd --gid 1000 features && useradd --uid 1000 --gid 1000 --create-home features
WORKDIR /srv/features

COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY feature_assets ./feature_assets
RUN pip install --require-hashes --only-binary :all: --requirement requirements.lock \
    && pip install --no-deps --no-build-isolation .

COPY examples ./examples
COPY definitions.py workspace.yaml ./
COPY deploy/aws/feature_assets.toml ./feature_assets.toml
COPY deploy/aws/dagster.yaml /opt/dagster/dagster.yaml

ENV DAGSTER_HOME=/opt/dagster
USER 1000
CMD ["dagster-webserver", "--host", "0.0.0.0", "--port", "3000", "--workspace", "workspace.yaml"]
