"""Append: log the events of all requests that wait, merge them, one commit for all (G1, G3); large ones in slices."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from sys import getsizeof
from types import MappingProxyType
from typing import Any

import orjson
from sqlalchemy.engine import Connection

from bridge.errors import JournalError
from bridge.journal.database import ADDRESSED, addresses, fetch, is_postgresql, run, select
from bridge.journal.merging import Merged, Update, merge
from bridge.model import (
    CONFLICT_DIGITS,
    FUTURE_TOLERANCE_US,
    Event,
    Intake,
    Lane,
    PropertyUpdate,
    Receipt,
    RecordKey,
    other_id,
    same_content,
)

# --- large requests: on disk at once, merged in slices ---
#
# One transaction for thousands of events holds up every other sender for half a second. So the first slice's
# transaction also keeps the rest as one row, which makes the request durable as a whole, and the slices follow in
# transactions of their own, between those of others; the last one takes the row away. What a crash, or trouble with
# the disk, leaves there is merged later by whoever is on duty. Merging twice changes nothing, as for any event.
#
# Where the rest is long, all of the request is kept first, in pieces with a transaction each. The first one is marked
# as incomplete until the last one is there: until then nothing of the request is merged, and if its process is gone,
# or was too slow, whoever is on duty drops it. It was not answered as taken. (The program before, where it runs
# beside this one, knows no incomplete requests and merges what is left of one.)

#: Events that one transaction merges of a large request: some 5 ms.
SLICE_EVENTS = 50
#: Bytes of payloads and values that one transaction merges: ten times as much in memory, as rows, as JSON and in the
#: database's hands. A thousand ordinary events are less than half of it. One event is merged however large it is.
SLICE_BYTES = 2 << 20
#: Events, and bytes of them, that one transaction keeps for later: what costs no more than to merge a slice.
PIECE_EVENTS, PIECE_BYTES = 4 * SLICE_EVENTS, 2 * SLICE_BYTES
#: What is left of a request is merged by others after this long: by then nobody is at it any more.
ABANDONED_AFTER_US = 30 * 1_000_000


@dataclass(frozen=True, slots=True)
class Staged:
    """What is kept of one request."""

    id: int  # of its first piece
    events: Sequence[Event]
    newest: Mapping[RecordKey, int] = field(default_factory=dict)  # the newest times that it gives to records
    roots: Mapping[str, int] = field(default_factory=dict)  # places of those that are kept with a piece already
    incomplete: bool = False  # and stays so: nobody is at it any more


def weight(event: Event) -> int:
    """Bytes of memory that an event's payload, context and values take."""
    values = (update.properties.values() for update in event.updates)
    return getsizeof(event.payload) + getsizeof(event.context) + sum(map(getsizeof, chain.from_iterable(values)))


def pieces(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """The events in portions, each to be kept in one transaction."""
    return slices(events, most=PIECE_EVENTS, most_bytes=PIECE_BYTES)


def slices(
    events: Sequence[Event], *, most: int = SLICE_EVENTS, most_bytes: int = SLICE_BYTES
) -> Iterator[Sequence[Event]]:
    """The events in portions, each to be merged in one transaction."""
    begin = size = 0
    for at, event in enumerate(events):
        size += weight(event)
        if at > begin and (at - begin == most or size > most_bytes):
            yield events[begin:at]
            begin, size = at, weight(event)
    yield events[begin:]


def stage(
    connection: Connection, events: Sequence[Event], *, now_us: int, after: Staged | None = None, whole: bool = True
) -> Staged:
    """Keep these events until they are merged, dated as of their arrival: the next piece of a request, with which it is
    `whole` or not. Raises JournalError when what came before was dropped.
    """
    before = after or Staged(0, ())
    newest = _newest_known(connection, events, now_us)
    for record in {update.record for event in events for update in event.updates} & before.newest.keys():
        newest[record] = max(before.newest[record], newest.get(record, 0))
    events, newest = arrived(events, received_us=now_us, newest=newest)
    roots = dict(before.roots)
    given = {"now": now_us, "events": encode(events, roots), "incomplete": None if whole else 1}
    if after is None:
        [(id_,)] = fetch(
            connection,
            "INSERT INTO staged (received_us, events, incomplete) VALUES (:now, :events, :incomplete) RETURNING id",
            **given,
        )
    else:
        id_ = after.id
        # On PostgreSQL whoever would drop the request waits for this, or has done it.
        locked = "FOR SHARE" if is_postgresql(connection) else ""
        piece = f"SELECT :now, :events, id FROM staged WHERE id = :id {locked}"
        if not run(connection, f"INSERT INTO staged (received_us, events, request) {piece}", id=id_, **given).rowcount:
            raise JournalError("it took too long to write the request")
        if whole:
            run(connection, "UPDATE staged SET incomplete = NULL WHERE id = :id", id=id_)
    return Staged(int(id_), [*before.events, *events], {**before.newest, **newest}, roots)


def _newest_known(connection: Connection, events: Sequence[Event], now_us: int) -> dict[RecordKey, int]:
    """The newest known time of the records of which an event asks that has no time to be believed."""
    keys = {update.record for event in events if _is_undated(event, now_us) for update in event.updates}
    if not keys:
        return {}
    rows = select(
        connection,
        "object_type, id_property, record, newest_us",
        # Not joined: without statistics PostgreSQL would look through the whole lane for each record.
        f"""SELECT r.object_type, r.id_property, r.record,
                  (SELECT o.newest_us FROM records o
                    WHERE o.lane = l.id AND o.record = r.record AND o.newest_us <= :believed) AS newest_us
             FROM {ADDRESSED}""",
        rows=addresses(keys),
        believed=now_us + FUTURE_TOLERANCE_US,
    )
    return {RecordKey(Lane(type_, by), record): newest_us or 0 for type_, by, record, newest_us in rows}


def _is_undated(event: Event, received_us: int) -> bool:
    return event.occurred_at_us is None or event.occurred_at_us > received_us + FUTURE_TOLERANCE_US


def unstage(connection: Connection, ids: Iterable[int]) -> None:
    """These are merged to their end."""
    run(
        connection,
        "DELETE FROM staged WHERE id IN (SELECT id FROM {ids}) OR request IN (SELECT id FROM {ids})",
        ids=list(ids),
    )


def oldest_staged(connection: Connection, *, now_us: int) -> Staged | None:
    """The oldest request that nobody is at any more, without its events if it is not whole; None when there is none."""
    found = fetch(
        connection,
        # What came much later than now came while our clock was ahead: nobody is at that either. A piece whose first
        # one is gone was left by the program before, which merges each by itself.
        """SELECT id, incomplete FROM staged s
            WHERE (received_us < :before OR received_us > :after)
              AND (request IS NULL OR NOT EXISTS (SELECT 1 FROM staged f WHERE f.id = s.request))
            ORDER BY id LIMIT 1""",
        before=now_us - ABANDONED_AFTER_US,
        after=now_us + ABANDONED_AFTER_US,
    )
    if not found:
        return None
    [(id_, incomplete)] = found
    if incomplete:
        return Staged(id_, (), incomplete=True)
    roots: list[str] = []
    events: list[Event] = []
    kept = "SELECT received_us, events FROM staged WHERE id = :id OR request = :id ORDER BY id"
    for received_us, text in fetch(connection, kept, id=id_):
        events += arrived(decode(text, roots), received_us=received_us)[0]
    return Staged(id_, events)


def drop_incomplete(connection: Connection, id_: int) -> None:
    """Drop a request unless it is whole by now."""
    if run(connection, "DELETE FROM staged WHERE id = :id AND incomplete = 1", id=id_).rowcount:
        run(connection, "DELETE FROM staged WHERE request = :id", id=id_)


def arrived(
    events: Iterable[Event], *, received_us: int, newest: Mapping[RecordKey, int] = MappingProxyType({})
) -> tuple[list[Event], dict[RecordKey, int]]:
    """The events as of their arrival, and the newest times then known: merged later, they must not pass for newer than
    what arrived since, nor for older than what was known then (see `bridge.journal.merging`). `newest` are times known
    of records before.
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
    return dated, known


def unmergeable(event: Event, error: Exception) -> Event:
    """The event without what the journal does not take: parked, so that people see it."""
    why = f"the journal could not take what it asks for ({type(error).__name__})"
    return replace(event, updates=(), occurred_at_us=None, unmappable=why)


def encode(events: Sequence[Event], roots: dict[str, int] | None = None) -> str:
    """The events as JSON text. The events of a request share their root, which may be long: it is there once, with the
    first piece. `roots` are those of the pieces before, and get this one's. The program before reads each piece by
    itself: those of the others are null to it.
    """
    roots = {} if roots is None else roots
    before = len(roots)
    places = [None if event.root is None else roots.setdefault(event.root, len(roots)) for event in events]
    bare = [event if event.root is None else replace(event, root=None) for event in events]
    # In pieces, so that other threads have their turn in between.
    pieces = (orjson.dumps(bare[at : at + SLICE_EVENTS])[1:-1] for at in range(0, len(bare), SLICE_EVENTS))
    rest = orjson.dumps({"roots": ["null"] * before + list(roots)[before:], "first_root": before, "root_of": places})
    return (b'{"events":[' + b",".join(pieces) + b"]," + rest[1:]).decode()


def decode(text: str, roots: list[str] | None = None) -> list[Event]:
    """The events that `encode` was given. `roots` are those of the pieces before, and get this one's."""
    document = orjson.loads(text)
    roots = [] if roots is None else roots
    first = document.get("first_root", 0)
    first = first if first <= len(roots) else 0  # by itself
    roots[first:] = document["roots"][first:]
    return [
        _event({**fields, "root": None if place is None else roots[place]})
        for fields, place in zip(document["events"], document["root_of"], strict=True)
    ]


def _event(fields: dict[str, Any]) -> Event:
    return Event(**{**fields, "updates": tuple(map(_update, fields["updates"]))})


def _update(fields: dict[str, Any]) -> PropertyUpdate:
    record = fields["record"]
    return PropertyUpdate(**{**fields, "record": RecordKey(**{**record, "lane": Lane(**record["lane"])})})


#: Digits of a hash by which two events are told apart whose first ones are the same by chance.
ALL_DIGITS = 64


@dataclass(slots=True)
class Appended:
    """What one append did: a receipt for each event, in order, and counts."""

    receipts: list[Receipt]
    merged: Merged = field(default_factory=Merged)
    staged: list[Staged] = field(default_factory=list)  # what was kept for later, in order


def append(connection: Connection, events: Sequence[Event], *, now_us: int) -> Appended:
    """Take these events within the open transaction; nothing is durable before its commit.

    A second delivery of an event changes nothing. One that has the id of another (of the same source) and asks for
    something else is taken under an id of its own, and reported as a conflict.
    """
    receipts: dict[int, Receipt] = {}
    numbers: dict[int, int] = {}
    taken: dict[int, Event] = {}
    waiting = list(range(len(events)))
    for digits in (0, CONFLICT_DIGITS, ALL_DIGITS):
        named = {at: replace(events[at], id=other_id(events[at], digits)) if digits else events[at] for at in waiting}
        waiting = []
        logged, kept = _log(connection, list(named.values()), now_us)
        for at, event in named.items():
            key = (event.source, event.id)
            if (number := logged.pop(key, None)) is not None:
                numbers[at], taken[at] = number, event
                receipts[at] = Receipt(event.id, event.intake, conflict=digits > 0)
            elif (hash_ := kept.get(key)) is None or same_content(hash_, event.content_hash):
                receipts[at] = Receipt(event.id, Intake.DUPLICATE)  # None: retention was faster
            else:
                waiting.append(at)
        if not waiting:
            break
    receipts.update((at, Receipt(events[at].id, Intake.DUPLICATE, conflict=True)) for at in waiting)
    updates = [
        Update(
            event=numbers[at],
            source=event.source,
            record=update.record,
            properties=update.properties,
            invalid=update.invalid,
            skip_unchanged=update.skip_unchanged,
            occurred_us=event.occurred_at_us,
        )
        for at, event in sorted(taken.items())
        for update in event.updates
    ]
    return Appended([receipts[at] for at in range(len(events))], merge(connection, updates, now_us=now_us))


def _log(
    connection: Connection, events: Sequence[Event], now_us: int
) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], str]]:
    """Log the first of each (source, id) that is new: the numbers of these, and the content hashes of all."""
    first: dict[tuple[str, str], Event] = {}
    for event in events:
        first.setdefault((event.source, event.id), event)
    numbers = _log_events(connection, first, now_us)
    known = _known_hashes(connection, [key for key in first if key not in numbers])
    return numbers, known | {key: first[key].content_hash for key in numbers}


def _log_events(
    connection: Connection, events: dict[tuple[str, str], Event], now_us: int
) -> dict[tuple[str, str], int]:
    """Insert these events but those that are there; returns the numbers of what is new by (source, event id)."""
    if not events:
        return {}
    hashes: dict[str, str] = {}  # by root: the events of a request share theirs, which may be long
    rows = []
    for event in events.values():
        root = None
        if event.root is not None:
            root = hashes.get(event.root)
            if root is None:
                root = hashes[event.root] = hashlib.blake2b(event.root.encode(), digest_size=16).hexdigest()
        rows.append(
            (
                event.source,
                event.id,
                now_us,
                event.occurred_at_us,
                event.content_hash,
                event.payload,
                event.context,
                root,
                str(event.intake),
                event.unmappable,
                int(event.unmappable is not None),
            )
        )
    if hashes:
        run(
            connection,
            """INSERT INTO roots (hash, body, received_us)
               SELECT hash, body, received_us FROM {rows:hash text, body text, received_us int} AS given WHERE true
               ON CONFLICT (hash) DO UPDATE SET received_us = excluded.received_us""",
            rows=sorted((root, body, now_us) for body, root in hashes.items()),
        )
    if is_postgresql(connection):
        # Numbered in the order of arrival, locked in that of their keys, so that two groups cannot wait for each other.
        logged = fetch(connection, _INSERT_NEW, rows=rows)
        return {(source, event_id): seq for seq, source, event_id in logged}
    inserted = run(connection, _INSERT, rows=rows)
    last, new = inserted.lastrowid, inserted.rowcount
    if new == len(rows):
        return dict(zip(events, range(last - new + 1, last + 1), strict=True))
    # Of those that are there now the last are new: numbers only grow.
    found = select(connection, "source, event_id, seq", _LATEST, rows=list(events), new=new)
    return {(source, event_id): seq for source, event_id, seq in found}


_COLUMNS = """source, event_id, received_us, occurred_us, content_hash, payload, context, root, intake, unmappable,
              waits"""
_ROWS = """{rows:source text, event_id text, received_us int, occurred_us int, content_hash text, payload text,
                 context text, root text, intake text, unmappable text, waits int}"""
_INSERT = f"""INSERT INTO events ({_COLUMNS}) SELECT {_COLUMNS} FROM {_ROWS} WHERE true
              ON CONFLICT (event_id, source) DO NOTHING"""
_LATEST = """SELECT e.source, e.event_id, e.seq FROM events e
               JOIN {rows:source text, event_id text} r ON e.event_id = r.event_id AND e.source = r.source
              ORDER BY e.seq DESC LIMIT :new"""
_INSERT_NEW = f"""
WITH numbered AS MATERIALIZED (
  SELECT nextval(pg_get_serial_sequence('events', 'seq')) AS seq, {_COLUMNS} FROM {_ROWS} AS given)
INSERT INTO events (seq, {_COLUMNS})
SELECT seq, {_COLUMNS} FROM numbered ORDER BY event_id COLLATE "C", source COLLATE "C"
ON CONFLICT (event_id, source) DO NOTHING RETURNING seq, source, event_id"""


def _known_hashes(connection: Connection, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    if not keys:
        return {}
    found = select(
        connection,
        "source, event_id, content_hash",
        """SELECT e.source, e.event_id, e.content_hash FROM events e
             JOIN {rows:source text, event_id text} r ON e.event_id = r.event_id AND e.source = r.source""",
        rows=keys,
    )
    return {(source, event_id): content_hash for source, event_id, content_hash in found}
