"""Training sets: rows with features, the manifest of what made them, and sets that were saved under a name.

- `batches`: rows cut into frames of one length, mixed, and dealt to workers
- `feeding`: arrays, tensors and datasets of what learns
- `digests`: digests of values, to the bit
- `files`: rows written as files, by this process or by workers
- `manifest`: what a set was made of
- `saved`: sets kept in a folder or bucket
- `comparison`: what two saved sets differ in
- `needed`: the Delta versions that saved sets are made again from
"""

from feature_assets.training.batches import rebatched
from feature_assets.training.comparison import Differences, differences
from feature_assets.training.digests import Digests
from feature_assets.training.files import AnyWriting, Writing
from feature_assets.training.manifest import Manifest, Question, StoredFile, table_label
from feature_assets.training.needed import NeededVersions
from feature_assets.training.saved import TrainingSets, set_of_partition
from feature_assets.training.training_set import Source, TrainingSet, usual_rows

__all__ = [
    "AnyWriting",
    "Differences",
    "Digests",
    "Manifest",
    "NeededVersions",
    "Question",
    "Source",
    "StoredFile",
    "TrainingSet",
    "TrainingSets",
    "Writing",
    "differences",
    "rebatched",
    "set_of_partition",
    "table_label",
    "usual_rows",
]
