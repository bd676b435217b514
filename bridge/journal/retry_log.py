"""What people do about the retry log: replay and discard its entries (see `bridge.journal.entries`).

Nothing of it is ever pruned. Replay maps the kept payload with today's mapping; a value is replaced or
withdrawn only where the same event set it, so a newer one is never overwritten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from sqlalchemy.engine import Connection

from bridge.journal.database import fetch, run
from bridge.journal.entries import Entry, EntryState, Filter, Reference, count, entries, references
from bridge.journal.kept import KeptEvent, Remap, Remapped, portions
from bridge.journal.locking import lock_records, take_turns
from bridge.journal.merging import Merged
from bridge.journal.reconciling import forget_failures, reconcile
from bridge.journal.remapping import Remapping
from bridge.journal.schema import State

__all__ = [
    "Chosen", "Discarded", "Entry", "EntryState", "Filter", "KeptEvent", "Reference", "Remap", "Remapped", "Replayed",
    "count", "discard", "entries", "references", "replay",
]  # fmt: skip

#: Entries handled in one write transaction, so that intake is not held up by a large replay.
STEP = 200


class Chosen(Protocol):
    """An entry that is acted on."""

    @property
    def id(self) -> str: ...

    @property
    def state(self) -> EntryState: ...


@dataclass(slots=True)
class Replayed:
    """What a replay did."""

    entries: int = 0
    events: int = 0
    unmapped: int = 0  # events still unmappable
    after: int = 0  # of events: where to go on; 0 at the end
    merged: Merged = field(default_factory=Merged)


def steps(chosen: Sequence[Chosen]) -> Iterator[Sequence[Chosen]]:
    """Entries in portions, each for one write transaction."""
    for at in range(0, len(chosen), STEP):
        yield chosen[at : at + STEP]


def replay(connection: Connection, chosen: Sequence[Chosen], remap: Remap, *, now_us: int) -> Replayed:
    """Map the events of those of these entries again that are there still, and make everything due now."""
    take_turns(connection)
    lock_records(connection, [_number(entry) for entry in chosen if not entry.id.startswith("event-")])
    chosen = references(connection, Filter(ids=tuple(entry.id for entry in chosen))) if chosen else []
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
    for portion in portions(connection, sorted(events)):
        remade = remapping.step(connection, remapping.read(connection, portion), now_us=now_us)
        done.events += remade.events
        done.unmapped += remade.unmapped
        done.merged.add(remade.merged)
    # What still stands refused with a value of its own is sent as it is: the CRM may take it by now.
    run(
        connection,
        """UPDATE desired SET state = 0, category = NULL, message = NULL
            WHERE record IN (SELECT id FROM {ids}) AND state = 2 AND value IS NOT NULL""",
        ids=[_number(entry) for entry in chosen if entry.id.startswith("refused-")],
    )
    forget_failures(connection, refs)
    reconcile(connection, refs, now_us=now_us, moved=refs)
    return done


def _number(entry: Chosen) -> int:
    return int(entry.id.partition("-")[2])


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
    take_turns(connection)
    lock_records(connection, [int(id_.partition("-")[2]) for id_ in ids if not id_.startswith("event-")])
    still = references(connection, replace(chosen, ids=tuple(ids))) if ids else []
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
            reconcile(connection, refs, now_us=now_us, settled=refs)
    events = [_number(entry) for entry in still if entry.id.startswith("event-")]
    done.values += run(
        connection, "UPDATE events SET waits = 0 WHERE seq IN (SELECT id FROM {ids})", ids=events
    ).rowcount
    return done
