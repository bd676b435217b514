"""Pauses: what they cover, how long they last, and who may end them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.delivery.pauses import Backoff, Gate, Pauses, RetryPolicy, Stop
from bridge.model import Category, Lane, Parked, Pause, Reason, RetryLater, Scope
from tests.fakes_delivery import record

A, A2, B = Lane("a", "x"), Lane("a", "y"), Lane("b")
OUTAGE = Stop(Scope.ALL, "outage", "HTTP 503")


def pauses(seed: int = 1) -> Pauses:
    return Pauses(backoff=Backoff(base_s=2.0, max_s=60.0, chance=random.Random(seed)))


def stop(held: Pauses, what: Stop, *, lane: Lane = A, now: float = 100.0, began: float | None = None) -> float:
    return held.stop(lane, what, now=now, now_us=round(now * 1e6), began=now if began is None else began)


@pytest.mark.parametrize("scope, closed", [(Scope.ALL, {A, A2, B}), (Scope.OBJECT_TYPE, {A, A2}), (Scope.LANE, {A})])
def test_a_pause_covers_exactly_its_scope(scope: Scope, closed: set[Lane]) -> None:
    held = pauses()
    stop(held, Stop(scope, "outage", ""))
    assert {lane for lane in (A, A2, B) if held.gate(lane, 100.0) is Gate.CLOSED} == closed


def test_after_its_time_one_record_probes_and_its_success_ends_the_pause() -> None:
    held = pauses()
    delay_s = stop(held, OUTAGE)
    assert held.gate(A, 100.0 + delay_s - 0.01) is Gate.CLOSED
    assert held.gate(A, 100.0 + delay_s) is Gate.PROBE
    held.probe(A)
    assert held.gate(B, 100.0 + delay_s) is Gate.CLOSED
    held.answered(A, accepted=True)
    assert held.gate(B, 100.0 + delay_s) is Gate.OPEN
    assert held.none


def test_each_failed_probe_lengthens_the_pause_up_to_its_maximum() -> None:
    held = pauses()
    now, delays = 100.0, []
    for _ in range(12):
        delays.append(stop(held, OUTAGE, now=now))
        now += delays[-1]
    assert delays[0] <= 4.0
    assert max(delays) > 20.0
    assert all(2.0 <= delay_s <= 60.0 for delay_s in delays)


def test_calls_that_were_open_together_count_as_one_failure() -> None:
    held = pauses()
    stop(held, OUTAGE, now=100.0, began=99.0)
    for _ in range(7):
        assert stop(held, OUTAGE, now=100.1, began=99.0) <= 4.0
    assert stop(held, OUTAGE, now=105.0, began=104.0) <= 8.0


def test_a_refused_probe_ends_an_outage_but_not_a_lanes_own_trouble() -> None:
    """A 400 shows that the CRM is well; it is what stopped the lane."""
    held = pauses()
    stop(held, OUTAGE)
    stop(held, Stop(Scope.LANE, "misconfigured", ""))
    held.answered(A, accepted=False)
    assert [pause.reason for pause in held.all()] == ["misconfigured"]
    assert held.stops_lane(A)
    held.answered(A, accepted=True)
    assert held.none


def test_a_call_that_ends_well_after_a_failure_disproves_the_outage_once_in_a_while() -> None:
    held = pauses()
    stop(held, OUTAGE, now=100.0)
    held.disproved(now=100.0)
    assert len(held.all()) == 1
    held.disproved(now=100.1)
    assert len(held.all()) == 0
    stop(held, OUTAGE, now=100.5)
    held.disproved(now=100.6)
    assert len(held.all()) == 1


def test_a_straggler_does_not_disprove_what_a_probe_confirmed() -> None:
    held = pauses()
    stop(held, OUTAGE, now=100.0)
    stop(held, OUTAGE, now=105.0)
    stop(held, Stop(Scope.ALL, "unauthorized", ""), now=105.0)
    held.disproved(now=106.0)
    assert [pause.reason for pause in held.all()] == ["outage", "unauthorized"]


def test_a_stop_for_which_nothing_waits_lapses_a_minute_after_its_time() -> None:
    held = pauses()
    delay_s = stop(held, Stop(Scope.OBJECT_TYPE, "forbidden", ""))
    stop(held, OUTAGE)
    over = 100.0 + delay_s
    for now, waiting in [(100.5, []), (over, []), (over + 59, [A]), (over + 90, [B]), (over + 149, [B])]:
        held.lapse(now, waiting)
        assert len(held.all()) == 2
    held.lapse(over + 150, [B])
    assert [pause.reason for pause in held.all()] == ["outage"]


def test_a_rate_limit_pause_ends_by_itself() -> None:
    held = pauses()
    stop(held, Stop(Scope.ALL, "rate_limited", "", delay_s=10.0, probes=False))
    assert held.gate(A, 109.9) is Gate.CLOSED
    assert held.gate(A, 110.0) is Gate.OPEN
    held.expire(110.0)
    assert held.none


def test_a_pause_that_the_crm_asked_for_is_kept_as_asked() -> None:
    held = pauses()
    assert stop(held, Stop(Scope.ALL, "migrating", "", delay_s=86_400.0)) == 86_400.0
    (pause,) = held.own()
    assert pause.until_us == round((100.0 + 86_400.0) * 1e6)


def test_known_failures_do_not_put_off_a_record_that_had_no_part_in_them() -> None:
    held = pauses()
    for now in (100.0, 200.0, 300.0, 400.0):
        held.stop(A, OUTAGE, now=now, now_us=0, began=now, known=True)
    assert held.gate(A, 402.5) is Gate.CLOSED
    assert held.gate(A, 402.5, early=True) is Gate.PROBE
    assert not held.stops_all(402.5)


def test_another_token_is_tried_at_once_and_the_same_is_not() -> None:
    held = pauses()
    stop(held, Stop(Scope.ALL, "unauthorized", "", credential="one"))
    assert held.holds("unauthorized")
    for same in ("one", ""):
        held.token_is(same, now=101.0)
        assert held.gate(A, 101.0) is Gate.CLOSED
    held.token_is("two", now=101.0)
    assert held.gate(A, 101.0) is Gate.PROBE


def test_an_operators_pause_ends_by_a_person_only() -> None:
    held = pauses()
    ordered = Pause(Scope.OBJECT_TYPE, "a", "operator", "", since_us=0, until_us=None)
    held.operators([ordered])
    assert held.changed
    assert held.gate(A, 1e9) is Gate.CLOSED
    assert held.gate(B, 100.0) is Gate.OPEN
    held.answered(A, accepted=True)
    assert held.gate(A, 1e9) is Gate.CLOSED
    assert held.own() == []
    held.operators([])
    assert held.gate(A, 100.0) is Gate.OPEN


def test_stored_pauses_are_taken_up_with_the_time_they_have_left() -> None:
    held, later = pauses(), pauses()
    stop(held, Stop(Scope.LANE, "misconfigured", "", delay_s=30.0))
    later.restore(held.own(), now=5_000.0, now_us=round(110.0 * 1e6))
    assert later.gate(A, 5_019.9) is Gate.CLOSED
    assert later.gate(A, 5_020.0) is Gate.PROBE
    assert later.gate(A2, 5_000.0) is Gate.OPEN


@given(failures=st.integers(1, 500), seed=st.integers(0, 1_000))
def test_delays_stay_between_base_and_maximum(failures: int, seed: int) -> None:
    backoff = Backoff(base_s=2.0, max_s=600.0, chance=random.Random(seed))
    assert 2.0 <= backoff.delay_s(failures) <= min(600.0, 2.0 * 2.0 ** min(failures, 20))


@given(failures=st.integers(0, 300))
def test_patience_used_is_what_the_delays_take_at_most(failures: int) -> None:
    backoff = Backoff(base_s=2.0, max_s=600.0)
    assert backoff.longest_total_s(failures) == pytest.approx(sum(map(backoff.ceiling_s, range(failures))))


def test_patience_does_not_run_in_pauses() -> None:
    """A day has passed since the first failure, but in a pause: the record is tried on."""
    backoff = Backoff(base_s=2.0, max_s=600.0, chance=random.Random(1))
    policy = RetryPolicy(backoff, give_up_after_s=86_400.0)
    reason, day_us = Reason("HTTP_500", "boom"), 86_400 * 1_000_000
    few = policy.failed(record(1, attempts=5, failing_since_us=1), reason, now_us=2 * day_us)
    assert isinstance(few, RetryLater)
    early = policy.failed(record(1, attempts=500, failing_since_us=1), reason, now_us=day_us // 2)
    assert isinstance(early, RetryLater)
    over = policy.failed(record(1, attempts=500, failing_since_us=1), reason, now_us=2 * day_us)
    assert isinstance(over, Parked)
    assert over.reason.category == Category.GAVE_UP
