"""The sandbox CRM without its socket: its parts, and the order in which a request is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from bridge.model import Clock, RecordKey, SystemClock
from bridge.sandbox import answers, mishaps, reading, routes
from bridge.sandbox.access import TOKEN_LIFETIME_S, Access
from bridge.sandbox.answers import Answer
from bridge.sandbox.batch import BatchUpdate, Behaviour
from bridge.sandbox.definitions import Properties, PropertyDefinition
from bridge.sandbox.faults import Fault, FaultPlan
from bridge.sandbox.inputs import Parsed, parse
from bridge.sandbox.ledger import DEFAULT_MAX_INPUTS, Call, Ledger, ViolationKind
from bridge.sandbox.limits import Limits
from bridge.sandbox.playing import Player
from bridge.sandbox.records import Records
from bridge.sandbox.routes import Request, Route


class Exchange(NamedTuple):
    """An answer and the call it belongs to, which whoever sends the answer has to `ledger.finish`."""

    answer: Answer
    call: Call


class Crm:
    """A CRM that honours HubSpot's batch-update contract. Thread-safe.

    `known` or `strict`: only these records, and those added later, exist; else see `Records`, also for
    `fold_case`. `open_properties`: see `Properties`. `limit`: calls in every rolling 10 s, `daily`: per
    day; None: no limit. `tokens`, `refresh_tokens`: the only good ones; None: any. `rates`: fault kind →
    share of the update calls. `seed`: of all chance. `max_log`: inputs kept in each log (see `ledger`).

    The parts may be used and changed while it serves: `records, properties, access, limits, faults, ledger,
    behaviour`. `on_call` is asked first for each call and may block; the fault or whole answer that it
    returns is played instead of the planned.
    """

    def __init__(
        self,
        *,
        known: Iterable[RecordKey] | None = None,
        strict: bool = False,
        open_properties: bool = True,
        fold_case: bool = False,
        behaviour: Behaviour | None = None,
        limit: int | None = None,
        daily: int | None = None,
        tokens: Iterable[str] | None = None,
        refresh_tokens: Iterable[str] | None = None,
        token_lifetime_s: int = TOKEN_LIFETIME_S,
        rates: Mapping[str, float] | None = None,
        seed: int = 0,
        max_log: int = DEFAULT_MAX_INPUTS,
        clock: Clock | None = None,
        on_call: Callable[[Call], Fault | Answer | None] | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self.behaviour = behaviour or Behaviour()
        self.records = Records(known=known, strict=strict, fold_case=fold_case)
        self.properties = Properties(open_properties=open_properties)
        self.access = Access(
            tokens=tokens, refresh_tokens=refresh_tokens, token_lifetime_s=token_lifetime_s, clock=clock
        )
        self.limits = Limits(calls=limit, daily=daily, clock=clock)
        self.faults = FaultPlan(rates=rates, seed=seed)
        self.ledger = Ledger(max_inputs=max_log, clock=clock)
        self.on_call = on_call
        update = BatchUpdate(
            records=self.records,
            properties=self.properties,
            ledger=self.ledger,
            behaviour=self.behaviour,
            clock=clock,
            seed=seed,
        )
        self._player = Player(update=update, faults=self.faults, behaviour=self.behaviour)

    # --- what tests and people ask ----------------------------------------------------------------

    def define(self, object_type: str, name: str, type_: str = "string", **more: Any) -> None:
        """Declare a property; `more` are the other fields of `PropertyDefinition`. Raises ValueError for
        an unknown type, TypeError for an unknown field.
        """
        self.properties.define(object_type, PropertyDefinition(name, type_, **more))

    def state(self, *, id_property: str | None = None) -> dict[str, dict[str, dict[str, str]]]:
        """{object type: {id as it was addressed: {property: value}}}; see `Records.state`."""
        return self.records.state(id_property=id_property)

    def settle(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything that is to be applied late has been; False when the time was not enough."""
        return self._player.settle(timeout_s)

    def reset(self) -> None:
        """Forget records, logs, faults and used limits; definitions, tokens and behaviour stay."""
        self._player.cancel()
        self.records.clear()
        self.ledger.clear()
        self.faults.clear()
        self.limits.reset()

    def open(self) -> None:
        """Be ready to serve (again)."""
        self._player.reopen()

    def close(self) -> None:
        """End every latency, drop what was to be applied late."""
        self._player.close()

    # --- one request ------------------------------------------------------------------------------

    def handle(self, request: Request) -> Exchange:
        """Answer one request of the API. The caller finishes the call in the ledger."""
        route = routes.find(request.method, request.path)
        parsed = parse(request.body) if route.endpoint == "update" else Parsed()
        call = self.ledger.begin(
            route.endpoint, request.path, route.object_type, parsed.inputs, connected=request.connected
        )
        for kind, detail in parsed.breaches:
            self.ledger.violate(call, kind, detail)
        answer = self._answer(request, route, parsed, call)
        call.correlation_id = answer.headers.get("x-hubspot-correlation-id", "")
        return Exchange(answer, call)

    def _answer(self, request: Request, route: Route, parsed: Parsed, call: Call) -> Answer:
        wanted = self.on_call(call) if self.on_call is not None else None
        if isinstance(wanted, Answer):
            return wanted
        if route.status != 200:
            return answers.plain_error(route.status)
        if route.endpoint in {"update", "read"} and not _is_json(request):
            return answers.plain_error(415)
        headers: Mapping[str, str] = {}
        if route.endpoint != "token":
            target = "properties" if route.endpoint == "properties" else route.object_type
            refusal = self.access.refuse(request.headers, target, route.scope)
            if refusal is not None:
                return refusal
            verdict = self.limits.admit()
            headers = self.limits.headers(verdict)
            if verdict.policy:
                self.ledger.violate(call, ViolationKind.RATE_LIMITED, verdict.policy)
                more = {"Retry-After": self.behaviour.retry_after} if self.behaviour.retry_after else {}
                return answers.rate_limited(verdict.policy, {**headers, **more})
        fault = wanted or self.faults.pick(route.endpoint, [item.id for item in call.inputs])
        call.fault = fault.kind if fault is not None else None
        answer = self._served(request, route, parsed, call, fault)
        return replace(answer, headers={**headers, **answer.headers})

    def _served(self, request: Request, route: Route, parsed: Parsed, call: Call, fault: Fault | None) -> Answer:
        if route.endpoint == "update":
            return self._player.play(call, parsed, fault, scope=route.scope)
        if fault is None:
            return self._read(request, route, call)
        served = self._read(request, route, call) if fault.applies else None
        return mishaps.answer(fault, served, scope=route.scope)

    def _read(self, request: Request, route: Route, call: Call) -> Answer:
        match route.endpoint:
            case "token":
                return self.access.token(request.body)
            case "usage":
                return reading.usage(self.limits)
            case "properties":
                return reading.definitions(self.properties, route.object_type)
            case "property":
                return reading.definition(self.properties, route.object_type, request.path.rsplit("/", 1)[1])
            case "read":
                return reading.batch_read(self.records, self.properties, call, request.body)
            case "get":
                id_ = request.path.rsplit("/", 1)[1]
                return reading.one(self.records, route.object_type, id_, request.query)
            case _:
                return reading.page(self.records, route.object_type, request.query)


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
