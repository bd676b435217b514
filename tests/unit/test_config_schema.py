"""The JSON Schema for editors says what the loader takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from bridge.config import json_schema
from bridge.config.source_schemas import FileSchema, SourceSchema


@pytest.fixture(scope="module", name="schema")
def built() -> dict[str, Any]:
    return json_schema()


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


def test_it_is_json_of_the_2020_12_dialect(schema: dict[str, Any]) -> None:
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_reference_resolves(schema: dict[str, Any]) -> None:
    refs = {node["$ref"] for node in nodes(schema) if isinstance(node.get("$ref"), str)}

    assert refs
    assert {ref.removeprefix("#/$defs/") for ref in refs} == set(schema["$defs"])


def test_it_has_the_keys_that_are_loaded(schema: dict[str, Any]) -> None:
    assert set(schema["properties"]) == set(FileSchema.names())
    assert set(schema["$defs"]["Source"]["properties"]) == set(SourceSchema.names())


def test_every_block_refuses_unknown_keys_and_every_key_is_described(schema: dict[str, Any]) -> None:
    blocks = [schema, *(block for name, block in schema["$defs"].items() if name != "Reference")]

    for block in blocks:
        assert block["additionalProperties"] is False
        assert block["description"]
        for key, property_ in block["properties"].items():
            assert property_.get("description"), key


@pytest.mark.parametrize(
    "block, key, default",
    [
        ("Crm", "batch_size", 100),
        ("Crm", "flush_interval", "500ms"),
        ("Crm", "base_url", "https://api.hubapi.com"),
        ("RateLimit", "per", "10s"),
        ("Journal", "max_size", "20GiB"),
        ("Journal", "retention", "7d"),
        ("Retry", "give_up_after", "1d"),
        ("Server", "bind", "0.0.0.0:8080"),
        ("Server", "drain_timeout", "25s"),
        ("Source", "object_type", "partner_clients"),
        ("Source", "events", "@"),
        ("Verify", "tolerance", "5m"),
        ("Verify", "algorithm", "sha256"),
        ("Property", "type", "string"),
        ("Property", "required", False),
    ],
)
def test_defaults_are_written_as_one_would_write_them(
    schema: dict[str, Any], block: str, key: str, default: object
) -> None:
    assert schema["$defs"][block]["properties"][key]["default"] == default


def test_choices_are_enums(schema: dict[str, Any]) -> None:
    schemes = schema["$defs"]["Verify"]["properties"]["scheme"]["anyOf"][0]["enum"]

    assert {"standard-webhooks", "hubspot-v3", "hmac", "none"} <= set(schemes)
    assert schema["$defs"]["Record"]["properties"]["on_unknown"]["anyOf"][0]["enum"] == ["park", "wait", "ignore"]


def test_a_scalar_may_be_a_reference_and_a_secret_must_be_one(schema: dict[str, Any]) -> None:
    reference = {"$ref": "#/$defs/Reference"}
    crm = schema["$defs"]["Crm"]["properties"]

    assert reference in crm["timeout"]["anyOf"]
    assert crm["token"]["$ref"] == reference["$ref"]
    assert schema["$defs"]["Verify"]["properties"]["secrets"]["items"] == reference


def test_a_property_may_be_an_expression_alone(schema: dict[str, Any]) -> None:
    forms = schema["$defs"]["Source"]["properties"]["properties"]["additionalProperties"]["anyOf"]

    assert {"type": "string", "minLength": 1} in forms
    assert {"$ref": "#/$defs/Property"} in forms


def test_units_are_patterns_that_take_the_defaults(schema: dict[str, Any]) -> None:
    """An editor marks `30 sec` and leaves `30s` alone."""
    patterned = [
        (node["default"], form["pattern"])
        for node in nodes(schema)
        if isinstance(node.get("default"), str)
        for form in node.get("anyOf", ())
        if "pattern" in form
    ]
    duration = schema["$defs"]["Crm"]["properties"]["timeout"]["anyOf"][0]["pattern"]

    assert len(patterned) > 8
    assert all(re.search(pattern, default) for default, pattern in patterned)
    assert re.search(duration, "1.5h")
    assert not re.search(duration, "30 sec")
