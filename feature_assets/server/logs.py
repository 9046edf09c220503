"""The log of the server, and in it a line for each request, with names and counts on it, no values and no tokens."""

import json
import logging
import re
import sys
import time
from typing import Any, Final, Literal, TypeAlias

import orjson

from feature_assets.server.gate import Exchange
from feature_assets.server.journal import Journal, Stamp, Stream

log = logging.getLogger(__name__)

Form: TypeAlias = Literal["text", "json"]

_WORD: Final = re.compile(r"[A-Za-z0-9_./:@-]{1,100}")
_LONGEST_PATH: Final = 200


class RequestLog:
    """Takes each request when it has been answered. Without a journal the lines go where the program's log goes."""

    def __init__(self, form: Form = "text", journal: Journal | None = None) -> None:
        self._journal, self._stamp = journal, Stamp()
        self._line = self._as_text if form == "text" else self._as_json

    def close(self) -> None:
        """Write what is left."""
        if self._journal is not None:
            self._journal.flush()

    def __call__(self, exchange: Exchange) -> None:
        """Write its line."""
        if self._journal is not None:
            self._journal.add(self._line(exchange))
        elif log.isEnabledFor(logging.INFO):
            log.info("%s", as_text(exchange))

    def _as_text(self, exchange: Exchange) -> bytes:
        return f"{self._stamp()} {as_text(exchange)}".encode()

    def _as_json(self, exchange: Exchange) -> bytes:
        return json_line(
            {
                "time": self._stamp(),
                "event": "request",
                "request_id": exchange.id.decode(),
                "method": exchange.method,
                "path": exchange.path[:_LONGEST_PATH],
                "status": exchange.status,
                "ms": exchange.milliseconds,
                "client": exchange.client,
                "features": exchange.features,
                "rows": exchange.rows,
                "registry": exchange.registry or None,
            }
        )


def as_text(exchange: Exchange) -> str:
    """The line of an exchange, without the time."""
    return (
        f"request id={exchange.id.decode()} method={exchange.method} path={_word(exchange.path)} "
        f"status={exchange.status} ms={exchange.milliseconds:.2f} client={_word(exchange.client)} "
        f"features={exchange.features} rows={exchange.rows} registry={exchange.registry or '-':.12}"
    )


def _word(text: str) -> str:
    """What cannot be taken for two words of a line, or for two lines."""
    return text if text.isidentifier() or _WORD.fullmatch(text) else repr(text[:100])


def json_line(document: dict[str, Any]) -> bytes:
    """A line of JSON in which every letter is a printable one of ASCII: a terminal shows it as it is, and does no more."""
    try:
        line = orjson.dumps(document)
        if line.isascii() and b"\x7f" not in line:
            return line
    except orjson.JSONEncodeError:
        # Half a surrogate pair, which came in a path or a name.
        pass
    return json.dumps(document, separators=(",", ":"), default=str).replace("\x7f", "\\u007f").encode()


def own_log(form: Form) -> Journal | None:
    """Log to stderr, and the requests through a journal; nothing of it where the program has arranged for its log."""
    if logging.getLogger().handlers:
        return None
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_AsJson() if form == "json" else _AsText("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    return Journal(Stream(sys.stderr.fileno()))


class _AsText(logging.Formatter):
    """With the time as the lines of requests have it."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class _AsJson(_AsText):
    """One line of JSON for each record, a traceback within it."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging."""
        document = {
            "time": self.formatTime(record),
            "event": "log",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json_line(document).decode()
