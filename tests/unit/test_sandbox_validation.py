"""Which values the sandbox takes for which type."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.sandbox.properties import FIELD_TYPES, Properties, PropertyDefinition, check, merged

TIER = PropertyDefinition("p", "enumeration", options=("gold", "silver"))
LIST = PropertyDefinition("p", "enumeration", "checkbox", options=("a", "b", "c"))


def code(definition: PropertyDefinition, value: str) -> str | None:
    flaw = check(definition, value)
    return None if flaw is None else flaw.code


@pytest.mark.parametrize(
    "type_, value, expected",
    [
        ("string", "x" * 65_536, None),
        ("string", "x" * 65_537, "VALUE_TOO_LONG"),
        ("phone_number", "+34 600", None),
        ("number", "1.5", None),
        ("number", "-3", None),
        ("number", "1e5", None),  # mentioned for the number field type
        ("number", "1,5", "INVALID_INTEGER"),
        ("number", "1.2.3", "INVALID_INTEGER"),
        ("number", "NaN", "INVALID_INTEGER"),
        ("bool", "true", None),
        ("bool", "True", "INVALID_OPTION"),
        ("bool", "1", "INVALID_OPTION"),
        ("date", "2026-02-28", None),
        ("date", "2026-02-30", "INVALID_LONG"),
        ("date", "28/02/2026", "INVALID_LONG"),
        ("date", "1767225600000", None),  # 2026-01-01T00:00:00Z
        ("date", "1767225600001", "INVALID_DATE"),  # not midnight
        ("date", "2026-02-28T00:00:00Z", "INVALID_LONG"),
        ("datetime", "2026-02-28T10:00:00Z", None),
        ("datetime", "2026-02-28T10:00:00.123456Z", None),
        ("datetime", "2026-02-28T10:00:00+00:00", None),
        ("datetime", "2026-02-28T10:00:00+02:00", "INVALID_LONG"),  # UTC is asked for
        ("datetime", "2026-02-28T10:00:00", "INVALID_LONG"),
        ("datetime", "2026-02-30T10:00:00Z", "INVALID_LONG"),
        ("datetime", "1767225600123", None),
        ("datetime", "1767225600", "INVALID_DATE"),  # seconds by mistake
        ("json", "{}", "READ_ONLY_VALUE"),
    ],
)
def test_values_by_type(type_: str, value: str, expected: str | None) -> None:
    """Table of what is taken and the code of what is not."""
    assert expected == code(PropertyDefinition("p", type_), value)


@pytest.mark.parametrize(
    "definition, value, expected",
    [
        (TIER, "gold", None),
        (TIER, "Gold", "INVALID_OPTION"),  # the value, not the label
        (TIER, "gold;silver", "INVALID_OPTION"),
        (LIST, "a;b", None),
        (LIST, ";c", None),  # appends
        (LIST, "a; b", "INVALID_OPTION"),  # no spaces around semicolons
        (LIST, "a;;b", "INVALID_OPTION"),
        (PropertyDefinition("p", email=True), "a@b.example", None),
        (PropertyDefinition("p", email=True), "a@b", "INVALID_EMAIL"),
        (PropertyDefinition("p", "enumeration", owner=True), "1234", None),
        (PropertyDefinition("p", "enumeration", owner=True), "a@b.example", "INVALID_OWNER_ID"),
        (PropertyDefinition("p", calculated=True), "1", "READ_ONLY_VALUE"),
        (PropertyDefinition("p", read_only=True), "", "READ_ONLY_VALUE"),
    ],
)
def test_values_by_definition(definition: PropertyDefinition, value: str, expected: str | None) -> None:
    """Options, lists of them, e-mail addresses, owners, read-only properties."""
    assert expected == code(definition, value)


@pytest.mark.parametrize("type_", sorted(set(FIELD_TYPES) - {"json", "object_coordinates"}))
def test_the_empty_text_clears_any_property(type_: str) -> None:
    """Whatever its type."""
    assert code(PropertyDefinition("p", type_), "") is None


@given(st.sampled_from(sorted(FIELD_TYPES)), st.text())
def test_any_text_is_taken_or_refused(type_: str, value: str) -> None:
    """Never an exception, whatever is sent."""
    flaw = check(PropertyDefinition("p", type_), value)
    assert flaw is None or flaw.name == "p"


@pytest.mark.parametrize(
    "before, value, after",
    [("a", "b;c", "b;c"), ("a;b", ";b;c", "a;b;c"), ("", ";a", "a"), ("a", "", "")],
)
def test_appending_keeps_a_set(before: str, value: str, after: str) -> None:
    """Sending an append twice changes nothing more."""
    assert after == merged(LIST, before, value)
    assert after == merged(LIST, after, value)


def test_an_unknown_type_is_refused() -> None:
    """At construction, with the types there are."""
    with pytest.raises(ValueError, match="no property type 'text'"):
        PropertyDefinition("p", "text")


def test_definitions_can_be_added_and_retired() -> None:
    """Strict: a retired property is no id property and does not exist; open: it is a plain string's."""
    properties = Properties(open_properties=False)
    properties.define("things", PropertyDefinition("key", unique=True))
    assert properties.identifies("things", "key")
    assert "hs_object_id" in properties.table("things")
    properties.retire("things", "key")
    assert not properties.identifies("things", "key")
    properties.open_properties = True
    assert properties.identifies("things", "key")
    assert not properties.identifies("things", "hs_object_id")
