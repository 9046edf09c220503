"""Who asked for what, and whether it was allowed: a line of JSON for each decision.

Names and counts stand in it; never a value, a key of an entity or a token. Before something is done that changes what
others see, its line is on disk, or it is not done. Of what is only read, a line that cannot be written is counted.
"""

import sys
from typing import Any, Final

from feature_assets.access import PUBLISH
from feature_assets.server.gate import Exchange
from feature_assets.server.journal import AppendedFile, Journal, Stamp, Stream
from feature_assets.server.logs import json_line
from feature_assets.server.problems import Problem

FIRST: Final = frozenset({PUBLISH, "admin"})
"""The acts whose line is written before they are done."""

_MOST_VIEWS: Final = 100
_LONGEST_NAME: Final = 200
"""Names come from whoever asks, also of views that are nowhere."""


class Audit:
    """The audit log of one server process, at `place`: a path, or "stderr".

    Raises:
        ConfigurationError: it cannot be written there.
    """

    def __init__(self, place: str) -> None:
        self._journal = Journal(Stream(sys.stderr.fileno()) if place == "stderr" else AppendedFile(place))
        self._stamp = Stamp()

    @property
    def lost(self) -> int:
        """How many lines could not be written."""
        return self._journal.lost

    def __call__(self, exchange: Exchange) -> None:
        """Take a request that has been answered. Where nothing was decided, there is nothing to tell."""
        if (exchange.decision is not None or exchange.denied) and not exchange.recorded:
            self._journal.add(self._line(exchange))

    def first(self, exchange: Exchange) -> None:
        """Have the line of what was decided on disk before it is done.

        Raises:
            Problem: that cannot be (503).
        """
        self._journal.flush()
        try:
            # In the event loop: it is rare, and a thread would need the others to wait for it all the same.
            self._journal.sink.write(self._line(exchange) + b"\n")
            self._journal.sink.sync()
        except OSError as error:
            why = "The audit log cannot be written, so nothing is changed. Try again when it can."
            raise Problem(503, "audit-unavailable", why, headers={"retry-after": "30"}) from error
        exchange.recorded = True

    def close(self) -> None:
        """Write what is left."""
        self._journal.flush()

    def _line(self, exchange: Exchange) -> bytes:
        principal, decision = exchange.principal, exchange.decision
        document: dict[str, Any] = {
            "time": self._stamp(),
            "event": "decision",
            "request_id": exchange.id.decode(),
            "iss": principal.issuer if principal else None,
            "sub": principal.subject if principal else None,
            "client_id": principal.client_id if principal else exchange.client,
            "method": exchange.method,
            "path": exchange.path[:200],
            "action": decision.act if decision else None,
            "views": [name[:_LONGEST_NAME] for name in decision.views[:_MOST_VIEWS]] if decision else (),
            "features": exchange.features,
            "masked": len(decision.masked) if decision else 0,
            "keys": exchange.rows,
            "decision": "allowed" if decision and decision.allowed and not exchange.denied else "refused",
            "rule": exchange.denied or (decision.rule if decision else ""),
            "registry": exchange.registry or None,
            "status": exchange.status,
            "ms": exchange.elapsed(),
        }
        return json_line(document)
