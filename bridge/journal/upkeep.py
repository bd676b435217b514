"""Upkeep by the dispatcher's process: figures once a second, the last hour, retention in small steps (G8).

Pruned are settled events older than `retention`, calls with them, and delivered values older than
`remember`; never what is pending, parked or refused, nor an event behind it. Each step is one short
transaction and goes on where the last one stopped, so that a long retry log is not read again and again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import orjson
from sqlalchemy.engine import Connection

from bridge.journal import retry_log
from bridge.journal.database import fetch, load_meta, lock_outdated, lock_roots, run, save_meta, take_turns
from bridge.journal.retry_log import EntryState
from bridge.journal.schema import FORGETTABLE
from bridge.model import FUTURE_TOLERANCE_US

# --- the last hour, minute by minute, for people's charts: carried on with every count of the figures ---
#
# What is new since the last count is added to the minute it belongs to, so that a page costs one row, however many
# events the journal holds. After a long silence of the dispatcher it catches up in portions.

#: Minutes that are kept.
MINUTES = 60
MINUTE_US = 60 * 1_000_000
#: Events and calls looked at in one count: more than a second brings.
EVENTS = 20_000
CALLS = 500


@dataclass(slots=True)
class Minute:
    """What one minute brought, and the worst that was seen in it."""

    at_s: int  # its begin, since the epoch
    events: int = 0
    calls: int = 0
    failed: int = 0  # calls without an answer, or with one that is not 2xx
    records: int = 0  # in the calls
    pending: int = 0  # most records that waited
    waited_s: float = 0.0  # how long the oldest of them had waited
    delay_s: float = 0.0  # longest time from accepted to confirmed, of one value of each call
    limit_used: float = 0.0  # most of the rate limit, 0 to 1


@dataclass(frozen=True, slots=True)
class Now:
    """What was just counted."""

    us: int
    pending: int
    oldest_us: int | None
    limit_used: float


def advance_history(connection: Connection, before: dict[str, Any], now: Now) -> dict[str, Any]:
    """The history with what is new; `before` is what this returned last, {} in the beginning."""
    hour_us = now.us - now.us % MINUTE_US - (MINUTES - 1) * MINUTE_US
    minutes = {minute.at_s: minute for minute in minutes_of(before) if hour_us <= minute.at_s * 1_000_000 <= now.us}

    def of(us: int) -> Minute:
        at_s = us // MINUTE_US * 60
        return minutes.setdefault(at_s, Minute(at_s))

    event = before["event"] if before else _last(connection, "seq", "events", "received_us", hour_us)
    for at, number, newest in fetch(
        connection,
        f"""SELECT received_us / {MINUTE_US}, count(*), max(seq) FROM events
             WHERE seq > :event AND seq <= :upto GROUP BY received_us / {MINUTE_US}""",
        event=event,
        upto=event + EVENTS,
    ):
        event = max(event, int(newest))
        if hour_us <= at * MINUTE_US <= now.us:
            of(at * MINUTE_US).events += int(number)
    call = before["call"] if before else _last(connection, "id", "calls", "started_us", hour_us)
    call = _add_calls(connection, call, lambda us: of(us) if hour_us <= us <= now.us else Minute(0))
    current = of(now.us)
    current.pending = max(current.pending, now.pending)
    current.limit_used = max(current.limit_used, round(now.limit_used, 3))
    if now.oldest_us is not None:
        current.waited_s = max(current.waited_s, round((now.us - now.oldest_us) / 1e6, 1))
    kept = [[getattr(minute, name) for name in Minute.__slots__] for _, minute in sorted(minutes.items())]
    return {"event": event, "call": call, "minutes": kept}


def minutes_of(history: dict[str, Any]) -> list[Minute]:
    """The minutes of a kept history, oldest first; one in which nothing was counted is missing."""
    return [Minute(*values[: len(Minute.__slots__)]) for values in history.get("minutes", ())]


def _add_calls(connection: Connection, after: int, of: Callable[[int], Minute]) -> int:
    started: dict[int, int] = {}
    sampled: set[int] = set()
    for id_, started_us, status, inputs in fetch(
        connection,
        "SELECT id, started_us, status, inputs FROM calls WHERE id > :after ORDER BY id LIMIT :calls",
        after=after,
        calls=CALLS,
    ):
        carried = orjson.loads(inputs)
        started[id_] = started_us
        minute = of(started_us)
        minute.calls += 1
        minute.records += len(carried)
        minute.failed += status is None or not 200 <= status < 300
        sampled.update(record for record, *_ in carried[:1])
    for call, delay_us in fetch(
        connection,
        """SELECT d.call, max(d.settled_us - e.received_us) FROM desired d JOIN events e ON e.seq = d.event
            WHERE d.record IN (SELECT id FROM {ids}) AND d.call > :after AND d.settled_us >= e.received_us
            GROUP BY d.call""",
        ids=sorted(sampled),
        after=after,
    ):
        if call in started:
            minute = of(started[call])
            minute.delay_s = max(minute.delay_s, round(delay_us / 1e6, 2))
    return max(started, default=after)


def _last(connection: Connection, key: str, table: str, at: str, before_us: int) -> int:
    """The newest row from before the hour."""
    rows = fetch(connection, f"SELECT {key} FROM {table} WHERE {at} < :us ORDER BY {at} DESC LIMIT 1", us=before_us)
    return int(rows[0][0]) if rows else 0


#: Rows looked at in one step of retention: a few milliseconds under the transaction lock.
STEP_ROWS = 500
#: Events per second are counted over this long.
RATE_US = 10 * 1_000_000
#: Events whose sources are counted at a time.
ARRIVALS_STEP = 20_000
DAY_US = 86_400 * 1_000_000
#: Counting the retry log may take this share of the time: a million entries take seconds.
COUNTING_SHARE = 0.1
#: A count that took no longer is made anew each time.
QUICK_S = 0.1
#: How long a reading is remembered: no rate limit looks back further.
READINGS_US = 120 * 1_000_000
_READINGS = "readings"


@dataclass(frozen=True, slots=True)
class Figures:
    """The journal's gauges, the same whichever worker or replica answers; at most about a second old. `entries` may be
    older where there are hundreds of thousands, see `RetryLogCount`.
    """

    pending: int = 0  # records with something to deliver that are not parked
    oldest_pending_us: int | None = None
    waiting: tuple[tuple[str, str, int], ...] = ()  # (source, object type, its pending records), most first
    entries: tuple[tuple[str, str, int], ...] = ()  # retry log: (state, category, number)
    last_event_us: dict[str, int] = field(default_factory=dict)  # source → arrival of its newest event
    watched_since_us: dict[str, int] = field(default_factory=dict)  # configured source → when it was first seen
    rates: dict[str, float] = field(default_factory=dict)  # source → events per second, over `RATE_US`
    delivery: dict[str, Any] = field(default_factory=dict)  # what the dispatcher adds: in flight, limiter, …
    history: dict[str, Any] = field(default_factory=dict)  # the last hour, see `minutes_of`
    at_us: int | None = None

    @property
    def retrying(self) -> int:
        return sum(number for state, _, number in self.entries if state == "retrying")

    @property
    def parked(self) -> int:
        return sum(number for state, _, number in self.entries if state == "parked")


_FIGURES = frozenset(each.name for each in fields(Figures))


class RetryLogCount:
    """The retry log's entries by state and category; kept for a while where counting them takes long."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._counted: tuple[tuple[EntryState, str, int], ...] = ()
        self._anew_at = -math.inf

    def __call__(self, connection: Connection) -> tuple[tuple[EntryState, str, int], ...]:
        began = self._monotonic()
        if began >= self._anew_at:
            self._counted = tuple(retry_log.count_by_state(connection))
            took_s = self._monotonic() - began
            self._anew_at = began + took_s / COUNTING_SHARE if took_s > QUICK_S else -math.inf
        return self._counted


def count_figures(
    connection: Connection,
    retry_log_count: RetryLogCount,
    *,
    delivery: dict[str, Any],
    sources: Collection[str] = (),
    now_us: int,
) -> Figures:
    """Count anew. `sources` are the configured ones: from when they are first seen here, silence is counted."""
    oldest = fetch(connection, "SELECT min(since_us) FROM due WHERE due_us IS NOT NULL")[0][0]
    queues = _queues(connection)
    before = read_figures(connection)
    # What was not yet committed at the last count is looked at too.
    arrivals = _arrivals(connection, min(now_us, before.at_us or 0) - RATE_US, now_us)
    pending_now, limiter = _pending(connection, queues), delivery.get("limiter", {})
    now = Now(now_us, pending_now, oldest, limiter.get("used", 0) / (limiter.get("calls") or 1))
    # A time ahead of now was given while our clock was wrong: silence would be told that much too late.
    last = {source: min(at_us, now_us) for source, at_us in before.last_event_us.items()}
    watched = {source: min(before.watched_since_us.get(source, now_us), now_us) for source in sources}
    return Figures(
        pending=pending_now,
        oldest_pending_us=oldest,
        waiting=_waiting(queues),
        entries=retry_log_count(connection),
        last_event_us=last | {source: max(last.get(source, 0), at_us) for source, at_us, _ in arrivals},
        watched_since_us=watched or before.watched_since_us,
        rates={source: number / (RATE_US / 1_000_000) for source, _, number in arrivals if number},
        delivery=delivery,
        history=advance_history(connection, before.history, now),
        at_us=now_us,
    )


def pending(connection: Connection) -> int:
    """How many records have something to deliver and are not parked: counted now, in 0.1 s a million."""
    return _pending(connection, _queues(connection))


def _queues(connection: Connection) -> Sequence[Sequence[Any]]:
    """(lane, object type, source, records) of all that waits, in order of lanes."""
    return fetch(
        connection,
        """SELECT q.lane, l.object_type, q.source, q.records FROM
             (SELECT lane, source, count(*) AS records FROM due WHERE due_us IS NOT NULL GROUP BY lane, source) q
             JOIN lanes l ON l.id = q.lane ORDER BY q.lane""",
    )


def _pending(connection: Connection, queues: Sequence[Sequence[Any]]) -> int:
    lanes = [lane for lane, *_ in queues]
    if len(set(lanes)) == len(lanes):  # no record waits for two sources
        return sum(int(records) for *_, records in queues)
    counted = "SELECT count(*) FROM (SELECT DISTINCT record FROM due WHERE due_us IS NOT NULL) AS d"
    return int(fetch(connection, counted)[0][0])


def _waiting(queues: Sequence[Sequence[Any]]) -> tuple[tuple[str, str, int], ...]:
    found: Counter[tuple[str, str]] = Counter()
    for _, object_type, source, records in queues:
        found[source, object_type] += int(records)
    return tuple((source, object_type, records) for (source, object_type), records in found.most_common())


def _arrivals(connection: Connection, since_us: int, now_us: int) -> list[tuple[str, int, int]]:
    """(source, arrival of its newest event, events within `RATE_US`) of what came since then.

    All of it is looked at, however much came: the single event of one source among thousands of another's. In steps,
    as a database sorts what it groups, and a first look is at millions.
    """
    newest: dict[str, int] = {}
    late: Counter[str] = Counter()
    while since_us < now_us:
        bound = fetch(
            connection,
            """SELECT received_us FROM events WHERE received_us > :since AND received_us <= :now
                ORDER BY received_us LIMIT 1 OFFSET :step""",
            since=since_us,
            now=now_us,
            step=ARRIVALS_STEP,
        )
        until_us = int(bound[0][0]) if bound else now_us
        for source, received_us, number in fetch(
            connection,
            """SELECT source, max(received_us), count(*) FILTER (WHERE received_us > :late) FROM events
                WHERE received_us > :since AND received_us <= :until GROUP BY source""",
            since=since_us,
            late=now_us - RATE_US,
            until=until_us,
        ):
            newest[source] = int(received_us)
            late[source] += int(number)
        since_us = until_us
    return [(source, received_us, late[source]) for source, received_us in newest.items()]


def save_figures(connection: Connection, figures: Figures) -> None:
    """Keep them where every worker and replica reads them."""
    run(
        connection,
        "UPDATE dispatcher SET figures = :figures, figures_us = :now WHERE id = 1",
        figures=orjson.dumps(asdict(figures)).decode(),
        now=figures.at_us,
    )


def read_figures(connection: Connection) -> Figures:
    """The gauges last counted by the dispatcher's process."""
    rows = fetch(connection, "SELECT figures FROM dispatcher WHERE id = 1")
    document = orjson.loads(rows[0][0]) if rows else {}
    for name in ("entries", "waiting"):
        document[name] = tuple(map(tuple, document.get(name, ())))
    # What a later version keeps besides is left aside.
    return Figures(**{name: value for name, value in document.items() if name in _FIGURES})


def calls_since(connection: Connection, since_us: int) -> int:
    """How many calls began at this time or later."""
    return int(fetch(connection, "SELECT count(*) FROM calls WHERE started_us >= :since", since=since_us)[0][0])


def call_starts(connection: Connection, since_us: int) -> Sequence[int]:
    """When the calls began that did so at this time or later and were settled, and what was read (`note_reading`)."""
    rows = fetch(connection, "SELECT started_us FROM calls WHERE started_us >= :since", since=since_us)
    return [int(at_us) for (at_us,) in rows] + [at_us for at_us in _readings(connection) if at_us >= since_us]


def note_reading(connection: Connection, at_us: int) -> None:
    """Remember that something was read from the CRM: a call like any other to its limit, and to nobody else."""
    recent = [earlier_us for earlier_us in _readings(connection) if abs(at_us - earlier_us) < READINGS_US]
    save_meta(connection, _READINGS, orjson.dumps([*recent, at_us]).decode())


def _readings(connection: Connection) -> list[int]:
    found: list[int] = orjson.loads(load_meta(connection, _READINGS) or "[]")
    return found


# --- retention ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Retention:
    """Where pruning stands. Kept in memory only: a restart begins a new round."""

    arrived_us: int = 0  # of the event looked at last
    event: int = 0
    record: int = 0

    @property
    def is_under_way(self) -> bool:
        """Whether there are events as old beyond those that the last step looked at."""
        return self.event > 0

    def step(
        self, connection: Connection, *, events_before_us: int, values_before_us: int, day_began_us: int, now_us: int
    ) -> int:
        """Prune one small portion; returns how many rows went. Today's calls stay: they are counted."""
        take_turns(connection)
        pruned = self._events(connection, events_before_us)
        pruned += self._values(connection, values_before_us, now_us)
        pruned += run(
            connection,
            """DELETE FROM calls WHERE id IN
                 (SELECT id FROM calls WHERE started_us < :before ORDER BY started_us LIMIT :step)""",
            before=min(events_before_us, day_began_us),
            step=STEP_ROWS,
        ).rowcount
        return pruned

    def _events(self, connection: Connection, before_us: int) -> int:
        # By arrival: the index then ends the search where retention does, however many younger events there are.
        looked_at = fetch(
            connection,
            """SELECT received_us, seq FROM events
                WHERE received_us >= :arrived AND received_us < :before AND (received_us > :arrived OR seq > :after)
                ORDER BY received_us, seq LIMIT :step""",
            arrived=self.arrived_us,
            after=self.event,
            before=before_us,
            step=STEP_ROWS,
        )
        seqs = [seq for _, seq in looked_at]
        self.arrived_us, self.event = looked_at[-1] if len(seqs) == STEP_ROWS else (0, 0)
        if not seqs:
            return 0
        settled = [
            seq
            for (seq,) in fetch(
                connection,
                """SELECT e.seq FROM events e WHERE e.seq IN (SELECT id FROM {ids}) AND e.waits = 0
                      AND NOT EXISTS (SELECT 1 FROM asks a JOIN desired d ON d.record = a.record
                                       WHERE a.event = e.seq AND d.event = e.seq AND d.state IN (0, 2))""",
                ids=seqs,
            )
        ]
        run(connection, "DELETE FROM asks WHERE event IN (SELECT id FROM {ids})", ids=settled)
        roots = lock_roots(connection, settled)  # before the events, as intake does
        gone = run(connection, "DELETE FROM events WHERE seq IN (SELECT id FROM {ids})", ids=settled).rowcount
        if roots:
            gone += run(
                connection,
                """DELETE FROM roots WHERE hash IN (SELECT hash FROM {rows:hash text} AS given)
                      AND NOT EXISTS (SELECT 1 FROM events e WHERE e.root = roots.hash)""",
                rows=[(root,) for root in roots],
            ).rowcount
        return gone

    def _values(self, connection: Connection, before_us: int, now_us: int) -> int:
        """Forget old settled values, and records of which nothing is left."""
        looked_at = fetch(
            connection,
            "SELECT id, newest_us FROM records WHERE id > :after ORDER BY id LIMIT :step",
            after=self.record,
            step=STEP_ROWS,
        )
        self.record = looked_at[-1][0] if len(looked_at) == STEP_ROWS else 0
        refs = [ref for ref, _ in looked_at]
        if not refs:
            return 0
        lock_outdated(connection, refs, before_us=before_us)
        pruned = run(
            connection,
            # A value that a partner repeats, and that is left out each time, was settled when it was first delivered. A
            # time that lies ahead was given while our clock was wrong.
            f"""DELETE FROM desired AS d WHERE d.record IN (SELECT id FROM {{ids}}) AND {FORGETTABLE}
                   AND (d.time_us < :before OR d.time_us > :believed)""",
            ids=refs,
            before=before_us,
            believed=now_us + FUTURE_TOLERANCE_US,
        ).rowcount
        old = [ref for ref, newest_us in looked_at if newest_us < before_us]
        if old:
            pruned += run(
                connection,
                """DELETE FROM records WHERE id IN (SELECT id FROM {ids})
                      AND NOT EXISTS (SELECT 1 FROM desired d WHERE d.record = records.id)
                      AND NOT EXISTS (SELECT 1 FROM due WHERE due.record = records.id)
                      AND NOT EXISTS (SELECT 1 FROM asks a WHERE a.record = records.id)""",
                ids=old,
            ).rowcount
        return pruned
