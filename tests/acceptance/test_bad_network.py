"""N1, N2: DynamoDB over a network that is slow, loses a fifth of what is sent, or damages one byte in a thousand."""

import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

from feature_assets.errors import StoreError
from feature_assets.online import open_online_store
from feature_assets.online.protocol import AppliedPublication, OnlineStore, WriteCount
from feature_assets.testing import online_rows
from feature_assets.testing.online import WEATHER, weather
from tests.acceptance.bad_wire import Wire, through
from tests.acceptance.clouds import DYNAMODBS, KEYS
from tests.acceptance.running import tell

NAMES = [f"k{number}" for number in range(24)]
LONGEST = 4 * 3.0 + 8.0
"""Four attempts of three seconds, and the pauses between them: how long a lookup takes at the most."""


@pytest.fixture(scope="module", params=["ministack"])
def endpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with DYNAMODBS[request.param](tmp_path_factory.mktemp("cloud")) as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


def opened(prefix: str, endpoint: str) -> OnlineStore:
    return open_online_store(f"dynamodb:{prefix}?region=us-east-1&endpoint={endpoint}&consistent=true")


def rows(minute: int, publication: int) -> object:
    return online_rows(
        WEATHER,
        [weather(name, minute, publication=publication, temp=minute + place) for place, name in enumerate(NAMES)],
    )


def temps(store: OnlineStore, names: list[str]) -> list[float | None]:
    return list(store.reader(WEATHER, ["temp"])([(name,) for name in names])[1][0])


def as_written(minute: int) -> list[float]:
    return [float(minute + place) for place in range(len(NAMES))]


@pytest.mark.timeout(300)
def test_slow_all_of_it_is_right(endpoint: str) -> None:
    prefix, wire = f"t{uuid4().hex[:8]}", Wire(seconds=(0.05, 0.12))
    with through(wire, endpoint) as slow:
        store = opened(prefix, slow)
        store.prepare(WEATHER)
        begun = time.monotonic()
        written = store.write(WEATHER, rows(1, 1), AppliedPublication(1, 1, {"a": len(NAMES)}))
        seconds_to_write = time.monotonic() - begun
        assert written == WriteCount(written=len(NAMES))
        begun = time.monotonic()
        assert temps(store, NAMES) == as_written(1)
        seconds_to_read = time.monotonic() - begun
        assert store.ledger(WEATHER).entries["a"].settled
        store.close()
    tell("N1, slow", pieces=wire.pieces, write=f"{seconds_to_write:.1f} s", read=f"{seconds_to_read:.2f} s")


@pytest.mark.timeout(900)
def test_lossy_what_is_told_is_so(endpoint: str) -> None:
    """What was told to be written is there; what was told not to be is named, and again is there in the end."""
    prefix, wire = f"t{uuid4().hex[:8]}", Wire()
    watching = opened(prefix, endpoint)
    watching.prepare(WEATHER)
    outcomes: list[str] = []
    lookups: list[float] = []
    with through(wire, endpoint) as lossy:
        store = opened(prefix, lossy)
        assert temps(store, NAMES[:1]) == [None]
        wire.lost = 0.2
        for turn in (1, 2):
            publication = AppliedPublication(turn, turn, {"a": len(NAMES)})
            try:
                count = store.write(WEATHER, rows(turn, turn), publication)
            except StoreError:
                outcomes.append("refused")
                continue
            outcomes.append("written")
            assert count == WriteCount(written=len(NAMES))
            assert temps(watching, NAMES) == as_written(turn)
            assert watching.ledger(WEATHER).entries["a"].publication == turn
        stored = temps(watching, NAMES)
        wrong = refused = 0
        for number in range(12):
            begun = time.monotonic()
            try:
                found = temps(store, NAMES[number : number + 1] if number % 2 else NAMES)
                wrong += found != (stored[number : number + 1] if number % 2 else stored)
            except StoreError:
                refused += 1
            lookups.append(time.monotonic() - begun)
        wire.lost = 0.0
        store.close()
    for turn in (3, 4):
        again = watching.write(WEATHER, rows(turn, turn), AppliedPublication(turn, turn, {"a": len(NAMES)}))
        assert again == WriteCount(written=len(NAMES))
    assert temps(watching, NAMES) == as_written(4)
    watching.close()
    assert wrong == 0
    assert max(lookups) < LONGEST
    tell(
        "N1, a fifth lost",
        pieces_lost=f"{wire.pieces_lost} of {wire.pieces}",
        publications=", ".join(outcomes),
        lookups=f"{12 - refused} right and {refused} refused",
        slowest=f"{max(lookups):.1f} s",
    )


@pytest.mark.timeout(600)
def test_damaged_no_value_is_ever_wrong(endpoint: str) -> None:
    prefix, wire = f"t{uuid4().hex[:8]}", Wire()
    watching = opened(prefix, endpoint)
    watching.prepare(WEATHER)
    watching.write(WEATHER, rows(1, 1), AppliedPublication(1, 1, {"a": len(NAMES)}))
    right = refused = 0
    with through(wire, endpoint) as damaging:
        store = opened(prefix, damaging)
        assert temps(store, NAMES) == as_written(1)
        wire.damaged = 0.001
        for number in range(120):
            names = NAMES[number % 20 : number % 20 + (1 if number % 4 else 5)]
            try:
                found = temps(store, names)
            except StoreError:
                refused += 1
                continue
            assert found == as_written(1)[number % 20 : number % 20 + len(names)]
            right += 1
        store.close()
    watching.close()
    assert wire.bytes_damaged > 20
    assert right > 60
    tell("N1, damaged", bytes_damaged=wire.bytes_damaged, lookups=f"{right} right and {refused} refused", wrong=0)
