"""Request errors, and the limits that are checked before a body is parsed."""

import re
from collections.abc import AsyncIterable, Mapping

from hourglass.errors import HourglassError

STATUS = {
    "Malformed": 400,
    "Unauthorized": 401,
    "NotFound": 404,
    "MethodNotAllowed": 405,
    "NotAcceptable": 406,
    "Timeout": 408,
    "TooLarge": 413,
    "UriTooLong": 414,
    "UnsupportedMediaType": 415,
    "Invalid": 422,
    "Overloaded": 429,
    "HeadersTooLarge": 431,
    "Internal": 500,
    "Unavailable": 503,
}
"""The classes of errors and their HTTP statuses."""

HEADERS = 64
HEADER_BYTES = 16 * 2**10
TARGET_BYTES = 2 * 2**10
RETRY_AFTER_S = 1
# Matches strings, whose brackets and commas do not count. The possessive quantifiers and the
# optional last quote keep the search linear on hostile bodies.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_NOT_COMMAS = bytes(set(range(256)) - set(b","))


class RequestError(HourglassError):
    """A rejected request: a class from `STATUS` and a message for the client."""

    def __init__(self, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = STATUS[kind]
        self.headers = dict(headers or {})


def check_head(scope_headers: list[tuple[bytes, bytes]], target_bytes: int) -> None:
    """Raise RequestError for more headers or a longer URL than a legitimate client needs."""
    size = sum(len(name) + len(value) for name, value in scope_headers)
    if len(scope_headers) > HEADERS or size > HEADER_BYTES:
        raise RequestError(
            "HeadersTooLarge",
            f"found {len(scope_headers)} headers of {size} bytes, allowed are {HEADERS} of "
            f"{HEADER_BYTES} bytes in total",
        )
    if target_bytes > TARGET_BYTES:
        raise RequestError(
            "UriTooLong", f"found a URL of {target_bytes} bytes, allowed are {TARGET_BYTES}"
        )


def deadline_s(header: bytes | None, most_s: float) -> float:
    """Seconds this request may take: `x-request-timeout-seconds` can only shorten the server's.

    A tenth of the client's time is reserved for the response. Raises RequestError for anything but
    a positive number.
    """
    if header is None:
        return most_s
    try:
        seconds = float(header)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise RequestError("Malformed", "x-request-timeout-seconds: allowed is a number above 0")
    return min(most_s, 0.9 * seconds)


def check_length(header: bytes | None, most: int) -> None:
    """Raise RequestError for a Content-Length over the limit, before the body is read."""
    if header is not None and header.isdigit() and int(header[:20]) > most:
        raise too_large(most)


async def read_body(chunks: AsyncIterable[bytes], most: int) -> bytes:
    """The whole body, counted as it arrives. Raises RequestError after `most` bytes."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > most:
            raise too_large(most)
    return bytes(body)


def too_large(most: int) -> RequestError:
    """The error for a body over the limit."""
    return RequestError(
        "TooLarge", f"the body is larger than the {most} bytes allowed; send fewer rows"
    )


def check_shape(body: bytes, depth: int, values: int) -> None:
    """Raise RequestError for JSON with deeper nesting or more values than allowed; parses nothing.

    Either would cost the parser far more memory than the size of the body.
    """
    plain = _STRING.sub(b"", body) if b'"' in body else body
    level = 0
    for bracket in plain.translate(None, delete=_NOT_BRACKETS):
        level += 1 if bracket in b"[{" else -1
        if level > depth:
            raise RequestError("Malformed", f"nested deeper than the {depth} levels allowed")
    found = len(plain.translate(None, delete=_NOT_COMMAS)) + 1
    if found > values:
        raise RequestError(
            "TooLarge", f"found {found} values, allowed are {values}; send fewer rows"
        )
