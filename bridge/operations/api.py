"""The HTTP of health, metrics and status: two paths on the public port, all of them on the admin port."""

from __future__ import annotations

import orjson
from flask import Blueprint, Response

from bridge.operations.health import Probed, Verdict, Vitals
from bridge.operations.metrics import Metrics

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

    @routes.get("/status")
    def status() -> Response:
        return Response(orjson.dumps(vitals.status(), option=orjson.OPT_INDENT_2), content_type="application/json")

    return routes
