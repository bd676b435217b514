"""What a mapping leaves out is told with the path that found nothing, and counted for each property."""

from __future__ import annotations

from typing import Any

import pytest

from bridge.intake.mapping import CompiledSource, Mapped, compile_source
from bridge.settings import MappingBlock, Pairs, Property, Record, Source, Verify
from bridge.tryout.dry_run import report

RECORD = Record("id", "acme_id")


def compiled(*blocks: MappingBlock, **changes: Any) -> CompiledSource:
    return compile_source(Source("acme", Verify("none"), blocks, **changes))


def mapped(source: CompiledSource, *events: dict[str, Any]) -> Mapped:
    return source.map_body([{"id": "7", **event} for event in events], explain=True)


def left_out(found: Mapped) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = report(found)["left_out"]
    return told


def plain(**properties: Property) -> CompiledSource:
    return compiled(MappingBlock(RECORD, properties=properties))


# --- what is left out ---------------------------------------------------------------------------


def test_a_path_that_finds_nothing_is_told_with_the_event() -> None:
    """Each event has its own list; one that lacks nothing has none."""
    source = plain(title=Property("data.titel"), city=Property("data.city"))
    found = mapped(source, {"data": {"titel": "A", "city": "B"}}, {"data": {"city": "B"}}, {"data": "text"})
    assert left_out(found) == [
        {"index": 1, "absent": {"title": "data.titel"}},
        {"index": 2, "absent": {"title": "data.titel", "city": "data.city"}},
    ]


@pytest.mark.parametrize("value", [None, "", " \t", []])
def test_null_and_blank_are_told_apart_from_absent(value: object) -> None:
    found = mapped(plain(city=Property("city"), name=Property("name")), {"city": value})
    assert left_out(found) == [{"index": 0, "absent": {"name": "name"}, "null": {"city": "city"}}]


def test_an_expression_that_gives_null_found_nothing() -> None:
    """It cannot be told whether there was anything to find."""
    found = mapped(plain(name=Property("upper(name) || titel")), {"name": ""})
    assert left_out(found) == [{"index": 0, "absent": {"name": "upper(name) || titel"}}]


def test_what_is_cleared_is_not_left_out() -> None:
    found = mapped(plain(city=Property("city", on_null="clear")), {"city": None})
    assert left_out(found) == []
    assert found.found == {"null": {"city": 1}}


def test_a_required_property_that_is_absent_is_told_with_its_path_and_counts_as_invalid() -> None:
    """Its message alone would not name the path."""
    found = mapped(plain(city=Property("cty", required=True)), {"city": "B"})
    assert found.invalid == [(0, {"city": "is required and absent"})]
    assert left_out(found) == [{"index": 0, "absent": {"city": "cty"}}]
    assert found.found == {"invalid": {"city": 1}}


def test_what_is_invalid_is_not_left_out() -> None:
    source = plain(size=Property("size", type="number"), name=Property("upper(name)"))
    found = mapped(source, {"size": "much", "name": 5})
    assert left_out(found) == []
    assert found.found == {"invalid": {"size": 1, "name": 1}}


def test_nothing_is_looked_for_in_an_event_that_is_ignored() -> None:
    source = compiled(MappingBlock(RECORD, properties={"city": Property("city")}), when="kind == 'client'")
    found = mapped(source, {"kind": "ping"}, {"kind": "client"})
    assert left_out(found) == [{"index": 1, "absent": {"city": "city"}}]
    assert found.found == {"absent": {"city": 1}}


def test_each_block_looks_for_its_own_properties_only_where_it_reads() -> None:
    found = mapped(
        compiled(
            MappingBlock(RECORD, properties={"city": Property("city")}, when="kind == 'client'"),
            MappingBlock(Record("deal", "acme_id"), properties={"title": Property("titel")}, object_type="deals"),
        ),
        {"kind": "client", "deal": "1", "city": "B"},
        {"kind": "deal", "deal": "2", "title": "T"},
    )
    assert left_out(found) == [{"index": 0, "absent": {"title": "titel"}}, {"index": 1, "absent": {"title": "titel"}}]
    assert found.found == {"present": {"city": 1}, "absent": {"title": 2}}


def test_only_who_asks_is_told_what_is_left_out() -> None:
    """Of ten thousand empty events with a thousand properties each it would be gigabytes."""
    assert plain(city=Property("city")).map_body([{"id": "7"}]).left_out == []


# --- pairs --------------------------------------------------------------------------------------

PAIRS = Pairs("fields", name="k", value="v", properties={"Nm": ("name", Property()), "Ct": ("city", Property())})


def test_a_pair_that_is_not_sent_is_absent_and_not_left_out() -> None:
    """Senders of pairs send what changed."""
    found = mapped(compiled(MappingBlock(RECORD, pairs=PAIRS)), {"fields": [{"k": "Nm", "v": "A"}]})
    assert left_out(found) == []
    assert found.found == {"present": {"name": 1}, "absent": {"city": 1}}


@pytest.mark.parametrize(
    "fields, told",
    [
        ([{"k": "Nm", "value": "A"}], {"absent": {"name": "v"}}),
        ([{"k": "Nm", "v": None}], {"null": {"name": "v"}}),
        ([{"k": "Nm", "v": " "}, {"k": "Ct", "v": "B"}], {"null": {"name": "v"}}),
        (None, {"absent": {"name": "fields", "city": "fields"}}),
    ],
)
def test_pairs_that_are_not_where_the_mapping_looks_are_left_out(fields: object, told: dict[str, Any]) -> None:
    """With the expression that found nothing: where the list is, or the value of a pair."""
    found = mapped(compiled(MappingBlock(RECORD, pairs=PAIRS)), {"fields": fields})
    assert left_out(found) == [{"index": 0, **told}]


# --- counts -------------------------------------------------------------------------------------


def test_every_event_that_is_read_counts_once_for_each_property() -> None:
    source = plain(
        name=Property("name"),
        city=Property("city", on_null="clear"),
        size=Property("size", type="number"),
        origin=Property(constant="acme"),
    )
    found = mapped(
        source,
        {"name": "A", "city": "B", "size": 1},
        {"name": "A", "city": None, "size": "much"},
        {"name": " ", "city": "B"},
        {"size": 2},
    )
    assert source.looked_for() == {"name", "city", "size"}
    assert found.found == {
        "present": {"name": 2, "city": 2, "size": 2},
        "absent": {"name": 1, "city": 1, "size": 1},
        "null": {"name": 1, "city": 1},
        "invalid": {"size": 1},
    }


def test_a_value_that_is_translated_to_nothing_counts_as_null() -> None:
    found = mapped(plain(tier=Property("tier", type="enumeration", values={"none": ""})), {"tier": "none"})
    assert found.events[0].updates[0].properties == {"tier": ""}
    assert found.found == {"null": {"tier": 1}}


def test_an_event_without_a_record_counts_too() -> None:
    """The payload tells of its properties all the same."""
    found = plain(city=Property("city"), name=Property("name")).map_body({"city": "B"})
    assert found.events[0].unmappable == "the record id is missing"
    assert found.found["present"]["city"] == 1
    assert found.found["absent"] == {"name": 1}


# --- own schemas --------------------------------------------------------------------------------


def own(name: str) -> CompiledSource:
    return compiled(MappingBlock(RECORD, schema=f"tests.own_schemas:{name}"))


def test_of_an_own_schema_its_fields_are_counted() -> None:
    """With the keys that they are read from."""
    found = mapped(own("Declared"), {"clientName": "A", "first": "F"}, {"clientName": None, "first": "F"})
    assert left_out(found) == [
        {"index": 0, "absent": {"arr": "arr"}},
        {"index": 1, "absent": {"arr": "arr"}, "null": {"name": "clientName"}},
    ]
    assert found.found == {
        "present": {"name": 1, "contact_first": 2},
        "absent": {"arr": 2},
        "null": {"name": 1},
    }
    assert mapped(own("Declared"), {"arr": "x", "first": "F"}).found["invalid"] == {"arr": 1}


def test_names_that_an_own_schema_takes_from_the_payload_are_not_counted() -> None:
    """A sender must not make series of metrics."""
    found = mapped(own("Loose"), {"name": "A", "made_up": "x"})
    assert found.events[0].updates[0].properties.keys() >= {"name", "made_up"}
    assert found.found == {"present": {"name": 1}}


def test_of_an_own_schema_that_reshapes_what_its_fields_make_nothing_is_known() -> None:
    source = own("Own")
    found = mapped(source, {"clientName": "A"})
    assert source.looked_for() == frozenset()
    assert (found.found, left_out(found)) == ({}, [])
