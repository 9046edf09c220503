"""Views that the tests of the online store and the programs that they start share; light to import."""

from feature_assets.spec import Entity, Field, ViewSpec
from feature_assets.types import Float64, Int64, String

DRIVER = ViewSpec(
    name="driver",
    entities=(Entity("driver", {"driver": String}),),
    features=(Field("trips", Int64), Field("rating", Float64)),
    event_timestamp="at",
)
PAIR = ViewSpec(
    name="pair",
    entities=(Entity("pair", {"a": Int64, "b": String}),),
    features=(Field("value", Int64),),
    event_timestamp="at",
)
COUNTS = ViewSpec(
    name="counts",
    entities=(Entity("driver", {"driver": Int64}),),
    features=(Field("batch", Int64), Field("text", String)),
    event_timestamp="at",
)
KEYS = 200
