"""Calls without an answer that are applied late, over a newer value that was confirmed meanwhile.

The sandbox applies a call after its client has given up. That the older value then stands in the CRM is shown
first, so that these tests cannot pass by luck; two minutes after the call began the newest one is sent again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.journal.due import DOUBT_US
from bridge.sandbox import Crm, Fault, SandboxServer
from tests.rig import Rig, rigged
from tests.running import Running, eventually, running

DOUBT_S = DOUBT_US / 1e6

#: Ends of a call after which it may still be applied.
ENDS = {
    "time-out": Fault("apply-late", apply_after_s=0.45, hold_s=30),
    "reset": Fault("apply-late", apply_after_s=0.45, reset=True),
    "502": Fault("502", apply_after_s=0.45),
    "502 in HTML": Fault("502-html", apply_after_s=0.45),
    "504": Fault("504", apply_after_s=0.45),
    "524": Fault("524", apply_after_s=0.45),
    "truncated": Fault("truncated", apply=False, apply_after_s=0.45),
    "garbage": Fault("garbage", apply_after_s=0.45),
    "pending": Fault("pending", count=0, apply_after_s=0.45),
}


def name(rig: Rig, record: str) -> str | None:
    return rig.held().get(record, {}).get("company_name")


def sent(rig: Rig, value: str) -> int:
    return sum(value in one.properties.values() for call in rig.calls() for one in call.inputs)


#: The others lead the same way; the long runs play them.
SHORT = ("time-out", "reset", "524", "truncated")


@pytest.mark.parametrize("end", [end if end in SHORT else pytest.param(end, marks=pytest.mark.heavy) for end in ENDS])
def test_a_call_applied_late_leaves_no_older_value_behind(tmp_path: Path, end: str) -> None:
    with rigged(tmp_path, timeout_s=0.2) as rig:
        rig.crm.faults.next(ENDS[end])
        rig.ask("c1", {"company_name": "old"})
        rig.until(lambda: len(rig.calls()) == 1)
        rig.ask("c1", {"company_name": "new"})
        rig.until(lambda: name(rig, "c1") == "new", passing_s=0.02)
        assert rig.crm.settle()
        assert name(rig, "c1") == "old"  # it landed late
        assert rig.crm.ledger.applied()[-1].value == "old"
        rig.clock.shift(DOUBT_S + 1)
        rig.until(lambda: name(rig, "c1") == "new")
        rig.until(rig.idle)
        assert sent(rig, "new") == 2
        assert rig.entries() == {}


def test_the_same_after_a_restart_in_the_middle_of_the_call(tmp_path: Path) -> None:
    with rigged(tmp_path) as rig:
        rig.crm.faults.next(Fault("apply-late", apply_after_s=0.7, hold_s=30))
        rig.ask("c1", {"company_name": "old"})
        rig.until(lambda: len(rig.calls()) == 1)
        rig.restart()
        rig.ask("c1", {"company_name": "new"})
        rig.until(lambda: name(rig, "c1") == "new", passing_s=0.02)
        rig.restart()
        assert rig.crm.settle()
        assert name(rig, "c1") == "old"
        rig.clock.shift(DOUBT_S + 1)
        rig.until(lambda: name(rig, "c1") == "new")
        rig.until(rig.idle)
        assert sent(rig, "new") == 2


def test_only_what_changed_meanwhile_is_sent_once_more(tmp_path: Path) -> None:
    """Of a doubtful call of 40 records 5 have newer values: those alone go again, and only these properties."""
    with rigged(tmp_path, timeout_s=0.2) as rig:
        records = [f"c{number}" for number in range(40)]
        rig.crm.faults.next(Fault("apply-late", apply_after_s=0.45, hold_s=30))
        rig.ask_all({record: {"company_name": "old", "notes": "kept"} for record in records})
        rig.until(lambda: len(rig.calls()) == 1)
        rig.ask_all({record: {"company_name": "newer"} for record in records[:5]})
        rig.ask_all({record: {"company_name": "newest"} for record in records[:5]})
        rig.until(lambda: all(name(rig, record) == "newest" for record in records[:5]), passing_s=0.02)
        rig.until(lambda: all(name(rig, record) == "old" for record in records[5:]), passing_s=0.02)
        assert rig.crm.settle()
        assert name(rig, "c0") == "old"
        calls = len(rig.calls())
        rig.clock.shift(DOUBT_S + 1)
        rig.until(rig.idle)
        again = [one for call in rig.calls()[calls:] for one in call.inputs]
        assert {one.id for one in again} == set(records[:5])
        assert all(one.properties["company_name"] == "newest" for one in again)
        expected = {record: {"company_name": "newest" if record in records[:5] else "old"} for record in records}
        assert rig.held() == {record: {**values, "notes": "kept"} for record, values in expected.items()}


def test_a_doubtful_call_whose_values_are_confirmed_afterwards_is_not_repeated(tmp_path: Path) -> None:
    with rigged(tmp_path, timeout_s=0.2) as rig:
        rig.crm.faults.next(Fault("apply-late", apply_after_s=0.45, hold_s=30))
        rig.ask("c1", {"company_name": "only"})
        rig.until(lambda: len(rig.calls()) == 1)
        rig.until(rig.idle, passing_s=0.02)
        assert rig.crm.settle()
        calls = len(rig.calls())
        rig.clock.shift(DOUBT_S + 1)
        rig.ask("c2")
        rig.until(lambda: name(rig, "c2") is not None)
        rig.until(rig.idle)
        assert len(rig.calls()) == calls + 1
        assert name(rig, "c1") == "only"


@pytest.mark.parametrize("kind", ["500", "503", "429", "409", "whole-400"])
def test_a_complete_refusal_leaves_no_doubt(tmp_path: Path, kind: str) -> None:
    """The newer value is sent once, and not again two minutes later."""
    with rigged(tmp_path) as rig:
        rig.crm.faults.next(Fault(kind, retry_after="0"))
        rig.ask("c1", {"company_name": "old"})
        rig.until(lambda: len(rig.calls()) == 1)
        rig.ask("c1", {"company_name": "new"})
        rig.until(lambda: name(rig, "c1") == "new", passing_s=0.1)
        rig.until(rig.idle, passing_s=0.1)
        calls = len(rig.calls())
        rig.clock.shift(DOUBT_S + 1)
        rig.ask("c2")
        rig.until(lambda: name(rig, "c2") is not None)
        assert len(rig.calls()) == calls + 1


@pytest.mark.heavy
def test_a_call_applied_late_leaves_no_older_value_behind_in_real_time(tmp_path: Path) -> None:
    """A real service, two real minutes."""
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as server, running(tmp_path, server.url, timeout="1s") as service:
        crm.faults.next(Fault("apply-late", apply_after_s=5, hold_s=30))
        post(service, "e1", 1, "old")
        assert eventually(lambda: len(crm.ledger.calls("update")) == 1)
        post(service, "e2", 2, "new")
        state = crm.records.state
        assert eventually(lambda: state() == {"partner_clients": {"c1": {"company_name": "new"}}})
        assert crm.settle()
        assert state() == {"partner_clients": {"c1": {"company_name": "old"}}}
        assert eventually(lambda: state() == {"partner_clients": {"c1": {"company_name": "new"}}}, within_s=150)
        assert eventually(service.idle)
        assert crm.ledger.violations() == []


def post(service: Running, event: str, at: int, value: str) -> None:
    answer = service.post({"id": event, "client": "c1", "at": 1_700_000_000 + at, "name": value})
    assert answer.status_code == 202
