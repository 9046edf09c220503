"""What a model uses, and whether what it was served is logged."""

from collections.abc import Mapping
from datetime import timedelta
from typing import ClassVar, Literal

import msgspec

from feature_assets.errors import DeclarationError
from feature_assets.spec.base import LONGEST, Spec, check_distinct, check_name
from feature_assets.spec.views import Described, ViewProjection


class LoggingConfig(Spec, frozen=True, kw_only=True):
    """That what a service serves is logged: `sample_rate` of the requests that ask for it by name, from above 0 to 1.

    `pii` names the features and request fields with personal data that are logged too; keys always are. Days that lie
    back longer than `retention` are removed by upkeep; without one none are. Of each feature `skew_tolerance` is the
    share of rows that may differ from history before the check `skew` fails, with `skew_severity`.
    """

    sample_rate: float = 1.0
    pii: tuple[str, ...] = ()
    retention: timedelta | None = None
    skew_tolerance: float = 0.0
    skew_severity: Literal["error", "warn"] = "warn"

    def __post_init__(self) -> None:
        if not 0 < self.sample_rate <= 1:
            raise DeclarationError(f"LoggingConfig: sample_rate {self.sample_rate!r} is not above 0 and at most 1.")
        if not 0 <= self.skew_tolerance <= 1:
            raise DeclarationError(f"LoggingConfig: skew_tolerance {self.skew_tolerance!r} is not a share from 0 to 1.")
        if self.retention is not None and not timedelta(days=1) <= self.retention <= LONGEST:
            raise DeclarationError(
                f"LoggingConfig: retention {self.retention} is not a day at least: whole days are removed. Give "
                "timedelta(days=…)."
            )
        msgspec.structs.force_setattr(self, "pii", tuple(self.pii))


class ServiceSpec(Described, frozen=True, kw_only=True):
    """The named list of features that one model uses."""

    KIND: ClassVar[str] = "Feature service"
    CALLED: ClassVar[Mapping[str, str]] = {}

    features: tuple[ViewProjection, ...]
    logging: LoggingConfig | None = None
    asset_key: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name("FeatureService", self.name)
        if not self.features:
            raise DeclarationError(
                f"Feature service '{self.name}' has no features; give features=[view[['feature']], …]."
            )
        place = f"Feature service '{self.name}'"
        check_distinct((projection.name for projection in self.features), place, "view")
