"""Calls to Kinesis, and what may become of them: an answer, a reason to wait, or an error of ours."""

import logging
from collections.abc import Mapping
from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError
from pydantic import SecretStr

from feature_assets.errors import ConfigurationError, RecordsLost, StoreUnavailable
from feature_assets.spec import KinesisSource

log = logging.getLogger(__name__)

_SETTINGS: Final = ("region_name", "endpoint_url", "aws_access_key_id", "aws_secret_access_key", "aws_session_token")
_REFUSED: Final = (
    "AccessDeniedException",
    "UnrecognizedClientException",
    "InvalidSignatureException",
    "ExpiredTokenException",
    "KMSAccessDeniedException",
    "KMSDisabledException",
    "KMSNotFoundException",
)


class Throttled(Exception):
    """It did not work now; the same may work later."""


class Expired(Exception):
    """The iterator is too old."""


class Gone(Exception):
    """There is no such shard."""


class Calls:
    """The client of one stream."""

    def __init__(self, source: KinesisSource, connections: Mapping[str, Mapping[str, SecretStr]]) -> None:
        self._source = source
        found = connections.get(source.connection, {})
        self._place = f"[stream.connections.{source.connection}]"
        if unknown := [name for name in found if name not in _SETTINGS]:
            raise ConfigurationError(f"{self._place}: '{unknown[0]}' is not known. It takes: {', '.join(_SETTINGS)}.")
        given = {name: value.get_secret_value() for name, value in found.items()}
        config = Config(retries={"mode": "standard", "total_max_attempts": 3}, connect_timeout=3, read_timeout=10)
        by_arn = source.stream.startswith("arn:")
        self._stream = {"StreamARN" if by_arn else "StreamName": source.stream}
        try:
            self._client = boto3.session.Session().client("kinesis", config=config, **given)
        except (BotoCoreError, ValueError) as error:
            raise ConfigurationError(
                f"KinesisSource '{source.name}': {error} Set region_name in {self._place}, or AWS_REGION."
            ) from error
        self._arn = {"StreamARN": source.stream} if by_arn else {}

    def shards(self) -> list[dict[str, Any]]:
        """All shards that the stream keeps records of.

        Raises:
            ConfigurationError: there is no such stream, or it may not be read.
            StoreUnavailable: Kinesis does not answer.
        """
        found: list[dict[str, Any]] = []
        asked: dict[str, Any] = self._stream
        while True:
            try:
                answer = self._call("list_shards", **asked)
            except Gone:
                raise ConfigurationError(
                    f"There is no stream '{self._source.stream}' of KinesisSource '{self._source.name}'. Make it, name "
                    f"another, or see that {self._place} leads to its region."
                ) from None
            except Throttled as error:
                raise StoreUnavailable(f"KinesisSource '{self._source.name}': {error}. Try again.") from error
            found += answer["Shards"]
            if not answer.get("NextToken"):
                return found
            asked = {"NextToken": answer["NextToken"]}

    def iterator(self, shard: str, begin: Mapping[str, Any]) -> str:
        """From where to read.

        Raises:
            Throttled, Gone: see there.
            RecordsLost: the shard never had such a position.
        """
        answer = self._call("get_shard_iterator", **self._stream, ShardId=shard, **begin)
        return str(answer["ShardIterator"])

    def records(self, iterator: str, most: int) -> dict[str, Any]:
        """The next records, and the iterator of those after them.

        Raises:
            Throttled, Expired, Gone: see there.
        """
        return self._call("get_records", ShardIterator=iterator, Limit=most, **self._arn)

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._client, operation)(**arguments)
        except ClientError as error:
            raise self._translated(error) from error
        except (NoCredentialsError, NoRegionError) as error:
            raise ConfigurationError(
                f"KinesisSource '{self._source.name}': {error} Set credentials as the AWS command line takes them, or in "
                f"{self._place}."
            ) from error
        except BotoCoreError as error:
            raise Throttled(f"Kinesis cannot be reached: {error}") from error
        return answer

    def _translated(self, error: ClientError) -> Exception:
        told = error.response.get("Error", {})
        code, text = str(told.get("Code", "")), str(told.get("Message", ""))
        if code == "ExpiredIteratorException":
            return Expired()
        if code == "ResourceNotFoundException":
            return Gone()
        if code in _REFUSED:
            return ConfigurationError(
                f"KinesisSource '{self._source.name}' may not be read ({code}: {text}). Give this role kinesis:ListShards, "
                f"GetShardIterator and GetRecords, or other credentials in {self._place}."
            )
        if code in ("InvalidArgumentException", "ValidationException"):
            return RecordsLost(
                f"KinesisSource '{self._source.name}' does not take the position that is published ({text}): the stream was made "
                f"anew. To read what it has now, run: feature-assets stream seek {self._source.name} --to earliest"
            )
        return Throttled(f"{code}: {text}")

    def close(self) -> None:
        """Let its connections go."""
        self._client.close()
