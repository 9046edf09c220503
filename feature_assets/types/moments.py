"""Moments as datetimes, as microseconds since 1970 and as text; always UTC."""

from datetime import UTC, datetime, timedelta
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970 in UTC; a naive datetime is read as UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - EPOCH) // _MICROSECOND


def moment(micros: int) -> datetime:
    """The UTC datetime of so many microseconds since 1970."""
    return EPOCH + timedelta(microseconds=micros)


def rfc3339(moment: datetime) -> str:
    """UTC with a `Z`, fractional seconds only where there are any."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
