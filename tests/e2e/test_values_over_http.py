"""Values that public bug reports found silently wrong: each over HTTP, with the value that a person would read."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client

from bridge.cli import run
from tests.e2e.test_identity_faults import House, house
from tests.running import eventually

SOURCES = """\
  acme:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    event_id: id
    occurred_at: at
    on_invalid: reject
    record: {id: client, id_property: acme_client_id}
    properties:
      renewal_date: {from: day, type: date}
      last_seen_at: {from: seen, type: datetime}
      annual_revenue: {from: revenue, type: number, decimal: ",", thousands: "."}
      company_name: "unescape_html(name)"
  sales:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    object_type: contacts
    event_id: id
    occurred_at: at
    record: {id: client, id_property: email}
    properties: {firstname: name}
  eastern:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    timezone: America/New_York
    event_id: id
    record: {id: client, id_property: acme_client_id}
    properties:
      company_name: name
      renewal_date: {from: day, type: date}
      closing_date: {from: closing, type: date, timezone: UTC}
"""
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder: Path = tmp_path_factory.mktemp("values")
    with house(folder, SOURCES) as found:
        yield found


def sent(house_: House, values: dict[str, Any], *, record: str, **more: Any) -> tuple[int, dict[str, Any]]:
    number = next(NUMBERS)
    answer = house_.post({"id": f"e{number}", "client": record, **values, **more}, delivery_id=f"msg_{number}")
    return answer.status_code, json.loads(answer.data)


def mapped(at: House, outcome: str, name: str = "company_name") -> float:
    return at.counted("bridge_mapped_properties_total", source="acme", property=name, outcome=outcome)


@pytest.mark.parametrize(
    "values, held",
    [
        ({"day": 20270105}, {"renewal_date": "2027-01-05"}),
        ({"day": "20270105"}, {"renewal_date": "2027-01-05"}),
        ({"seen": 1767609000}, {"last_seen_at": "2026-01-05T10:30:00Z"}),
        ({"revenue": "1.234,50"}, {"annual_revenue": "1234.5"}),
        ({"name": "O&#039;Neill"}, {"company_name": "O'Neill"}),
    ],
)
def test_a_value_arrives_as_a_person_would_read_it(at: House, values: dict[str, Any], held: dict[str, str]) -> None:
    """Not in 1970, nor a thousand times too large."""
    record = f"c{next(NUMBERS)}"
    status, _ = sent(at, values, record=record)
    assert status == 202
    assert eventually(lambda: held.items() <= at.held().get(record, {}).items())


@pytest.mark.parametrize(
    "values, name, hint",
    [
        ({"seen": "20260105103000"}, "last_seen_at", "%Y%m%d%H%M%S"),
        ({"day": 45911.32}, "renewal_date", "format: excel"),
        ({"day": "2027"}, "renewal_date", '"%Y"'),
        ({"revenue": "1.5"}, "annual_revenue", "not a number"),
    ],
)
def test_what_may_mean_several_things_is_invalid_and_says_how_to_read_it(
    at: House, values: dict[str, Any], name: str, hint: str
) -> None:
    """Nothing is guessed."""
    status, answer = sent(at, values, record=f"c{next(NUMBERS)}")
    assert status == 422
    assert hint in answer["errors"][0]["errors"][name]


@pytest.mark.parametrize("wrong", [0, "0001-01-01T00:00:00Z", 20991231, "9999-12-31T23:59:59.999999Z", "soon"])
def test_a_time_that_is_not_believed_makes_an_event_the_newest_and_is_told(at: House, wrong: object) -> None:
    """Although the record has a value of a real time; nothing is rejected, and it is counted."""
    record = f"c{next(NUMBERS)}"
    undated = at.counted("bridge_events_total", source="acme", outcome="undated")
    sent(at, {"name": "old"}, record=record, at=time.time())
    status, answer = sent(at, {"name": "new"}, record=record, at=wrong)
    assert (status, answer["accepted"]) == (202, 1)
    assert list(answer["invalid"][0]["errors"]) == ["occurred_at"]
    assert at.counted("bridge_events_total", source="acme", outcome="undated") == undated + 1
    assert eventually(lambda: at.held().get(record, {}).get("company_name") == "new")


@pytest.mark.parametrize("half", ["Caf\ud800", "\udfff\ud83d", "a\0"])
def test_half_a_surrogate_pair_spoils_its_own_value_and_nothing_else(at: House, half: str) -> None:
    """One of an array: its other property arrives, as do the other events; the value waits in the retry log."""
    names = [f"c{next(NUMBERS)}" for _ in range(3)]
    events = [{"id": f"half-{name}", "client": name, "name": "A", "day": 20270105} for name in names]
    events[1] |= {"name": half, half: 1}
    answer = at.post(events, source="eastern", delivery_id=f"half_{names[0]}")
    assert answer.status_code == 202, answer.text
    told = json.loads(answer.data)
    assert (told["accepted"], told["parked"]) == (3, 0)
    [invalid] = told["invalid"]
    reason = "a NUL character" if "\0" in half else "half a surrogate pair"
    message = f"is {half!r}, which holds {reason}"
    assert invalid == {"index": 1, "errors": {"company_name": message}}
    assert eventually(lambda: set(names) <= set(at.held()))
    assert [at.held()[name].get("company_name") for name in names] == ["A", None, "A"]
    assert {at.held()[name]["renewal_date"] for name in names} == {"2027-01-05"}
    entries = json.loads(Client(at.service.admin).get("/api/retries", query_string={"record": names[1]}).data)
    assert [(entry["properties"], entry["message"]) for entry in entries] == [(["company_name"], message)]
    again = json.loads(at.post(events, source="eastern", delivery_id=f"again_{names[0]}").data)
    assert again["duplicates"] == 3


def test_half_a_surrogate_pair_that_nobody_maps_does_no_harm(at: House) -> None:
    """Neither as a value nor as a key, however deep."""
    record = f"c{next(NUMBERS)}"
    more = {"\ud800": "\udfff", "extra": [{"deep": "\ud83d", "number": 1.50}]}
    event = {"id": f"no-harm-{record}", "client": record, "name": "A", **more}
    answer = at.post(event, source="eastern", delivery_id=record)
    assert (answer.status_code, json.loads(answer.data)["invalid"]) == (202, [])
    assert eventually(lambda: at.held().get(record, {}).get("company_name") == "A")


def test_a_day_sent_as_its_midnight_in_utc_is_that_of_the_zone_and_map_points_at_it(
    at: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As documented; and with what the hint says, the day that was meant."""
    record, midnight = f"c{next(NUMBERS)}", "2026-01-05T00:00:00Z"
    event = {"id": record, "client": record, "day": midnight, "closing": midnight}
    assert at.post(event, source="eastern", delivery_id=record).status_code == 202
    wanted = {"renewal_date": "2026-01-04", "closing_date": "2026-01-05"}
    assert eventually(lambda: wanted.items() <= at.held().get(record, {}).items())
    payload = tmp_path / "payload.json"
    payload.write_text(json.dumps(event), encoding="utf-8")
    assert run(["map", "--config", str(at.settings.file), "eastern", str(payload)]) == 0
    out = capsys.readouterr().out  # the service logs there too
    told, _ = json.JSONDecoder().raw_decode(out, out.index("{\n"))
    assert told["inputs"][0]["properties"] == wanted
    [hint] = told["hints"]
    assert hint == (
        f"renewal_date is '{midnight}', midnight in UTC, which is 2026-01-04 in America/New_York; where the day "
        "2026-01-05 is meant, give the property `timezone: UTC`"
    )


def test_three_changes_that_share_an_id_are_three_changes(at: House) -> None:
    """As HubSpot's eventId may; the answer names what each is kept under."""
    record, when = f"c{next(NUMBERS)}", time.time()
    changes: list[dict[str, Any]] = [{"name": "A"}, {"day": 20270105}, {"revenue": "1,5"}]
    requests = [{"id": "shared", "client": record, "at": when, **change} for change in changes]
    answers = [json.loads(at.post(one, delivery_id=f"shared_{n}").data) for n, one in enumerate(requests)]
    assert [answer["accepted"] for answer in answers] == [1, 1, 1]
    assert answers[0]["ids"] == ["shared"]
    assert len({answer["ids"][0] for answer in answers}) == 3
    again = [json.loads(at.post(one, delivery_id=f"again_{n}").data) for n, one in enumerate(requests)]
    assert [(answer["duplicates"], answer["ids"]) for answer in again] == [(1, answer["ids"]) for answer in answers]
    assert at.counted("bridge_events_total", source="acme", outcome="conflict") == 2
    wanted = {"company_name": "A", "renewal_date": "2027-01-05", "annual_revenue": "1.5"}
    assert eventually(lambda: wanted.items() <= at.held().get(record, {}).items())


@pytest.mark.parametrize("newer_first", [True, False])
def test_two_spellings_of_one_address_end_with_the_newer_change(at: House, *, newer_first: bool) -> None:
    """In whatever order they come, and whether the first is in the CRM by then or not."""
    number, now = next(NUMBERS), time.time() - 60
    changes = [
        {"id": f"s{number}", "client": f"Sales{number}@Example.com", "at": now, "name": "older"},
        {"id": f"t{number}", "client": f" sales{number}@example.com ", "at": now + 5, "name": "newer"},
    ]

    def held() -> dict[str, str]:
        found = at.crm.state(id_property="email").get("contacts", {})
        return {told: values["firstname"] for told, values in found.items() if str(number) in told}

    for change in reversed(changes) if newer_first else changes:
        assert at.post(change, source="sales", delivery_id=str(change["id"])).status_code == 202
        assert eventually(lambda: "newer" in held().values() or not newer_first)
    assert eventually(lambda: held().get(f"sales{number}@example.com") == "newer")
    assert "older" not in held().values() or not newer_first


def test_what_each_property_brought_is_counted(at: House) -> None:
    """Second deliveries too, as they tell what the payload looks like; nothing of what is refused as a whole."""
    outcomes = ("present", "absent", "null", "invalid")
    before = {outcome: mapped(at, outcome) for outcome in outcomes}
    values: list[dict[str, Any]] = [{"name": "A"}, {"name": "A"}, {"nmae": "A"}, {"name": " "}]
    for number, each in enumerate(values):
        status, _ = sent(at, each, record="counted", id="same" if number < 2 else f"other {number}", at=1767609000)
        assert status == 202
    assert {outcome: mapped(at, outcome) - before[outcome] for outcome in outcomes} == {
        "present": 2, "absent": 1, "null": 1, "invalid": 0,
    }  # fmt: skip
    refused = mapped(at, "invalid", "renewal_date")
    assert sent(at, {"day": "soon"}, record="counted")[0] == 422
    assert mapped(at, "invalid", "renewal_date") == refused


def test_all_properties_begin_at_zero(at: House) -> None:
    """A rate must see the first step, of a path that finds nothing as well."""
    text = at.service.metrics.exposition(at.service.gauges).decode()
    for name in ("renewal_date", "last_seen_at", "annual_revenue", "company_name"):
        for outcome in ("present", "absent"):
            assert f'bridge_mapped_properties_total{{outcome="{outcome}",property="{name}",source="acme"}}' in text
