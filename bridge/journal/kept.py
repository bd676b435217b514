"""Events as the log keeps them, and what today's mapping makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy.engine import Connection

from bridge.journal.database import fetch, run, select
from bridge.model import FUTURE_TOLERANCE_US, Lane, PropertyUpdate, RecordKey

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
