"""Error answers as `application/problem+json` (RFC 9457), for every route and any accident."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import structlog
from flask import Flask, Response, request
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


def where(error: BaseException) -> list[str]:
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
        return problem(error.status, error.detail, slug=error.slug, headers=error.headers, extra=error.extra)

    def http(error: HTTPException) -> Response:
        forget(error)
        status = error.code or 500
        if isinstance(error, RequestRedirect) or status < 400:  # senders do not follow redirects
            return problem(404, "No such path.")
        detail = {404: "No such path.", 405: "The path does not take this method."}.get(status, error.name)
        allowed = {key: value for key, value in error.get_headers() if key == "Allow"}
        return problem(status, detail, headers=allowed)

    def accident(error: Exception) -> Response:
        log.error("request failed", path=request.path[:200], error=type(error).__name__, trace=where(error))
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
