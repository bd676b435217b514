"""The main job end to end: real processes, real HTTP, the sandbox CRM."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests

from bridge.sandbox import Crm, SandboxServer
from tests.running import Running, eventually, running


def client(event: str, client_id: str, at: float, **values: Any) -> dict[str, Any]:
    return {"id": event, "client": client_id, "at": at, **values}


def held(crm: Crm) -> dict[str, dict[str, str]]:
    return crm.state(id_property="acme_client_id").get("partner_clients", {})


MIXED = """\
  acme:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    events: "items || @"
    event_id: id
    occurred_at: at
    mappings:
      - when: "kind == 'profile'"
        record: {id: client, id_property: acme_client_id}
        properties: {company_name: name, notes: notes}
      - when: "kind == 'billing'"
        record: {id: client, id_property: acme_client_id}
        properties: {annual_revenue: {from: revenue, type: number}}
      - when: "kind == 'fields'"
        record: {id: client, id_property: acme_client_id}
        pairs: {in: fields, name: key, value: value, properties: {plan: tier, active: {to: active, type: bool}}}
"""

#: Where each kind of event keeps its values: property → how it looks in the payload.
TIERS = ("gold", "silver", "bronze")


def make_events(chance: random.Random, number: int, records: int, start: float) -> list[dict[str, Any]]:
    events = []
    for at in range(number):
        event: dict[str, Any] = {"id": f"e{at}", "client": f"c{chance.randrange(records)}", "at": start + at / 100}
        kind = chance.choice(["profile", "billing", "fields"])
        event["kind"] = kind
        if kind == "profile":
            event |= {"name": f"name {at}", "notes": chance.choice(["a", "b", f"note {at}"])}
        elif kind == "billing":
            event["revenue"] = chance.randrange(100_000) / 100
        else:
            event["fields"] = [{"key": "plan", "value": chance.choice(TIERS)}, {"key": "active", "value": at % 2 == 0}]
        events.append(event)
    return events


def model(events: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """What applying the events one by one in order of their time gives."""
    state: dict[str, dict[str, str]] = {}
    for event in sorted(events, key=lambda event: event["at"]):
        record = state.setdefault(event["client"], {})
        if event["kind"] == "profile":
            record |= {"company_name": event["name"], "notes": event["notes"]}
        elif event["kind"] == "billing":
            record["annual_revenue"] = f"{event['revenue']:.2f}".rstrip("0").rstrip(".")
        else:
            record["tier"] = event["fields"][0]["value"]
            record["active"] = "true" if event["fields"][1]["value"] else "false"
    return state


def assert_contract(crm: Crm) -> None:
    """At most 100 inputs, no record twice in a call or in two open calls, strings only: nothing was broken."""
    assert crm.ledger.violations() == []
    assert all(1 <= len(call.inputs) <= 100 for call in crm.ledger.calls("update"))
    assert all(isinstance(applied.value, str) for applied in crm.ledger.applied())


@pytest.mark.parametrize("workers", [1, 2])
def test_two_thousand_events_arrive_as_if_applied_one_by_one(tmp_path: Path, workers: int) -> None:
    """Single and in arrays, out of several mappings, shuffled; a second delivery of any of them changes nothing."""
    chance = random.Random(workers)
    events = make_events(chance, 2000, 150, time.time() - 100)
    shuffled = events[:]
    chance.shuffle(shuffled)
    payloads: list[Any] = []
    while shuffled:
        size = chance.choice([1, 1, 1, 20, 60])
        part, shuffled = shuffled[:size], shuffled[size:]
        payloads.append(part[0] if size == 1 else {"items": part})
    crm = Crm(open_properties=False)
    crm.behaviour.latency_s = 0.03
    with (
        SandboxServer(crm) as sandbox,
        running(tmp_path, sandbox.url, sources=MIXED, workers=workers) as service,
    ):
        answers = service.post_all(payloads)
        assert {answer.status_code if answer is not None else None for answer in answers} == {202}
        bodies = [answer.json() for answer in answers if answer is not None]
        assert sum(body["accepted"] for body in bodies) == 2000
        assert eventually(service.idle)
        assert held(crm) == model(events)
        assert_contract(crm)
        before = len(crm.ledger.applied())
        again = service.post_all([{"items": events[at : at + 50]} for at in range(0, 2000, 50)])
        assert sum(answer.json()["duplicates"] for answer in again if answer is not None) == 2000
        time.sleep(0.3)
        assert service.idle()
        assert len(crm.ledger.applied()) == before


def test_one_refused_value_and_one_unknown_record_cost_only_themselves(tmp_path: Path) -> None:
    """Of 100 records 98 are delivered in the same flush; the two wait with HubSpot's own message; replay delivers."""
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as sandbox, running(tmp_path, sandbox.url, flush_interval="300ms") as service:
        events = [client(f"e{at}", f"c{at}", time.time(), name=f"n{at}", tier="gold") for at in range(98)]
        events += [client("bad", "c98", time.time(), name="n98", tier="platinum")]
        events += [client("gone", "unknown-1", time.time(), name="n99", tier="gold")]
        assert service.post(events).json()["accepted"] == 100
        assert eventually(lambda: len(service.entries()) == 2 and service.idle())
        first = crm.ledger.calls("update")[0]
        assert len(first.inputs) == 100
        state = held(crm)
        assert sum(values.get("tier") == "gold" for values in state.values()) == 98
        assert state["c98"] == {"company_name": "n98"}
        by_record = {entry.record: entry for entry in service.entries()}
        assert by_record["c98"].properties == ("tier",)
        assert by_record["c98"].category == "VALIDATION_ERROR"
        assert "platinum was not one of the allowed options" in by_record["c98"].message
        assert by_record["unknown-1"].category == "OBJECT_NOT_FOUND"
        assert "Could not get some" in by_record["unknown-1"].message

        listed = orjson.loads(service.run("retries", "list", "--json").stdout)
        assert {entry["record"] for entry in listed} == {"c98", "unknown-1"}
        # The CRM takes both from now on.
        define_platinum(crm)
        crm.records.add("partner_clients", "unknown-1", id_property="acme_client_id")
        replayed = service.run("retries", "replay", "--all")
        assert replayed.returncode == 0, replayed.stderr
        assert eventually(lambda: not service.entries() and service.idle())
        assert held(crm)["c98"]["tier"] == "platinum"
        assert held(crm)["unknown-1"]["company_name"] == "n99"
        assert_contract(crm)


def define_platinum(crm: Crm) -> None:
    crm.define("partner_clients", "tier", "enumeration", options=("gold", "silver", "bronze", "platinum"))


def test_an_outage_of_the_crm_loses_and_parks_nothing(tmp_path: Path) -> None:
    """Webhooks are still accepted, the service stays ready and alive, and all arrives when the CRM is back."""
    crm = Crm(open_properties=False)
    server = SandboxServer(crm)
    server.start()
    with running(tmp_path, server.url) as service:
        server.stop()
        events = [client(f"e{at}", f"c{at % 40}", time.time() + at / 1000, name=f"n{at}") for at in range(200)]
        answers = service.post_all(list(events))
        assert {answer.status_code if answer is not None else None for answer in answers} == {202}
        assert eventually(lambda: bool(service.status()["pauses"]))
        for probe in ("livez", "readyz"):
            assert requests.get(f"{service.admin_url}/{probe}", timeout=5).status_code == 200
        assert service.entries() == []
        assert service.status()["pauses"][0]["scope"] == "all"
        server.start()
        assert eventually(service.idle)
        assert {record: values["company_name"] for record, values in held(crm).items()} == {
            f"c{at}": f"n{160 + at}" for at in range(40)
        }
        assert service.entries() == []
        assert eventually(lambda: service.status()["pauses"] == [])
        assert_contract(crm)
    server.stop()


@pytest.mark.parametrize("workers, seed", [(1, 1), (2, 2)])
def test_kill_9_in_the_middle_of_a_load_loses_nothing_accepted(tmp_path: Path, workers: int, seed: int) -> None:
    """Everything answered 202 is in the CRM at the end, and nothing that was never sent."""
    kill_round(tmp_path, workers=workers, seed=seed, kills=2)


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(4))
def test_kill_9_again_and_again(tmp_path: Path, seed: int) -> None:
    """The same with more kills at other moments."""
    kill_round(tmp_path, workers=1 + seed % 2, seed=100 + seed, kills=5)


def kill_round(folder: Path, *, workers: int, seed: int, kills: int) -> None:
    chance = random.Random(seed)
    crm = Crm(open_properties=False)
    crm.behaviour.latency_s = 0.02
    accepted: dict[str, dict[str, Any]] = {}
    unsure: dict[str, dict[str, Any]] = {}
    number = 0
    with SandboxServer(crm) as sandbox:
        service = Running(folder, sandbox.url, workers=workers)
        try:
            for _ in range(kills):
                service.start()
                until, enough = time.monotonic() + chance.uniform(0.3, 1.0), len(accepted) + 40
                while time.monotonic() < until or len(accepted) <= enough:
                    events = []
                    for _ in range(40):
                        number += 1
                        at = time.time() + number / 1e6
                        events.append(client(f"e{number}", f"c{number % 60}", at, name=f"n{number}"))
                    for event, answer in zip(events, service.post_all(list(events)), strict=True):
                        (accepted if answer is not None and answer.status_code == 202 else unsure)[event["id"]] = event
                service.kill_all()
            service.start()
            # What was not answered may or may not be there; the sender tries again, as senders do.
            again = service.post_all(list(unsure.values()))
            assert all(answer is not None and answer.status_code == 202 for answer in again)
            assert eventually(service.idle, within_s=60)
            newest: dict[str, str] = {}
            for event in sorted([*accepted.values(), *unsure.values()], key=lambda event: event["at"]):
                newest[event["client"]] = event["name"]
            assert {record: values["company_name"] for record, values in held(crm).items()} == newest
            assert len(accepted) > 40 * kills
            violations = [str(violation) for violation in crm.ledger.violations()]
            assert violations == []
            assert service.stop() == 0
        finally:
            if service.process is not None and service.process.poll() is None:
                service.kill_all()


def test_sigterm_flushes_and_exits_0(tmp_path: Path) -> None:
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as sandbox, running(tmp_path, sandbox.url, flush_interval="5s") as service:
        service.post(client("e1", "c1", time.time(), name="n1"))
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 8
        assert held(crm) == {"c1": {"company_name": "n1"}}
        assert "Traceback" not in service.log.read_text(encoding="utf-8")


def test_f13_sigterm_while_the_crm_hangs_ends_in_time_and_loses_nothing(tmp_path: Path) -> None:
    crm = Crm(open_properties=False)
    crm.faults.always("timeout")
    with SandboxServer(crm) as sandbox, running(tmp_path, sandbox.url, drain_timeout="2s") as service:
        service.post(client("e1", "c1", time.time(), name="n1"))
        assert eventually(lambda: len(crm.ledger.calls("update")) > 0 or service.status()["in_flight"] > 0)
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 2 + 4
        crm.faults.stop("timeout")
        service.start()
        assert eventually(service.idle)
        assert held(crm) == {"c1": {"company_name": "n1"}}
