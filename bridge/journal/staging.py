"""Large requests: on disk at once, merged in slices.

One transaction for thousands of events holds up every other sender for half a second. So the first slice's
transaction also keeps the rest as one row, which makes the request durable as a whole, and the slices follow in
transactions of their own, between those of others; the last one takes the row away. What a crash, or trouble with
the disk, leaves there is merged later by whoever is on duty. Merging twice changes nothing, as for any event.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from sys import getsizeof
from types import MappingProxyType
from typing import Any

import orjson
from sqlalchemy.engine import Connection

from bridge.journal.database import fetch, run, select
from bridge.model import FUTURE_TOLERANCE_US, Event, Lane, PropertyUpdate, RecordKey

#: Events that one transaction merges of a large request: some 5 ms.
SLICE_EVENTS = 100
#: Bytes of payloads and values that one transaction merges: ten times as much in memory, as rows, as JSON and in the
#: database's hands. A thousand ordinary events are less than half of it. One event is merged however large it is.
SLICE_BYTES = 2 << 20
#: What is left of a request is merged by others after this long: by then nobody is at it any more.
LEFT_AFTER_US = 30 * 1_000_000


@dataclass(frozen=True, slots=True)
class Left:
    """The rest of one request."""

    id: int
    events: Sequence[Event]


def weight(event: Event) -> int:
    """Bytes of memory that an event's payload, context and values take."""
    values = (update.properties.values() for update in event.updates)
    return getsizeof(event.payload) + getsizeof(event.context) + sum(map(getsizeof, chain.from_iterable(values)))


def slices(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """The events in portions, each for one transaction."""
    begin = size = 0
    for at, event in enumerate(events):
        size += weight(event)
        if at > begin and (at - begin == SLICE_EVENTS or size > SLICE_BYTES):
            yield events[begin:at]
            begin, size = at, weight(event)
    yield events[begin:]


def stage(connection: Connection, events: Sequence[Event], *, now_us: int) -> Left:
    """Keep these events until they are merged, dated as of their arrival."""
    events = arrived(events, received_us=now_us, newest=_newest_known(connection, events, now_us))
    [(number,)] = fetch(
        connection,
        "INSERT INTO staged (received_us, events) VALUES (:now, :events) RETURNING id",
        now=now_us,
        events=encode(events),
    )
    return Left(int(number), events)


def _newest_known(connection: Connection, events: Sequence[Event], now_us: int) -> dict[RecordKey, int]:
    """The newest known time of the records of which an event asks that has no time to be believed."""
    keys = {update.record for event in events if _is_undated(event, now_us) for update in event.updates}
    if not keys:
        return {}
    rows = select(
        connection,
        "object_type, id_property, record, newest_us",
        """SELECT l.object_type, l.id_property, o.record, o.newest_us
             FROM {rows:object_type text, id_property text, record text} r
             JOIN lanes l ON l.object_type = r.object_type AND l.id_property = r.id_property
             JOIN records o ON o.lane = l.id AND o.record = r.record
            WHERE o.newest_us <= :believed""",
        rows=sorted((key.lane.object_type, key.lane.id_property, key.id) for key in keys),
        believed=now_us + FUTURE_TOLERANCE_US,
    )
    return {RecordKey(Lane(type_, by), record): newest_us for type_, by, record, newest_us in rows}


def _is_undated(event: Event, received_us: int) -> bool:
    return event.occurred_at_us is None or event.occurred_at_us > received_us + FUTURE_TOLERANCE_US


def unstage(connection: Connection, ids: Iterable[int]) -> None:
    """These are merged to their end."""
    run(connection, "DELETE FROM staged WHERE id IN (SELECT id FROM {ids})", ids=list(ids))


def oldest_left(connection: Connection, *, now_us: int) -> Left | None:
    """The oldest request that nobody is at any more; None when there is none."""
    found = fetch(
        connection,
        # What came later than now came while our clock was ahead: nobody is at that either.
        """SELECT id, received_us, events FROM staged
            WHERE received_us < :before OR received_us > :now ORDER BY id LIMIT 1""",
        before=now_us - LEFT_AFTER_US,
        now=now_us,
    )
    if not found:
        return None
    id_, received_us, text = found[0]
    return Left(id_, arrived(decode(text), received_us=received_us))


def arrived(
    events: Iterable[Event], *, received_us: int, newest: Mapping[RecordKey, int] = MappingProxyType({})
) -> list[Event]:
    """The events as of their arrival: merged later, they must not pass for newer than what arrived since, nor for older
    than what was known then (see `bridge.journal.merging`). `newest` are times known of records.
    """
    known = dict(newest)
    dated = []
    for event in events:
        records = [update.record for update in event.updates]
        at_us = event.occurred_at_us
        if at_us is None or _is_undated(event, received_us):
            at_us = max([received_us, *(known.get(record, 0) for record in records)])
        known.update((record, max(at_us, known.get(record, 0))) for record in records)
        dated.append(event if at_us == event.occurred_at_us else replace(event, occurred_at_us=at_us))
    return dated


def unmergeable(event: Event, error: Exception) -> Event:
    """The event without what the journal does not take: parked, so that people see it."""
    why = f"the journal could not take what it asks for ({type(error).__name__})"
    return replace(event, updates=(), occurred_at_us=None, unmappable=why)


def encode(events: Sequence[Event]) -> str:
    """The events as JSON text. The events of a request share their root, which may be long: it is there once."""
    roots: dict[str, int] = {}
    places = [None if event.root is None else roots.setdefault(event.root, len(roots)) for event in events]
    bare = [event if event.root is None else replace(event, root=None) for event in events]
    # In pieces, so that other threads have their turn in between.
    pieces = (orjson.dumps(bare[at : at + SLICE_EVENTS])[1:-1] for at in range(0, len(bare), SLICE_EVENTS))
    rest = orjson.dumps({"roots": list(roots), "root_of": places})
    return (b'{"events":[' + b",".join(pieces) + b"]," + rest[1:]).decode()


def decode(text: str) -> list[Event]:
    """The events that `encode` was given."""
    document = orjson.loads(text)
    roots = document["roots"]
    return [
        _event({**fields, "root": None if place is None else roots[place]})
        for fields, place in zip(document["events"], document["root_of"], strict=True)
    ]


def _event(fields: dict[str, Any]) -> Event:
    return Event(**{**fields, "updates": tuple(map(_update, fields["updates"]))})


def _update(fields: dict[str, Any]) -> PropertyUpdate:
    record = fields["record"]
    return PropertyUpdate(**{**fields, "record": RecordKey(**{**record, "lane": Lane(**record["lane"])})})
