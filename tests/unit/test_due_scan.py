"""What a poll of PostgreSQL leaves out, and for how long."""

from __future__ import annotations

from bridge.journal.due import EARLIEST_US, MARGIN_US, WHOLE_AT_MOST_S, WHOLE_EVERY_S, DueScan
from tests.fakes import FakeClock

QUEUE = (1, "acme")
NOW_US = 1_800_000_000_000_000


def look(scan: DueScan, clock: FakeClock, *, takes_s: float = 0.0, now_us: int = NOW_US) -> bool:
    """One poll that finds one row, as old as now; whether it looked from the beginning."""
    known = scan.begin(now_us, lambda _known: False)
    clock.advance(takes_s)
    scan.saw(QUEUE, now_us)
    scan.end()
    return known is None


def test_only_now_and_then_one_looks_from_the_beginning() -> None:
    clock = FakeClock()
    scan = DueScan(clock.monotonic)
    assert look(scan, clock)
    assert not look(scan, clock)
    assert scan.from_us(QUEUE) == NOW_US - MARGIN_US
    clock.advance(WHOLE_EVERY_S)
    assert look(scan, clock)


def test_a_look_that_took_long_hides_what_is_late_for_seconds_only() -> None:
    """The process may have been frozen in the middle of it."""
    clock = FakeClock()
    scan = DueScan(clock.monotonic)
    look(scan, clock, takes_s=60.0)
    clock.advance(WHOLE_AT_MOST_S)
    assert look(scan, clock)


def test_a_clock_that_is_set_back_is_followed_at_once() -> None:
    clock = FakeClock()
    scan = DueScan(clock.monotonic)
    look(scan, clock)
    assert scan.begin(NOW_US - 1, lambda _known: False) is None
    assert scan.from_us(QUEUE) == EARLIEST_US


def test_a_queue_that_is_new_is_seen_at_once() -> None:
    clock = FakeClock()
    scan = DueScan(clock.monotonic)
    look(scan, clock)
    assert scan.begin(NOW_US, lambda known: list(known) == [QUEUE]) is None
