"""A program that trains nothing: two ranks load a saved set with PyTorch's DataLoader, two workers each, and tell the rows.

Arguments: the folder that PyTorch is installed in if not beside all else, the place of the sets, the name of one.
"""

import json
import sys
from typing import Any


def labels(loader: Any) -> list[int]:
    return [int(label) for batch in loader for label in batch["label"]]


def main() -> None:
    where, place, name = sys.argv[1:]
    if where:
        # Spawned workers get the path of who spawns them.
        sys.path.append(where)
    import torch

    from feature_assets.training import TrainingSets

    saved = TrainingSets(place).load(name)
    told: dict[str, Any] = {"torch": torch.__version__, "ranks": [], "again": [], "next": []}
    for rank in range(2):
        dataset = saved.to_torch(64, shuffle=500, seed=7, shard=(rank, 2), columns=["label", "mean", "on", "way"])
        loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn")
        first = next(iter(loader))
        told["shapes"] = {column: [str(one.dtype), list(one.shape[1:])] for column, one in first.items()}
        told["ranks"].append(labels(loader))
        told["again"].append(labels(loader))
        dataset.set_epoch(1)
        told["next"].append(labels(loader))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
