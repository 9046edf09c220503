"""Types with one value: numbers, text, bytes, times."""

import base64
import binascii
import json
import math
import re
import struct
import uuid
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal as _PyDecimal
from decimal import InvalidOperation, localcontext
from operator import index
from typing import Any, Final

import polars as pl

from feature_assets.errors import DeclarationError
from feature_assets.types.base import FeatureType
from feature_assets.types.moments import microseconds, moment, rfc3339

_NOT_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_SQLITE_FLOATS: Final[dict[object, float]] = {"NaN": math.nan, b"-0.0": -0.0}


class _Integer(FeatureType):
    """A whole number of so many bits, with a sign; no Bool, and a float only where it is exactly one."""

    __slots__ = ("_dtype", "_high", "_low")
    sqlite = "INTEGER"
    keyable = True

    def __init__(self, bits: int, dtype: pl.DataType) -> None:
        super().__init__(f"Int{bits}")
        self._dtype = dtype
        self._low, self._high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    @property
    def polars(self) -> pl.DataType:
        return self._dtype

    def _parse(self, value: Any) -> int:
        if isinstance(value, bool):
            raise self._refuse(value)
        digits = isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value)
        whole = isinstance(value, float) and value.is_integer() and abs(value) <= 2**53
        if digits or whole:
            number = int(value)
        else:
            try:
                number = index(value)
            except TypeError:
                raise self._refuse(value) from None
        if not self._low <= number <= self._high:
            raise self._refuse(value, f"it is outside {self._low} … {self._high}")
        return number

    def to_dynamodb(self, value: int) -> dict[str, Any]:
        return {"N": str(value)}

    def from_dynamodb(self, stored: dict[str, Any]) -> int:
        return int(stored["N"])


class _Float(FeatureType):
    """A number of 32 or 64 bits as IEEE 754 has them, NaN, infinities and -0.0 included; no key."""

    __slots__ = ("_bits",)
    sqlite = "REAL"

    def __init__(self, bits: int) -> None:
        super().__init__(f"Float{bits}")
        self._bits = bits

    @property
    def polars(self) -> pl.DataType:
        return pl.Float32() if self._bits == 32 else pl.Float64()

    def _parse(self, value: Any) -> float:
        if isinstance(value, str) and value in _NOT_FINITE:
            return _NOT_FINITE[value]
        if isinstance(value, bool) or not hasattr(value, "__float__") or isinstance(value, _PyDecimal):
            raise self._refuse(value)
        try:
            number = float(value)
        except OverflowError:
            raise self._refuse(value, "it is too large") from None
        if isinstance(value, int) and int(number) != value:
            raise self._refuse(value, "a float cannot hold it exactly")
        if self._bits == 32 and math.isfinite(number):
            try:
                number = struct.unpack("<f", struct.pack("<f", number))[0]
            except OverflowError:
                raise self._refuse(value, "it is too large") from None
        return number

    def to_json(self, values: Sequence[Any]) -> Sequence[Any]:
        if all(value is None or math.isfinite(value) for value in values):
            return values
        return [value if value is None or math.isfinite(value) else _not_finite(value) for value in values]

    def to_sqlite(self, series: pl.Series) -> list[Any]:
        values = series.to_list()
        for position in series.is_nan().arg_true():
            values[position] = "NaN"
        for position in ((series == 0.0) & ((1.0 / series) < 0.0)).arg_true():
            values[position] = b"-0.0"
        return values

    def from_sqlite(self, values: Sequence[Any]) -> Sequence[Any]:
        try:
            # Fails on all but floats, which are the usual case: five times as fast as a look at every type.
            sum(values)
        except TypeError:
            if not {str, bytes}.isdisjoint(map(type, values)):
                return [_SQLITE_FLOATS.get(value, value) for value in values]
        return values

    def to_dynamodb(self, value: float) -> dict[str, Any]:
        # A number there has 38 digits, lies between 1e-130 and 1e126, and has no sign where it is zero.
        if value == 0.0:
            return {"N": "0"} if math.copysign(1.0, value) > 0 else {"S": "-0.0"}
        if 1e-130 <= abs(value) < 1e126:
            return {"N": repr(value)}
        return {"S": repr(value) if math.isfinite(value) else _not_finite(value)}

    def from_dynamodb(self, stored: dict[str, Any]) -> float:
        # Python reads "NaN" and "-Infinity" as what they are.
        return float(stored["N"] if "N" in stored else stored["S"])


def _not_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


class StringType(FeatureType):
    """Text that has a form in UTF-8: no lone surrogates."""

    __slots__ = ()
    sqlite = "TEXT"
    keyable = True

    @property
    def polars(self) -> pl.DataType:
        return pl.String()

    def _parse(self, value: Any) -> str:
        if not isinstance(value, str):
            raise self._refuse(value)
        # A lone surrogate has no UTF-8: Arrow, SQLite and JSON would each fail on it, later and less clearly.
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise self._refuse(value, "it holds half of a surrogate pair") from None
        return value


class _Uuid(StringType):
    """A UUID: in lower case with hyphens, whichever way it came."""

    __slots__ = ()

    def _parse(self, value: Any) -> str:
        if isinstance(value, uuid.UUID):
            return str(value)
        if isinstance(value, str) and len(value) in (32, 36):
            try:
                return str(uuid.UUID(value))
            except ValueError:
                pass
        raise self._refuse(value)


class _Json(StringType):
    """Text that is JSON: kept as it is written, and null is not `null`."""

    __slots__ = ()
    keyable = False

    def _parse(self, value: Any) -> str:
        if not isinstance(value, str):
            try:
                return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            except (TypeError, ValueError) as error:
                raise self._refuse(value, str(error)) from None
        try:
            json.loads(super()._parse(value), parse_constant=self._no_constant)
        except (ValueError, RecursionError) as error:
            raise self._refuse(value, str(error)) from None
        return value

    def _no_constant(self, name: str) -> None:
        raise ValueError(f"JSON has no {name}")


class _Bool(FeatureType):
    """True or False; 0 and 1 are numbers."""

    __slots__ = ()
    sqlite = "INTEGER"
    keyable = True

    @property
    def polars(self) -> pl.DataType:
        return pl.Boolean()

    def _parse(self, value: Any) -> bool:
        if isinstance(value, bool):
            return value
        raise self._refuse(value)

    def from_sqlite(self, values: Sequence[Any]) -> Sequence[Any]:
        return [None if value is None else value != 0 for value in values]

    def to_dynamodb(self, value: bool) -> dict[str, Any]:  # noqa: FBT001 (the value of one cell)
        return {"BOOL": value}

    def from_dynamodb(self, stored: dict[str, Any]) -> bool:
        return bool(stored["BOOL"])


class _Bytes(FeatureType):
    """Any bytes; in JSON as base64."""

    __slots__ = ()
    sqlite = "BLOB"
    keyable = True

    @property
    def polars(self) -> pl.DataType:
        return pl.Binary()

    def _parse(self, value: Any) -> bytes:
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value)
        if isinstance(value, str):
            try:
                return base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                raise self._refuse(value, "it is not base64") from None
        raise self._refuse(value)

    def to_json(self, values: Sequence[Any]) -> Sequence[Any]:
        return [None if value is None else base64.b64encode(value).decode() for value in values]

    def to_dynamodb(self, value: bytes) -> dict[str, Any]:
        return {"B": value}

    def from_dynamodb(self, stored: dict[str, Any]) -> bytes:
        return bytes(stored["B"])


class _Date(FeatureType):
    """A day of the years 1 to 9999, written 2013-02-08; it is no time."""

    __slots__ = ()
    sqlite = "TEXT"
    keyable = True

    @property
    def polars(self) -> pl.DataType:
        return pl.Date()

    def _parse(self, value: Any) -> date:
        if isinstance(value, date) and not isinstance(value, datetime):
            return value
        if isinstance(value, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
            try:
                return date.fromisoformat(value)
            except ValueError:
                pass
        raise self._refuse(value)

    def to_json(self, values: Sequence[Any]) -> Sequence[Any]:
        return [None if value is None else value.isoformat() for value in values]

    def to_sqlite(self, series: pl.Series) -> list[Any]:
        return series.dt.strftime("%Y-%m-%d").to_list()

    def from_sqlite(self, values: Sequence[Any]) -> Sequence[Any]:
        return [None if value is None else date.fromisoformat(value) for value in values]

    def to_dynamodb(self, value: date) -> dict[str, Any]:
        return {"S": value.isoformat()}

    def from_dynamodb(self, stored: dict[str, Any]) -> date:
        return date.fromisoformat(stored["S"])


class _Timestamp(FeatureType):
    """A moment in whole microseconds of UTC, of the years 1 to 9999; a naive one is read as UTC."""

    __slots__ = ()
    sqlite = "INTEGER"
    keyable = True

    @property
    def polars(self) -> pl.DataType:
        return pl.Datetime("us", "UTC")

    def _parse(self, value: Any) -> datetime:
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                raise self._refuse(value, "write it as 2013-02-08T07:00:00Z") from None
        if not isinstance(value, datetime):
            raise self._refuse(value)
        try:
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        except OverflowError:
            raise self._refuse(value, "its UTC time is before year 1 or after year 9999") from None

    def to_frame(self, name: str, values: Sequence[Any]) -> pl.Series:
        # Polars takes thirty times as long to read datetimes that have a zone.
        micros = [None if value is None else microseconds(value) for value in values]
        return pl.Series(name, micros, dtype=pl.Int64).cast(self.polars)

    def to_json(self, values: Sequence[Any]) -> Sequence[Any]:
        return [None if value is None else rfc3339(value) for value in values]

    def to_sqlite(self, series: pl.Series) -> list[Any]:
        return series.to_physical().to_list()

    def from_sqlite(self, values: Sequence[Any]) -> Sequence[Any]:
        return [None if value is None else moment(value) for value in values]

    def to_dynamodb(self, value: datetime) -> dict[str, Any]:
        return {"N": str(microseconds(value))}

    def from_dynamodb(self, stored: dict[str, Any]) -> datetime:
        return moment(int(stored["N"]))


class DecimalType(FeatureType):
    """A number with `precision` digits, `scale` of them behind the point. Made by `Decimal(precision, scale)`."""

    __slots__ = ("precision", "scale")
    sqlite = "TEXT"
    keyable = True

    def __init__(self, precision: int, scale: int) -> None:
        if not 1 <= precision <= 38 or not 0 <= scale <= precision:
            raise DeclarationError(
                f"Decimal({precision}, {scale}): precision is 1 to 38 digits and scale 0 to precision of them."
            )
        super().__init__(f"Decimal({precision}, {scale})")
        self.precision, self.scale = precision, scale

    @property
    def polars(self) -> pl.DataType:
        return pl.Decimal(self.precision, self.scale)

    def _parse(self, value: Any) -> _PyDecimal:
        if isinstance(value, bool | float) or not isinstance(value, _PyDecimal | int | str):
            raise self._refuse(value, "give a decimal as a string")
        try:
            with localcontext() as context:
                context.prec = 80
                number = _PyDecimal(value)
                if not number.is_finite():
                    raise self._refuse(value)
                exact = number.quantize(_PyDecimal(1).scaleb(-self.scale))
        except InvalidOperation:
            raise self._refuse(value) from None
        if exact != number or len(exact.as_tuple().digits) > self.precision:
            raise self._refuse(value, "it has more digits")
        return exact

    def to_json(self, values: Sequence[Any]) -> Sequence[Any]:
        return [None if value is None else f"{value:f}" for value in values]

    def to_sqlite(self, series: pl.Series) -> list[Any]:
        return series.cast(pl.String).to_list()

    def from_sqlite(self, values: Sequence[Any]) -> Sequence[Any]:
        return [None if value is None else _PyDecimal(value) for value in values]

    def to_dynamodb(self, value: _PyDecimal) -> dict[str, Any]:
        # As text: a number there drops the zeros behind the point, and the sign of a zero.
        return {"S": f"{value:f}"}

    def from_dynamodb(self, stored: dict[str, Any]) -> _PyDecimal:
        return _PyDecimal(stored["S"])


Int8: Final[FeatureType] = _Integer(8, pl.Int8())
Int16: Final[FeatureType] = _Integer(16, pl.Int16())
Int32: Final[FeatureType] = _Integer(32, pl.Int32())
Int64: Final[FeatureType] = _Integer(64, pl.Int64())
Float32: Final[FeatureType] = _Float(32)
Float64: Final[FeatureType] = _Float(64)
String: Final[FeatureType] = StringType("String")
Bool: Final[FeatureType] = _Bool("Bool")
Bytes: Final[FeatureType] = _Bytes("Bytes")
Date: Final[FeatureType] = _Date("Date")
Timestamp: Final[FeatureType] = _Timestamp("Timestamp")
UUID: Final[FeatureType] = _Uuid("UUID")
Json: Final[FeatureType] = _Json("Json")

SCALARS: Final[dict[str, FeatureType]] = {
    of.name: of
    for of in (Int8, Int16, Int32, Int64, Float32, Float64, String, Bool, Bytes, Date, Timestamp, UUID, Json)
}
