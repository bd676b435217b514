"""Chooses the next call: a new batch, a step of an isolation, a suspect group, or a probe.

New batches and narrowing take turns, so that neither bad records hold up good ones nor the other way
round; and so do isolations and suspects, or a stream of bad records would hold suspects for ever. While a
stop is over but for its probe, one record goes before anything else, since a backlog elsewhere may never
end: first one that had no part in the failure, because only that tells whether the CRM is well.
"""

from __future__ import annotations

from collections.abc import Iterator

from bridge.delivery.board import Board, Step, Work
from bridge.delivery.pauses import Gate
from bridge.model import Lane

#: Records that are passed over as probes because they were probes already.
_MAX_PROBED = 1_000


class Chooser:
    """Not thread-safe: the dispatcher's lock guards it."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._fresh_next = True
        self._suspects_next = False
        self._probed: set[int] = set()

    def next_work(self, *, now: float, now_us: int, draining: bool = False) -> Work | None:
        """The call to make now, noted as open; None when there is none."""
        work: Work | None = None
        if self._board.pauses.none:
            self._probed.clear()
        else:
            work = self._probe(now)
        if work is None and not self._fresh_next:
            work = self._narrow(now)
        if work is None:
            work = self._fresh(now, now_us, draining=draining)
        if work is None:
            work = self._narrow(now)
        if work is not None:
            self._fresh_next = work.step is not Step.FRESH
            self._board.open.add(work)
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
            refs = self._cut(lane, now)
            if refs:
                return Work(lane, tuple(refs), Step.FRESH, now)

    def _cut(self, lane: Lane, now: float) -> list[int]:
        suspects = self._board.suspects
        lonely: list[int] = []

        def is_lonely(ref: int) -> bool:
            if suspects.is_lonely(ref):
                lonely.append(ref)
                return True
            return False

        refs = self._board.buffer.cut(lane, now=now, skip=is_lonely)
        for ref in dict.fromkeys(lonely):
            suspects.recall(lane, ref)
        return refs

    def _narrow(self, now: float) -> Work | None:
        board = self._board
        if not board.narrowings and board.suspects.none:
            return None
        busy = board.busy()
        if self._suspects_next:
            work = self._suspect(now, busy) or self._isolation(now, busy)
        else:
            work = self._isolation(now, busy) or self._suspect(now, busy)
        if work is not None:
            self._suspects_next = work.step is Step.ISOLATION
        return work

    def _isolation(self, now: float, busy: set[int]) -> Work | None:
        board = self._board
        for narrowing in list(board.narrowings):
            isolation = narrowing.isolation
            if narrowing.open or narrowing.ready_at > now or not board.is_free(isolation.lane, now):
                continue
            group = isolation.next_group()
            if group is None:
                board.narrowings.remove(narrowing)
            if group is None or not busy.isdisjoint(group.refs):
                continue
            narrowing.open = True
            return Work(isolation.lane, group.refs, Step.ISOLATION, now, only=group.only, narrowing=narrowing)
        return None

    def _suspect(self, now: float, busy: set[int]) -> Work | None:
        board = self._board
        for suspect in board.suspects.next(now):
            if busy.isdisjoint(suspect.refs) and board.is_free(suspect.lane, now):
                suspect.open = True
                return Work(suspect.lane, tuple(suspect.refs), Step.SUSPECT, now, suspect=suspect)
        return None

    def _probe(self, now: float) -> Work | None:
        for work in self._probes(now):
            self._board.pauses.probe(work.lane)
            return work
        return None

    def _probes(self, now: float) -> Iterator[Work]:
        board = self._board
        busy = board.busy()
        for lane in board.buffer.lanes():
            if board.pauses.gate(lane, now, early=True) is not Gate.PROBE:
                continue
            anyone = board.pauses.gate(lane, now) is Gate.PROBE
            if refs := self._cut_probe(lane, now, anyone=anyone):
                yield Work(lane, tuple(refs), Step.PROBE, now, probe=True)
        for suspect in board.suspects.any():
            if busy.isdisjoint(suspect.refs) and board.pauses.gate(suspect.lane, now) is Gate.PROBE:
                suspect.open = True
                yield Work(suspect.lane, (suspect.refs[0],), Step.PROBE, now, probe=True, suspect=suspect)
        for narrowing in board.narrowings:
            lane = narrowing.isolation.lane
            group = narrowing.isolation.next_group()
            if group is None or narrowing.open or not busy.isdisjoint(group.refs):
                continue
            if board.pauses.gate(lane, now) is Gate.PROBE:
                narrowing.open = True
                yield Work(lane, group.refs, Step.PROBE, now, probe=True, only=group.only, narrowing=narrowing)

    def _cut_probe(self, lane: Lane, now: float, *, anyone: bool) -> list[int]:
        """A record that has not been a probe yet; in the end (`anyone`) one that has."""
        if len(self._probed) >= _MAX_PROBED:
            self._probed.clear()
        suspects = self._board.suspects
        lonely: list[int] = []

        def is_passed_over(ref: int) -> bool:
            if suspects.is_lonely(ref):
                lonely.append(ref)
                return True
            return ref in self._probed

        refs = self._board.buffer.cut(lane, now=now, size=1, skip=is_passed_over)
        if refs:
            self._probed.update(refs)
        elif anyone:
            self._probed.clear()  # every record that is due was a probe: from the beginning again
            # Where nothing else is due, the lonely are what there is to probe with: they go as suspects do.
            for ref in dict.fromkeys(lonely):
                suspects.recall(lane, ref)
        return refs
