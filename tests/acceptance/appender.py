"""A process that pushes or publishes rows of its own: place, name, how often, and which of both. It begins when it is sent a line.

A line on its output says that it is ready, then one for each commit that it was told of: the version.
"""

import sys

from feature_assets.offline import InJournal, OfflineStore
from tests.acceptance.clouds import storage_options
from tests.offline.tables import WEATHER, replace
from tests.offline.test_append import pushed


def main(place: str, endpoint: str, name: str, times: str, kind: str) -> None:
    store = OfflineStore(place, storage_options=storage_options(endpoint) if endpoint else {})
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(times)):
        row = (name, number, None, number)
        if kind == "push":
            rows = pushed({"all": [row]}, first=number + 1)
            commit, _ = store.append(WEATHER, rows, numbered=InJournal(name), metadata={})
            assert commit is not None
        else:
            commit = replace(store, {f"{name}{number}": [row]})
        print(commit.version, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
