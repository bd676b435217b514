"""Whole runs with three replicas on one PostgreSQL, checked event by event (see `tests/history.py`).

Whichever replica receives what: order and idempotency hold (G3, G4), the limit of the whole deployment too (G6), and
every acknowledged event is accounted for (G1, G2).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bridge.sandbox import Crm, SandboxServer
from bridge.sandbox.faults import Fault
from tests.history import History, check
from tests.postgres import serving
from tests.replicas import CALLS, MISHAPS, TROUBLE, Replicas, sending, settle_down
from tests.running import eventually

#: Mishaps of the long run, and where chance begins.
MANY = int(os.environ.get("REPLICA_MISHAPS", "18"))
SEED = int(os.environ.get("HISTORY_SEED", "7"))
#: How long the CRM tells us to wait.
WAIT_S = 300


def examine(replicas: Replicas) -> History:
    history, crm = replicas.history, replicas.crm
    breaches = check(history, crm, replicas.services[0]) + disorder(replicas)
    calls = [call.started for call in crm.ledger.calls("update")]
    busiest = max(sum(at <= other < at + 10 for other in calls) for at in calls)
    print(  # noqa: T201 (the record)
        f"three replicas: {history.summary()}; {len(calls)} calls, at most {busiest} in 10 s; {len(breaches)} breaches"
    )
    assert breaches == []
    assert 429 not in {call.status for call in crm.ledger.calls("update")}
    assert busiest <= CALLS
    assert len(history.of("acknowledged")) > 100
    return history


def disorder(replicas: Replicas) -> list[str]:
    """Values that were applied after a newer one of the same property (G4), none in a sound run."""
    times = {value: event.at for event in replicas.history.sent.values() for value in event.values.values()}
    newest: dict[tuple[str, str], float] = {}
    found = []
    for one in replicas.crm.ledger.applied():
        if " " not in one.value:  # a tier is not one event's alone
            continue
        address = (one.id, one.property)
        if times[one.value] < newest.get(address, float("-inf")):
            found.append(f"(order) {one} after a newer one")
        newest[address] = max(times[one.value], newest.get(address, float("-inf")))
    return found


def test_a_replica_is_killed_the_dispatcher_frozen_and_the_database_restarted(tmp_path: Path) -> None:
    """The frozen one comes back in the middle of its call, after another has taken over."""
    crm = Crm(open_properties=False, limit=CALLS)
    crm.behaviour.latency_s = 0.15
    with serving() as server, SandboxServer(crm) as sandbox:
        replicas = Replicas.make(tmp_path, server, crm, sandbox.url, seed=SEED)
        try:
            replicas.start()
            crm.faults.set_rates(TROUBLE)
            with sending(replicas, seed=SEED):
                idle = [one for one in replicas.services if one is not replicas.dispatcher()]
                replicas.kill(idle[0])
                replicas.freeze(meanwhile="crash the database")
            settle_down(replicas)
            history = examine(replicas)
        finally:
            replicas.end()
    assert {what for *_, what in history.kills} == {"kill", "freeze", "database immediate"}


def test_a_pause_and_its_reason_are_handed_over(tmp_path: Path) -> None:
    """The CRM told one dispatcher to wait; the next one, there at once after a clean stop, waits for the same time."""
    crm = Crm(open_properties=False)
    with serving() as server, SandboxServer(crm) as sandbox:
        replicas = Replicas.make(tmp_path, server, crm, sandbox.url, seed=SEED, number=2)
        try:
            replicas.start()
            first = replicas.dispatcher()
            [second] = [one for one in replicas.services if one is not first]
            crm.faults.next(Fault("429", retry_after=str(WAIT_S)))
            assert second.post({"id": "e1", "client": "c1", "at": 1, "name": "one"}).status_code == 202
            assert eventually(lambda: bool(second.status()["pauses"]))
            [told] = second.status()["pauses"]
            _, epoch = replicas.term()
            assert first.stop() == 0
            assert eventually(lambda: replicas.taken_over(epoch), within_s=2.0)
            time.sleep(1.5)
            assert second.status()["pauses"] == [told]
            assert [call.status for call in crm.ledger.calls("update")] == [429]
        finally:
            replicas.end()


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_mishaps_again_and_again(tmp_path: Path) -> None:
    crm = Crm(open_properties=False, limit=CALLS)
    crm.behaviour.latency_s = 0.15
    with serving() as server, SandboxServer(crm) as sandbox:
        replicas = Replicas.make(tmp_path, server, crm, sandbox.url, seed=SEED, workers=2)
        try:
            replicas.start()
            crm.faults.set_rates(TROUBLE)
            with sending(replicas, seed=SEED):
                for number in range(MANY):
                    replicas.happen(MISHAPS[number] if number < len(MISHAPS) else replicas.chance.choice(MISHAPS))
            settle_down(replicas)
            examine(replicas)
        finally:
            replicas.end()
