"""Whole runs with kills at random instants and a CRM that fails, checked event by event (see `tests/history.py`)."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bridge.sandbox import Crm, SandboxServer
from bridge.sandbox.records import Address
from tests.history import History, Sent, check, run_history
from tests.running import Running

#: Kills of each long run beside those of its starts; HISTORY_KILLS=100 makes it 200 in all.
KILLS = int(os.environ.get("HISTORY_KILLS", "25"))
SEED = int(os.environ.get("HISTORY_SEED", "7"))


def run(folder: Path, *, workers: int, seed: int, kills: int) -> tuple[History, Crm, Running]:
    crm = Crm(open_properties=False)
    crm.behaviour.latency_s = 0.02
    with SandboxServer(crm) as sandbox:
        history, service = run_history(
            folder, crm, sandbox.url, workers=workers, seed=seed, kills=kills, events=20 * kills
        )
    breaches = check(history, crm, service)
    print(f"seed {seed}, {workers} workers: {history.summary()}; {len(breaches)} breaches")  # noqa: T201 (see -rP)
    assert breaches == []
    return history, crm, service


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.heavy), 2])
def test_f01_f02_f03_f04_kill_9_of_any_part_breaks_no_promise(tmp_path: Path, workers: int) -> None:
    history, crm, service = run(tmp_path, workers=workers, seed=SEED + workers, kills=4)

    # And the checker would have seen it: breaches of each kind, made by hand.
    calls = {call.seq: call for call in crm.ledger.calls("update")}
    value = next(
        one for one in crm.ledger.applied() if one.property == "company_name" and calls[one.call].fault is None
    )
    event = history.sent[value.value.removeprefix("name ")]
    standing = crm.state(id_property="acme_client_id")["partner_clients"]
    delivered = {each.id for each in history.of("acknowledged") if "platinum" not in each.values.values()}
    last = next(
        history.sent[id_]
        for record, values in standing.items()
        if record != event.record and (id_ := values.get("company_name", "").removeprefix("name ")) in delivered
    )
    history.sent[last.id] = replace(last, values={"company_name": "name that never came"})
    ghost = Sent("ghost", event.record, time.time() + 60, {"company_name": "name ghost"})
    history.sent["ghost"], history.answers["ghost"] = ghost, "acknowledged"
    history.answers[event.id] = "refused"
    history.kills.clear()
    address = Address(value.object_type, value.id_property, value.id)
    crm.ledger.apply(calls[max(calls)], address, value.record_id, {value.property: value.value})
    found = check(history, crm, service)
    assert {breach[:3] for breach in found} >= {"(a)", "(b)", "(c)", "(d)"}
    assert any("none of it ever arrived" in breach for breach in found)
    assert any("ghost" in breach for breach in found)


@pytest.mark.heavy
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [1, 2])
def test_f04_kill_9_many_times_breaks_no_promise(tmp_path: Path, workers: int) -> None:
    run(tmp_path, workers=workers, seed=SEED + 100 + workers, kills=KILLS)
