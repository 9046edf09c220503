"""How far views are with the records of their sources, looked at from outside: the tables, the log, the dead letters."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from feature_assets.config import Settings
from feature_assets.errors import RequestError, StoreUnavailable
from feature_assets.offline import OfflineStore
from feature_assets.online.protocol import OnlineStore
from feature_assets.registry import Registry
from feature_assets.spec import LogSource, ViewSpec
from feature_assets.streams.admission import Intake
from feature_assets.streams.consumer import made_anew
from feature_assets.streams.dead_letters import NO_VIEW, counted, dead_letter_store
from feature_assets.streams.log import Bounds, Shard
from feature_assets.streams.opening import Survey, group_of, survey
from feature_assets.streams.running import Chosen, chosen
from feature_assets.streams.sink import Sink, Stores, is_another


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One shard: the last position that the view has (None for none), what the log has, and the records between."""

    shard: str
    position: int | None
    first: int | None
    end: int | None

    @property
    def lag(self) -> int | None:
        """The records that the view does not have yet; None where the log does not tell."""
        if self.end is None or self.first is None:
            return None
        return max(0, self.end - (self.first if self.position is None else max(self.position + 1, self.first)))


@dataclass(frozen=True, slots=True)
class ViewStatus:
    """One view. `watermark` is the latest event timestamp that was ever online (UTC), `dead_letters` are those of its own
    and those that could not be read at all; `error` says why the log could not be asked, or that it is another one now.
    """

    source: str
    view: str
    group: str
    consumers: int | None
    shards: tuple[ShardStatus, ...]
    watermark: datetime | None
    dead_letters: int
    last_dead_letter: datetime | None
    error: str = ""

    @property
    def lag(self) -> int | None:
        """The records that the view does not have yet; None where the log does not tell."""
        found = [one.lag for one in self.shards]
        known = [lag for lag in found if lag is not None]
        return sum(known) if found and len(known) == len(found) else None


def status(
    registry: Registry, settings: Settings, offline: OfflineStore, online: OnlineStore, names: Sequence[str] = ()
) -> list[ViewStatus]:
    """How far these views are, or all that take records.

    Raises:
        UnknownView, RequestError: as of `chosen`.
        ConfigurationError: a connection is not set, or a library is not installed.
        StoreError: a store cannot be read.
    """
    found: list[ViewStatus] = []
    for one in chosen(registry, names):
        seen, error = _seen(one.source, one.group, settings)
        found += [_of(one, view, seen, error, settings, offline, online) for view in one.views]
    return found


def status_of(
    source: LogSource, view: ViewSpec, settings: Settings, offline: OfflineStore, online: OnlineStore
) -> ViewStatus:
    """How far one view is, whatever is published. Raises as `status`."""
    one = Chosen(source, (view,), group_of(source, [view.name], [view.name]))
    return _of(one, view, *_seen(source, one.group, settings), settings, offline, online)


def _seen(source: LogSource, group: str, settings: Settings) -> tuple[Survey, str]:
    """What the log has, or why it cannot be asked."""
    try:
        return survey(source, group, settings), ""
    except StoreUnavailable as away:
        return Survey({}, None, {}), str(away)


def _of(
    one: Chosen,
    view: ViewSpec,
    seen: Survey,
    error: str,
    settings: Settings,
    offline: OfflineStore,
    online: OnlineStore,
) -> ViewStatus:
    source = one.source.name
    at = offline.streamed(view, source, [str(shard) for shard in seen.shards])
    anew = [shard for shard, origin in seen.origins.items() if is_another(at[str(shard)].origin, origin)]
    shards = tuple(
        ShardStatus(
            str(shard),
            at[str(shard)].position,
            *(None, None) if shard in anew else (bounds or Bounds(None, None)),  # type: ignore[arg-type]
        )
        for shard, bounds in seen.shards.items()
    )
    letters = [each for each in counted(dead_letter_store(settings), source) if each.view in (NO_VIEW, view.name)]
    return ViewStatus(
        source=source,
        view=view.name,
        group=one.group,
        consumers=seen.consumers,
        shards=shards,
        watermark=online.ledger(view).watermark if view.online and offline.state(view) is not None else None,
        dead_letters=sum(each.letters for each in letters),
        last_dead_letter=max((each.last for each in letters), default=None),
        error=error or (made_anew(source, anew[0]) if anew else ""),
    )


def seek(
    registry: Registry,
    settings: Settings,
    stores: Stores,
    source: str,
    to: Literal["earliest", "latest", "published"],
    only: str | None = None,
) -> dict[Shard, int]:
    """Have all views of a source go on at the start or the end of what the log has now.

    Stop the consumers first: one that runs goes on where it is.

    Args:
        to: with "published" they go on where they are, in what the log is now: a mirror of another one.
        only: one shard, as `topic/3`.

    Returns by shard the position after which it will be read.

    Raises:
        UnknownSource, RequestError: there is no such source or shard.
        StoreError: a store or the log cannot be reached.
        Overtaken: a consumer has published meanwhile.
    """
    declared = registry.stream_source(source)
    found = next((one for one in chosen(registry) if one.source == declared), None)
    if found is None:
        raise RequestError(f"'{source}' is no source of which consumers read records.")
    seen = survey(found.source, found.group, settings)
    shards = seen.shards
    chosen_shards = {shard: bounds for shard, bounds in shards.items() if only in (None, str(shard))}
    if not chosen_shards:
        raise RequestError(f"'{source}' has no shard '{only}'. It has: {', '.join(map(str, shards)) or 'none'}.")
    sink = Sink(Intake(found.source, found.views, settings, stores.online), stores)
    sink.assigned(list(chosen_shards), seen.origins)
    after: dict[Shard, int] = {}
    for shard, bounds in chosen_shards.items():
        if to == "published":
            if (at := sink.reached(shard)) is not None:
                after[shard] = at
                sink.move(shard, at)
            continue
        if bounds is None and to == "latest":
            raise RequestError(
                f"The log does not tell where shard {shard} ends; nothing was changed. Use --to earliest."
            )
        # Before all positions is where a log begins that does not tell.
        first, end = bounds or (0, 0)
        after[shard] = (first if to == "earliest" else end) - 1
        sink.move(shard, after[shard])
    return after
