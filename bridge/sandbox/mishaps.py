"""What a client sees of a fault: statuses and bodies as HubSpot, its edge, or a broken network gives them."""

from __future__ import annotations

from dataclasses import replace

import orjson

from bridge.sandbox.answers import (
    Answer,
    Wire,
    correlation_id,
    error,
    json_answer,
    missing_scopes,
    plain_error,
    rate_limited,
    unauthorized,
    validation_error,
)
from bridge.sandbox.faults import Fault

#: Seconds that HubSpot asks to wait during a data centre migration when a fault does not say [docs ERR].
MIGRATION_S = "2"

_MESSAGES = {
    "409": ("The record was changed by another request.", "CONFLICT"),
    "423": ("The resource is locked by another operation.", "LOCKED"),
    "477": ("This account is being migrated between data centers.", "MIGRATION_IN_PROGRESS"),
    "500": ("internal error", "INTERNAL_ERROR"),
    "502": ("Bad gateway", "BAD_GATEWAY"),
    "503": ("Service unavailable", "SERVICE_UNAVAILABLE"),
    "504": ("Gateway timeout", "GATEWAY_TIMEOUT"),
}

_PAGES = {
    "413": (413, "Request Entity Too Large"),
    "502-html": (502, "Bad Gateway"),
    "521": (521, "Web server is down"),
    "524": (524, "A timeout occurred"),
    "html": (200, "We will be back soon"),
}

_WIRES = {
    "timeout": Wire.HOLD,
    "reset": Wire.RESET,
    "answer-lost": Wire.RESET,
    "truncated": Wire.TRUNCATE,
    "drip": Wire.DRIP,
    "endless": Wire.ENDLESS,
}


def answer(fault: Fault, served: Answer | None, *, scope: str) -> Answer:
    """What the client gets: made from the fault alone, or `served` (the true answer, None when nothing was
    done) spoilt on its way.
    """
    kind = fault.kind
    if kind == "apply-late":
        return Answer(200, b"", wire=Wire.RESET if fault.reset else Wire.HOLD, hold_s=fault.hold_s)
    if kind in _WIRES:
        whole = served or json_answer(200, {"status": "COMPLETE", "results": []})
        return replace(whole, wire=_WIRES[kind], pace_s=fault.pace_s, hold_s=fault.hold_s)
    made = _made(fault, scope)
    if fault.retry_after is not None:
        made = replace(made, headers={**made.headers, "Retry-After": fault.retry_after})
    return made


def unfinished(fault: Fault, served: Answer) -> Answer:
    """A batch answer whose status says that HubSpot has not done, or will not do, all of it [spec PC-v3]."""
    body = orjson.loads(served.body)
    if "results" not in body:
        return served
    return replace(served, body=orjson.dumps({**body, "status": fault.kind.upper()}))


def _made(fault: Fault, scope: str) -> Answer:
    kind = fault.kind
    if kind in _PAGES:
        status, title = _PAGES[kind]
        page = f"<html><head><title>{status} {title}</title></head><body><h1>{title}</h1></body></html>"
        return Answer(status, page.encode(), {"Content-Type": "text/html"})
    if kind in _MESSAGES:
        message, category = _MESSAGES[kind]
        made = error(int(kind), message, category)
        return replace(made, headers={**made.headers, "Retry-After": MIGRATION_S}) if kind == "477" else made
    match kind:
        case "401":
            return unauthorized()
        case "403":
            return missing_scopes(scope)
        case "404":
            return plain_error(404)
        case "429":
            return rate_limited(fault.policy)
        case "429-text":  # the edge, not HubSpot: no correlation id [issue/forum]
            return Answer(429, b"error code: 1015", {"Content-Type": "text/plain"})
        case "redirect":
            return Answer(302, b"", {"Location": fault.location})
        case "whole-400":
            return validation_error("Invalid input (details will vary based on the error)")
        case "empty":
            return json_answer(200, {"status": "COMPLETE", "results": []})
        case "blank":
            return Answer(200, b"", {"x-hubspot-correlation-id": correlation_id()})
        case _:  # garbage
            return Answer(200, b'\x00\xff{"results": [', {"Content-Type": "application/json"})
