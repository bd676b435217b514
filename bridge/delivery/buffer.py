"""The small in-process buffer of due references: when a call is worth making, and for which records.

A lane is due for a call when a full batch of its records is due, when one has waited `flush_interval` for others, or
when the service drains. Lanes take calls in turn, weighted by how many sources have due records there (stride
scheduling); within a batch each source gets an equal share, oldest first. So a first load of 500,000 records delays
another source's single change by a call or two, not by 5,000.

The buffer holds references, never values, and is replaced as a whole at each fill: what was parked, discarded or taken
elsewhere in the meantime is not there any more.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from bridge.model import CALL_BYTES, MICROSECONDS, Due, Lane

#: Large records of which the size is remembered; to find it out again costs reading the record once.
MAX_SIZES = 10_000


@dataclass(slots=True)
class _LaneDue:
    """What is due in one lane. `waiting_since` is monotonic: the wall clock may jump.

    `served` says by a running number when each source was served last, so that a batch smaller than the number of
    sources does not always serve the same ones.
    """

    sources: defaultdict[str, deque[Due]] = field(default_factory=lambda: defaultdict(deque))
    waiting_since: float = 0.0
    turn: float = 0.0
    served: dict[str, int] = field(default_factory=dict)

    def count(self) -> int:
        return sum(map(len, self.sources.values()))


class Buffer:
    """Not thread-safe: the dispatcher's lock guards it."""

    def __init__(self, *, batch_size: int, flush_interval_s: float, depth: int, max_bytes: int = CALL_BYTES) -> None:
        """`depth`: about how many references are asked of the journal at a time in all."""
        self._batch_size = batch_size
        self._flush_interval_s = flush_interval_s
        self._depth = depth
        self._max_bytes = max_bytes
        self._sizes: dict[int, int] = {}  # of the large ones, as far as they are known
        self._lanes: dict[Lane, _LaneDue] = {}
        self._turn = 0.0
        self._times_served = 0
        self._truncated = False

    @property
    def limit(self) -> int:
        """How many references to ask the journal for, for each lane and source."""
        queues = sum(len(due.sources) for due in self._lanes.values())
        return max(self._batch_size, self._depth // max(1, queues))

    @property
    def empty(self) -> bool:
        return not any(due.sources for due in self._lanes.values())

    @property
    def full(self) -> bool:
        """Whether a full batch waits."""
        return any(due.count() >= self._batch_size for due in self._lanes.values())

    @property
    def short(self) -> bool:
        """Whether the journal may hold full batches that the buffer no longer sees."""
        return self._truncated and any(due.count() < self._batch_size for due in self._lanes.values())

    def fill(self, rows: Iterable[Due], *, limit: int, now: float) -> None:
        """Replace everything by what is due now; `limit` is the one that the rows were asked with."""
        lanes: dict[Lane, _LaneDue] = {}
        for row in rows:
            due = lanes.get(row.lane)
            if due is None:
                due = lanes[row.lane] = self._renewed(self._lanes.get(row.lane), now)
            due.sources[row.source].append(row)
        # A lane that has nothing due now keeps its turn; or it would jump the queue with every single record.
        for lane, due in self._lanes.items():
            if lane not in lanes and due.turn > self._turn:
                lanes[lane] = _LaneDue(turn=due.turn, served=due.served)
        self._lanes = lanes
        self._truncated = any(len(queue) >= limit for due in lanes.values() for queue in due.sources.values())

    def next_lane(
        self, *, now: float, now_us: int, open_to: Callable[[Lane], bool], draining: bool = False
    ) -> Lane | None:
        """The lane whose turn it is among those that are due for a call and `open_to` one."""
        ready = [
            (due.turn, lane)
            for lane, due in self._lanes.items()
            if due.sources and (draining or self._flush_in(due, now=now, now_us=now_us) <= 0) and open_to(lane)
        ]
        return min(ready)[1] if ready else None

    def flush_in(self, *, now: float, now_us: int, open_to: Callable[[Lane], bool]) -> float | None:
        """Seconds until the next lane is due for a call; None when nothing waits."""
        waits = [
            self._flush_in(due, now=now, now_us=now_us)
            for lane, due in self._lanes.items()
            if due.sources and open_to(lane)
        ]
        return max(0.0, min(waits)) if waits else None

    def lanes(self) -> list[Lane]:
        """The lanes that have something due, in the order of their turns."""
        return [lane for _, lane in sorted((s.turn, lane) for lane, s in self._lanes.items() if s.sources)]

    def cut(
        self,
        lane: Lane,
        *,
        now: float,
        size: int | None = None,
        skip: Callable[[int], bool] = lambda _: False,
    ) -> list[int]:
        """Take a batch out of the buffer: an equal share of each source, a record only once."""
        due = self._lanes.get(lane)
        if due is None:
            return []
        size = self._batch_size if size is None else size
        shares = len(due.sources)
        chosen = self._deal(due, size, skip)
        taken = set(chosen)
        for source, queue in list(due.sources.items()):
            if not queue or any(row.ref in taken for row in queue):
                left = deque(row for row in queue if row.ref not in taken)
                if left:
                    due.sources[source] = left
                else:
                    del due.sources[source]
        due.waiting_since = now
        # A lane's turn comes the sooner the more sources wait in it.
        self._turn = max(self._turn, due.turn)
        due.turn = self._turn + 1 / max(1, shares)
        return chosen

    def did_not_fit(self, lane: Lane, sizes: Mapping[int, int], *, served: Iterable[str]) -> None:
        """These records, by their size, did not fit into a call with others of the `served` sources: it is not these
        sources' turn now, and the records go with what fits beside them.
        """
        if (due := self._lanes.get(lane)) is not None:
            self._times_served += 1
            due.served.update(dict.fromkeys(served, self._times_served))
        self._sizes.update(sizes)
        while len(self._sizes) > MAX_SIZES:
            del self._sizes[next(iter(self._sizes))]

    def _flush_in(self, due: _LaneDue, *, now: float, now_us: int) -> float:
        if self._batch_size == 1 or due.count() >= self._batch_size:
            return 0.0
        oldest_us = min(queue[0].due_at_us for queue in due.sources.values() if queue)
        waited_s = max(now - due.waiting_since, (now_us - oldest_us) / MICROSECONDS)
        return self._flush_interval_s - waited_s

    def _renewed(self, was: _LaneDue | None, now: float) -> _LaneDue:
        if was is None:
            return _LaneDue(waiting_since=now, turn=self._turn)
        waiting_since = was.waiting_since if was.sources else now
        return _LaneDue(waiting_since=waiting_since, turn=max(self._turn, was.turn), served=was.served)

    def _deal(self, due: _LaneDue, size: int, skip: Callable[[int], bool]) -> list[int]:
        """Deal from each source in turn, oldest first, until `size` records are chosen. A source whose next one is
        known to be too large for what room is left has no more turns.
        """
        order = sorted(due.sources, key=lambda source: due.served.get(source, 0))
        chosen: dict[int, None] = {}
        room = self._max_bytes
        while order and len(chosen) < size:
            left = []
            for source in order:
                queue = due.sources[source]
                while queue and (queue[0].ref in chosen or skip(queue[0].ref)):
                    queue.popleft()
                if queue and len(chosen) < size:
                    if chosen and self._sizes.get(queue[0].ref, 0) > room:
                        continue
                    ref = queue.popleft().ref
                    chosen[ref] = None
                    room -= self._sizes.pop(ref, 0)
                    self._times_served += 1
                    due.served[source] = self._times_served
                if queue:
                    left.append(source)
            order = left
        return list(chosen)
