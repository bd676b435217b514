"""The retry log: what is retried, parked or refused, and what people do about it.

An entry is one of three things, told apart by its id:

* `record-17`: a record that is retried after a failure of its own, or parked whole;
* `refused-17`: the properties of a record that the CRM refused or the mapping found invalid;
* `event-42`: an event, or a part of it, that could not be mapped to any record.

Nothing here is ever pruned. Replay maps the kept payload with today's mapping; a value is replaced or
withdrawn only where the same event set it, so a newer one is never overwritten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from sqlalchemy.engine import Connection

from bridge.journal.database import fetch, run
from bridge.journal.delivering import leave_due
from bridge.journal.kept import KeptEvent, Remap, Remapped
from bridge.journal.merging import Merged
from bridge.journal.remapping import Remapping
from bridge.journal.schema import State

__all__ = [
    "Discarded", "Entry", "Filter", "KeptEvent", "Remap", "Remapped", "Replayed", "count", "discard", "entries",
    "replay",
]  # fmt: skip

EntryState = Literal["retrying", "parked"]

#: Entries handled in one write transaction, so that intake is not held up by a large replay.
STEP = 200


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of `retries list`. Times are microseconds since the epoch; `properties` are names."""

    id: str
    state: EntryState
    source: str
    object_type: str | None
    id_property: str | None
    record: str | None
    category: str
    message: str
    properties: tuple[str, ...]
    event_ids: tuple[str, ...]
    attempts: int
    first_failed_us: int | None
    next_attempt_us: int | None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which entries are meant; empty fields do not narrow. `since`, `before` are on the first failure.

    `seen` is when a person looked: entries, and values within them, that came later are not meant.
    """

    ids: tuple[str, ...] = ()
    state: EntryState | None = None
    source: str | None = None
    category: str | None = None
    message: str | None = None
    record: str | None = None
    since_us: int | None = None
    before_us: int | None = None
    seen_us: int | None = None


@dataclass(slots=True)
class Replayed:
    """What a replay did."""

    entries: int = 0
    events: int = 0
    unmapped: int = 0  # events still unmappable
    merged: Merged = field(default_factory=Merged)


# --- listing ------------------------------------------------------------------------------------

# `<column>` stands where a part is narrowed to some entries: reading all for each step would make a discard quadratic.
_RECORDS = """
SELECT 'record' AS kind, r.id AS ref, CASE WHEN r.parked_us IS NULL THEN 'retrying' ELSE 'parked' END AS state,
       (SELECT min(source) FROM due WHERE due.record = r.id) AS source,
       l.object_type, l.id_property, r.record, r.category, r.message, r.attempts,
       coalesce(r.failing_since_us, r.parked_us) AS failed_us,
       CASE WHEN r.parked_us IS NULL THEN r.retry_us END AS next_us
  FROM records r JOIN lanes l ON l.id = r.lane WHERE r.category IS NOT NULL <r.id>"""

_REFUSED = """
SELECT 'refused' AS kind, r.id AS ref, 'parked' AS state, min(e.source) AS source,
       l.object_type, l.id_property, r.record, min(d.category) AS category, min(d.message) AS message,
       1 AS attempts, min(d.settled_us) AS failed_us, NULL AS next_us
  FROM desired d JOIN records r ON r.id = d.record JOIN lanes l ON l.id = r.lane
  LEFT JOIN events e ON e.seq = d.event
 WHERE d.state = 2 <d.record> GROUP BY r.id, l.object_type, l.id_property, r.record"""

_EVENTS = """
SELECT 'event' AS kind, seq AS ref, 'parked' AS state, source, NULL AS object_type, NULL AS id_property,
       NULL AS record, 'UNMAPPABLE' AS category, unmappable AS message, 1 AS attempts, received_us AS failed_us,
       NULL AS next_us
  FROM events WHERE waits = 1 <seq>"""
_PARTS = {"record": _RECORDS, "refused": _REFUSED, "event": _EVENTS}
_PLACE = re.compile(r"<([\w.]+)>")


def entries(connection: Connection, chosen: Filter, *, limit: int | None = None, offset: int = 0) -> list[Entry]:
    """The entries that `chosen` means, oldest failure first."""
    parts, parameters = narrowed(chosen)
    rows = fetch(
        connection,
        f"""SELECT * FROM {parts}
             ORDER BY failed_us, kind, ref LIMIT :limit OFFSET :offset""",
        limit=-1 if limit is None else limit,
        offset=offset,
        **parameters,
    )
    return [_entry(connection, row) for row in rows]


def narrowed(chosen: Filter) -> tuple[str, dict[str, object]]:
    """The entries that `chosen` means as SQL to select from, and its parameters."""
    conditions, parameters = _conditions(chosen)
    return f"({_parts('*', chosen.ids)}) AS entry WHERE {conditions}", parameters


def count(connection: Connection) -> list[tuple[EntryState, str, int]]:
    """How many entries there are, by state and category: the metric `bridge_retry_log_entries`."""
    rows = fetch(
        connection,
        f"""SELECT state, category, sum(entries) FROM
              ({_parts("state, category, count(*) AS entries", then="GROUP BY state, category")}) AS c
             GROUP BY state, category""",
    )
    return [(state, category, int(number)) for state, category, number in rows]


def _parts(columns: str, ids: Sequence[str] = (), *, then: str = "") -> str:
    """The three parts as one SELECT, narrowed to these entries if there are any."""
    wanted: dict[str, list[str]] = {kind: [] for kind in _PARTS}
    for text in ids:
        kind, _, number = text.partition("-")
        if kind in wanted and number.isascii() and number.isdigit():
            wanted[kind].append(str(min(int(number), 2**62)))
    narrowed = {
        kind: _PLACE.sub(rf"AND \1 IN ({', '.join(numbers) or 0})" if ids else "", _PARTS[kind])
        for kind, numbers in wanted.items()
    }
    return " UNION ALL ".join(f"SELECT {columns} FROM ({part}) AS p {then}" for part in narrowed.values())


def _conditions(chosen: Filter) -> tuple[str, dict[str, object]]:
    """The filter, but for its ids, as SQL over the columns of the three parts."""
    conditions, parameters = ["1 = 1"], dict[str, object]()
    for column in ("state", "source", "category", "message", "record"):
        wanted = getattr(chosen, column)
        if wanted is not None:
            conditions.append(f"{column} = :{column}")
            parameters[column] = wanted
    if chosen.since_us is not None:
        conditions.append("failed_us >= :since_us")
        parameters["since_us"] = chosen.since_us
    if chosen.before_us is not None:
        conditions.append("failed_us < :before_us")
        parameters["before_us"] = chosen.before_us
    if chosen.seen_us is not None:
        conditions.append("failed_us <= :seen_us")
        parameters["seen_us"] = chosen.seen_us
    return " AND ".join(conditions), parameters


def _entry(connection: Connection, row: Sequence[object]) -> Entry:
    (
        kind,
        ref,
        state,
        source,
        object_type,
        id_property,
        record,
        category,
        message,
        attempts,
        failed,
        following,
    ) = row
    names: list[str] = []
    event_ids: list[str] = []
    if kind == "event":
        event_ids = [row[0] for row in fetch(connection, "SELECT event_id FROM events WHERE seq = :ref", ref=ref)]
    else:
        wanted = State.PENDING if kind == "record" else State.REFUSED
        for name, event_id, why in fetch(
            connection,
            """SELECT d.property, e.event_id, d.message FROM desired d LEFT JOIN events e ON e.seq = d.event
                WHERE d.record = :ref AND d.state = :state ORDER BY d.property""",
            ref=ref,
            state=int(wanted),
        ):
            names.append(name)
            if event_id is not None and event_id not in event_ids:
                event_ids.append(event_id)
            if kind == "refused" and why and why != message and why not in str(message):
                message = f"{message}; {why}"
    return Entry(
        id=f"{kind}-{ref}",
        state="retrying" if state == "retrying" else "parked",
        source=str(source or ""),
        object_type=None if object_type is None else str(object_type),
        id_property=str(id_property) if id_property else None,
        record=None if record is None else str(record),
        category=str(category),
        message=str(message),
        properties=tuple(names),
        event_ids=tuple(event_ids),
        attempts=int(str(attempts)),
        first_failed_us=None if failed is None else int(str(failed)),
        next_attempt_us=None if following is None else int(str(following)),
    )


# --- acting -------------------------------------------------------------------------------------


def steps(chosen: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Entries in portions, each for one write transaction."""
    for at in range(0, len(chosen), STEP):
        yield chosen[at : at + STEP]


def replay(connection: Connection, chosen: Sequence[Entry], remap: Remap, *, now_us: int) -> Replayed:
    """Map these entries' events again and make everything due now."""
    done = Replayed(entries=len(chosen))
    refs = sorted({_number(entry) for entry in chosen if not entry.id.startswith("event-")})
    events = {_number(entry) for entry in chosen if entry.id.startswith("event-")}
    for state, kind in ((State.PENDING, "record"), (State.REFUSED, "refused")):
        wanted = [_number(entry) for entry in chosen if entry.id.startswith(f"{kind}-")]
        events |= {
            event
            for (event,) in fetch(
                connection,
                """SELECT DISTINCT event FROM desired WHERE record IN (SELECT id FROM {ids}) AND state = :state""",
                ids=wanted,
                state=int(state),
            )
        }
    remapping = Remapping(remap, again=True)
    remade = remapping.step(connection, remapping.read(connection, sorted(events)), now_us=now_us)
    done.events, done.unmapped, done.merged = remade.events, remade.unmapped, remade.merged
    # What still stands refused with a value of its own is sent as it is: the CRM may take it by now.
    run(
        connection,
        """UPDATE desired SET state = 0, category = NULL, message = NULL
            WHERE record IN (SELECT id FROM {ids}) AND state = 2 AND value IS NOT NULL""",
        ids=[_number(entry) for entry in chosen if entry.id.startswith("refused-")],
    )
    forget_failures(connection, refs)
    _make_pending_due(connection, refs, now_us=now_us)
    leave_due(connection, refs)
    return done


def forget_failures(connection: Connection, refs: Sequence[int]) -> None:
    """These records are neither parked nor retried any more; their failures count from nothing."""
    run(
        connection,
        """UPDATE records SET parked_us = NULL, category = NULL, message = NULL, attempts = 0,
                  failing_since_us = NULL, retry_us = NULL WHERE id IN (SELECT id FROM {ids})""",
        ids=refs,
    )


def _number(entry: Entry) -> int:
    return int(entry.id.partition("-")[2])


def _make_pending_due(connection: Connection, refs: Sequence[int], *, now_us: int) -> None:
    """A row in `due` for every source that has a pending value for these records, due now."""
    run(
        connection,
        """INSERT INTO due (record, source, lane, due_us, since_us)
           SELECT DISTINCT d.record, coalesce(d.source, ''), r.lane, :now, :now FROM desired d
             JOIN records r ON r.id = d.record WHERE d.record IN (SELECT id FROM {ids}) AND d.state = 0
           ON CONFLICT (record, source) DO UPDATE SET due_us = excluded.due_us""",
        ids=refs,
        now=now_us,
    )


@dataclass(slots=True)
class Discarded:
    """What a discard gave up. `entries` are those that still were what they were when they were chosen."""

    entries: int = 0
    values: int = 0  # and events that could not be mapped


def discard(connection: Connection, ids: Sequence[str], chosen: Filter, *, now_us: int) -> Discarded:
    """Give those of these entries up for good that `chosen` still means, now and in this transaction.

    What was delivered or asked for by newer events is not touched, nor what came after `chosen.seen_us`: a person
    confirmed what was there. Older values stay unsent.
    """
    still = entries(connection, replace(chosen, ids=tuple(ids))) if ids else []
    done = Discarded(entries=len(still))
    seen_us = 2**62 if chosen.seen_us is None else chosen.seen_us
    for state, kind in ((State.PENDING, "record"), (State.REFUSED, "refused")):
        refs = [_number(entry) for entry in still if entry.id.startswith(f"{kind}-")]
        done.values += run(
            connection,
            """UPDATE desired SET state = :discarded, settled_us = :now
                WHERE record IN (SELECT id FROM {ids}) AND state = :state AND (:state = 0 OR settled_us <= :seen)
                  AND NOT EXISTS (SELECT 1 FROM events e WHERE e.seq = desired.event AND e.received_us > :seen)""",
            ids=refs,
            state=int(state),
            discarded=int(State.DISCARDED),
            seen=seen_us,
            now=now_us,
        ).rowcount
        if kind == "record":
            forget_failures(connection, _without_pending(connection, refs))
            leave_due(connection, refs)
    events = [_number(entry) for entry in still if entry.id.startswith("event-")]
    done.values += run(
        connection, "UPDATE events SET waits = 0 WHERE seq IN (SELECT id FROM {ids})", ids=events
    ).rowcount
    return done


def _without_pending(connection: Connection, refs: Sequence[int]) -> list[int]:
    """Those of these records for which nothing waits; the others go on failing as they did."""
    waiting = fetch(
        connection,
        "SELECT DISTINCT record FROM desired WHERE record IN (SELECT id FROM {ids}) AND state = 0",
        ids=refs,
    )
    return sorted(set(refs) - {ref for (ref,) in waiting})
