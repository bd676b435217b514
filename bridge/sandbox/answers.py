"""The bodies that HubSpot answers with, and an answer as the server puts it on the wire."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import orjson

from bridge import showing
from bridge.model import to_us
from bridge.sandbox.properties import Flaw

JSON = "application/json;charset=utf-8"

#: Where a refused input's properties are named: in the JSON inside `message` (as captured, [docs ERR]), in
#: `context.propertyName`, in both, or nowhere; "words": the sentence alone, which quotes the value raw [unverified].
Naming = Literal["both", "message", "context", "words", "none"]


class Wire(Enum):
    """How an answer travels."""

    PLAIN = "plain"
    RESET = "reset"  # no byte; the connection is reset
    HOLD = "hold"  # no byte; the connection stays open until the client leaves or `hold_s` is over
    TRUNCATE = "truncate"  # half of the body, then the connection is closed
    DRIP = "drip"  # byte by byte, `pace_s` apart
    ENDLESS = "endless"  # the body, then spaces without end, chunked


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    wire: Wire = Wire.PLAIN
    pace_s: float = 0.0
    hold_s: float = 0.0

    @property
    def is_silent(self) -> bool:
        """Whether the client gets no status at all."""
        return self.wire in {Wire.RESET, Wire.HOLD}


def iso(seconds: float) -> str:
    """Seconds since the epoch as HubSpot writes times."""
    return str(showing.iso(to_us(seconds)))


def correlation_id() -> str:
    return str(uuid.uuid4())


def json_answer(status: int, body: Any, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer; its correlation id header is equal to the body's [issue/forum]."""
    known = body.get("correlationId") if isinstance(body, dict) else None
    all_headers = {"Content-Type": JSON, "x-hubspot-correlation-id": known or correlation_id()}
    return Response(status, orjson.dumps(body), {**all_headers, **(headers or {})})


def error(status: int, message: str, category: str, **more: Any) -> Response:
    """The standard error body [spec PC-v3 `Error`]."""
    body = {"status": "error", "message": message, "correlationId": correlation_id(), **more}
    return json_answer(status, {**body, "category": category})


def validation_error(message: str, **more: Any) -> Response:
    """The 400 for a whole call."""
    return error(400, message, "VALIDATION_ERROR", **more)


def plain_error(status: int) -> Response:
    """The error body without a category, as for a path or a method that does not exist."""
    message = {404: "Resource not found", 405: "Method not allowed", 415: "Unsupported Media Type"}
    body = {"status": "error", "message": message[status], "correlationId": correlation_id()}
    return json_answer(status, body)


def rate_limited(policy: str, headers: Mapping[str, str] | None = None) -> Response:
    """The 429 body: `errorType`, not `category` [docs LIMITS; issue/forum HubSpot/hubspot-api-python#117]."""
    limit = "daily limit" if policy == "DAILY" else f"{policy.lower()} limit"
    body = {
        "status": "error",
        "message": f"You have reached your {limit}.",
        "errorType": "RATE_LIMIT",
        "correlationId": correlation_id(),
        "policyName": policy,
    }
    if policy == "DAILY":
        body["requestId"] = correlation_id()
    else:
        body["groupName"] = f"publicapi:private-app-api-calls-{policy.lower().replace('_', '-')}:1"
    return json_answer(429, body, headers)


def unauthorized(expired_at: float | None = None, now: float = 0.0) -> Response:
    """The 401 bodies: unknown token [issue/forum RUDDER], expired one [issue/forum airbytehq/airbyte#74726]."""
    if expired_at is None:
        message = (
            "Authentication credentials not found. This API supports OAuth 2.0 authentication and you can "
            "find more details at https://developers.hubspot.com/docs/methods/auth/oauth-overview"
        )
        return error(401, message, "INVALID_AUTHENTICATION")
    message = f"The OAuth token used to make this call expired {max(0, int(now - expired_at))} second(s) ago."
    return error(401, message, "EXPIRED_AUTHENTICATION", context={"expire time": [iso(expired_at)]})


def missing_scopes(scope: str) -> Response:
    """The 403 body [docs GUIDE]."""
    return error(
        403,
        "This app hasn't been granted all required scopes to make this call. Read more about required "
        "scopes here: https://developers.hubspot.com/scopes.",
        "MISSING_SCOPES",
        errors=[
            {
                "message": "One or more of the following scopes are required.",
                "context": {"requiredGranularScopes": [scope]},
            }
        ],
        links={"scopes": "https://developers.hubspot.com/scopes"},
    )


def flaws_message(flaws: Sequence[Flaw]) -> str:
    """The sentence with JSON inside [issue/forum AMP; docs ERR]."""
    listed = [
        {
            "isValid": False,
            "message": flaw.message,
            "error": flaw.code,
            "name": flaw.name,
            "propertyValue": flaw.value,
            "localizedErrorMessage": flaw.message,
            "portalId": 1,
        }
        for flaw in flaws
    ]
    return f"Property values were not valid: {orjson.dumps(listed).decode()}"


def flawed_call(flaws: Sequence[Flaw], naming: Naming) -> Response:
    """The 400 for a whole call: it names properties, not inputs, repeats them per input, and `errors` may
    be incomplete (one is left out of four) [issue/forum AMP `err-many-invalid-properties.json`].
    """
    if naming == "none":
        return validation_error("Property values were not valid")
    if naming == "words":
        return validation_error(flaws[0].message)
    told = flaws if len(flaws) < 4 else flaws[:-1]
    errors = [{"message": flaw.message, "code": flaw.code, "context": {"propertyName": [flaw.name]}} for flaw in told]
    if naming == "message":
        return validation_error(flaws_message(flaws))
    message = flaws_message(flaws) if naming == "both" else "Property values were not valid"
    return validation_error(message, errors=errors)


def flawed_input(trace_id: str, flaws: Sequence[Flaw], naming: Naming) -> dict[str, Any]:
    """One entry of a 207's `errors` [docs ERR]."""
    context = {"objectWriteTraceId": [trace_id]}
    if naming in {"both", "context"}:
        context["propertyName"] = list(dict.fromkeys(flaw.name for flaw in flaws))
    messages = {"both": flaws_message(flaws), "message": flaws_message(flaws), "words": flaws[0].message}
    return {
        "status": "error",
        "category": "VALIDATION_ERROR",
        "message": messages.get(naming, "Property values were not valid"),
        "context": context,
    }


def not_found(object_type: str, ids: Sequence[str], trace_ids: Sequence[str]) -> dict[str, Any]:
    """The one entry for all unknown ids of a call [issue/forum AMP, RUDDER]."""
    context = {"ids": list(ids)}
    if trace_ids:
        context["objectWriteTraceId"] = list(trace_ids)
    return {
        "status": "error",
        "category": "OBJECT_NOT_FOUND",
        "message": f"Could not get some {object_type.upper().removesuffix('S')} objects, they may be deleted "
        "or not exist. Check that ids are valid.",
        "context": context,
    }


def batch(
    results: Sequence[Any],
    errors: Sequence[Any],
    *,
    started: float,
    completed: float,
    status: str = "COMPLETE",
) -> Response:
    """The 200 or 207 of a batch call [spec PC-v3; issue/forum AMP]."""
    body: dict[str, Any] = {
        "completedAt": iso(completed),
        "status": status,
        "startedAt": iso(started),
        "results": results,
    }
    if errors:
        body |= {"errors": errors, "numErrors": len(errors)}
    return json_answer(207 if errors else 200, body)
