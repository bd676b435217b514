"""The limiter: never over the limit in any window, and full use of it under a backlog."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.delivery.limiter import Grant, Limiter
from tests.examples import examples


def most_in_any_window(starts: list[float], per_s: float) -> int:
    return max((sum(start <= other < start + per_s for other in starts) for start in starts), default=0)


@settings(max_examples=examples(35), deadline=None)
@given(
    calls=st.integers(1, 20),
    per_s=st.sampled_from([0.5, 1.0, 10.0]),
    gaps=st.lists(st.one_of(st.floats(0, 0.01), st.floats(0, 1), st.floats(0, 30)), min_size=1, max_size=300),
    data=st.data(),
)
def test_no_window_holds_more_than_the_limit(calls: int, per_s: float, gaps: list[float], data: st.DataObject) -> None:
    """Whenever it is asked, and however late within its age a grant is used."""
    limiter = Limiter(calls=calls, per_s=per_s)
    now, starts = 100.0, []
    for gap in gaps:
        now += gap
        grant = limiter.acquire(now)
        if grant is not None:
            age = data.draw(st.floats(0, per_s * 0.02), label="age")
            if limiter.fresh(grant, now + age):
                starts.append(now + age)
    assert most_in_any_window(starts, per_s) <= calls


@pytest.mark.parametrize("calls, per_s", [(190, 10.0), (100, 10.0), (10, 1.0)])
@pytest.mark.parametrize("late_s", [0.0, 0.001, 0.004])
def test_a_backlog_uses_the_limit_fully(calls: int, per_s: float, late_s: float) -> None:
    """Also when every wake-up comes a little late."""
    limiter = Limiter(calls=calls, per_s=per_s)
    now, starts, end = 0.0, [], per_s * 20
    while now < end:
        if limiter.acquire(now) is not None:
            starts.append(now)
        now += limiter.wait_s(now) + late_s if limiter.wait_s(now) > 0 else 0.0
    assert len(starts) >= 0.97 * calls * 20
    assert most_in_any_window(starts, per_s) <= calls


def test_what_a_short_stall_held_up_is_caught_up_without_a_burst_over_the_limit() -> None:
    """A machine that stands still for 0.4 s every 4 s costs nothing of the limit."""
    limiter = Limiter(calls=190, per_s=10.0)
    now, starts = 0.0, []
    while now < 200.0:
        if limiter.acquire(now) is not None:
            starts.append(now)
        now += max(limiter.wait_s(now), 0.0005)
        if int(now / 4.0) != int((now - 0.06) / 4.0):
            now += 0.4
    assert len(starts) >= 0.97 * 190 * 20
    assert most_in_any_window(starts, 10.0) <= 190


def test_after_idleness_a_call_starts_at_once_and_the_next_is_spaced() -> None:
    limiter = Limiter(calls=100, per_s=10.0)
    assert limiter.acquire(0.0) is not None
    assert limiter.acquire(60.0) is not None
    assert limiter.acquire(60.0) is None
    assert limiter.wait_s(60.0) == pytest.approx(0.102)


def test_a_grant_goes_stale() -> None:
    limiter = Limiter(calls=100, per_s=10.0)
    grant = limiter.acquire(5.0)
    assert grant is not None
    assert limiter.fresh(grant, 5.04)
    assert not limiter.fresh(grant, 5.06)
    assert not limiter.fresh(grant, 4.9)


@settings(max_examples=examples(35), deadline=None)
@given(
    calls=st.integers(1, 20),
    delays=st.lists(st.one_of(st.just(0.0), st.floats(0, 0.2), st.floats(0, 3), st.floats(0, 30)), min_size=1),
    data=st.data(),
)
def test_no_window_holds_more_than_the_limit_however_late_grants_are_used(
    calls: int, delays: list[float], data: st.DataObject
) -> None:
    """Several calls are under way at once, each held up between its grant and its start."""
    limiter = Limiter(calls=calls, per_s=10.0)
    now, starts = 100.0, []
    under_way: list[tuple[float, Grant]] = []
    for delay in delays * 5:
        now += data.draw(st.sampled_from([0.001, 0.05, 0.5, 2.0]), label="gap")
        grant = limiter.acquire(now)
        if grant is not None:
            under_way.append((now + delay, grant))
        left = []
        for at, granted in under_way:
            renewed = granted if limiter.fresh(granted, now) else limiter.renew(granted, now)
            if now < at or renewed is None:
                left.append((at, granted if renewed is None else renewed))
            else:
                starts.append(now)
        under_way = left
    assert most_in_any_window(starts, 10.0) <= calls


def test_a_journal_that_is_slow_costs_nothing_of_the_limit() -> None:
    """Each call is held up by more than a grant stays fresh; it starts late, and none is lost."""
    limiter = Limiter(calls=100, per_s=10.0)
    now, starts = 0.0, []
    under_way: list[tuple[float, Grant]] = []
    while now < 200.0:
        while under_way and under_way[0][0] <= now:
            _, granted = under_way.pop(0)
            assert not limiter.fresh(granted, now)
            assert limiter.renew(granted, now) is not None
            starts.append(now)
        grant = limiter.acquire(now)
        if grant is not None:
            under_way.append((now + 0.08, grant))
        now += 0.001
    assert len(starts) >= 0.97 * 100 * 20
    assert most_in_any_window(starts, 10.0) <= 100


def test_a_grant_is_renewed_once_the_crm_lets_us() -> None:
    """And one that waited for longer than a window needs a place of its own."""
    limiter = Limiter(calls=1, per_s=10.0)
    grant = limiter.acquire(0.0)
    assert grant is not None
    limiter.hold(7.0)
    assert limiter.renew(grant, 6.9) is None
    renewed = limiter.renew(grant, 7.0)
    assert renewed is not None
    assert limiter.acquire(17.0) is None
    assert limiter.acquire(17.2) is not None
    assert limiter.renew(renewed, 17.3) is None
    assert limiter.renew(renewed, 27.4) is not None


def test_a_held_limiter_grants_nothing() -> None:
    limiter = Limiter(calls=100, per_s=10.0)
    limiter.hold(7.0)
    assert limiter.acquire(6.9) is None
    assert limiter.acquire(7.0) is not None


def test_the_wait_for_the_limit_is_counted_while_work_is_ready() -> None:
    limiter = Limiter(calls=1, per_s=10.0)
    limiter.acquire(0.0)
    limiter.acquire(4.2)
    limiter.acquire(5.0)
    limiter.acquire(10.2)
    assert limiter.waited_s == pytest.approx(6.0)
    limiter.acquire(10.3)
    limiter.not_wanted()
    limiter.acquire(60.0)
    assert limiter.waited_s == pytest.approx(6.0)


@pytest.mark.parametrize("calls, per_s", [(0, 10.0), (-1, 1.0), (1, 0.0)])
def test_a_limit_that_allows_nothing_is_refused(calls: int, per_s: float) -> None:
    with pytest.raises(ValueError, match="rate limit"):
        Limiter(calls=calls, per_s=per_s)


def test_calls_of_a_predecessor_are_counted_in() -> None:
    """Whoever takes over keeps the limit together with what another process did just before."""
    limiter = Limiter(calls=5, per_s=10.0)
    limiter.follow([0.5, 2.5, 4.5, 6.5, 60.0], now=100.0)
    assert limiter.used(100.0) == 4
    assert limiter.acquire(100.0) is None  # in step with the last one, of which the end may not be known
    assert limiter.acquire(100.0 + limiter.interval_s) is not None
    assert limiter.acquire(100.01 + 2 * limiter.interval_s) is not None
    assert limiter.used(100.01 + 2 * limiter.interval_s) <= 5


def test_without_a_predecessor_a_call_starts_at_once() -> None:
    limiter = Limiter(calls=5, per_s=10.0)
    limiter.follow([], now=100.0)
    assert limiter.acquire(100.0) is not None
