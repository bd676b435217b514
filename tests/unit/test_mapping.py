"""Mapping: bodies to events, identity, parts that wait, several mappings, pairs, own schemas, replay."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import MappingError, PayloadError
from bridge.intake.mapping import CompiledSource, Mapped, compile_source
from bridge.intake.payload import parse_json
from bridge.model import Event, Intake, Lane, PropertyUpdate, RecordKey, comparable, same_content
from bridge.settings import (
    Challenge,
    Example,
    Hmac,
    MappingBlock,
    OccurredAt,
    Pairs,
    Property,
    Record,
    Reply,
    Secret,
    Source,
    Verify,
)
from bridge.tryout.dry_run import inputs_of, run_example

LANE = Lane("partner_clients", "acme_id")
TIER = Property("plan", type="enumeration", values={"Gold": "gold", "Silver": "silver"})


def block(**changes: Any) -> MappingBlock:
    defaults: dict[str, Any] = {
        "record": Record("id", "acme_id"),
        "properties": {"name": Property("name"), "tier": TIER},
    }
    return MappingBlock(**{**defaults, **changes})


def source(*blocks: MappingBlock, **changes: Any) -> Source:
    return Source(name="acme", verify=Verify("none"), mappings=blocks or (block(),), **changes)


def compiled(*blocks: MappingBlock, **changes: Any) -> CompiledSource:
    return compile_source(source(*blocks, **changes))


def update(record: str = "7", invalid: dict[str, str] | None = None, **properties: str) -> PropertyUpdate:
    return PropertyUpdate(RecordKey(LANE, record), properties, invalid or {})


def only(mapped: Mapped) -> Event:
    (event,) = mapped.events
    return event


# --- events and their parts ---------------------------------------------------------------------


def test_one_body_is_one_event_or_a_list_of_them() -> None:
    """`events: "@"` takes an object, a list, and an empty list."""
    acme = compiled()
    assert only(acme.map_body({"id": 7, "name": "A"})).updates == (update(name="A"),)
    both = acme.map_body([{"id": "7", "name": "A"}, {"id": "8", "plan": "Gold"}])
    assert [event.updates for event in both.events] == [(update(name="A"),), (update("8", tier="gold"),)]
    assert acme.map_body([]) == Mapped()


@pytest.mark.parametrize("body", [None, 1, "text", [1], [{}, None], [[{}]]])
def test_what_is_no_object_is_no_event(body: object) -> None:
    """The whole body is refused."""
    with pytest.raises(PayloadError, match="events"):
        compiled().map_body(body)


@pytest.mark.parametrize("events", ["items", "items[*]", "parse_json(name)"])
def test_events_that_cannot_be_found_refuse_the_body(events: str) -> None:
    """Absent, null or failing: not silently zero events."""
    with pytest.raises(PayloadError, match="events"):
        compiled(events=events).map_body({"name": "{"})


def test_what_does_not_match_is_ignored_and_so_is_what_fails_to_tell() -> None:
    """An expression that raises counts as no match."""
    acme = compiled(when="starts_with(type, 'client.')")
    body = [{"id": 1, "type": "client.updated", "name": "A"}, {"id": 2, "type": "x"}, {"id": 3, "type": 5}, {"id": 4}]
    intakes = [event.intake for event in acme.map_body(body).events]
    assert intakes == [Intake.ACCEPTED, Intake.IGNORED, Intake.IGNORED, Intake.IGNORED]


def test_valid_properties_go_on_and_invalid_ones_wait() -> None:
    """The message names the property; with nothing valid the event is parked."""
    mapped = compiled().map_body([{"id": 7, "name": "A", "plan": "Iron"}, {"id": 8, "plan": "Iron"}])
    message = "is 'Iron', which values: does not list"
    assert mapped.events[0].updates == (update(name="A", invalid={"tier": message}),)
    assert [event.intake for event in mapped.events] == [Intake.ACCEPTED, Intake.PARKED]
    assert mapped.invalid == [(0, {"tier": message}), (1, {"tier": message})]
    assert not mapped.reject


def test_an_expression_that_fails_makes_its_property_invalid() -> None:
    """Not the event."""
    mapped = compiled(block(properties={"a": Property("lower(name)"), "b": Property("name")})).map_body(
        {"id": 7, "name": 5}
    )
    assert only(mapped).updates == (update(b="5", invalid={"a": "lower() takes string or null, not number"}),)


UNFIT: list[Any] = [None, "", "  ", True, {}, [], ["7"], "x" * 256, "a\0", parse_json(b"7.5")]


@pytest.mark.parametrize(
    "record, id_property, taken",
    [
        *((good, "acme_id", good) for good in ("7", "a b", "7.5", "-7", "ünï")),
        (7, "acme_id", "7"),
        (" 7 ", "acme_id", "7"),
        (parse_json(b"7.0"), "acme_id", "7"),
        (parse_json(b"7e2"), "acme_id", "700"),
        (parse_json(b"12345678901234567890"), "acme_id", "12345678901234567890"),
        ("7", "", "7"),
        (7, "", "7"),
        *((unfit, "", None) for unfit in ("a7", "7.5", "-7", "７", "+7", " ")),
        *((unfit, "acme_id", None) for unfit in UNFIT),
    ],
)
def test_a_record_id_is_text_or_the_event_is_parked(record: object, id_property: str, taken: str | None) -> None:
    """Trimmed, numbers without fraction; digits only where it is HubSpot's own."""
    event = only(compiled(block(record=Record("id", id_property))).map_body({"id": record, "name": "A"}))
    if taken is None:
        assert event.updates == ()
        assert event.intake is Intake.PARKED
        assert event.unmappable is not None
        assert event.unmappable.startswith("the record id ")
    else:
        assert event.updates[0].record == RecordKey(Lane("partner_clients", id_property), taken)


@pytest.mark.parametrize(
    "record, id_, sent",
    [
        (Record("id", "email"), "jose\u0301@x.example", " Jose\u0301@X.example "),
        (Record("id", "domain"), "x.example", "X.example"),
        (Record("id", "acme_id", match="caseless"), "a-7", "A-7"),
        (Record("id", "acme_id"), "A-7", "A-7"),
        (Record("id", "email", match="exact"), "Jos\u00e9@x.example", "Jose\u0301@x.example"),
    ],
)
def test_ids_are_compared_as_match_says_and_sent_as_they_are_spelt(record: Record, id_: str, sent: str) -> None:
    """In lower case where letter case tells no records apart, and in NFC: an accent may be a character of its own."""
    event = only(compiled(block(record=record)).map_body({"id": sent, "name": "A"}))
    key = event.updates[0].record
    assert key.id == unicodedata.normalize("NFC", id_)
    assert inputs_of([event])[0].as_json()["id"] == key.sent == unicodedata.normalize("NFC", sent.strip())


def test_spellings_of_one_record_are_one_input_in_the_newest_of_them() -> None:
    acme = compiled(block(record=Record("id", "email")), occurred_at=OccurredAt("at"))
    mapped = acme.map_body(
        [
            {"id": "Sales@x.example", "at": "2026-01-05T00:00:05Z", "name": "newer"},
            {"id": "sales@x.example", "at": "2026-01-05T00:00:00Z", "name": "older", "plan": "Gold"},
        ]
    )
    assert [one.as_json() for one in inputs_of(mapped.events)] == [
        {"id": "Sales@x.example", "idProperty": "email", "properties": {"name": "newer", "tier": "gold"}}
    ]


def test_a_delivery_is_the_same_whatever_match_says_by_then() -> None:
    """Between the first and the second the configuration was changed; an attempt's number is no other change."""
    exact, caseless = (compiled(block(record=Record("id", "acme_id", match=how))) for how in ("exact", "caseless"))
    first = only(exact.map_body({"id": "A-7", "name": "A", "attempt": 1}))
    second = only(caseless.map_body({"id": "A-7", "name": "A", "attempt": 2}))
    assert same_content(first.content_hash, second.content_hash)


def test_an_example_expects_an_id_as_it_is_sent() -> None:
    expected = {"id": "A-7", "id_property": "acme_id", "properties": {"name": "A"}}
    example = Example('{"id": "A-7", "name": "A"}', expect=(expected,))
    assert run_example(compiled(block(record=Record("id", "acme_id", match="caseless"))), example) == []


@given(st.text())
def test_what_is_compared_is_compared_the_same_once_more(text: str) -> None:
    for caseless in (True, False):
        once = comparable(text, caseless=caseless)
        assert comparable(once, caseless=caseless) == once
    assert comparable(text.upper(), caseless=True).islower() or not comparable(text, caseless=True).isupper()


def test_reject_covers_properties_and_record_of_its_own_mapping() -> None:
    """Another mapping's invalid values do not reject."""
    strict, lenient = block(on_invalid="reject"), block(record=Record("other", "acme_id"))
    acme = compiled(strict, lenient)
    assert acme.map_body({"id": 7, "other": 8, "plan": "Iron"}).reject
    assert acme.map_body([{"id": 7, "other": 8}, {"other": 8}]).reject
    assert not acme.map_body({"id": 7, "name": "A"}).reject


# --- identity and time --------------------------------------------------------------------------


def ids(acme: CompiledSource, body: Any, **given: str) -> list[str]:
    return [event.id for event in acme.map_body(body, **given).events]  # type: ignore[arg-type]  # ids only


def test_an_events_id_comes_from_the_first_of_four_places() -> None:
    """event_id, the delivery's id, a hash of the signed bytes, chance."""
    named, plain = compiled(event_id="eid"), compiled()
    assert ids(named, [{"eid": " e1 "}, {"eid": 5}, {"eid": parse_json(b"1e2")}]) == ["e1", "5", "100"]
    assert ids(named, [{"eid": None}, {"eid": {}}, {}], delivery_id="d") == ["d#0", "d#1", "d#2"]
    assert ids(plain, {}, delivery_id="d") == ["d"]
    assert ids(plain, [{}], delivery_id="d", signed_hash="h") == ["d#0"]
    assert ids(plain, {}, signed_hash="h") == ["h"]
    first, second = ids(plain, [{}, {}])
    assert first != second
    assert len(first) == 32


def test_ids_that_no_database_takes_are_hashed() -> None:
    """Long ones and those with NUL, always to the same text."""
    long, nul = ids(compiled(event_id="eid"), [{"eid": "x" * 201}, {"eid": "a\0"}])
    assert long.startswith("sha256-")
    assert nul.startswith("sha256-")
    assert [long] == ids(compiled(event_id="eid"), {"eid": "x" * 201})


@pytest.mark.parametrize(
    "value, expected",
    [
        ("2026-01-02T03:04:05Z", 1_767_323_045_000_000),
        ("2026-01-02T03:04:05.000001+01:00", 1_767_319_445_000_001),
        (1_767_323_045, 1_767_323_045_000_000),
        (parse_json(b"1767323045.1234567"), 1_767_323_045_123_456),
        (1_767_323_045_123, 1_767_323_045_123_000),
        (20261129, 1_795_906_800_000_000),
        ("2000-01-01T00:00:00Z", 946_684_800_000_000),
        (None, None),
        (" ", None),
    ],
)
def test_times_are_microseconds_since_the_epoch(value: object, expected: int | None) -> None:
    """Seconds with fractions, milliseconds, ISO 8601."""
    mapped = compiled(occurred_at=OccurredAt("at", timezone="Europe/Madrid")).map_body(
        {"id": 7, "at": value}, now_us=1_800_000_000_000_000
    )
    assert only(mapped).occurred_at_us == expected
    assert not mapped.invalid


@pytest.mark.parametrize(
    "value",
    ["soon", "2026-01-02T03:04:05", {}, True, 10**17, 0, -1, "0001-01-01T00:00:00Z", 20991231, "9999-12-31T23:59:59Z"],
)
def test_a_time_that_is_not_believed_is_reported_and_loses_no_event(value: object) -> None:
    """What cannot be read, lies before 2000 or ahead of arrival counts as missing."""
    mapped = compiled(occurred_at=OccurredAt("at")).map_body({"id": 7, "name": "A", "at": value})
    assert only(mapped).occurred_at_us is None
    assert only(mapped).updates == (update(name="A"),)
    ((index, errors),) = mapped.invalid
    assert (index, list(errors)) == (0, ["occurred_at"])
    assert not mapped.reject
    assert (mapped.undated, mapped.refused) == (1, 0)


def test_a_time_that_is_not_believed_rejects_nothing() -> None:
    """Also where mappings reject what is invalid: the event is the newest at its arrival."""
    strict = compiled(block(on_invalid="reject"), occurred_at=OccurredAt("at"))
    assert not strict.map_body({"id": 7, "name": "A", "at": "soon"}).reject
    mapped = strict.map_body([{"id": 7, "name": "A", "at": "soon"}, {"id": 8, "plan": "Iron", "at": "soon"}])
    assert (mapped.reject, mapped.undated, mapped.refused) == (True, 2, 1)


@pytest.mark.parametrize("ahead_s, believed", [(299, True), (300, True), (301, False)])
def test_a_time_is_believed_up_to_five_minutes_ahead_of_arrival(ahead_s: int, *, believed: bool) -> None:
    """Clocks differ; by more they are wrong."""
    now_us = 1_800_000_000_000_000
    mapped = compiled(occurred_at=OccurredAt("at")).map_body({"id": 7, "at": 1_800_000_000 + ahead_s}, now_us=now_us)
    assert (only(mapped).occurred_at_us == now_us + ahead_s * 1_000_000) == believed
    assert mapped.undated == (not believed)


def test_a_time_is_read_in_its_own_format_and_zone() -> None:
    """`occurred_at: {from, format, timezone}`."""
    how = OccurredAt("at", ("%d/%m/%Y %H:%M", "epoch"), "Europe/Madrid")
    acme = compiled(occurred_at=how, timezone="UTC")
    assert only(acme.map_body({"id": 7, "at": "02/01/2026 03:04"})).occurred_at_us == 1_767_319_440_000_000
    assert only(acme.map_body({"id": 7, "at": "1767319440"})).occurred_at_us == 1_767_319_440_000_000


def test_a_time_without_a_zone_is_read_in_the_sources() -> None:
    """As dates are."""
    zoned = compiled(occurred_at=OccurredAt("at"), timezone="Europe/Madrid").map_body(
        {"id": 7, "at": "2026-01-02T03:04:05"}
    )
    assert only(zoned).occurred_at_us == 1_767_319_445_000_000


def test_the_content_hash_ignores_order_and_space() -> None:
    """So a sender that writes the same event differently is no conflict."""
    acme = compiled()
    texts = [b'{"id": 7, "name": "A"}', b'{"name":"A","id":7}', b'{"id": 7, "name": "B"}']
    one, same, other = (only(acme.map_body(parse_json(text))).content_hash for text in texts)
    assert one == same != other


# --- several mappings, pairs, schemas -----------------------------------------------------------


def test_every_mapping_that_matches_applies_and_a_record_is_asked_once() -> None:
    """The later mapping wins where both set a property of one record."""
    acme = compiled(
        block(properties={"name": Property("name"), "city": Property("city")}, unchanged="skip"),
        block(when="vip", properties={"name": Property("upper(name)"), "city": TIER}),
        block(object_type="contacts", properties={"name": Property("name")}),
        block(when="never", properties={"name": Property(constant="no")}),
    )
    event = only(acme.map_body({"id": 7, "name": "a", "city": "Bonn", "vip": True, "plan": "Iron"}))
    message = "is 'Iron', which values: does not list"
    lane = Lane("contacts", "acme_id")
    contact = PropertyUpdate(RecordKey(lane, "7"), {"name": "a"})
    assert event.updates == () or event.unmappable is None
    mine = PropertyUpdate(RecordKey(LANE, "7"), {"name": "a", "city": "Bonn"}, {}, skip_unchanged=True)
    plain = only(acme.map_body({"id": 7, "name": "a", "city": "Bonn"}))
    assert set(plain.updates[0].properties.items()) == set(mine.properties.items())
    assert plain.updates == (mine, contact)
    assert event.updates == (update(name="A", invalid={"city": message}), contact)


def test_a_part_that_cannot_be_mapped_leaves_the_others() -> None:
    """The event counts as accepted, and says what is missing."""
    acme = compiled(block(), block(object_type="contacts", record=Record("contact_id", "acme_id")))
    event = only(acme.map_body({"id": 7, "name": "a"}))
    assert [one.record.id for one in event.updates] == ["7"]
    assert event.unmappable == "the record id is missing"
    assert event.intake is Intake.ACCEPTED


PAIRS = Pairs(
    "fields",
    "name",
    "value",
    {
        "co": ("company", Property()),
        "rev": ("revenue", Property(type="number")),
        "5": ("five", Property(on_null="clear")),
    },
)


@pytest.mark.parametrize(
    "found, expected, unlisted",
    [
        ([{"name": "co", "value": "A"}, {"name": "x", "value": 1}], {"company": "A"}, 1),
        ([{"name": "co", "value": "A"}, {"name": "co", "value": "B"}], {"company": "B"}, 0),
        ({"name": "rev", "value": "1.50"}, {"revenue": "1.5"}, 0),  # one pair
        ({"co": "A", "rev": 2, "other": 3}, {"company": "A", "revenue": "2"}, 1),  # an object
        ([{"name": 5, "value": None}], {"five": ""}, 0),
        ([{"name": "5"}, {"name": "co", "value": " "}], {}, 0),
        ([1, None, {}, {"name": {}}, {"name": True}], {}, 5),
        ([], {}, 0),
        (None, {}, 0),
    ],
)
def test_pairs_are_one_a_list_or_an_object(found: object, expected: dict[str, str], unlisted: int) -> None:
    """Names nobody listed are counted; absent values change nothing."""
    mapped = compiled(block(properties={}, pairs=PAIRS)).map_body({"id": 7, "fields": found})
    assert only(mapped).updates == (PropertyUpdate(RecordKey(LANE, "7"), expected),)
    assert mapped.unlisted == unlisted


def test_a_pair_whose_value_fails_makes_its_property_invalid() -> None:
    """Not the event; of several pairs for one property the last counts, be it good or not."""
    joined = Pairs("fields", "k", "join('+', v)", {name: (name, Property()) for name in ("name", "tags", "more")})
    bad, good = 5, ["a", "b"]
    fields = [("name", bad), ("name", good), ("tags", good), ("tags", bad), ("more", good), ("unlisted", bad)]
    event = only(
        compiled(block(properties={}, pairs=joined)).map_body(
            {"id": 7, "fields": [{"k": key, "v": value} for key, value in fields]}
        )
    )
    assert event.updates == (update(name="a+b", more="a+b", invalid={"tags": "join() takes array-string, not number"}),)


def test_pairs_of_another_shape_park_the_event() -> None:
    """They say nothing about any property, so nothing is sent."""
    mapped = compiled(block(properties={}, pairs=PAIRS)).map_body({"id": 7, "fields": "text"})
    assert only(mapped).intake is Intake.PARKED
    assert only(mapped).unmappable == "the pairs are 'text', not a list or an object"


OWN = "tests.own_schemas:Own"


def test_a_schema_of_ones_own_maps_the_event() -> None:
    """It gets the event, may change what it gets, and returns properties."""
    acme = compiled(block(properties={}, schema=OWN))
    body = {"id": 7, "clientName": "A", "arr": "1.50", "noise": 1}
    event = only(acme.map_body(body))
    assert event.updates == (update(name="A", arr="1.5", tags="a;b"),)
    assert json.loads(event.payload) == body == {"id": 7, "clientName": "A", "arr": "1.50", "noise": 1}
    broken = acme.map_body({"id": 7, "arr": "x", "mail": "a@b.de"})
    assert only(broken).updates[0].properties == {"mail": "a@b.de"}
    assert set(only(broken).updates[0].invalid) == {"name", "arr"}


def test_whatever_a_schema_raises_concerns_one_event() -> None:
    """The others of the array go on; no text of the exception leaves."""
    acme = compiled(block(properties={}, schema=OWN))
    good, boom, odd = ({"id": 7, "clientName": "A", **more} for more in ({}, {"boom": 1}, {"arr": -1}))
    mapped = acme.map_body([good, boom, odd])
    assert [event.intake for event in mapped.events] == [Intake.ACCEPTED, Intake.PARKED, Intake.PARKED]
    assert [event.unmappable for event in mapped.events] == [
        None,
        "the schema raised ZeroDivisionError",
        "sums do not add up",
    ]


ODD_NAMES = ["nul\0", "a b", "é", "", ";", "x" * 300, "\x1b[2J"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_that_a_schema_has_from_the_payload_are_checked(name: str) -> None:
    """Else they would become properties that no database and no CRM takes; the rest goes on."""
    event = only(
        compiled(block(properties={}, schema="tests.own_schemas:Open")).map_body({"id": 7, name: "x", "ok": "y"})
    )
    assert event.updates[0].properties == {"id": "7", "ok": "y"}
    assert list(event.updates[0].invalid.values()) == ["is not the name of a property"]
    closed = compiled(block(properties={}, schema="tests.own_schemas:Closed"))
    refused = only(closed.map_body({"id": 7, name: "x", "address": {name: "x"}})).updates[0]
    assert refused.properties == {"id": "7"}
    for told in (event.updates[0].invalid, refused.invalid):
        assert all(text.isprintable() and len(text) <= 1_000 for pair in told.items() for text in pair)


def test_a_number_of_a_schema_that_no_text_can_hold_is_invalid() -> None:
    """Python writes no whole number of more than 4,300 digits."""
    event = only(compiled(block(properties={}, schema="tests.own_schemas:Open")).map_body({"id": 7, "factor": 5_000}))
    assert event.updates[0].invalid == {"grown": "has more digits than any number"}


def test_half_a_surrogate_pair_of_a_schemas_is_invalid() -> None:
    """A schema may decode what is JSON within a text; no database and no CRM takes that."""
    event = only(
        compiled(block(properties={}, schema="tests.own_schemas:Open")).map_body({"id": 7, "broken": "\\ud83d"})
    )
    assert event.updates[0].invalid == {"broken": r"is '\ud83d', which holds half a surrogate pair"}


def hints(value: object, *, zone: str | None = "America/New_York", **how: Any) -> list[str]:
    source = compiled(block(properties={"day": Property("day", **{"type": "date", **how})}), timezone=zone)
    return source.hints(source.map_body({"id": 7, "day": value}))


@pytest.mark.parametrize(
    "value, how",
    [
        ("2026-01-05T00:00:00Z", {}),
        ("2026-01-05T00:00:00.000+00:00", {}),
        (1767571200, {}),
        ("1767571200000", {}),
        ("1767571200", {"format": ("%d/%m/%Y", "epoch")}),
        ("Mon, 05 Jan 2026 00:00:00 GMT", {"format": ("rfc2822",)}),
        ("2026-01-05T00:00:00Z", {"zone": None, "timezone": "America/New_York"}),
    ],
)
def test_a_day_that_was_written_as_its_midnight_in_utc_is_pointed_at(value: object, how: dict[str, Any]) -> None:
    """Wherever the zone is the day before, with what to write instead."""
    [hint] = hints(value, **how)
    assert hint.startswith(f"day is '{value}', midnight in UTC, which is 2026-01-04 in America/New_York; ")
    assert hint.endswith("where the day 2026-01-05 is meant, give the property `timezone: UTC`")


@pytest.mark.parametrize(
    "value, how",
    [
        ("2026-01-05", {}),
        ("2026-01-05T00:00:00", {}),
        ("2026-01-05T00:00:01Z", {}),
        ("2026-01-05T00:00:00-05:00", {}),
        ("2026-01-05T00:00:00Z", {"zone": "Europe/Madrid"}),
        ("2026-01-05T00:00:00Z", {"zone": None}),
        ("2026-01-05T00:00:00Z", {"timezone": "UTC"}),
        ("2026-01-05T00:00:00Z", {"type": "datetime"}),
        ("2026-01-05T00:00:00Z", {"values": {"2026-01-05T00:00:00Z": "2026-01-05"}}),
        ("0001-01-01T00:00:00Z", {}),
        ("", {}),
        (None, {}),
        ({}, {}),
    ],
)
def test_nothing_is_said_of_other_days_and_times(value: object, how: dict[str, Any]) -> None:
    """Not where the day is the same, where a time is meant, or where there is none."""
    assert hints(value, **how) == []


def test_a_hint_is_given_once_a_property_and_of_pairs_too() -> None:
    """For what is mapped only: not for an event that is ignored."""
    pairs = Pairs("f", "n", "v", {"d": ("day", Property(type="date")), "other": ("other", Property(type="date"))})
    midnight = "2026-01-05T00:00:00Z"
    event = {"id": 7, "f": [{"n": "d", "v": midnight}, {"n": "other", "v": "2026-01-05"}]}
    source = compiled(block(properties={}, pairs=pairs), timezone="America/New_York", events="@", when="!skip")
    assert [hint[:8] for hint in source.hints(source.map_body([event, event]))] == ["day is '"]
    assert source.hints(source.map_body([{**event, "skip": True}])) == []


@pytest.mark.parametrize("name", ["nosuch:Thing", "json:dumps", "json:Nothing", "tests.own_schemas:MANY"])
def test_a_schema_that_cannot_be_used_is_found_beforehand(name: str) -> None:
    """Module, attribute and kind."""
    with pytest.raises(ExceptionGroup) as caught:
        compiled(block(properties={}, schema=name))
    assert [error.path for error in caught.value.exceptions if isinstance(error, MappingError)] == [("schema",)]


# --- what is kept, and replay -------------------------------------------------------------------


def test_only_what_the_mapping_looks_at_is_kept_and_replay_gives_the_same() -> None:
    """Headers, query, index and the root's parts; never credentials."""
    acme = compiled(
        block(
            when="_headers.x_topic == 'clients'",
            properties={
                "name": Property("join('-', [name, _query.env, to_string(_index)])"),
                "tenant": Property("_root.meta.tenant"),
            },
        ),
        events="clients",
        event_id="_headers.x_delivery",
    )
    body = {"meta": {"tenant": "t1", "more": "x"}, "clients": [{"id": 7, "name": "A"}, {"id": 8, "name": "B"}]}
    headers = {"X-Topic": "clients", "X-Delivery": "d9", "Authorization": "Bearer secret", "X-Other": "1"}
    mapped = acme.map_body(body, headers=headers, query={"env": "prod", "token": "secret"})
    second = mapped.events[1]
    assert second.updates == (update("8", name="B-prod-1", tenant="t1"),)
    assert json.loads(second.context) == {"headers": {"x_topic": "clients"}, "query": {"env": "prod"}, "index": 1}
    assert second.root is not None
    assert json.loads(second.root) == {"meta": {"tenant": "t1"}}
    for event in mapped.events:
        reading = acme.remap(event.payload, event.context, event.root)
        assert (reading.updates, reading.unmappable) == (event.updates, event.unmappable)


def test_a_root_that_is_the_event_is_not_kept_twice() -> None:
    """`_root` is the event then."""
    acme = compiled(block(properties={"name": Property("_root.name")}))
    event = only(acme.map_body({"id": 7, "name": "A"}))
    assert (event.context, event.root) == ("{}", None)
    assert acme.remap(event.payload, event.context, event.root).updates == event.updates


def test_no_expression_sees_credentials() -> None:
    """Named ones are an error, computed ones come out empty."""
    with pytest.raises(ExceptionGroup, match="acme"):
        compiled(block(properties={"a": Property("_headers.authorization")}))
    token = Verify("bearer", (Secret(env="UNSET_IN_TESTS", default="t"),), header="X-Token")
    with pytest.raises(ExceptionGroup, match="acme"):
        compile_source(replace(source(block(properties={"a": Property("_headers.x_token")})), verify=token))
    everything = compiled(block(properties={"a": Property("join(',', keys(_headers))")}))
    event = only(everything.map_body({"id": 7}, headers={"Authorization": "x", "Cookie": "y", "X-A": "1"}))
    assert event.updates == (update(a="x_a"),)
    assert json.loads(event.context) == {"headers": {"x_a": "1"}}


@pytest.mark.parametrize("name", ['"X-Shop-Topic"', "X_Shop_Topic", '"x-shop-topic"'])
def test_a_header_that_is_named_as_it_is_sent_is_an_error(name: str) -> None:
    """It would never be there; the message says how it is named here."""
    for made in (
        source(block(properties={"topic": Property(f"_headers.{name}")})),
        source(event_id=f"_headers.{name}"),
        source(challenge=Challenge(f"_headers.{name}")),
    ):
        with pytest.raises(ExceptionGroup) as caught:
            compile_source(made)
        assert "write _headers.x_shop_topic" in str(caught.value.exceptions[0])


def twice(acme: CompiledSource, *bodies: Any, headers: Sequence[Mapping[str, str]] = ({}, {})) -> bool:
    """Whether two deliveries are one event."""
    one, other = (only(acme.map_body(body, headers=sent)) for body, sent in zip(bodies, headers, strict=True))
    return same_content(one.content_hash, other.content_hash)


def test_what_asks_for_the_same_is_one_event_whatever_else_it_says() -> None:
    """A counter of tries makes no other event; a value, a record, a stated time and what the mapping sees beside do."""
    acme = compiled(occurred_at=OccurredAt("at"))
    event = {"id": 7, "name": "A", "at": "2026-01-02T03:04:05Z"}
    assert twice(acme, event, {**event, "try": 2})
    assert twice(acme, {**event, "plan": "Iron"}, {**event, "plan": "Iron", "try": 2})  # a value of it is invalid
    assert not twice(acme, event, {**event, "name": "B"})
    assert not twice(acme, event, {**event, "id": 8})
    assert not twice(acme, event, {**event, "at": "2026-01-02T03:04:06Z"})
    assert not twice(acme, {**event, "plan": "x" * 70 + "1"}, {**event, "plan": "x" * 70 + "2"})
    assert not twice(acme, {"name": "A", "try": 1}, {"name": "A", "try": 2})  # nobody knows what it may ask for


def test_what_the_mapping_sees_beside_an_event_tells_it_apart_too() -> None:
    """The record of the whole payload, and a header."""
    nested = compiled(block(record=Record("_root.client", "acme_id")), events="changes")
    bodies = [{"client": client, "changes": [{"name": "A"}]} for client in ("1", "2")]
    assert not twice(nested, *bodies)
    assert twice(nested, bodies[0], bodies[0])
    headed = compiled(block(properties={"name": Property("_headers.x_name")}))
    assert not twice(headed, {"id": 7}, {"id": 7}, headers=[{"X-Name": "A"}, {"X-Name": "B"}])


def test_replay_uses_todays_mapping() -> None:
    """The same kept event, another mapping."""
    event = only(compiled().map_body({"id": 7, "name": "A", "plan": "Iron"}))
    mended = compiled(block(properties={"tier": replace(TIER, values={"*": "other"})}))
    assert mended.remap(event.payload, event.context, event.root).updates == (update(tier="other"),)


# --- compiling ----------------------------------------------------------------------------------


def test_everything_wrong_with_a_source_is_found_at_once() -> None:
    """Each problem with the path it has in the file."""
    pairs = Pairs("a[", "name", "value", {"x": ("p", Property(type="number", format=("%d",))), "y": ("p", Property())})
    properties = {"p": Property("b["), "q": Property(), "Meta": TIER}
    broken = source(
        block(when="(", record=Record("id.", "acme_id"), properties=properties),
        block(properties={}, pairs=pairs, path=("mappings", 4), timezone="Nowhere"),
        block(properties={}),
        events="[",
        when="nosuch(a)",
        event_id="'",
        occurred_at=OccurredAt("}", ("%Q",), "Venus"),
        timezone="Mars",
        challenge=Challenge("(", when="nosuch(a)"),
    )
    broken = replace(broken, verify=Verify("hmac", (), hmac=Hmac("X", algorithm="md5")))  # type: ignore[arg-type]  # on purpose
    with pytest.raises(ExceptionGroup) as caught:
        compile_source(broken)
    assert {error.path for error in caught.value.exceptions if isinstance(error, MappingError)} == {
        ("events",),
        ("when",),
        ("event_id",),
        ("occurred_at", "from"),
        ("occurred_at", "format"),
        ("occurred_at", "timezone"),
        ("timezone",),
        ("challenge", "reply"),
        ("challenge", "when"),
        ("verify", "secrets"),
        ("verify", "algorithm"),
        ("mappings", 0, "when"),
        ("mappings", 0, "record", "id"),
        ("mappings", 0, "properties", "p", "from"),
        ("mappings", 0, "properties", "q"),
        ("mappings", 0, "properties", "Meta"),
        ("mappings", 4, "timezone"),
        ("mappings", 4, "pairs", "in"),
        ("mappings", 4, "pairs", "properties", "x", "format"),
        ("mappings", 4, "pairs", "properties", "y", "to"),
        ("mappings", 2, "properties"),
    }


def test_a_single_mapping_has_the_sources_own_paths() -> None:
    """No "mappings" step where the file has none."""
    with pytest.raises(ExceptionGroup) as caught:
        compiled(block(properties={"tier": Property("a[")}))
    (error,) = caught.value.exceptions
    assert isinstance(error, MappingError)
    assert error.path == ("properties", "tier", "from")


# --- events that `events` puts together -----------------------------------------------------------


@pytest.mark.parametrize(
    "events, body",
    [
        ("[].{id: id, total: sum(v)}", b'[{"id": 7, "v": [%s]}]' % b",".join([b"9" * 18] * 30)),
        ("{id: id, total: ceil(v)}", b'{"id": 7, "v": 1e300}'),
        ("{id: id, total: floor(v)}", b'{"id": 7, "v": -1234567890123456789.5}'),
        ("{id: id, total: avg(v)}", b'{"id": 7, "v": [1, 2, 2]}'),
        ("{id: id, total: `123456789012345678901234567890`}", b'{"id": 7}'),
    ],
)
def test_an_event_that_was_put_together_is_kept_and_mapped_again(events: str, body: bytes) -> None:
    """Also where functions make numbers beyond 64 bits."""
    acme = compiled(block(properties={"total": Property("total", type="number")}), events=events)
    event = only(acme.map_body(parse_json(body)))
    assert event.updates[0].properties["total"].lstrip("-")[:1] in "123456789"
    assert acme.remap(event.payload, event.context, event.root).updates == event.updates


@pytest.mark.parametrize(
    "events, body",
    [
        ("{id: id, total: sum(v)}", b'{"id": 7, "v": [9e400, 9e400]}'),
        ("{id: id, total: sum(v)}", b'{"id": 7, "v": [1e400, 1e-400]}'),
        ("{id: id, all: @}", b'{"id": 7, "v": ' + b"[" * 63 + b"]" * 63 + b"}"),
        ("merge(a, b)", json.dumps({"a": {str(n): 0 for n in range(9999)}, "b": {"x": 0, "y": 0}}).encode()),
    ],
)
def test_an_event_that_no_replay_could_read_is_refused_at_the_door(events: str, body: bytes) -> None:
    """What `events` makes is held to the limits of any body."""
    with pytest.raises(PayloadError, match="events: "):
        compiled(events=events).map_body(parse_json(body))


@pytest.mark.parametrize("events", ["orders[].{id: id, account: _root.account}", "orders[*].not_null(_root)"])
def test_events_that_repeat_the_body_are_bounded_in_all(events: str) -> None:
    """A megabyte must not become gigabytes because each event takes a part of the whole along."""
    acme = compiled(events=events)
    body = {"account": "x" * 500_000, "orders": [{"id": number} for number in range(9_000)]}
    with pytest.raises(PayloadError, match="put together they have more than"):
        acme.map_body(body)
    few = {"account": "x" * 5_000, "orders": [{"id": number} for number in range(500)]}
    assert len(acme.map_body(few).events) == 500


@pytest.mark.parametrize("where", ["headers", "query"])
def test_a_header_or_a_query_that_is_kept_with_each_event_is_bounded_in_all(where: str) -> None:
    """One long text must not be written ten thousand times over; with few events, or not looked at, it is fine."""
    looked_at = {"headers": "_headers.x_topic", "query": "_query.topic"}[where]
    around: dict[str, dict[str, str]] = {where: {"X-Topic" if where == "headers" else "topic": "x" * 8_000}}
    acme = compiled(when=f"{looked_at} != 'no'")
    many, few = ([{"id": number} for number in range(count)] for count in (10_000, 1_000))
    with pytest.raises(PayloadError, match="kept with each have more than 16000000 characters"):
        acme.map_body(many, headers=around.get("headers"), query=around.get("query"))
    mapped = acme.map_body(few, headers=around.get("headers"), query=around.get("query"))
    assert {len(event.context) > 8_000 for event in mapped.events} == {True}
    unread = compiled().map_body(many, headers=around.get("headers"), query=around.get("query"))
    assert len(unread.events) == 10_000


# --- laws ---------------------------------------------------------------------------------------

#: as parse_json makes them
NUMBERS = st.integers(-(10**17), 10**17) | st.decimals(-(10**60), 10**60, allow_nan=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list("abcdefg")), inner, max_size=5),
    max_leaves=15,
)
EVERYTHING = compiled(
    block(
        record=Record("a", "acme_id"),
        properties={
            "s": Property("b"),
            "n": Property("c", type="number", scale="0.01"),
            "d": Property("d", type="date"),
            "t": Property("e", type="datetime"),
            "m": Property("f", type="enumeration", multiple=True, separator=","),
            "x": Property("g[?a > b].c | [0]"),
            "y": Property("upper(a.b)"),
        },
        pairs=Pairs("d", "a", "b", {"q": ("q", Property(type="bool"))}),
    ),
    block(record=Record("b.c"), when="a && !b || _root.c == `1`", properties={"p": Property("e", type="phone_number")}),
    event_id="a",
    occurred_at=OccurredAt("b"),
)


@given(JSON)
def test_no_json_whatever_makes_mapping_raise(body: Any) -> None:
    """Events, or PayloadError; every kept event maps again to the same; every value is text HubSpot can take."""
    try:
        mapped = EVERYTHING.map_body(body)
    except PayloadError:
        return
    for event in mapped.events:
        again = EVERYTHING.remap(event.payload, event.context, event.root)
        assert (again.updates, again.unmappable) == (event.updates, event.unmappable)
        for one in event.updates:
            assert not set(one.properties) & set(one.invalid)
            assert all("\0" not in text and not text.startswith(";") for text in one.properties.values())
    inputs_of(mapped.events)


# --- inputs and examples ------------------------------------------------------------------------


def test_inputs_hold_each_record_once_with_its_newest_values() -> None:
    """An older event never overwrites, one without time is the newest, equal times: the later."""
    acme = compiled(occurred_at=OccurredAt("at"))
    body = [
        {"id": 7, "at": 1767300300, "name": "new"},
        {"id": 7, "at": 1767300200, "name": "old", "plan": "Gold"},
        {"id": 8, "at": 1767300300, "name": "first"},
        {"id": 8, "name": "second"},
        {"id": 9, "plan": "Iron"},
    ]
    inputs = [one.as_json() for one in inputs_of(acme.map_body(body).events)]
    assert sorted(inputs, key=str) == [
        {"id": "7", "idProperty": "acme_id", "properties": {"name": "new", "tier": "gold"}},
        {"id": "8", "idProperty": "acme_id", "properties": {"name": "second"}},
    ]


@pytest.mark.parametrize(
    "example, differences",
    [
        (Example('{"id": 7, "plan": "Gold"}', expect=({"id": "7", "properties": {"tier": "gold"}},)), []),
        (
            Example(
                '{"id": 7, "plan": "Gold", "name": "A"}', expect=({"id": "8", "properties": {"tier": "x", "z": "1"}},)
            ),
            [
                "input 0: id is '7', expected '8'",
                "input 0: tier is 'gold', expected 'x'",
                "input 0: z is absent, expected '1'",
                "input 0: name is 'A', expected absent",
            ],
        ),
        (Example('{"id": 7, "name": "A"}', expect=()), ["input 0: '7' is not expected"]),
        (Example("{}", expect=({"id": "7", "properties": {}},)), None),
        (Example('{"id": 7, "skip": true}', ignored=True), []),
        (Example('{"id": 7}', ignored=True), ["event 0 is accepted, expected it to be ignored"]),
        (Example('{"id": 7, "plan": "Iron"}', invalid={"tier": "values: does not list"}), []),
        (Example('{"id": 7, "plan": "Iron"}', invalid={"tier": "…"}), []),
        (Example('{"id": 7, "plan": "Iron"}', invalid={"tier": "too long"}), None),
        (Example('{"id": 7, "plan": "Gold"}', invalid={"tier": ""}), ["tier is valid, expected it to be invalid"]),
        (Example("[", expect=()), None),
    ],
)
def test_an_example_tells_how_it_differs(example: Example, differences: list[str] | None) -> None:
    """None: it differs somehow."""
    found = run_example(compiled(when="!skip"), example)
    assert found if differences is None else found == differences


def test_the_reply_is_part_of_the_source() -> None:
    """Where the endpoint looks it up."""
    assert compiled(reply=Reply(200, "none")).source.reply.status == 200
