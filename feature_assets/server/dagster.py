"""Dagster's webserver, spoken to over its GraphQL API: partitions of assets, runs, backfills. Dagster itself is not loaded."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from feature_assets.config import ServerSettings
from feature_assets.server.problems import Problem

log = logging.getLogger(__name__)

_TIMEOUT: Final = 60.0

_ASSET: Final = """
query Asset($keys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $keys) {
    isMaterializable
    jobNames
    backfillPolicy { maxPartitionsPerRun policyType }
    partitionKeysByDimension { name type partitionKeys }
    repository { name location { name } }
    assetPartitionStatuses {
      __typename
      ... on TimePartitionStatuses { ranges { status endKey endTime } }
      ... on DefaultPartitionStatuses { materializedPartitions }
      ... on MultiPartitionStatuses { primaryDimensionName ranges { primaryDimEndKey } }
    }
  }
  assetsLatestInfo(assetKeys: $keys) { unstartedRunIds inProgressRunIds }
  partitionBackfillsOrError(filters: {statuses: [REQUESTED]}) {
    ... on PartitionBackfills { results { id partitionNames assetSelection { path } } }
  }
}
"""

_RUN: Final = """
query Run($run: ID!) {
  runOrError(runId: $run) { __typename ... on Run { status tags { key value } } }
}
"""

_BACKFILL: Final = """
query Backfill($backfill: String!) {
  partitionBackfillOrError(backfillId: $backfill) { __typename ... on PartitionBackfill { status } }
}
"""

_LAUNCH_RUN: Final = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on Error { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""

_LAUNCH_BACKFILL: Final = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on Error { message }
  }
}
"""

_RANGE_START: Final = "dagster/asset_partition_range_start"
_RANGE_END: Final = "dagster/asset_partition_range_end"
_PARTITION: Final = "dagster/partition"
_RUN_ENDED: Final[Mapping[str, bool]] = {"SUCCESS": True, "FAILURE": False, "CANCELED": False}
_BACKFILL_ENDED: Final[Mapping[str, bool]] = {
    "COMPLETED": True,
    "COMPLETED_SUCCESS": True,
    "COMPLETED_FAILED": False,
    "FAILED": False,
    "CANCELED": False,
}


@dataclass(frozen=True, slots=True)
class Dimension:
    """One thing that divides an asset, with its keys in their order."""

    name: str
    is_time: bool
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asset:
    """An asset as Dagster knows it. `running` are runs that have not ended, `backfills` those of them that will start more:
    each id with the partitions that it has in hand, None for all of them. `done` are keys of time that are materialised.
    """

    path: tuple[str, ...]
    location: str
    repository: str
    job: str
    per_run: int | None
    dimensions: tuple[Dimension, ...]
    running: tuple[str, ...]
    backfills: Mapping[str, tuple[str, ...] | None]
    done: frozenset[str]


@dataclass(frozen=True, slots=True)
class Started:
    """A run or a backfill that was started."""

    kind: Literal["run", "backfill"]
    id: str


class Dagster:
    """The webserver that `server.dagster_url` names."""

    def __init__(self, settings: ServerSettings) -> None:
        # A client of HTTP, and what it loads, are for servers that Dagster stands beside.
        import httpx

        headers = {name: value.get_secret_value() for name, value in settings.dagster_headers.items()}
        self._url = f"{(settings.dagster_url or '').rstrip('/')}/graphql"
        self._client = httpx.AsyncClient(timeout=_TIMEOUT, follow_redirects=False, headers=headers, trust_env=False)
        self._unreachable = (httpx.HTTPError, ValueError)

    async def asset(self, path: Sequence[str]) -> Asset | None:
        """The asset of that key, with what is under way for it; None if Dagster has none that it can materialise.

        Raises:
            Problem: Dagster cannot be reached, or answers something else.
        """
        found = await self._ask(_ASSET, {"keys": [{"path": list(path)}]})
        nodes = [node for node in found["assetNodes"] if node["isMaterializable"] and node["jobNames"]]
        if not nodes:
            return None
        node, latest = nodes[0], found["assetsLatestInfo"]
        jobs = node["jobNames"]
        return Asset(
            path=tuple(path),
            location=node["repository"]["location"]["name"],
            repository=node["repository"]["name"],
            job=next((name for name in jobs if name.startswith("__ASSET_JOB")), jobs[0]),
            per_run=_per_run(node["backfillPolicy"]),
            dimensions=tuple(
                Dimension(one["name"], one["type"] == "TIME_WINDOW", tuple(one["partitionKeys"]))
                for one in node["partitionKeysByDimension"]
            ),
            running=tuple(run for one in latest for run in (*one["unstartedRunIds"], *one["inProgressRunIds"])),
            backfills=_backfills(found["partitionBackfillsOrError"], list(path)),
            done=frozenset(_done(node["assetPartitionStatuses"])),
        )

    async def partitions_of(self, run: str) -> tuple[str, str] | None:
        """The first and the last partition that a run has in hand; None if it has no partitions, or all of them."""
        found = (await self._ask(_RUN, {"run": run}))["runOrError"]
        tags = {tag["key"]: tag["value"] for tag in found.get("tags", ())}
        if _RANGE_START in tags and _RANGE_END in tags:
            return tags[_RANGE_START], tags[_RANGE_END]
        return (tags[_PARTITION], tags[_PARTITION]) if _PARTITION in tags else None

    async def launch_run(self, asset: Asset, first: str | None, last: str | None, tags: Mapping[str, str]) -> Started:
        """Start one run of the asset over a range of partitions, or over the whole of one that has none.

        Raises:
            Problem: Dagster does not.
        """
        marks = dict(tags)
        if first is not None and last is not None:
            marks |= {_PARTITION: first} if first == last else {_RANGE_START: first, _RANGE_END: last}
        params = {
            "selector": {
                "repositoryLocationName": asset.location,
                "repositoryName": asset.repository,
                "jobName": asset.job,
                "assetSelection": [{"path": list(asset.path)}],
            },
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in marks.items()]},
        }
        found = (await self._ask(_LAUNCH_RUN, {"params": params}))["launchRun"]
        if found["__typename"] != "LaunchRunSuccess":
            raise _refused(found)
        return Started("run", found["run"]["runId"])

    async def launch_backfill(self, asset: Asset, partitions: Sequence[str], tags: Mapping[str, str]) -> Started:
        """Start a backfill, which starts a run for each so many partitions as the asset's policy says.

        Raises:
            Problem: Dagster does not.
        """
        params = {
            "assetSelection": [{"path": list(asset.path)}],
            "partitionNames": list(partitions),
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        found = (await self._ask(_LAUNCH_BACKFILL, {"params": params}))["launchPartitionBackfill"]
        if found["__typename"] != "LaunchBackfillSuccess":
            raise _refused(found)
        return Started("backfill", found["backfillId"])

    async def ended(self, started: Started) -> bool | None:
        """Whether it ended well; None while it has not ended."""
        if started.kind == "run":
            found = (await self._ask(_RUN, {"run": started.id}))["runOrError"]
            return _RUN_ENDED.get(found.get("status", "FAILURE"))
        found = (await self._ask(_BACKFILL, {"backfill": started.id}))["partitionBackfillOrError"]
        return _BACKFILL_ENDED.get(found.get("status", "FAILED"))

    async def _ask(self, query: str, variables: Mapping[str, Any]) -> Any:
        try:
            answer = await self._client.post(self._url, json={"query": query, "variables": variables})
            document = answer.json()
        except self._unreachable as error:
            log.warning("dagster does not answer url=%s error=%s: %s", self._url, type(error).__name__, error)
            raise Problem(
                503,
                "dagster-unreachable",
                "Dagster's webserver does not answer. See that it runs, and that server.dagster_url names it.",
                headers={"retry-after": "5"},
            ) from None
        if document.get("errors") or document.get("data") is None:
            log.warning(
                "dagster refused url=%s status=%d errors=%s", self._url, answer.status_code, document.get("errors")
            )
            raise Problem(
                503, "dagster-refused", "Dagster's webserver does not understand. The server's log has its words."
            )
        return document["data"]

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.aclose()


def _per_run(policy: Mapping[str, Any] | None) -> int | None:
    """How many partitions one run may have; None for any number."""
    if policy is None:
        return 1
    most: int | None = policy["maxPartitionsPerRun"]
    return None if policy["policyType"] == "SINGLE_RUN" else most or 1


def _backfills(found: Mapping[str, Any], path: list[str]) -> dict[str, tuple[str, ...] | None]:
    return {
        one["id"]: None if one["partitionNames"] is None else tuple(one["partitionNames"])
        for one in found.get("results", ())
        if any(asset["path"] == path for asset in one["assetSelection"] or ())
    }


def _done(statuses: Mapping[str, Any]) -> list[str]:
    """The last keys of what is materialised, range by range."""
    if statuses["__typename"] == "TimePartitionStatuses":
        return [one["endKey"] for one in statuses["ranges"] if one["status"] == "MATERIALIZED"]
    if statuses["__typename"] == "MultiPartitionStatuses":
        return [one["primaryDimEndKey"] for one in statuses["ranges"]]
    return list(statuses.get("materializedPartitions", ()))


def _refused(found: Mapping[str, Any]) -> Problem:
    messages = [found.get("message"), *(one.get("message") for one in found.get("errors", ()))]
    words = " ".join(str(message) for message in messages if message)
    log.warning("dagster does not start it kind=%s message=%s", found["__typename"], words)
    return Problem(
        424, "not-started", f"Dagster does not start it ({found['__typename']}). The server's log has its words."
    )
