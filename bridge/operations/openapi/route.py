"""The route: of all sources, kept for as long as the configuration stays the same, or of one with `?source=`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from flask import Blueprint, Response, request

from bridge.intake.payload import to_json
from bridge.intake.problems import Refusal
from bridge.operations.openapi.document import build_document
from bridge.settings import Settings

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
