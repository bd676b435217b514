"""The schemas of `/openapi.json` are true: whatever the mapping takes without a complaint fits them.

Held against random values for every kind of property, random events for conditions, and for every source of
every configuration against its examples and what becomes of them when random places change.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from marshmallow import Schema, ValidationError, fields, pre_load, validate

from bridge.errors import PayloadError
from bridge.intake.blocks import read_id
from bridge.intake.expressions import Frame, compile_expression
from bridge.intake.fields import TYPES, build_field
from bridge.intake.mapping import compile_source
from bridge.intake.payload import parse_json, to_json
from bridge.operations.openapi import build_document
from bridge.operations.openapi.payloads import bounds_of, own_shape
from bridge.operations.openapi.shapes import SHARED, JsonSchema, property_shape, record_id_shape
from bridge.settings import Property
from tests.awkward import AWKWARD, BODIES, LEAVES, changed
from tests.configurations import OwnClient, configurations, sources
from tests.examples import examples

MANY = settings(max_examples=examples(), deadline=None, suppress_health_check=list(HealthCheck))


def judge(schema: JsonSchema) -> Callable[[Any], bool]:
    """Whether values fit, as an independent validator finds."""
    validator = Draft202012Validator({"components": {"schemas": dict(SHARED)}, "allOf": [schema]})
    return lambda value: bool(validator.is_valid(value))


def parsed(value: Any) -> Any:
    """The value as it is when it arrives."""
    return parse_json(json.dumps(value).encode())


# --- one value ----------------------------------------------------------------------------------

KINDS = [
    *(Property("x", type=name) for name in TYPES),
    Property("x", required=True),
    Property("x", required=True, on_null="clear"),
    Property("x", format=("email",)),
    Property("x", type="number", scale="0.01"),
    Property("x", type="date", timezone="Europe/Madrid", on_null="clear"),
    Property("x", type="date", format=("%d/%m/%Y",)),
    Property("x", type="date", format=("%Y%m%d",)),
    Property("x", type="datetime", timezone="Europe/Madrid", required=True),
    Property(
        "x", type="enumeration", values={"Gold": "gold", "1": "one", "1.5": "half", "a/b (c)": "odd", "true": "t"}
    ),
    Property("x", type="enumeration", values={"Gold": "gold", "*": "bronze"}),
    Property("x", type="enumeration", values={"20261231": "a", "12.50": "b", str(2**70): "c"}, required=True),
    Property("x", type="bool", values={"on": "true", "1767323045": "false"}),
    Property("x", type="enumeration", multiple=True),
    Property("x", type="enumeration", multiple=True, values={"a": "x", "1": "y", "true": ""}),
    Property("x", type="enumeration", multiple=True, separator=",", values={"a": "x", "b": "y"}, required=True),
    Property("x", type="number", multiple=True),
]


@pytest.mark.hypothesis  # whose test stands within
@pytest.mark.parametrize("how", KINDS, ids=repr)
def test_every_value_that_a_property_takes_fits(how: Property) -> None:
    """All the awkward ones, alone and in lists, and random ones."""
    field, fits = build_field(how, None, ()), judge(property_shape("p", how))

    @MANY
    @given(LEAVES)
    def check(value: Any) -> None:
        try:
            field.deserialize(parsed(value))
        except ValidationError:
            return
        assert fits(value)

    for value in AWKWARD:
        check.hypothesis.inner_test(value)  # type: ignore[attr-defined]  # hypothesis puts it there
        check.hypothesis.inner_test([value, None])  # type: ignore[attr-defined]
    check()


@pytest.mark.parametrize(
    "how, misfits",
    [
        (Property("x"), [["a"], {"a": 1}]),
        (Property("x", required=True), [None, [], {}]),
        (Property("x", type="number"), ["1,5", "ten", True, [1]]),
        (Property("x", type="bool"), ["maybe", 2]),
        (Property("x", type="date"), [True, {}]),
        (Property("x", type="enumeration", values={"Gold": "gold"}), ["gold", "Platinum", 1]),
        (Property("x", type="enumeration", multiple=True, values={"a": "x"}), [["a", "b"], "b"]),
    ],
)
def test_what_a_property_never_takes_does_not_fit(how: Property, misfits: list[Any]) -> None:
    """The schemas say something."""
    fits = judge(property_shape("p", how))
    assert [value for value in misfits if fits(value)] == []


@pytest.mark.parametrize("digits", [True, False])
def test_every_record_id_fits(digits: bool) -> None:
    fits = judge(record_id_shape(digits=digits))
    for value in [*AWKWARD, "\ufeff7", " 7 ", "007", 7.0]:
        try:
            read_id(parsed(value), digits=digits)
        except ValueError:
            continue
        assert fits(value), value


# --- conditions ---------------------------------------------------------------------------------

EXACT = [
    "type == 'a'", "'a' == type", "type != 'a'", "deep.er == `1`", "flag == `true`", "list[1] == 'b'", "!flag", "flag",
    "deep.er", "deep", "type == 'a' && flag", "type == 'a' || type == 'b'", "!(type == 'a' || flag)",
    "n > `3`", "`3` >= n", "n < `1` || n >= `7`", "starts_with(type, 'a')", "flag && starts_with(type, 'a')",
    "flag || contains(type, 'b')", "contains(list, 'b')", "starts_with(type, 'a/b (')", "@.type == 'a'",
]  # fmt: skip
INEXACT = [
    "!starts_with(type, 'a')", "starts_with(type, 'a') || flag", "ends_with(type, 'a')", "_headers.x == 'a'",
    "type == 'a' && _headers.x == 'a'", "type == 'a' || _query.x == 'a'", "upper(type) == 'A'", "list[?@ == 'b']",
    "n > `1.5`", "type == other", "type == `null`", "length(list) > `1`", "!(type == 'a' && _root.x == 'b')",
]  # fmt: skip
EVENTS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["a", "b", "ab", "ba", "A", "a\n", "a/b (c", "", None, 1, ["a"], ["b"], {}]),
        "other": st.sampled_from(["a", None]),
        "flag": st.sampled_from([True, False, 0, 1, "", "x", [], {}, None]),
        "n": st.sampled_from([0, 1, 1.0, 3, 3.5, 7, "7", True, None]),
        "list": st.sampled_from([["a", "b"], ["b"], [], None, "b", ["a", None], {"b": 1}]),
        "deep": st.sampled_from([{"er": 1}, {"er": 1.0}, {"er": True}, {"er": "1"}, {"er": None}, {}, [], "er", None]),
    },
)


@pytest.mark.hypothesis  # whose test stands within
@pytest.mark.parametrize("condition", [*EXACT, *INEXACT])
def test_a_condition_lies_between_its_bounds(condition: str) -> None:
    """Wide fits whatever it holds for, narrow nothing else; most are both."""
    expression, bounds = compile_expression(condition, ()), bounds_of(condition)
    assert (bounds.wide == bounds.narrow) == (condition in EXACT)
    wide, narrow = judge(bounds.wide), judge(bounds.narrow)

    @MANY
    @given(EVENTS, st.sampled_from(["a", "b"]))
    def check(event: dict[str, Any], x: str) -> None:
        value = parsed(event)
        holds = expression.matches(value, Frame(root={"x": x}, headers={"x": x}, query={"x": x}))
        assert wide(event) or not holds
        assert holds or not narrow(event)

    check()


# --- whole payloads -----------------------------------------------------------------------------


@functools.cache
def document(label: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(to_json(build_document(configurations()[label])))
    return found


@functools.cache
def validator(key: str, what: str = "") -> Draft202012Validator:
    """For a source's body, or with ".event" one event."""
    label, _, name = key.partition(":")
    reference = {"$ref": f"#/components/schemas/{name}{what}"}
    return Draft202012Validator({"components": document(label)["components"], **reference})


@pytest.mark.parametrize("key", sorted(sources()))
def test_the_agreed_payloads_fit(key: str) -> None:
    """Every source has some, none of which the mapping complains of."""
    assert BODIES[key]
    for body, headers, query in BODIES[key]:
        compiled = compile_source(sources()[key][1], "https://hooks.example.com")
        mapped = compiled.map_body(parsed(body), headers=headers, query=query)
        assert key.startswith("partners:") or not mapped.invalid
        if not mapped.invalid:
            assert list(validator(key).iter_errors(body)) == []


@pytest.mark.hypothesis  # whose test stands within
@pytest.mark.parametrize("key", sorted(sources()))
def test_whatever_the_mapping_takes_fits(key: str) -> None:
    """Each event of which it complains of nothing, and each body that holds only such."""
    source = sources()[key][1]
    compiled = compile_source(source, "https://hooks.example.com")

    @MANY
    @given(changed(key))
    def check(case: tuple[Any, dict[str, str], dict[str, str]]) -> None:
        body, headers, query = case
        value = parsed(body)
        try:
            mapped = compiled.map_body(value, headers=headers, query=query)
        except PayloadError:
            return
        complaints = {index for index, _ in mapped.invalid}
        for index, event in enumerate(mapped.events):
            if index not in complaints:
                one = json.loads(event.payload)
                assert validator(key, ".event").is_valid(one), one
        if not complaints:
            assert validator(key).is_valid(body), body

    check()


def test_what_a_source_cannot_use_does_not_fit() -> None:
    """The schemas of whole payloads say something too."""
    body, _, _ = BODIES["init-standard-webhooks:acme"][0]
    good = body["data"]["client"]
    for spoiled in (
        {key: value for key, value in good.items() if key != "id"},
        {**good, "id": None},
        {**good, "arr_cents": "lots"},
        {**good, "active": "perhaps"},
        {**good, "name": ["Globex"]},
    ):
        event = {**body, "data": {"client": spoiled}}
        assert not validator("init-standard-webhooks:acme").is_valid(event)
        ignored = {**event, "type": "client.viewed"}
        assert validator("init-standard-webhooks:acme").is_valid(ignored)
    assert not validator("partners:erp").is_valid({"run": {}})
    assert not validator("everything:several").is_valid({"data": {"events": ["x"]}})


# --- own schemas --------------------------------------------------------------------------------


class Hooked(Schema):
    a = fields.Integer()

    @pre_load
    def unpack(self, data: Any, **_: Any) -> Any:
        return data.get("inside", data)


class Shouted(fields.Integer):
    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> int:
        return len(str(value))


class Odd(Schema):
    """What apispec alone would tell wrongly."""

    hooked = fields.Nested(Hooked)
    shouted = Shouted()
    choice = fields.Integer(validate=validate.OneOf([1, 2]))
    exact = fields.Decimal(validate=validate.Range(min=0))
    stamp = fields.DateTime(format="timestamp")
    pattern = fields.String(validate=validate.Regexp("[a-z]+\\Z", flags=2))
    again = fields.Nested("Odd", many=True)


@pytest.mark.hypothesis  # whose test stands within
@pytest.mark.parametrize("schema", [OwnClient(), Hooked(), Odd()], ids=lambda schema: type(schema).__name__)
def test_whatever_a_users_schema_loads_fits(schema: Schema) -> None:
    """marshmallow reads numbers from texts, and hooks and fields of one's own whatever they like."""
    fits = judge(own_shape(schema))
    names = [field.data_key or name for name, field in schema.load_fields.items()]
    more = st.sampled_from(
        [{"city": "c"}, {"city": "c", "x": 1}, {"a": "1"}, {"inside": {"a": 1}}, "ABC", "a1", "gold", 2]
    )

    @MANY
    @given(st.dictionaries(st.sampled_from([*names, "inside"]), LEAVES | more, max_size=6))
    @example({"number": 1, "name": "n", "seats": "5", "active": "on", "address": {"city": "c"}, "since": "2026-01-02"})
    @example(
        {"hooked": {"inside": {"a": 1}}, "shouted": [1], "choice": "1", "exact": "1.5", "stamp": 1, "pattern": "ABC"}
    )
    def check(event: dict[str, Any]) -> None:
        try:
            schema.load(parsed(event))
        except (ValidationError, ArithmeticError, AttributeError):
            return
        assert fits(event)

    check()


def test_a_users_schema_says_what_it_can() -> None:
    """Names, options, lengths, and what may not be missing."""
    shape = own_shape(OwnClient())
    assert not isinstance(shape, bool)
    assert set(shape["required"]) == {"name", "number"}
    assert shape["properties"]["tier"] == {"type": "string", "enum": ["gold", "silver"]}
    assert shape["properties"]["name"] == {"type": "string", "minLength": 1, "maxLength": 40}
    assert shape["properties"]["address"]["required"] == ["city"]
    assert shape["properties"]["choice"] == {}
