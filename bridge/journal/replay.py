"""Replay: kept events are mapped again with today's mapping, those that a person names or those behind entries of the
retry log. A value is replaced or withdrawn only where the same event set it, so a newer one is never overwritten (G4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import orjson
from sqlalchemy.engine import Connection

from bridge.journal.database import fetch, lock_addresses, lock_records, run, select, take_turns
from bridge.journal.due import forget_failures, reconcile
from bridge.journal.event_log import Asked, KeptEvent, Remap, Remapped, asked_by, kept_events, portions_to_read
from bridge.journal.merging import Merged
from bridge.journal.replay_plan import NEW_N, Mapped, Overlay, Plan, Write, apply
from bridge.journal.retry_log import STANDING, Chosen, Filter, cut, numbers, references
from bridge.journal.schema import State
from bridge.model import PropertyUpdate, RecordKey, intake_of

# --- mapping kept events again: what a replay replaces, withdraws and leaves alone (G4) ---
#
# A replayed event keeps the time and the `n` that it had for a record. So of each property the newest write
# stands, as if the event had been mapped like this when it came:
#
# * what the event set is replaced, or withdrawn where it does not ask for it any more;
# * in place of a withdrawn write stands the next newest one, mapped with today's mapping too: else undoing a
#   mapping that wrote one property's values to another would leave a hole;
# * an older write is overwritten where the event asks for a property that it did not ask for before;
# * a newer write always stays, and so does one that stood over the event's own already: it may have won because
#   our clock was wrong, which the times do not tell any more;
# * what a person discarded stays discarded as long as the event says the same.
#
# A value that was delivered and is withdrawn without another in its place stays in the CRM, which has no
# notion of taking back; the difference says so.

#: Older events looked at for the write that stands in place of a withdrawn one. Beyond that the record changed so
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
    by: str | None = None  # the event whose write stands: a newer one, or the one in place of a withdrawn one
    note: str = ""


@dataclass(slots=True)
class ReplayStep:
    """What one step of a replay did, or would do."""

    events: int = 0
    unmapped: int = 0  # their source is gone, or they are unmappable today too
    differences: list[Difference] = field(default_factory=list)
    merged: Merged = field(default_factory=Merged)


class Replay:
    """One replay, step by step. With `again` what an event asks for is sent again also where it did not change."""

    def __init__(self, remap: Remap, *, again: bool = False, dry_run: bool = False) -> None:
        self._remap = remap
        self._again = again
        self._dry_run = dry_run
        self._overlay = Overlay()
        self._new = NEW_N

    def read(self, connection: Connection, seqs: Sequence[int]) -> Mapped:
        """Map these events again. Needs no write transaction: what is kept of an event never changes."""
        return [(kept, self._remap(kept)) for kept in kept_events(connection, seqs)]

    def step(self, connection: Connection, mapped: Mapped, *, now_us: int) -> ReplayStep:
        """Replay these events in the open transaction; a dry run only tells."""
        if not self._dry_run:
            take_turns(connection)
        known = _known(connection, [kept.seq for kept, _ in mapped])
        mapped = [(kept, what) for kept, what in mapped if kept.seq in known]  # retention may have been faster
        today = [(kept, what) for kept, what in mapped if what is not None]
        done = ReplayStep(events=len(today), unmapped=len(mapped) - sum(what.unmappable is None for _, what in today))
        asked = asked_by(connection, [kept.seq for kept, _ in today])
        records = {key for of_event in asked.values() for key in of_event}
        records |= {update.record for _, what in today for update in what.updates}
        if not self._dry_run:
            self._overlay = Overlay()
            lock_addresses(connection, records)
        names = {name for _, what in today for update in what.updates for name in (*update.properties, *update.invalid)}
        self._overlay.read(connection, records, events=[kept.seq for kept, _ in today], names=names)
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
            done.merged = apply(connection, plan, again=self._again, now_us=now_us)
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
        for name, write in _writes(kept, update, time_us, n):
            standing = self._overlay.standing(update.record, name)
            if standing is not None and standing.event != kept.seq:
                # A property that the event asked for before was decided then, by what was known of the clocks.
                if (before is not None and name in before.names) or standing.rank > write.rank:
                    self._overlay.lose(update.record, name, write)
                    if not standing.agrees(write):
                        yield _difference(kept, update.record, name, "kept", standing, write)
                    continue
            elif standing is not None and standing.agrees(write) and not self._sends_again(standing):
                continue
            self._replace(update.record, name, standing, write, plan)
            if standing is None or not standing.agrees(write):
                what: What = "refused" if write.value is None else "set" if standing is None else "replaced"
                yield _difference(kept, update.record, name, what, standing, write)

    def _sends_again(self, standing: Write) -> bool:
        """Whether a write that stands as it is goes once more; what a person gave up stays given up."""
        return self._again and standing.state is not State.DISCARDED

    def _withdraw(
        self, connection: Connection, kept: KeptEvent, key: RecordKey, wanted: set[str], plan: Plan
    ) -> Iterator[Difference]:
        """Take back what the event set and does not ask for any more."""
        for name, write in list(self._overlay.set_by(key, kept.seq)):
            if name in wanted:
                continue
            older = self._next_newest(connection, key, name, kept.seq, plan)
            self._replace(key, name, write, older, plan)
            yield _difference(kept, key, name, "withdrawn", write, older)

    def _replace(self, key: RecordKey, name: str, standing: Write | None, write: Write | None, plan: Plan) -> None:
        """Let this write stand in place of the one that does."""
        ref = self._overlay.ref(key)
        self._overlay.put(key, name, write)
        if standing is not None:
            plan.take_back((standing.event, key), name)
            if ref is not None:
                (plan.withdrawn if write is None else plan.replaced).append((ref, name))
        if write is not None:
            plan.put((write.event, key), name, write)

    def _next_newest(self, connection: Connection, key: RecordKey, name: str, seq: int, plan: Plan) -> Write | None:
        """The newest write of another event on this property, mapped with today's mapping."""
        lost = self._overlay.lost(key, name)
        ref = self._overlay.ref(key)
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
                    write = dict(_writes(kept, update, time_us, n)).get(name)
                    if update.record == key and write is not None:
                        plan.names.setdefault((event, key), tuple(orjson.loads(names)))
                        return write
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
        today_as = what.unmappable, intake_of(what.updates, what.unmappable)
        if known[kept.seq] == today_as:
            continue
        plan.judged.append((kept.seq, *today_as))
        if known[kept.seq][0] != what.unmappable:
            note = what.unmappable or "can be mapped now"
            yield Difference(kept.event_id, kept.source, "unmappable", note=note)


def _writes(kept: KeptEvent, update: PropertyUpdate, time_us: int, n: int) -> Iterator[tuple[str, Write]]:
    for name, value in update.properties.items():
        yield name, Write(kept.seq, kept.source, time_us, n, value)
    for name, message in update.invalid.items():
        yield name, Write(kept.seq, kept.source, time_us, n, None, message, State.REFUSED)


def _difference(
    kept: KeptEvent, key: RecordKey, name: str, what: What, old: Write | None, new: Write | None
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


@dataclass(slots=True)
class Replayed:
    """What a replay did."""

    entries: int = 0
    events: int = 0
    unmapped: int = 0  # events still unmappable
    after: int = 0  # of events: where to go on; 0 at the end
    merged: Merged = field(default_factory=Merged)


def replay(connection: Connection, chosen: Sequence[Chosen], remap: Remap, *, now_us: int) -> Replayed:
    """Map the events of those of these entries again that are there still, and make everything due now."""
    take_turns(connection)
    found = numbers(entry.id for entry in chosen)
    lock_records(connection, found["record"] + found["refused"])
    chosen = references(connection, Filter(ids=tuple(entry.id for entry in chosen))) if chosen else []
    done = Replayed(entries=len(chosen))
    found = numbers(entry.id for entry in chosen)
    refs = sorted({*found["record"], *found["refused"]})
    events = set(found["event"])
    for kind, state in STANDING.items():
        events |= {
            event
            for (event,) in fetch(
                connection,
                "SELECT DISTINCT event FROM desired WHERE record IN (SELECT id FROM {ids}) AND state = :state",
                ids=found[kind],
                state=int(state),
            )
        }
    replaying = Replay(remap, again=True)
    for portion in portions_to_read(connection, sorted(events)):
        step = replaying.step(connection, replaying.read(connection, portion), now_us=now_us)
        done.events += step.events
        done.unmapped += step.unmapped
        done.merged.add(step.merged)
    # What still stands refused with a value of its own is sent as it is: the CRM may take it by now.
    run(
        connection,
        """UPDATE desired SET state = 0, category = NULL, message = NULL
            WHERE record IN (SELECT id FROM {ids}) AND state = 2 AND value IS NOT NULL""",
        ids=found["refused"],
    )
    forget_failures(connection, refs)
    reconcile(connection, refs, now_us=now_us, moved=refs)
    return done
