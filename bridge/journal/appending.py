"""Append: log the events of all requests that wait, merge them, one commit for all (G1, G3)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy.engine import Connection

from bridge.journal.database import fetch, is_postgresql, run, select
from bridge.journal.merging import Ask, Merged, merge
from bridge.journal.staging import Left
from bridge.model import CONFLICT_DIGITS, Event, Intake, Receipt, other_id, same_content

#: Digits of a hash by which two events are told apart whose first ones are the same by chance.
ALL_DIGITS = 64


@dataclass(slots=True)
class Appended:
    """What one append did: a receipt for each event, in order, and counts."""

    receipts: list[Receipt]
    merged: Merged = field(default_factory=Merged)
    staged: list[Left] = field(default_factory=list)  # what was kept for later, in order


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
    asks = [
        Ask(
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
    return Appended([receipts[at] for at in range(len(events))], merge(connection, asks, now_us=now_us))


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
