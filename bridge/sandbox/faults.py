"""Trouble on demand, and what a client sees of it."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import orjson

from bridge.sandbox.answers import (
    Response,
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

#: kind → (what the client sees, whether the update is applied all the same unless the fault says)
KINDS: dict[str, tuple[str, bool]] = {
    "401": ("unknown token", False),
    "403": ("missing scopes", False),
    "404": ("no such path", False),
    "409": ("conflict", False),
    "413": ("body too large", False),
    "423": ("locked, for 2 s", False),
    "429": ("rate limit; policy: TEN_SECONDLY_ROLLING, SECONDLY or DAILY", False),
    "429-text": ("rate limit of the edge, plain text", False),
    "477": ("account is migrating; Retry-After", False),
    "500": ("internal error", False),
    "502": ("processing limits hit", False),
    "502-html": ("the proxy's HTML page", False),
    "503": ("temporarily unavailable", False),
    "504": ("processing limits hit", False),
    "521": ("web server is down, HTML", False),
    "524": ("no answer within 100 s, HTML", False),
    "redirect": ("302 to `location`", False),
    "whole-400": ("a 400 that names neither input nor property", False),
    "timeout": ("silence for hold_s, then a reset", False),
    "reset": ("connection reset", False),
    "garbage": ("200 with bytes that are no JSON", False),
    "html": ("200 with an HTML page", False),
    "blank": ("200 with no body", False),
    "empty": ("200 with neither results nor errors", False),
    "pending": ("status PENDING; only `count` inputs are confirmed", False),
    "processing": ("status PROCESSING, likewise", False),
    "canceled": ("status CANCELED, likewise", False),
    "silent-drop": ("`count` inputs are left out of the answer and not written", True),
    "unknown": ("`count` inputs are answered OBJECT_NOT_FOUND", True),
    "truncated": ("half of the body", True),
    "drip": ("the body byte by byte, pace_s apart", True),
    "endless": ("a body that never ends", True),
    "answer-lost": ("applied, then the connection is reset", True),
    "apply-late": ("silence or a reset; applied after apply_after_s", True),
}

#: What a fault may hit: the endpoint of a call, or all of them.
TARGETS = ("update", "read", "list", "get", "properties", "token", "usage", "any")


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of trouble with its parameters; what a kind does not use is ignored.

    `on`: the endpoint it hits (`TARGETS`). `ids`: it hits only calls that contain one of these, and for
    silent-drop and unknown these very inputs; empty means any call and `count` inputs chosen at random.
    `apply`: whether the update is applied, None for the kind's default; `apply_after_s`: applied that long
    after arrival, whatever was answered. `reset`: apply-late resets rather than keeps silent.
    Raises ValueError for an unknown kind or target.
    """

    kind: str
    on: str = "update"
    ids: tuple[str, ...] = ()
    count: int = 1
    apply: bool | None = None
    apply_after_s: float | None = None
    reset: bool = False
    hold_s: float = 300.0
    pace_s: float = 0.1
    retry_after: str | None = None
    policy: str = "TEN_SECONDLY_ROLLING"
    location: str = "/elsewhere"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault kind {self.kind!r}; one of {', '.join(KINDS)}")
        if self.on not in TARGETS:
            raise ValueError(f"no fault target {self.on!r}; one of {', '.join(TARGETS)}")

    @property
    def applies(self) -> bool:
        """Whether the update takes effect although the client is not told so properly."""
        return KINDS[self.kind][1] if self.apply is None else self.apply

    def hits(self, endpoint: str, ids: Sequence[str]) -> bool:
        if self.on not in {endpoint, "any"}:
            return False
        return not self.ids or not set(self.ids).isdisjoint(ids)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Fault:
        """From the object of `POST /sandbox/faults`. Raises ValueError for an unknown key."""
        unknown = set(body) - {item.name for item in fields(cls)}
        if unknown or not isinstance(body.get("kind"), str):
            raise ValueError(f"a fault has a kind and {', '.join(item.name for item in fields(cls))}")
        return cls(**{**body, "ids": tuple(body.get("ids", ()))})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class FaultPlan:
    """Which call meets which fault. Thread-safe: `_lock` guards all that follows it.

    Asked once per call, in this order: the queue of scripted faults (each is used up by the first call it
    hits), those switched on, then chance: every update call meets a fault of `kind` with its rate.
    """

    def __init__(self, *, rates: Mapping[str, float] | None = None, seed: int = 0) -> None:
        self._lock = threading.Lock()
        self._random = random.Random(seed)  # noqa: S311 (repeatable, not secret)
        self._queue: deque[Fault] = deque()
        self._standing: list[Fault] = []
        self._rates: dict[str, float] = {}
        self.set_rates(rates or {})

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Replace the rates (0–1 of update calls). Raises ValueError for unknown kinds or a sum over 1."""
        for kind, rate in rates.items():
            Fault(kind)
            if not 0 <= rate <= 1:
                raise ValueError(f"the rate of {kind} is {rate}, not between 0 and 1")
        if sum(rates.values()) > 1 + 1e-9:
            raise ValueError("the rates add up to more than 1")
        with self._lock:
            self._rates = dict(rates)

    def next(self, fault: Fault | str, *, times: int = 1) -> None:
        """The next `times` calls that the fault hits meet it, after those queued before."""
        with self._lock:
            self._queue.extend([_fault(fault)] * times)

    def always(self, fault: Fault | str) -> None:
        """Every call that the fault hits meets it, until `stop` or `clear`."""
        with self._lock:
            self._standing.append(_fault(fault))

    def poison(self, *ids: str, kind: str = "500") -> None:
        """Every update call that contains one of these ids meets `kind`."""
        self.always(Fault(kind, ids=ids))

    def stop(self, kind: str) -> None:
        """Switch off the standing faults of a kind."""
        with self._lock:
            self._standing = [fault for fault in self._standing if fault.kind != kind]

    def clear(self) -> None:
        """End all faults."""
        with self._lock:
            self._queue.clear()
            self._standing.clear()
            self._rates.clear()

    def pick(self, endpoint: str, ids: Sequence[str]) -> Fault | None:
        """The fault that this call meets."""
        with self._lock:
            for place, fault in enumerate(self._queue):
                if fault.hits(endpoint, ids):
                    del self._queue[place]
                    return fault
            for fault in self._standing:
                if fault.hits(endpoint, ids):
                    return fault
            return self._by_chance() if self._rates and endpoint == "update" else None

    def choose(self, fault: Fault, ids: Sequence[str]) -> frozenset[int]:
        """The places of the inputs that a silent-drop or unknown concerns."""
        if fault.ids:
            return frozenset(place for place, id_ in enumerate(ids) if id_ in fault.ids)
        with self._lock:
            return frozenset(self._random.sample(range(len(ids)), min(fault.count, len(ids))))

    def as_json(self) -> dict[str, Any]:
        with self._lock:
            return {
                "next": [fault.as_json() for fault in self._queue],
                "always": [fault.as_json() for fault in self._standing],
                "rates": dict(self._rates),
            }

    def _by_chance(self) -> Fault | None:
        drawn = self._random.random()
        for kind, rate in self._rates.items():
            drawn -= rate
            if drawn < 0:
                return Fault(kind)
        return None


def _fault(fault: Fault | str) -> Fault:
    return Fault(fault) if isinstance(fault, str) else fault


# --- what a client sees of a fault: statuses and bodies as HubSpot, its edge, or a broken network gives them ---

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


def answer(fault: Fault, served: Response | None, *, scope: str) -> Response:
    """What the client gets: made from the fault alone, or `served` (the true answer, None when nothing was
    done) spoilt on its way.
    """
    kind = fault.kind
    if kind == "apply-late":
        return Response(200, b"", wire=Wire.RESET if fault.reset else Wire.HOLD, hold_s=fault.hold_s)
    if kind in _WIRES:
        whole = served or json_answer(200, {"status": "COMPLETE", "results": []})
        return replace(whole, wire=_WIRES[kind], pace_s=fault.pace_s, hold_s=fault.hold_s)
    made = _made(fault, scope)
    if fault.retry_after is not None:
        made = replace(made, headers={**made.headers, "Retry-After": fault.retry_after})
    return made


def unfinished(fault: Fault, served: Response) -> Response:
    """A batch answer whose status says that HubSpot has not done, or will not do, all of it [spec PC-v3]."""
    body = orjson.loads(served.body)
    if "results" not in body:
        return served
    return replace(served, body=orjson.dumps({**body, "status": fault.kind.upper()}))


def _made(fault: Fault, scope: str) -> Response:
    kind = fault.kind
    if kind in _PAGES:
        status, title = _PAGES[kind]
        page = f"<html><head><title>{status} {title}</title></head><body><h1>{title}</h1></body></html>"
        return Response(status, page.encode(), {"Content-Type": "text/html"})
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
            return Response(429, b"error code: 1015", {"Content-Type": "text/plain"})
        case "redirect":
            return Response(302, b"", {"Location": fault.location})
        case "whole-400":
            return validation_error("Invalid input (details will vary based on the error)")
        case "empty":
            return json_answer(200, {"status": "COMPLETE", "results": []})
        case "blank":
            return Response(200, b"", {"x-hubspot-correlation-id": correlation_id()})
        case _:  # garbage
            return Response(200, b'\x00\xff{"results": [', {"Content-Type": "application/json"})
