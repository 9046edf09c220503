"""The JSON of Feast's feature server: a question in, an answer out.

An answer is columnar: `results[i]` belongs to `metadata.feature_names[i]`, join keys first, then the features in the order
that they were asked for. Each value stands in the JSON form of its type (see `types`). The event timestamp of what has
none, as a join key or a value that was not found, is 1970-01-01T00:00:00Z, as it is with Feast.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
import orjson
from orjson import dumps

from feature_assets.errors import DeclarationError
from feature_assets.json_text import DEEPEST, is_deep, why_unreadable
from feature_assets.lookup import MASKED, PRESENT, OnlineLookup, OnlineResponse
from feature_assets.lookup.response import Rows, statuses_of
from feature_assets.server.meters import ValueMeter
from feature_assets.server.problems import Problem
from feature_assets.spec import ViewProjection
from feature_assets.types import FeatureType, Float32, Float64, ListType, VectorType

Asked: TypeAlias = str | tuple[str | ViewProjection, ...]
"""The name of a service, or references and projections."""

_T = TypeVar("_T")

_LONGEST_NAME: Final = 400
_NULL: Final = msgspec.Raw(b"null")


QuestionKey: TypeAlias = tuple[bytes, str | None, bool, bool]


class OnlineQuestion(msgspec.Struct, frozen=True, gc=False):
    """The body of POST /get-online-features. Fields that it does not name are passed over: Feast sends more of them.

    The features are left as they were sent: by those bytes a question that was asked before is found again. With
    `include_types` the answer says of which type each column is, which JSON alone does not.
    """

    entities: dict[str, list[Any]]
    features: msgspec.Raw = _NULL
    feature_service: str | None = None
    full_feature_names: bool = False
    include_types: bool = False

    @property
    def key(self) -> QuestionKey:
        """Equal for questions that ask for the same features."""
        return bytes(self.features), self.feature_service, self.full_feature_names, self.include_types

    @property
    def rows(self) -> int:
        """Of how many entities they are asked."""
        return max(map(len, self.entities.values())) if self.entities else 1

    def asked(self, most: int) -> Asked:
        """The service or the references: what `references.resolve` takes.

        Raises:
            Problem: there are none, or too many.
        """
        return asked_for(self.features, self.feature_service, most)


def asked_for(features: msgspec.Raw, service: str | None, most: int) -> Asked:
    """The name of a service, or references and projections, `most` of them at most; one of the two is asked for.

    Raises:
        Problem: there are none, or too many, or one is none.
    """
    found = decoded(bytes(features), _references, "/features")
    if (found is None) == (service is None):
        raise _bad("Ask for either 'features' or a 'feature_service'.", "/features")
    if found is None:
        if service is None or not 0 < len(service) <= _LONGEST_NAME:
            raise _bad("'feature_service' is not a name.", "/feature_service")
        return service
    if not found:
        raise _bad("'features' is empty. Name some, as in view:feature.", "/features")
    if len(found) > most:
        raise _bad(f"'features' has {len(found)} references; {most} is the limit. Ask in parts.", "/features")
    return tuple(_checked(one, position) for position, one in enumerate(found))


def _checked(one: str | ViewProjection, position: int) -> str | ViewProjection:
    place = f"/features/{position}"
    names = [one] if isinstance(one, str) else [one.view, *(one.features or ()), *one.join_key_map.values()]
    if any(len(name) > _LONGEST_NAME for name in names):
        raise _bad("'features' has a reference that is too long.", place)
    if isinstance(one, ViewProjection) and one.alias is not None:
        try:
            return one.with_name(one.alias)
        except DeclarationError as error:
            raise _bad(str(error), place) from None
    return one


_question = msgspec.json.Decoder(OnlineQuestion)
_references = msgspec.json.Decoder(list[str | ViewProjection] | None)


def read_question(body: bytes, *, max_keys: int) -> OnlineQuestion:
    """The question in a body.

    Raises:
        Problem: it is no JSON (400), or not a question as it should be (422).
    """
    question = decoded(body, _question)
    if question.rows > max_keys:
        raise _bad(f"'entities' has {question.rows} rows; {max_keys} is the limit. Ask in parts.", "/entities")
    if body.count(b"[") + body.count(b"{") > DEEPEST:
        check_depth(question.entities, "/entities")
    return question


def decoded(body: bytes, decoder: msgspec.json.Decoder[_T], place: str = "") -> _T:
    """What a body holds, or the part of it at that place.

    Raises:
        Problem: it is no JSON (400), or not of that shape (422).
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(error, place) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "bad-json", f"The body is not JSON: {why_unreadable(body, error)}.") from None


def _bad(why: str, pointer: str) -> Problem:
    return Problem(422, "bad-question", why, pointer=pointer)


def _invalid(error: msgspec.ValidationError, place: str = "") -> Problem:
    what, _, path = str(error).partition(" - at `$")
    # `.features[3]` as `/features/3`; which of the columns it is, `.entities[...][3]` does not say.
    path = path.rstrip("`").partition("[...]")[0].replace("[", "/").replace("]", "").replace(".", "/")
    return _bad(f"{what}.", place + path)


def check_depth(columns: Mapping[str, Sequence[Any]], place: str) -> None:
    """Values are walked by functions that call themselves: how deep they may be is settled here.

    Raises:
        Problem: one is nested too deeply.
    """
    for name, column in columns.items():
        if is_deep(column):
            raise _bad(f"'{name}' has values that are nested more than {DEEPEST} deep.", f"{place}/{name}")


_NO_TIME: Final = "1970-01-01T00:00:00Z"
_SINCE_1970: Final = datetime(1970, 1, 1).__add__  # noqa: DTZ001 (see `_shared`)
_MICROSECONDS: Final = timedelta(microseconds=1).__mul__
_UTC: Final = orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z


class OnlineAnswer:
    """Writes the answers of one compiled lookup, and counts them: what does not change between them is written once."""

    __slots__ = ("_columns", "_firsts", "_meter", "_parts", "_plain", "_views")

    def __init__(self, lookup: OnlineLookup, meter: ValueMeter, *, with_types: bool = False) -> None:
        self._meter = meter
        plan = lookup.plan
        types = {**plan.join_keys, **{output.name: output.field.type for output in plan.outputs}}
        self._columns = [(_is_plain(of), of.to_json) for of in types.values()]
        self._plain = all(plain for plain, _ in self._columns)
        source = {read.column(field.name): read.name for read in plan.reads for field in read.features}
        reads = [""] * len(plan.join_keys) + [source.get(output.column, "") for output in plan.outputs]
        # The features of one view share their event timestamps: the first column of each view stands for all of them.
        firsts = {read: reads.index(read) for read in reads}
        self._firsts, numbers = tuple(firsts.values()), {read: number for number, read in enumerate(firsts)}
        self._views = tuple(numbers[read] for read in reads)
        versions = {read.name: read.view.version for read in plan.reads}
        metadata: dict[str, Any] = {
            "feature_names": list(types),
            "feature_view_metadata": [{"name": read, "version": versions[read]} for read in firsts if read],
        }
        if with_types:
            columns = zip(types.items(), reads, strict=True)
            metadata["columns"] = [
                {"name": name, "type": str(of), "view": read or None} for (name, of), read in columns
            ]
            request = {name: field.type for name, field in plan.request.items()}
            metadata["entities"] = {name: str(of) for name, of in (request | dict(plan.join_keys)).items()}
        column = [b'},{"values":', b"", b',"statuses":', b"", b',"event_timestamps":', b""]
        end = b'}],"metadata":' + dumps(metadata) + b"}"
        self._parts = [b'{"results":[{"values":', *(column * len(types))[1:], end]

    def encode(self, answer: OnlineResponse) -> bytes:
        """The answer as JSON."""
        count, found, columns = len(answer), answer.found, answer.values
        if not self._plain:
            both = zip(self._columns, columns, strict=True)
            columns = [column if plain else to_json(column) for (plain, to_json), column in both]
        shared = [_shared(found[first], count) for first in self._firsts]
        values = list(map(dumps, columns))
        statuses, times = map(list, zip(*[shared[view] for view in self._views], strict=True))
        # orjson writes NaN and the infinities as null too: without one in the text each value is there, and itself.
        # One letter is found many times faster than four, and numbers have none.
        text = b"".join(values)
        if (b"n" in text and b"null" in text) or None in statuses or answer.hidden:
            for position, (_, to_json) in enumerate(self._columns):
                values[position] = dumps(to_json(answer.values[position]))
                told = _statuses(answer, position)
                statuses[position] = dumps(told)
                self._meter.add(position, told)
        else:
            self._meter.all_present(count)
        parts = self._parts.copy()
        parts[1::6], parts[3::6], parts[5::6] = values, statuses, times
        return b"".join(parts)


def _statuses(answer: OnlineResponse, position: int) -> Sequence[str]:
    if answer.names[position] in answer.hidden:
        return [MASKED] * len(answer)
    return statuses_of(answer.values[position], answer.found[position])


def _is_plain(of: FeatureType) -> bool:
    """Whether canonical values are what a JSON encoder takes, floats that are not finite left aside."""
    if of in (Float32, Float64) or isinstance(of, VectorType):
        return True
    if isinstance(of, ListType):
        return _is_plain(of.element)
    return type(of).to_json is FeatureType.to_json


def _shared(rows: Rows | None, count: int) -> tuple[bytes | None, bytes]:
    """What the columns of one view have in common, as JSON: statuses, unless they have to be looked at, and times."""
    if rows is None:
        return _repeated(PRESENT, count), _repeated(_NO_TIME, count)
    present = None if rows.expired else _repeated(PRESENT, count)
    try:
        # All in C; without a time zone orjson writes them many times faster. What is made of None, it refuses.
        return present, dumps(list(map(_SINCE_1970, map(_MICROSECONDS, rows.events))), option=_UTC)  # type: ignore[arg-type]
    except TypeError:
        moments = [_NO_TIME if event is None else _SINCE_1970(_MICROSECONDS(event)) for event in rows.events]
        return None, dumps(moments, option=_UTC)


@lru_cache(maxsize=256)
def _repeated(text: str, count: int) -> bytes:
    return dumps([text] * count)
