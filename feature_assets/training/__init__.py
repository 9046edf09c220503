"""Training sets: rows with features, the manifest of what made them, and sets that were saved under a name.

- `digests`: digests of values, to the bit
- `manifest`: what a set was made of
- `saved`: sets kept in a folder or bucket
"""

from feature_assets.training.digests import Digests
from feature_assets.training.manifest import Manifest, Question, StoredFile
from feature_assets.training.saved import TrainingSets
from feature_assets.training.training_set import Source, TrainingSet, usual_rows

__all__ = ["Digests", "Manifest", "Question", "Source", "StoredFile", "TrainingSet", "TrainingSets", "usual_rows"]
