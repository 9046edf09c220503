"""Asset checks that a view declares: what each asks of the rows, as data, and the rows that fail it.

They run on conformed rows before anything is published.
"""

import re
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
import polars as pl

from feature_assets.declared import Declared
from feature_assets.errors import DeclarationError
from feature_assets.expressions import from_data, to_data

Severity = Literal["error", "warn"]


class Check(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    tag_field="check",
    tag=str,
    omit_defaults=True,
    forbid_unknown_fields=True,
    metaclass=Declared,
):
    """What every check has.

    Severity `error` (the default) stops the publication, `warn` is reported and publishes.
    """

    severity: Severity = "error"
    name: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads, for the declaration to be checked against."""
        return ()

    @property
    def label(self) -> str:
        """The check's name in Dagster: the given one, else made of what it asks."""
        words = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        return self.name or "_".join((words, *self.columns))

    @property
    def asks(self) -> str:
        """What it asks, in words."""
        raise NotImplementedError


class RowCheck(Check, frozen=True, kw_only=True):
    """A check that single rows pass or fail."""

    def failing(self) -> pl.Expr:
        """True for each row that fails; never null."""
        raise NotImplementedError


class NotNull(RowCheck, frozen=True):
    """The column has a value in every row."""

    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def asks(self) -> str:
        return f"'{self.column}' is not null"

    def failing(self) -> pl.Expr:
        return pl.col(self.column).is_null()


class InRange(RowCheck, frozen=True):
    """The value lies between `minimum` and `maximum`, both included; null passes, NaN fails."""

    column: str
    minimum: float | None = None
    maximum: float | None = None

    def __post_init__(self) -> None:
        if self.minimum is None and self.maximum is None:
            raise DeclarationError(f"InRange('{self.column}') has no bound; give minimum=, maximum= or both.")
        if self.minimum != self.minimum or self.maximum != self.maximum:
            raise DeclarationError(f"InRange('{self.column}'): NaN bounds nothing; give a number.")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise DeclarationError(f"InRange('{self.column}'): minimum {self.minimum} is above maximum {self.maximum}.")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def asks(self) -> str:
        low = "" if self.minimum is None else f"{self.minimum:g} ≤ "
        high = "" if self.maximum is None else f" ≤ {self.maximum:g}"
        return f"{low}'{self.column}'{high}"

    def failing(self) -> pl.Expr:
        value = pl.col(self.column)
        inside = pl.lit(True)
        if self.minimum is not None:
            inside &= value >= self.minimum
        if self.maximum is not None:
            # Polars orders NaN above every number, so an upper bound alone already refuses it.
            inside &= value <= self.maximum
        # The cast makes one rule for integers, which cannot be NaN, and floats.
        return (~inside | value.cast(pl.Float64).is_nan()).fill_null(False)


class AllowedValues(RowCheck, frozen=True):
    """The value is one of the listed ones; null passes."""

    column: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise DeclarationError(f"AllowedValues('{self.column}') allows nothing; list at least one value.")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def asks(self) -> str:
        return (
            f"'{self.column}' is one of {', '.join(map(repr, self.values[:8]))}{', …' if len(self.values) > 8 else ''}"
        )

    def failing(self) -> pl.Expr:
        return ~pl.col(self.column).is_in(list(self.values)).fill_null(True)


class Unique(RowCheck, frozen=True):
    """No two rows of the materialisation have the same values in these columns."""

    of: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.of:
            raise DeclarationError("Unique() names no column; name at least one.")

    @property
    def columns(self) -> tuple[str, ...]:
        return self.of

    @property
    def asks(self) -> str:
        return f"({', '.join(self.of)}) is unique"

    def failing(self) -> pl.Expr:
        return pl.struct(self.of).is_duplicated()


class Expression(RowCheck, frozen=True):
    """A Polars expression that is true for each good row; null fails. `name` is required."""

    # A `pl.Expr` when declared and its text from then on; msgspec knows no type for "either".
    condition: Any

    def __post_init__(self) -> None:
        if not self.name:
            raise DeclarationError("Expression(…) needs a name=, which the check is called in Dagster.")
        # As text it is what was stored: JSON.
        if not isinstance(self.condition, pl.Expr) and not str(self.condition).startswith("{"):
            raise DeclarationError(
                f"Check '{self.name}': {self.condition!r} is not a Polars expression. Write it as in pl.col('temp') > 0."
            )
        if isinstance(self.condition, pl.Expr):
            msgspec.structs.force_setattr(self, "condition", to_data(self.condition, f"Check '{self.name}'"))

    def _expression(self) -> pl.Expr:
        return from_data(self.condition, f"Check '{self.name}'")

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._expression().meta.root_names()))

    @property
    def label(self) -> str:
        return self.name

    @property
    def asks(self) -> str:
        return str(self._expression())

    def failing(self) -> pl.Expr:
        return ~self._expression().fill_null(False)


class RowCount(Check, frozen=True):
    """The materialisation has at least `minimum` and at most `maximum` rows, over all its partitions."""

    minimum: int = 1
    maximum: int | None = None

    def __post_init__(self) -> None:
        if self.minimum < 0 or (self.maximum is not None and self.maximum < self.minimum):
            raise DeclarationError(
                f"RowCount(minimum={self.minimum}, maximum={self.maximum}): no count lies between. Give 0 ≤ minimum ≤ maximum."
            )

    @property
    def asks(self) -> str:
        return f"{self.minimum:,} ≤ rows" + ("" if self.maximum is None else f" ≤ {self.maximum:,}")


class Fresh(Check, frozen=True):
    """The newest event timestamp is at most `max_age` before the end of the partition (or now, if that is earlier)."""

    max_age: timedelta

    def __post_init__(self) -> None:
        if self.max_age <= timedelta(0):
            raise DeclarationError(f"Fresh({self.max_age}) is not positive; say how old the newest row may be.")

    @property
    def asks(self) -> str:
        return f"the newest row is at most {self.max_age} old"


AnyCheck = NotNull | InRange | AllowedValues | Unique | Expression | RowCount | Fresh


class CheckResult(msgspec.Struct, frozen=True):
    """How one check came out. `failing` counts rows, of which `examples` holds at most ten, without personal data.

    `kept_at` says where all failing rows were kept, if they were.
    """

    check: AnyCheck
    passed: bool
    failing: int
    found: str
    examples: pl.DataFrame | None = None
    kept_at: str = ""

    @property
    def stops(self) -> bool:
        """Whether it stops the publication."""
        return not self.passed and self.check.severity == "error"


def run_checks(
    checks: Sequence[AnyCheck],
    rows: pl.LazyFrame,
    *,
    event_timestamp: str,
    end: datetime | None,
    now: datetime,
    personal: Collection[str] = (),
) -> list[CheckResult]:
    """Every check on conformed rows, read once for the counts and once more only if a row check failed.

    Args:
        checks: in the order that the results take.
        rows: the conformed rows of one materialisation.
        event_timestamp: the column with event times (µs, UTC).
        end: the end of the last partition's window, where there is one (UTC).
        now: the present (UTC).
        personal: columns that the examples are shown without.
    """
    if not checks:
        return []
    counts = {str(i): c.failing().sum() for i, c in enumerate(checks) if isinstance(c, RowCheck)}
    summary = rows.select(pl.len().alias("rows"), pl.col(event_timestamp).max().alias("newest"), **counts).collect(
        engine="streaming"
    )
    total, newest = summary["rows"].item(), summary["newest"].item()
    results = []
    for position, check in enumerate(checks):
        if isinstance(check, RowCount):
            passed = total >= check.minimum and (check.maximum is None or total <= check.maximum)
            results.append(CheckResult(check, passed, 0, f"{total:,} rows"))
        elif isinstance(check, Fresh):
            reference = min(end, now) if end else now
            passed = newest is not None and newest >= reference - check.max_age
            found = "there are no rows" if newest is None else f"the newest row is of {newest:%Y-%m-%d %H:%M:%S} UTC"
            results.append(CheckResult(check, passed, 0, found))
        else:
            failing = int(summary[str(position)].item() or 0)
            first = rows.filter(check.failing()).head(10).drop(personal)
            examples = first.collect(engine="streaming") if failing else None
            results.append(CheckResult(check, failing == 0, failing, f"{failing:,} of {total:,} rows fail", examples))
    return results


def check_types(checks: Sequence[AnyCheck], schema: pl.Schema) -> None:
    """Refuse checks that columns of these dtypes cannot be asked.

    Raises:
        DeclarationError: naming the check, its columns and the mend.
    """
    asked = [check for check in checks if isinstance(check, RowCheck)]
    if not asked:
        return
    empty = pl.DataFrame(schema=schema)
    for check in asked:
        try:
            dtype = empty.select(check.failing()).dtypes[0]
        except pl.exceptions.PolarsError as error:
            told = str(error).splitlines()[0]
        else:
            if dtype == pl.Boolean():
                continue
            told = f"it is {dtype}, neither true nor false"
        columns = ", ".join(f"'{name}' ({empty.schema[name]})" for name in check.columns)
        raise DeclarationError(
            f"Check {check.label} cannot be asked of {columns}: {told}. "
            "Give it values of the column's type, or check another column."
        )
