"""The sandbox CRM without its socket: its routes, its parts, and the order in which a request is judged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, NamedTuple

import orjson

from bridge.model import Clock, RecordKey, SystemClock
from bridge.sandbox import answers, faults
from bridge.sandbox.access import TOKEN_LIFETIME_S, Access, RateLimits
from bridge.sandbox.answers import Response
from bridge.sandbox.batch import BatchUpdate, Behaviour, Parsed, Player, parse
from bridge.sandbox.faults import Fault, FaultPlan
from bridge.sandbox.properties import Properties, PropertyDefinition
from bridge.sandbox.records import DEFAULT_MAX_INPUTS, Address, Call, Ledger, Record, Records, ViolationKind

# --- which request is which call of HubSpot's API ---

Endpoint = Literal["update", "read", "list", "get", "properties", "property", "token", "usage", "none"]

_VERSION = r"(?:v\d+|\d{4}-\d{2}(?:-beta)?)"
_OBJECTS = rf"/crm/(?:v\d+/objects|objects/{_VERSION})"
_ROUTES: tuple[tuple[str, re.Pattern[str], Endpoint], ...] = (
    ("POST", re.compile(r"/.+/([^/]+)/batch/update"), "update"),
    ("POST", re.compile(r"/.+/([^/]+)/batch/read"), "read"),
    ("POST", re.compile(rf"/oauth/{_VERSION}/token()"), "token"),
    ("GET", re.compile(rf"/crm/(?:v\d+/properties|properties/{_VERSION})/([^/]+)"), "properties"),
    ("GET", re.compile(rf"/crm/(?:v\d+/properties|properties/{_VERSION})/([^/]+)/([^/]+)"), "property"),
    ("GET", re.compile(r"/account-info/v3/api-usage/daily(?:/private-apps)?()"), "usage"),
    ("GET", re.compile(rf"{_OBJECTS}/([^/]+)"), "list"),
    ("GET", re.compile(rf"{_OBJECTS}/([^/]+)/[^/]+"), "get"),
)


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. Header names are in lower case; `connected` tells whether the client still waits."""

    method: str
    path: str
    body: bytes = b""
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    connected: Callable[[], bool] = lambda: True


class Route(NamedTuple):
    """What a path stands for; `status` is 200, or 404 or 405 (endpoint "none")."""

    endpoint: Endpoint
    object_type: str
    status: int = 200

    @property
    def right(self) -> str:
        return "write" if self.endpoint == "update" else "read"

    @property
    def scope(self) -> str:
        """The scope that the call needs [spec PC-v3]; none is named for the Properties API."""
        return f"crm.objects.{self.object_type.replace('_', '-')}.{self.right}"


def find(method: str, path: str) -> Route:
    """The route of a request.

    Any prefix is taken for the `api_path` of a batch call; create and upsert are not served, as they do not
    exist for partner_clients [spec PC-v3].
    """
    status = 404
    for wanted, pattern, endpoint in _ROUTES:
        match = pattern.fullmatch(path)
        if match is None:
            continue
        if method == wanted:
            return Route(endpoint, match.group(1))
        status = 405
    return Route("none", "", status)


# --- what the sandbox tells of itself over HubSpot's read endpoints ---

MAX_PAGE = 100  #: records a page of the list endpoint [docs]
MAX_READ = 100  #: inputs of batch/read [docs GUIDE]


def definitions(properties: Properties, object_type: str) -> Response:
    """`GET /crm/v3/properties/{objectType}` [spec PROP-v3]."""
    listed = [definition.as_json() for definition in properties.table(object_type).values()]
    return answers.json_answer(200, {"results": listed})


def definition(properties: Properties, object_type: str, name: str) -> Response:
    """`GET /crm/v3/properties/{objectType}/{propertyName}` [spec PROP-v3]."""
    known = properties.table(object_type).get(name)
    if known is None and properties.open_properties:
        known = PropertyDefinition(name)
    if known is None:
        return answers.json_answer(404, {"status": "error", "message": f"Property {name} does not exist"})
    return answers.json_answer(200, known.as_json())


def usage(limits: RateLimits) -> Response:
    """`GET /account-info/v3/api-usage/daily/private-apps` [docs]; `usageLimit` null: no limit is set."""
    result = {
        "name": "private-apps-api-calls-daily",
        "usageLimit": limits.daily,
        "currentUsage": limits.used_today,
        "fetchStatus": "SUCCESS",
    }
    return answers.json_answer(200, {"results": [result]})


def one(records: Records, object_type: str, id_: str, query: Mapping[str, str]) -> Response:
    """`GET /crm/v3/objects/{objectType}/{id}?idProperty=…&properties=a,b` [spec PC-v3]."""
    with records.lock:
        record = records.find(Address(object_type, query.get("idProperty", ""), id_))
        if record is None or record.archived:
            return answers.plain_error(404)
        return answers.json_answer(200, _shown(record, _names(query)))


def page(records: Records, object_type: str, query: Mapping[str, str]) -> Response:
    """`GET /crm/v3/objects/{objectType}?limit=…&after=…&properties=a,b`; unknown properties are ignored
    [spec PC-v3]. `after` is the number of records already listed.
    """
    limit, after = query.get("limit", "10"), query.get("after", "0")
    if not (limit.isdigit() and after.isdigit() and 0 < int(limit) <= MAX_PAGE):
        return answers.validation_error("limit and after are numbers, limit at most 100")
    start, size = int(after), int(limit)
    with records.lock:
        found = list(islice(records.of_type(object_type), start, start + size + 1))
        body: dict[str, Any] = {"results": [_shown(record, _names(query)) for record in found[:size]]}
    if len(found) > size:
        body["paging"] = {"next": {"after": str(start + size)}}
    return answers.json_answer(200, body)


def batch_read(records: Records, properties: Properties, call: Call, body: bytes) -> Response:
    """`POST …/batch/read`: `inputs[{id}]`, `properties[]`, top-level `idProperty` [spec OBJ-v3].

    Reads what was written or added; in an open world a record never addressed by an update is not found.
    """
    try:
        asked = orjson.loads(body)
        ids = [str(item["id"]) for item in asked["inputs"]]
        names = [str(name) for name in asked.get("properties", [])]
        id_property = str(asked.get("idProperty") or "")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return answers.validation_error("Invalid input JSON on line 1, column 1: inputs[].id is required")
    if len(ids) > MAX_READ:
        return answers.validation_error(f"The maximum number of inputs supported in a batch request is {MAX_READ}")
    if id_property and not properties.identifies(call.object_type, id_property):
        return answers.validation_error(
            f"Unable to perform read by non-unique {call.object_type} property {id_property}"
        )
    with records.lock:
        found = {id_: records.find(Address(call.object_type, id_property, id_)) for id_ in ids}
        present = {id_: record for id_, record in found.items() if record and not record.archived}
        results = [_shown(record, names) for record in present.values()]
    unknown = [id_ for id_ in found if id_ not in present]
    errors = [answers.not_found(call.object_type, unknown, ())] if unknown else []
    return answers.batch(results, errors, started=call.started_at, completed=call.started_at)


def _names(query: Mapping[str, str]) -> list[str]:
    return [name for name in query.get("properties", "").split(",") if name]


def _shown(record: Record, names: list[str]) -> dict[str, Any]:
    known = record.all_properties()
    shown = {name: known[name] for name in ("hs_object_id", "createdate", "lastmodifieddate")}
    return {
        "id": record.id,
        "properties": shown | {name: known[name] for name in names if name in known},
        "createdAt": record.created_at,
        "updatedAt": record.updated_at,
        "archived": False,
    }


class Exchange(NamedTuple):
    """An answer and the call it belongs to, which whoever sends the answer has to `ledger.finish`."""

    answer: Response
    call: Call


class Crm:
    """A CRM that honours HubSpot's batch-update contract. Thread-safe.

    `known` or `strict`: only these records, and those added later, exist; else see `Records`, also for
    `fold_case`. `open_properties`: see `Properties`. `limit`: calls in every rolling 10 s, `daily`: per
    day; None: no limit. `tokens`, `refresh_tokens`: the only good ones; None: any. `rates`: fault kind →
    share of the update calls. `seed`: of all chance. `max_log`: inputs kept in each log (see `Ledger`).

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
        on_call: Callable[[Call], Fault | Response | None] | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self.behaviour = behaviour or Behaviour()
        self.records = Records(known=known, strict=strict, fold_case=fold_case)
        self.properties = Properties(open_properties=open_properties)
        self.access = Access(
            tokens=tokens, refresh_tokens=refresh_tokens, token_lifetime_s=token_lifetime_s, clock=clock
        )
        self.limits = RateLimits(calls=limit, daily=daily, clock=clock)
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
        route = find(request.method, request.path)
        parsed = parse(request.body) if route.endpoint == "update" else Parsed()
        call = self.ledger.begin(
            route.endpoint, request.path, route.object_type, parsed.inputs, connected=request.connected
        )
        for kind, detail in parsed.breaches:
            self.ledger.violate(call, kind, detail)
        answer = self._answer(request, route, parsed, call)
        call.correlation_id = answer.headers.get("x-hubspot-correlation-id", "")
        return Exchange(answer, call)

    def _answer(self, request: Request, route: Route, parsed: Parsed, call: Call) -> Response:
        wanted = self.on_call(call) if self.on_call is not None else None
        if isinstance(wanted, Response):
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
            admission = self.limits.admit()
            headers = self.limits.headers(admission)
            if admission.policy:
                self.ledger.violate(call, ViolationKind.RATE_LIMITED, admission.policy)
                more = {"Retry-After": self.behaviour.retry_after} if self.behaviour.retry_after else {}
                return answers.rate_limited(admission.policy, {**headers, **more})
        fault = wanted or self.faults.pick(route.endpoint, [item.id for item in call.inputs])
        call.fault = fault.kind if fault is not None else None
        answer = self._served(request, route, parsed, call, fault)
        return replace(answer, headers={**headers, **answer.headers})

    def _served(self, request: Request, route: Route, parsed: Parsed, call: Call, fault: Fault | None) -> Response:
        if route.endpoint == "update":
            return self._player.play(call, parsed, fault, scope=route.scope)
        if fault is None:
            return self._read(request, route, call)
        served = self._read(request, route, call) if fault.applies else None
        return faults.answer(fault, served, scope=route.scope)

    def _read(self, request: Request, route: Route, call: Call) -> Response:
        match route.endpoint:
            case "token":
                return self.access.token(request.body)
            case "usage":
                return usage(self.limits)
            case "properties":
                return definitions(self.properties, route.object_type)
            case "property":
                return definition(self.properties, route.object_type, request.path.rsplit("/", 1)[1])
            case "read":
                return batch_read(self.records, self.properties, call, request.body)
            case "get":
                id_ = request.path.rsplit("/", 1)[1]
                return one(self.records, route.object_type, id_, request.query)
            case _:
                return page(self.records, route.object_type, request.query)


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
