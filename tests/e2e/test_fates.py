"""Each event's fate, as `trace` tells it of a running service; and a record that the CRM does not know at first."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from bridge.sandbox import Crm, SandboxServer
from tests.running import ACME, Running, eventually, running

SOURCES = (
    ACME
    + """\
  waiting:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    event_id: id
    record: {id: client, id_property: acme_client_id, on_unknown: wait}
    properties: {company_name: name}
  careless:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    event_id: id
    when: "name != 'nothing'"
    unchanged: skip
    record: {id: client, id_property: acme_client_id, on_unknown: ignore}
    properties: {company_name: name}
"""
)


@pytest.fixture
def crm() -> Crm:
    return Crm(open_properties=False)


@pytest.fixture
def service(tmp_path: Path, crm: Crm) -> Iterator[Running]:
    with SandboxServer(crm) as sandbox, running(tmp_path, sandbox.url, sources=SOURCES) as started:
        yield started


def told(service: Running, event: str) -> dict[str, Any]:
    """The event's story, as `trace --json` prints it."""
    [story] = requests.get(f"{service.admin_url}/api/trace/{event}", timeout=30).json()["events"]
    found: dict[str, Any] = story
    return found


def read(service: Running, event: str) -> str:
    """The same as people read it."""
    return service.run("trace", event).stdout


def test_trace_tells_every_fate_of_an_event(service: Running, crm: Crm) -> None:
    now = time.time()
    service.post([{"id": "first", "client": "c1", "at": now - 9, "name": "A", "notes": "kept"}])
    assert eventually(service.idle)
    service.post(
        [
            {"id": "newer", "client": "c1", "at": now - 5, "name": "B"},
            {"id": "late", "client": "c1", "at": now - 20, "name": "0"},
            {"id": "bad", "client": "c2", "at": now, "name": "C", "tier": "platinum"},
            {"id": "lost", "client": "unknown-1", "at": now, "name": "D"},
            {"id": "given-up", "client": "unknown-2", "at": now, "name": "E"},
            {"id": "nameless", "at": now, "name": "F"},
        ]
    )
    assert eventually(service.idle)
    service.run("retries", "discard", "--record", "unknown-2", "--yes")
    service.post({"id": "same", "client": "c1", "name": "B"}, source="careless")
    service.post({"id": "unknown", "client": "unknown-3", "name": "G"}, source="careless")
    service.post({"id": "nothing", "client": "c1", "name": "nothing"}, source="careless")
    assert eventually(service.idle)

    fates = {}
    for event in ("first", "newer", "late", "bad", "lost", "given-up", "same", "unknown"):
        [asked] = told(service, event)["records"]
        fates[event] = {fate["property"]: fate for fate in asked["properties"]}
    assert {event: {name: fate["fate"] for name, fate in found.items()} for event, found in fates.items()} == {
        "first": {"company_name": "superseded", "notes": "delivered"},
        "newer": {"company_name": "superseded"},
        "late": {"company_name": "superseded"},
        "bad": {"company_name": "delivered", "tier": "refused"},
        "lost": {"company_name": "parked"},
        "given-up": {"company_name": "discarded"},
        "same": {"company_name": "unchanged"},
        "unknown": {"company_name": "unknown"},
    }
    calls = {call.correlation_id for call in crm.ledger.calls("update")}
    assert fates["first"]["notes"]["call"]["correlation_id"] in calls
    # By which event, and whether it had been delivered before.
    overtaken = fates["first"]["company_name"]
    assert (overtaken["by_event"], overtaken["by_source"]) == ("newer", "acme")
    assert overtaken["delivered_before"]["correlation_id"] in calls
    text = read(service, "first")
    assert "superseded by event newer of acme, delivered before in call" in text
    assert str(fates["first"]["notes"]["call"]["correlation_id"]) in text
    assert fates["late"]["company_name"]["by_event"] == "newer"
    assert fates["late"]["company_name"]["delivered_before"] is None
    assert fates["newer"]["company_name"]["by_event"] == "same"
    assert fates["same"]["company_name"]["call"]["correlation_id"] in calls  # the one that had confirmed it
    assert "platinum" in fates["bad"]["tier"]["message"]
    assert fates["lost"]["company_name"]["category"] == "OBJECT_NOT_FOUND"
    assert "the CRM knows no such record" in read(service, "unknown")
    story = told(service, "nothing")
    assert (story["taken_as"], story["records"]) == ("ignored", [])
    assert told(service, "nameless")["waits"]
    assert "waits in the retry log" in read(service, "nameless")


def test_an_unknown_record_is_waited_for_and_delivered_when_it_is_there(service: Running, crm: Crm) -> None:
    service.post({"id": "early", "client": "unknown-1", "name": "A"}, source="waiting")
    assert eventually(lambda: [entry.state for entry in service.entries()] == ["retrying"])
    [fate] = told(service, "early")["records"][0]["properties"]
    assert (fate["fate"], fate["category"]) == ("retrying", "OBJECT_NOT_FOUND")
    assert eventually(lambda: len(crm.ledger.calls("update")) >= 3), "asked again at growing intervals"
    crm.records.add("partner_clients", "unknown-1", id_property="acme_client_id", properties={})
    assert eventually(lambda: service.entries() == [] and service.idle())
    [fate] = told(service, "early")["records"][0]["properties"]
    assert fate["fate"] == "delivered"
    assert crm.state(id_property="acme_client_id")["partner_clients"]["unknown-1"] == {"company_name": "A"}


def test_a_discard_gives_up_what_was_counted_and_nothing_that_came_since(service: Running, crm: Crm) -> None:
    """A newer event arrives while a person makes up their mind."""
    service.post({"id": "old", "client": "unknown-1", "name": "A"}, source="waiting")
    service.post({"id": "gone", "client": "unknown-2", "name": "B"}, source="waiting")
    assert eventually(lambda: len(service.entries()) == 2)
    counted = datetime.now(UTC).isoformat()
    service.post({"id": "new", "client": "unknown-1", "name": "C"}, source="waiting")
    body = {"all": True, "seen": counted}
    answer = requests.post(f"{service.admin_url}/api/retries/discard", json=body, timeout=30)
    assert answer.json()["given_up"] == 1, answer.text
    assert [entry.record for entry in service.entries()] == ["unknown-1"]
    assert told(service, "old")["records"][0]["properties"][0]["by_event"] == "new"
    crm.records.add("partner_clients", "unknown-1", id_property="acme_client_id", properties={})
    assert eventually(lambda: service.entries() == [])
    assert crm.state(id_property="acme_client_id")["partner_clients"]["unknown-1"] == {"company_name": "C"}
