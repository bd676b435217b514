"""What is due: how it follows from what waits (G2), and how it is read, queue by queue.

A value waits if it is pending, or if settle found that it goes once more after a doubt. Afterwards, for each record:

* `due` has a row for each source of which something waits, and no other; `due_us` is NULL while the record is parked;
* where nothing waits, nothing fails.

Kept is what does not follow:

* the place in the queue, `due_us`. A retry, the end of a doubt and a resync move it back; a replay and the end of
  parking to now;
* the age, `since_us`, while anything waits without a break; after a settle it is that of what is left;
* the attempts and the first failure, until the record fails no more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy.engine import Connection

from bridge.journal.database import fetch, is_postgresql, run, select
from bridge.journal.schema import FAILS, GOES_AGAIN, NEVER
from bridge.model import Due, Lane

#: HubSpot gives up on a request after 100 s (its 524); after this long a call that got no answer is over.
#: Source: HubSpot's documentation of error handling, status 524.
DOUBT_US = 120 * 1_000_000

#: Of `desired d`, what a merge has just written of the change `a`: no older value has the record's newest revision.
WRITTEN = "d.record = a.ref AND d.n = a.n AND d.revision = a.revision"


@dataclass(slots=True)
class _Record:
    """A record as it was found, and what is to become of it."""

    lane: int
    parked: bool
    retry_us: int | None
    fails: bool
    again_us: int | None  # when confirmed values go once more; None: they do not
    rows: dict[str, tuple[int | None, int]] = field(default_factory=dict)  # by source: due, since
    pending: dict[str, int | None] = field(default_factory=dict)  # by source: arrival of the oldest event behind it

    def is_over(self, *, moved: bool, settled: bool) -> bool:
        """Whether what failed does not any more: nothing waits, or the record was parked and is asked for anew."""
        if self.parked and not moved and any(due_us is not None for due_us, _ in self.rows.values()):
            return True
        return not self.pending and (self.again_us is None or (settled and not moved))

    def wanted(self, *, now_us: int, moved: bool, settled: bool) -> dict[str, tuple[int | None, int]]:
        """The rows that it is to have, by source."""
        wanted = {}
        for source in self.pending if self.again_us is None else self.pending | self.rows:
            due_us, since_us = self.rows.get(source, (None, now_us))
            if self.parked:
                due_us = None
            elif not self.pending and not self.fails:
                due_us = max(now_us, self.again_us or 0)
            elif moved or due_us is None:
                due_us = max(now_us, self.retry_us or 0)
            if settled:
                since_us = max(since_us, self.pending.get(source) or since_us)
            wanted[source] = due_us, since_us
        return wanted


def reconcile(
    connection: Connection,
    refs: Collection[int],
    *,
    now_us: int,
    moved: Collection[int] = (),
    settled: Collection[int] = (),
) -> list[tuple[int, str, int]]:
    """Write for these records, which the caller has locked, what follows from what waits. Returns (record, source,
    since) of what waits no more.

    `moved` lose their place: they are due now, or when they are tried again. Of `settled` values were settled: what
    failed is over if no other is pending, unless it is `moved` too. A parked record of which a row is due was asked for
    anew: all of it goes on.
    """
    moved, settled = frozenset(moved), frozenset(settled)
    over: list[int] = []
    due: list[tuple[int, str, int, int | None, int]] = []
    left: list[tuple[int, str, int]] = []
    for ref, record in _found(connection, refs).items():
        if record.fails and record.is_over(moved=ref in moved, settled=ref in settled):
            over.append(ref)
            record.fails, record.parked, record.retry_us = False, False, None
        wanted = record.wanted(now_us=now_us, moved=ref in moved, settled=ref in settled)
        due += [(ref, source, record.lane, *row) for source, row in wanted.items() if row != record.rows.get(source)]
        left += [(ref, source, since_us) for source, (_, since_us) in record.rows.items() if source not in wanted]
    if over:
        forget_failures(connection, over)
    if due:
        run(
            connection,
            """INSERT INTO due (record, source, lane, due_us, since_us)
               SELECT record, source, lane, due_us, since_us
                 FROM {rows:record int, source text, lane int, due_us int, since_us int} AS given WHERE true
               ON CONFLICT (record, source) DO UPDATE SET due_us = excluded.due_us, since_us = excluded.since_us""",
            rows=due,
        )
    if left:
        run(
            connection,
            """DELETE FROM due
                WHERE (record, source) IN (SELECT record, source FROM {rows:record int, source text} AS given)""",
            rows=[row[:2] for row in left],
        )
    return left


def making_due(asked: str, desired: str) -> str:
    """The statement that adds what follows from changes that were just merged: `asked` of them, and their values in
    `desired`. All that a group commit needs, unless a record was parked or something left. A record that is due earlier
    stays so; with `:at_once` it is due as said.
    """
    return f"""
INSERT INTO due (record, source, lane, due_us, since_us)
SELECT DISTINCT a.ref, a.source, a.lane, a.due_us, :now FROM {asked} a
 WHERE EXISTS (SELECT 1 FROM {desired} d WHERE {WRITTEN} AND d.state = 0)
ON CONFLICT (record, source) DO UPDATE SET due_us = excluded.due_us
 WHERE :at_once = 1 OR due.due_us IS NULL OR due.due_us > excluded.due_us"""


def _found(connection: Connection, refs: Collection[int]) -> dict[int, _Record]:
    found: dict[int, _Record] = {}
    waiting: list[tuple[int, str, int | None]] = []
    for ref, lane, parked, retry_us, fails, again_us, source, due_us, since_us, received_us in select(
        connection,
        "id, lane, parked, retry_us, fails, again_us, source, due_us, since_us, received_us",
        f"""SELECT r.id, r.lane, r.parked_us IS NOT NULL AS parked, r.retry_us, {FAILS} AS fails,
                  CASE WHEN {GOES_AGAIN} THEN r.doubt_us + :doubt END AS again_us,
                  due.source, due.due_us, due.since_us, cast(NULL AS bigint) AS received_us
             FROM records r LEFT JOIN due ON due.record = r.id WHERE r.id {{any_id}}
           UNION ALL
           SELECT d.record, NULL, NULL, NULL, NULL, NULL, coalesce(d.source, ''), NULL, NULL, min(e.received_us)
             FROM desired d LEFT JOIN events e ON e.seq = d.event
            WHERE d.record {{any_id}} AND d.state = 0 GROUP BY d.record, coalesce(d.source, '')""",
        ids=sorted(refs),
        doubt=DOUBT_US,
    ):
        if lane is None:
            waiting.append((ref, source, received_us))
            continue
        record = found.setdefault(ref, _Record(lane, bool(parked), retry_us, bool(fails), again_us))
        if source is not None:
            record.rows[source] = due_us, since_us
    for ref, source, received_us in waiting:
        found[ref].pending[source] = received_us
    return found


def forget_failures(connection: Connection, refs: Sequence[int]) -> None:
    """These records are neither parked nor retried any more; their failures count from nothing."""
    run(
        connection,
        """UPDATE records SET parked_us = NULL, category = NULL, message = NULL, attempts = 0,
                  failing_since_us = NULL, retry_us = NULL WHERE id {any_id}""",
        ids=refs,
    )


# --- what is due, queue by queue; and where each queue begins, so that a poll does not read what was there before ---
#
# PostgreSQL leaves a row's old versions, and their index entries, where they were until they are vacuumed, which an
# old snapshot anywhere can put off for hours. The head of a queue is where all of them gather: looking for its first
# row would read a million of dead ones at every poll. So a poll begins shortly before the oldest row that was seen
# last, and only now and then one looks from the very beginning, for what was committed late.

#: Seconds between two looks from the beginning, and how many times longer than such a look that is at least.
WHOLE_EVERY_S, WHOLE_SHARE = 1.0, 20
#: Seconds that it is at most: a look may have taken long because the process or the database stood still.
WHOLE_AT_MOST_S = 5.0
#: How much older than the oldest row that was seen one may be which comes after: replicas' clocks differ a little.
MARGIN_US = 1_000_000

#: Before any time.
EARLIEST_US = -NEVER

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
        last=NEVER,
    )
    return bool(found)
