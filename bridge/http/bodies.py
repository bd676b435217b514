"""A request's headers and its body, whole or not at all: read from the WSGI stream up to a limit, inflated if need be.

Werkzeug cuts a chunked body at its limit without saying so: the stream is read here instead.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from gunicorn.http.errors import ParseException

from bridge.http.problems import Refusal

_CHUNK = 65_536
#: Compressed bytes given to zlib at a time: it copies what follows a member, and there may be thousands of them.
_PIECE = 4_096


def read_body(environ: Mapping[str, Any], limit: int) -> bytes:
    """The bytes as they were sent.

    Raises Refusal: 413 over `limit`, 400 when the body is cut off or its chunks are faulty, 408 when the server
    gave up waiting for the rest, 501 for a Transfer-Encoding that would have to be undone first.
    """
    if environ.get("HTTP_TRANSFER_ENCODING", "chunked").strip().lower() != "chunked":
        raise Refusal(501, "The only Transfer-Encoding that is taken is chunked.")
    stream = environ["wsgi.input"]
    announced = environ.get("CONTENT_LENGTH") or ""
    left: int | None = None
    if announced:
        if not (announced.isascii() and announced.isdigit()):
            raise Refusal(400, "The Content-Length is not a number.")
        left = int(announced[:18])
        if left > limit:
            raise _too_large(limit)
    elif not (environ.get("wsgi.input_terminated") or environ.get("HTTP_TRANSFER_ENCODING")):
        left = 0
    parts: list[bytes] = []
    size = 0
    while left is None or size < left:
        wanted = _CHUNK if left is None else min(_CHUNK, left - size)
        try:
            part = stream.read(min(wanted, limit + 1 - size))
        except TimeoutError as error:
            raise Refusal(408, "The body did not arrive in time.") from error
        except OSError as error:  # resets and gunicorn's NoMoreData
            raise Refusal(400, "The body was cut off.") from error
        except ParseException as error:
            raise Refusal(400, "The chunks of the body are faulty.") from error
        if not part:
            break
        parts.append(part)
        size += len(part)
        if size > limit:
            raise _too_large(limit)
    if left is not None and size < left:
        raise Refusal(400, "The body was cut off.")
    return b"".join(parts)


def sent_headers(environ: Mapping[str, Any]) -> dict[str, str]:
    """The request's headers by lower-case name. WSGI joins those given twice with a comma."""
    headers = {name[5:].replace("_", "-").lower(): text for name, text in environ.items() if name[:5] == "HTTP_"}
    headers["content-type"] = environ.get("CONTENT_TYPE", "")
    return headers


def coding_of(content_encoding: str) -> str:
    """The coding of a body: "gzip", or "" for none. Raises Refusal (415) for any other."""
    coding = content_encoding.strip().lower()
    if coding in {"", "identity"}:
        return ""
    if coding in {"gzip", "x-gzip"}:
        return "gzip"
    raise Refusal(415, "The Content-Encoding must be gzip or none.", headers={"Accept-Encoding": "gzip"})


def inflate(body: bytes, limit: int) -> bytes:
    """The content of a gzip body. Raises Refusal: 413 over `limit`, 400 when it is damaged."""
    parts: list[bytes] = []
    size = 0
    at = 0
    member = zlib.decompressobj(wbits=31)
    while at < len(body):
        if member.eof:
            member = zlib.decompressobj(wbits=31)
        piece = body[at : at + _PIECE]
        try:
            part = member.decompress(piece, limit + 1 - size)
        except zlib.error as error:
            raise Refusal(400, "The body is not gzip.") from error
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
        at += len(piece) - len(member.unused_data)
    if body and not member.eof:
        raise Refusal(400, "The gzip body was cut off.")
    return b"".join(parts)


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"The body has more than {limit} bytes.")
