"""Chooses the next call: a new batch, a case that goes on, or a probe.

New batches and cases take turns, so that neither bad records hold up good ones nor the other way round.
While a stop is over but for its probe, one record goes before anything else, since a backlog elsewhere
may never end: first one that had no part in the failure, because only that tells whether the CRM is well.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from bridge.delivery.board import Board, Work
from bridge.delivery.cases import Group
from bridge.delivery.pauses import Gate
from bridge.model import Lane

#: Records that are passed over as probes because they were probes already.
_MAX_PROBED = 1_000


class Chooser:
    """Not thread-safe: the dispatcher's lock guards it."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._fresh_next = True
        self._probed: set[int] = set()

    def next_work(self, *, now: float, now_us: int, draining: bool = False) -> Work | None:
        """The call to make now, noted as open; None when there is none."""
        work: Work | None = None
        if self._board.pauses.none:
            self._probed.clear()
        else:
            work = next(self._probes(now), None)
        if work is None and not self._fresh_next:
            work = self._of_case(now)
        if work is None:
            work = self._fresh(now, now_us, draining=draining)
        if work is None:
            work = self._of_case(now)
        if work is not None:
            self._fresh_next = work.probe or work.case is not None
            self._board.begin(work)
        return work

    def flush_in(self, *, now: float, now_us: int) -> float | None:
        """Seconds until the next new batch is due; None when nothing may be begun."""
        board = self._board
        return board.buffer.flush_in(now=now, now_us=now_us, open_to=lambda lane: board.is_free_for_more(lane, now))

    def _fresh(self, now: float, now_us: int, *, draining: bool) -> Work | None:
        board = self._board
        while True:
            lane = board.buffer.next_lane(
                now=now,
                now_us=now_us,
                open_to=lambda lane: board.is_free_for_more(lane, now),
                draining=draining,
            )
            if lane is None:
                return None
            if refs := board.buffer.cut(lane, now=now, skip=partial(board.cases.resume, lane)):
                return Work(lane, tuple(refs), now)

    def _of_case(self, now: float) -> Work | None:
        board = self._board
        busy = board.busy()

        def may_send(lane: Lane, group: Group) -> bool:
            return busy.isdisjoint(group.refs) and board.is_free(lane, now)

        if (found := board.cases.next(now, may_send)) is None:
            return None
        case, group = found
        return Work(case.lane, group.refs, now, only=group.only, case=case)

    def _probes(self, now: float) -> Iterator[Work]:
        board = self._board
        for lane in board.buffer.lanes():
            if board.pauses.gate(lane, now, early=True) is not Gate.PROBE:
                continue
            anyone = board.pauses.gate(lane, now) is Gate.PROBE
            if refs := self._cut_probe(lane, now, anyone=anyone):
                yield Work(lane, tuple(refs), now, probe=True)
        busy = board.busy()
        for case, group in board.cases.probes():
            if busy.isdisjoint(group.refs) and board.pauses.gate(case.lane, now) is Gate.PROBE:
                yield Work(case.lane, group.refs, now, probe=True, only=group.only, case=case)

    def _cut_probe(self, lane: Lane, now: float, *, anyone: bool) -> list[int]:
        """A record that has not been a probe yet; in the end (`anyone`) one that has."""
        if len(self._probed) >= _MAX_PROBED:
            self._probed.clear()
        cases = self._board.cases
        put_off: list[int] = []

        def is_passed_over(ref: int) -> bool:
            if cases.is_put_off(ref):
                put_off.append(ref)
                return True
            return ref in self._probed

        refs = self._board.buffer.cut(lane, now=now, size=1, skip=is_passed_over)
        if refs:
            self._probed.update(refs)
        elif anyone:
            self._probed.clear()  # every record that is due was a probe: from the beginning again
            # Where nothing else is due, those put off are what there is to probe with.
            for ref in put_off:
                cases.resume(lane, ref)
        return refs
