"""The JSON Schema of `bridge.yaml` for editors, derived by apispec from the schemas that load it.

What apispec knows of marshmallow's own fields it derives; what it cannot know of ours (units,
references, short forms, defaults that stand in `bridge.settings`) is added field by field.
"""

from __future__ import annotations

from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter

from bridge.config import scalars
from bridge.config.blocks import NO_DEFAULT, Entries, OneOrMore, Shorthand
from bridge.config.source_schemas import FileSchema, Patterns

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DEFINITIONS = "#/$defs/"

REFERENCE = {
    "description": "Where the value is to be had: a variable of the environment, or a file.",
    "oneOf": [
        {
            "type": "object",
            "properties": {
                "env": {"type": "string", "minLength": 1, "description": "Name of the variable."},
                "default": {
                    "type": ["string", "number", "boolean"],
                    "description": "What it is when the variable is not set.",
                },
            },
            "required": ["env"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {
                "file": {
                    "type": "string",
                    "minLength": 1,
                    "description": "Path, relative to the configuration file.",
                }
            },
            "required": ["file"],
            "additionalProperties": False,
        },
    ],
}

#: what our scalars take, where apispec's `string`, `integer` or `boolean` does not say it all
SHAPES: dict[type, dict[str, Any]] = {
    scalars.Text: {"type": ["string", "number"], "minLength": 1},
    scalars.Expression: {"type": "string", "minLength": 1},
    scalars.Affix: {"type": ["string", "number"]},
    scalars.Constant: {"type": ["string", "number", "boolean"]},
    scalars.Duration: {"type": "string", "pattern": scalars.DURATION_PATTERN, "examples": ["500ms", "30s", "24h"]},
    scalars.Size: {
        "type": ["string", "integer"],
        "pattern": scalars.SIZE_PATTERN,
        "exclusiveMinimum": 0,
        "examples": ["512KiB", "1MiB", "20GiB"],
    },
    scalars.Factor: {"type": ["number", "string"], "examples": [0.01]},
    scalars.Address: {
        "type": "string",
        "pattern": r"^(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]*):[0-9]{1,5}$",
        "examples": ["0.0.0.0:8080", "[::]:8080"],
    },
    scalars.Url: {"type": "string", "pattern": "^https?://"},
    scalars.Zone: {"type": "string", "examples": ["Europe/Madrid"]},
    scalars.Template: {"type": "string", "pattern": r"\{body\}", "examples": ["{timestamp}.{body}"]},
}  # fmt: skip


def build_schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of the whole file."""
    plugin = _Plugin(schema_name_resolver=_name)
    spec = APISpec(title="bridge.yaml", version="1", openapi_version="3.1.0", plugins=[plugin])
    spec.components.schema("File", schema=FileSchema)
    definitions = _rewritten(spec.to_dict()["components"]["schemas"])
    root = definitions.pop("File")
    return {
        "$schema": DIALECT,
        "$id": "urn:partner-bridge:bridge.yaml",
        "title": "bridge.yaml",
        **root,
        "patternProperties": {"^x-": {"description": "Free: may hold anchors for use elsewhere."}},
        "anyOf": [{"required": ["sources"]}, {"required": ["include"]}],
        "$defs": {"Reference": REFERENCE, **dict(sorted(definitions.items()))},
    }


class _Converter(OpenAPIConverter):
    """apispec's converter, with a block's docstring and its refusal of unknown keys."""

    def schema2jsonschema(self, schema: Any) -> dict[str, Any]:
        result: dict[str, Any] = super().schema2jsonschema(schema)  # type: ignore[no-untyped-call]  # apispec has no types here
        result["description"] = schema.about()
        result["additionalProperties"] = False
        return result


class _Plugin(MarshmallowPlugin):
    Converter = _Converter

    def init_spec(self, spec: APISpec) -> None:
        super().init_spec(spec)
        assert self.converter is not None  # noqa: S101 (set by init_spec)
        for function in (_defaults, _shapes, _descriptions):
            self.converter.add_attribute_function(function)  # type: ignore[no-untyped-call]  # nor here


def _name(schema: Any) -> str:
    made = schema if isinstance(schema, type) else type(schema)
    return made.__name__.removesuffix("Schema")


def _defaults(_converter: Any, field: Any, **_: Any) -> dict[str, Any]:
    """A key's default is the default of the settings it becomes."""
    default = field.metadata.get("usual")
    return {} if default in NO_DEFAULT else {"default": field._serialize(default, None, None)}  # noqa: SLF001 (as apispec reads its fields)


def _shapes(_converter: Any, field: Any, ret: dict[str, Any]) -> dict[str, Any]:
    """Our fields' own forms; every scalar may be a reference instead."""
    if isinstance(field, scalars.Credential):
        ret.pop("type", None)
        return {"$ref": f"{DEFINITIONS}Reference"}
    if isinstance(field, Shorthand):
        text = {"type": "string", "minLength": 1}
        return {"anyOf": [text, {"$ref": f"{DEFINITIONS}Reference"}, {"$ref": ret.pop("$ref")}]}
    if isinstance(field, Patterns):
        return {
            "anyOf": [{"type": "string"}, {"type": "array", "items": ret.pop("items")}],
            "type": ["string", "array"],
        }
    if isinstance(field, OneOrMore):
        ret.pop("type")
        return {"anyOf": [*(one := ret.pop("items"))["anyOf"], {"type": "array", "items": one}]}
    if isinstance(field, Entries) and field.pattern is not None:
        return {"propertyNames": {"pattern": f"^(?:{field.pattern.pattern})$"}}
    if isinstance(field, scalars.Scalar):
        about: dict[str, Any] = {key: ret.pop(key) for key in ("description", "default") if key in ret}
        plain: dict[str, Any] = dict(ret)
        plain.update(next((SHAPES[made] for made in type(field).__mro__ if made in SHAPES), {}))
        if isinstance(field, scalars.Choice):
            plain = {"enum": list(field.choices)}
        if isinstance(plain.get("pattern"), str):
            plain["pattern"] = _anchored(plain["pattern"])
        ret.clear()
        return {"anyOf": [plain, {"$ref": f"{DEFINITIONS}Reference"}], **about}
    return {}


def _descriptions(_converter: Any, field: Any, **_: Any) -> dict[str, Any]:
    """What apispec drops beside a `$ref`; JSON Schema 2020-12 allows it there."""
    about = field.metadata.get("description")
    return {"description": about} if about else {}


def _anchored(pattern: str) -> str:
    """Python's end of text as JSON Schema writes it; its patterns are not anchored by themselves."""
    if pattern.endswith(r"\Z"):
        return f"^(?:{pattern.removesuffix(chr(92) + 'Z')})$"
    return pattern


def _rewritten(value: Any) -> Any:
    """OpenAPI's places of definitions as JSON Schema's."""
    if isinstance(value, dict):
        return {key: _rewritten(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rewritten(inner) for inner in value]
    if isinstance(value, str):
        return value.replace("#/components/schemas/", DEFINITIONS)
    return value
