"""The last hour, minute by minute, for people's charts: carried on with every count of the figures.

What is new since the last count is added to the minute it belongs to, so that a page costs one row, however many
events the journal holds. After a long silence of the dispatcher it catches up in portions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy.engine import Connection

from bridge.journal.database import fetch

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


def advance(connection: Connection, before: dict[str, Any], now: Now) -> dict[str, Any]:
    """The history with what is new; `before` is what this returned last, {} in the beginning."""
    hour_us = now.us - now.us % MINUTE_US - (MINUTES - 1) * MINUTE_US
    minutes = {minute.at_s: minute for minute in read(before) if hour_us <= minute.at_s * 1_000_000 <= now.us}

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


def read(history: dict[str, Any]) -> list[Minute]:
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
