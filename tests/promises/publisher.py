"""A process that publishes and erases at random until it is killed or has done its rounds.

Arguments: folder, case, seed, rounds. A line on its output says that it is ready, then one for each publication that was
acknowledged: its number. It begins when it is sent a line.
"""

import random
import sys
from pathlib import Path

import polars as pl

from feature_assets.errors import PublicationConflict
from feature_assets.settlement import erase, reconcile
from tests.promises.published import CASES, Platform


def main(folder: str, case: str, seed: str, rounds: str) -> None:
    here, chance = Platform(CASES[case], Path(folder)), random.Random(int(seed))
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(int(rounds)):
        try:
            _act(here, chance)
        except PublicationConflict:
            print("conflict", flush=True)


def _act(here: Platform, chance: random.Random) -> None:
    case = here.case
    dice = chance.random()
    if dice < 0.1 and here.offline.state(here.view) is not None:
        if dice < 0.05 or not case.types:
            reconcile(here.view, here.offline, here.online, force=dice < 0.02)
        else:
            keys = pl.DataFrame(
                [chance.choice(case.keys)], schema={name: of.polars for name, of in case.types.items()}, orient="row"
            )
            erase(here.view, keys, here.offline, here.online)
        return
    rows = {
        partition: [
            (chance.choice(case.keys), chance.choice([0, 719, 1439]), chance.choice([None, 0, 1]), chance.randint(0, 9))
            for _ in range(chance.randint(0, 4))
        ]
        for partition in chance.sample(case.partitions, chance.randint(1, 3))
    }
    print(here.publish(rows), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
