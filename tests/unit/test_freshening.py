"""Payloads in the form in which their source sends them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.intake.decoding import decode
from bridge.intake.mapping import compile_source
from bridge.intake.payload import parse_json, to_json
from bridge.settings import Example, MappingBlock, OccurredAt, Property, Record, Source, Verify
from bridge.tryout.payloads import examples, wire

SOURCE = Source(
    "acme",
    Verify("none"),
    (MappingBlock(Record("client"), properties={"name": Property("name")}),),
    event_id="id",
    occurred_at=OccurredAt("at"),
)
LINES = dataclasses.replace(SOURCE, body="ndjson")
FIELDS = dataclasses.replace(SOURCE, body="form")
INSIDE = dataclasses.replace(SOURCE, body="form", payload_field="payload")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_a_json_payload_arrives_whole(value: Any) -> None:
    """Whatever it is, as a body, as lines, or inside a field."""
    content = to_json(value).encode()
    assert decode("json", wire(SOURCE, content)) == value
    assert decode("ndjson", wire(LINES, content)) == (value if isinstance(value, list) else [value])
    assert decode("form", wire(INSIDE, content), payload_field="payload") == value


@given(st.dictionaries(TEXTS, TEXTS | st.lists(TEXTS, min_size=2, max_size=3), min_size=1, max_size=4))
def test_an_object_becomes_a_form(fields: dict[str, str | list[str]]) -> None:
    """Lists are fields that are there several times."""
    assert decode("form", wire(FIELDS, to_json(fields).encode())) == fields


def test_values_of_a_form_are_texts() -> None:
    assert decode("form", wire(FIELDS, b'{"a": 1.50, "b": true, "c": null, "d": {"e": 1}}')) == {
        "a": "1.50",
        "b": "true",
        "c": "",
        "d": '{"e":1}',
    }


@pytest.mark.parametrize("source", [LINES, FIELDS, INSIDE])
@pytest.mark.parametrize("content", [b'{"a": 1}\n{"a": 2}', b"a=1&b=2", b"", b"\xff"])
def test_what_is_no_json_is_sent_as_it_is(source: Source, content: bytes) -> None:
    """It has its form already; or is an attempt at what will be refused."""
    assert wire(source, content) == content


@pytest.mark.parametrize("source", [SOURCE, LINES, FIELDS, INSIDE])
def test_each_example_is_an_event_of_its_own(source: Source) -> None:
    """In every form, where the event's id and time are plain paths."""
    payload = wire(source, b'{"id":"e1","at":"2026-01-02T03:04:05Z","client":"7","name":"A"}').decode()
    compiled = compile_source(dataclasses.replace(source, examples=(Example(payload, ignored=True),)))
    note, bodies = examples(compiled, 3)
    mapped = [compiled.map_body(compiled.decode(body)).events[0] for body in bodies]
    assert "a fresh event_id (id) and a fresh occurred_at (at)" in note
    assert len({event.id for event in mapped}) == 3
    assert all(parse_json(event.payload.encode())["at"] != "2026-01-02T03:04:05Z" for event in mapped)
