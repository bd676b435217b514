"""Nothing is cleared by accident: what absent, null and blank do, for every type.

`TABLE` is the table that the README prints; `readme_table()` is its text.
"""

from __future__ import annotations

from typing import Any, get_args

import pytest

from bridge.intake.fields import TYPES
from bridge.intake.mapping import compile_source
from bridge.settings import MappingBlock, Property, PropertyType, Record, Source, Verify

LEFT_OUT, CLEARED, INVALID = "left out", "cleared", "invalid"

OPTIONS: dict[str, dict[str, Any]] = {
    "(default)": {},
    "`on_null: clear`": {"on_null": "clear"},
    "`required: true`": {"required": True},
    "both": {"on_null": "clear", "required": True},
}

#: what the payload has → what becomes of the property, by options
TABLE: dict[str, dict[str, str]] = {
    "no such key": dict(zip(OPTIONS, (LEFT_OUT, LEFT_OUT, INVALID, INVALID), strict=True)),
    "null": dict(zip(OPTIONS, (LEFT_OUT, CLEARED, INVALID, CLEARED), strict=True)),
    "blank text": dict(zip(OPTIONS, (LEFT_OUT, CLEARED, INVALID, CLEARED), strict=True)),
    "an empty list": dict(zip(OPTIONS, (LEFT_OUT, CLEARED, INVALID, CLEARED), strict=True)),
}

EVENTS: dict[str, list[dict[str, Any]]] = {
    "no such key": [{}, {"a": None}, {"a": {}}, {"a": "text"}, {"a": [{"b": 1}]}],
    "null": [{"a": {"b": None}}],
    "blank text": [{"a": {"b": ""}}, {"a": {"b": " \t\n"}}, {"a": {"b": "\u00a0"}}],
    "an empty list": [{"a": {"b": []}}],
}


def readme_table() -> str:
    """The table as Markdown."""
    lines = ["| the payload has | " + " | ".join(OPTIONS) + " |", "| --- " * (len(OPTIONS) + 1) + "|"]
    lines += ["| " + " | ".join([given, *outcomes.values()]) + " |" for given, outcomes in TABLE.items()]
    return "\n".join(lines)


def outcome(how: Property, event: dict[str, Any]) -> str:
    block = MappingBlock(Record("'7'", "acme_id"), properties={"p": how, "other": Property(constant="x")})
    mapped = compile_source(Source("acme", Verify("none"), (block,))).map_body(event)
    update = mapped.events[0].updates[0]
    if "p" in update.invalid:
        assert "p" not in update.properties
        assert mapped.invalid == [(0, dict(update.invalid))]
        return INVALID
    assert not mapped.invalid
    return {None: LEFT_OUT, "": CLEARED}[update.properties.get("p")]


@pytest.mark.parametrize("type_", get_args(PropertyType))
@pytest.mark.parametrize("given", EVENTS)
@pytest.mark.parametrize("options", OPTIONS)
def test_every_type_keeps_to_the_table(type_: PropertyType, given: str, options: str) -> None:
    """One table for all types, with and without `values:`."""
    for values in (None, {"*": next(iter(TYPES[type_].takes.values()))}):
        how = Property("a.b", type=type_, values=values, **OPTIONS[options])
        for event in EVENTS[given]:
            assert outcome(how, event) == TABLE[given][options], event


@pytest.mark.parametrize("options", OPTIONS)
def test_lists_of_blanks_count_as_empty(options: str) -> None:
    """With `multiple`, elements that say nothing are passed over."""
    how = Property("a.b", type="enumeration", multiple=True, separator=",", **OPTIONS[options])
    for value in ([None, "", "  "], " , ,"):
        assert outcome(how, {"a": {"b": value}}) == TABLE["an empty list"][options]


@pytest.mark.parametrize("options", OPTIONS)
def test_for_other_expressions_null_means_absent(options: str) -> None:
    """Nobody can see whether a key was there; blank text is still what the partner sent."""
    events: list[dict[str, Any]] = [{}, {"a": {"b": None}}, {"a": {"b": []}}]
    for event in events:
        assert outcome(Property("a.b || c", **OPTIONS[options]), event) == TABLE["no such key"][options]
        assert outcome(Property("a.b[?x]", **OPTIONS[options]), event) == TABLE["no such key"][options]
    blank = outcome(Property("trim(a.b)", **OPTIONS[options]), {"a": {"b": "  "}})
    assert blank == TABLE["blank text"][options]


def test_the_readme_table_has_a_line_for_each_case() -> None:
    """It can be pasted as it is."""
    assert len(readme_table().splitlines()) == len(TABLE) + 2
