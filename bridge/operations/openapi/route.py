"""The route, and the document kept for as long as the configuration stays the same."""

from __future__ import annotations

from collections.abc import Callable

from flask import Blueprint, Response

from bridge.intake.payload import to_json
from bridge.operations.openapi.document import build_document
from bridge.settings import Settings


def openapi_blueprint(settings: Callable[[], Settings]) -> Blueprint:
    """`GET /openapi.json` for today's settings. Thread-safe: two that meet both build the same."""
    routes = Blueprint("openapi", __name__)
    built: tuple[Settings, str] | None = None

    @routes.get("/openapi.json")
    def openapi() -> Response:
        nonlocal built
        today = settings()
        kept = built
        if kept is None or kept[0] is not today:
            kept = built = (today, to_json(build_document(today)))
        return Response(kept[1], content_type="application/json", headers={"Cache-Control": "no-store"})

    return routes
