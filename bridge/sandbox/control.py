"""`/sandbox/…`: look into a sandbox of another process, and steer it. No authentication: bind to loopback.

GET  /sandbox                     {calls, statuses, applied, violations, records, dropped_calls}
GET  /sandbox/state               ?id_property=  → {object type: {id as addressed: {property: value}}}
GET  /sandbox/calls               ?after=SEQ&endpoint=update&inputs=false → {calls: […]}
GET  /sandbox/applied             ?after=SEQ&limit=10000 → {applied: […], last: SEQ}
GET  /sandbox/violations          → {violations: [{call, kind, detail}]}
GET  /sandbox/faults              → {next, always, rates}
POST /sandbox/faults              {clear: true, stop: [KIND], rates: {KIND: RATE},
                                   next: [{kind, times, …}], always: [{kind, …}]}, in this order
POST /sandbox/records             {object_type, ids, id_property, properties} adds; with
                                  archive: true archives; with merge_into: ID, silent: bool merges
POST /sandbox/properties          {object_type, name, type, options, unique, …} declares
POST /sandbox/behaviour           any field of Behaviour, beside limit and daily (null: none) and fold_case: ids that
                                  differ in letter case only are one record
POST /sandbox/tokens              {accept: […], revoke: […], expire: […], forbid: […], allow: […]}
POST /sandbox/reset               forgets records, logs, faults and used limits
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import orjson

from bridge.sandbox.answers import Answer, json_answer
from bridge.sandbox.batch import Behaviour
from bridge.sandbox.crm import Crm
from bridge.sandbox.faults import Fault
from bridge.sandbox.routes import Request

PREFIX = "/sandbox"
DEFAULT_APPLIED_LIMIT = 10_000


def answer(crm: Crm, request: Request) -> Answer:
    """Serve one `/sandbox` request: 400 with a `message` for what cannot be understood, 404 else."""
    handler = _HANDLERS.get((request.method, request.path.rstrip("/")))
    if handler is None:
        return json_answer(404, {"message": f"no {request.method} {request.path} in the sandbox"})
    try:
        body = orjson.loads(request.body) if request.body else {}
        if not isinstance(body, dict):
            return json_answer(400, {"message": "the body is not a JSON object"})
        return json_answer(200, handler(crm, {**request.query, **body}))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return json_answer(400, {"message": f"{type(error).__name__}: {error}"})


def _overview(crm: Crm, _asked: dict[str, Any]) -> Any:
    statuses = crm.ledger.counts()
    return {
        "calls": sum(statuses.values()),
        "statuses": statuses,
        "applied": crm.ledger.last_applied,
        "violations": len(crm.ledger.violations()),
        "records": {object_type: len(records) for object_type, records in crm.state().items()},
        "dropped_calls": crm.ledger.dropped_calls,
    }


def _calls(crm: Crm, asked: dict[str, Any]) -> Any:
    calls = crm.ledger.calls(asked.get("endpoint"), after=int(asked.get("after", 0)))
    with_inputs = asked.get("inputs") != "false"
    listed = []
    for call in calls:
        shown = {name: getattr(call, name) for name in _CALL_FIELDS}
        shown["inputs"] = [item._asdict() for item in call.inputs] if with_inputs else len(call.inputs)
        listed.append(shown)
    return {"calls": listed}


_CALL_FIELDS = (
    "seq", "endpoint", "path", "object_type", "started", "started_at", "ended", "status", "fault",
    "correlation_id",
)  # fmt: skip


def _applied(crm: Crm, asked: dict[str, Any]) -> Any:
    limit = int(asked.get("limit", DEFAULT_APPLIED_LIMIT))
    found = crm.ledger.applied(after=int(asked.get("after", 0)), limit=limit)
    return {"applied": [entry._asdict() for entry in found], "last": crm.ledger.last_applied}


def _faults(crm: Crm, asked: dict[str, Any]) -> Any:
    scripted = [
        (Fault.from_json({key: value for key, value in item.items() if key != "times"}), item.get("times", 1))
        for item in asked.get("next", ())
    ]
    standing = [Fault.from_json(item) for item in asked.get("always", ())]
    if asked.get("clear"):
        crm.faults.clear()
    for kind in asked.get("stop", ()):
        crm.faults.stop(kind)
    if "rates" in asked:
        crm.faults.set_rates({str(kind): float(rate) for kind, rate in asked["rates"].items()})
    for fault, times in scripted:
        crm.faults.next(fault, times=int(times))
    for fault in standing:
        crm.faults.always(fault)
    return crm.faults.as_json()


def _records(crm: Crm, asked: dict[str, Any]) -> Any:
    object_type, id_property = asked.get("object_type", "partner_clients"), asked.get("id_property", "")
    ids = [str(id_) for id_ in asked["ids"]]
    for id_ in ids:
        if asked.get("archive"):
            crm.records.archive(object_type, id_, id_property=id_property)
        elif "merge_into" in asked:
            into, silent = str(asked["merge_into"]), bool(asked.get("silent", True))
            crm.records.merge(object_type, id_, into, id_property=id_property, silent=silent)
        else:
            crm.records.add(object_type, id_, id_property=id_property, properties=asked.get("properties"))
    return {"records": len(ids)}


def _properties(crm: Crm, asked: dict[str, Any]) -> Any:
    more = {key: value for key, value in asked.items() if key not in {"object_type", "name", "type"}}
    more["options"] = tuple(more.get("options", ()))
    object_type = asked.get("object_type", "partner_clients")
    crm.define(object_type, asked["name"], asked.get("type", "string"), **more)
    return {"properties": sorted(crm.properties.table(object_type))}


def _behaviour(crm: Crm, asked: dict[str, Any]) -> Any:
    known = {item.name for item in fields(Behaviour)}
    unknown = set(asked) - known - {"limit", "daily", "fold_case"}
    if unknown:
        raise ValueError(f"no such behaviour: {', '.join(sorted(unknown))}")
    crm.limits.calls = asked.get("limit", crm.limits.calls)
    crm.limits.daily = asked.get("daily", crm.limits.daily)
    crm.records.fold_case = bool(asked.get("fold_case", crm.records.fold_case))
    for name in known & set(asked):
        setattr(crm.behaviour, name, asked[name])
    limits = {"limit": crm.limits.calls, "daily": crm.limits.daily}
    return {**asdict(crm.behaviour), **limits, "fold_case": crm.records.fold_case}


def _tokens(crm: Crm, asked: dict[str, Any]) -> Any:
    if "accept" in asked:
        crm.access.accept_only(*asked["accept"])
    crm.access.revoke(*asked.get("revoke", ()))
    for token in asked.get("expire", ()):
        crm.access.expire(token)
    crm.access.forbid(*asked.get("forbid", ()))
    crm.access.allow(*asked.get("allow", ()))
    return {}


def _reset(crm: Crm, _asked: dict[str, Any]) -> Any:
    crm.reset()
    return {}


_HANDLERS: dict[tuple[str, str], Callable[[Crm, dict[str, Any]], Any]] = {
    ("GET", PREFIX): _overview,
    ("GET", f"{PREFIX}/state"): lambda crm, asked: crm.state(id_property=asked.get("id_property")),
    ("GET", f"{PREFIX}/calls"): _calls,
    ("GET", f"{PREFIX}/applied"): _applied,
    ("GET", f"{PREFIX}/violations"): lambda crm, _: {
        "violations": [asdict(violation) for violation in crm.ledger.violations()]
    },
    ("GET", f"{PREFIX}/faults"): lambda crm, _: crm.faults.as_json(),
    ("POST", f"{PREFIX}/faults"): _faults,
    ("POST", f"{PREFIX}/records"): _records,
    ("POST", f"{PREFIX}/properties"): _properties,
    ("POST", f"{PREFIX}/behaviour"): _behaviour,
    ("POST", f"{PREFIX}/tokens"): _tokens,
    ("POST", f"{PREFIX}/reset"): _reset,
}
