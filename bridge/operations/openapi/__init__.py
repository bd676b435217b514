"""`GET /openapi.json`: the webhook API as OpenAPI 3.1, to hand to partners; all of it derived from the settings."""

from __future__ import annotations

from bridge.operations.openapi.document import build_document, openapi_blueprint

__all__ = ["build_document", "openapi_blueprint"]
