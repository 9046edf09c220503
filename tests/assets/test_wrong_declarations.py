"""Every declaration that cannot be right fails when it is made, and the message says how to mend it."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import dagster as dg
import polars as pl
import pytest

from feature_assets import (
    AllowedValues,
    Decimal,
    DeclarationError,
    Entity,
    Expression,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    Float64,
    Fresh,
    InRange,
    Int64,
    List,
    Map,
    NotNull,
    OnDemandFeatureView,
    RequestSource,
    RowCount,
    SqlSource,
    String,
    Struct,
    Unique,
    Vector,
    feature_definitions,
    feature_view,
)
from feature_assets.spec import ViewSpec, canonical_json, from_json

DAILY = dg.DailyPartitionsDefinition("2024-01-01")
HOURLY = dg.HourlyPartitionsDefinition("2024-01-01-00:00")
airport = Entity("airport", join_keys={"origin": String})
station = FileSource(name="station", path="station.parquet")


def nothing() -> None: ...


def of_rows(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows


def of_anything(*frames: pl.LazyFrame) -> None: ...


def of_the_unknown(rows: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821


async def later() -> None: ...


def bit_by_bit() -> Iterator[int]:
    yield 1


def view(function: Callable[..., Any] = nothing, **changed: Any) -> FeatureView:
    declaration: dict[str, Any] = {
        "name": "weather",
        "entities": [airport],
        "schema": [Field("temp", Float64)],
        "event_timestamp": "at",
        "partitions_def": DAILY,
    }
    return feature_view(**(declaration | changed))(function)


def on_demand(**changed: Any) -> OnDemandFeatureView:
    declaration: dict[str, Any] = {
        "sources": [view()],
        "schema": [Field("x", Float64)],
        "expressions": {"x": pl.col("temp") * 2},
    }
    return OnDemandFeatureView("felt", **(declaration | changed))


def both_dimensions(**dimensions: Any) -> dg.MultiPartitionsDefinition:
    return dg.MultiPartitionsDefinition(dimensions)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    # entities, fields and types
    "keys in a list": (lambda: Entity("a", ["id"]), "Entity 'a': join_keys= takes a dict from text to a feature type"),  # type: ignore[arg-type]
    "key of a Python type": (lambda: Entity("a", {"id": int}), "from feature_assets import"),  # type: ignore[dict-item]
    "argument misspelt": (
        lambda: Entity("a", join_key={"id": Int64}),
        "no argument 'join_key'. Did you mean 'join_keys'",
    ),  # type: ignore[call-arg]
    "nothing to find it by": (lambda: Entity("a"), "Entity 'a' has no join_keys. Give join_keys=…"),  # type: ignore[call-arg]
    "no text for a name": (lambda: Entity(3, {"id": Int64}), "Entity: name= takes text, not 3"),  # type: ignore[arg-type]
    "given twice": (lambda: Entity("a", {"id": Int64}, name="b"), "name= came twice"),  # type: ignore[misc]
    "owners without a list": (lambda: Entity("a", {"id": Int64}, owners="team:x"), r"a list: owners=\[…\]"),  # type: ignore[arg-type]
    "tags of numbers": (lambda: Entity("a", {"id": Int64}, tags={"n": 1}), "tags= takes a dict from text to text"),  # type: ignore[dict-item]
    "field of a Polars type": (lambda: Field("x", pl.Float64), "Field 'x': type= takes a feature type, not Float64"),  # type: ignore[arg-type]
    "field of a list of what": (lambda: Field("x", List), "not List without brackets"),  # type: ignore[arg-type]
    "field without a type": (lambda: Field("x"), "Field 'x' has no type"),  # type: ignore[call-arg]
    "default of another type": (
        lambda: Field("x", Int64, default=0.5),
        "Field 'x': the default float 0.5 is not a Int64",
    ),
    "personal or not": (lambda: Field("x", String, pii=True), "pii= takes text or None, not True"),  # type: ignore[arg-type]
    "parentheses": (lambda: List(String), r"square brackets, as in List\[String\]"),
    "brackets": (lambda: Struct[{"city": String}], r"parentheses, as in Struct\(\{\"city\": String\}\)"),
    "brackets of a number": (lambda: Decimal[10, 2], r"parentheses, as in Decimal\(10, 2\)"),
    "half a map": (lambda: Map[String], r"as in Map\[String, Int64\]"),  # type: ignore[index]
    "a vector of 1.5": (lambda: Vector[1.5], "1 to 65536 dimensions"),  # type: ignore[index]
    "more digits behind the point": (lambda: Decimal(5, 9), "precision is 1 to 38 digits"),
    # views
    "one entity": (lambda: view(entities=airport), r"entities= takes a list of Entity.* Put it into a list"),
    "an entity by name": (lambda: view(entities=["airport"]), "takes a list of Entity, not \\['airport'\\]"),
    "one field": (lambda: view(schema=Field("t", Int64)), "schema= takes a list of Field"),
    "a dict of fields": (lambda: view(schema={"t": Int64}), "schema= takes a list of Field, not {'t': Int64}"),
    "a key of two entities": (
        lambda: view(entities=[airport, Entity("field", {"origin": String})]),
        "names join key 'origin' twice",
    ),
    "seconds": (
        lambda: view(ttl=3600),
        r"ttl= takes a timedelta or None, not 3600. Write ttl=timedelta\(seconds=3600\)",
    ),
    "for ever": (lambda: view(ttl=timedelta.max), "above 365,000 days is no limit"),
    "version in text": (lambda: view(version="2"), "version= takes a whole number, not '2'"),
    "online or not": (lambda: view(online="no"), "online= takes True or False, not 'no'"),
    "created when it happened": (lambda: view(created_timestamp="at"), "names column 'at' twice"),
    "divided by text": (lambda: view(partitions_def="daily"), "str cannot divide a feature view"),
    "divided by time twice": (
        lambda: view(partitions_def=both_dimensions(day=DAILY, hour=HOURLY)),
        "day and hour both divide time",
    ),
    "divided by the unnamed": (
        lambda: view(partitions_def=dg.DynamicPartitionsDefinition(lambda _: ["a"])),
        "named dynamic",
    ),
    "no such argument": (lambda: view(entites=[airport]), "takes no argument 'entites'. Did you mean 'entities'"),
    "an IO manager": (lambda: view(io_manager_key="mine"), "io_manager_key= is not for a view"),
    "an owner without a team": (lambda: view(owners=["flight ops"]), "View 'weather': Invalid owner 'flight ops'"),
    "a tag with blanks": (lambda: view(tags={"tier": "very good"}), "View 'weather': Invalid tag value: very good"),
    "a group with blanks": (lambda: view(group_name="a b"), "not a valid asset group name"),
    "a policy in text": (lambda: view(backfill_policy="single"), "is not a BackfillPolicy"),
    "a number as code version": (lambda: view(code_version=3), "code_version= takes text or None"),
    # their functions
    "no function": (lambda: view(3), "3 is not a function that returns rows"),  # type: ignore[arg-type]
    "async": (lambda: view(later), "is async, and nothing awaits it"),
    "a generator": (lambda: view(bit_by_bit), "its function yields. Return one frame"),
    "any number of frames": (lambda: view(of_anything), r"takes \*frames. Name each"),
    "an unknown annotation": (lambda: view(of_the_unknown), "cannot be resolved: name 'Nowhere' is not defined"),
    "sources in a list": (lambda: view(of_rows, sources=[station]), "sources= takes a dict from text to FileSource or"),
    "a source by path": (
        lambda: view(of_rows, sources={"rows": "a.csv"}),
        "sources= takes a dict from text to FileSource",
    ),
    "a source of the view's name": (
        lambda: view(of_rows, sources={"rows": station}, name="station"),
        "reads a source of its own name",
    ),
    "no source": (
        lambda: FeatureView.from_source("a.csv", schema=[], event_timestamp="at"),  # type: ignore[arg-type]
        "takes a FileSource, DeltaSource or SqlSource, not 'a.csv'",
    ),
    "looking ahead": (lambda: view(of_rows, lookback=timedelta(-1)), "It reaches back, not ahead"),
    "looking back by a number": (lambda: view(of_rows, lookback=3), r"Write lookback=timedelta\(seconds=3\)"),
    "looking back on nothing": (
        lambda: view(lookback=timedelta(1)),
        "takes no rows that lookback= could reach back for",
    ),
    "looking back without time": (
        lambda: view(of_rows, lookback=timedelta(1), partitions_def=None),
        "is not divided by time",
    ),
    # checks
    "one check": (lambda: view(checks=NotNull("temp")), r"Put it into a list: checks=\[…\]"),
    "no check": (lambda: view(checks=["not null"]), "checks= takes a list of NotNull or InRange"),
    "of nothing": (NotNull, "NotNull has no column"),  # type: ignore[call-arg]
    "a severity of its own": (lambda: NotNull("temp", severity="bad"), "severity= takes 'error' or 'warn', not 'bad'"),  # type: ignore[arg-type]
    "a range of text": (lambda: view(checks=[InRange("origin", minimum=0)]), r"cannot be asked of 'origin' \(String\)"),
    "a bound in text": (lambda: InRange("temp", minimum="a"), "minimum= takes a number or None, not 'a'"),  # type: ignore[arg-type]
    "no bound at all": (lambda: InRange("temp", minimum=float("nan")), "NaN bounds nothing"),
    "values of another type": (
        lambda: view(checks=[AllowedValues("temp", ("warm",))]),
        r"allowed_values_temp cannot be asked of 'temp' \(Float64\)",
    ),
    "one value": (lambda: AllowedValues("origin", "JFK"), r"values= takes a list of .* Put it into a list"),  # type: ignore[arg-type]
    "unique in one": (lambda: Unique("temp"), r"Put it into a list: of=\[…\]"),  # type: ignore[arg-type]
    "neither true nor false": (
        lambda: view(checks=[Expression(pl.col("temp") + 1, name="more")]),
        "Check more cannot be asked of 'temp'",
    ),
    "a condition in text": (lambda: Expression("temp > 1", name="warm"), r"Write it as in pl.col\('temp'\) > 0"),
    "a name with blanks": (
        lambda: view(checks=[Expression(pl.col("temp") > 1, name="is warm")]),
        "a check cannot be called 'is warm'",
    ),
    "older than never": (lambda: Fresh(timedelta(0)), "is not positive"),
    "no count between": (lambda: RowCount(minimum=10, maximum=1), "no count lies between"),
    # on-demand views
    "one source": (lambda: on_demand(sources=view()), r"sources= takes a list of views. Put it into one"),
    "an expression in text": (lambda: on_demand(expressions={"x": "temp"}), "'temp' is not a Polars expression"),
    "an input that is not there": (
        lambda: on_demand(expressions={"x": pl.col("rain")}),
        "feature 'x' reads 'rain', which is no input of the view: temp",
    ),
    "an input of a projection that is not there": (
        lambda: on_demand(
            sources=[view(schema=[Field("temp", Float64), Field("rain", Float64)])[["temp"]]],
            expressions={"x": pl.col("rain")},
        ),
        "feature 'x' reads 'rain', which is no input of the view: temp",
    ),
    "computed as another type": (
        lambda: on_demand(expressions={"x": pl.col("temp") > 0}),
        "is declared Float64 and computed as Boolean",
    ),
    "two inputs of one name": (
        lambda: on_demand(sources=[view(), RequestSource("r", (Field("temp", Float64),))]),
        "^On-demand view 'felt' would see two inputs named 'temp'",
    ),
    "rows of expressions": (lambda: on_demand(mode="row"), "or function= and perhaps mode="),
    "an argument of views": (lambda: on_demand(ttl=timedelta(1)), "takes no argument 'ttl'"),
    "request fields in a dict": (lambda: RequestSource("r", {"a": Int64}), "schema= takes a list of Field"),  # type: ignore[arg-type]
    # services and projections
    "one view": (lambda: FeatureService("s", view()), r"features= takes a list of views"),  # type: ignore[arg-type]
    "no features at all": (lambda: view()[[]], "names no feature"),
    "a feature twice": (lambda: view()[["temp", "temp"]], "names feature 'temp' twice"),
    "an unknown feature": (lambda: view()[["tmp"]], "View 'weather' has no feature 'tmp'. Did you mean"),
    "an unknown feature on demand": (lambda: on_demand()[["y"]], "View 'felt' has no feature 'y'"),
    "an unknown feature in the end": (lambda: view()[["temp"]][["rain"]], "View 'weather' has no feature 'rain'"),
    "an unknown key": (lambda: view().with_join_key_map({"dest": "to"}), "has no join key 'dest' to map"),
    "a key to a number": (lambda: view().with_join_key_map({"origin": 3}), "takes a dict from text to text"),  # type: ignore[dict-item]
    "keys on demand": (lambda: on_demand()[["x"]].with_join_key_map({"origin": "dest"}), "do that to its sources"),
    "a service of its view's name": (
        lambda: FeatureService("weather", [view()]),
        "has the name of a view that it is made of",
    ),
    # sources and platforms
    "no path": (lambda: FileSource(name="s", path=" "), "FileSource 's' has no path"),
    "no format of ours": (lambda: FileSource(name="s", path="x", format="orc"), "format= takes 'parquet' or 'csv'"),  # type: ignore[arg-type]
    "no query": (lambda: SqlSource(name="s", query="", connection="W"), "SqlSource 's' has no query"),
    "no variable": (lambda: SqlSource(name="s", query="q", connection="my db"), "the name of an environment variable"),
    "one name for two sources": (
        lambda: feature_definitions(
            [
                view(of_rows, sources={"rows": station}),
                view(of_rows, name="v", sources={"rows": FileSource(name="station", path="other.parquet")}),
            ]
        ),
        "FileSource 'station' is declared twice, differently",
    ),
    "one name for two views": (
        lambda: feature_definitions([view(), view(event_timestamp="as_of")]),
        "View 'weather' is declared twice, differently",
    ),
}


@pytest.mark.parametrize("make, message", WRONG.values(), ids=WRONG)
def test_what_cannot_be_right_is_refused_when_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        make()


def test_lists_and_paths_of_any_kind_are_taken(tmp_path: Any) -> None:
    """Accepted widely, kept in one form."""
    source = FileSource(name="s", path=tmp_path / "rows.parquet")
    assert source.path == str(tmp_path / "rows.parquet")
    spec = view(entities=iter([airport]), schema=(field for field in [Field("temp", Float64)])).spec
    assert spec == view().spec
    assert from_json(canonical_json(spec), ViewSpec) == spec
