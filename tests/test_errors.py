"""What messages say of names that nobody knows."""

import pytest

from feature_assets.errors import (
    UnknownFeature,
    UnknownName,
    UnknownService,
    UnknownSource,
    UnknownTrainingSet,
    UnknownView,
)

KNOWN = ["airport_weather", "driver_stats"]
UNKNOWN = {
    "name": lambda name: UnknownName.of("field", name, KNOWN),
    "view": lambda name: UnknownView.among(name, KNOWN),
    "feature": lambda name: UnknownFeature.among("weather", name, KNOWN),
    "service": lambda name: UnknownService.among(name, KNOWN),
    "source": lambda name: UnknownSource.among(name, KNOWN),
    "training set": lambda name: UnknownTrainingSet.among(name, KNOWN),
}


@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN)
def test_the_nearest_name_is_offered_else_all_of_them(unknown):
    assert "'airport_wether'" in str(unknown("airport_wether"))
    assert "Did you mean 'airport_weather'?" in str(unknown("airport_wether"))
    assert "airport_weather, driver_stats" in str(unknown("xyz"))


@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN)
def test_a_megabyte_is_near_no_name_and_not_repeated(unknown):
    """Whoever may push can send one: to compare it would hold up the server, and to repeat it would fill its log."""
    message = str(unknown("airport_weather" * 70_000))
    assert len(message) < 300
    assert "Did you mean" not in message
