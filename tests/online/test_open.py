"""An online store is found by its URL; what does not name one is answered with how to write it."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from feature_assets import online
from feature_assets.errors import ConfigurationError
from feature_assets.online import known_schemes, open_online_store
from feature_assets.online.sqlite import SqliteOnlineStore


@pytest.mark.parametrize("url", ["sqlite:{}", "sqlite://{}"])
def test_the_scheme_names_the_store(url: str, tmp_path: Path):
    store = open_online_store(url.format(tmp_path / "a b%20?.db"))
    assert isinstance(store, SqliteOnlineStore)
    assert store.path == tmp_path / "a b%20?.db"
    store.close()


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert open_online_store("sqlite:online.db").path == tmp_path / "online.db"


def test_opening_creates_nothing(tmp_path: Path):
    open_online_store(f"sqlite:{tmp_path}/deep/online.db").close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url, message",
    [
        ("/var/online.db", r"'/var/online\.db' is not the URL of an online store.*sqlite:/var/lib"),
        ("", r"'' is not the URL"),
        ("sqlite:", r"'sqlite:' is not the URL"),
        ("sqlite:/var/lib/", r"names no file"),
        ("sqlite::memory:", r"names no file"),
        ("cassandra://host", r"No online store goes by the scheme 'cassandra'\. Known: .*sqlite.*entry point"),
        ("protocol:x", r"No online store goes by the scheme 'protocol'"),
    ],
)
def test_a_wrong_url_is_answered_with_a_right_one(url: str, message: str):
    with pytest.raises(ConfigurationError, match=message):
        open_online_store(url)


def test_another_package_offers_a_store_by_entry_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    point = EntryPoint("elsewhere", "feature_assets.online.sqlite:SqliteOnlineStore", online.ENTRY_POINTS)
    monkeypatch.setattr(
        online, "entry_points", lambda *, group, name=None: [point] if name in (None, "elsewhere") else []
    )
    assert "elsewhere" in known_schemes()
    assert isinstance(open_online_store("elsewhere:x"), SqliteOnlineStore)
