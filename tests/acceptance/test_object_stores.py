"""Commits and publications at once in S3s of others and in a folder, publishers that are killed, and stores that are refused."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import httpx
import pytest

from feature_assets.errors import StoreUnsafe
from feature_assets.objects import open_objects
from feature_assets.offline import OfflineStore
from feature_assets.registry import RegistryStore
from tests.acceptance.clouds import KEYS, ROOT, S3S, UNFIT_S3S, client, storage_options
from tests.acceptance.running import tell
from tests.offline.tables import WEATHER, held
from tests.registry.test_crash import assert_consistent, next_pid

WRITERS, TIMES = 3, 12
PUBLISHERS, PUBLICATIONS = 4, 10
KILLS = 20


class Store(NamedTuple):
    """Where things are kept: a bucket, or a folder where there is no endpoint."""

    name: str
    place: str
    endpoint: str

    @property
    def options(self) -> dict[str, str]:
        return storage_options(self.endpoint) if self.endpoint else {}

    @property
    def environment(self) -> dict[str, str]:
        there = {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ALLOW_HTTP": "true"} if self.endpoint else {}
        return {**os.environ, **KEYS, **there, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module", params=["folder", *S3S])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "folder":
        yield Store("a folder", str(folder / "features"), "")
        return
    with S3S[request.param](folder) as endpoint:
        client("s3", endpoint).create_bucket(Bucket="features")
        yield Store(request.param, "s3://features", endpoint)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["push", "publish"])
def test_commits_at_once_are_all_there(store: Store, kind: str) -> None:
    """K1. Pushes go into one partition and take turns; publications of a partition each do not notice one another."""
    place = f"{store.place}/offline-{kind}"
    words = [sys.executable, "-m", "tests.acceptance.appender", place, store.endpoint]
    writers = [
        subprocess.Popen(
            [*words, f"w{number}", str(TIMES), kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=store.environment,
        )
        for number in range(WRITERS)
    ]  # fmt: skip
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    begun = time.monotonic()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    told = [writer.communicate(timeout=200)[0].split() for writer in writers]
    seconds = time.monotonic() - begun
    assert [writer.returncode for writer in writers] == [0] * WRITERS
    versions = sorted(int(version) for of_writer in told for version in of_writer)
    offline = OfflineStore(place, storage_options=store.options)
    rows = [row for of_partition in held(offline).values() for row in of_partition]
    expected = [(f"w{writer}", number, None, number) for writer in range(WRITERS) for number in range(TIMES)]
    assert sorted(rows, key=repr) == sorted(expected, key=repr)
    # The table is made by one commit, and for pushed rows gets a column by another.
    made = 1 if kind == "publish" else 2
    assert versions == list(range(made, made + len(rows))), "each commit has a version of its own, and none is lost"
    assert offline.version(WEATHER) == versions[-1]
    assert offline.check(WEATHER) == []
    tell(f"K1, {kind}, {store.name}", commits=len(versions), lost=0, seconds=f"{seconds:.1f}")


def publisher(store: Store, place: str, *words: str) -> "subprocess.Popen[bytes]":
    script = ROOT / "tests" / "registry" / "publisher.py"
    return subprocess.Popen(
        [sys.executable, str(script), place, *words],
        env=store.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.timeout(300)
def test_registries_published_at_once_are_all_there(store: Store) -> None:
    """R1."""
    place = f"{store.place}/registry"
    begun = time.monotonic()
    running = [publisher(store, place, f"location{number}", str(PUBLICATIONS)) for number in range(PUBLISHERS)]
    told = [line for process in running for line in process.communicate(timeout=200)[0].decode().splitlines()]
    seconds = time.monotonic() - begun
    assert [process.returncode for process in running] == [0] * PUBLISHERS
    registry = RegistryStore(place, store.options)
    published = registry.read()
    count = PUBLISHERS * PUBLICATIONS
    assert (published.sequence, len(told)) == (count, count)
    assert {view.description for view in published.registry.views.values()} == {f"number {PUBLICATIONS - 1}"}
    assert len(published.registry.views) == PUBLISHERS
    assert_consistent(registry, told)
    tell(f"R1, {store.name}", publications=f"{len(told)} of {count}", seconds=f"{seconds:.1f}")


@pytest.mark.timeout(300)
def test_publishers_that_are_killed_leave_what_was_or_what_is(store: Store) -> None:
    """R3."""
    place = f"{store.place}/killed"
    chance = random.Random(7)
    registry = RegistryStore(place, store.options)
    told: list[str] = []
    spawner = publisher(store, place, "--spawn")
    assert spawner.stdin is not None
    assert spawner.stdout is not None
    for kill in range(KILLS):
        spawner.stdin.write(b"\n")
        spawner.stdin.flush()
        pid = next_pid(spawner.stdout, told)
        for _ in range(kill % 3):
            told.append(spawner.stdout.readline().decode().strip())
        time.sleep(chance.uniform(0.0, 0.05))
        os.kill(pid, signal.SIGKILL)
        assert_consistent(registry, told)
    spawner.stdin.close()
    told += [line.decode().strip() for line in spawner.stdout]
    spawner.wait(timeout=30)
    spawner.stdout.close()
    assert_consistent(registry, told)
    assert len(told) >= KILLS - 1
    tell(f"R3, {store.name}", kills=KILLS, publications_told=len(told), number=registry.read().sequence)


@pytest.mark.parametrize("name, header", [("localbucket", "If-Match"), ("s3rver", "If-None-Match")])
def test_a_store_that_ignores_conditions_is_refused(name: str, header: str, tmp_path: Path) -> None:
    """K2, of those that there are; the others are accepted above, else nothing would be published there."""
    with UNFIT_S3S[name](tmp_path) as endpoint:
        httpx.put(f"{endpoint}/features", headers={"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})
        client("s3", endpoint).list_buckets()
        place = open_objects("s3://features/registry", storage_options(endpoint))
        with pytest.raises(StoreUnsafe, match=f"s3://features/registry ignores the header {header}: ") as refused:
            place.probe()
        project = _project(tmp_path, name, endpoint)
        doctor = project("doctor", "--json", registry="s3://features/registry", offline="s3://features/offline")
        found = {row["what"]: row["found"] for row in json.loads(doctor.stdout) if row["state"] == "problem"}
        for what, kept in (("registry", "registry"), ("offline store", "offline")):
            assert f"s3://features/{kept} ignores the header {header}: two publishers at once" in found[what]
        applied = project("apply", registry="s3://features/registry")
        assert f"Error: s3://features/registry ignores the header {header}: " in " ".join(applied.stderr.split())
        first = project("materialize", "customer_orders", "--all", offline="s3://features/offline")
        assert f"s3://features/offline ignores the header {header}: " in " ".join((first.stdout + first.stderr).split())
        assert [one.returncode for one in (doctor, applied, first)] == [1, 1, 1]
        held = client("s3", endpoint).list_objects_v2(Bucket="features").get("Contents", [])
        # One of them does not remove what it is told to.
        assert [one["Key"] for one in held if "/probe/" not in one["Key"]] == [], "nothing was published"
    tell(f"K2, {name}", refused=str(refused.value), by="the probe, doctor, apply, materialize")


class Typed(Protocol):
    """Types a command of the project, with settings that are otherwise."""

    def __call__(self, *words: str, **settings: str) -> "subprocess.CompletedProcess[str]": ...


def _project(folder: Path, name: str, endpoint: str) -> Typed:
    """A project as `init` makes it, published in its own folder."""
    shop = folder / "shop"
    options = "\n".join(f'{key} = "{value}"' for key, value in storage_options(endpoint).items())

    def typed(*words: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "feature_assets.cli", *words],
            cwd=shop if shop.exists() else folder,
            env=Store(name, "", endpoint).environment
            | {f"FEATURE_ASSETS_{key.upper()}": value for key, value in settings.items()},
            capture_output=True,
            text=True,
            check=False,
        )

    assert typed("init", "shop").returncode == 0
    with (shop / "feature_assets.toml").open("a") as file:
        file.write(f"\n[storage_options]\n{options}\n")
    assert typed("apply").returncode == 0
    return typed


def test_a_store_that_keeps_to_conditions_is_accepted(store: Store) -> None:
    open_objects(f"{store.place}/registry", store.options).probe()
    tell(f"K2, {store.name}", accepted="yes")
