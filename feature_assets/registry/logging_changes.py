"""What a change of a service's `logging=` means."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from feature_assets.registry.words import difference, percent, signed, span
from feature_assets.spec import LoggingConfig

_Change = TypeVar("_Change")

_REFRESH = "from each server's next refresh"


def logging_changed(
    old: LoggingConfig | None, new: LoggingConfig | None, change: Callable[..., _Change]
) -> Iterator[_Change]:
    """What lies between two; `change` makes one of its detail and its meaning."""
    if old is None and new is not None:
        rate = percent(new.sample_rate)
        yield change(f"logging of {rate} of its requests", f"answers to requests for it by name are logged, {_REFRESH}")
    elif new is None and old is not None:
        stays = "what was logged stays, and no upkeep removes it any more"
        yield change("no longer logged", f"nothing more is logged, {_REFRESH}; {stays}")
    elif old is not None and new is not None:
        yield from _sample_changed(old, new, change)
        yield from _retention_changed(old, new, change)
        yield from _skew_changed(old, new, change)


def _sample_changed(old: LoggingConfig, new: LoggingConfig, change: Callable[..., _Change]) -> Iterator[_Change]:
    if old.sample_rate != new.sample_rate:
        detail = f"logging of {percent(old.sample_rate)} → {percent(new.sample_rate)} of its requests"
        yield change(detail, f"so many of the answers are logged, {_REFRESH}; what was logged stays")
    gone, come = difference(old.pii, new.pii)
    if gone or come:
        detail = f"personal data in its log {signed(come, gone)}"
        yield change(detail, f"logged or left out {_REFRESH}; what was logged stays")


def _retention_changed(old: LoggingConfig, new: LoggingConfig, change: Callable[..., _Change]) -> Iterator[_Change]:
    if old.retention == new.retention:
        return
    removed = "days that lie back longer are removed by the next upkeep"
    if new.retention is None:
        detail = f"retention of its log of {span(old.retention)} removed"
        yield change(detail, "what is logged stays; days that were removed do not come back")
    elif old.retention is None:
        yield change(f"retention of its log set to {span(new.retention)}", removed, breaking=True)
    elif new.retention < old.retention:
        detail = f"retention of its log shortened from {span(old.retention)} to {span(new.retention)}"
        yield change(detail, removed, breaking=True)
    else:
        detail = f"retention of its log lengthened from {span(old.retention)} to {span(new.retention)}"
        yield change(detail, "days stay longer; those that were removed do not come back")


def _skew_changed(old: LoggingConfig, new: LoggingConfig, change: Callable[..., _Change]) -> Iterator[_Change]:
    details = []
    if old.skew_tolerance != new.skew_tolerance:
        details.append(f"tolerance {percent(old.skew_tolerance)} → {percent(new.skew_tolerance)}")
    if old.skew_severity != new.skew_severity:
        details.append(f"severity {old.skew_severity} → {new.skew_severity}")
    if details:
        yield change(f"skew of its log: {', '.join(details)}", "the next check is held to it; no data changes")
