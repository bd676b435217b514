"""What a replay is going to write, and writing it in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import orjson
from sqlalchemy.engine import Connection

from bridge.journal.database import fetch, run, select
from bridge.journal.due import reconcile
from bridge.journal.merging import Ask, Merged, merge
from bridge.journal.schema import State
from bridge.model import FUTURE_TOLERANCE_US, Lane, PropertyUpdate, RecordKey

# --- events as the log keeps them, and what today's mapping makes of them ---

#: Bytes of events, and of what stands for their records, that are read at once: many times as much in memory, mapped
#: and merged. Two hundred ordinary events are a tenth of it. One event is read however large it is.
PORTION_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class KeptEvent:
    """An event of the log, as a mapping needs it to map it again."""

    seq: int
    source: str
    event_id: str
    received_us: int
    occurred_us: int | None
    payload: str
    context: str
    root: str | None

    @property
    def time_us(self) -> int:
        """The event's own time, for a record that it did not ask before, dated as at its arrival."""
        if self.occurred_us is None or self.occurred_us > self.received_us + FUTURE_TOLERANCE_US:
            return self.received_us
        return self.occurred_us


@dataclass(frozen=True, slots=True)
class Remapped:
    """What a kept event asks for under today's mapping."""

    updates: tuple[PropertyUpdate, ...]
    unmappable: str | None = None

    @property
    def taken_as(self) -> str:
        """What the event would be taken as today; see `bridge.model.Event.intake`."""
        if any(update.properties for update in self.updates):
            return "accepted"
        if self.unmappable is not None or any(update.invalid for update in self.updates):
            return "parked"
        return "accepted" if self.updates else "ignored"


#: None: the source is gone from the configuration, what the event asked for stays as it is.
Remap = Callable[[KeptEvent], Remapped | None]


@dataclass(frozen=True, slots=True)
class Asked:
    """What an event asked one record for, when it was last mapped."""

    ref: int
    n: int
    time_us: int
    names: tuple[str, ...]


def portions(connection: Connection, seqs: Sequence[int], *, max_bytes: int = PORTION_BYTES) -> Iterator[list[int]]:
    """These events in portions, each of which may be read at once, in the order of their arrival."""
    portion: list[int] = []
    roots: set[str] = set()
    total = 0
    sized = run(
        connection,
        """SELECT e.seq, {octets:e.payload} + {octets:e.context}
                  + coalesce((SELECT sum({octets:d.value}) FROM asks a JOIN desired d ON d.record = a.record
                               WHERE a.event = e.seq), 0),
                  e.root, coalesce((SELECT {octets:r.body} FROM roots r WHERE r.hash = e.root), 0)
             FROM events e WHERE e.seq IN (SELECT id FROM {ids}) ORDER BY e.seq""",
        ids=list(seqs),
    ).fetchall()
    for seq, size, root, whole in sized:
        total += size + (0 if root in roots else whole)
        if portion and total > max_bytes:
            yield portion
            portion, roots, total = [], set(), size + whole
        portion.append(seq)
        roots.add(root)
    if portion:
        yield portion


def kept_events(connection: Connection, seqs: Sequence[int]) -> list[KeptEvent]:
    """These events, in the order of their arrival. Those of one request share its body."""
    found = select(
        connection,
        "seq, source, event_id, received_us, occurred_us, payload, context, root",
        """SELECT e.seq, e.source, e.event_id, e.received_us, e.occurred_us, e.payload, e.context, e.root
             FROM events e WHERE e.seq IN (SELECT id FROM {ids}) ORDER BY e.seq""",
        ids=list(seqs),
    )
    roots: dict[str, str] = {  # noqa: C416 (rows are of no fixed length)
        name: body
        for name, body in fetch(
            connection,
            "SELECT hash, body FROM roots WHERE hash IN (SELECT wanted FROM {rows:wanted text} AS given)",
            rows=[[name] for name in sorted({row[-1] for row in found if row[-1] is not None})],
        )
    }
    return [KeptEvent(*(*row[:-1], roots.get(row[-1]))) for row in found]


def asked_by(connection: Connection, seqs: Sequence[int]) -> dict[int, dict[RecordKey, Asked]]:
    """What these events asked, by event and record."""
    asked: dict[int, dict[RecordKey, Asked]] = {}
    for seq, object_type, id_property, record, spelling, ref, n, time_us, names in select(
        connection,
        "event, object_type, id_property, record, spelling, id, n, time_us, properties",
        """SELECT a.event, l.object_type, l.id_property, r.record, r.spelling, r.id, a.n, a.time_us, a.properties
             FROM asks a JOIN records r ON r.id = a.record JOIN lanes l ON l.id = r.lane
            WHERE a.event IN (SELECT id FROM {ids})""",
        ids=list(seqs),
    ):
        key = RecordKey(Lane(object_type, id_property), record, spelling)
        asked.setdefault(seq, {})[key] = Asked(ref, n, time_us, tuple(orjson.loads(names)))
    return asked


# --- what stands where, as a replay sees it: the journal's rows, with the replay's own changes on top ---
#
# A replay is planned before it is written, and a dry run is a plan that is never written. So each step looks at
# the rows of the records that it touches, overlaid with what its earlier events changed. Kept beyond a step is
# only what changed hands between events: memory grows with that, not with the events.


@dataclass(frozen=True, slots=True)
class Word:
    """One event's word on one property: a value, or why there is none (`value` None, `message` set)."""

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

    def says(self, other: Word) -> bool:
        """Whether the other word means the same to the CRM."""
        return self.value == other.value and (self.value is not None or self.message == other.message)


class Picture:
    """Words by record and property. Not thread-safe."""

    def __init__(self) -> None:
        self._refs: dict[RecordKey, int] = {}
        self._read: dict[RecordKey, dict[str, Word]] = {}
        self._changed: dict[RecordKey, dict[str, Word | None]] = {}
        self._lost: dict[tuple[RecordKey, str], Word] = {}

    def read(
        self, connection: Connection, records: Collection[RecordKey], *, events: Sequence[int], names: Collection[str]
    ) -> None:
        """Look at what these events set of these records and at what stands for these properties; forget the rest."""
        rows = [(key.lane.object_type, key.lane.id_property, key.id) for key in sorted(records)]
        found = select(
            connection,
            "object_type, id_property, record, id",
            """SELECT l.object_type, l.id_property, o.record, o.id
                 FROM {rows:object_type text, id_property text, record text} r
                 JOIN lanes l ON l.object_type = r.object_type AND l.id_property = r.id_property
                 JOIN records o ON o.lane = l.id AND o.record = r.record""",
            rows=rows,
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
                self._read[keys[ref]][name] = Word(event, source or "", time_us, n, value, message, State(state))

    def ref(self, key: RecordKey) -> int | None:
        """The journal's number of a record that was read; None when it is new."""
        return self._refs.get(key)

    def standing(self, key: RecordKey, name: str) -> Word | None:
        """The word that stands."""
        changed = self._changed.get(key, {})
        return changed[name] if name in changed else self._read[key].get(name)

    def set_by(self, key: RecordKey, event: int) -> Iterator[tuple[str, Word]]:
        """The properties of a record at which this event's word stands."""
        for name in sorted(self._read[key].keys() | self._changed.get(key, {}).keys()):
            word = self.standing(key, name)
            if word is not None and word.event == event:
                yield name, word

    def put(self, key: RecordKey, name: str, word: Word | None) -> None:
        """Let this word stand, or none."""
        read = self._read[key].get(name)
        if word is not None and read is not None and read.event == word.event:
            self._read[key][name] = word
            self._changed.get(key, {}).pop(name, None)
        else:
            self._changed.setdefault(key, {})[name] = word

    def lose(self, key: RecordKey, name: str, word: Word) -> None:
        """Note a word that would stand if the newer one were withdrawn."""
        best = self._lost.get((key, name))
        if best is None or word.rank > best.rank:
            self._lost[key, name] = word

    def lost(self, key: RecordKey, name: str) -> Word | None:
        """The newest word noted by `lose`."""
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
    vacated: list[tuple[int, str]] = field(default_factory=list)  # another word takes the place
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

    def put(self, address: tuple[int, RecordKey], name: str, word: Word) -> None:
        """Let this word be merged."""
        draft = self.draft(address, word.source, word.time_us, word.n)
        if word.value is not None:
            draft.properties[name] = word.value
        else:
            draft.invalid[name] = word.message or "invalid"

    def take_back(self, address: tuple[int, RecordKey], name: str) -> None:
        """Let another word be merged in its place."""
        draft = self.drafts.get(address)
        if draft is not None:
            draft.properties.pop(name, None)
            draft.invalid.pop(name, None)


def write(connection: Connection, plan: Plan, *, again: bool, now_us: int) -> Merged:
    """Write the plan: first make room, then merge what takes it."""
    run(
        connection,
        """DELETE FROM desired
            WHERE (record, property) IN (SELECT record, property FROM {rows:record int, property text} AS given)""",
        rows=plan.withdrawn,
    )
    # Lowered below any word, with its value and state: a value that is confirmed already is not sent again.
    run(
        connection,
        """UPDATE desired SET time_us = :lowest, n = -1 FROM {rows:ref int, name text} r
            WHERE desired.record = r.ref AND desired.property = r.name""",
        rows=plan.vacated,
        lowest=-(2**62),
    )
    run(
        connection,
        "UPDATE asks SET properties = '[]' FROM {rows:ref int, n int} r WHERE asks.record = r.ref AND asks.n = r.n",
        rows=plan.silent,
    )
    asks = [
        Ask(
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
    merged = merge(connection, asks, now_us=now_us, replay=True)
    run(
        connection,
        """UPDATE events SET unmappable = r.why, intake = r.intake,
                  waits = CASE WHEN r.why IS NULL THEN 0 WHEN events.unmappable IS NULL THEN 1 ELSE events.waits END
             FROM {rows:seq int, why text, intake text} r WHERE events.seq = r.seq""",
        rows=plan.judged,
    )
    replaced = {ref for ref, _ in (*plan.withdrawn, *plan.vacated)}
    reconcile(connection, replaced, now_us=now_us, settled=replaced)
    return merged
