"""What stands where, as a replay sees it: the journal's rows, with the replay's own changes on top.

A replay is planned before it is written, and a dry run is a plan that is never written. So each step looks at
the rows of the records that it touches, overlaid with what its earlier events changed. Kept beyond a step is
only what changed hands between events: memory grows with that, not with the events.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from bridge.journal.database import select
from bridge.journal.schema import State
from bridge.model import Lane, RecordKey


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
