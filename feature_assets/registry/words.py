"""What differs, in words."""

from collections.abc import Sequence
from datetime import timedelta


def difference(old: Sequence[str], new: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is gone, and what has come."""
    return [each for each in old if each not in new], [each for each in new if each not in old]


def signed(come: Sequence[str], gone: Sequence[str]) -> str:
    return ", ".join([*(f"+{each}" for each in come), *(f"−{each}" for each in gone)])


def span(span: timedelta | None) -> str:
    """As in 1d12h, 90s, 1.5s."""
    seconds = span.total_seconds() if span else 0.0
    parts = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        count, seconds = divmod(seconds, length)
        if count:
            parts.append(f"{count:.0f}{unit}")
    return "".join(parts) + (f"{seconds:g}s" if seconds or not parts else "")


def percent(share: float) -> str:
    """As in 100%, 0.1%."""
    return f"{share * 100:g}%"
