"""A FeatureStore that asks for somebody: what the server would refuse, it refuses."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from feature_assets import Entity, FeatureStore, Field, Forbidden, Int64, Principal, Settings, String, Unauthenticated
from feature_assets.access import Grant
from feature_assets.offline import OfflineStore
from feature_assets.registry import Registry, RegistryStore
from feature_assets.spec import (
    PARTITION,
    PUBLICATION,
    FileSource,
    OnDemandViewSpec,
    ServiceSpec,
    ViewProjection,
    ViewSpec,
)
from feature_assets.transformations import declared_expressions

NOON = datetime(2013, 2, 8, 12, tzinfo=UTC)
CLOCK = pl.Datetime("us", "UTC")
ORDERS = ViewSpec(
    name="orders",
    entities=(Entity("tenant", {"tenant": String}),),
    features=(Field("value", Int64), Field("phone", String, pii="phone")),
    event_timestamp="at",
    access={"read": ["role:risk_*"], "pii": ["role:risk_*"]},
    row_filter={"tenant": "org.tenant"},
)
WEATHER = ViewSpec(
    name="weather",
    entities=(Entity("place", {"place": String}),),
    features=(Field("temp", Int64),),
    event_timestamp="at",
)
DIAL = OnDemandViewSpec(
    name="dial",
    sources=(ViewProjection("orders", ("phone",)),),
    features=(Field("digits", Int64),),
    transformation=declared_expressions("dial", {"digits": pl.col("phone").str.len_chars().cast(pl.Int64)}),
)
MODEL = ServiceSpec(name="model", features=(ViewProjection("orders"), ViewProjection("dial")))
OPEN = {"scopes": "features:read features:history", "roles": ["risk_eu"], "claims": {"org.tenant": "acme"}}
FULL = OPEN | {"scopes": "features:read features:history pii:read"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Rows of two tenants, published offline and online."""
    folder = tmp_path_factory.mktemp("platform")
    made = Settings(root=folder, registry="registry", online="sqlite:online.db", offline="offline", training="training")
    RegistryStore(folder / "registry").publish(
        Registry.of([ORDERS, WEATHER, DIAL, MODEL]), location="tests", by="tests"
    )
    offline = OfflineStore(str(folder / "offline"), durability="process")
    with FeatureStore(made) as store:
        for view, columns in (
            (ORDERS, {"tenant": ["acme", "globex"], "at": [NOON] * 2, "value": [1, 2], "phone": ["0301", "04042"]}),
            (WEATHER, {"place": ["JFK"], "at": [NOON], "temp": [50]}),
        ):
            rows = pl.DataFrame(columns, schema_overrides={"at": CLOCK})
            store.online.prepare(view)
            store.online.write(view, rows.with_columns(pl.lit(1, pl.Int64).alias(PUBLICATION)), None)
            offline.replace(view, rows.with_columns(pl.lit("all").alias(PARTITION)), ["all"], metadata={})
    return made


def as_(settings: Settings, client: str = "scorer", **who: Any) -> FeatureStore:
    return FeatureStore(settings, principal=Principal.of(client, **who))


def spine(*tenants: str | None) -> pl.DataFrame:
    times = pl.Series("event_timestamp", [NOON + timedelta(hours=1)] * len(tenants), dtype=CLOCK)
    return pl.DataFrame({"tenant": pl.Series(list(tenants), dtype=pl.String), "event_timestamp": times})


def test_online(settings: Settings) -> None:
    with as_(settings, **OPEN) as store:
        answer = store.get_online_features("model", [{"tenant": "acme"}])
        assert answer.to_dict() == {"tenant": ["acme"], "value": [1], "phone": [None], "digits": [None]}
        assert answer.status("digits") == ["MASKED"]
        for rows in ([{"tenant": "globex"}], [{"tenant": "acme"}, {"tenant": "globex"}]):
            with pytest.raises(Forbidden, match="another 'tenant' than yours"):
                store.get_online_features("model", rows)
        # A lookup that was compiled for somebody keeps to it.
        with pytest.raises(Forbidden):
            store.lookup("model").read([{"tenant": "globex"}])
    with as_(settings, **FULL) as store:
        assert store.get_online_features("model", [{"tenant": "acme"}]).rows() == [
            {"tenant": "acme", "value": 1, "phone": "0301", "digits": 4}
        ]
    with as_(settings, scopes="features:read") as store, pytest.raises(Forbidden, match="or you may not read it"):
        store.get_online_features("model", [{"tenant": "acme"}])
    with FeatureStore(settings) as store:
        assert store.get_online_features(["orders:phone"], [{"tenant": "globex"}])["phone"] == ["04042"]


def test_a_spine_of_ones_own_rows(settings: Settings) -> None:
    """Personal data is left out, of the manifest too."""
    with as_(settings, **OPEN) as store:
        found = store.get_historical_features(spine("acme", "acme"), "model")
        assert found.collect().to_dict(as_series=False)["value"] == [1, 1]
        assert list(found.columns) == ["tenant", "event_timestamp", "value"]
        assert found.question.features == (ViewProjection("orders", ("value",)),)
        with pytest.raises(Forbidden, match="All that you ask for is personal data"):
            store.get_historical_features(spine("acme"), ["orders:phone", "dial:digits"])
    with as_(settings, **FULL) as store:
        rows = store.get_historical_features(spine("acme"), "model").collect()
        assert rows.select("value", "phone", "digits").rows() == [(1, "0301", 4)]


@pytest.mark.parametrize("tenants", [("globex",), ("acme", "globex"), ("acme", None), ("ACME",)], ids=str)
@pytest.mark.parametrize("lazily", [False, True])
def test_a_spine_with_a_row_of_somebody_else(settings: Settings, tenants: Any, *, lazily: bool) -> None:
    """A row without a key is nobody's, so it is somebody else's. Refused when it is asked, not when rows are read."""
    given = spine(*tenants)
    with as_(settings, **FULL) as store, pytest.raises(Forbidden, match="another 'tenant' than yours") as caught:
        store.get_historical_features(given.lazy() if lazily else given, "model")
    assert "globex" not in str(caught.value)


def test_without_a_spine_the_rows_are_ones_own(settings: Settings) -> None:
    with as_(settings, **FULL) as store:
        rows = store.get_historical_features(None, "model", since="2013-01-01", until="2014-01-01").collect()
        assert rows.select("tenant", "value").rows() == [("acme", 1)]
    with FeatureStore(settings) as store:
        rows = store.get_historical_features(None, "model", since="2013-01-01", until="2014-01-01").collect()
        assert rows["tenant"].to_list() == ["acme", "globex"]


def test_what_would_be_read_with_the_stores_credentials_is_no_spine(settings: Settings, tmp_path: Path) -> None:
    """A query over views would show all of a history, and a path any file."""
    path = tmp_path / "spine.parquet"
    spine("acme").write_parquet(path)
    with as_(settings, **FULL) as store:
        for given in (
            path,
            str(path),
            "SELECT tenant, at AS event_timestamp, phone AS stolen FROM orders",
            FileSource(name="spines", path=str(path)),
            str(Path(settings.place(settings.offline)) / "orders" / "v1"),
        ):
            with pytest.raises(Forbidden, match="With a principal a spine is rows"):
                store.get_historical_features(given, ["weather:temp"])
        for rows in (spine("acme"), spine("acme").lazy(), spine("acme").to_pandas(), spine("acme").to_arrow()):
            assert store.get_historical_features(rows, ["orders:value"]).collect()["value"].to_list() == [1]


def test_a_saved_set_is_open_to_whom_all_of_it_is_open(settings: Settings) -> None:
    with FeatureStore(settings) as store:
        store.get_historical_features(spine("acme", "globex"), "model").save("everybody", overwrite=True)
    with as_(settings, **FULL) as store:
        store.get_historical_features(spine("acme"), "model").save("ours", overwrite=True)
        assert store.training_set("ours").collect()["digits"].to_list() == [4]
        assert store.rebuild("ours").collect()["digits"].to_list() == [4]
        for again in (store.training_set, store.rebuild):
            with pytest.raises(Forbidden, match="another 'tenant' than yours"):
                again("everybody")
    with as_(settings, **OPEN) as store:
        for again in (store.training_set, store.rebuild):
            with pytest.raises(Forbidden, match="holds personal data that you may not see: digits, phone"):
                again("ours")
        store.get_historical_features(spine("acme"), "model").save("plain", overwrite=True)
        assert store.training_set("plain").collect()["value"].to_list() == [1]
    with as_(settings, scopes="features:history") as store, pytest.raises(Forbidden):
        store.training_set("plain")


def test_a_principal_counts_as_long_as_its_token(settings: Settings) -> None:
    ended = Principal("issuer", "user", "scorer", Grant.of("features:read features:history"), ends=1.0)
    with FeatureStore(settings, principal=ended) as store:
        for ask in (
            lambda: store.get_online_features(["weather:temp"], [{"place": "JFK"}]),
            lambda: store.get_historical_features(spine("acme"), ["weather:temp"]),
            lambda: store.training_set("plain"),
        ):
            with pytest.raises(Unauthenticated, match="Open the store with a new one"):
                ask()
