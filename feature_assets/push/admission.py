"""From what a push brings to the rows of the views that take them, or to what is wrong with it.

Pushes that are answered together are looked at together: one frame of all their rows, and each row knows its push. If
nothing is wrong with any row, that is all. Else each push is looked at alone, so that it is told the same as if it had
come alone, and none is refused for another's rows.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, repeat
from typing import Any, ClassVar, Final, NamedTuple

import msgspec
import polars as pl

from feature_assets.access import Decision
from feature_assets.conform import PartitionSlice, breaches, conformed
from feature_assets.errors import ContractBroken, FeatureAssetsError, RequestError, WrongType
from feature_assets.intake import compiled, fields_of, is_row_wise, optional_fields
from feature_assets.lookup.entities import ColumnCheck, as_columns, as_list
from feature_assets.offline import comparable
from feature_assets.online.protocol import OnlineStore, check_sizes
from feature_assets.publication import admitted_checks
from feature_assets.push.plain import PlainRows
from feature_assets.registry import Registry
from feature_assets.spec import EVENT_ID, PARTITION, PushSource, StreamSource, ViewSpec, canonical_json
from feature_assets.windows import extent_of, slices_of

PUSH: Final = "__push"
"""The column with the place of a row's push among those that are looked at together."""

_ALONG: Final = (EVENT_ID, PUSH)
_ANY: Final = (Exception, pl.exceptions.PanicException)
"""Whatever one push's rows do to us is told to whoever pushed them, and to nobody else."""


@dataclass(frozen=True, slots=True)
class Push:
    """What somebody pushes. `only` names the one view that the rows are for, with its columns; `decision` allows it."""

    source: str
    rows: Any
    event_id: str | None = None
    only: str | None = None
    decision: Decision | None = None


def source_of(view: ViewSpec) -> str:
    """The source of a view that takes its rows as they are, so that they can be given by the columns of the view.

    Raises:
        RequestError: it does not.
    """
    if view.stream is None or view.stream.transform is not None:
        raise RequestError(
            f"View '{view.name}' takes no rows as they are: it has no push source, or transforms what that brings. Declare "
            "it with @stream_feature_view, or push to its source."
        )
    return view.stream.source


class Taken(NamedTuple):
    """A push with which nothing is wrong: how many rows it has, and which views take them."""

    rows: int
    views: tuple[str, ...]


@dataclass(slots=True)
class Admitted:
    """What became of pushes: of each, in their order, that it is taken, or why not; and by view the rows of those taken.

    The rows have the columns of the view, `__partition`, `__event` and `__push`, in the order of the pushes.
    """

    outcomes: list[Taken | BaseException]
    rows: list[tuple["Recipient", pl.DataFrame]]


class Admission:
    """Admits pushes by one registry snapshot; what it has worked out for a source it keeps.

    Args:
        registry: the snapshot.
        modules: where functions may be loaded from.
        online: the store that has to be able to take the rows.
    """

    def __init__(self, registry: Registry, modules: Sequence[str], online: OnlineStore | None = None) -> None:
        self.registry, self._modules, self._online = registry, modules, online
        self._inlets: dict[tuple[str, str | None], _Inlet] = {}

    def of(self, pushes: Sequence[Push], now: datetime) -> Admitted:
        """What becomes of these pushes; `now` is the present (UTC)."""
        work = _Work(pushes, now)
        for inlet, group in self._read(work):
            if not (len(group) > 1 and inlet.together and self._taken(work, inlet, group)):
                for one in group:
                    self._taken(work, inlet, [one])
        return work.admitted()

    def _read(self, work: "_Work") -> list[tuple["_Inlet", list["_Read"]]]:
        """The pushes of which rows can be made, and those together that can be one frame."""
        groups: dict[Any, tuple[_Inlet, list[_Read]]] = {}
        for at, push in enumerate(work.pushes):
            try:
                inlet = self._inlet(push.source, push.only)
                read = inlet.read(at, push)
            except _ANY as error:
                work.outcomes[at] = error
            else:
                groups.setdefault((id(inlet), read.form), (inlet, []))[1].append(read)
        return list(groups.values())

    def _inlet(self, source: str, only: str | None) -> "_Inlet":
        found = self._inlets.get((source, only))
        if found is None:
            found = self._inlets[source, only] = _Inlet(self.registry, source, only, self._modules, self._online)
        return found

    def _taken(self, work: "_Work", inlet: "_Inlet", group: Sequence["_Read"]) -> bool:
        """Take these pushes if all of them can be. Of one alone it is said why not."""
        alone = len(group) == 1
        try:
            frame = inlet.frame(group)
            made = [(each, each.rows(frame, work.now, alone=alone)) for each in inlet.recipients]
        except _ANY as error:
            if alone:
                work.outcomes[group[0].at] = error
            return False
        found = [(each, rows) for each, rows in made if rows is not None]
        if len(found) < len(made):
            return False
        heights = Counter(frame[PUSH].to_list())
        for one in group:
            work.outcomes[one.at] = Taken(heights[one.at], inlet.views)
        work.rows.extend(found)
        self._admit(work, group, found)
        return True

    @staticmethod
    def _admit(work: "_Work", group: Sequence["_Read"], found: Sequence[tuple["Recipient", pl.DataFrame]]) -> None:
        """See that the rows are open to whoever pushes them."""
        for one in group:
            decision = work.pushes[one.at].decision
            if decision is None or not decision.rows:
                continue
            by_view = {each.view.name: rows for each, rows in found}
            try:
                for rule in decision.rows:
                    rows = by_view[rule.view]
                    values = rows.filter(pl.col(PUSH) == one.at)[rule.column].unique()
                    decision.admit_values(rule, rule.type.from_frame(values))
            except FeatureAssetsError as error:
                work.outcomes[one.at] = error


@dataclass(slots=True)
class _Work:
    """Pushes, and what is known of them so far."""

    pushes: Sequence[Push]
    now: datetime
    outcomes: dict[int, Taken | BaseException] = field(default_factory=dict)
    rows: list[tuple["Recipient", pl.DataFrame]] = field(default_factory=list)

    def admitted(self) -> Admitted:
        by_view: dict[int, tuple[Recipient, list[pl.DataFrame]]] = {}
        for each, rows in self.rows:
            by_view.setdefault(id(each.view), (each, []))[1].append(rows)
        refused = [at for at, outcome in self.outcomes.items() if not isinstance(outcome, Taken)]
        frames = []
        for each, parts in by_view.values():
            rows = parts[0] if len(parts) == 1 else pl.concat(parts).sort(PUSH, maintain_order=True)
            if refused:
                rows = rows.filter(~pl.col(PUSH).is_in(refused))
            if not rows.is_empty():
                frames.append((each, rows))
        return Admitted([self.outcomes[at] for at in range(len(self.pushes))], frames)


class _Read(NamedTuple):
    """A push whose fields are the right ones. `form` is equal for those of which one frame can be made."""

    at: int
    form: tuple[Any, ...]
    columns: Mapping[str, list[Any]]
    frame: pl.DataFrame | None
    height: int
    event_id: str | None


class _Inlet:
    """A source as pushes meet it: its fields, and the views that take its rows; or one view by its own columns."""

    def __init__(
        self, registry: Registry, name: str, only: str | None, modules: Sequence[str], online: OnlineStore | None
    ) -> None:
        source = registry.stream_source(name)
        if not isinstance(source, PushSource):
            raise RequestError(
                f"The rows of '{name}' come from a log that consumers read, and it takes no others. Send records there, or push "
                "to a PushSource."
            )
        views = tuple(view for view in registry.fed_by(name) if only in (None, view.name))
        if not views:
            raise RequestError(f"No view takes the rows of '{name}'. Declare one with @stream_feature_view(source=…).")
        self._name = f"'{name}'" if only is None else f"view '{only}'"
        if only is not None:
            source = msgspec.structs.replace(source, schema=(), field_mapping={})
        self._source = source
        self._types = fields_of(source, views)
        self._optional = optional_fields(source, views)
        if only is not None and source.event_id is not None:
            self._optional.add(source.event_id)
        self._checks = {name: ColumnCheck(f"'{name}'", of, nullable=True) for name, of in self._types.items()}
        self.recipients = tuple(Recipient(view, source, self._name, modules, online) for view in views)
        self.views = tuple(each.view.name for each in self.recipients)
        self.together = all(each.together for each in self.recipients)

    def read(self, at: int, push: Push) -> _Read:
        """The columns of a push.

        Raises:
            RequestError: fields are missing or unknown, or there is no row.
        """
        frame, given = _columns(push.rows)
        wanted = self._wanted(given)
        by_field = self._source.event_id in wanted and push.event_id is None
        if frame is not None:
            frame = frame.select(wanted)
            self._require_rows(frame.height)
            return _Read(at, (by_field, *frame.schema.items()), {}, frame, frame.height, push.event_id)
        columns = {name: as_list(name, given[name]) for name in wanted}
        heights = set(map(len, columns.values()))
        if len(heights) > 1:
            lengths = ", ".join(f"'{name}' {len(values)}" for name, values in columns.items())
            raise RequestError(
                f"The columns pushed to {self._name} differ in length: {lengths}. Give a value per row in each."
            )
        height = heights.pop() if heights else 0
        self._require_rows(height)
        return _Read(at, (by_field, *wanted), columns, None, height, push.event_id)

    def _wanted(self, given: Mapping[str, Any]) -> list[str]:
        types = self._types
        if missing := [name for name in types if name not in given and name not in self._optional]:
            raise RequestError(
                f"The rows pushed to {self._name} have no '{missing[0]}' (they have: {', '.join(map(str, given)) or 'nothing'}). "
                "Push it too, as null where there is no value."
            )
        unknown = [name for name in given if name not in types]
        if unknown and self._source.unknown_fields != "drop":
            raise RequestError(
                f"The rows pushed to {self._name} have '{unknown[0]}', which it does not take (it takes: {', '.join(types)}). "
                "Leave it out, or declare the source with unknown_fields='drop'."
            )
        return [name for name in types if name in given]

    def _require_rows(self, height: int) -> None:
        if not height:
            raise RequestError(f"The push to {self._name} has no rows. Push at least one.")

    def frame(self, group: Sequence[_Read]) -> pl.DataFrame:
        """The rows of these pushes, which are of one form, as the source has them; with `__event` and `__push`.

        Raises:
            WrongType: a value is of another type.
        """
        by_field, *_ = group[0].form
        frames = [one.frame for one in group if one.frame is not None]
        frame = pl.concat(frames) if frames else pl.DataFrame([self._series(name, group) for name in group[0].columns])
        places = list(chain.from_iterable(repeat(one.at, one.height) for one in group))
        columns = {column.name: column for column in frame.get_columns()}
        if by_field:
            ids = columns[str(self._source.event_id)]
            if not (ids.dtype in (pl.String, pl.Null) or ids.dtype.is_integer()):
                raise WrongType(f"'{ids.name}', by which events are known, came as {ids.dtype}. Push text.")
            ids = ids.cast(pl.String)
        else:
            given = chain.from_iterable(repeat(one.event_id, one.height) for one in group)
            ids = pl.Series(list(given), dtype=pl.String)
        renamed = self._source.field_mapping
        made = pl.DataFrame(
            [
                *(column.alias(renamed.get(name, name)) for name, column in columns.items()),
                ids.alias(EVENT_ID),
                pl.Series(PUSH, places, dtype=pl.Int64),
            ]
        )
        if by_field:
            # A row that stands twice in one push is the same event.
            named = pl.col(EVENT_ID).is_not_null()
            made = made.filter(pl.struct(PUSH, EVENT_ID).is_first_distinct() | ~named)
        return made

    def _series(self, name: str, group: Sequence[_Read]) -> pl.Series:
        values = list(chain.from_iterable(one.columns[name] for one in group))
        return self._types[name].to_frame(name, self._checks[name](values))


class Recipient:
    """A view that takes the rows of a source. `declaration` is it, as JSON.

    `row_wise`: each row is made of one; `together`: what is asked of one does not depend on those beside it; `plain`: where
    nothing is wrong, that is seen at once.
    """

    known_by_content: ClassVar[bool] = True
    """Whether rows whose created time is that of their coming are known again by all else."""

    def __init__(
        self,
        view: ViewSpec,
        source: StreamSource,
        place: str,
        modules: Sequence[str],
        online: OnlineStore | None = None,
    ) -> None:
        self._online = online
        check_sizes(view, pl.LazyFrame(schema={name: of.polars for name, of in view.types.items()}), online)
        self.view, self.declaration, self.source = view, canonical_json(view), source.name
        transformed = view.stream is not None and view.stream.transform is not None
        self._maker = f"{f'in the transform of {view.name}, or ' if transformed else ''}before pushing to {place}"
        self._outside = extent_of(view)
        self.row_wise = is_row_wise(view)
        self._transform = compiled(view, modules)
        self._plain = PlainRows(view)
        self.plain = self._plain.by_time
        self.together = self.row_wise and self._plain.together

    def rows(self, frame: pl.DataFrame, now: datetime, *, alone: bool) -> pl.DataFrame | None:
        """The rows that the view makes of those of its source, conformed and checked.

        With `alone` they are of one push, and what is wrong is said; else None where something may be.

        Raises:
            ContractBroken: a key or time is null, a time lies in no partition or in the future, a type loses something, or a
                row is larger than the online store takes.
            ChecksFailed: a check of error severity failed.
        """
        view = self.view
        made = self._transform(frame if self.row_wise else frame.drop(PUSH))
        if not self.row_wise:
            made = self._with_ids(made, frame)
        created = view.created_timestamp
        told_now = created is not None and created not in made.columns
        if told_now:
            made = made.with_columns(pl.lit(now).alias(str(created)))
        rows = self._plain.of(made, now, _ALONG)
        if rows is None and alone:
            rows = self._by_contract(made, now)
        if rows is not None and not self._are_taken(rows, alone=alone):
            return None
        if rows is not None and told_now and self.known_by_content:
            rows = rows.with_columns(_content_ids(view, rows))
        return rows if rows is None or not view.row_filter else rows.with_columns(_own_ids(view))

    def _are_taken(self, rows: pl.DataFrame, *, alone: bool) -> bool:
        """Whether the online store takes rows of these sizes; of one push alone it is said why not."""
        try:
            check_sizes(self.view, rows.lazy(), self._online)
        except ContractBroken:
            if alone:
                raise
            return False
        return True

    def _by_contract(self, made: pl.DataFrame, now: datetime) -> pl.DataFrame:
        view = self.view
        with conformed(
            view, made, _slices(view, made), now=now, along=_ALONG, maker=self._maker, outside=self._outside
        ) as rows:
            admitted_checks(view, rows, now, maker=self._maker)
            return rows.rows.select(*view.columns, PARTITION, *_ALONG).collect()

    def breaches(self, frame: pl.DataFrame, now: datetime) -> list[str | None]:
        """What `rows` would say of each of these rows if it came alone, as far as the view's contract goes; for views that
        look at each row by itself, of rows that can be cast.
        """
        made = self._transform(frame)
        return breaches(self.view, made, _slices(self.view, made), now=now, maker=self._maker, outside=self._outside)

    def _with_ids(self, made: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
        """What a function has made of the rows of one push, with the ids of the events and the place of the push."""
        if EVENT_ID not in made.columns:
            if frame[EVENT_ID].n_unique() > 1:
                raise RequestError(
                    f"The transform of view '{self.view.name}' drops '{EVENT_ID}', by which rows that come again are known. "
                    "Pass it on, or push one row at a time."
                )
            made = made.with_columns(pl.lit(frame[EVENT_ID].first(), pl.String).alias(EVENT_ID))
        return made.with_columns(pl.lit(frame[PUSH].first(), pl.Int64).alias(PUSH))


def _content_ids(view: ViewSpec, rows: pl.DataFrame) -> pl.Series:
    """Ids for rows without one that got their created time here: when they come again, they get another, and are the same."""
    content = comparable(view, rows.drop(str(view.created_timestamp))).to_struct()
    ids = [content.hash(seed).cast(pl.String).str.zfill(20) for seed in (0, 1)]
    return pl.select(
        pl.when(rows[EVENT_ID].is_null())
        .then(pl.lit("row ") + ids[0] + ids[1])
        .otherwise(rows[EVENT_ID])
        .alias(EVENT_ID)
    ).to_series()


def _own_ids(view: ViewSpec) -> pl.Expr:
    """Event ids that belong to whoever the rows belong to: nobody takes the ids of others' events away from them."""
    own: list[pl.Expr] = []
    for key in sorted(view.row_filter):
        text = pl.col(key).cast(pl.String)
        own += [text.str.len_bytes().cast(pl.String), pl.lit(":"), text, pl.lit(":")]
    return pl.concat_str([*own, pl.col(EVENT_ID)]).alias(EVENT_ID)


def _columns(rows: Any) -> tuple[pl.DataFrame | None, Mapping[str, Any]]:
    """Rows in any form: a frame if they are one, and their columns by name."""
    if isinstance(rows, pl.LazyFrame):
        rows = rows.collect()
    if isinstance(rows, pl.DataFrame) or hasattr(rows, "__arrow_c_stream__"):
        frame = rows if isinstance(rows, pl.DataFrame) else pl.DataFrame(rows)
        return frame, dict.fromkeys(frame.columns)
    if isinstance(rows, list | tuple):
        names = _names(rows)
        return None, {name: [row.get(name) for row in rows] for name in names}
    return None, as_columns(rows)


def _names(rows: Iterable[Any]) -> Iterable[str]:
    for at, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise RequestError(
                f"Pushed row {at} is {type(row).__name__}. Give each as a dict, as in {{'driver_id': 7}}."
            )
    return dict.fromkeys(name for row in rows for name in row)


def _slices(view: ViewSpec, rows: pl.DataFrame) -> list[PartitionSlice]:
    event = rows.get_column(view.event_timestamp, default=None)
    if event is None or not isinstance(event.dtype, pl.Datetime):
        return [PartitionSlice()]  # What is wrong, `conformed` says.
    column = event.dt.cast_time_unit("us")
    utc = column.dt.convert_time_zone("UTC") if event.dtype.time_zone else column.dt.replace_time_zone("UTC")
    found = slices_of(view, rows.with_columns(utc.alias(view.event_timestamp)))
    return found or [PartitionSlice(start=datetime(1, 1, 1, tzinfo=UTC), end=datetime(1, 1, 1, tzinfo=UTC))]
