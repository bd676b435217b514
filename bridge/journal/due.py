"""What is due, queue by queue; and where each queue begins, so that a poll does not read what was there before.

PostgreSQL leaves a row's old versions, and their index entries, where they were until they are vacuumed, which an old
snapshot anywhere can put off for hours. The head of a queue is where all of them gather: looking for its first row
would read a million of dead ones at every poll. So a poll begins shortly before the oldest row that was seen last, and
only now and then one looks from the very beginning, for what was committed late.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial

from sqlalchemy.engine import Connection

from bridge.journal.database import fetch, is_postgresql, select
from bridge.model import Due, Lane

#: Seconds between two looks from the beginning, and how many times longer than such a look that is at least.
WHOLE_EVERY_S, WHOLE_SHARE = 1.0, 20
#: Seconds that it is at most: a look may have taken long because the process or the database stood still.
WHOLE_AT_MOST_S = 5.0
#: How much older than the oldest row that was seen one may be which comes after: replicas' clocks differ a little.
MARGIN_US = 1_000_000

#: Before any time.
EARLIEST_US = -(2**62)

#: Lane and source.
Queue = tuple[int, str]


class DueScan:
    """What one process remembers between two polls. Not thread-safe: one dispatcher polls."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._begins: dict[Queue, int] = {}
        self._whole_at = float("-inf")
        self._began = 0.0
        self._now_us = 0
        self._whole = True
        self._seen: set[Queue] = set()

    def begin(self, now_us: int, has_others: Callable[[Collection[Queue]], bool]) -> Collection[Queue] | None:
        """The queues to look at; None: all there are, from the beginning. `has_others` tells whether there are others
        than these.
        """
        self._began = self._monotonic()
        set_back, self._now_us = now_us < self._now_us, now_us
        self._whole = set_back or self._began >= self._whole_at or has_others(self._begins)
        return None if self._whole else list(self._begins)

    def from_us(self, queue: Queue) -> int:
        """Where to begin in a queue."""
        return EARLIEST_US if self._whole else self._begins[queue]

    def saw(self, queue: Queue, oldest_us: int | None) -> None:
        """The oldest row that was found in a queue; None: there was none."""
        oldest_us = (self._now_us if oldest_us is None else oldest_us) - MARGIN_US
        self._begins[queue] = oldest_us if self._whole else max(self._begins[queue], oldest_us)
        self._seen.add(queue)

    def end(self) -> None:
        """The poll is over."""
        if self._whole:
            ended = self._monotonic()
            wait_s = max(WHOLE_EVERY_S, WHOLE_SHARE * (ended - self._began))
            self._whole_at = ended + min(wait_s, WHOLE_AT_MOST_S)
            for queue in self._begins.keys() - self._seen:  # nothing is in it now: what was there is dead
                self._begins[queue] = self._now_us - MARGIN_US
        self._seen.clear()


def due(
    connection: Connection,
    lanes: Callable[[int], Lane],
    *,
    limit: int,
    exclude: Collection[int],
    now_us: int,
    horizon_us: int,
    scan: DueScan | None = None,
) -> list[Due]:
    """For every (lane, source) its `limit` oldest due records, without those in `exclude`.

    A due time further ahead than `horizon_us` comes from a clock that was wrong: it is due now.
    `scan` remembers where the queues began.
    """
    found: list[Due] = []
    scan = scan if is_postgresql(connection) else None
    known = scan.begin(now_us, partial(_has_others, connection)) if scan is not None else None
    for lane, source in _queues(connection) if known is None else known:
        rows = select(
            connection,
            "record, due_us",
            """SELECT record, due_us FROM (
                 SELECT record, due_us FROM due
                  WHERE lane = :lane AND source = :source AND due_us >= :from AND due_us <= :now
                  ORDER BY due_us LIMIT :limit) AS ripe
               UNION ALL SELECT record, :now AS due_us FROM (
                 SELECT record FROM due WHERE lane = :lane AND source = :source AND due_us > :horizon
                  LIMIT :limit) AS misdated""",
            lane=lane,
            source=source,
            now=now_us,
            horizon=now_us + horizon_us,
            limit=limit + len(exclude),
            **{"from": scan.from_us((lane, source)) if scan is not None else EARLIEST_US},
        )
        if scan is not None:
            scan.saw((lane, source), min((due_us for _, due_us in rows), default=None))
        free = (Due(ref, lanes(lane), source, due_us) for ref, due_us in rows if ref not in exclude)
        found.extend(item for item, _ in zip(free, range(limit), strict=False))
    if scan is not None:
        scan.end()
    return found


def _queues(connection: Connection) -> Iterator[Queue]:
    """Every (lane, source) that something is due for, now or later, in order."""
    lane, source = -1, ""
    while True:
        following = fetch(
            connection,
            # Not (lane, source) > (…): SQLite would step over every row of the queue that was just read.
            """SELECT lane, source FROM (
                 SELECT lane, source FROM (SELECT lane, source FROM due WHERE due_us IS NOT NULL AND lane = :lane
                    AND source > :source ORDER BY source LIMIT 1) AS next_source
                 UNION ALL
                 SELECT lane, source FROM (SELECT lane, source FROM due WHERE due_us IS NOT NULL AND lane > :lane
                    ORDER BY lane, source LIMIT 1) AS next_lane) AS following ORDER BY lane, source LIMIT 1""",
            lane=lane,
            source=source,
        )
        if not following:
            return
        lane, source = following[0]
        yield lane, source


def _has_others(connection: Connection, known: Collection[Queue]) -> bool:
    """Whether something is due between or beside the queues that are known.

    Each part is a range of the index, so that nothing of the known queues is read.
    """
    found = fetch(
        connection,
        """WITH known AS (SELECT lane, source FROM {rows:lane int, source text} AS given
                          UNION ALL SELECT -1, ''),
                gaps AS (SELECT lane, source, coalesce(lead(lane) OVER following, :last) AS next_lane,
                                coalesce(lead(source) OVER following, '') AS next_source
                           FROM known WINDOW following AS (ORDER BY lane, source))
           SELECT 1 FROM gaps g CROSS JOIN LATERAL (
             (SELECT 1 FROM due WHERE due_us IS NOT NULL AND next_lane = g.lane AND due.lane = g.lane
                 AND due.source > g.source AND due.source < next_source ORDER BY due.source LIMIT 1)
             UNION ALL
             (SELECT 1 FROM due WHERE due_us IS NOT NULL AND next_lane > g.lane AND due.lane = g.lane
                 AND due.source > g.source ORDER BY due.source LIMIT 1)
             UNION ALL
             (SELECT 1 FROM due WHERE due_us IS NOT NULL AND due.lane > g.lane AND due.lane < next_lane
               ORDER BY due.lane LIMIT 1)
             UNION ALL
             (SELECT 1 FROM due WHERE due_us IS NOT NULL AND next_lane > g.lane AND due.lane = next_lane
                 AND due.source < next_source ORDER BY due.source LIMIT 1)) AS other LIMIT 1""",
        rows=list(known),
        last=2**62,
    )
    return bool(found)
