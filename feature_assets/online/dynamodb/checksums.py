"""Answers that arrive damaged are never taken for what DynamoDB said.

It sends a checksum of each answer. botocore asks again where that is wrong, but takes the last attempt's answer as it is,
and one that it cannot parse it does not ask for again.
"""

from binascii import crc32
from typing import Any, Final

from botocore.exceptions import ChecksumError

_HEADER: Final = "x-amz-crc32"
_NO_CHECKSUM: Final = "-1"
"""Equals none: botocore takes the answer for damaged, and asks again."""


class Checksums:
    """Of the answers to one client. Once one came with a checksum none is taken without, but refusals, which others may tell."""

    def __init__(self, client: Any) -> None:
        self._are_sent = False
        client.meta.events.register("before-parse.dynamodb", self._set_aside)
        client.meta.events.register("after-call.dynamodb", self._refuse)

    def _set_aside(self, response_dict: dict[str, Any], **_: Any) -> None:
        """Have nothing parsed that is damaged; whether it is asked for again botocore decides by the checksum."""
        headers = response_dict["headers"]
        told, body = headers.get(_HEADER), response_dict["body"]
        if told is None and (not self._are_sent or response_dict["status_code"] >= 300):
            return
        if told == str(crc32(body)):
            self._are_sent = True
            return
        if told is None or not told.isdecimal():
            headers[_HEADER] = _NO_CHECKSUM
        response_dict["body"] = b"{}"

    def _refuse(self, http_response: Any, **_: Any) -> None:
        told, actual = http_response.headers.get(_HEADER), str(crc32(http_response.content))
        if told is not None and told != actual:
            raise ChecksumError(checksum_type="CRC32", expected_checksum=told, actual_checksum=actual)
