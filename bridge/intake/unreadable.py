"""What the HTTP parser refuses before there is a request: answered as a problem, and the connection is closed.

gunicorn would answer with HTML and echo and log what it could not read; that may hold a secret.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

import structlog
from gunicorn import util
from gunicorn.http import errors

from bridge.intake.problems import document, where


class LateBodyError(Exception):
    """The body did not arrive in time."""


class GaveWayError(BaseException):
    """The connection was hung up on to make room: whatever the application is about, it is over."""


_STATUSES: tuple[tuple[type[BaseException], int, str], ...] = (
    (errors.LimitRequestLine, 414, "The request line is longer than is taken here."),
    (errors.LimitRequestHeaders, 431, "The headers are more or longer than is taken here."),
    (errors.UnsupportedTransferCoding, 501, "The only Transfer-Encoding that is taken is chunked."),
    (errors.ExpectationFailed, 417, "The only expectation that is met is 100-continue."),
    (GaveWayError, 503, "There are too many requests, and this one was slow. Nothing of it was taken."),
    (LateBodyError, 408, "The body did not arrive in time."),
    (errors.ParseException, 400, "This is not a request as RFC 9112 has it."),
)
#: When a sender that had to give way should try again.
_RETRY = "Retry-After: 5\r\n"
#: Parse errors by their class that are our own fault.
_OURS = (errors.InvalidResponseHeader, errors.InvalidResponseHeaderName, errors.ConfigurationProblem)


def answer_to(error: BaseException) -> tuple[int, bytes]:
    """The status and the whole answer to a request that could not be read or that the server failed with."""
    status, detail = 500, "The request was not taken; trying again may help."
    if not isinstance(error, _OURS):
        for kind, code, text in _STATUSES:
            if isinstance(error, kind):
                status, detail = code, text
                break
    body = json.dumps(document(status, detail)).encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        "Connection: close\r\n"
        f"{_RETRY if status == HTTPStatus.SERVICE_UNAVAILABLE else ''}"
        "Content-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return status, head.encode() + body


class AnswersUnreadable:
    """A mixin for gunicorn's workers, before the worker's class. `service` hears of every refusal."""

    service: Any

    def handle_error(self, _req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Called by the worker, which then closes the connection."""
        status, answer = answer_to(exc)
        address = addr[0] if isinstance(addr, tuple) else ""
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            structlog.get_logger(__name__).error("request failed", error=type(exc).__name__, trace=where(exc))
        self.service.unreadable(status, type(exc).__name__, address)
        try:
            util.write_nonblock(client, answer)
        except OSError:
            return  # nobody listens any more
