"""What S3 and DynamoDB hold, read without any code of ours: the log of a Delta table entry by entry, its files, items."""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet as pq

from tests.acceptance.clouds import client

Row = dict[str, Any]


@dataclass(frozen=True)
class Held:
    """Of one view: rows of the table's last version, all entries of its log in order, items, and the ledger's entries."""

    rows: Sequence[Row]
    entries: Sequence[Sequence[Mapping[str, Any]]]
    items: Sequence[Mapping[str, Any]]
    ledger: Mapping[str, Mapping[str, Any]]

    def latest(self, key: str, event: str) -> dict[Any, Row]:
        """The latest row of each key by event time and publication."""
        best: dict[Any, Row] = {}
        for row in self.rows:
            found = best.get(row[key])
            if found is None or (row[event], row["__publication"]) > (found[event], found["__publication"]):
                best[row[key]] = row
        return best

    def by_partition(self) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row["__partition"], []).append(row)
        return found

    def files_added_twice(self) -> list[str]:
        added = Counter(action["add"]["path"] for entry in self.entries for action in entry if "add" in action)
        return [path for path, count in added.items() if count > 1]

    def runs(self) -> list[str]:
        """The id of the run that each commit with rows was made by, in order."""
        told = [action["commitInfo"].get("feature_assets") for entry in self.entries for action in entry
                if "commitInfo" in action]  # fmt: skip
        return [one["metadata"]["run_id"] for one in told if one and "run_id" in one.get("metadata", {})]


def held(endpoint: str, view: str, *, prefix: str, bucket: str = "features") -> Held:
    """All of it, of version 1 of the view."""
    s3, dynamodb = client("s3", endpoint), client("dynamodb", endpoint)
    root = f"offline/{view}/v1/"
    names = [one["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=root)
             for one in page.get("Contents", ())]  # fmt: skip
    logged = sorted(name for name in names if "/_delta_log/" in name and name.endswith(".json"))
    versions = [int(name.rpartition("/")[2].removesuffix(".json")) for name in logged]
    assert versions == list(range(len(versions))), "the log has gaps"

    def read(name: str) -> bytes:
        body: bytes = s3.get_object(Bucket=bucket, Key=name)["Body"].read()
        return body

    entries = [[json.loads(line) for line in read(name).splitlines()] for name in logged]
    rows: list[Row] = []
    for path, partition in _standing(entries).items():
        table = pq.read_table(io.BytesIO(read(root + unquote(path))), partitioning=None)
        rows += [{**partition, **row} for row in table.to_pylist()]
    catalogue = f"{prefix}.catalogue"
    (known,) = _scanned(dynamodb, catalogue, view="__views", part=f"{view}/v1")
    ledger = {
        item["part"]["S"].removeprefix("partition/"): item for item in _scanned(dynamodb, catalogue, view=f"{view}/v1")
    }
    return Held(rows, entries, _scanned(dynamodb, known["table"]["S"]), ledger)


def _standing(entries: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, str]]:
    """The files of the last version, each with the values of its partition."""
    standing: dict[str, dict[str, str]] = {}
    for entry in entries:
        for action in entry:
            if "add" in action:
                standing[action["add"]["path"]] = action["add"]["partitionValues"]
            if "remove" in action:
                del standing[action["remove"]["path"]]
    return standing


def _scanned(dynamodb: Any, table: str, **wanted: str) -> list[Mapping[str, Any]]:
    pages = dynamodb.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
    items = [item for page in pages for item in page["Items"]]
    return [item for item in items if all(item[name]["S"] == value for name, value in wanted.items())]
