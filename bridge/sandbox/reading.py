"""What the sandbox tells of itself over HubSpot's read endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import orjson

from bridge.sandbox import answers
from bridge.sandbox.answers import Answer
from bridge.sandbox.definitions import Properties, PropertyDefinition
from bridge.sandbox.ledger import Call
from bridge.sandbox.limits import Limits
from bridge.sandbox.records import Address, Record, Records

MAX_PAGE = 100  #: records a page of the list endpoint [docs]
MAX_READ = 100  #: inputs of batch/read [docs GUIDE]


def definitions(properties: Properties, object_type: str) -> Answer:
    """`GET /crm/v3/properties/{objectType}` [spec PROP-v3]."""
    listed = [definition.as_json() for definition in properties.table(object_type).values()]
    return answers.json_answer(200, {"results": listed})


def definition(properties: Properties, object_type: str, name: str) -> Answer:
    """`GET /crm/v3/properties/{objectType}/{propertyName}` [spec PROP-v3]."""
    known = properties.table(object_type).get(name)
    if known is None and properties.open_properties:
        known = PropertyDefinition(name)
    if known is None:
        return answers.json_answer(404, {"status": "error", "message": f"Property {name} does not exist"})
    return answers.json_answer(200, known.as_json())


def usage(limits: Limits) -> Answer:
    """`GET /account-info/v3/api-usage/daily/private-apps` [docs]; `usageLimit` null: no limit is set."""
    result = {
        "name": "private-apps-api-calls-daily",
        "usageLimit": limits.daily,
        "currentUsage": limits.used_today,
        "fetchStatus": "SUCCESS",
    }
    return answers.json_answer(200, {"results": [result]})


def one(records: Records, object_type: str, id_: str, query: Mapping[str, str]) -> Answer:
    """`GET /crm/v3/objects/{objectType}/{id}?idProperty=…&properties=a,b` [spec PC-v3]."""
    with records.lock:
        record = records.find(Address(object_type, query.get("idProperty", ""), id_))
        if record is None or record.archived:
            return answers.plain_error(404)
        return answers.json_answer(200, _shown(record, _names(query)))


def page(records: Records, object_type: str, query: Mapping[str, str]) -> Answer:
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


def batch_read(records: Records, properties: Properties, call: Call, body: bytes) -> Answer:
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
