"""The small in-process buffer of due references: when a call is worth making, and for which records.

A lane's call is due when a full batch of its records is due, when it has waited `flush_interval` for
company, or when the service drains. Lanes take calls in turn, weighted by how many sources have due
records there (stride scheduling); within a batch each source gets an equal share, oldest first. So a
first load of 500,000 records delays another source's single change by a call or two, not by 5,000.

The buffer holds references, never values, and is replaced as a whole at each fill: what was parked,
discarded or taken elsewhere in the meantime simply is not there any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from bridge.model import CALL_BYTES, MICROSECONDS, Due, Lane

#: Large records of which the size is remembered; to learn it anew costs reading it once.
MAX_SIZES = 10_000


@dataclass(slots=True)
class _Shelf:
    """What is due in one lane. `waiting_since` is monotonic: the wall clock may jump.

    `served` remembers which source was dealt to last, so that a batch smaller than the number of
    sources does not always serve the same ones.
    """

    sources: dict[str, deque[Due]] = field(default_factory=dict)
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
        self._shelves: dict[Lane, _Shelf] = {}
        self._turn = 0.0
        self._dealt = 0
        self._truncated = False

    @property
    def limit(self) -> int:
        """How many references to ask the journal for, for each lane and source."""
        queues = sum(len(shelf.sources) for shelf in self._shelves.values())
        return max(self._batch_size, self._depth // max(1, queues))

    @property
    def empty(self) -> bool:
        return not any(shelf.sources for shelf in self._shelves.values())

    @property
    def full(self) -> bool:
        """Whether a full batch waits."""
        return any(shelf.count() >= self._batch_size for shelf in self._shelves.values())

    @property
    def short(self) -> bool:
        """Whether the journal may hold full batches that the buffer no longer sees."""
        return self._truncated and any(shelf.count() < self._batch_size for shelf in self._shelves.values())

    def fill(self, rows: Iterable[Due], *, limit: int, now: float) -> None:
        """Replace everything by what is due now; `limit` is the one that the rows were asked with."""
        old = self._shelves
        shelves: dict[Lane, _Shelf] = {}
        for row in rows:
            shelf = shelves.get(row.lane)
            if shelf is None:
                was = old.get(row.lane)
                shelf = shelves[row.lane] = self._renewed(was, now)
            queue = shelf.sources.get(row.source)
            if queue is None:
                shelf.sources[row.source] = queue = deque()
            queue.append(row)
        # A lane that has nothing due now keeps its turn, lest it jump the queue at every single record.
        for lane, shelf in old.items():
            if lane not in shelves and shelf.turn > self._turn:
                shelves[lane] = _Shelf(turn=shelf.turn, served=shelf.served)
        self._shelves = shelves
        self._truncated = any(len(queue) >= limit for shelf in shelves.values() for queue in shelf.sources.values())

    def next_lane(
        self, *, now: float, now_us: int, open_to: Callable[[Lane], bool], draining: bool = False
    ) -> Lane | None:
        """The lane whose turn it is among those that are due for a call and `open_to` one."""
        ready = [
            (shelf.turn, lane)
            for lane, shelf in self._shelves.items()
            if shelf.sources and (draining or self._flush_in(shelf, now=now, now_us=now_us) <= 0) and open_to(lane)
        ]
        return min(ready)[1] if ready else None

    def flush_in(self, *, now: float, now_us: int, open_to: Callable[[Lane], bool]) -> float | None:
        """Seconds until the next lane is due for a call; None when nothing waits."""
        waits = [
            self._flush_in(shelf, now=now, now_us=now_us)
            for lane, shelf in self._shelves.items()
            if shelf.sources and open_to(lane)
        ]
        return max(0.0, min(waits)) if waits else None

    def lanes(self) -> list[Lane]:
        """The lanes that have something due, in the order of their turns."""
        return [lane for _, lane in sorted((s.turn, lane) for lane, s in self._shelves.items() if s.sources)]

    def cut(
        self,
        lane: Lane,
        *,
        now: float,
        size: int | None = None,
        skip: Callable[[int], bool] = lambda _: False,
    ) -> list[int]:
        """Take a batch out of the buffer: an equal share of each source, a record only once."""
        shelf = self._shelves.get(lane)
        if shelf is None:
            return []
        size = self._batch_size if size is None else size
        shares = len(shelf.sources)
        chosen = self._deal(shelf, size, skip)
        taken = set(chosen)
        for source, queue in list(shelf.sources.items()):
            if not queue or any(row.ref in taken for row in queue):
                left = deque(row for row in queue if row.ref not in taken)
                if left:
                    shelf.sources[source] = left
                else:
                    del shelf.sources[source]
        shelf.waiting_since = now
        # A lane's turn comes the sooner the more sources wait in it.
        self._turn = max(self._turn, shelf.turn)
        shelf.turn = self._turn + 1 / max(1, shares)
        return chosen

    def did_not_fit(self, lane: Lane, sizes: Mapping[int, int], *, served: Iterable[str]) -> None:
        """These records, by their size, did not fit into a call with others of the `served` sources: it is not these
        sources' turn now, and the records go with what fits beside them.
        """
        if (shelf := self._shelves.get(lane)) is not None:
            self._dealt += 1
            shelf.served.update(dict.fromkeys(served, self._dealt))
        self._sizes.update(sizes)
        while len(self._sizes) > MAX_SIZES:
            del self._sizes[next(iter(self._sizes))]

    def _flush_in(self, shelf: _Shelf, *, now: float, now_us: int) -> float:
        if self._batch_size == 1 or shelf.count() >= self._batch_size:
            return 0.0
        oldest_us = min(queue[0].due_at_us for queue in shelf.sources.values() if queue)
        waited_s = max(now - shelf.waiting_since, (now_us - oldest_us) / MICROSECONDS)
        return self._flush_interval_s - waited_s

    def _renewed(self, was: _Shelf | None, now: float) -> _Shelf:
        if was is None:
            return _Shelf(waiting_since=now, turn=self._turn)
        waiting_since = was.waiting_since if was.sources else now
        return _Shelf(waiting_since=waiting_since, turn=max(self._turn, was.turn), served=was.served)

    def _deal(self, shelf: _Shelf, size: int, skip: Callable[[int], bool]) -> list[int]:
        """Deal from each source in turn, oldest first, until `size` records are chosen. A source whose next one is
        known to be too large for what room is left has no more turns.
        """
        order = sorted(shelf.sources, key=lambda source: shelf.served.get(source, 0))
        chosen: dict[int, None] = {}
        room = self._max_bytes
        while order and len(chosen) < size:
            left = []
            for source in order:
                queue = shelf.sources[source]
                while queue and (queue[0].ref in chosen or skip(queue[0].ref)):
                    queue.popleft()
                if queue and len(chosen) < size:
                    if chosen and self._sizes.get(queue[0].ref, 0) > room:
                        continue
                    ref = queue.popleft().ref
                    chosen[ref] = None
                    room -= self._sizes.pop(ref, 0)
                    self._dealt += 1
                    shelf.served[source] = self._dealt
                if queue:
                    left.append(source)
            order = left
        return list(chosen)
