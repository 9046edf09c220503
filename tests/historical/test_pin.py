"""The tables that a question needs are opened together, each once."""

import threading

import pytest

from feature_assets.errors import TableMissing
from feature_assets.historical.answer import pin
from feature_assets.spec import Field
from feature_assets.types import Int64, String
from tests.historical.world import view

FIRST, SECOND = (view(name, {"driver": String}, [Field("n", Int64)]) for name in ("first", "second"))


class Waiting:
    """An offline store that answers once two are asking."""

    def __init__(self):
        self.both = threading.Barrier(2, timeout=30)
        self.asked = []

    def pinned(self, asked, *, at):
        self.asked.append((asked.name, at))
        self.both.wait()
        return asked.name


def test_tables_are_opened_at_the_same_time_and_each_once():
    store = Waiting()
    assert pin([FIRST, SECOND, FIRST], store, {"first@v1": 3, "second@v1": 4}) == {
        "first@v1": "first",
        "second@v1": "second",
    }
    assert sorted(store.asked) == [("first", 3), ("second", 4)]


def test_what_is_missing_first_is_told():
    class Missing:
        def pinned(self, asked, *, at):
            raise TableMissing(f"{asked.name} is not there")

    with pytest.raises(TableMissing, match="first"):
        pin([FIRST, SECOND], Missing())
