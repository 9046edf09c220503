"""Histories for a principal: which features it gets, and for which rows of a spine."""

from typing import Final, NamedTuple

import polars as pl

from feature_assets.access import HISTORY, Access, Decision, Principal
from feature_assets.errors import Forbidden
from feature_assets.historical.spine import Frame, Spine, moment_column
from feature_assets.references import Features, ReadPlan, projections, resolve
from feature_assets.registry import Registry
from feature_assets.spec import ViewProjection
from feature_assets.training import Manifest, TrainingSets

_READ_WITH_ITS_OWN_KEY: Final = (
    "With a principal a spine is rows: a Polars or pandas frame or an Arrow table. A path, source or query would be read with "
    "the store's credentials and not with yours: read it yourself, and hand in what you have read."
)


class Admitted(NamedTuple):
    """A question as a principal gets it answered: personal data that it may not see is left out of `features`. Nobody
    has decided where nobody in particular asks.
    """

    plan: ReadPlan
    features: list[ViewProjection]
    decision: Decision | None


def admitted(
    registry: Registry, access: Access, principal: Principal, features: Features, *, full_feature_names: bool
) -> Admitted:
    """The question, as far as the principal may have it answered.

    Raises:
        Forbidden: it may not read all of the views, or of all that it asks for nothing is left.
        UnknownView, UnknownFeature, UnknownService: it is not there, and the principal may know that.
        RequestError: it cannot be answered as it was asked.
    """
    reading = access.reading(principal, HISTORY, features, full_feature_names=full_feature_names)
    decision = reading.decide(principal).enforce()
    asked = projections(registry, features)
    if not decision.masked:
        return Admitted(reading.plan, asked, decision)
    left = reading.visible(asked, decision)
    if not left:
        decision.refuse("All that you ask for is personal data, and you may not see it.", rule="pii")
    plan = resolve(registry, left, full_feature_names=full_feature_names)
    return Admitted(plan, left, decision)


def check_brought(spine: Frame | None) -> None:
    """See that a spine is rows that the principal has already.

    Raises:
        Forbidden: it is something to be read with the store's credentials.
    """
    rows = isinstance(spine, pl.DataFrame | pl.LazyFrame) or hasattr(spine, "__arrow_c_stream__")
    if spine is not None and not rows and type(spine).__module__.partition(".")[0] != "pandas":
        raise Forbidden(_READ_WITH_ITS_OWN_KEY)


def admit(spine: Spine, plan: ReadPlan, decision: Decision) -> None:
    """See that every row of the spine is open to the principal, before any history is read. Reads the spine.

    Raises:
        Forbidden: one is not, or has no key.
        RequestError: the spine cannot be read.
    """
    if not decision.rows:
        return
    spine.read(into_memory=False)
    moments = spine.moments(plan.join_keys)
    for rule in decision.rows:
        own = pl.col(moment_column(rule.column)).eq_missing(pl.lit(rule.value, rule.type.polars))
        if not moments.select(own.all()).item():
            decision.refuse_rows(rule)


def own_rows(decision: Decision) -> list[pl.Expr]:
    """What the rows of a spine made of histories keep to."""
    return [pl.col(rule.column) == pl.lit(rule.value, rule.type.polars) for rule in decision.rows]


def admit_saved(name: str, sets: TrainingSets, access: Access, principal: Principal) -> None:
    """See that a saved training set is open to the principal as a whole, by what the registry says now.

    Raises:
        UnknownTrainingSet: there is none of that name.
        Forbidden: it holds what the principal may not see.
        UnknownView, UnknownFeature: what it was made of is not there any more, so that nobody can say whose it is.
    """
    manifest: Manifest = sets.manifest(name)
    question = manifest.question
    found = access.reading(principal, HISTORY, question.features, full_feature_names=question.full_feature_names)
    decision = found.decide(principal).enforce()
    if decision.masked:
        decision.refuse(
            f"Training set '{name}' holds personal data that you may not see: {', '.join(sorted(decision.masked))}. "
            "Make one without.",
            rule="pii",
        )
    if decision.rows:
        rows = pl.concat(sets.rows(manifest, "spine"))
        admit(Spine(rows, question.timestamp_column), found.plan, decision)
