"""What schemathesis loads: how to send a part that should be a file and, being wrong on purpose, is a number or a list."""

import json
from typing import Any

import schemathesis

from feature_assets.server.history_worker import ARROW, PARQUET


@schemathesis.serializer(ARROW, PARQUET)
def file_or_not(context: schemathesis.SerializationContext, value: Any) -> bytes:
    """Files are sent as they are, without this; anything else as JSON."""
    return json.dumps(value).encode()
