"""Calls to DynamoDB: retried, bounded in number and in time, and with errors of ours.

A call that AWS throttles is tried again by botocore, which also slows down all others of this process (its mode
"adaptive"). What a batch leaves undone is tried again here, with jitter, up to a deadline; then it is named.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

from feature_assets.errors import ConfigurationError, StoreError, StoreFull, StoreUnavailable
from feature_assets.online.dynamodb.answers import parse_reads
from feature_assets.online.dynamodb.checksums import Checksums
from feature_assets.online.dynamodb.keys import KEY, key_text
from feature_assets.online.dynamodb.location import Location

KEYS_AT_ONCE: Final = 100
PUTS_AT_ONCE: Final = 25

_SECONDS_TO_READ = 5.0
_SECONDS_TO_WRITE = 60.0
_FIRST_WAIT = 0.02
_LONGEST_WAIT = 1.0
_READS: Final = frozenset({"batch_get_item", "get_item", "query", "scan"})
_PRICED: Final = _READS | {"batch_write_item", "delete_item", "put_item", "update_item"}

# What stand-ins for DynamoDB may not know, and what in the store's URL does without it.
_DONE_WITHOUT: Final = {
    "describe_time_to_live": "expire=false",
    "update_time_to_live": "expire=false",
    "describe_continuous_backups": "recovery=false",
    "update_continuous_backups": "recovery=false",
}

Item = dict[str, dict[str, Any]]
_T = TypeVar("_T")
_R = TypeVar("_R")


class Patience(NamedTuple):
    """How often a call is tried, and for how long each time nothing may be heard."""

    attempts: int
    seconds: float


_LOOKUPS: Final = frozenset({"get_item", "batch_get_item"})
_OF_LOOKUPS: Final = Patience(4, 3.0)
_OF_PUBLISHERS: Final = Patience(8, 10.0)


class NotThere(Exception):
    """The table that was named does not exist."""


class InUse(Exception):
    """The table exists already, or is just being made or deleted."""


class Refused(Exception):
    """A condition was not met."""


class NotKnown(StoreError):
    """What answers, a stand-in for DynamoDB, does not know the operation."""


class NotYet(Exception):
    """The table was made too short a time ago for this."""


class Calls:
    """Clients, made when they are first needed. Safe to share between threads."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._making = Lock()
        self._made: dict[Patience, Any] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._counting = Lock()
        self._read_units = self._write_units = 0.0

    def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """One call.

        Raises:
            NotThere: there is no such table.
            InUse: there is such a table, or it is just being made or deleted.
            Refused: the condition was not met.
            NotYet: the table is too new for it.
            StoreError: it failed, again and again where that may help.
        """
        client = self._client(operation)
        if operation in _PRICED:
            arguments["ReturnConsumedCapacity"] = "TOTAL"
        try:
            answer: dict[str, Any] = getattr(client, operation)(**arguments)
        except ClientError as error:
            translated = self._translated(operation, error)
            if isinstance(translated, Refused):
                # It costs what the row that stands there weighs, which is not told: a unit at the least.
                self._count(operation, {"CapacityUnits": 1.0})
            raise translated from error
        except (NoCredentialsError, NoRegionError) as error:
            raise ConfigurationError(
                f"DynamoDB cannot be called: {error} Set AWS_REGION and credentials as the AWS command line takes them, "
                "or the region in the URL of the store."
            ) from error
        except BotoCoreError as error:
            raise StoreUnavailable(f"{self.described} cannot be reached: {error}. Try again.") from error
        if consumed := answer.get("ConsumedCapacity"):
            self._count(operation, consumed)
        return answer

    @property
    def described(self) -> str:
        """The store in words."""
        place = self.location.endpoint or self.location.region or "the default region"
        return f"DynamoDB '{self.location.prefix}' ({place})"

    def units(self) -> tuple[float, float]:
        """Read and write units that this process has consumed here."""
        with self._counting:
            return self._read_units, self._write_units

    def together(self, function: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
        """The function's result for each item, in their order; as many at once as the location allows.

        What the function does must not call this again: the threads would wait for one another.
        """
        items = list(items)
        if len(items) < 2:
            return map(function, items)
        with self._making:
            self._pool = self._pool or ThreadPoolExecutor(self.location.concurrency, thread_name_prefix="dynamodb")
        return self._pool.map(function, items)

    def got(self, asked: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[bytes, Item]]:
        """Items of several tables by the bytes of their key; what there is of 100 keys at the most.

        Args:
            asked: for each table what BatchGetItem takes: Keys, ProjectionExpression …

        Raises:
            StoreUnavailable: some were not answered up to the deadline; the message says how many, and a note which.
        """
        found: dict[str, dict[bytes, Item]] = {table: {} for table in asked}
        left, deadline, wait = dict(asked), time.monotonic() + _SECONDS_TO_READ, _FIRST_WAIT
        while left:
            answer = self.call("batch_get_item", RequestItems=left)
            for table, items in answer.get("Responses", {}).items():
                found[table].update((bytes(item[KEY]["B"]), item) for item in items)
            before, left = _keys(left), answer.get("UnprocessedKeys") or {}
            if left:
                longer = self._paused(wait, deadline) or self._give_up_reading(left)
                # An answer that was full leaves keys too, and says nothing of the store's capacity.
                wait = wait if _keys(left) < before else longer
        return found

    def put_all(self, table: str, items: Sequence[Item]) -> None:
        """Put items, at most 25, without a condition.

        Raises:
            StoreUnavailable: some were not taken up to the deadline; the message names them.
        """
        left: dict[str, Any] = {table: [{"PutRequest": {"Item": item}} for item in items]}
        deadline, wait = time.monotonic() + _SECONDS_TO_WRITE, _FIRST_WAIT
        while left:
            answer = self.call("batch_write_item", RequestItems=left)
            left = answer.get("UnprocessedItems") or {}
            if left:
                wait = self._paused(wait, deadline) or self._give_up_writing(left)

    def _paused(self, wait: float, deadline: float) -> float | None:
        """How long to wait the next time; None where no time is left, and nothing was waited for."""
        if time.monotonic() + wait > deadline:
            return None
        time.sleep(wait * random.uniform(0.5, 1.0))
        return min(wait * 2, _LONGEST_WAIT)

    def _give_up_reading(self, left: Mapping[str, Any]) -> NoReturn:
        counted = ", ".join(f"{len(part['Keys'])} of table {table}" for table, part in left.items())
        error = self._busy(f"read {counted}")
        # A server logs what the message says, and no log is to have keys.
        keys = (key[KEY]["B"] for part in left.values() for key in part["Keys"])
        error.add_note(f"Not read: {', '.join(map(key_text, keys))}")
        raise error

    def _give_up_writing(self, left: Mapping[str, Any]) -> NoReturn:
        ((table, puts),) = left.items()
        keys = ", ".join(key_text(put["PutRequest"]["Item"][KEY]["B"]) for put in puts)
        raise self._busy(f"write {len(puts)} of table {table}", f" ({keys})")

    def _busy(self, what: str, which: str = "") -> StoreUnavailable:
        return StoreUnavailable(
            f"{self.described} did not {what} in time{which}: it is asked for more than its capacity. "
            "Try again later, or raise the capacity."
        )

    def close(self) -> None:
        """Let go of connections and threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        for client in self._made.values():
            client.close()

    def _client(self, operation: str) -> Any:
        """The client for it: whoever looks rows up does not wait as long as whoever publishes."""
        patience = _OF_LOOKUPS if operation in _LOOKUPS else _OF_PUBLISHERS
        if patience not in self._made:
            with self._making:
                if patience not in self._made:
                    self._made[patience] = self._new_client(patience)
        return self._made[patience]

    def _new_client(self, patience: Patience) -> Any:
        of_lookups = patience is _OF_LOOKUPS
        config = Config(
            retries={"mode": "adaptive", "total_max_attempts": patience.attempts},
            # One for each thread that may call: a connection over that is closed after its call, and made anew each time.
            max_pool_connections=self.location.concurrency + (self.location.lookups if of_lookups else 0),
            connect_timeout=patience.seconds,
            read_timeout=patience.seconds,
            # A hundred keys take it longer to look at than to send; what lookups ask is made in one place.
            parameter_validation=not of_lookups,
            user_agent_extra="feature-assets",
        )
        try:
            client = boto3.session.Session().client(
                "dynamodb", region_name=self.location.region, endpoint_url=self.location.endpoint, config=config
            )
        except (BotoCoreError, ValueError) as error:
            raise ConfigurationError(
                f"{self.described}: {error} Name the region in the URL of the store, or in AWS_REGION."
            ) from error
        Checksums(client)
        parse_reads(client)
        return client

    def _translated(self, operation: str, error: ClientError) -> Exception:
        code = error.response.get("Error", {}).get("Code", "")
        if code == "ConditionalCheckFailedException":
            return Refused()
        if code in ("ResourceNotFoundException", "TableNotFoundException"):
            return NotThere()
        if code == "ResourceInUseException":
            return InUse()
        if code == "ContinuousBackupsUnavailableException":
            return NotYet()
        if code == "UnknownOperationException" and operation in _DONE_WITHOUT:
            return NotKnown(
                f"{self.described} does not know '{operation}'. To do without it, add {_DONE_WITHOUT[operation]} to the "
                "URL of the store."
            )
        if code in ("AccessDeniedException", "UnrecognizedClientException", "InvalidSignatureException"):
            return StoreUnavailable(
                f"{self.described} refused '{operation}' ({code}). Look at this role's permissions."
            )
        if code == "LimitExceededException":
            return StoreFull(f"{self.described}: {error.response['Error'].get('Message', code)}")
        if code in ("ProvisionedThroughputExceededException", "RequestLimitExceeded", "ThrottlingException"):
            return StoreUnavailable(
                f"{self.described} throttled '{operation}' again and again. Try again later, or raise the capacity."
            )
        return StoreError(
            f"{self.described} did not '{operation}': {error.response.get('Error', {}).get('Message') or code}"
        )

    def _count(self, operation: str, consumed: Any) -> None:
        units = sum(
            float(one.get("CapacityUnits", 0.0)) for one in (consumed if isinstance(consumed, list) else [consumed])
        )
        with self._counting:
            if operation in _READS:
                self._read_units += units
            else:
                self._write_units += units


def _keys(asked: Mapping[str, Any]) -> int:
    return sum(len(part["Keys"]) for part in asked.values())
