"""The rules that every online store keeps alike."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_assets.online.protocol import Token, replaces, within_ttl

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
tokens = st.builds(Token, st.integers(0, 2), st.none() | st.integers(0, 2), st.integers(0, 2))


@pytest.mark.parametrize(
    "event, ttl, expected",
    [
        (NOON, HOUR, True),
        (NOON - HOUR, HOUR, True),
        (NOON - HOUR - timedelta(microseconds=1), HOUR, False),
        (NOON + timedelta(microseconds=1), HOUR, False),
        (datetime.min.replace(tzinfo=UTC), None, True),
        (datetime.max.replace(tzinfo=UTC), None, False),
        (datetime.min.replace(tzinfo=UTC), timedelta.max, True),
    ],
)
def test_ttl_includes_both_ends(event: datetime, ttl: timedelta | None, expected: bool):
    assert within_ttl(event, NOON, ttl) is expected


@given(st.integers(0, 9), st.integers(0, 9), st.none() | st.integers(1, 9))
def test_ttl_is_the_same_in_microseconds(event: int, at: int, ttl: int | None):
    moments = [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=number) for number in (event, at)]
    assert within_ttl(event, at, ttl) == within_ttl(*moments, None if ttl is None else timedelta(microseconds=ttl))


@given(tokens, tokens)
def test_rows_are_ordered_by_event_then_created_then_publication(new: Token, stored: Token):
    def rank(token: Token) -> tuple[int, int, int]:
        return token.event, -1 if token.created is None else token.created, token.publication

    assert replaces(new, stored) == (rank(new) >= rank(stored))
    assert replaces(new, None)
