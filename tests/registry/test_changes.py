"""The words of a plan, as a person reads them."""

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from feature_assets.checks import NotNull
from feature_assets.registry import Change, Registry, merged, plan
from feature_assets.spec import (
    DeltaSource,
    Entity,
    Expressions,
    Field,
    LoggingConfig,
    RequestSource,
    ServiceSpec,
    StaticPartitions,
    Stream,
    ViewProjection,
)
from feature_assets.types import Float64, Int64, String
from tests.registry.declared import AIRPORT, DAILY, on_demand, service, source, view, whole

SIGNS = {"added": "+", "changed": "~", "removed": "-"}
TEMP, WIND = view().features


def told(old: Any, new: Any) -> list[str]:
    """The plan from these objects to those, one line a change; a breaking one ends in an exclamation mark."""
    return [line(change) for change in plan(registry(old), registry(new))]


def registry(objects: Any) -> Registry:
    return objects if isinstance(objects, Registry) else Registry.of(objects)


def line(change: Change) -> str:
    return (
        f"{SIGNS[change.action]} {change.kind} {change.name} | {change.detail} | {change.meaning}"
        f"{' !' if change.breaking else ''}"
    )


def test_everything_new_and_everything_gone() -> None:
    assert told([], whole()) == [
        (
            "+ view weather | version 1 by origin: temp Float64, wind Float64"
            " | new view: nothing is served until its first materialisation"
        ),
        "+ on-demand view chill | felt Float64 | computed when asked for, from now on",
        "+ service delay | weather:* | can be asked for from now on",
        "+ source files | file source | read by the next materialisation that needs it",
    ]
    assert told(whole(), []) == [
        (
            "- view weather | version 1"
            " | no longer served or offered for training, in any version; its tables stay until they are dropped !"
        ),
        "- on-demand view chill | felt Float64 | no longer computed, in serving or in training !",
        "- service delay | weather:* | requests for it are refused from now on; its features stay !",
        "- source files | file source | no longer read; stored rows stay",
    ]
    assert plan(None, whole()) == plan(Registry(), whole())
    assert plan(whole(), whole()) == []


@pytest.mark.parametrize(
    "changed, expected",
    [
        (
            {"features": (TEMP, WIND, Field("rain", Float64))},
            ["+ feature weather:rain | Float64 | null until its partitions are materialised again"],
        ),
        (
            {"features": (TEMP,)},
            ["- feature weather:wind | Float64 | its tables cannot follow: raise the version, version=2 !"],
        ),
        (
            {"features": (Field("temp", Int64), WIND)},
            ["~ feature weather:temp | Float64 → Int64 | its tables cannot follow: raise the version, version=2 !"],
        ),
        (
            {"features": (Field("temp", Float64, default=1.5), Field("wind", Float64, pii="place"))},
            [
                (
                    "~ feature weather:temp | default None → 1.5"
                    " | answered at once for keys without a row, in training and in serving"
                ),
                "~ feature weather:wind | personal data: none → place | MASKED at once for readers without pii:read !",
            ],
        ),
        (
            {"features": (Field("temp", Float64, "in °F", {"a": "b"}), WIND)},
            ["~ feature weather:temp | description, tags | described differently; no data changes"],
        ),
        (
            {"features": (WIND, TEMP)},
            [
                (
                    "~ view weather | order of features"
                    " | columns come in another order at once where all features are asked for"
                )
            ],
        ),
        (
            {"entities": (Entity("place", {"origin": String}),)},
            ["~ view weather | entities | described differently; no data changes"],
        ),
        (
            {"ttl": timedelta(hours=1)},
            [
                (
                    "~ view weather | ttl shortened from 6h to 1h"
                    " | older values become OUTSIDE_MAX_AGE at once and leave training sets !"
                )
            ],
        ),
        (
            {"ttl": timedelta(days=1, minutes=90)},
            [
                (
                    "~ view weather | ttl lengthened from 6h to 1d1h30m"
                    " | older values are served at once and join training sets"
                )
            ],
        ),
        (
            {"ttl": None},
            ["~ view weather | ttl of 6h removed | older values are served at once and join training sets"],
        ),
        (
            {"online": False},
            ["~ view weather | online switched off | no longer served online; training goes on as before !"],
        ),
        (
            {"code_version": "33334444ffff"},
            [
                (
                    "~ view weather | code 11112222 → 33334444"
                    " | stored rows stay as the former code made them until they are materialised again"
                )
            ],
        ),
        (
            {"upstream": ("raw",), "checks": (NotNull("temp"),), "max_future": timedelta(seconds=90)},
            [
                "~ view weather | upstream +raw | the next materialisation reads from there; stored rows stay",
                (
                    "~ view weather | checks +not_null_temp"
                    " | the next materialisation is held to them; stored rows are not looked at again"
                ),
                "~ view weather | max_future 5m → 1m30s | the next materialisation is held to it",
            ],
        ),
        (
            {"partitions": {"partition": msgspec.structs.replace(DAILY, start="2012-01-01T00:00:00+00:00")}},
            [
                (
                    "~ view weather | range of partitions"
                    " | partitions that come in have to be materialised; rows of others stay"
                )
            ],
        ),
        (
            {"partitions": {"partition": StaticPartitions(("eu",))}},
            [
                (
                    "~ view weather | its partitions are cut differently"
                    " | its tables cannot follow: raise the version, version=2 !"
                )
            ],
        ),
        (
            {"description": "new", "owners": ("me",), "deprecated": "use climate"},
            [
                "~ view weather | description, owners | described differently; no data changes",
                "~ view weather | deprecated: use climate | goes on as before; readers are told",
            ],
        ),
        (
            {"version": 2, "features": (Field("temp", Int64), Field("rain", Float64)), "code_version": "9"},
            [
                (
                    "~ view weather | version 1 → 2"
                    " | new tables, backfill needed; version 1 stays readable as weather@v1 !"
                ),
                "~ feature weather:temp | Float64 → Int64 | who reads it gets the other type !",
                "+ feature weather:rain | Float64 | part of the new version",
                "- feature weather:wind | Float64 | gone from the new version; weather@v1 still has it !",
            ],
        ),
        (
            {"version": 2, "entities": (Entity("airport", {"code": String}),), "code_version": "9"},
            [
                (
                    "~ view weather | version 1 → 2"
                    " | new tables, backfill needed; version 1 stays readable as weather@v1 !"
                ),
                (
                    "~ view weather | its join keys changed from origin String to code String"
                    " | who asks for the view has to follow !"
                ),
            ],
        ),
    ],
)
def test_a_changed_view(changed: dict[str, Any], expected: list[str]) -> None:
    assert told([view()], [view(**changed)]) == expected


def test_ttl_and_online_switched_on() -> None:
    assert told([view(ttl=None, online=False)], [view()]) == [
        "~ view weather | ttl set to 6h | older values become OUTSIDE_MAX_AGE at once and leave training sets !",
        (
            "~ view weather | online switched on | nothing is served until its next materialisation,"
            " or: feature-assets reconcile"
        ),
    ]


def test_a_lowered_version_and_a_pruned_one() -> None:
    both = merged(merged(Registry(), Registry.of([view()]), "one"), Registry.of([view(version=2)]), "one")
    lowered = merged(both, Registry.of([view()]), "one")
    assert told(both, lowered) == [
        (
            "~ view weather | version 2 → 1"
            " | read and written in the tables of version 1 again; version 2 stays readable as weather@v2 !"
        )
    ]
    pruned = merged(both, Registry.of([view(version=2)]), "one", prune=True)
    assert told(both, pruned) == [
        "- view weather@v1 | superseded version | can no longer be asked for; its tables stay until they are dropped !"
    ]


def test_a_changed_on_demand_view() -> None:
    changed = on_demand(
        sources=(ViewProjection("weather", ("temp",)),),
        request=(RequestSource("plan", (Field("altitude", Float64),)),),
        features=(Field("felt", Int64), Field("risk", Float64)),
        transformation=Expressions({"felt": "other", "risk": "more"}),
    )
    assert told([on_demand()], [changed]) == [
        "~ feature chill:felt | Float64 → Int64 | who reads it gets the other type !",
        "+ feature chill:risk | Float64 | computed when asked for, from now on",
        "~ on-demand view chill | transformation | its values change at once, in serving and in training alike",
        (
            "~ on-demand view chill | inputs +weather:temp, −weather:*"
            " | its values change at once; requests need the join keys of the new inputs"
        ),
        "~ on-demand view chill | request data +altitude Float64, −altitude Int64 | requests and spines have to bring it !",
    ]


def test_a_changed_service() -> None:
    old = service("delay", ViewProjection("weather", ("temp", "wind")))
    assert told([old], [service("delay", ViewProjection("weather", ("wind", "rain")))]) == [
        "~ service delay | features +weather:rain, −weather:temp | its answers gain columns and lose columns at once !"
    ]
    assert told([old], [service("delay", ViewProjection("weather", ("wind", "temp")))]) == [
        "~ service delay | order of features | its columns come in another order at once !"
    ]
    assert told(
        [old], [service("delay", ViewProjection("weather", ("temp", "wind")).with_join_key_map({"origin": "dest"}))]
    ) == [
        (
            "~ service delay | weather is looked up by origin=dest instead of its own join keys"
            " | requests have to bring those columns !"
        )
    ]


LOGGED = "answers to requests for it by name are logged, from each server's next refresh"
UNLOGGED = (
    "nothing more is logged, from each server's next refresh; what was logged stays, and no upkeep removes it any more"
)
OTHERS = "logged or left out from each server's next refresh; what was logged stays"
THINNER = "so many of the answers are logged, from each server's next refresh; what was logged stays"


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (None, {"sample_rate": 0.25}, f"logging of 25% of its requests | {LOGGED}"),
        (
            {},
            None,
            f"no longer logged | {UNLOGGED}",
        ),
        ({}, {"sample_rate": 0.001}, f"logging of 100% → 0.1% of its requests | {THINNER}"),
        (
            {"retention": timedelta(days=90)},
            {"retention": timedelta(days=30)},
            "retention of its log shortened from 90d to 30d | days that lie back longer are removed by the next upkeep !",
        ),
        (
            {},
            {"retention": timedelta(days=30)},
            "retention of its log set to 30d | days that lie back longer are removed by the next upkeep !",
        ),
        (
            {"retention": timedelta(days=30)},
            {},
            "retention of its log of 30d removed | what is logged stays; days that were removed do not come back",
        ),
        (
            {"retention": timedelta(days=30)},
            {"retention": timedelta(days=31)},
            "retention of its log lengthened from 30d to 31d | days stay longer; those that were removed do not come back",
        ),
        (
            {"pii": ("email",)},
            {"pii": ("phone",)},
            f"personal data in its log +phone, −email | {OTHERS}",
        ),
        (
            {},
            {"skew_tolerance": 0.01, "skew_severity": "error"},
            "skew of its log: tolerance 0% → 1%, severity warn → error | the next check is held to it; no data changes",
        ),
    ],
    ids=[
        *("logged", "no longer", "sampled", "retention shortened", "retention set", "retention removed"),
        *("retention lengthened", "personal data", "skew"),
    ],
)
def test_logging_that_changes_alone_is_told(before: Any, after: Any, line: str) -> None:
    def logged(config: Any) -> ServiceSpec:
        made = service("delay", ViewProjection("weather", ("temp",)))
        return msgspec.structs.replace(made, logging=None if config is None else LoggingConfig(**config))

    assert told([logged(before)], [logged(after)]) == [f"~ service delay | {line}"]


def test_a_new_service_says_that_it_is_logged() -> None:
    made = msgspec.structs.replace(service("delay"), logging=LoggingConfig(sample_rate=0.5))
    assert told([], [made]) == [
        "+ service delay | weather:* | can be asked for from now on; 50% of the answers to requests by its name are logged"
    ]


def test_every_difference_of_a_service_is_told() -> None:
    changes: dict[str, Any] = {
        "description": "x",
        "tags": {"a": "b"},
        "owners": ("me",),
        "deprecated": "x",
        "features": (ViewProjection("weather", ("wind",)),),
        "logging": LoggingConfig(),
        "asset_key": ("x",),
    }
    old = service("delay", ViewProjection("weather", ("temp",)))
    assert set(changes) | {"name"} == set(old.__struct_fields__)
    for name, value in changes.items():
        assert told([old], [msgspec.structs.replace(old, **{name: value})]), name


def test_a_changed_source() -> None:
    assert told([source()], [source(path="/other", description="d")]) == [
        "~ source files | path | the next materialisation reads it so; stored rows stay",
        "~ source files | description | described differently; no data changes",
    ]
    assert told([source()], [DeltaSource(name="files", path="/data/*.parquet")]) == [
        "~ source files | file source → delta source | the next materialisation reads it so; stored rows stay"
    ]


NEXT_REFRESH = "at each server's next refresh; no data changes"


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (None, {"read": ["role:a"], "pii": []}, "access policy pii: nobody; read: role:a | who is not named is refused, … !"),
        ({"read": ["role:a"]}, None, "access policy removed | scopes alone decide, …"),
        ({"read": ["role:a", "role:b"]}, {"read": ["role:b", "role:c"]}, "access to read +role:c, −role:a | allowed and refused … !"),
        ({"read": ["role:a"]}, {"read": ["role:a"], "push": ["client:c"]}, "access to push +client:c | allowed …"),
        ({"read": ["role:a"], "push": ["client:c"]}, {"read": ["role:a"]}, "access to push −client:c | refused … !"),
    ],
)  # fmt: skip
def test_a_policy_that_changes_is_told_with_who_is_concerned(before: Any, after: Any, line: str) -> None:
    line = line.replace("…", NEXT_REFRESH)
    assert told([view(access=before)], [view(access=after)]) == [f"~ view weather | {line}"]
    on_demand_line = f"~ on-demand view chill | {line}"
    if "push" not in str((before, after)):
        assert told([on_demand(access=before)], [on_demand(access=after)]) == [on_demand_line]


def test_a_row_filter_that_changes_is_told() -> None:
    filtered = view(row_filter={"origin": "airport"})
    other = view(row_filter={"origin": "org.airport"})
    assert told([view()], [filtered]) == [
        f"~ view weather | row filter +origin = claim airport | other rows are open to a token, {NEXT_REFRESH} !"
    ]
    assert told([filtered], [other]) == [
        (
            "~ view weather | row filter +origin = claim org.airport, −origin = claim airport"
            f" | other rows are open to a token, {NEXT_REFRESH} !"
        )
    ]
    assert told([filtered], [view()]) == [
        f"~ view weather | row filter −origin = claim airport | more rows are open to a token, {NEXT_REFRESH}"
    ]


def test_every_difference_is_told() -> None:
    """Whatever field of a view differs, the plan has a word for it: none changes unseen."""
    changes: dict[str, Any] = {
        "description": "x",
        "tags": {"a": "b"},
        "owners": ("me",),
        "deprecated": "x",
        "version": 2,
        "entities": (Entity("airport", {"origin": String}, description="x"),),
        "features": (WIND, TEMP),
        "event_timestamp": "at",
        "created_timestamp": "made",
        "ttl": None,
        "partitions": {},
        "upstream": ("x",),
        "checks": (NotNull("temp"),),
        "online": False,
        "max_future": timedelta(0),
        "access": {"read": ["role:x"]},
        "row_filter": {"origin": "airport"},
        "stream": Stream("clicks"),
        "asset_key": ("x",),
        "code_version": "x",
    }
    assert set(changes) | {"name"} == set(view().__struct_fields__)
    assert AIRPORT in view().entities
    for name, value in changes.items():
        assert told([view()], [view(**{name: value})]), name
