"""The sandbox's records, limits, logs and plan of faults, without HTTP."""

from __future__ import annotations

import pytest

from bridge.sandbox.access import RateLimits
from bridge.sandbox.faults import KINDS, Fault, FaultPlan
from bridge.sandbox.records import Address, Input, Ledger, Records, ViolationKind

A1 = Address("partner_clients", "acme_client_id", "1")
E1 = Address("partner_clients", "external_id", "1")


class StepClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds


# --- limits ---------------------------------------------------------------------------------------


def test_the_window_rolls() -> None:
    """A call leaves it exactly ten seconds after it was let in, not at the turn of a bucket."""
    clock = StepClock()
    limits = RateLimits(calls=2, clock=clock)
    assert limits.admit().policy == ""
    clock.seconds += 6
    assert limits.admit().remaining == 0
    clock.seconds += 3.9
    assert limits.admit().policy == "TEN_SECONDLY_ROLLING"
    clock.seconds += 0.1
    assert limits.admit().policy == ""
    assert limits.admit().policy == "TEN_SECONDLY_ROLLING"


def test_refused_calls_do_not_count() -> None:
    """However often a client knocks, the window frees in time."""
    clock = StepClock()
    limits = RateLimits(calls=1, daily=2, clock=clock)
    limits.admit()
    assert {limits.admit().policy for _ in range(20)} == {"TEN_SECONDLY_ROLLING"}
    clock.seconds += 10
    assert limits.admit().policy == ""
    assert limits.used_today == 2


def test_the_daily_quota_ends_at_midnight() -> None:
    """UTC; and it is told before the window."""
    clock = StepClock()
    limits = RateLimits(daily=1, clock=clock)
    assert limits.admit().daily_remaining == 0
    assert limits.admit().policy == "DAILY"
    clock.seconds += 86_400
    assert limits.used_today == 0
    assert limits.admit().policy == ""


def test_headers_of_limits_not_set_are_absent() -> None:
    """As with OAuth, where HubSpot leaves the daily ones out."""
    limits = RateLimits(calls=5)
    assert set(limits.headers(limits.admit())) == {
        "X-HubSpot-RateLimit-Max",
        "X-HubSpot-RateLimit-Remaining",
        "X-HubSpot-RateLimit-Interval-Milliseconds",
    }


# --- records --------------------------------------------------------------------------------------


def test_one_text_under_two_id_properties_stays_apart() -> None:
    """In the state each is named with its property; either can be asked for alone."""
    records = Records()
    for address, value in ((A1, "a"), (E1, "e")):
        records.write(address, records.ensure(address, ""), {"notes": value}, "")
    assert records.state() == {"partner_clients": {"acme_client_id=1": {"notes": "a"}, "external_id=1": {"notes": "e"}}}
    assert records.state(id_property="external_id") == {"partner_clients": {"1": {"notes": "e"}}}


def test_a_new_record_gets_an_id_of_its_own() -> None:
    """Never that of a record which was addressed by record id."""
    records = Records()
    taken = records.ensure(Address("partner_clients", "", "101000000001"), "")
    assert taken is not records.ensure(A1, "")
    assert records.ensure(A1, "") is records.find(Address("partner_clients", "", records.ensure(A1, "").id))


def test_unknown_ids_never_come_into_existence() -> None:
    """In the open world; in the strict one nothing does."""
    assert Records().may_exist(A1)
    assert not Records().may_exist(A1._replace(id="Unknown-3"))
    assert not Records(strict=True).may_exist(A1)


# --- ledger ---------------------------------------------------------------------------------------


def inputs(*ids: str) -> list[Input]:
    return [Input(id_, "acme_client_id", "", {}) for id_ in ids]


def test_the_logs_are_bounded() -> None:
    """The newest are kept, what was let go is counted, numbers go on."""
    ledger = Ledger(max_inputs=3)
    for number in range(5):
        call = ledger.begin("update", "/", "partner_clients", inputs(f"{number}", f"{number}b"))
        ledger.apply(call, A1, "1", {"x": str(number), "y": str(number)})
        ledger.finish(call, 200)
    assert [call.seq for call in ledger.calls()] == [5]
    assert ledger.dropped_calls == 4
    assert [entry.seq for entry in ledger.applied()] == [5, 6, 7, 8, 9, 10]
    assert ledger.last_applied == 10
    assert ledger.counts() == {"200": 5}


@pytest.mark.parametrize("after", range(7))
def test_applied_values_are_found_after_any_number(after: int) -> None:
    """Also in the middle of a record's values, and beside empty updates."""
    ledger = Ledger()
    call = ledger.begin("update", "/", "partner_clients", [])
    for values in ({"a": "1", "b": "2"}, {}, {"c": "3", "d": "4", "e": "5"}):
        ledger.apply(call, A1, "1", dict(values))
    assert [entry.seq for entry in ledger.applied(after=after)] == list(range(after + 1, 6))


def test_an_open_call_ends_when_its_client_leaves() -> None:
    """Then the record may be sent again; before, that is an overlap."""
    ledger = Ledger()
    still_there = True
    first = ledger.begin("update", "/", "t", inputs("1"), connected=lambda: still_there)
    ledger.begin("update", "/", "t", inputs("1"))
    assert [violation.kind for violation in ledger.violations()] == [ViolationKind.OVERLAP]
    ledger.finish(first, 200)

    other = Ledger()
    still_there = False
    other.begin("update", "/", "t", inputs("1"), connected=lambda: still_there)
    other.begin("update", "/", "t", inputs("1"))
    assert other.violations() == []


def test_ending_a_call_twice_changes_nothing() -> None:
    """Nor does ending an old call take the record from the newer one."""
    ledger = Ledger()
    old = ledger.begin("update", "/", "t", inputs("1"), connected=lambda: False)
    ledger.begin("update", "/", "t", inputs("1"))
    ledger.finish(old, 200)
    ledger.finish(old, 500)
    assert ledger.calls()[0].status == 200
    ledger.begin("update", "/", "t", inputs("1"))
    assert [violation.kind for violation in ledger.violations()] == [ViolationKind.OVERLAP]


# --- faults ---------------------------------------------------------------------------------------


def test_a_queued_fault_waits_for_a_call_that_it_hits() -> None:
    """Others pass it by, and take those queued behind it."""
    plan = FaultPlan()
    plan.next(Fault("500", ids=("x",)))
    plan.next("429")
    picked = [plan.pick("update", ids) for ids in (["a"], ["b"], ["a", "x"], ["x"])]
    assert [fault and fault.kind for fault in picked] == ["429", None, "500", None]


def test_chance_meets_its_rates() -> None:
    """Within what chance allows, update calls alone."""
    plan = FaultPlan(rates={"500": 0.2, "429": 0.1}, seed=1)
    drawn = [plan.pick("update", []) for _ in range(5000)]
    assert 900 < sum(1 for fault in drawn if fault and fault.kind == "500") < 1100
    assert 400 < sum(1 for fault in drawn if fault and fault.kind == "429") < 600
    assert all(plan.pick("read", []) is None for _ in range(100))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_fault_goes_through_json_unchanged(kind: str) -> None:
    """What `GET /sandbox/faults` shows can be posted again."""
    fault = Fault(kind, ids=("1", "2"), retry_after="3", apply=True)
    assert fault == Fault.from_json(fault.as_json())
