"""The HTTP of health, metrics and status: two paths on the public port, all of them on the admin port."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, g

from bridge.operations.access import STATUS
from bridge.operations.health import Probed, Verdict, Vitals
from bridge.operations.metrics import Metrics
from bridge.showing import printable_json

TEXT = "text/plain; charset=utf-8"
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


def health_blueprint(vitals: Probed, *, detail: bool) -> Blueprint:
    """`/livez` and `/readyz`; without `detail` the reason is not told (public port)."""
    routes = Blueprint("health", __name__)

    def answer(verdict: Verdict) -> Response:
        text = "ok" if verdict.ok else verdict.why if detail else "not ok"
        return Response(
            text + "\n", 200 if verdict.ok else 503, content_type=TEXT, headers={"Cache-Control": "no-store"}
        )

    @routes.get("/livez")
    def livez() -> Response:
        return answer(vitals.alive())

    @routes.get("/readyz")
    def readyz() -> Response:
        return answer(vitals.ready())

    return routes


def admin_blueprint(vitals: Vitals, metrics: Metrics) -> Blueprint:
    """`/metrics` and `/status`: what answers without the admin token."""
    routes = Blueprint("admin", __name__)

    @routes.get("/metrics")
    def exposition() -> Response:
        return Response(metrics.exposition(vitals.gauges), content_type=EXPOSITION)

    @routes.get(STATUS)
    def status() -> Response:
        document = vitals.status() if g.get("who") else for_anybody(vitals.status())
        return Response(printable_json(document, indented=True), content_type="application/json")

    return routes


def for_anybody(status: dict[str, Any]) -> dict[str, Any]:
    """The figures without what quotes a partner, the CRM or a person: reasons, counts and configured names are left."""
    return status | {"pauses": [pause | {"detail": None} for pause in status["pauses"]]}
