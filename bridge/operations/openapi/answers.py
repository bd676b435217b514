"""How requests prove themselves, and what they are answered with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from marshmallow import EXCLUDE, Schema, fields, validate

from bridge.intake.schemes import header_of, layouts_of
from bridge.intake.signatures import Verifier
from bridge.intake.webhooks import MAX_LISTED
from bridge.settings import Hmac, Source, Verify

# --- how a source's requests prove themselves, as OpenAPI's security schemes with instructions in prose ---

_UNITS = {
    "s": "as seconds since 1970",
    "ms": "as milliseconds since 1970",
    "iso": "in ISO 8601",
    "http": "as in a Date header",
}
_KEYS = {
    "raw": "the secret as it is",
    "hex": "the secret, decoded from hex",
    "base64": "the secret, decoded from base64, without its `whsec_` if it begins so",
}


@dataclass(frozen=True, slots=True)
class Signing:
    """Security schemes by name; the alternative sets of them that a request needs; optional headers."""

    schemes: Mapping[str, Mapping[str, Any]]
    requirements: list[Mapping[str, list[str]]]
    optional: Mapping[str, str]  # header → what it is for

    @property
    def headers(self) -> set[str]:
        """The headers that it speaks of, in lower case."""
        named = {scheme["name"].lower() for scheme in self.schemes.values() if "name" in scheme}
        return named | {name.lower() for name in self.optional} | {"authorization"}


def signing_of(source: Source, public_url: str | None) -> Signing:
    """What a request to this source must carry."""
    verify = source.verify
    if verify.scheme == "none":
        return Signing({}, [], {})
    if verify.scheme in {"bearer", "basic"}:
        return _one(source.name, _token(verify))
    schemes: dict[str, Mapping[str, Any]] = {}
    requirements: list[Mapping[str, list[str]]] = []
    optional: dict[str, str] = {}
    for layout in layouts_of(verify):
        needed = {layout.header: _how_to_sign(layout, public_url)}
        if layout.timestamp_entry is not None:
            looks = header_of(layout, "{timestamp}", "…")
            needed[layout.header] += f" The header is `{looks}`. {_when(layout, verify.tolerance_s)}"
        elif layout.timestamp_header is not None:
            needed[layout.timestamp_header] = _when(layout, verify.tolerance_s)
        if layout.id_header is not None:
            about = "The delivery's id: the same each time it is sent, at most 255 characters."
            (needed if "{id}" in layout.signed else optional)[layout.id_header] = about
        names = {header: f"{source.name}.{header.lower()}" for header in needed}
        for header, about in needed.items():  # of variants with the same headers, the first tells how
            apikey = {"type": "apiKey", "in": "header", "name": header, "description": about}
            schemes.setdefault(names[header], apikey)
        requirement: Mapping[str, list[str]] = {name: [] for name in names.values()}
        if requirement not in requirements:
            requirements.append(requirement)
    return Signing(schemes, requirements, optional)


def _one(source: str, scheme: Mapping[str, Any]) -> Signing:
    name = f"{source}.{scheme.get('name', scheme.get('scheme')).lower()}"
    return Signing({name: scheme}, [{name: []}], {})


def _token(verify: Verify) -> Mapping[str, Any]:
    if verify.scheme == "basic":
        return {"type": "http", "scheme": "basic", "description": "The user and the password that were agreed."}
    if verify.header.lower() == "authorization" and verify.prefix.strip().lower() == "bearer":
        return {"type": "http", "scheme": "bearer", "description": "The token that was agreed."}
    about = f"`{verify.prefix}` and the token that was agreed." if verify.prefix else "The token that was agreed."
    return {"type": "apiKey", "in": "header", "name": verify.header, "description": about}


def _how_to_sign(layout: Hmac, public_url: str | None) -> str:
    kind = layout.algorithm.upper() if layout.mac == "hash" else f"HMAC-{layout.algorithm.upper()}"
    signed = f"{{secret}}{layout.signed}" if layout.mac == "hash" else layout.signed
    parts = [
        f"`{layout.prefix}` followed by the" if layout.prefix else "The",
        f"{kind}, in {layout.encoding}, of `{signed}`.",
        "`{body}` stands for the bytes of the body as they are sent, compressed if they are compressed.",
    ]
    if layout.mac != "hash":
        parts.append(f"The key is {_KEYS[layout.key]}.")
    if "{method}" in layout.signed:
        parts.append("`{method}` is POST.")
    if "{url}" in layout.signed:
        parts.append(f"`{{url}}` begins with {public_url or 'the public URL'} and includes the query.")
    if "{id}" in layout.signed:
        parts.append(f"`{{id}}` is the header {layout.id_header}.")
    if layout.timestamp_header is not None and layout.timestamp_entry is None:
        parts.append(f"`{{timestamp}}` is the header {layout.timestamp_header}.")
    return " ".join(parts)


def _when(layout: Hmac, tolerance_s: float) -> str:
    return f"The time of signing, {_UNITS[layout.timestamp_unit]}: at most {tolerance_s:g} s off our clock, either way."


# --- what requests are answered with ---

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
