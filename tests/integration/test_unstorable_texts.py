"""Half a surrogate pair, NUL and the like, over HTTP on both databases: invalid where mapped, else no matter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from werkzeug.test import Client

from tests.e2e.test_identity_faults import House, house
from tests.running import eventually

SOURCES = """\
  acme:
    verify: {scheme: none}
    when: kind != 'no'
    event_id: id
    occurred_at: at
    record: {id: client, id_property: acme_client_id}
    properties: &properties
      text: text
      email: {from: email, type: string, format: email}
      number: {from: number, type: number}
      day: {from: day, type: date}
      pattern: {from: pattern, type: date, format: ["%d/%m/%Y", rfc2822, excel]}
      moment: {from: moment, type: datetime, timezone: UTC}
      flag: {from: flag, type: bool}
      tier: {from: tier, type: enumeration, values: {Gold: gold}}
      tags: {from: tags, type: enumeration, multiple: true}
      phone: {from: phone, type: phone_number}
      lower: "lower(lower)"
      sorted: "sorted && join(',', sort(sorted))"
      inner: "parse_json(inner).a"
      compared: "compared < 'x' && 'less' || 'more'"
      quoted: '"\\ud800key"'
  lines:
    verify: {scheme: none}
    body: ndjson
    event_id: id
    record: {id: client, id_property: acme_client_id}
    properties: *properties
  form:
    verify: {scheme: none}
    body: form
    payload_field: payload
    event_id: id
    record: {id: client, id_property: acme_client_id}
    properties: *properties
  rooted:
    verify: {scheme: none}
    events: items
    event_id: id
    record: {id: client, id_property: acme_client_id}
    properties: {text: _root.account, kept: kept}
  made:
    verify: {scheme: none}
    events: "items[].{id: id, client: client, text: join('', [one, other]), all: @}"
    event_id: id
    record: {id: client, id_property: acme_client_id}
    properties: {text: text}
  pairs:
    verify: {scheme: none}
    event_id: id
    record: {id: client, id_property: acme_client_id}
    pairs: {in: fields, name: n, value: v, properties: {text: text, kept: kept}}
  own:
    verify: {scheme: none}
    event_id: id
    record: {id: client, id_property: acme_client_id}
    schema: tests.own_schemas:Open
  greeted:
    verify: {scheme: none}
    challenge: {method: POST, when: challenge, reply: challenge, as: json}
    event_id: id
    record: {id: client, id_property: acme_client_id}
    properties: {text: text}
"""
SOUND = {
    "text": "A", "email": "a@b.example", "number": "1.5", "day": "2026-01-05", "pattern": "05/01/2026",
    "moment": "2026-01-05T10:30:00Z", "flag": "yes", "tier": "Gold", "tags": ["a", "b"], "phone": "123", "lower": "L",
    "sorted": ["a", "b"], "inner": '{"a": "x"}', "compared": "a", "\ud800key": "k",
}  # fmt: skip
PROPERTY = {"\ud800key": "quoted"}
ODD = {"half": "Caf\ud800é", "the other half": "\udfff", "NUL": "a\0b"}


@pytest.fixture
def at(tmp_path: Path, journal_url: str) -> Iterator[House]:
    with house(tmp_path, SOURCES, journal_url) as found:
        yield found


def post(at: House, source: str, payload: Any, *, kind: str = "application/json") -> dict[str, Any]:
    body = payload if isinstance(payload, str) else json.dumps(payload)
    answer = at.client.post(f"/webhooks/{source}", data=body, headers={"Content-Type": kind})
    assert answer.status_code == 202, (body, answer.text)
    found: dict[str, Any] = json.loads(answer.data)
    return found


def get(at: House, path: str) -> Any:
    answer = Client(at.service.admin).get(path)
    assert answer.status_code == 200, answer.text
    return json.loads(answer.data)


def assert_replays_to_the_same(at: House) -> None:
    """What is kept of every event asks for what the event asked for."""
    told = Client(at.service.admin).post("/api/events/replay", json={"all": True, "dry_run": True})
    answer = json.loads(told.data)
    assert answer["differences"] == [], answer


def test_only_the_value_that_holds_it_is_invalid(at: House) -> None:
    """In each property of each type: in an array the other events and properties are taken, and a second delivery is
    one; the message names the reason and shows the value, in the answer, the retry log, traces and the console.
    """
    refused = {}
    for place, (key, sound) in enumerate(SOUND.items()):
        for what, odd in ODD.items():
            number = f"{place}-{what.replace(' ', '-')}"
            value: Any = odd
            if isinstance(sound, list):
                value = [odd, "b"]
            elif key == "inner":
                value = json.dumps({"a": odd})
            one = {"id": number, "client": number, **SOUND, key: value}
            events = [
                {"id": f"a{number}", "client": f"a{number}", **SOUND},
                one,
                {"id": f"z{number}", "client": f"z{number}", **SOUND},
            ]
            answer = post(at, "acme", events)
            assert answer["parked"] == 0
            name = PROPERTY.get(key, key)
            if name == "compared":
                assert answer["invalid"] == []
            else:
                [invalid] = answer["invalid"]
                assert (invalid["index"], list(invalid["errors"])) == (1, [name])
                [message] = invalid["errors"].values()
                assert message.isprintable()
                assert r"\x00" in message or r"\ud800" in message or r"\udfff" in message
                refused[number] = (name, message)
            assert post(at, "acme", events)["duplicates"] == 3
    assert eventually(lambda: set(refused) <= set(at.held()))
    for number, (name, _) in refused.items():
        assert name not in at.held()[number]
        assert at.held()[number].keys() >= {PROPERTY.get(key, key) for key in SOUND} - {name}
    assert eventually(lambda: len(get(at, "/api/retries?limit=500")) == len(refused))
    waiting = {entry["record"]: entry for entry in get(at, "/api/retries?limit=500")}
    assert {record: (*entry["properties"], entry["message"]) for record, entry in waiting.items()} == {
        number: (name, message) for number, (name, message) in refused.items()
    }
    admin = Client(at.service.admin)
    for number in ("0-half", "0-NUL"):
        assert get(at, f"/api/trace/{number}")
        payload = admin.get(f"/retries/{waiting[number]['id']}").text.partition("<pre")[2]
        assert (
            f"&#34;{json.dumps(ODD[number[2:]], ensure_ascii=False)[1:-1]}&#34;".replace("\ud800", r"\ud800") in payload
        )
        for page in (f"/retries/{waiting[number]['id']}", f"/trace?id={number}", "/", "/sources/acme", "/openapi.json"):
            assert admin.get(page).status_code == 200
    assert_replays_to_the_same(at)


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_where_nothing_maps_it_it_does_no_harm(at: House, odd: str) -> None:
    """Be it a value, a key, or deep within; in each form of body. Nothing is invalid, and it is kept as it came."""
    more = {"extra": odd, odd: 1, "deep": [{odd: {"x": [odd, 1.50]}}], "kind": odd}
    payload = {"id": "e", **SOUND, **more}
    clean = {"accepted": 1, "parked": 0, "invalid": []}
    for source, body, kind in (
        ("acme", json.dumps({"client": "1", **payload}), "application/json"),
        ("lines", json.dumps({"client": "2", **payload}) + "\n", "application/x-ndjson"),
        ("form", "payload=" + quote(json.dumps({"client": "3", **payload})), "application/x-www-form-urlencoded"),
        (
            "rooted",
            json.dumps({"account": "A", "items": [{"id": "e", "client": "4", **more, "kept": "A"}], **more}),
            "",
        ),
        ("made", json.dumps({"items": [{"id": "e", "client": "5", "one": "A", "other": "B", **more}]}), ""),
        ("pairs", json.dumps({"id": "e", "client": "6", "fields": [{"n": odd, "v": 1}, {"n": "text", "v": "A"}]}), ""),
        ("greeted", json.dumps({"id": "e", "client": "7", "text": "A", **more}), ""),
    ):
        answer = post(at, source, body, kind=kind or "application/json")
        assert {name: answer[name] for name in clean} == clean, source
        assert post(at, source, body, kind=kind or "application/json")["duplicates"] == 1, source
    assert_replays_to_the_same(at)


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_else_looks_at_it(at: House, odd: str) -> None:
    """Event ids are hashed, record ids parked, times not believed, schemas told, handshakes answered."""
    ids = [post(at, "acme", {"id": odd, "client": "1", "text": "A"})["ids"] for _ in range(2)]
    assert ids[0] == ids[1]
    assert ids[0][0].startswith("sha256-")
    parked = post(at, "acme", {"id": "r", "client": odd, "text": "A"})
    assert parked["parked"] == 1
    assert parked["invalid"][0]["errors"]["record"].startswith("the record id is '")
    undated = post(at, "acme", {"id": "t", "client": "2", "text": "A", "at": odd})
    assert (undated["accepted"], list(undated["invalid"][0]["errors"])) == (1, ["occurred_at"])
    own = post(at, "own", {"id": "o", "client": "3", "text": odd, "kept": "A"})
    assert own["accepted"] == 1
    assert set(own["invalid"][0]["errors"]) == {"text"}
    rooted = post(at, "rooted", {"account": odd, "items": [{"id": "e", "client": "4", "kept": "A"}]})
    assert list(rooted["invalid"][0]["errors"]) == ["text"]
    greeted = at.client.post("/webhooks/greeted", json={"challenge": odd})
    assert (greeted.status_code, json.loads(greeted.data)) == (200, odd)
    assert eventually(lambda: at.held().get("4", {}).get("kept") == "A")
    assert_replays_to_the_same(at)


def test_two_halves_that_an_expression_joins_are_the_character(at: House) -> None:
    """On arrival as in a replay, which reads what was kept."""
    events = [{"id": "e", "client": "c", "one": "\ud83d", "other": "\ude00"}]
    assert post(at, "made", {"items": events})["invalid"] == []
    assert eventually(lambda: at.held().get("c", {}).get("text") == "😀")
    assert_replays_to_the_same(at)
