"""A platform of real parts in a folder, and the real application on it, with and without a socket."""

import base64
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from fastapi import FastAPI

from feature_assets.config import ServerSettings, Settings
from feature_assets.offline import OfflineStore
from feature_assets.online import open_online_store
from feature_assets.registry import Registry, RegistryStore
from feature_assets.server.app import create_app
from feature_assets.server.issuer import Issuer
from feature_assets.spec import (
    PARTITION,
    PUBLICATION,
    Entity,
    Field,
    OnDemandViewSpec,
    RequestSource,
    ServiceSpec,
    ViewProjection,
    ViewSpec,
)
from feature_assets.transformations import declared_expressions
from feature_assets.types import Float64, Int64, String, Timestamp

NOW = datetime(2013, 2, 8, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
AIRPORT = Entity("airport", {"origin": String})
DRIVER = Entity("driver", {"driver_id": Int64})


def view(name: str, *features: Field, entity: Entity = AIRPORT, **more: Any) -> ViewSpec:
    return ViewSpec(name=name, entities=(entity,), event_timestamp="at", features=features, **more)


def rows(of: ViewSpec, *given: tuple[Any, ...]) -> pl.DataFrame:
    """Rows of canonical values: join keys, event timestamp, features."""
    types = {**of.join_keys, "at": Timestamp, **{field.name: field.type for field in of.features}}
    columns = list(zip(*given, strict=True)) or [()] * len(types)
    frame = pl.DataFrame(
        [one.to_frame(name, list(column)) for (name, one), column in zip(types.items(), columns, strict=True)]
    )
    return frame.with_columns(pl.lit(1, pl.Int64).alias(PUBLICATION))


WEATHER = view("weather", Field("temp", Float64), Field("wind", Float64), ttl=6 * HOUR)
DRIVERS = view(
    "driver_stats",
    Field("trips", Int64),
    Field("email", String, pii="email"),
    entity=DRIVER,
)
SECRET = view("secret_plans", Field("plan", String))
COMFORT = OnDemandViewSpec(
    name="comfort",
    sources=(ViewProjection("weather", features=("temp",)),),
    request=(RequestSource("clothes", (Field("layers", Int64),)),),
    features=(Field("felt", Float64),),
    transformation=declared_expressions("comfort", {"felt": pl.col("temp") + pl.col("layers") * 5.0}),
)
HINT = OnDemandViewSpec(
    name="hint",
    sources=(ViewProjection("secret_plans"),),
    features=(Field("letters", Int64),),
    transformation=declared_expressions("hint", {"letters": pl.col("plan").str.len_chars().cast(pl.Int64)}),
)
CONTACT = OnDemandViewSpec(
    name="contact",
    sources=(ViewProjection("driver_stats", features=("email",)),),
    features=(Field("domain", String),),
    transformation=declared_expressions("contact", {"domain": pl.col("email").str.slice(3)}),
)
SERVICES = (
    ServiceSpec(name="flying", features=(ViewProjection("weather", features=("wind",)), ViewProjection("comfort"))),
    ServiceSpec(name="plotting", features=(ViewProjection("weather", features=("wind",)), ViewProjection("hint"))),
)


class Platform:
    """Views with rows, published; the issuer and its clients."""

    def __init__(self, folder: Path, **server: Any) -> None:
        self.settings = Settings(
            root=folder,
            online="sqlite:online.db",
            registry="registry",
            present=NOW,
            server=ServerSettings(**({"registry_refresh_seconds": 0.05} | server)),
        )
        self.store = open_online_store(self.settings.online_url)
        self.registry = RegistryStore(self.settings.place(self.settings.registry))
        self.objects: list[Any] = []

    @property
    def issuer(self) -> Issuer:
        return Issuer.open(self.settings.place(self.settings.secrets), audience=self.settings.server.audience)

    def add(self, of: Any, *given: tuple[Any, ...]) -> None:
        self.objects.append(of)
        if isinstance(of, ViewSpec):
            self.store.prepare(of)
            if given:
                self.store.write(of, rows(of, *given), None)

    def past(self, of: ViewSpec, *given: tuple[Any, ...]) -> None:
        """Make these rows the view's whole history."""
        offline = OfflineStore(self.settings.place(self.settings.offline), durability="process")
        frame = rows(of, *given).drop(PUBLICATION).with_columns(pl.lit("all").alias(PARTITION))
        offline.replace(of, frame.select(*of.columns, PARTITION), ["all"], metadata={})

    def publish(self) -> str:
        return self.registry.publish(Registry.of(self.objects), location="tests", by="tests").digest

    def token(self, *scopes: str, client: str = "tester", lifetime: float = 600) -> str:
        return self.issuer.token(client, scopes or ["features:read"], lifetime)

    def app(self) -> FastAPI:
        return create_app(self.settings)


def fill(platform: Platform) -> None:
    platform.add(WEATHER, ("JFK", NOW - HOUR, 40.5, 11.0), ("LGA", NOW, None, 3.5), ("EWR", NOW - 9 * HOUR, 1.0, 2.0))
    platform.add(DRIVERS, (1, NOW, 10, "a@b.example"), (2, NOW - HOUR, 20, None))
    platform.add(SECRET, ("JFK", NOW, "rule the world"))
    for one in (COMFORT, HINT, CONTACT, *SERVICES):
        platform.add(one)
    platform.publish()


@pytest.fixture(scope="module")
def platform(tmp_path_factory) -> Iterator[Platform]:
    made = Platform(tmp_path_factory.mktemp("platform"))
    fill(made)
    yield made
    made.store.close()


@contextlib.asynccontextmanager
async def client_of(app: FastAPI, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, without a socket between them; started and stopped as a server does."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:6566", **options) as client,
    ):
        yield client


@pytest.fixture(scope="module")
async def http(platform) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(platform.app()) as client:
        yield client


def bearer(token: str | bytes) -> dict[str, Any]:
    return {"authorization": b"Bearer " + (token if isinstance(token, bytes) else token.encode())}


def columns(answer: dict[str, Any], of: str = "values") -> dict[str, list[Any]]:
    """Values, or what else, by column."""
    names = answer["metadata"]["feature_names"]
    return {name: one[of] for name, one in zip(names, answer["results"], strict=True)}


def basic(client: str, secret: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{client}:{secret}".encode()).decode()}


@contextlib.contextmanager
def served(
    platform: Platform,
    log: Path,
    *,
    scheme: str = "http",
    ends: tuple[int, ...] = (0, -signal.SIGTERM),
    **options: Any,
) -> Iterator[tuple[str, int]]:
    """The server in a process of its own: its host and port. Its log is written to a file, its process id beside it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = (
        "import sys, json; from feature_assets.config import Settings; from feature_assets.server.process import run\n"
        "if __name__ == '__main__': run(Settings(**json.loads(sys.argv[1])), **json.loads(sys.argv[2]))"
    )
    script = log.with_suffix(".py")
    script.write_text(program)
    settings = platform.settings.model_dump(mode="json", exclude_unset=True)
    command = [sys.executable, str(script), json.dumps(settings), json.dumps({"port": port, **options})]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, stderr=stderr, cwd=Path(__file__).parents[2], env=os.environ | {"PYTHONPATH": "."}
        )
    log.with_suffix(".pid").write_text(str(process.pid))
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    try:
        for _ in range(4_000):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{scheme}://127.0.0.1:{port}/health", verify=anybody).is_success:
                    break
            assert process.poll() is None, log.read_text()
            time.sleep(0.025)
        yield "127.0.0.1", port
    finally:
        process.send_signal(signal.SIGTERM)
        # uvicorn's supervisor waits half a minute for a worker that is killed just when it is asked whether it lives.
        assert process.wait(timeout=60) in ends, log.read_text()
