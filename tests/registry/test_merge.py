"""Who owns what, which versions stay, and what may change within one."""

from typing import Any

import pytest

from feature_assets.errors import DeclarationError, RegistryConflict
from feature_assets.registry import Registry, merged
from feature_assets.registry.evolution import refuse_broken_versions
from feature_assets.spec import Entity, Field, StaticPartitions, TimePartitions, ViewProjection
from feature_assets.types import Float64, Int64, String
from tests.registry.declared import DAILY, on_demand, service, source, view, whole

NOTHING = Registry()


def owned_by(location: str, *objects: Any, before: Registry = NOTHING) -> Registry:
    return merged(before, Registry.of(objects), location)


class TestOwnership:
    def test_objects_of_other_locations_stay(self) -> None:
        one = owned_by("one", view("a"), service("s"), source("x"), on_demand("o"))
        both = owned_by("two", view("b"), before=one)
        assert set(both.views) == {"a", "b"}
        assert both.services == one.services
        assert both.sources == one.sources
        assert both.on_demand == one.on_demand
        assert both.owner("a") == "one"
        assert both.owner("b") == "two"
        assert both.owner("s", "service") == "one"

    def test_objects_that_are_no_longer_derived_go(self) -> None:
        before = owned_by("one", view("a"), view("b"), service("s"), source("x"))
        after = owned_by("one", view("b"), before=owned_by("two", view("c"), before=before))
        assert set(after.views) == {"b", "c"}
        assert after.services == {}
        assert after.sources == {}
        assert after.owners == {"view/b": "one", "view/c": "two"}

    @pytest.mark.parametrize("foreign", [view("a"), on_demand("a"), service("s"), source("x", path="/other")], ids=str)
    def test_what_another_location_owns_is_refused(self, foreign: Any) -> None:
        before = owned_by("one", view("a"), service("s"), source("x"))
        with pytest.raises(RegistryConflict, match=r"belongs to code location 'one', and 'two' .*--adopt one"):
            owned_by("two", foreign, before=before)

    def test_an_equal_source_may_be_declared_by_two_locations(self) -> None:
        both = owned_by("two", source("x"), before=owned_by("one", source("x")))
        assert both.owner("x", "source") == "one"
        assert owned_by("two", before=both).sources == both.sources
        assert owned_by("one", before=both).sources == {}

    def test_kinds_have_names_of_their_own(self) -> None:
        both = owned_by("two", source("a"), service("a"), before=owned_by("one", view("a")))
        assert (both.owner("a"), both.owner("a", "source"), both.owner("a", "service")) == ("one", "two", "two")

    def test_a_view_may_become_an_on_demand_view(self) -> None:
        after = owned_by("one", on_demand("a"), before=owned_by("one", view("a"), view("a1")))
        assert (after.views, set(after.on_demand)) == ({}, {"a"})

    def test_adopted_objects_change_hands_with_their_former_versions(self) -> None:
        before = owned_by("old", view("a", version=2), source("x"), before=owned_by("old", view("a"), source("x")))
        after = merged(before, Registry.of([view("a", version=2), source("x")]), "new", adopt=["old"])
        assert after.owners == {"view/a": "new", "source/x": "new"}
        assert set(after.superseded) == {"a@v1"}


class TestVersions:
    def test_a_raised_version_keeps_the_former_one(self) -> None:
        first, second, third = (view("a", version=version) for version in (1, 2, 3))
        after = owned_by("one", second, before=owned_by("one", first))
        assert after.views == {"a": second}
        assert after.superseded == {"a@v1": first}
        after = owned_by("one", third, before=after)
        assert after.superseded == {"a@v1": first, "a@v2": second}
        assert after.versions("a") == (1, 2, 3)

    def test_a_lowered_version_is_current_and_the_higher_stays_readable(self) -> None:
        first, second = view("a"), view("a", version=2)
        after = owned_by("one", first, before=owned_by("one", second, before=owned_by("one", first)))
        assert after.views == {"a": first}
        assert after.superseded == {"a@v2": second}

    def test_versions_stay_while_others_publish_and_go_with_their_view(self) -> None:
        before = owned_by("one", view("a", version=2), before=owned_by("one", view("a")))
        assert set(owned_by("two", view("b"), before=before).superseded) == {"a@v1"}
        assert owned_by("one", before=before).superseded == {}

    def test_pruning_keeps_what_is_asked_for(self) -> None:
        before = owned_by("two", view("b", version=2), before=owned_by("two", view("b")))
        for version in (1, 2):
            before = owned_by("one", view("a", version=version), before=before)
        derived = Registry.of([view("a", version=3), service("s", ViewProjection("a", version=1))])
        assert set(merged(before, derived, "one", prune=True).superseded) == {"a@v1", "b@v1"}


HOURLY = TimePartitions(cron="0 * * * *", timezone="UTC", start=DAILY.start, fmt="%Y-%m-%d-%H")


@pytest.mark.parametrize(
    "changed, breach",
    [
        ({"features": (Field("temp", Float64),)}, "feature 'wind' was removed"),
        ({"features": (Field("temp", Int64), Field("wind", Float64))}, "'temp' changed from Float64 to Int64"),
        ({"entities": (Entity("airport", {"origin": Int64}),)}, "join keys changed from origin String to origin Int64"),
        ({"entities": ()}, "join keys changed from origin String to none"),
        ({"event_timestamp": "at"}, "event timestamp changed from 'observed_at' to 'at'"),
        ({"created_timestamp": "made"}, "created timestamp changed from none to 'made'"),
        ({"partitions": {"partition": HOURLY}}, "partitions are cut differently"),
        ({"partitions": {}}, "partitions are cut differently"),
        ({"partitions": {"partition": StaticPartitions(("a",))}}, "partitions are cut differently"),
    ],
)
def test_what_tables_cannot_follow_needs_a_version(changed: dict[str, Any], breach: str) -> None:
    before = Registry.of([view()])
    with pytest.raises(DeclarationError, match=rf"'weather' is published as version 1, and .*{breach}.*version=2"):
        refuse_broken_versions(before, Registry.of([view(**changed)]))
    refuse_broken_versions(before, Registry.of([view(version=2, **changed)]))


@pytest.mark.parametrize(
    "changed",
    [
        {"features": (Field("wind", Float64, description="mph"), Field("rain", Float64), Field("temp", Float64))},
        {"entities": (Entity("place", {"origin": String}),)},
        {"partitions": {"partition": TimePartitions(cron=DAILY.cron, timezone="UTC", start="2012", fmt=DAILY.fmt)}},
        {"ttl": None, "online": False, "code_version": "9", "owners": ("me",)},
    ],
    ids=["features added and ordered", "entity renamed", "range of partitions", "the rest"],
)
def test_the_rest_may_change_in_place(changed: dict[str, Any]) -> None:
    refuse_broken_versions(Registry.of([view()]), Registry.of([view(**changed)]))


def test_a_lowered_version_is_held_to_its_own_tables() -> None:
    first, second = view(), view(version=2, features=(Field("temp", Int64),))
    before = owned_by("one", second, before=owned_by("one", first))
    refuse_broken_versions(before, owned_by("one", first, before=before))
    with pytest.raises(DeclarationError, match=r"version 1, and feature 'temp' .*version=3"):
        refuse_broken_versions(before, owned_by("one", view(features=second.features), before=before))


def test_merging_the_same_again_changes_nothing() -> None:
    once = merged(NOTHING, whole(), "one")
    assert merged(once, whole(), "one") == once
