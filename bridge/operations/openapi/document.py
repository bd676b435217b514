"""The whole document, put together by apispec, and its route."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import Blueprint, Response, request

from bridge import __version__
from bridge.errors import PayloadError
from bridge.http.problems import Refusal
from bridge.intake.decoding import decode, media_type
from bridge.intake.payload import to_json
from bridge.operations.openapi.answers import (
    Signing,
    handshake_answer,
    health_answers,
    problem_answers,
    signing_of,
    webhook_answers,
)
from bridge.operations.openapi.payloads import (
    body_schema,
    event_schema,
    handshake_schema,
    read_from_handshake,
    read_from_request,
)
from bridge.operations.openapi.shapes import SHARED
from bridge.settings import Challenge, Server, Settings, Source

_ABOUT = """\
Events come in by `POST`, one path for each partner system, and are answered once they are on disk.
The schemas say what is read; whatever else a payload holds is left aside.
Send an event again, under the same id, until it is answered with a status from 200 to 299.
"""
#: Headers that OpenAPI has other places for.
_ELSEWHERE = frozenset({"accept", "content-type", "authorization"})


def build_document(settings: Settings) -> dict[str, Any]:
    """OpenAPI 3.1 as a value that `payload.to_json` writes."""
    plugin = MarshmallowPlugin(schema_name_resolver=_name)
    spec = APISpec(
        title="Partner Bridge: webhooks",
        version=__version__,
        openapi_version="3.1.0",
        plugins=[plugin],
        info={"description": _ABOUT},
        servers=[{"url": _server_url(settings.server)}],
    )
    for name, schema in SHARED.items():
        spec.components.schema(name, dict(schema) if isinstance(schema, Mapping) else {})
    for source in settings.sources.values():
        _add_source(spec, source, settings.server)
    probe = {"security": [], "tags": ["health"]}
    alive = {"summary": "Whether the service makes progress.", "operationId": "livez"}
    ready = {"summary": "Whether webhooks can be taken just now.", "operationId": "readyz"}
    spec.path("/livez", operations={"get": {**alive, **probe, "responses": health_answers("It does.", "It does not.")}})
    spec.path("/readyz", operations={"get": {**ready, **probe, "responses": health_answers("Yes.", "Not now.")}})
    document: dict[str, Any] = spec.to_dict()
    return document


def _add_source(spec: APISpec, source: Source, server: Server) -> None:
    signing = signing_of(source, server.public_url)
    for name, scheme in signing.schemes.items():
        spec.components.security_scheme(name, dict(scheme))
    spec.components.schema(f"{source.name}.event", dict(event_schema(source)))
    event = {"$ref": f"#/components/schemas/{source.name}.event"}
    spec.components.schema(source.name, dict(_whole_body(source, body_schema(source, event))))
    operations: dict[str, Any] = {
        "post": {
            "summary": f"Events of {source.name}.",
            "operationId": f"send.{source.name}",
            "tags": [source.name],
            "parameters": list(_parameters(source, signing)),
            "requestBody": _request_body(source, source.max_body or server.max_body),
            "responses": webhook_answers(source),
            "security": signing.requirements,
        }
    }
    if source.challenge is not None and source.challenge.method == "GET":
        operations["get"] = _handshake(source, signing)
    spec.path(f"/webhooks/{source.name}", operations=operations)


# --- the request --------------------------------------------------------------------------------


def _request_body(source: Source, max_body: int) -> dict[str, Any]:
    about = f"At most {max_body} bytes. May be compressed, with `Content-Encoding: gzip`; the limit holds inflated too."
    whole: dict[str, Any] = {"$ref": f"#/components/schemas/{source.name}"}
    if source.body == "json":
        about += " Any media type that ends in `+json` will do."
    elif source.body == "ndjson":
        about += " One JSON value a line: the schema is that of the list of all lines."
    elif source.payload_field is not None:
        inside = {"type": "string", "contentMediaType": "application/json", "contentSchema": whole}
        whole = {"type": "object", "properties": {source.payload_field: inside}, "required": [source.payload_field]}
    content: dict[str, Any] = {"schema": whole}
    examples = dict(_examples(source))
    if examples:
        content["examples"] = examples
    required = source.challenge is None or source.challenge.method != "POST"  # a handshake may have none
    return {"required": required, "description": about, "content": {media_type(source.body): content}}


def _examples(source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """Those of the source's examples that are meant to be sound."""
    for number, example in enumerate(source.examples, start=1):
        if example.invalid is not None:
            continue
        try:
            value = decode(source.body, example.body)
        except PayloadError:
            continue
        yield f"example-{number}", {"value": value}


def _whole_body(source: Source, body: Mapping[str, Any]) -> Mapping[str, Any]:
    if source.body == "ndjson":
        body = {"type": "array", **body}
    if source.challenge is None or source.challenge.method != "POST":
        return body
    return {"anyOf": [body, handshake_schema(source.challenge)]}


def _parameters(source: Source, signing: Signing) -> Iterator[dict[str, Any]]:
    text = {"type": "string"}
    headers, query = read_from_request(source)
    for name, about in signing.optional.items():
        yield {"in": "header", "name": name, "description": about, "schema": text}
    for name, about in headers.items():
        header = "-".join(word.capitalize() for word in name.split("_"))
        if header.lower() not in signing.headers | _ELSEWHERE:
            yield {"in": "header", "name": header, "description": about, "schema": text}
    for name, about in query.items():
        yield {"in": "query", "name": name, "description": about, "schema": text}
    if source.challenge is not None and source.challenge.method == "POST":
        yield from (one for one in _greeting(source.challenge) if one["name"] not in query)


def _handshake(source: Source, signing: Signing) -> dict[str, Any]:
    challenge = source.challenge
    assert challenge is not None  # noqa: S101 (its caller looked)
    return {
        "summary": f"The handshake of {source.name}.",
        "operationId": f"greet.{source.name}",
        "tags": [source.name],
        "parameters": list(_greeting(challenge)),
        "responses": {
            "200": handshake_answer(source),
            **problem_answers(400, 404, 405, 414, 417, 431, 501, 503, *([401] if challenge.signed else [])),
        },
        "security": signing.requirements if challenge.signed else [],
    }


def _greeting(challenge: Challenge) -> Iterator[dict[str, Any]]:
    for name in read_from_handshake(challenge):
        yield {"in": "query", "name": name, "description": "Of the handshake.", "schema": {"type": "string"}}


def _server_url(server: Server) -> str:
    if server.public_url:
        return server.public_url.rstrip("/")
    host, port = server.bind
    if host in {"", "0.0.0.0", "::"}:  # noqa: S104 (what is bound, not what is called)
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _name(schema: Any) -> str:
    made = schema if isinstance(schema, type) else type(schema)
    return str(made.__name__)


# --- the route: of all sources, kept for as long as the configuration stays the same, or of one with `?source=` ---

#: Properties of one document: some 250 bytes each, and seconds to build.
MAX_PROPERTIES = 20_000


def openapi_blueprint(settings: Callable[[], Settings]) -> Blueprint:
    """`GET /openapi.json` for today's settings. Thread-safe: two that meet both build the same."""
    routes = Blueprint("openapi", __name__)
    built: tuple[Settings, str] | None = None

    @routes.get("/openapi.json")
    def openapi() -> Response:
        nonlocal built
        today = settings()
        if (name := request.args.get("source")) is not None:
            if name not in today.sources:
                raise Refusal(404, "There is no such source.")
            return answer(to_json(build_document(replace(today, sources={name: today.sources[name]}))))
        kept = built
        if kept is None or kept[0] is not today:
            refuse_too_many(today)
            kept = built = (today, to_json(build_document(today)))
        return answer(kept[1])

    def answer(document: str) -> Response:
        return Response(document, content_type="application/json", headers={"Cache-Control": "no-store"})

    return routes


def refuse_too_many(settings: Settings) -> None:
    """Raise Refusal for a document that nobody could use, nor this process carry."""
    blocks = [block for source in settings.sources.values() for block in source.mappings]
    found = sum(len(block.properties) + (len(block.pairs.properties) if block.pairs else 0) for block in blocks)
    if found > MAX_PROPERTIES:
        raise Refusal(
            422,
            f"{len(settings.sources)} sources with {found} properties are more than one document holds "
            f"({MAX_PROPERTIES}): ask for one of them with ?source=NAME.",
        )
