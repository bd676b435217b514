"""What a replay is going to write, and writing it in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from sqlalchemy.engine import Connection

from bridge.journal.database import ADDRESSED, addresses, run, select
from bridge.journal.due import reconcile
from bridge.journal.event_log import PORTION_BYTES, KeptEvent, Remapped
from bridge.journal.merging import Merged, Update, merge
from bridge.journal.schema import NEVER, State
from bridge.model import Lane, RecordKey

# --- what stands where, as a replay sees it: the journal's rows, with the replay's own changes on top ---
#
# A replay is planned before it is written, and a dry run is a plan that is never written. So each step looks at
# the rows of the records that it touches, overlaid with what its earlier events changed. Kept beyond a step is
# only what changed hands between events: memory grows with that, not with the events.


@dataclass(frozen=True, slots=True)
class Write:
    """What one event writes to one property: a value, or why there is none (`value` None, `message` set)."""

    event: int
    source: str
    time_us: int
    n: int
    value: str | None
    message: str | None = None
    state: State = State.PENDING

    @property
    def rank(self) -> tuple[int, int]:
        """The highest one stands. At equal times the later arrival, as everywhere: not `n`, which an event gets
        late where it is new to a record.
        """
        return self.time_us, self.event

    def agrees(self, other: Write) -> bool:
        """Whether the other write means the same to the CRM."""
        return self.value == other.value and (self.value is not None or self.message == other.message)


class Overlay:
    """Words by record and property. Not thread-safe."""

    def __init__(self) -> None:
        self._refs: dict[RecordKey, int] = {}
        self._read: dict[RecordKey, dict[str, Write]] = {}
        self._changed: dict[RecordKey, dict[str, Write | None]] = {}
        self._lost: dict[tuple[RecordKey, str], Write] = {}

    def read(
        self, connection: Connection, records: Collection[RecordKey], *, events: Sequence[int], names: Collection[str]
    ) -> None:
        """Look at what these events set of these records and at what stands for these properties; forget the rest."""
        found = select(
            connection,
            "object_type, id_property, record, id",
            f"""SELECT l.object_type, l.id_property, o.record, o.id
                 FROM {ADDRESSED} JOIN records o ON o.lane = l.id AND o.record = r.record""",
            rows=addresses(records),
        )
        self._refs = {RecordKey(Lane(object_type, by), record): ref for object_type, by, record, ref in found}
        keys = {ref: key for key, ref in self._refs.items()}
        self._read = {key: {} for key in records}
        for column, type_, wanted in (("event", "int", sorted(events)), ("property", "text", sorted(names))):
            for ref, name, value, time_us, n, event, source, state, message in select(
                connection,
                "record, property, value, time_us, n, event, source, state, message",
                f"""SELECT record, property, value, time_us, n, event, source, state, message FROM desired
                     WHERE record IN (SELECT id FROM {{ids}})
                       AND {column} IN (SELECT wanted FROM {{rows:wanted {type_}}} AS given)""",
                ids=sorted(keys),
                rows=[[one] for one in wanted],
            ):
                self._read[keys[ref]][name] = Write(event, source or "", time_us, n, value, message, State(state))

    def ref(self, key: RecordKey) -> int | None:
        """The journal's number of a record that was read; None when it is new."""
        return self._refs.get(key)

    def standing(self, key: RecordKey, name: str) -> Write | None:
        """The write that stands."""
        changed = self._changed.get(key, {})
        return changed[name] if name in changed else self._read[key].get(name)

    def set_by(self, key: RecordKey, event: int) -> Iterator[tuple[str, Write]]:
        """The properties of a record at which this event's write stands."""
        for name in sorted(self._read[key].keys() | self._changed.get(key, {}).keys()):
            write = self.standing(key, name)
            if write is not None and write.event == event:
                yield name, write

    def put(self, key: RecordKey, name: str, write: Write | None) -> None:
        """Let this write stand, or none."""
        read = self._read[key].get(name)
        if write is not None and read is not None and read.event == write.event:
            self._read[key][name] = write
            self._changed.get(key, {}).pop(name, None)
        else:
            self._changed.setdefault(key, {})[name] = write

    def lose(self, key: RecordKey, name: str, write: Write) -> None:
        """Note a write that would stand if the newer one were withdrawn."""
        best = self._lost.get((key, name))
        if best is None or write.rank > best.rank:
            self._lost[key, name] = write

    def lost(self, key: RecordKey, name: str) -> Write | None:
        """The newest write noted by `lose`."""
        return self._lost.get((key, name))


#: Before the merge every new change counts as later than any known one.
NEW_N = 2**60

#: Events with what today's mapping makes of them.
Mapped = Sequence[tuple[KeptEvent, Remapped | None]]


def _size(mapped: Mapped) -> int:
    return sum(len(kept.payload) for kept, _ in mapped)


@dataclass(slots=True)
class Draft:
    """What is to be merged of one event for one record."""

    source: str
    time_us: int
    n: int
    properties: dict[str, str] = field(default_factory=dict)
    invalid: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Plan:
    """What a step will write; an address is (event, record)."""

    remapped: dict[int, Mapped]
    looked_at: dict[int, Mapped] = field(default_factory=dict)  # older ones, the last that were
    drafts: dict[tuple[int, RecordKey], Draft] = field(default_factory=dict)
    names: dict[tuple[int, RecordKey], tuple[str, ...]] = field(default_factory=dict)  # all that is asked
    withdrawn: list[tuple[int, str]] = field(default_factory=list)  # (record, property), nothing in its place
    replaced: list[tuple[int, str]] = field(default_factory=list)  # another write takes the place
    silent: list[tuple[int, int]] = field(default_factory=list)  # (record, n): nothing asked any more
    judged: list[tuple[int, str | None, str]] = field(default_factory=list)  # (event, unmappable, taken as)

    def mapped(self, event: int, read: Callable[[], Mapped]) -> Mapped:
        """The event, mapped once in a step, unless many large ones are looked at in between."""
        if event in self.remapped:
            return self.remapped[event]
        self.looked_at[event] = found = self.looked_at.pop(event, None) or read()
        while sum(_size(one) for one in self.looked_at.values()) > PORTION_BYTES:
            del self.looked_at[next(iter(self.looked_at))]
        return found

    def draft(self, address: tuple[int, RecordKey], source: str, time_us: int, n: int) -> Draft:
        """The draft of this address, made if there is none."""
        return self.drafts.setdefault(address, Draft(source, time_us, n))

    def put(self, address: tuple[int, RecordKey], name: str, write: Write) -> None:
        """Let this write be merged."""
        draft = self.draft(address, write.source, write.time_us, write.n)
        if write.value is not None:
            draft.properties[name] = write.value
        else:
            draft.invalid[name] = write.message or "invalid"

    def take_back(self, address: tuple[int, RecordKey], name: str) -> None:
        """Let another write be merged in its place."""
        draft = self.drafts.get(address)
        if draft is not None:
            draft.properties.pop(name, None)
            draft.invalid.pop(name, None)


def apply(connection: Connection, plan: Plan, *, again: bool, now_us: int) -> Merged:
    """Write the plan: first make room, then merge what takes it."""
    run(
        connection,
        """DELETE FROM desired
            WHERE (record, property) IN (SELECT record, property FROM {rows:record int, property text} AS given)""",
        rows=plan.withdrawn,
    )
    # Lowered below any write, with its value and state: a value that is confirmed already is not sent again.
    run(
        connection,
        """UPDATE desired SET time_us = :lowest, n = -1 FROM {rows:ref int, name text} r
            WHERE desired.record = r.ref AND desired.property = r.name""",
        rows=plan.replaced,
        lowest=-NEVER,
    )
    run(
        connection,
        "UPDATE asks SET properties = '[]' FROM {rows:ref int, n int} r WHERE asks.record = r.ref AND asks.n = r.n",
        rows=plan.silent,
    )
    updates = [
        Update(
            event=event,
            source=draft.source,
            record=key,
            properties=draft.properties,
            invalid=draft.invalid,
            skip_unchanged=not again,
            occurred_us=None,
            n=None if draft.n >= NEW_N else draft.n,
            time_us=draft.time_us,
            names=plan.names[event, key],
        )
        for (event, key), draft in plan.drafts.items()
    ]
    merged = merge(connection, updates, now_us=now_us, replay=True)
    run(
        connection,
        """UPDATE events SET unmappable = r.why, intake = r.intake,
                  waits = CASE WHEN r.why IS NULL THEN 0 WHEN events.unmappable IS NULL THEN 1 ELSE events.waits END
             FROM {rows:seq int, why text, intake text} r WHERE events.seq = r.seq""",
        rows=plan.judged,
    )
    changed = {ref for ref, _ in (*plan.withdrawn, *plan.replaced)}
    reconcile(connection, changed, now_us=now_us, settled=changed)
    return merged
