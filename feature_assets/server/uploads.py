"""Bodies with a question and, in a part of its own, a file: `multipart/form-data`, read as it comes (RFC 7578).

The question is kept in memory and the file on disk, so that what somebody uploads takes room and not memory.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Receive

from feature_assets.server.problems import Problem

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FORM: Final = "multipart/form-data"

QUESTION: Final = "question"
SPINE: Final = "spine"


class Upload:
    """What came: the question's bytes, and of the file its media type; its bytes are at the path that was given."""

    def __init__(self) -> None:
        self.question: bytes | None = None
        self.media_type: str | None = None


async def read_upload(
    receive: Receive, content_type: bytes, path: Path, *, largest_question: int, largest_file: int
) -> Upload:
    """Read the whole body.

    Args:
        receive: see ASGI.
        content_type: the header.
        path: where the file is put.
        largest_question: the most bytes of the one.
        largest_file: the most bytes of the other.

    Raises:
        Problem: it is no such body, broke off (400), or has more than it may (413, 422).
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    with path.open("wb") as file:
        form = _Form(file, {QUESTION: largest_question, SPINE: largest_file})
        try:
            parser = MultipartParser(boundary, form.callbacks, max_header_count=8, max_header_size=4_096)
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise Problem(400, "broken-request", "The connection ended before the body did.", close=True)
                parser.write(message.get("body", b""))
                if not message.get("more_body", False):
                    break
            parser.finalize()
        except FormParserError as error:
            raise Problem(400, "bad-form", f"The body is no {FORM}: {error}.", close=True) from None
    if not form.ended:
        raise Problem(400, "bad-form", f"The body is no {FORM}, or has no end.", close=True)
    return form.upload


class _Form:
    """Takes the parts as the parser finds them."""

    def __init__(self, file: BinaryIO, limits: Mapping[str, int]) -> None:
        self.upload, self.ended = Upload(), False
        self._file, self._limits = file, limits
        self._header, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._part, self._size = "", 0
        self._seen: set[str] = set()
        self._question = bytearray()
        self.callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_field": self._add_header,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._name_part,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._headers, self._part, self._size = {}, "", 0

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _name_part(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in self._limits or name in self._seen:
            raise Problem(
                422,
                "bad-form",
                f"The form has a part '{name[:50]}'. It takes '{QUESTION}' (JSON) and '{SPINE}' (a file), each once.",
                close=True,
            )
        self._seen.add(name)
        self._part = name
        if name == SPINE:
            media_type, _ = parse_options_header(self._headers.get(b"content-type"))
            self.upload.media_type = media_type.decode("latin-1").lower()

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._size > self._limits[self._part]:
            raise Problem(
                413,
                "body-too-large",
                f"The part '{self._part}' is larger than {self._limits[self._part]} bytes. Ask in parts.",
                close=True,
            )
        if self._part == SPINE:
            self._file.write(memoryview(data)[start:end])
        else:
            self._question += data[start:end]

    def _end_part(self) -> None:
        if self._part == QUESTION:
            self.upload.question = bytes(self._question)

    def _end(self) -> None:
        self.ended = True
