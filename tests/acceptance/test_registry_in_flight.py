"""R2: a field is added, a view dropped, a type changed, and views are written, while lookups go on by two workers."""

import asyncio
import contextlib
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any

import httpx
import pytest

from feature_assets.config import ServerSettings, Settings
from feature_assets.registry import Published, Registry, RegistryStore
from tests.acceptance.running import Running, ran, started, tell
from tests.server.conftest import bearer

ROOT = Path(__file__).parents[2]
KEYS = [f"c{number}" for number in range(20)]
READERS = 16
LOOKUPS_A_SECOND = 200
"""Of all readers together, over the whole run: who is behind asks without a pause."""

# Every materialisation gives all values of a row the number of its turn, so that a row of two turns shows.
DEFINITIONS = Template('''\
import datetime as dt
from itertools import pairwise
from pathlib import Path

import dagster as dg
import polars as pl

from feature_assets import Entity, Field, Float64, Int64, String, feature_definitions, feature_view

customer = Entity("customer", join_keys={"customer_id": String})
DECLARED = dict(
    entities=[customer], partitions_def=dg.StaticPartitionsDefinition(["all"]), event_timestamp="at"
)


def rows(*features):
    turn = int((Path(__file__).parent / "turn").read_text())
    at = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    keys = [f"c{number}" for number in range(20)]
    return pl.LazyFrame({"customer_id": keys, "at": [at] * 20, **{name: [turn] * 20 for name in features}})


@feature_view(version=$version, schema=[Field("a", Float64), Field("b", $type)$more], **DECLARED)
def orders() -> pl.LazyFrame:
    """One of two views that change together."""
    return rows("a", "b", "c").cast({"a": pl.Float64, "b": pl.$type})


@feature_view(schema=[Field("a", Int64), Field("b", Int64)$more], **DECLARED)
def visits() -> pl.LazyFrame:
    """The other one."""
    return rows("a", "b", "c")


@feature_view(schema=[Field("waiting", Int64)], **DECLARED)
def crowds() -> pl.LazyFrame:
    """The one that is dropped."""
    return rows("waiting")


defs = feature_definitions(assets=[orders, visits$crowds])
''')
FIRST = {"version": 1, "type": "Float64", "more": "", "crowds": ", crowds"}
WIDER = {**FIRST, "more": ', Field("c", Int64)'}
FEWER = {**WIDER, "crowds": ""}
RETYPED = {**FEWER, "type": "Int64"}
SECOND = {**RETYPED, "version": 2}


@dataclass
class Project:
    """The project on disk, and its commands."""

    folder: Path
    turn: int = 0

    def declare(self, declared: dict[str, Any]) -> None:
        file = self.folder / "definitions.partial"
        file.write_text(DEFINITIONS.substitute(declared))
        file.replace(self.folder / "definitions.py")

    async def run(self, *words: str) -> tuple[int, str]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NO_COLOR": "1",
            "DAGSTER_HOME": str(self.folder / ".dagster"),
        }
        return await ran(*words, folder=self.folder, environment=environment)

    async def done(self, *words: str) -> str:
        code, out = await self.run(*words)
        assert code == 0, out
        return out

    async def materialise(self, view: str) -> None:
        self.turn += 1
        (self.folder / "turn").write_text(str(self.turn))
        await self.done("materialize", view, "--all")

    @property
    def registry(self) -> RegistryStore:
        return RegistryStore(Settings.load(self.folder / "feature_assets.toml").place(".feature_assets/registry"))


@dataclass
class Seen:
    """What readers saw: when they asked which process and what snapshot answered; answers by question and snapshot."""

    asked: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)
    begun: dict[str, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    missing: list[float] = field(default_factory=list)
    turns: set[int] = field(default_factory=set)


QUESTIONS = {
    "both": ["orders:*", "visits:*"],
    "orders": ["orders:*"],
    "crowds": ["crowds:*"],
    "named": ["orders:a", "visits:a", "visits:b"],
}


class Pace:
    """So many turns a second since it was made, for all who take them."""

    def __init__(self) -> None:
        self._began, self._taken = time.monotonic(), 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    async def turn(self) -> None:
        # A little more than is asked for, so that the last turns are not what it hangs on.
        await asyncio.sleep(max(0.0, self._taken / (1.1 * LOOKUPS_A_SECOND) - self.seconds))
        self._taken += 1


async def keep_asking(
    http: httpx.AsyncClient, token: str, name: str, pace: Pace, seen: Seen, done: asyncio.Event
) -> None:
    """Ask one question again and again."""
    number = 0
    while not done.is_set():
        await pace.turn()
        number += 1
        question = {"features": QUESTIONS[name], "entities": {"customer_id": KEYS[number % 10 :][:3]}}
        question["full_feature_names"] = True
        begun = time.time()
        try:
            answer = await http.post("/get-online-features", json=question, headers=bearer(token))
        except httpx.TransportError as error:
            seen.failures.append(f"{name}: {error!r}")
            continue
        seen.asked += 1
        seen.slowest = max(seen.slowest, time.time() - begun)
        take(name, begun, answer, seen)


def take(name: str, begun: float, answer: httpx.Response, seen: Seen) -> None:
    if name == "crowds" and answer.status_code == 404:
        seen.missing.append(begun)
        return
    if answer.status_code != 200:
        seen.failures.append(f"{name}: {answer.status_code} {answer.text}")
        return
    digest = answer.headers["x-feature-registry"]
    # The first half of a request's id is its process's.
    seen.begun[answer.headers["x-request-id"].partition("-")[0]].append((begun, digest))
    seen.answers[name, digest].append(answer.json())


def check_shape(name: str, registry: Registry, answer: dict[str, Any], seen: Seen) -> None:
    """Its columns and versions are those of the snapshot that it names; each row of each view is of one turn."""
    views = [reference.partition(":")[0] for reference in QUESTIONS[name]]
    fields = {view: [one.name for one in registry.view(view).features] for view in dict.fromkeys(views)}
    if name == "named":
        fields = {"orders": ["a"], "visits": ["a", "b"]}
    names = ["customer_id", *(f"{view}__{one}" for view, features in fields.items() for one in features)]
    assert answer["metadata"]["feature_names"] == names
    versions = {one["name"]: one["version"] for one in answer["metadata"]["feature_view_metadata"]}
    assert versions == {view: registry.view(view).version for view in fields}
    values = dict(zip(names, (one["values"] for one in answer["results"]), strict=True))
    of_b = str(registry.view("orders").types["b"])
    for row in range(3):
        for view, features in fields.items():
            turns = {values[f"{view}__{one}"][row] for one in features} - {None}
            assert len(turns) <= 1, (view, turns)
            seen.turns |= {int(turn) for turn in turns}
    for value in values.get("orders__b", ()):
        assert isinstance(value, float if of_b == "Float64" else int), (value, of_b)


@contextlib.asynccontextmanager
async def under_load(running: Running, token: str, seen: Seen) -> AsyncIterator[None]:
    done, pace = asyncio.Event(), Pace()
    # Half of them keep their connection, the others make one for each question.
    new = httpx.Limits(max_connections=READERS, max_keepalive_connections=0)
    async with (
        httpx.AsyncClient(base_url=running.url, timeout=30) as kept,
        httpx.AsyncClient(base_url=running.url, timeout=30, limits=new) as renewed,
    ):
        names = list(QUESTIONS) * READERS
        tasks = [
            asyncio.create_task(keep_asking(http, token, name, pace, seen, done))
            for http in (kept, renewed)
            for name in names[: READERS // 2]
        ]
        try:
            yield
        finally:
            done.set()
            await asyncio.gather(*tasks)
            seen.seconds = pace.seconds


async def in_force(seen: Seen, published: Published) -> float:
    """Wait until every process answers from that snapshot; how long after it was published another one was answered from."""
    digest, since = published.digest, published.published_at.timestamp()
    for _ in range(1_200):
        await asyncio.sleep(0.05)
        lately = {one: [digest for at, digest in found if at > since] for one, found in seen.begun.items()}
        if len(lately) > 1 and all(found[-3:] == [digest] * 3 for found in lately.values()):
            break
    else:
        raise AssertionError("some process does not take up the new snapshot")
    late = [at - since for found in seen.begun.values() for at, of in found if at > since and of != digest]
    return max(late, default=0.0)


@pytest.mark.timeout(600)
async def test_nothing_fails_and_nothing_is_mixed_while_all_of_it_changes(tmp_path):
    project = Project(tmp_path / "shop")
    project.folder.mkdir()
    await project.done("init")
    project.declare(FIRST)
    await project.done("apply", "--yes")
    for view in ("orders", "visits", "crowds"):
        await project.materialise(view)
    token = (await project.done("auth", "token", "--scope", "features:read", "--scope", "registry:read")).strip()
    seen, lags, refused = Seen(), {}, ""
    with started(project.folder, "--workers", "2") as running:
        async with under_load(running, token, seen):

            async def change(what: str, declared: dict[str, Any], *materialised: str) -> None:
                """Publish, and have views written in the meantime."""
                project.declare(declared)
                before = asyncio.create_task(project.materialise("visits"))
                for view in materialised:
                    await before
                    before = asyncio.create_task(project.materialise(view))
                if materialised:
                    await before
                await project.done("apply", "--yes")
                lags[what] = await in_force(seen, project.registry.read())
                await before
                for view in ("orders", "visits"):
                    await project.materialise(view)

            await change("add a field to two views", WIDER)
            await change("drop a view", FEWER)
            digest = project.registry.read().digest
            project.declare(RETYPED)
            code, refused = await project.run("apply", "--yes")
            assert code != 0, refused
            code, not_written = await project.run("materialize", "orders", "--all")
            assert code != 0, not_written
            assert project.registry.read().digest == digest
            await project.materialise("visits")
            await change("change a type, in a new version", SECOND, "orders")
    assert seen.failures == []
    assert seen.asked >= LOOKUPS_A_SECOND * seen.seconds
    assert "Traceback" not in running.log.read_text()
    assert len(seen.begun) == 2, "one of the two workers was never asked"
    registries = {digest: project.registry.snapshot(digest) for _, digest in seen.answers}
    assert len(registries) == 4
    for (name, digest), answers in seen.answers.items():
        for answer in answers:
            check_shape(name, registries[digest], answer, seen)
    order = [entry.digest for entry in reversed(project.registry.history())]
    for found in seen.begun.values():
        # Those that were asked at once may be answered in any order.
        settled = [order.index(digest) for _, digest in found]
        assert all(later >= earlier - 1 for earlier, later in pairwise(settled))
    assert seen.missing
    assert len(seen.turns) > 5, "the views were not written meanwhile"
    assert "version" in refused
    tell(
        "R2",
        lookups=seen.asked,
        a_second=f"{seen.asked / seen.seconds:.0f}",
        failed=len(seen.failures),
        slowest=f"{seen.slowest * 1e3:.0f} ms",
        snapshots=len(registries),
        turns_seen=len(seen.turns),
        **{f"{what}, last answer from the former snapshot after it": f"{lag:.1f} s" for what, lag in lags.items()},
    )
    assert max(lags.values()) < 2 * ServerSettings().registry_refresh_seconds
