"""Each record of a log reaches the stores exactly once, whoever dies or takes over."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from feature_assets.checks import InRange
from feature_assets.config import Settings
from feature_assets.errors import DeclarationError, RecordsLost, StoreUnavailable
from feature_assets.offline import Moved, OfflineStore, Overtaken
from feature_assets.online import open_online_store
from feature_assets.publication import append
from feature_assets.settlement import pending, reconcile, verify
from feature_assets.spec import Entity, Expressions, Field, KafkaSource, Stream, TimePartitions, ViewSpec
from feature_assets.streams import consumer as consumers
from feature_assets.streams.admission import Intake
from feature_assets.streams.consumer import Consumer, Limits
from feature_assets.streams.dead_letters import dead_letter_store, table_of
from feature_assets.streams.sink import Sink, Stores
from feature_assets.types import Float64, Int64, String, Timestamp
from tests.streams.shards import Member, Shards, shard

NOW = datetime.now(UTC).replace(microsecond=0)
DAILY = TimePartitions(cron="0 0 * * *", timezone="UTC", start="2024-01-01T00:00:00+00:00", fmt="%Y-%m-%d")
TRIPS = ViewSpec(
    name="trips",
    entities=(Entity("driver", {"driver_id": Int64}),),
    features=(Field("km", Float64),),
    event_timestamp="at",
    partitions={"partition": DAILY},
    checks=(InRange("km", minimum=0),),
    stream=Stream("rides"),
)
RIDES = KafkaSource(name="rides", connection="kafka", topics=("rides",))


class World:
    """A log, the stores, and consumers that a test moves step by step."""

    def __init__(self, folder: Path, *views: ViewSpec, source: KafkaSource = RIDES, shards: int = 2) -> None:
        self.settings = Settings(root=folder, durability="process")
        self.views, self.source = views or (TRIPS,), source
        self.log = Shards(shards)
        self.offline = OfflineStore(self.settings.place(self.settings.offline), durability="process")
        self.letters = dead_letter_store(self.settings)
        self.online = open_online_store(self.settings.online_url)

    def consumer(self, *wanted: int, offline: Any = None, online: Any = None, **more: Any) -> tuple[Consumer, Member]:
        """A member of the group as another process has it, with stores of its own."""
        stores = Stores(
            offline or OfflineStore(self.offline.root, durability="process"), online or self.online, self.letters
        )
        members: list[Member] = []

        def opened(listener: Consumer) -> Member:
            members.append(Member(self.log, listener, wanted))
            return members[0]

        intake = Intake(self.source, self.views, self.settings)
        made = Consumer("rides", Sink(intake, stores), opened, **{"limits": Limits(seconds=0), **more})
        return made, members[0]

    def rows(self, view: ViewSpec = TRIPS) -> list[tuple[Any, ...]]:
        if self.offline.state(view) is None:
            return []
        return sorted(self.offline.scan(view).select(view.columns).collect().rows())

    def dead(self) -> list[tuple[Any, ...]]:
        table = table_of(self.source.name)
        if self.letters.state(table) is None:
            return []
        columns = ("shard", "position", "view", "reason")
        return sorted(self.letters.scan(table).select(columns).collect().rows())

    def is_right(self, view: ViewSpec = TRIPS) -> bool:
        return verify(view, self.offline, self.online).total == 0 and pending(view, self.offline, self.online) == ()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.online.close()


def ride(driver: int, km: float = 1.0, at: datetime = NOW, **more: Any) -> dict[str, Any]:
    return {"driver_id": driver, "at": at.isoformat(), "km": km, **more}


def test_records_are_in_both_stores_after_a_step(world: World) -> None:
    world.log.write(0, ride(1))
    world.log.write(1, ride(2, 7.0, NOW - timedelta(days=40)))
    consumer, _ = world.consumer(0, 1)
    consumer.step()
    assert world.rows() == [(1, NOW, 1.0), (2, NOW - timedelta(days=40), 7.0)]
    assert world.is_right()
    assert world.log.committed == {shard(0): 0, shard(1): 0}
    consumer.step()
    assert consumer.progress.batches == 1, "nothing has come since"


def test_each_record_is_one_row_also_if_it_says_what_another_does(world: World) -> None:
    for _ in range(3):
        world.log.write(0, ride(1))
    consumer, _ = world.consumer(0)
    consumer.step()
    world.log.write(0, ride(1))
    consumer.step()
    assert world.rows() == [(1, NOW, 1.0)] * 4


def test_of_records_of_one_key_and_time_the_later_is_online(world: World) -> None:
    consumer, _ = world.consumer(0)
    for km in (1.0, 5.0, 3.0):
        world.log.write(0, ride(1, km))
    consumer.step()
    world.log.write(0, ride(1, 2.0))
    consumer.step()
    assert [row["km"] for frame in world.online.scan(TRIPS) for row in frame.iter_rows(named=True)] == [2.0]
    assert world.is_right()


def test_a_consumer_goes_on_from_where_the_table_is(world: World) -> None:
    world.log.write(0, ride(1))
    first, member = world.consumer(0)
    first.step()
    world.log.committed.clear()
    for driver in (2, 3):
        world.log.write(0, ride(driver))
    second, _ = world.consumer(0)
    second.step()
    assert [row[0] for row in world.rows()] == [1, 2, 3]
    assert second.progress.records == 2
    assert not member.closed


def test_who_does_not_know_that_he_lost_a_shard_doubles_nothing(world: World) -> None:
    zombie, _ = world.consumer(0)
    zombie.step()
    for driver in (1, 2):
        world.log.write(0, ride(driver))
    heir, _ = world.consumer(0)
    heir.step()
    world.log.write(0, ride(3))
    zombie.step()
    assert zombie.progress.overtaken == 1
    assert [row[0] for row in world.rows()] == [1, 2]
    zombie.step()
    assert [row[0] for row in world.rows()] == [1, 2, 3]
    heir.step()
    assert [row[0] for row in world.rows()] == [1, 2, 3]
    assert world.is_right()


def test_what_is_gathered_is_published_before_a_shard_is_given_up(world: World) -> None:
    consumer, member = world.consumer(0, 1, limits=Limits(seconds=600))
    world.log.write(0, ride(1))
    world.log.write(1, ride(2))
    consumer.step()
    assert world.rows() == []
    member.wanted = {shard(1)}
    consumer.step()
    assert [row[0] for row in world.rows()] == [1, 2]
    heir, _ = world.consumer(0)
    heir.step()
    assert [row[0] for row in world.rows()] == [1, 2]


def test_what_is_gathered_is_dropped_where_the_shard_is_lost(world: World) -> None:
    consumer, member = world.consumer(0, 1, limits=Limits(seconds=600))
    world.log.write(0, ride(1))
    world.log.write(1, ride(2))
    consumer.step()
    member.lost, member.wanted = {shard(0)}, {shard(1)}
    heir, _ = world.consumer(0)
    heir.step()
    consumer.step()
    consumer.run(lambda: True)
    assert [row[0] for row in world.rows()] == [1, 2]
    assert world.is_right()


class Failing:
    """A store of which one method fails some times, before or after it has done its work."""

    def __init__(self, store: Any, method: str, times: int, *, after: bool) -> None:
        self._store, self._method, self.times, self._after = store, method, times, after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name != self._method:
            return found

        def failing(*args: Any, **options: Any) -> Any:
            if self.times > 0 and not self._after:
                self.times -= 1
                raise StoreUnavailable("away")
            answer = found(*args, **options)
            if self.times > 0:
                self.times -= 1
                raise StoreUnavailable("the answer was lost")
            return answer

        return failing


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("method", ["append", "write"])
def test_a_store_that_fails_is_tried_until_it_does_not(world: World, method: str, after: bool) -> None:
    world.log.write(0, ride(1))
    warm, _ = world.consumer(0)
    warm.step()
    world.log.write(0, ride(2))
    world.log.write(0, b"none")
    kind = "offline" if method == "append" else "online"
    failing = Failing(getattr(world, kind), method, 2, after=after)
    consumer, member = world.consumer(0, **{kind: failing})
    consumer.step()
    assert consumer.progress.failures == 2 - failing.times >= 1
    assert member.idled == consumer.progress.failures, "the group knows that it lives"
    assert [row[0] for row in world.rows()] == [1, 2]
    assert len(world.dead()) == 1
    assert world.is_right()


def test_who_is_told_to_end_does_not_wait_for_a_store_that_is_away(world: World) -> None:
    world.log.write(0, ride(1))
    failing = Failing(world.offline, "append", 1_000, after=False)
    consumer, member = world.consumer(0, offline=failing)
    consumer.run(lambda: consumer.progress.failures > 2)
    assert member.closed
    assert world.rows() == []
    heir, _ = world.consumer(0)
    heir.step()
    assert [row[0] for row in world.rows()] == [1]


@pytest.mark.parametrize("step", ["write", "reflect"])
def test_a_death_between_the_stores_is_finished_by_whoever_is_next(world: World, step: str) -> None:
    consumer, _ = world.consumer(0)
    world.log.write(0, ride(1))
    consumer.step()

    class Dies(Exception):
        pass

    class Dying(Failing):
        def __getattr__(self, name: str) -> Any:
            if name == "write" and step == "write":
                raise Dies
            return getattr(self._store, name)

    world.log.write(0, ride(1, 9.0, NOW + timedelta(seconds=1)))
    dying, _ = world.consumer(0, online=Dying(world.online, "write", 1, after=False))
    if step == "write":
        with pytest.raises(Dies):
            dying.step()
        assert pending(TRIPS, world.offline, world.online) != ()
    else:
        dying.step()
    heir, _ = world.consumer(0)
    heir.step()
    assert world.is_right()
    assert [row[2] for row in world.rows()] == [1.0, 9.0]


def test_what_was_left_between_the_stores_is_finished_by_reconcile_too(world: World) -> None:
    world.log.write(0, ride(1))
    consumer, _ = world.consumer(0, online=None)
    consumer.step()
    moved = Moved("rides", {str(shard(0)): 0}, {str(shard(0)): 1})
    rows = world.offline.scan(TRIPS).select(TRIPS.columns).collect().with_columns(
        pl.lit(2.5).alias("km"), pl.lit(f"{NOW:%Y-%m-%d}").alias("__partition"),
        pl.lit(None, pl.String).alias("__event"), pl.lit(0, pl.Int64).alias("__sequence"),
    )  # fmt: skip
    append(TRIPS, rows, numbered=moved, offline=world.offline, online=None)
    assert pending(TRIPS, world.offline, world.online) == ("__push/stream/rides/rides/0",)
    reconcile(TRIPS, world.offline, world.online)
    assert world.is_right()


def test_an_append_that_begins_elsewhere_is_refused(world: World) -> None:
    nothing = TRIPS.types
    rows = pl.DataFrame(schema={name: of.polars for name, of in nothing.items()} | {
        "__partition": pl.String, "__event": pl.String, "__sequence": pl.Int64})  # fmt: skip
    for before, after in ((None, 5), (5, 9)):
        moved = Moved("s", {"x/0": before}, {"x/0": after})
        append(TRIPS, rows, numbered=moved, offline=world.offline, online=world.online)
    again = Moved("s", {"x/0": 5}, {"x/0": 9})
    assert append(TRIPS, rows, numbered=again, offline=world.offline, online=world.online).partitions == ()
    moved = Moved("s", {"x/0": 5}, {"x/0": 8})
    with pytest.raises(Overtaken, match="is at 9 and not at 5"):
        append(TRIPS, rows, numbered=moved, offline=world.offline, online=world.online)
    assert world.offline.streamed(TRIPS, "s", ["x/0", "x/1"])["x/0"].position == 9


def test_positions_of_any_size_grow_and_shrink(world: World) -> None:
    rows = pl.DataFrame(schema={name: of.polars for name, of in TRIPS.types.items()} | {
        "__partition": pl.String, "__event": pl.String, "__sequence": pl.Int64})  # fmt: skip
    before = None
    for at in (
        -1,
        0,
        2**62 - 2,
        2**62 - 1,
        2**62,
        2**63,
        49590338271490256608559692538361571095921575989136588898,
        2**200,
        7,
    ):
        moved = Moved("s", {"k/shardId-000000000000": before}, {"k/shardId-000000000000": at})
        append(TRIPS, rows, numbered=moved, offline=world.offline, online=None)
        before = at
        found = world.offline.streamed(TRIPS, "s", ["k/shardId-000000000000"])
        assert found["k/shardId-000000000000"].position == at


BAD: dict[str, tuple[Any, str, str]] = {
    "no JSON": (b"{", "", "cannot be read"),
    "another type": (ride(1, "far"), "", "'km'"),  # type: ignore[arg-type]
    "no key": (ride(None), "trips", "'driver_id' is null"),  # type: ignore[arg-type]
    "the future": (ride(1, at=NOW + timedelta(hours=1)), "trips", "later than now"),
    "before all partitions": (ride(1, at=datetime(2020, 1, 1, tzinfo=UTC)), "trips", "'at' lies outside"),
    "a check": (ride(1, -1.0), "trips", "in_range_km"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_record_that_is_no_row_is_a_dead_letter_and_stops_nothing(world: World, case: str) -> None:
    value, view, reason = BAD[case]
    consumer, _ = world.consumer(0)
    for driver in range(5):
        world.log.write(0, ride(driver))
    at = world.log.write(0, value)
    for driver in range(5, 10):
        world.log.write(0, ride(driver))
    consumer.step()
    assert [row[0] for row in world.rows()] == list(range(10))
    ((number, position, of, told),) = world.dead()
    assert (number, position, of) == ("0", str(at), view)
    assert reason in told
    assert world.is_right()


def test_records_that_are_all_bad_move_the_table_on(world: World) -> None:
    for _ in range(3):
        world.log.write(0, b"none")
    world.log.write(0, None)
    consumer, _ = world.consumer(0)
    consumer.step()
    assert len(world.dead()) == 3
    assert world.offline.streamed(TRIPS, "rides", ["rides/0"])["rides/0"].position == 3
    heir, _ = world.consumer(0)
    heir.step()
    assert heir.progress.records == 0


def test_a_view_that_comes_later_is_filled_from_the_start_and_tells_of_its_own_dead_letters(tmp_path: Path) -> None:
    strict = msgspec.structs.replace(TRIPS, name="long_trips", checks=(InRange("km", minimum=2),))
    before = World(tmp_path, TRIPS)
    for km in (1.0, 3.0):
        before.log.write(0, ride(1, km))
    before.log.write(0, b"none")
    consumer, _ = before.consumer(0)
    consumer.step()
    before.online.close()
    after = World(tmp_path, TRIPS, strict)
    after.log = before.log
    after.log.write(0, ride(2, 4.0))
    consumer, _ = after.consumer(0)
    consumer.step()
    assert [row[2] for row in after.rows()] == [1.0, 3.0, 4.0]
    assert [row[2] for row in after.rows(strict)] == [3.0, 4.0]
    assert [row[:3] for row in after.dead()] == [("0", "0", "long_trips"), ("0", "2", "")]
    assert after.is_right()
    assert after.is_right(strict)
    after.online.close()


def test_records_that_are_gone_stop_a_consumer_or_are_counted(world: World) -> None:
    for driver in range(10):
        world.log.write(0, ride(driver))
    consumer, _ = world.consumer(0, limits=Limits(rows=3, seconds=0))
    consumer.step()
    world.log.remove_before(0, 7)
    stopped, _ = world.consumer(0)
    with pytest.raises(RecordsLost, match=r"begins at position 7.*up to 2.*stream seek rides --to earliest"):
        stopped.step()
    assert [row[0] for row in world.rows()] == [0, 1, 2]
    going, _ = world.consumer(0, on_lost="skip", limits=Limits(rows=1, seconds=0))
    going.step()
    assert going.progress.lost == 4
    assert [row[0] for row in world.rows()] == [0, 1, 2, 7]
    world.log.remove_before(0, 9)
    for _ in range(2):
        going.step()
    assert going.progress.lost == 5, "removed while it ran"
    assert [row[0] for row in world.rows()] == [0, 1, 2, 7, 9]


def test_what_is_no_record_is_neither_lost_nor_left_to_be_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ends of transactions take positions too, and what was taken back leaves a gap."""
    for driver in range(3):
        world.log.write(0, ride(driver))
        world.log.mark(0)
    world.log.write(1, ride(7))
    consumer, _ = world.consumer(0, 1)
    consumer.step()
    consumer.step()
    commits = len(world.offline.commits(TRIPS))
    monkeypatch.setattr(consumers, "_REST", 0.0)
    consumer.step()
    assert world.offline.streamed(TRIPS, "rides", ["rides/0", "rides/1"])["rides/0"].position == 5
    consumer.step()
    assert len(world.offline.commits(TRIPS)) == commits + 1, "once, and nothing for the shard without"
    world.log.remove_before(0, 6)
    heir, _ = world.consumer(0, 1)
    heir.step()
    world.log.write(0, ride(9))
    heir.step()
    assert [row[0] for row in world.rows()] == [0, 1, 2, 7, 9]
    assert heir.progress.lost == 0
    assert world.is_right()


def test_what_is_no_record_is_passed_over_by_whoever_has_the_shard(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "_REST", 0.0)
    world.log.write(0, ride(1))
    zombie, member = world.consumer(0)
    zombie.step()
    world.log.write(0, ride(2))
    world.log.mark(0)
    heir, _ = world.consumer(0)
    for _ in range(2):
        heir.step()
    # As if it had read the second record, and not published it.
    member.at[shard(0)] = 1
    zombie.step()
    assert [row[0] for row in world.rows()] == [1, 2]
    assert world.offline.streamed(TRIPS, "rides", ["rides/0"])["rides/0"].position == 2
    world.log.write(0, ride(3))
    zombie.step()
    zombie.step()
    assert [row[0] for row in world.rows()] == [1, 2, 3]


def test_a_stream_that_was_made_anew_stops_a_consumer(world: World) -> None:
    for driver in range(4):
        world.log.write(0, ride(driver))
    consumer, _ = world.consumer(0)
    consumer.step()
    world.log.make_anew(0)
    world.log.write(0, ride(9))
    stopped, _ = world.consumer(0, on_lost="skip")
    with pytest.raises(RecordsLost, match="made anew"):
        stopped.step()


def test_a_stream_that_was_made_anew_is_noticed_also_if_it_has_more_than_the_former_had(world: World) -> None:
    world.log.origins = {shard(0): 7, shard(1): 2**62 - 1}
    for driver in range(4):
        world.log.write(0, ride(driver))
    consumer, _ = world.consumer(0, 1)
    consumer.step()
    heir, _ = world.consumer(0, 1)
    heir.step()
    world.log.make_anew(0)
    for driver in range(9):
        world.log.write(0, ride(driver, 3.0))
    stopped, _ = world.consumer(0, 1, on_lost="skip")
    with pytest.raises(RecordsLost, match=r"rides/0 of 'rides' was made anew.*stream seek rides --to earliest"):
        stopped.step()
    assert len(world.rows()) == 4
    sink = Sink(Intake(world.source, world.views, world.settings), Stores(world.offline, None, world.letters))
    sink.assigned([shard(0)], world.log.origins)
    sink.move(shard(0), -1)
    again, _ = world.consumer(0, 1)
    again.step()
    assert len(world.rows()) == 4 + 9
    assert world.is_right()


def test_where_a_log_tells_its_origin_for_the_first_time_it_is_taken_for_the_one_that_was_read(world: World) -> None:
    world.log.write(0, ride(1))
    consumer, _ = world.consumer(0)
    consumer.step()
    world.log.origins = {shard(0): 7}
    world.log.write(0, ride(2))
    heir, _ = world.consumer(0)
    heir.step()
    assert [row[0] for row in world.rows()] == [1, 2]
    world.log.make_anew(0)
    stopped, _ = world.consumer(0)
    with pytest.raises(RecordsLost, match="made anew"):
        stopped.step()


def test_the_latest_is_from_when_a_consumer_first_came(world: World) -> None:
    world.log.write(0, ride(1))
    idle, _ = world.consumer(0, start="latest")
    idle.step()
    world.log.write(0, ride(2))
    heir, _ = world.consumer(0, start="latest")
    heir.step()
    assert [row[0] for row in world.rows()] == [2]


def test_key_headers_and_time_are_fields(tmp_path: Path) -> None:
    source = KafkaSource(
        name="rides",
        connection="kafka",
        topics=("rides",),
        schema=(Field("driver_id", Int64), Field("when", Timestamp), Field("trace", String), Field("miles", Float64)),
        key_field="driver_id",
        time_field="when",
        header_fields={"trace": "x-trace"},
        field_mapping={"when": "at"},
    )
    view = ViewSpec(
        name="trips",
        entities=TRIPS.entities,
        features=(Field("km", Float64), Field("trace", String)),
        event_timestamp="at",
        created_timestamp="known_at",
        partitions={"partition": DAILY},
        stream=Stream("rides", Expressions({"km": (pl.col("miles") * 2).meta.serialize(format="json")})),
    )
    world = World(tmp_path, view, source=source)
    micros = int(NOW.timestamp() * 1_000_000)
    world.log.write(0, {"miles": 1.5}, key=b"7", time=micros, headers=[("x-trace", b"a"), ("x-trace", b"b")])
    world.log.write(0, {"miles": 1.5}, key=b"seven", time=micros)
    world.log.write(0, {"miles": 1.5}, key=b"8", time=None)
    consumer, _ = world.consumer(0)
    consumer.step()
    assert world.rows(view) == [(7, NOW, NOW, 3.0, "b")]
    assert [(row[1], row[2]) for row in world.dead()] == [("1", ""), ("2", "trips")]
    assert "The key cannot be read as 'driver_id'" in world.dead()[0][3]
    world.online.close()


def test_events_are_known_by_their_ids(tmp_path: Path) -> None:
    source = msgspec.structs.replace(RIDES, event_id="ride")
    world = World(tmp_path, source=source)
    consumer, _ = world.consumer(0)
    for name in ("a", "b", "a"):
        world.log.write(0, ride(1, 1.0, ride=name))
    consumer.step()
    world.log.write(0, ride(1, 5.0, ride="b"))
    world.log.write(0, ride(1, 6.0, ride="c"))
    consumer.step()
    assert [row[2] for row in world.rows()] == [1.0, 1.0, 6.0]
    world.online.close()


def test_a_batch_is_bounded_by_rows_and_bytes(world: World) -> None:
    for driver in range(10):
        world.log.write(0, ride(driver))
    by_rows, member = world.consumer(0, limits=Limits(rows=4, seconds=600))
    by_rows.step()
    assert (by_rows.progress.batches, by_rows.progress.records) == (1, 4)
    member.wanted = set()
    by_rows.step()
    by_bytes, _ = world.consumer(0, limits=Limits(bytes=100, seconds=600))
    for _ in range(6):
        by_bytes.step()
    assert by_bytes.progress.batches >= 3
    assert [row[0] for row in world.rows()] == list(range(10))


def test_a_view_that_cannot_take_the_records_ends_the_consumer_in_words(world: World) -> None:
    world.log.write(0, ride(1))
    consumer, _ = world.consumer(0)
    consumer.step()
    changed = msgspec.structs.replace(TRIPS, features=(Field("km", String),), checks=())
    other = World(world.settings.root, changed)
    other.log = world.log
    other.log.write(0, ride(1, "far"))  # type: ignore[arg-type]
    consumer, _ = other.consumer(0)
    with pytest.raises(DeclarationError, match="version=2"):
        consumer.step()
    other.online.close()
