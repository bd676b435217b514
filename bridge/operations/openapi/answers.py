"""What webhooks are answered with, and why, as OpenAPI's responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import EXCLUDE, Schema, fields, validate

from bridge.intake.signatures import Verifier
from bridge.intake.webhooks import MAX_LISTED
from bridge.settings import Source

_AGAIN = {"Retry-After": {"description": "Seconds to wait.", "required": True, "schema": {"type": "integer"}}}
_WHO = {"WWW-Authenticate": {"description": "What to send.", "required": True, "schema": {"type": "string"}}}
_ALLOW = {"Allow": {"description": "The methods it takes.", "required": True, "schema": {"type": "string"}}}

#: status → why, and the headers that come with it
_PROBLEMS: Mapping[int, tuple[str, Mapping[str, Any]]] = {
    400: ("The body is not what it should be, or is deeper or wider than the limits.", {}),
    401: ("The signature or token is missing, wrong, stale or too far ahead.", {}),
    404: ("There is no such source.", {}),
    405: ("The method is not allowed.", _ALLOW),
    408: ("The body did not arrive in time.", {}),
    413: ("The body is too large, as sent or inflated.", {}),
    414: ("The request line is too long.", {}),
    415: ("The media type, or a Content-Encoding other than gzip.", {}),
    417: ("An Expect other than 100-continue.", {}),
    422: ("Something did not validate. Nothing of the request was taken.", {}),
    429: ("Too many requests.", _AGAIN),
    431: ("The headers are too large.", {}),
    501: ("A Transfer-Encoding other than chunked.", {}),
    503: ("Full, or about to stop. Nothing of the request was taken: send it again.", _AGAIN),
}


def _about(text: str) -> dict[str, str]:
    return {"description": text}


class _Answer(Schema):
    class Meta:
        unknown = EXCLUDE  # more members may come with a later version


class Problem(_Answer):
    """RFC 9457."""

    type = fields.String(required=True, metadata=_about("urn:partner-bridge:problem:… : which problem it is."))
    title = fields.String(required=True, metadata=_about("The problem in general."))
    status = fields.Integer(required=True, metadata=_about("The status of the answer."))
    detail = fields.String(required=True, metadata=_about("What is wrong with this request."))
    instance = fields.String(required=True, metadata=_about("The path that was asked for."))


class Invalid(_Answer):
    """What did not validate in one event."""

    index = fields.Integer(required=True, validate=validate.Range(min=0), metadata=_about("The event's position."))
    errors = fields.Dict(
        keys=fields.String(),
        values=fields.String(),
        required=True,
        metadata=_about("Property, `record` or `occurred_at` → what is wrong with it."),
    )


class Rejected(Problem):
    """Why nothing of the request was taken."""

    errors = fields.List(fields.Nested(Invalid), required=True, validate=validate.Length(max=MAX_LISTED))


def _count(text: str) -> fields.Integer:
    return fields.Integer(required=True, validate=validate.Range(min=0), metadata=_about(text))


class Accepted(_Answer):
    """What became of the events; all of them are kept."""

    accepted = _count("Events that were taken.")
    duplicates = _count("Events that were there already.")
    ignored = _count("Events that no mapping is for.")
    parked = _count("Events that wait for a person.")
    ids = fields.List(
        fields.String(),
        required=True,
        validate=validate.Length(max=MAX_LISTED),
        metadata=_about("The first events' ids."),
    )
    invalid = fields.List(
        fields.Nested(Invalid),
        required=True,
        validate=validate.Length(max=MAX_LISTED),
        metadata=_about("What did not validate and waits for a person, while the rest goes on."),
    )


def problem_answers(*statuses: int) -> dict[str, Any]:
    """These errors."""
    return {str(status): _problem(status) for status in sorted(statuses)}


def webhook_answers(source: Source) -> dict[str, Any]:
    """All answers to a POST for the source."""
    statuses = set(_PROBLEMS) - {422, 429}
    if any(block.on_invalid == "reject" for block in source.mappings):
        statuses.add(422)
    if source.limit is not None:
        statuses.add(429)
    if source.verify.scheme == "none":
        statuses.discard(401)
    answers = problem_answers(*statuses)
    if Verifier(source.verify).challenge:
        answers["401"]["headers"] = _WHO
    taken: dict[str, Any] = {
        "description": "Everything is on disk: journalled, recognised as a duplicate, ignored or parked."
    }
    if source.reply.body == "counts" and source.reply.status not in {204, 205}:
        taken["content"] = {"application/json": {"schema": Accepted}}
    answers[str(source.reply.status)] = taken
    if source.challenge is not None and source.challenge.method == "POST":
        greeted = handshake_answer(source)
        if source.reply.status == 200:
            content = {**greeted["content"], **taken.get("content", {})}
            if source.challenge.as_ == "json" and "content" in taken:
                content["application/json"] = {"schema": {}}
            greeted = {"description": f"{taken['description']} Or: {greeted['description']}", "content": content}
        answers["200"] = greeted
    return dict(sorted(answers.items()))


def handshake_answer(source: Source) -> dict[str, Any]:
    """The answer to a handshake."""
    json = source.challenge is not None and source.challenge.as_ == "json"
    content = {"application/json": {"schema": {}}} if json else {"text/plain": {"schema": {"type": "string"}}}
    return {"description": "The answer to the handshake.", "content": content}


def health_answers(sound: str, otherwise: str) -> dict[str, Any]:
    """The answers of a probe."""
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "200": {"description": sound, "content": text},
        "503": {"description": otherwise, "content": text},
    }


def _problem(status: int) -> dict[str, Any]:
    description, headers = _PROBLEMS[status]
    schema = Rejected if status == 422 else Problem
    answer: dict[str, Any] = {
        "description": description,
        "content": {"application/problem+json": {"schema": schema}},
    }
    return {**answer, "headers": dict(headers)} if headers else answer
