# Builds training sets and models: the base for training jobs of your own.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
RUN groupadd --gid 1000 features && useradd --uid 1000 --gid 1000 --create-home features
WORKDIR /srv/features

COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY feature_assets ./feature_assets
RUN pip install --require-hashes --only-binary :all: --requirement requirements.lock \
    && pip install --no-deps --no-build-isolation .

COPY examples ./examples
COPY deploy/aws/feature_assets.toml ./feature_assets.toml

USER 1000
CMD ["python"]
