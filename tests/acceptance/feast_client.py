"""Run by the Python that has Feast: what its SDK gets from a feature server, as JSON.

    python feast_client.py <folder> <url> <token> <discovery url> <client id> <client secret>

Of the project it knows nothing: it is a user of Feast, whose configuration names another URL.
"""

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    PushSource,
    RepoConfig,
    ValueType,
)
from feast.data_source import PushMode
from feast.errors import FeastError
from feast.infra.key_encoding_utils import serialize_entity_key  # noqa: F401 (of this release: the layout is known)
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float64, Int64, String

AT = datetime(2013, 2, 8, 11, tzinfo=UTC)


def store(folder, url, auth):
    return FeatureStore(
        config=RepoConfig(
            project="flights",
            registry=str(folder / "registry.db"),
            provider="local",
            offline_store={"type": "file"},
            online_store={"type": "remote", "path": url, "connection_retries": 0},
            auth=auth,
            entity_key_serialization_version=3,
        )
    )


def declared(folder):
    pd.DataFrame({"origin": ["JFK"], "event_timestamp": [AT]}).to_parquet(folder / "rows.parquet")
    source = FileSource(name="rows", path=str(folder / "rows.parquet"), timestamp_field="event_timestamp")
    airport = Entity(name="airport", join_keys=["origin"], value_type=ValueType.STRING)
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)

    def view(name, entity, source=source, **types):
        schema = [Field(name=feature, dtype=of) for feature, of in types.items()]
        key = Field(name=entity.join_key, dtype=String if entity is airport else Int64)
        return FeatureView(
            name=name, entities=[entity], schema=[key, *schema], source=source, ttl=timedelta(days=36_500)
        )

    views = [
        view("weather", airport, temp=Float64, wind=Float64),
        view("crowds", airport, waiting=Int64, note=String),
        view("driver_stats", driver, trips=Int64),
        view("written", driver, source=PushSource(name="scores", batch_source=source), score=Float64, nick=String),
    ]
    service = FeatureService(name="three", features=[views[0], views[1], views[2]])
    return [airport, driver, *views, service]


def rows(**columns):
    """Rows as somebody writes them."""
    count = len(next(iter(columns.values())))
    return pd.DataFrame({**columns, "event_timestamp": [AT] * count})


def written(feast):
    """What is read after rows were written, and after others were pushed; what was refused meanwhile."""
    features, keys = ["written:score", "written:nick"], [{"driver_id": number} for number in range(4)]

    def read():
        return feast.get_online_features(features, keys).to_dict()

    found = {"before": read()}
    feast.write_to_online_store("written", rows(driver_id=[0, 1], score=[0.1, -0.0], nick=["é 😀", ""]))
    found["after"] = read()
    feast.push("scores", rows(driver_id=[2, 1], score=[2.5, 1e300], nick=["two", None]), to=PushMode.ONLINE)
    found["pushed"] = read()
    future = rows(driver_id=[0], score=[9.0], nick=["from the future"])
    future["event_timestamp"] = [datetime.now(UTC) + timedelta(days=2)]
    older = rows(driver_id=[0], score=[9.0], nick=["too late"])
    older["event_timestamp"] = [AT - timedelta(days=1)]
    found["refused"] = {
        "future": refused(lambda: feast.write_to_online_store("written", future)),
        "no stream": refused(
            lambda: feast.write_to_online_store("crowds", rows(origin=["JFK"], waiting=[1], note=["x"]))
        ),
    }
    feast.write_to_online_store("written", older)
    found["at last"] = read()
    return found


def refused(ask):
    try:
        ask()
    except FeastError as error:
        return {"class": type(error).__name__, "message": str(error)}
    except Exception as error:  # noqa: BLE001 (what a user of Feast meets, whatever it is)
        return {"class": type(error).__name__, "message": str(error)}
    return {"class": "", "message": "it was answered"}


def internal_read(feast, view):
    """What Feast calls inside, for on-demand views: one join key, and the event time of the first row."""
    key = EntityKey(join_keys=["origin"], entity_values=[Value(string_val="JFK")])
    absent = EntityKey(join_keys=["origin"], entity_values=[Value(string_val="XXX")])
    found = feast._get_provider().online_read(feast.config, view, [key, absent], ["temp", "wind"])
    return [
        {
            "at": str(at),
            "values": {
                name: value.double_val if value.WhichOneof("val") else None for name, value in (row or {}).items()
            },
        }
        for at, row in found
    ]


def main():
    folder, url, token, discovery, client, secret = Path(sys.argv[1]), *sys.argv[2:7]
    feast = store(folder, url, {"type": "oidc", "token": token})
    feast.apply(declared(folder), skip_feature_view_validation=True)
    features = ["weather:wind", "weather:temp", "crowds:waiting", "crowds:note", "driver_stats:trips"]
    rows_asked = [{"origin": f"A{number}", "driver_id": number} for number in range(100)]
    one = [{"origin": "JFK", "driver_id": 1}]
    found = {
        "one": feast.get_online_features(features, one).to_dict(include_event_timestamps=False),
        "hundred": feast.get_online_features(features, rows_asked).to_dict(),
        "full_names": feast.get_online_features(features, one, full_feature_names=True).to_dict(),
        "service": feast.get_online_features(feast.get_feature_service("three"), one).to_dict(),
        "service_hundred": feast.get_online_features(feast.get_feature_service("three"), rows_asked).to_dict(),
        "internal": internal_read(feast, feast.get_feature_view("weather")),
        "by_client": store(
            folder,
            url,
            {"type": "oidc", "auth_discovery_url": discovery, "client_id": client, "client_secret": secret},
        )
        .get_online_features(features, one)
        .to_dict(),
        "refused": {
            "view": refused(lambda: feast.get_online_features(["nothing:x"], one)),
            "feature": refused(lambda: feast.get_online_features(["weather:tmp"], one)),
            "key": refused(lambda: feast.get_online_features(["weather:temp"], [{"driver_id": 1}])),
            "type": refused(lambda: feast.get_online_features(["weather:temp"], [{"origin": 1}])),
            "null": refused(lambda: feast.get_online_features(["weather:temp"], [{"origin": None}])),
            "many": refused(lambda: feast.get_online_features(["weather:temp"], {"origin": ["JFK"] * 1_001})),
            "token": refused(
                lambda: store(folder, url, {"type": "oidc", "token": "x.y.z"}).get_online_features(features, one)
            ),
        },
    }
    found["written"] = written(feast)
    json.dump(found, sys.stdout)


main()
