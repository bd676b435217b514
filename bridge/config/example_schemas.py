"""`examples:` of a source: a payload, and what is to become of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import urlencode

from marshmallow import ValidationError, validate

from bridge.config.blocks import Block, Complaints, Entries, Free, Items, Nested
from bridge.config.mapping_schemas import PROPERTY_NAME, PROPERTY_RULE, property_name
from bridge.config.scalars import Constant, Flag, Text, reason
from bridge.config.service_schemas import about
from bridge.config.surroundings import surroundings
from bridge.intake.capture import SavedRequest, read_saved
from bridge.settings import Example


class ExpectedSchema(Block):
    """One update that must come out."""

    makes = dict
    id = Constant(required=True, metadata=about("The record's id."))
    id_property = property_name(metadata=about("The property that holds the id."))
    object_type = Text(metadata=about("The object type."))
    properties = Entries(
        Constant(),
        pattern=PROPERTY_NAME,
        rule=PROPERTY_RULE,
        required=True,
        metadata=about("The properties, as HubSpot stores them."),
    )


class ExampleSchema(Block):
    """A sample that `check` maps, and what must come out."""

    makes = Example
    aliases: ClassVar[Mapping[str, str]] = {
        "expected": "expect",
        "body": "payload",
        "error": "invalid",
        "errors": "invalid",
    }
    payload = Free(metadata=about("The body; text stands for itself, anything else is sent as JSON."))
    file = Text(metadata=about("In place of `payload`: a file with the body, or one saved by `listen --save`."))
    headers = Entries(Constant(), metadata=about("Request headers that the mapping looks at."))
    expect = Items(Nested(ExpectedSchema), metadata=about("The updates that must come out."))
    ignored = Flag(validate=validate.Equal(True, error="is true or left out"), metadata=about("`when` must not match."))
    invalid = Entries(Constant(), metadata=about("Properties that must be found invalid, and why."))

    def relations(self, data: Mapping[str, Any], given: Mapping[str, Any]) -> Complaints:
        del data
        if ("payload" in given) == ("file" in given):
            yield (), "needs `payload` or `file`, one of the two"
        if len({"expect", "ignored", "invalid"} & set(given)) != 1:
            yield (), "needs exactly one of `expect`, `ignored: true` and `invalid`"

    def build(self, data: dict[str, Any]) -> Example:
        if "file" in data:
            request = _request(data["file"])
        else:
            request = SavedRequest(_body(data.get("payload")).encode("utf-8", "surrogatepass"), {})
        expect = data.get("expect")
        return Example(
            payload=request.body.decode("utf-8", "surrogateescape"),
            headers={**request.headers, **data.get("headers", {})},
            query=request.parameters,
            expect=None if expect is None else tuple(expect),
            ignored=data.get("ignored", False),
            invalid=data.get("invalid"),
        )


def _body(payload: Any) -> str:
    """The raw body that a sample stands for, in the form that its source reads."""
    if isinstance(payload, str):
        return payload
    body = surroundings.get().body
    if body == "ndjson" and isinstance(payload, list):
        return "\n".join(_json(line) for line in payload)
    if body.startswith("form"):
        field = body.partition(":")[2]
        if field:
            return urlencode({field: _json(payload)})
        if isinstance(payload, Mapping):
            return urlencode({key: "" if value is None else str(value) for key, value in payload.items()})
    return _json(payload)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValidationError({"payload": ["holds a number that JSON cannot carry"]}) from error


def _request(name: str) -> SavedRequest:
    """What a file holds: a bare body, or a request as `listen --save` writes it."""
    path = surroundings.get().folder / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValidationError({"file": [f"{path} cannot be read: {reason(error)}"]}) from error
    return read_saved(content) or SavedRequest(content, {})
