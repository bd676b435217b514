"""Error answers for every route and any accident, and for what the HTTP parser refuses before there is a request."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import structlog
from flask import Flask, Response, request
from gunicorn import util
from gunicorn.http import errors
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect

PROBLEM = "application/problem+json"
#: status → slug and title
_KINDS: Mapping[int, tuple[str, str]] = {
    400: ("malformed", "The request cannot be read"),
    401: ("unauthorized", "The request is not authentic"),
    403: ("forbidden", "This is not allowed here"),
    404: ("not-found", "There is nothing here"),
    405: ("method-not-allowed", "The method is not allowed"),
    408: ("timeout", "The request took too long"),
    409: ("conflict", "That is not possible just now"),
    413: ("too-large", "The body is too large"),
    414: ("uri-too-long", "The request line is too long"),
    415: ("unsupported-media-type", "The media type is not supported"),
    417: ("expectation-failed", "The expectation cannot be met"),
    422: ("invalid", "The payload is invalid"),
    429: ("too-many-requests", "Too many requests"),
    431: ("headers-too-large", "The headers are too large"),
    500: ("internal", "Something went wrong here"),
    501: ("not-implemented", "That is not supported here"),
    503: ("unavailable", "Not available just now"),
}


class Refusal(Exception):  # noqa: N818 (an answer, not an accident)
    """The request is answered with a problem; nothing of it was taken."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        slug: str | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.slug = slug
        self.headers = headers or {}
        self.extra = extra or {}

    def answer(self, instance: str | None = None) -> Response:
        """The error answer; `instance` as in `problem`."""
        return problem(
            self.status, self.detail, slug=self.slug, headers=self.headers, extra=self.extra, instance=instance
        )


def problem(
    status: int,
    detail: str,
    *,
    slug: str | None = None,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
    instance: str | None = None,
) -> Response:
    """The error answer; `instance` is the path that was asked for, by default Flask's request's."""
    path = request.path if instance is None else instance
    body = {**document(status, detail, slug=slug, instance=path), **(extra or {})}
    response = Response(json.dumps(body), status=status, mimetype=PROBLEM)
    response.headers.extend(dict(headers or {}))
    return response


def document(status: int, detail: str, *, slug: str | None = None, instance: str = "/") -> dict[str, Any]:
    """The members of a problem; `instance` is the path that was asked for, as far as it is known."""
    known, title = _KINDS.get(status, ("error", "The request cannot be answered"))
    return {
        "type": f"urn:partner-bridge:problem:{slug or known}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": quote(instance[:200]),
    }


def stack_of(error: BaseException) -> list[str]:
    """The stack of an accident for the log: no values and no message, as these may hold a payload."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]


def forget(error: BaseException) -> None:
    """Strip the whole chain of an exception of its frames: nothing of a request outlives its refusal, whatever raised
    it. A frame holds what was parsed, and may hold the exception too: a circle that only a full collection ends.
    """
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        link = chain.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        chain += (link.__cause__, link.__context__, *getattr(link, "exceptions", ()))
        traceback.clear_frames(link.__traceback__)
        link.__traceback__ = link.__cause__ = link.__context__ = None


def register_problem_handlers(app: Flask, *, accidents: bool = True) -> None:
    """Let unknown routes, wrong methods and, if that is wanted, unexpected exceptions answer with a problem too."""
    log = structlog.get_logger(__name__)

    def refused(error: Refusal) -> Response:
        forget(error)
        return error.answer()

    def http(error: HTTPException) -> Response:
        forget(error)
        status = error.code or 500
        if isinstance(error, RequestRedirect) or status < 400:  # senders do not follow redirects
            return problem(404, "No such path.")
        detail = {404: "No such path.", 405: "The path does not take this method."}.get(status, error.name)
        allowed = {key: value for key, value in error.get_headers() if key == "Allow"}
        return problem(status, detail, headers=allowed)

    def accident(error: Exception) -> Response:
        log.error("request failed", path=request.path[:200], error=type(error).__name__, trace=stack_of(error))
        forget(error)
        return problem(500, "The request was not taken; trying again may help.")

    def refuse_doubled_slash() -> None:
        if request.environ.get("PATH_INFO", "").startswith("//"):  # Werkzeug would take it for one
            raise Refusal(404, "No such path.")

    app.before_request(refuse_doubled_slash)
    app.register_error_handler(Refusal, refused)
    app.register_error_handler(HTTPException, http)
    if accidents:
        app.register_error_handler(Exception, accident)


# --- what the HTTP parser refuses before there is a request: answered as a problem, and the connection is closed ---
#
# gunicorn would answer with HTML and echo and log what it could not read; that may hold a secret.


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
            structlog.get_logger(__name__).error("request failed", error=type(exc).__name__, trace=stack_of(exc))
        self.service.unreadable(status, type(exc).__name__, address)
        try:
            util.write_nonblock(client, answer)
        except OSError:
            return  # nobody listens any more
