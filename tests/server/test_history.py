"""Training sets over HTTP: the same rows as in Python, in every form, within limits, and nothing of the server's files."""

import asyncio
import contextlib
import io
import json
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_assets import FeatureStore
from feature_assets.config import ServerSettings
from feature_assets.server.history import _accepted
from feature_assets.spec import Entity, Field, from_json
from feature_assets.training.manifest import Question
from feature_assets.types import UUID, Bytes, Date, Decimal, Float64
from tests.server.conftest import DRIVERS, HOUR, NOW, SECRET, WEATHER, Platform, bearer, client_of, fill, served, view

PATH = "/v1/historical-features"
PARQUET = "application/vnd.apache.parquet"
ARROW = "application/vnd.apache.arrow.stream"
FEATURES = ["weather:temp", "driver_stats:trips"]


def remember(platform: Platform) -> None:
    """A history for each view."""
    hours = [NOW - hour * HOUR for hour in range(48)]
    platform.past(WEATHER, *[(place, at, float(at.hour), 1.5) for at in hours for place in ("JFK", "LGA")])
    platform.past(DRIVERS, *[(driver, NOW - 40 * HOUR, driver * 10, None) for driver in (1, 2)])
    platform.past(SECRET, ("JFK", NOW - HOUR, "rule the world"))


@pytest.fixture(scope="module")
def past(tmp_path_factory) -> Any:
    made = Platform(tmp_path_factory.mktemp("past"))
    fill(made)
    remember(made)
    yield made
    made.store.close()


@pytest.fixture(scope="module")
async def http(past) -> Any:
    async with client_of(past.app(), timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def token(past) -> dict[str, Any]:
    return bearer(past.token("features:history"))


@pytest.fixture(scope="module")
def spine() -> pl.DataFrame:
    """Some keys are unknown, some rows come twice, some times are before everything; and a column of its own."""
    return pl.DataFrame(
        {
            "label": ["a", "b", "b", None, "e"],
            "origin": ["JFK", "LGA", "LGA", "XXX", None],
            "driver_id": [1, 2, 2, 1, 9],
            "event_timestamp": [NOW, NOW - 5 * HOUR, NOW - 5 * HOUR, NOW, NOW - 400 * HOUR],
        }
    )


def parquet(frame: pl.DataFrame) -> bytes:
    written = io.BytesIO()
    frame.write_parquet(written)
    return written.getvalue()


def stream(frame: pl.DataFrame) -> bytes:
    written = io.BytesIO()
    frame.write_ipc_stream(written)
    return written.getvalue()


def read(answer: httpx.Response) -> pl.DataFrame:
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"] == PARQUET:
        return pl.read_parquet(answer.content)
    return pl.read_ipc_stream(answer.content)


def local(platform: Platform, *asked: Any, **options: Any) -> pl.DataFrame:
    with FeatureStore(platform.settings) as store:
        return store.get_historical_features(*asked, **options).collect()


async def ask(http: httpx.AsyncClient, token: dict[str, Any], accept: str = PARQUET, **question: Any) -> httpx.Response:
    return await http.post(PATH, json=question, headers={**token, "accept": accept})


async def send(
    http: httpx.AsyncClient, token: dict[str, Any], spine: bytes, kind: str, accept: str = PARQUET, **question: Any
) -> httpx.Response:
    parts = {"question": (None, json.dumps(question), "application/json"), "spine": ("spine", spine, kind)}
    return await http.post(PATH, files=parts, headers={**token, "accept": accept})


@pytest.mark.parametrize("accept", [PARQUET, ARROW])
async def test_every_form_up_and_down_gives_the_rows_that_python_gives(http, past, token, spine, accept):
    expected = local(past, spine, FEATURES)
    assert expected["temp"].null_count() == 2
    for body, kind in ((parquet(spine), PARQUET), (stream(spine), ARROW)):
        answer = await send(http, token, body, kind, accept, features=FEATURES)
        assert answer.headers["content-type"] == accept
        assert read(answer).equals(expected)
        assert read(answer).schema == expected.schema
    plain = {
        name: [str(one) if hasattr(one, "year") else one for one in spine[name].to_list()] for name in spine.columns
    }
    columns = await ask(http, token, accept, features=FEATURES, spine=plain)
    rows = [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
    by_row = await ask(http, token, accept, features=FEATURES, spine=rows)
    for answer in (columns, by_row):
        assert read(answer).drop("event_timestamp").equals(expected.drop("event_timestamp"))


async def test_an_answer_says_of_which_snapshot_and_which_tables_it_is(http, past, token, spine):
    for accept in (PARQUET, ARROW):
        answer = await send(http, token, parquet(spine), PARQUET, accept, features=FEATURES)
        assert answer.headers["x-feature-registry"] == past.registry.read().digest
        if accept == PARQUET:
            metadata = pq.read_metadata(pa.BufferReader(answer.content)).metadata
        else:
            metadata = pa.ipc.open_stream(answer.content).schema.metadata
        question = from_json(metadata[b"feature_assets.question"], Question)
        assert from_json(metadata[b"feature_assets.spine"], list[str]) == spine.columns
        assert question.registry == past.registry.read().digest
        assert question.tables == {"weather@v1": 1, "driver_stats@v1": 1}


async def test_services_on_demand_features_and_options(http, past, token):
    asked = pl.DataFrame({"origin": ["JFK", "LGA"], "layers": [2, 1], "at": [NOW, NOW], "noon": [NOW, NOW]})
    options: dict[str, Any] = {"full_feature_names": True, "timestamp_column": "at"}
    answer = await send(http, token, parquet(asked), PARQUET, feature_service="flying", **options)
    assert read(answer).equals(local(past, asked, "flying", **options))
    assert read(answer).columns[-2:] == ["weather__wind", "comfort__felt"]


async def test_a_range_of_time_instead_of_a_spine(http, past, token):
    options = {"since": str(NOW - 3 * HOUR), "until": str(NOW)}
    answer = await ask(http, token, features=["weather:temp"], **options)
    assert read(answer).equals(local(past, None, ["weather:temp"], **options))
    assert read(answer).height == 6


async def test_a_view_twice_under_other_names(http, past, token):
    asked = pl.DataFrame({"origin": ["JFK"], "dest": ["LGA"], "event_timestamp": [NOW]})
    features = [
        "weather:temp",
        {"view": "weather", "features": ["temp"], "alias": "there", "join_key_map": {"origin": "dest"}},
    ]
    answer = await send(http, token, parquet(asked), PARQUET, features=features, full_feature_names=True)
    assert read(answer).columns == [*asked.columns, "weather__temp", "there__temp"]


async def test_json_keys_of_types_that_json_lacks(tmp_path):
    platform = Platform(tmp_path)
    keys = {"raw": Bytes, "day": Date, "amount": Decimal(6, 2), "id": UUID}
    one = view("one", Field("x", Float64), entity=Entity("thing", keys))
    row = {
        "raw": b"\x00\xff",
        "day": NOW.date(),
        "amount": keys["amount"].parse("1.50"),
        "id": "0" * 8 + "-0000" * 4 + "0" * 8,
    }
    given = [row[name] for name in one.join_keys]
    platform.add(one)
    platform.past(one, (*given, NOW - HOUR, 7.0))
    platform.publish()
    plain = {name: list(of.to_json([row[name]])) for name, of in keys.items()}
    async with client_of(platform.app(), timeout=120) as http:
        token = bearer(platform.token("features:history"))
        found = await ask(http, token, features=["one:x"], spine={**plain, "event_timestamp": [NOW.isoformat()]})
        assert read(found)["x"].to_list() == [7.0]
        wrong = await ask(http, token, features=["one:x"], spine={**plain, "raw": ["?"], "event_timestamp": [str(NOW)]})
    assert (wrong.status_code, wrong.json()["type"]) == (422, "urn:feature-assets:problem:wrong-type")
    assert "'raw', row 0" in wrong.json()["detail"]
    platform.store.close()


async def test_who_may_not_read_one_view_gets_nothing(http, past, spine):
    """An on-demand view is what it is computed from, too."""
    narrow = bearer(past.token("features:history:weather"))
    assert (await send(http, narrow, parquet(spine), PARQUET, features=["weather:temp"])).status_code == 200
    for features in (FEATURES, ["hint:letters"], ["weather:temp", "nothing:x"]):
        refused = await send(http, narrow, parquet(spine), PARQUET, features=features)
        assert (refused.status_code, refused.json()["type"]) == (404, "urn:feature-assets:problem:unknown-or-forbidden")
    knowing = bearer(past.token("features:history:weather", "registry:read"))
    refused = await send(http, knowing, parquet(spine), PARQUET, features=FEATURES)
    assert refused.status_code == 403
    assert 'scope="features:history:driver_stats"' in refused.headers["www-authenticate"]
    for scopes in (["features:read"], ["registry:read"]):
        assert (await ask(http, bearer(past.token(*scopes)), features=FEATURES)).status_code == 403
    assert (await http.post(PATH, json={})).status_code == 401


async def test_personal_data_is_left_out_without_the_scope(http, past, spine):
    """And what is made from it."""
    asked = [*FEATURES, "driver_stats:email", "contact:domain"]
    unseen = await send(http, bearer(past.token("features:history")), parquet(spine), PARQUET, features=asked)
    assert read(unseen).equals(local(past, spine, FEATURES))
    seeing = bearer(past.token("features:history", "pii:read:driver_*"))
    assert read(await send(http, seeing, parquet(spine), PARQUET, features=asked)).equals(local(past, spine, asked))
    refused = await send(http, bearer(past.token("features:history")), parquet(spine), PARQUET, features=asked[2:])
    assert (refused.status_code, refused.json()["type"]) == (403, "urn:feature-assets:problem:forbidden")


async def test_a_row_filter_holds_for_every_row_of_the_spine(tmp_path):
    """And a range of time gives the rows of one's own."""
    platform = Platform(tmp_path)
    own = view("accounts", Field("x", Float64), access={"read": ["role:customer"]}, row_filter={"origin": "tenant"})
    platform.add(own)
    platform.past(own, ("JFK", NOW - HOUR, 1.0), ("LGA", NOW - HOUR, 2.0))
    platform.publish()
    claims = {"roles": ["customer"], "tenant": "JFK"}
    client, secret = platform.issuer.add_client("tenant", ["features:history"], claims)
    async with client_of(platform.app(), timeout=120) as http:
        asked = await http.post("/oauth/token", data={"grant_type": "client_credentials"}, auth=(client, secret))
        token = bearer(asked.json()["access_token"])
        at = {"event_timestamp": [str(NOW)]}
        assert read(await ask(http, token, features=["accounts:x"], spine={"origin": ["JFK"], **at}))["x"].item() == 1.0
        refused = await ask(http, token, features=["accounts:x"], spine={"origin": ["LGA"], **at})
        assert refused.status_code == 403
        assert "LGA" not in refused.text
        range_ = await ask(http, token, features=["accounts:x"], since="2013-01-01")
        assert read(range_)["origin"].to_list() == ["JFK"]
        assert (await ask(http, bearer(platform.token("features:history")), features=["accounts:x"])).status_code == 404
    platform.store.close()


@pytest.mark.parametrize(
    "question, status, words",
    [
        ({"features": ["weather:temp"], "spine": "/etc/passwd"}, 422, "Expected"),
        ({"features": ["weather:temp"], "spine": "SELECT * FROM weather"}, 422, "Expected"),
        ({"features": ["weather:temp"], "spine": ["/etc/passwd"]}, 422, "Expected"),
        ({"features": ["weather:temp"], "tables": {"t": "/etc/passwd"}}, 422, "tables"),
        ({"features": ["weather:temp"]}, 422, "There is no spine"),
        ({"features": ["weather:temp"], "spine": {}}, 422, "lacks"),
        ({"features": ["weather:temp"], "spine": []}, 422, "lacks"),
        ({"features": ["weather:temp"], "spine": {"origin": ["JFK"]}}, 422, "no datetime column"),
        ({"features": ["weather:temp"], "spine": {"origin": ["JFK", "LGA"], "at": ["2013-01-01"]}}, 422, "differ in length"),
        ({"features": ["weather:temp"], "spine": {"origin": [1], "event_timestamp": ["2013-01-01"]}}, 422, "'origin', row 0"),
        ({"features": ["weather:temp"], "spine": {"origin": ["JFK"], "event_timestamp": [1]}}, 422, "no time"),
        ({"features": ["weather:temp"], "spine": {"origin": ["JFK"], "event_timestamp": ["never"]}}, 422, "as a time"),
        ({"features": ["weather:temp"], "spine": [{"origin": "JFK", "x": 1}, {"x": "a"}]}, 422, "different kinds"),
        ({"features": ["weather:temp"], "spine": {"temp": [1], "origin": ["JFK"], "event_timestamp": ["2013-01-01"]}}, 422, "name of both"),
        ({"features": ["weather:temp"], "spine": {"origin": ["JFK"]}, "since": "2013-01-01"}, 422, "stand in for a spine"),
        ({"features": ["weather:temp"], "since": "yesterday"}, 422, "since="),
        ({"features": ["weather:tmp"], "since": "2013-01-01"}, 404, "Did you mean 'temp'"),
        ({"features": ["weather:temp", "driver_stats:trips"], "since": "2013-01-01"}, 422, "same keys"),
        ({"features": [], "since": "2013-01-01"}, 422, "empty"),
        ({"since": "2013-01-01"}, 422, "Ask for either"),
        ({"features": [{"view": "weather", "alias": "a__b"}], "since": "2013-01-01"}, 422, "letters, digits"),
        ({"features": ["weather:temp"], "spine": {"origin": ["JFK"], "event_timestamp": ["2013-01-01"], "x": [{}]}}, 422, "as parquet"),
        ({"features": ["comfort:felt"], "spine": {"origin": ["JFK"], "event_timestamp": ["2013-01-01"]}}, 422, "lacks 'layers'"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)  # fmt: skip
async def test_what_cannot_be_answered_says_why(http, past, token, question, status, words):
    refused = await ask(http, bearer(past.token("features:history", "registry:read")), **question)
    assert refused.status_code == status, refused.text
    assert words in refused.json()["detail"]
    assert refused.headers["content-type"] == "application/problem+json"
    assert str(past.settings.root) not in refused.text


@pytest.mark.parametrize("body", [b"", b"PAR1", b"PAR1" * 1_000, b"\x00" * 100, b"not at all"])
@pytest.mark.parametrize("kind", [PARQUET, ARROW])
async def test_a_spine_that_is_no_file_of_its_kind(http, token, body, kind):
    refused = await send(http, token, body, kind, features=["weather:temp"])
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:feature-assets:problem:bad-question")


async def test_a_damaged_file_is_refused(http, token, spine):
    """Cut anywhere, or with bytes turned over."""
    whole = parquet(pl.concat([spine] * 50))
    for damaged in (whole[:-20], whole[:100], whole[:60] + bytes(200) + whole[260:]):
        refused = await send(http, token, damaged, PARQUET, features=["weather:temp"])
        assert refused.status_code == 422, refused.text


def form(*parts: tuple[str, str, bytes]) -> bytes:
    written = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\nContent-Type: {kind}\r\n\r\n'.encode()
        + body
        + b"\r\n"
        for name, kind, body in parts
    ]
    return b"".join(written) + b"--b--\r\n"


QUESTION = ("question", "application/json", b'{"features": ["weather:temp"]}')


@pytest.mark.parametrize(
    "content_type, body, status",
    [
        ("text/csv", b"origin\nJFK\n", 415),
        ("", b"{}", 415),
        ("multipart/form-data", form(QUESTION), 400),
        ("multipart/form-data; boundary=other", form(QUESTION), 400),
        ("multipart/form-data; boundary=b", form(QUESTION)[:-10], 400),
        ("multipart/form-data; boundary=b", b"", 400),
        ("multipart/form-data; boundary=b", form(), 422),
        ("multipart/form-data; boundary=b", form(("spine", PARQUET, b"")), 422),
        ("multipart/form-data; boundary=b", form(QUESTION, ("path", "text/plain", b"/etc/passwd")), 422),
        ("multipart/form-data; boundary=b", form(QUESTION, QUESTION), 422),
        ("multipart/form-data; boundary=b", form(QUESTION, ("spine", "text/csv", b"")), 415),
        ("multipart/form-data; boundary=b", form(QUESTION, ("spine", "", b"")), 415),
        ("multipart/form-data; boundary=b", form(("question", "application/json", b"{" + b" " * (1 << 20))), 413),
        ("multipart/form-data; boundary=" + "b" * 300, form(QUESTION), 400),
        ("application/json", b"{" + b" " * (1 << 20), 413),
        ("application/json", b'{"a', 400),
        ("application/json", b'{"features": "weather:temp", "spine": ' + b"[" * 600 + b"]" * 600 + b"}", 422),
    ],
)
async def test_bodies_that_are_none(http, token, content_type, body, status):
    headers = {**token, **({"content-type": content_type} if content_type else {})}
    refused = await http.post(PATH, content=body, headers=headers)
    assert refused.status_code == status, refused.text


@pytest.mark.parametrize(
    "accept, found",
    [
        ("*/*", PARQUET),
        ("application/*;q=0.1", PARQUET),
        (ARROW, ARROW),
        (f"text/html, {PARQUET};q=0.5, {ARROW};q=0.9", ARROW),
        (f"{ARROW};q=0, */*", PARQUET),
    ],
)
def test_the_form_that_is_wanted_most(accept, found):
    assert _accepted([(b"accept", accept.encode())])[0] == found


async def test_a_form_that_is_not_to_be_had(http, token, spine):
    refused = await send(http, token, parquet(spine), PARQUET, "application/json", features=FEATURES)
    assert (refused.status_code, refused.json()["type"]) == (406, "urn:feature-assets:problem:not-acceptable")


@pytest.mark.parametrize(
    "limits, words",
    [
        ({"history_seconds": 0.01}, "seconds"),
        ({"history_max_bytes": 1}, "bytes"),
        ({"history_max_memory_bytes": 1_000}, "of memory"),
        ({"max_spine_bytes": 100}, "larger than 100 bytes"),
    ],
    ids=["time", "size", "memory", "spine"],
)
async def test_what_takes_too_much_is_stopped(tmp_path, limits, words):
    platform = Platform(tmp_path, **limits)
    fill(platform)
    remember(platform)
    many = pl.DataFrame({"origin": ["JFK"] * 400_000, "event_timestamp": [NOW - timedelta(seconds=1)] * 400_000})
    async with client_of(platform.app(), timeout=120) as http:
        token = bearer(platform.token("features:history"))
        refused = await send(http, token, parquet(many), PARQUET, features=["weather:temp"])
    assert refused.status_code in (413, 422)
    assert words in refused.json()["detail"]
    assert not workers()
    platform.store.close()


async def test_the_process_that_computes_ends_in_order(http, token, spine, capfd):
    answer = await send(http, token, parquet(spine), PARQUET, features=["weather:temp"])
    assert answer.status_code == 200
    assert "Fatal" not in capfd.readouterr().err


def workers() -> list[int]:
    """The processes that compute histories, of this process."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            parent = int((place.parent / "stat").read_text().rpartition(")")[2].split()[1])
            if b"history_worker" in place.read_bytes() and parent == os.getpid():
                found.append(int(place.parent.name))
    return found


async def until(happened: Callable[[], Any]) -> Any:
    for _ in range(6_000):
        if found := happened():
            return found
        await asyncio.sleep(0.01)
    raise AssertionError("it never happened")


async def test_who_goes_away_takes_the_work_along_and_more_than_there_are_workers_wait(past, tmp_path):
    """The worker is held still, so that nothing depends on how fast it is."""
    settings = past.settings.model_copy(update={"server": ServerSettings(history_workers=1)})
    platform = Platform(tmp_path)
    platform.settings, platform.store = settings, past.store
    spine = pl.DataFrame({"origin": ["JFK"], "event_timestamp": [NOW]})
    async with client_of(platform.app(), timeout=120) as http:
        token = bearer(past.token("features:history"))
        first = asyncio.create_task(send(http, token, parquet(spine), PARQUET, features=["weather:temp"]))
        (found,) = await until(workers)
        os.kill(found, signal.SIGSTOP)
        busy = await send(http, token, parquet(spine), PARQUET, features=["weather:temp"])
        assert (busy.status_code, busy.json()["type"]) == (503, "urn:feature-assets:problem:busy")
        assert busy.headers["retry-after"] == "5"
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        await until(lambda: not workers())
        again = await send(http, token, parquet(spine), PARQUET, features=["weather:temp"])
        assert again.status_code == 200


def test_over_a_socket_a_closed_connection_ends_the_work(past, tmp_path):
    with served(past, tmp_path / "log") as (url_host, port):
        pass_on = {"authorization": bearer(past.token("features:history"))["authorization"].decode()}
        question = {"features": ["weather:temp"], "since": "2013-01-01"}
        url = f"http://{url_host}:{port}{PATH}"
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=question, headers=pass_on, timeout=0.05)
        whole = httpx.post(url, json=question, headers=pass_on, timeout=120)
        assert pl.read_parquet(whole.content).height == 96
    assert "status=400" in (tmp_path / "log").read_text()
