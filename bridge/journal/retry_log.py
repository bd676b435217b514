"""What people do about the retry log: replay its entries, or discard them (see `bridge.journal.entries`).

Nothing of it is ever pruned. Replay maps the kept payload with today's mapping; a value is replaced or
withdrawn only where the same event set it, so a newer one is never overwritten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Protocol

import orjson
from sqlalchemy.engine import Connection

from bridge.journal.amending import (
    NEW_N,
    Asked,
    KeptEvent,
    Mapped,
    Picture,
    Plan,
    Remap,
    Remapped,
    Word,
    asked_by,
    kept_events,
    portions,
    write,
)
from bridge.journal.database import fetch, lock_addresses, lock_records, run, select, take_turns
from bridge.journal.due import forget_failures, reconcile
from bridge.journal.entries import Entry, EntryState, Filter, Reference, count, cut, entries, references
from bridge.journal.merging import Merged
from bridge.journal.schema import State
from bridge.model import PropertyUpdate, RecordKey

# --- mapping kept events again: what a replay replaces, withdraws and leaves alone (G4) ---
#
# A replayed event keeps the time and the `n` that it had for a record. So of each property the newest word
# stands, as if the event had been mapped like this when it came:
#
# * what the event set is replaced, or withdrawn where it does not ask for it any more;
# * in place of a withdrawn word stands the next newest one, mapped with today's mapping too: else undoing a
#   mapping that wrote one property's values to another would leave a hole;
# * an older word is overwritten where the event asks for a property that it did not ask for before;
# * a newer word always stays, and so does one that stood over the event's own already: it may have won because
#   our clock was wrong, which the times do not tell any more;
# * what a person discarded stays discarded as long as the event says the same.
#
# A value that was delivered and is withdrawn without another in its place stays in the CRM, which has no
# notion of taking back; the difference says so.

#: Older events looked at for the word that stands in place of a withdrawn one. Beyond that the record changed so
#: often that the search would hold up intake.
OLDER_SEARCHED = 200
What = Literal["set", "replaced", "withdrawn", "refused", "kept", "unmappable"]
#: Of these a record may become pending.
CHANGES: frozenset[What] = frozenset({"set", "replaced", "withdrawn"})


@dataclass(frozen=True, slots=True)
class Difference:
    """What a replay changes, or leaves because it is newer. `old`, `new` are None where nothing stands, and the
    beginnings of long values.
    """

    event: str
    source: str
    what: What
    record: RecordKey | None = None
    property: str | None = None
    old: str | None = None
    new: str | None = None
    by: str | None = None  # the event whose word stands: a newer one, or the one in place of a withdrawn one
    note: str = ""


@dataclass(slots=True)
class Remade:
    """What one step of a replay did, or would do."""

    events: int = 0
    unmapped: int = 0  # their source is gone, or they are unmappable today too
    differences: list[Difference] = field(default_factory=list)
    merged: Merged = field(default_factory=Merged)


class Remapping:
    """One replay, step by step. With `again` what an event asks for is sent again also where it did not change."""

    def __init__(self, remap: Remap, *, again: bool = False, dry_run: bool = False) -> None:
        self._remap = remap
        self._again = again
        self._dry_run = dry_run
        self._picture = Picture()
        self._new = NEW_N

    def read(self, connection: Connection, seqs: Sequence[int]) -> Mapped:
        """Map these events again. Needs no write transaction: what is kept of an event never changes."""
        return [(kept, self._remap(kept)) for kept in kept_events(connection, seqs)]

    def step(self, connection: Connection, mapped: Mapped, *, now_us: int) -> Remade:
        """Replay these events in the open transaction; a dry run only tells."""
        if not self._dry_run:
            take_turns(connection)
        known = _known(connection, [kept.seq for kept, _ in mapped])
        mapped = [(kept, what) for kept, what in mapped if kept.seq in known]  # retention may have been faster
        today = [(kept, what) for kept, what in mapped if what is not None]
        done = Remade(events=len(today), unmapped=len(mapped) - sum(what.unmappable is None for _, what in today))
        asked = asked_by(connection, [kept.seq for kept, _ in today])
        records = {key for of_event in asked.values() for key in of_event}
        records |= {update.record for _, what in today for update in what.updates}
        if not self._dry_run:
            self._picture = Picture()
            lock_addresses(connection, records)
        names = {name for _, what in today for update in what.updates for name in (*update.properties, *update.invalid)}
        self._picture.read(connection, records, events=[kept.seq for kept, _ in today], names=names)
        plan = Plan({kept.seq: [(kept, what)] for kept, what in mapped})
        done.differences += _judge(known, today, plan)
        for kept, what in today:
            before = asked.get(kept.seq, {})
            wanted = {update.record: {*update.properties, *update.invalid} for update in what.updates}
            for update in what.updates:
                done.differences += self._ask(kept, update, before.get(update.record), plan)
            for key in dict.fromkeys((*before, *wanted)):
                done.differences += self._withdraw(connection, kept, key, wanted.get(key, set()), plan)
            plan.silent += [(old.ref, old.n) for key, old in before.items() if key not in wanted and old.names]
        done.differences = _with_names(connection, done.differences)
        if not self._dry_run:
            done.merged = write(connection, plan, again=self._again, now_us=now_us)
        return done

    # --- planning ---

    def _ask(self, kept: KeptEvent, update: PropertyUpdate, before: Asked | None, plan: Plan) -> Iterator[Difference]:
        """What the event asks of one record: where its words stand now, and where a newer one stays."""
        self._new += 1
        time_us, n = (kept.time_us, self._new) if before is None else (before.time_us, before.n)
        names = (*update.properties, *update.invalid)
        address = kept.seq, update.record
        plan.names[address] = names
        if before is None or set(names) != set(before.names):
            plan.draft(address, kept.source, time_us, n)
        for name, word in _words(kept, update, time_us, n):
            standing = self._picture.standing(update.record, name)
            if standing is not None and standing.event != kept.seq:
                # A property that the event asked for before was decided then, by what was known of the clocks.
                if (before is not None and name in before.names) or standing.rank > word.rank:
                    self._picture.lose(update.record, name, word)
                    if not standing.says(word):
                        yield _difference(kept, update.record, name, "kept", standing, word)
                    continue
            elif standing is not None and standing.says(word) and not self._sends_again(standing):
                continue
            self._replace(update.record, name, standing, word, plan)
            if standing is None or not standing.says(word):
                what: What = "refused" if word.value is None else "set" if standing is None else "replaced"
                yield _difference(kept, update.record, name, what, standing, word)

    def _sends_again(self, standing: Word) -> bool:
        """Whether a word that stands as it is goes once more; what a person gave up stays given up."""
        return self._again and standing.state is not State.DISCARDED

    def _withdraw(
        self, connection: Connection, kept: KeptEvent, key: RecordKey, wanted: set[str], plan: Plan
    ) -> Iterator[Difference]:
        """Take back what the event set and does not ask for any more."""
        for name, word in list(self._picture.set_by(key, kept.seq)):
            if name in wanted:
                continue
            older = self._next_newest(connection, key, name, kept.seq, plan)
            self._replace(key, name, word, older, plan)
            yield _difference(kept, key, name, "withdrawn", word, older)

    def _replace(self, key: RecordKey, name: str, standing: Word | None, word: Word | None, plan: Plan) -> None:
        """Let this word stand in place of the one that does."""
        ref = self._picture.ref(key)
        self._picture.put(key, name, word)
        if standing is not None:
            plan.take_back((standing.event, key), name)
            if ref is not None:
                (plan.withdrawn if word is None else plan.vacated).append((ref, name))
        if word is not None:
            plan.put((word.event, key), name, word)

    def _next_newest(self, connection: Connection, key: RecordKey, name: str, seq: int, plan: Plan) -> Word | None:
        """The newest word of another event on this property, mapped with today's mapping."""
        lost = self._picture.lost(key, name)
        ref = self._picture.ref(key)
        if ref is None:
            return lost
        quoted = orjson.dumps(name).decode().replace("!", "!!").replace("%", "!%").replace("_", "!_")
        for event, n, time_us, names in fetch(
            connection,
            """SELECT event, n, time_us, properties FROM asks
                WHERE record = :ref AND event <> :seq AND properties LIKE :quoted ESCAPE '!'
                ORDER BY time_us DESC, event DESC LIMIT :searched""",
            ref=ref,
            seq=seq,
            quoted=f"%{quoted}%",
            searched=OLDER_SEARCHED,
        ):
            if lost is not None and lost.rank >= (time_us, event):
                return lost
            for kept, what in plan.mapped(event, partial(self.read, connection, [event])):
                for update in what.updates if what is not None else ():
                    word = dict(_words(kept, update, time_us, n)).get(name)
                    if update.record == key and word is not None:
                        plan.names.setdefault((event, key), tuple(orjson.loads(names)))
                        return word
        return lost


#: What events are taken as, by number: why they cannot be mapped, and their intake.
_Known = Mapping[int, tuple[str | None, str]]


def _known(connection: Connection, seqs: Sequence[int]) -> _Known:
    return {
        seq: (unmappable, taken_as)
        for seq, unmappable, taken_as in select(
            connection,
            "seq, unmappable, intake",
            "SELECT seq, unmappable, intake FROM events WHERE seq IN (SELECT id FROM {ids})",
            ids=list(seqs),
        )
    }


def _judge(known: _Known, today: Sequence[tuple[KeptEvent, Remapped]], plan: Plan) -> Iterator[Difference]:
    """What the events as a whole are taken as."""
    for kept, what in today:
        if known[kept.seq] == (what.unmappable, what.taken_as):
            continue
        plan.judged.append((kept.seq, what.unmappable, what.taken_as))
        if known[kept.seq][0] != what.unmappable:
            note = what.unmappable or "can be mapped now"
            yield Difference(kept.event_id, kept.source, "unmappable", note=note)


def _words(kept: KeptEvent, update: PropertyUpdate, time_us: int, n: int) -> Iterator[tuple[str, Word]]:
    for name, value in update.properties.items():
        yield name, Word(kept.seq, kept.source, time_us, n, value)
    for name, message in update.invalid.items():
        yield name, Word(kept.seq, kept.source, time_us, n, None, message, State.REFUSED)


def _difference(
    kept: KeptEvent, key: RecordKey, name: str, what: What, old: Word | None, new: Word | None
) -> Difference:
    by, note = None, ""
    if what == "kept" and old is not None:
        by, note = old.event, "newer"
    elif what == "withdrawn" and new is not None:
        by, note = new.event, "an older event asked for this"
    elif what in {"withdrawn", "refused"}:
        delivered = old is not None and old.state is State.DELIVERED
        reason = new.message if new is not None else None
        note = "; ".join(filter(None, (reason, "the CRM keeps the old value" if delivered else None)))
    return Difference(
        kept.event_id,
        kept.source,
        what,
        key,
        name,
        None if old is None or old.value is None else cut(old.value),
        None if new is None or new.value is None else cut(new.value),
        by if by is None else str(by),
        note,
    )


def _with_names(connection: Connection, differences: Sequence[Difference]) -> list[Difference]:
    """The differences with the partners' ids in place of our numbers of events."""
    numbers = sorted({int(found.by) for found in differences if found.by is not None})
    if not numbers:
        return list(differences)
    rows = select(
        connection,
        "seq, event_id",
        "SELECT seq, event_id FROM events WHERE seq IN (SELECT id FROM {ids})",
        ids=numbers,
    )
    names: dict[int, str] = {seq: event_id for seq, event_id in rows}  # noqa: C416 (rows are of no fixed length)
    return [found if found.by is None else replace(found, by=names.get(int(found.by))) for found in differences]


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
