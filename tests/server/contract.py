"""schemathesis over the whole OpenAPI document of a running server, with all checks and a token that may do everything."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from feature_assets.access import ACTS
from feature_assets.offline import OfflineStore
from feature_assets.spec import Entity, Field, PushSource, ServiceSpec, Stream, ViewProjection, ViewSpec
from feature_assets.types import Float64, String
from tests.server.conftest import DRIVER, HOUR, NOW, Platform, fill, served, view

CONFIGURATION = """\
# Whether a view is there, and what its join keys are, no schema says: a question of the right shape may be refused.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", 401, 403, 404, 409, 412, 422, 429]

# 428 is what RFC 6585 has for a missing precondition.
[checks.missing_required_header]
expected-statuses = [400, 401, 403, 406, 415, 422, 428]
"""


TRIPS = ViewSpec(
    name="trip_stats",
    entities=(DRIVER,),
    event_timestamp="ended",
    features=(Field("km", Float64),),
    stream=Stream("trips"),
)


class Run(NamedTuple):
    """What came of it. `pushed` is how many rows were taken."""

    passed: bool
    output: str
    cases: int
    log: str
    pushed: int


def platform_of_the_examples(folder: Path) -> Platform:
    """One that has what the examples in the document ask for, so that they are answered."""
    platform = Platform(folder)
    fill(platform)
    weather = view(
        "airport_weather",
        Field("temp", Float64),
        Field("wind_speed", Float64),
        entity=Entity("airport", {"origin": String}),
    )
    platform.add(weather, ("JFK", NOW - HOUR, 40.5, 11.0))
    platform.past(weather, ("JFK", NOW - HOUR, 40.5, 11.0))
    for one in (PushSource(name="trips"), TRIPS):
        platform.add(one)
    platform.add(ServiceSpec(name="departure_delay", features=(ViewProjection("airport_weather"),)))
    platform.publish()
    return platform


def fuzzed(folder: Path, *, examples: int, phases: str = "examples,coverage,fuzzing") -> Run:
    """Start a server, let schemathesis at it, and tell what it found."""
    platform = platform_of_the_examples(folder)
    configuration, log = folder / "schemathesis.toml", folder / "server.log"
    configuration.write_text(CONFIGURATION)
    with served(platform, log) as (host, port):
        options = ["--max-examples", str(examples), "--phases", phases, "--continue-on-failure", "--no-color"]
        found = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(configuration)),
                *("run", f"http://{host}:{port}/openapi.json", "-H", f"Authorization: Bearer {platform.token(*ACTS)}"),
                *options,
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=1_500,
            cwd=folder,
            env={**os.environ, "SCHEMATHESIS_HOOKS": str(Path(__file__).with_name("contract_hooks.py"))},
        )
    platform.store.close()
    history = OfflineStore(platform.settings.place(platform.settings.offline))
    pushed = history.scan(TRIPS).collect().height
    cases = re.search(r"(\d+) generated", found.stdout)
    return Run(
        found.returncode == 0, found.stdout + found.stderr, int(cases[1]) if cases else 0, log.read_text(), pushed
    )
