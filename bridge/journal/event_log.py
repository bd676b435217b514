"""The event log: which events came, what became of each, what a replay needs of them, and what they asked for.

An event's outcome is that of its weightiest value: what needs a person comes first (`parked`, `refused`), then
what is under way (`retrying`, `pending`), then what was settled. `superseded` means that newer words stand in
the place of all of its own; whether those were delivered before is what `trace` shows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import orjson
from sqlalchemy.engine import Connection

from bridge.journal import matching
from bridge.journal.database import fetch, run, select
from bridge.journal.matching import RECORDS_MEANT
from bridge.journal.schema import NEVER, State
from bridge.model import FUTURE_TOLERANCE_US, Lane, PropertyUpdate, RecordKey

Outcome = Literal[
    "parked", "refused", "retrying", "pending", "delivered", "unchanged", "unknown", "discarded", "superseded",
    "ignored",
]  # fmt: skip
#: The weightiest first.
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

#: Events looked at in one go.
PAGE = 200


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are meant; empty fields do not narrow. `since` and `until` are on their arrival, inclusive."""

    ids: tuple[str, ...] = ()
    source: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    outcome: Outcome | None = None
    record: str | None = None


@dataclass(frozen=True, slots=True)
class Logged:
    """One row of `events list`; `outcomes` counts the fates of its values."""

    seq: int
    event: str
    source: str
    received_us: int
    occurred_us: int | None
    outcome: Outcome
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    records: tuple[str, ...] = ()
    properties: tuple[str, ...] = ()
    unmappable: str | None = None


def count_events(connection: Connection, chosen: EventFilter) -> int:
    """How many events the filter means, its outcome left aside."""
    conditions, parameters = _conditions(chosen)
    return int(fetch(connection, f"SELECT count(*) FROM events e WHERE {conditions}", **parameters)[0][0])


def newest_seq(connection: Connection) -> int:
    """The number of the newest event."""
    return int(fetch(connection, "SELECT coalesce(max(seq), 0) FROM events")[0][0])


def recent(connection: Connection, number: int) -> list[Logged]:
    """The events that came last, newest first; at most `PAGE`."""
    found, *_ = page(connection, EventFilter(), after=max(0, newest_seq(connection) - number))
    return found[::-1][:number]


def numbers(connection: Connection, ids: Collection[str]) -> list[int]:
    """The events of these ids by their numbers, in the order of their arrival: looked up once, not at every page."""
    conditions, parameters = _conditions(EventFilter(ids=tuple(ids)))
    return [
        seq for (seq,) in fetch(connection, f"SELECT e.seq FROM events e WHERE {conditions} ORDER BY 1", **parameters)
    ]


def page(
    connection: Connection,
    chosen: EventFilter,
    *,
    after: int,
    upto: int | None = None,
    among: Sequence[int] | None = None,
) -> tuple[list[Logged], int, int]:
    """The events among the next `PAGE` whose outcome is meant, how many were looked at, and where to go on (0 at
    the end). `among`: the `numbers` of the ids that are meant.
    """
    if among is not None:
        first = bisect_right(among, after)
        chosen, among = replace(chosen, ids=()), among[first : first + PAGE]
    conditions, parameters = _conditions(chosen)
    if among is not None:
        conditions += " AND e.seq IN (SELECT id FROM {ids})"
        parameters["ids"] = list(among)
    rows = select(
        connection,
        "seq, event_id, source, received_us, occurred_us, unmappable, waits",
        f"""SELECT e.seq, e.event_id, e.source, e.received_us, e.occurred_us, e.unmappable, e.waits FROM events e
             WHERE e.seq > :after AND e.seq <= :upto AND {conditions} ORDER BY e.seq LIMIT :page""",
        after=after,
        upto=NEVER if upto is None else upto,
        page=PAGE,
        **parameters,
    )
    found = _logged(connection, rows)
    looked_at = [row[0] for row in rows] if among is None else among
    following = looked_at[-1] if len(looked_at) == PAGE else 0
    return [event for event in found if _is_meant(event.outcome, chosen.outcome)], len(rows), following


def _is_meant(outcome: Outcome, wanted: Outcome | None) -> bool:
    """A refused value is a parked row of the retry log, so `parked` finds its event too."""
    return wanted in {None, outcome} or (wanted == "parked" and outcome == "refused")


def _conditions(chosen: EventFilter) -> tuple[str, dict[str, object]]:
    conditions, parameters = ["1 = 1"], dict[str, object]()
    if chosen.ids:
        conditions.append("e.event_id IN (SELECT wanted FROM {rows:wanted text} AS given)")
        parameters["rows"] = [[event_id] for event_id in sorted(set(chosen.ids))]
    if chosen.source is not None:
        conditions.append("e.source = :source")
        parameters["source"] = chosen.source
    if chosen.record is not None:
        conditions.append(
            f"e.seq IN (SELECT a.event FROM ({RECORDS_MEANT}) AS meant JOIN asks a ON a.record = meant.id)"
        )
        parameters |= matching.parameters(chosen.record)
    for sign, bound in ((">=", "since_us"), ("<=", "until_us")):
        wanted = getattr(chosen, bound)
        if wanted is not None:
            conditions.append(f"e.received_us {sign} :{bound}")
            parameters[bound] = wanted
    return " AND ".join(conditions), parameters


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands for one property of one record."""

    event: int
    state: State
    settled_us: int | None
    category: str | None  # why the record is retried or parked
    parked: bool


def _logged(connection: Connection, rows: Sequence[Sequence[object]]) -> list[Logged]:
    seqs = [int(str(row[0])) for row in rows]
    asked: dict[int, list[tuple[int, str, list[str]]]] = {}
    for seq, ref, record, names in select(
        connection,
        "event, id, record, properties",
        """SELECT a.event, r.id, coalesce(r.spelling, r.record) AS record, a.properties
             FROM asks a JOIN records r ON r.id = a.record
            WHERE a.event IN (SELECT id FROM {ids}) AND a.properties <> '[]' ORDER BY a.event, r.id""",
        ids=seqs,
    ):
        asked.setdefault(seq, []).append((ref, record, orjson.loads(names)))
    standing = _standing(connection, sorted({ref for of_event in asked.values() for ref, _, _ in of_event}))
    logged = []
    for seq, event_id, source, received_us, occurred_us, unmappable, waits in rows:
        of_event = asked.get(int(str(seq)), [])
        fates = Counter(
            fate(standing.get((ref, name)), int(str(seq)), int(str(received_us)))
            for ref, _, names in of_event
            for name in names
        )
        if waits:
            fates["parked"] += 1
        elif unmappable is not None:
            fates["discarded"] += 1
        logged.append(
            Logged(
                seq=int(str(seq)),
                event=str(event_id),
                source=str(source),
                received_us=int(str(received_us)),
                occurred_us=None if occurred_us is None else int(str(occurred_us)),
                outcome=min(fates, key=OUTCOMES.index, default="ignored"),
                outcomes=dict(fates),
                records=tuple(dict.fromkeys(record for _, record, _ in of_event)),
                properties=tuple(dict.fromkeys(name for _, _, names in of_event for name in names)),
                unmappable=None if unmappable is None else str(unmappable),
            )
        )
    return logged


def _standing(connection: Connection, refs: Sequence[int]) -> dict[tuple[int, str], Standing]:
    return {
        (ref, name): Standing(event, State(state), settled_us, category, parked_us is not None)
        for ref, name, event, state, settled_us, category, parked_us in select(
            connection,
            "record, property, event, state, settled_us, category, parked_us",
            """SELECT d.record, d.property, d.event, d.state, d.settled_us, r.category, r.parked_us FROM desired d
                 JOIN records r ON r.id = d.record WHERE d.record IN (SELECT id FROM {ids})""",
            ids=list(refs),
        )
    }


def fate(standing: Standing | None, seq: int, received_us: int) -> Outcome:
    """What became of one value of an event. `unchanged`: it equalled what a call had confirmed before the event came.
    `unknown`: the CRM knows no such record, and the source says to ignore that.
    """
    if standing is None or standing.event != seq:
        return "superseded"
    match standing.state:
        case State.PENDING:
            return "parked" if standing.parked else "retrying" if standing.category else "pending"
        case State.DELIVERED:
            before = standing.settled_us is not None and standing.settled_us < received_us
            return "unchanged" if before else "delivered"
        case State.REFUSED:
            return "refused"
        case State.UNKNOWN:
            return "unknown"
        case State.DISCARDED:
            return "discarded"


# --- events as they are kept for a replay, and what today's mapping makes of them ---

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


#: None: the source is gone from the configuration, what the event asked for stays as it is.
Remap = Callable[[KeptEvent], Remapped | None]


@dataclass(frozen=True, slots=True)
class Asked:
    """What an event asked one record for, when it was last mapped."""

    ref: int
    n: int
    time_us: int
    names: tuple[str, ...]


def portions_to_read(connection: Connection, seqs: Sequence[int]) -> Iterator[list[int]]:
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
        if portion and total > PORTION_BYTES:
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


# --- which properties the latest events of a source asked for, and earlier ones: what used to come and has stopped ---
#
# It is read from the log, so it is right for any number of processes and after a restart. Only a bounded number of
# events is walked through, of whatever source they are: there is no index by source, and a page must not cost what the
# journal holds. Of a source that sends one event in a thousand little is known, and nothing is claimed.

#: Events of the source that are looked at, of the newest and of earlier ones each.
SAMPLE = 500
#: Events of all sources that are walked through to find them.
WALKED = 20_000
#: Events that are meant by "late".
LATE = 50
#: How long before the newest the earlier ones came, in a journal that reaches back twice as far.
EARLIER_US = 86_400_000_000
#: A property has stopped if at least so many events lack it, so many before were looked at, and of a share that is
#: worth a word at least so many were to be expected: one in five, and ten.
ENOUGH, WORTH, EXPECTED = 20, 0.2, 10


@dataclass(frozen=True, slots=True)
class Asking:
    """An event that asks for something: when it arrived, and for which properties."""

    seq: int
    received_us: int
    properties: frozenset[str]


@dataclass(frozen=True, slots=True)
class Share:
    """How often a property came: in `late` of the newest `late_events`; in none of the newest `lacking`, and in
    `earlier` of the `earlier_events` that were looked at before those. `last_us` is the arrival of the last that had
    it, and None where that is before `since_us`, the arrival of the oldest of those that lack it.
    """

    late: int
    late_events: int
    lacking: int
    earlier: int
    earlier_events: int
    last_us: int | None
    since_us: int | None

    @property
    def stopped(self) -> bool:
        """Whether it used to come, and chance does not explain that it comes no more."""
        if self.lacking < ENOUGH or self.earlier_events < ENOUGH:
            return False
        share = self.earlier / self.earlier_events
        return share >= WORTH and share * self.lacking >= EXPECTED


@dataclass(frozen=True, slots=True)
class Presence:
    """Events of one source that ask for something, newest first: the newest without a gap, and earlier ones."""

    newest: tuple[Asking, ...] = ()
    earlier: tuple[Asking, ...] = ()

    def of(self, name: str, beside: Collection[str] = ()) -> Share:
        """How often that property came, of the events that ask for any of those `beside` it: what the same block maps.
        Other blocks read other events, which are no sign of its having stopped. Without any: of all events.
        """
        newest, earlier = (
            [event for event in events if not beside or not event.properties.isdisjoint(beside)]
            for events in (self.newest, self.earlier)
        )
        having = [at for at, event in enumerate(newest) if name in event.properties]
        lacking = having[0] if having else len(newest)
        before = (*newest[lacking:], *earlier)
        return Share(
            late=sum(at < LATE for at in having),
            late_events=min(LATE, len(newest)),
            lacking=lacking,
            earlier=sum(name in event.properties for event in before),
            earlier_events=len(before),
            last_us=newest[lacking].received_us if having else None,
            since_us=newest[lacking - 1].received_us if lacking else None,
        )


def presence(connection: Connection, source: str) -> Presence:
    """The newest events of the source and some from a day before, or from the older half of a younger journal."""
    newest = _walked(connection, source, upto=newest_seq(connection))
    if not newest:
        return Presence()
    latest_us = newest[0].received_us
    (oldest_us,) = fetch(connection, "SELECT min(received_us) FROM events")[0]
    found = fetch(
        connection,
        "SELECT seq FROM events WHERE received_us <= :before_us ORDER BY received_us DESC, seq DESC LIMIT 1",
        before_us=latest_us - min(EARLIER_US, max(0, latest_us - oldest_us) // 2),
    )
    upto = min(found[0][0] if found else 0, newest[-1].seq - 1)
    return Presence(newest, _walked(connection, source, upto=upto))


def _walked(connection: Connection, source: str, *, upto: int) -> tuple[Asking, ...]:
    """Those that ask for something among the last events up to this one, newest first."""
    arrived: dict[int, int] = {}
    asked: dict[int, set[str]] = {}
    for seq, received_us, names in select(
        connection,
        "seq, received_us, properties",
        """SELECT e.seq, e.received_us, a.properties FROM
             (SELECT seq, received_us FROM events
               WHERE seq > :after AND seq <= :upto AND source = :source
                 AND EXISTS (SELECT 1 FROM asks a WHERE a.event = events.seq AND a.event > :after AND a.event <= :upto
                                AND a.properties <> '[]')
               ORDER BY seq DESC LIMIT :sample) AS e
             JOIN asks a ON a.event = e.seq""",  # the bounds again, so that a merge join does not begin at the end
        after=upto - WALKED,
        upto=upto,
        source=source,
        sample=SAMPLE,
    ):
        arrived[seq] = received_us
        asked.setdefault(seq, set()).update(orjson.loads(names))
    return tuple(Asking(seq, arrived[seq], frozenset(asked[seq])) for seq in sorted(asked, reverse=True))
