"""Every error a person can meet, in one tree.

    FeatureAssetsError
    ├── DeclarationError        a declaration that cannot be right             (ValueError)
    ├── ConfigurationError      a setting is missing or wrong                  (ValueError)
    ├── ContractBroken          rows do not keep what their view declares      (ValueError)
    ├── ChecksFailed            a check of error severity stopped publishing
    ├── RequestError            a question that cannot be answered             (ValueError)
    │   ├── MissingJoinKey      the spine or request lacks a join key          (LookupError)
    │   ├── NameCollision       two answers would have one name
    │   └── WrongType           a value is not of the declared type            (TypeError)
    ├── UnknownName             nothing of that name is known                  (LookupError)
    │   ├── UnknownView
    │   ├── UnknownFeature
    │   ├── UnknownService
    │   ├── UnknownSource
    │   └── UnknownTrainingSet
    ├── StoreError              a store did not do what was asked              (OSError)
    │   ├── StoreUnavailable    it cannot be reached or opened
    │   ├── StoreUnsafe         it ignores conditional writes or is corrupt
    │   ├── StoreFull           no room is left
    │   └── TableMissing        the view has no table there yet                (LookupError)
    ├── RegistryError           the published registry cannot serve
    │   ├── RegistryUnreadable  what is stored is no registry snapshot
    │   ├── RegistryConflict    another publisher changed the same object
    │   └── NotPublished        no registry has been published yet             (LookupError)
    ├── PublicationConflict     another publication of the partition won
    ├── RecordsLost             a stream no longer has what was to be read next
    ├── NotReproducible         a saved training set cannot be rebuilt
    ├── TransformationRefused   an on-demand function is not the registered one
    ├── Unauthenticated         no valid token                                 (PermissionError)
    └── Forbidden               whoever asks may not do this                   (PermissionError)

A message names the thing, the place and the mend.
"""

import errno
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Self


class FeatureAssetsError(Exception):
    """The root: catch this to catch everything the platform raises on purpose."""


class DeclarationError(FeatureAssetsError, ValueError):
    """A declaration that cannot be right, found when it is made."""


class ConfigurationError(FeatureAssetsError, ValueError):
    """A setting is missing or wrong."""


class ContractBroken(FeatureAssetsError, ValueError):
    """Rows do not keep what their view declares; nothing was published."""


class ChecksFailed(FeatureAssetsError):
    """A check of error severity failed; nothing was published."""


class RequestError(FeatureAssetsError, ValueError):
    """A question that cannot be answered as it was asked."""


class MissingJoinKey(RequestError, LookupError):
    """The spine or the request lacks a join key."""

    @classmethod
    def of(cls, view: str, missing: Sequence[str], given: Iterable[str], place: str) -> Self:
        names = ", ".join(f"'{name}'" for name in missing)
        has = ", ".join(sorted(given)) or "nothing"
        return cls(
            f"View '{view}' is looked up by {names}, which {place} lacks (it has: {has}). "
            f"Add the column, or rename with .with_join_key_map({{'{missing[0]}': '<your column>'}})."
        )


class NameCollision(RequestError):
    """Two answers would have one name."""

    @classmethod
    def of(cls, name: str, first: str, second: str) -> Self:
        return cls(
            f"'{name}' would be the name of both {first} and {second}. "
            "Ask with full_feature_names=True, or rename one view with .with_name('…')."
        )


class WrongType(RequestError, TypeError):
    """A value is not of the declared type."""


_LONGEST_NAME = 400
"""What is longer was not meant to be a name; to look for the nearest to a megabyte takes a tenth of a second."""


def shown(name: str) -> str:
    """A name as a message repeats it, whatever was sent for one."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:80]}…"


def hint(asked: str, known: Sequence[str], kind: str) -> str:
    """The nearest of the known names, else all of them, up to a dozen."""
    near = get_close_matches(asked, known, n=1) if len(asked) <= _LONGEST_NAME else []
    if near:
        return f"Did you mean '{near[0]}'?"
    if not known:
        return f"There are no {kind} yet."
    shown = ", ".join(sorted(known)[:12])
    return f"Known {kind}: {shown}{', …' if len(known) > 12 else ''}."


class UnknownName(FeatureAssetsError, LookupError):
    """Nothing of that name is known."""

    @classmethod
    def of(cls, kind: str, name: str, known: Sequence[str]) -> Self:
        return cls(f"There is no {kind} '{shown(name)}' that you may know of. {hint(name, known, 'names')}")


class UnknownView(UnknownName):
    """The registry has no feature view of that name, or not in that version."""

    @classmethod
    def among(cls, name: str, known: Sequence[str]) -> Self:
        return cls(f"There is no feature view '{shown(name)}' in the published registry. {hint(name, known, 'views')}")


class UnknownFeature(UnknownName):
    """The view has no such feature, or the answer no such column."""

    @classmethod
    def among(cls, view: str, feature: str, known: Sequence[str]) -> Self:
        return cls(f"View '{view}' has no feature '{shown(feature)}'. {hint(feature, known, 'features')}")


class UnknownService(UnknownName):
    """The registry has no feature service of that name."""

    @classmethod
    def among(cls, name: str, known: Sequence[str]) -> Self:
        return cls(
            f"There is no feature service '{shown(name)}' in the published registry. {hint(name, known, 'services')}"
        )

    @classmethod
    def but_view(cls, name: str, features: Sequence[str]) -> Self:
        return cls(
            f"'{name}' is a view and no feature service. Ask for '{name}:*', or for some of it, as in "
            f"'{name}:{features[0]}'."
        )


class UnknownSource(UnknownName):
    """The registry has no push source of that name."""

    @classmethod
    def among(cls, name: str, known: Sequence[str]) -> Self:
        return cls(
            f"There is no push source '{shown(name)}' in the published registry. {hint(name, known, 'push sources')}"
        )


class UnknownTrainingSet(UnknownName):
    """No training set was saved under that name."""

    @classmethod
    def among(cls, name: str, known: Sequence[str]) -> Self:
        return cls(f"There is no saved training set '{shown(name)}'. {hint(name, known, 'training sets')}")


class StoreError(FeatureAssetsError, OSError):
    """A store did not do what was asked of it."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or opened."""


class StoreUnsafe(StoreError):
    """The store ignores conditional writes, or what it holds is damaged."""


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreFull(StoreError):
    """No room is left; what was acknowledged before is still there."""

    @staticmethod
    def is_told_by(error: Exception) -> bool:
        """Whether an error of a library says that a disk, a quota or a limit on files is used up.

        Polars and delta-rs say it in their text only.
        """
        text = str(error)
        return getattr(error, "errno", None) in _NO_ROOM or any(f"(os error {code})" in text for code in _NO_ROOM)

    @classmethod
    def of_temporary(cls, folder: str, what: str) -> Self:
        return cls(
            f"No room is left in the temporary folder {folder} for {what}. Free some, or name another folder: TMPDIR=…"
        )


class TableMissing(StoreError, LookupError):
    """The view has no table in that store yet: it was never materialised."""

    @classmethod
    def of(cls, view: str, version: int, store: str) -> Self:
        return cls(
            f"View '{view}' (version {version}) has no table in the {store} store: it was never materialised. "
            f"Run: feature-assets materialize {view} --latest"
        )


class RegistryError(FeatureAssetsError):
    """The published registry cannot serve."""


class RegistryUnreadable(RegistryError):
    """What is stored is not a registry snapshot that this version reads."""


class RegistryConflict(RegistryError):
    """Another publisher changed the same object in between, or owns it."""


class NotPublished(RegistryError, LookupError):
    """No registry has been published yet."""

    @classmethod
    def at(cls, place: str) -> Self:
        return cls(f"No registry has been published at {place}. Run: feature-assets apply")


class PublicationConflict(FeatureAssetsError):
    """Other publications of the same partitions kept winning; nothing of this one was written."""


class RecordsLost(FeatureAssetsError):
    """A stream does not have the records any more that come after what was published, or was made anew."""


class NotReproducible(FeatureAssetsError):
    """A saved training set cannot be rebuilt; the message says what is gone."""


class TransformationRefused(FeatureAssetsError):
    """An on-demand function is not the one that the registry names."""


class Unauthenticated(FeatureAssetsError, PermissionError):
    """No valid token was presented."""


class Forbidden(FeatureAssetsError, PermissionError):
    """Whoever asks is known and may not do this. `decision` says by which rule; see `access`."""

    def __init__(self, message: str, decision: Any = None) -> None:
        super().__init__(message)
        self.decision = decision
