"""The buffer: when a lane's call is due, whose records it serves, and whose turn it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.delivery.buffer import MAX_SIZES, Buffer
from bridge.model import Due, Lane
from tests.examples import examples

A, B = Lane("a"), Lane("b")


def due(refs: Iterable[int], *, lane: Lane = A, source: str = "s", at_us: int = 0) -> list[Due]:
    return [Due(ref, lane, source, at_us + ref) for ref in refs]


class Bench:
    """A buffer with its clock."""

    def __init__(self, *, batch_size: int = 10) -> None:
        self.buffer = Buffer(batch_size=batch_size, flush_interval_s=0.5, depth=batch_size * 9)
        self.now = 100.0

    def fill(self, rows: list[Due], limit: int = 1_000) -> None:
        self.buffer.fill(rows, limit=limit, now=self.now)

    def lane(self, *, draining: bool = False, shut: frozenset[Lane] = frozenset()) -> Lane | None:
        return self.buffer.next_lane(now=self.now, now_us=0, open_to=lambda lane: lane not in shut, draining=draining)

    def cut(self, lane: Lane = A) -> list[int]:
        return self.buffer.cut(lane, now=self.now)


def test_few_records_wait_for_the_flush_interval() -> None:
    bench = Bench()
    bench.fill(due(range(3)))
    assert bench.lane() is None
    assert bench.buffer.flush_in(now=bench.now, now_us=0, open_to=lambda _: True) == 0.5
    bench.now += 0.3
    bench.fill(due(range(4)))
    assert bench.lane() is None
    bench.now += 0.2
    assert bench.lane() == A


def test_a_full_batch_is_due_at_once() -> None:
    bench = Bench()
    bench.fill(due(range(10)))
    assert bench.lane() == A


def test_a_record_that_was_due_long_ago_does_not_wait_for_company() -> None:
    bench = Bench()
    bench.fill(due([1]))
    assert bench.buffer.next_lane(now=bench.now, now_us=600_000, open_to=lambda _: True) == A


def test_a_wall_clock_that_jumps_back_delays_nothing() -> None:
    bench = Bench()
    bench.fill(due([1], at_us=10**15))
    bench.now += 0.5
    assert bench.lane() == A


def test_draining_waits_for_nothing() -> None:
    bench = Bench()
    bench.fill(due([1]))
    assert bench.lane(draining=True) == A


def test_a_lane_that_may_not_call_is_passed_over() -> None:
    bench = Bench()
    bench.fill([*due(range(10)), *due(range(10, 20), lane=B)])
    assert bench.lane(shut=frozenset({A})) == B
    assert bench.lane(shut=frozenset({A, B})) is None


def test_the_sources_of_a_lane_share_a_batch_equally_oldest_first() -> None:
    bench = Bench()
    bench.fill([*due(range(500), source="big"), *due([900, 901], source="small")])
    batch = bench.cut()
    assert batch == [0, 900, 1, 901, 2, 3, 4, 5, 6, 7]
    assert bench.cut() == list(range(8, 18))


def test_a_record_due_for_two_sources_is_taken_once() -> None:
    bench = Bench(batch_size=3)
    bench.fill([*due([1, 2], source="x"), *due([1, 2, 3], source="y")])
    assert bench.cut() == [1, 2, 3]
    assert bench.cut() == []


def test_more_sources_than_places_are_served_in_turn() -> None:
    bench = Bench(batch_size=1)
    rows = [*due(range(100), source="x"), *due(range(100, 200), source="y")]
    served = []
    for _ in range(6):
        bench.fill([row for row in rows if row.ref not in served])
        served += bench.cut()
    assert Counter(ref // 100 for ref in served) == {0: 3, 1: 3}


def test_lanes_take_turns_weighted_by_their_due_sources() -> None:
    bench = Bench()
    calls = []
    for _ in range(12):
        bench.fill(
            [
                *due(range(1_000), source="x"),
                *due(range(1_000, 2_000), source="y"),
                *due(range(2_000, 3_000), lane=B),
            ]
        )
        lane = bench.lane()
        assert lane is not None
        calls.append(lane)
        bench.cut(lane)
    assert Counter(calls) == {A: 8, B: 4}


def test_a_lane_that_was_idle_gets_its_turn_next_and_no_more_than_its_share() -> None:
    bench = Bench()
    for _ in range(50):
        bench.fill(due(range(1_000)))
        bench.cut()
    bench.fill([*due(range(1_000)), *due(range(1_000, 2_000), lane=B)])
    order = []
    for _ in range(4):
        lane = bench.lane()
        assert lane is not None
        order.append(lane)
        bench.cut(lane)
    assert sorted(order) == [A, A, B, B]
    assert B in order[:2]


def test_the_buffer_asks_for_more_when_it_may_not_see_full_batches() -> None:
    bench = Bench()
    bench.fill(due(range(15)), limit=15)
    full = bench.buffer.short
    bench.cut()
    cut = bench.buffer.short
    bench.fill(due(range(5)), limit=15)
    assert (full, cut, bench.buffer.short) == (False, True, False)


def test_what_is_asked_of_the_journal_is_bounded_in_all() -> None:
    bench = Bench()
    assert bench.buffer.limit == 90
    bench.fill([row for source in range(30) for row in due(range(3), source=str(source))])
    assert bench.buffer.limit == 10


@settings(max_examples=examples(), deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from("xyz"), st.sampled_from([A, B])), min_size=1, max_size=60),
    st.integers(1, 7),
)
def test_every_due_record_is_cut_exactly_once(rows: list[tuple[int, str, Lane]], size: int) -> None:
    bench = Bench(batch_size=size)
    known = {(ref + (100 if lane == B else 0), source, lane) for ref, source, lane in rows}
    bench.fill([Due(ref, lane, source, ref) for ref, source, lane in sorted(known)])
    cut: list[int] = []
    while (lane := bench.lane(draining=True)) is not None:
        batch = bench.cut(lane)
        assert 0 < len(batch) <= size
        cut += batch
    assert sorted(cut) == sorted({ref for ref, _, _ in known})


def test_a_record_that_is_known_to_be_large_goes_with_what_fits_beside_it() -> None:
    """Its source's others come after it; other sources' go along."""
    buffer = Buffer(batch_size=10, flush_interval_s=0.5, depth=90, max_bytes=100)
    buffer.did_not_fit(A, {1: 90, 2: 90, 3: 300}, served=())
    buffer.fill([*due([1, 2, 3]), *due([11, 12, 13], source="t")], limit=100, now=0.0)
    cuts = [buffer.cut(A, now=0.0) for _ in range(4)]
    assert cuts == [[1, 11, 12, 13], [2], [3], []]


def test_sources_with_large_records_come_first_in_turn() -> None:
    buffer = Buffer(batch_size=10, flush_interval_s=0.5, depth=90, max_bytes=100)
    buffer.did_not_fit(A, dict.fromkeys(range(20), 90), served=())
    buffer.fill([*due(range(4)), *due(range(10, 14), source="t")], limit=100, now=0.0)
    assert [buffer.cut(A, now=0.0) for _ in range(8)] == [[0], [10], [1], [11], [2], [12], [3], [13]]


def test_the_sizes_of_only_so_many_records_are_remembered() -> None:
    buffer = Buffer(batch_size=10, flush_interval_s=0.5, depth=90, max_bytes=100)
    buffer.did_not_fit(A, dict.fromkeys(range(2 * MAX_SIZES), 90), served=())
    buffer.fill(due([0, 1, 2 * MAX_SIZES - 2, 2 * MAX_SIZES - 1]), limit=100, now=0.0)
    assert buffer.cut(A, now=0.0) == [0, 1, 2 * MAX_SIZES - 2]
