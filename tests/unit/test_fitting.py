"""What a mapping sends against what the portal's property is."""

from __future__ import annotations

import pytest

from bridge.config.portal import misfits
from bridge.crm.properties import Definition
from bridge.settings import Property

TEXT = Definition("p", "string", "textarea")
PHONE = Definition("p", "string", "phonenumber")
NUMBER = Definition("p", "number", "number")
BOOL = Definition("p", "bool", "booleancheckbox")
DATE = Definition("p", "date", "date")
DATETIME = Definition("p", "datetime", "date")
TIER = Definition("p", "enumeration", "select", options={"gold": "Gold tier", "silver": "Silver"})
PRODUCTS = Definition("p", "enumeration", "checkbox", options={"crm": "CRM", "cms": "CMS"})
CHECKBOX = Definition("p", "enumeration", "booleancheckbox", options={"true": "Yes", "false": "No"})
OWNER = Definition("p", "enumeration", "select", external=True)
NEW_KIND = Definition("p", "money", "money")


@pytest.mark.parametrize(
    "how, definition",
    [
        (Property("x"), TEXT),
        (Property("x"), PHONE),
        (Property("x", "phone_number"), PHONE),
        (Property("x"), Definition("p", "phone_number", "phonenumber")),
        (Property("x", "number"), NUMBER),
        (Property("x", "bool"), BOOL),
        (Property("x", "bool"), CHECKBOX),
        (Property("x", "date"), DATE),
        (Property("x", "datetime"), DATETIME),
        (Property("x", "enumeration"), TIER),
        (Property("x", "enumeration", multiple=True), PRODUCTS),
        (Property("x", "number"), OWNER),
        (Property("x"), OWNER),
        (Property("x", "number"), NEW_KIND),
        # all that is sent is known: the texts count, whatever the mapping's type
        (Property(constant="gold"), TIER),
        (Property(constant=""), TIER),
        (Property(constant="yes", type="bool"), BOOL),
        (Property(constant="12.5"), NUMBER),
        (Property(constant="2026-01-02"), DATE),
        (Property(constant="2026-01-02T03:04:05Z"), DATETIME),
        (Property(constant="1767322800000"), DATETIME),
        (Property(constant="crm;cms"), PRODUCTS),
        (Property(constant="77"), OWNER),
        (Property(constant="anything"), Definition("p", "enumeration", "select")),
        (Property("x", values={"a": "gold", "*": "silver", "none": ""}), TIER),
        (Property("x", "enumeration", values={"a": "crm"}, multiple=True), PRODUCTS),
        (Property("x", values={"a": "true", "*": "false"}), BOOL),
        (Property("x", "datetime", values={"a": "2026-01-02T03:04:05"}), DATETIME),
    ],
)
def test_what_fits(how: Property, definition: Definition) -> None:
    assert list(misfits(how, definition)) == []


@pytest.mark.parametrize(
    "how, definition, message",
    [
        (Property("x"), NUMBER, "string does not fit: p is a number (number) in the portal; write `type: number`"),
        (Property("x", "number"), TEXT, "number does not fit: p is a string (textarea) in the portal"),
        (Property("x", "date"), DATETIME, "date does not fit: p is a datetime (date) in the portal"),
        (Property("x", "datetime"), DATE, "write `type: date`"),
        (Property("x", "bool"), TIER, "bool does not fit: p is an enumeration (select) in the portal"),
        (Property("x"), TIER, "write `type: enumeration`"),
        (Property("x", "number"), PRODUCTS, "write `type: enumeration, multiple: true`"),
        (Property("x", "enumeration"), BOOL, "write `type: bool`"),
        (Property("x", "enumeration"), PRODUCTS, "p takes several options; write `multiple: true`"),
    ],
)
def test_the_wrong_type_is_told_at_type(how: Property, definition: Definition, message: str) -> None:
    ((keys, told),) = misfits(how, definition)
    assert keys == ("type",)
    assert message in told


def test_several_options_do_not_fit_where_one_is_taken() -> None:
    ((keys, told),) = misfits(Property("x", "enumeration", multiple=True), TIER)
    assert (keys, told) == (("multiple",), "p takes one option only; remove `multiple: true`")


@pytest.mark.parametrize(
    "constant, definition, message",
    [
        ("Gold tier", TIER, "p has no option 'Gold tier' in the portal; did you mean 'gold'?"),
        ("golden", TIER, "did you mean 'gold'?"),
        ("platinum", TIER, "p has no option 'platinum' in the portal; its options are gold, silver"),
        ("crm;sales", PRODUCTS, "p has no option 'sales'"),
        ("gold;silver", TIER, "p has no option 'gold;silver'"),
        ("yes", BOOL, "'yes' does not fit: p is a bool (booleancheckbox) in the portal"),
        ("12,5", NUMBER, "'12,5' does not fit: p is a number"),
        ("2.1.2026", DATE, "'2.1.2026' does not fit: p is a date"),
        ("soon", DATETIME, "'soon' does not fit: p is a datetime"),
    ],
)
def test_a_constant_that_the_portal_would_refuse(constant: str, definition: Definition, message: str) -> None:
    ((keys, told),) = misfits(Property(constant=constant), definition)
    assert keys == ("constant",)
    assert message in told


def test_each_target_that_does_not_exist_is_told_at_its_own_place() -> None:
    how = Property("x", "enumeration", values={"A": "gold", "B": "golden", "*": "Silver"})
    found = dict(misfits(how, TIER))
    assert found.keys() == {("values", "B"), ("values", "*")}
    assert "did you mean 'silver'?" in found["values", "*"]


def test_a_long_list_of_options_is_cut() -> None:
    many = Definition("p", "enumeration", "select", options={f"o{number}": "" for number in range(20)})
    ((_, told),) = misfits(Property(constant="zzz"), many)
    assert told.endswith("its options are o0, o1, o2, o3, o4, o5, o6, o7 and 12 more")
