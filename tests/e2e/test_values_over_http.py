"""Values that public bug reports found silently wrong: each over HTTP, with the value that a person would read."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
