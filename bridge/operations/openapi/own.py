"""A user's own marshmallow schema as JSON Schema: by apispec, made as lenient as marshmallow's `load` is.

marshmallow reads numbers and times from texts, and a hook or a custom field may take anything: what
apispec says of those would keep out what is taken, so they are widened or left open.
"""

from __future__ import annotations

import re
from typing import Any

from apispec import APISpec
from apispec.exceptions import APISpecError
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema, fields
from marshmallow.decorators import PRE_LOAD

from bridge.intake.own_schema import Schemas
from bridge.intake.schema_pool import SchemaError
from bridge.operations.openapi.shapes import JsonSchema

#: Fields that take just what apispec says of them.
_EXACT = frozenset(
    {fields.String, fields.Email, fields.Url, fields.UUID, fields.Enum, fields.Dict, fields.List, fields.Nested}
)
_NUMBER, _TIME = ["number", "string"], ["string", "number"]
#: Fields that read other JSON types too.
_LENIENT: dict[type, list[str]] = {
    fields.Integer: _NUMBER,
    fields.Float: _NUMBER,
    fields.Decimal: _NUMBER,
    fields.TimeDelta: _NUMBER,
    fields.Boolean: ["boolean", "number", "string"],
    fields.DateTime: _TIME,
    fields.NaiveDateTime: _TIME,
    fields.AwareDateTime: _TIME,
    fields.Date: _TIME,
    fields.Time: _TIME,
}
#: What of apispec's findings concerns loading.
_KEPT = frozenset(
    {
        "type", "format", "properties", "required", "items", "additionalProperties", "enum", "pattern", "anyOf",
        "minLength", "maxLength", "minItems", "maxItems",
    }
)  # fmt: skip
_PYTHON_ONLY = re.compile(r"\(\?|\\[AZ]")


def shape_of(name: str) -> JsonSchema:
    """The shape of the schema that a configuration names, told by a process of its own as its `load` is."""
    try:
        found: JsonSchema = Schemas().call(name, own_shape)
    except SchemaError:
        return True
    return found


def own_shape(schema: Schema) -> JsonSchema:
    """What `schema.load` takes, as far as it can be told without calling it."""
    if _reshapes(schema):
        return True
    plugin = MarshmallowPlugin(schema_name_resolver=lambda _schema: "")  # within, not beside
    APISpec(title="", version="", openapi_version="3.1.0", plugins=[plugin])
    assert plugin.converter is not None  # noqa: S101 (made with the spec)
    plugin.converter.add_attribute_function(_taken)  # type: ignore[no-untyped-call]  # apispec has no types here
    try:
        found: dict[str, Any] = plugin.converter.schema2jsonschema(schema)  # type: ignore[no-untyped-call]  # nor here
    except APISpecError:  # a schema that contains itself
        return True
    return found


def _reshapes(schema: Schema) -> bool:
    """Whether the input may be changed before its fields see it."""
    return bool(schema._hooks[PRE_LOAD]) or type(schema).load is not Schema.load  # noqa: SLF001 (as apispec reads it)


def _taken(_converter: Any, field: Any, ret: dict[str, Any]) -> dict[str, Any]:
    """What the field loads, in place of all that was found of it."""
    made = type(field)
    plain: dict[str, Any] = {}
    if field.dump_only or field.pre_load:
        pass
    elif made in _LENIENT:
        plain["type"] = [*_LENIENT[made], *(["null"] if field.allow_none else [])]
    elif made in _EXACT and not (made is fields.Enum and field.by_value) and not _hides(field):
        plain = {key: value for key, value in ret.items() if key in _KEPT}
        if not all(value is None or isinstance(value, str) for value in plain.get("enum", ())):
            del plain["enum"]
        if "pattern" in plain and not all(map(_is_portable, field.validators)):
            del plain["pattern"]
    about = {key: str(ret[key]) for key in ("title", "description") if key in ret}
    ret.clear()
    return plain | about


def _hides(field: Any) -> bool:
    """Whether a nested schema takes more than it says."""
    return isinstance(field, fields.Nested) and (_reshapes(field.schema) or field.unknown is not None)


def _is_portable(validator: Any) -> bool:
    """Whether the pattern that a validator has, if any, means the same outside Python."""
    regex = getattr(validator, "regex", None)
    if not isinstance(regex, re.Pattern):
        return True
    return not (regex.flags & ~re.UNICODE or _PYTHON_ONLY.search(str(regex.pattern)))
