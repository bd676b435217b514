"""Merging asks into the state each record should have: the one place where last writer wins (G3, G4).

An *ask* is what one event wants of one record. Append and replay both end here. Per record, in one
transaction: raise `n` by the number of asks (the row lock lasts to the commit, so `n` is also the order
of commits), date each ask, upsert the desired values where `(time, n)` is newer, make the record due.

Dating: an ask carries its event's own time, unless that is missing or more than `FUTURE_TOLERANCE_US`
ahead of arrival. Then it gets the later of now and the record's newest known time, so that it is the
newest at its arrival. A standing time that far ahead of now was given while our own clock was wrong: whatever
arrives later wins over it. So neither a partner's clock nor ours can freeze a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson
from sqlalchemy.engine import Connection

from bridge.journal.database import fetch, run, select
from bridge.journal.reconciling import WRITTEN, make_due, reconcile
from bridge.journal.schema import State
from bridge.model import FUTURE_TOLERANCE_US, Category, Lane, RecordKey

#: Later than any time stamp.
NEVER_US = 2**62
#: A value equal to one refused less than this ago stays refused: partners that repeat whole objects must not
#: make us repeat a 400.
REFUSED_AGAIN_US = 3_600 * 1_000_000


@dataclass(frozen=True, slots=True)
class Ask:
    """One event's wish for one record. `n`, `time_us` are set when a kept event is mapped again; `names` are all
    properties that it asks for, where the ask brings only those that changed.
    """

    event: int
    source: str
    record: RecordKey
    properties: Mapping[str, str]
    invalid: Mapping[str, str]
    skip_unchanged: bool
    occurred_us: int | None
    n: int | None = None
    time_us: int | None = None
    names: Sequence[str] | None = None


@dataclass(slots=True)
class Merged:
    """What merging did, in values: for metrics."""

    superseded: int = 0
    unchanged: int = 0
    refused: int = 0
    future: int = 0  # events dated too far ahead

    def add(self, other: Merged) -> None:
        """Add another merge's counts to these."""
        self.superseded += other.superseded
        self.unchanged += other.unchanged
        self.refused += other.refused
        self.future += other.future


@dataclass(slots=True)
class _Record:
    """One touched record while a group is merged."""

    ref: int
    lane: int
    n: int  # the last `n` given away before this group
    newest_us: int
    retry_us: int | None
    parked: bool
    given: int = 0
    asks: list[tuple[Ask, int, int]] = field(default_factory=list)  # (ask, n, time)


@dataclass(frozen=True, slots=True)
class LaneNoted:
    """A lane's number, and what is noted of it (`bridge.journal.matching`). `caseless` None: nothing yet."""

    id: int
    caseless: bool | None = None
    united: bool = False

    def key(self, record: RecordKey) -> RecordKey:
        """The record as the journal compares ids, whatever a mapping of other days or of another process did."""
        return record if self.caseless is None else RecordKey.of(record.lane, record.sent, caseless=self.caseless)


def lanes_noted(connection: Connection, wanted: set[Lane]) -> dict[Lane, LaneNoted]:
    """These lanes, made where they are new."""
    if not wanted:
        return {}
    rows = sorted((lane.object_type, lane.id_property) for lane in wanted)
    select = """SELECT l.object_type, l.id_property, l.id, l.caseless, l.united FROM lanes l
                JOIN {rows:object_type text, id_property text} r
                  ON l.object_type = r.object_type AND l.id_property = r.id_property"""
    found = fetch(connection, select, rows=rows)
    if len(found) < len(rows):
        run(
            connection,
            """INSERT INTO lanes (object_type, id_property)
               SELECT object_type, id_property FROM {rows:object_type text, id_property text} AS given WHERE true
               ON CONFLICT (object_type, id_property) DO NOTHING""",
            rows=rows,
        )
        found = fetch(connection, select, rows=rows)
    return {
        Lane(object_type, id_property): LaneNoted(number, None if how is None else bool(how), bool(united))
        for object_type, id_property, number, how, united in found
    }


def merge(connection: Connection, asks: Sequence[Ask], *, now_us: int, replay: bool = False) -> Merged:
    """Merge these asks, in their order of arrival, and make due what has to be delivered.

    With `replay` a record that waits out a failure is due at once, and values that stand refused are
    sent again.
    """
    merged = Merged()
    if not asks:
        return merged
    records = _raise_n(connection, asks, now_us, merged)
    best: dict[tuple[int, str], tuple[int, int, Ask, str | None]] = {}
    rows_asked = []
    for touched in records.values():
        for ask, n, time_us in touched.asks:
            names = [*ask.properties, *ask.invalid]
            asked = names if ask.names is None else list(ask.names)
            rows_asked.append((touched.ref, n, ask.event, time_us, orjson.dumps(asked).decode()))
            for name in names:
                key = (touched.ref, name)
                standing = best.get(key)
                if standing is None:
                    best[key] = (time_us, n, ask, ask.properties.get(name))
                    continue
                merged.superseded += 1
                if (time_us, n) > standing[:2]:
                    best[key] = (time_us, n, ask, ask.properties.get(name))
    _log_asks(connection, rows_asked)
    by_ref = {touched.ref: touched for touched in records.values()}
    rows = _rows(best, by_ref, now_us=now_us, at_once=replay)
    merged.superseded += len(best)
    may_leave = _upsert_desired(connection, rows, merged, now_us=now_us, replay=replay)
    make_due(connection, [row[:6] for row in rows], now_us=now_us, at_once=replay)
    if unsettled := [ref for ref, touched in by_ref.items() if may_leave or touched.parked]:
        reconcile(connection, unsettled, now_us=now_us)
    return merged


def _raise_n(
    connection: Connection, asks: Sequence[Ask], now_us: int, merged: Merged
) -> dict[tuple[int, str], _Record]:
    """Raise every touched record's `n`, then give each ask its `n` and its time."""
    lanes = lanes_noted(connection, {ask.record.lane for ask in asks})
    newest: dict[tuple[int, str], list[int]] = {}  # key → [asks, newest time claimed]
    spelt: dict[tuple[int, str], str | None] = {}  # by the newest of them
    dated: list[tuple[tuple[int, str], Ask, int | None]] = []
    for ask in asks:
        lane = lanes[ask.record.lane]
        record = lane.key(ask.record)
        key = (lane.id, record.id)
        time_us = ask.time_us if ask.time_us is not None else ask.occurred_us
        if ask.time_us is None and time_us is not None and time_us > now_us + FUTURE_TOLERANCE_US:
            merged.future += 1
            time_us = None
        seen = newest.setdefault(key, [0, 0])
        seen[0] += 1
        claimed_us = now_us if time_us is None else time_us
        if claimed_us >= seen[1]:
            seen[1], spelt[key] = claimed_us, record.spelling
        dated.append((key, ask, time_us))
    # Sorted: two groups that touch the same records take their locks in one order.
    rows = [(*key, count, time_us, spelt[key]) for key, (count, time_us) in sorted(newest.items())]
    run(
        connection,
        """INSERT INTO records (lane, record, n, newest_us, spelling)
           SELECT lane, record, count, newest_us, spelling
             FROM {rows:lane int, record text, count int, newest_us int, spelling text} AS given WHERE true
           ON CONFLICT (lane, record) DO UPDATE
             SET n = records.n + excluded.n,
                 spelling = CASE WHEN records.newest_us > excluded.newest_us AND records.newest_us <= :believed
                                 THEN records.spelling ELSE excluded.spelling END,
                 newest_us = CASE WHEN records.newest_us > :believed THEN excluded.newest_us
                                  ELSE {greatest}(records.newest_us, excluded.newest_us) END""",
        rows=rows,
        believed=now_us + FUTURE_TOLERANCE_US,
    )
    found = select(
        connection,
        "lane, record, id, n, newest_us, retry_us, parked_us",
        """SELECT o.lane, o.record, o.id, o.n, o.newest_us, o.retry_us, o.parked_us
             FROM {rows:lane int, record text} r JOIN records o ON o.lane = r.lane AND o.record = r.record""",
        rows=rows,
    )
    records = {
        (lane, record): _Record(ref, lane, n - newest[lane, record][0], newest_us, retry_us, parked_us is not None)
        for lane, record, ref, n, newest_us, retry_us, parked_us in found
    }
    for key, ask, time_us in dated:
        touched = records[key]
        touched.given += 1
        n = ask.n if ask.n is not None else touched.n + touched.given
        touched.asks.append((ask, n, touched.newest_us if time_us is None else time_us))
    return records


def _log_asks(connection: Connection, rows: Sequence[tuple[int, int, int, int, str]]) -> None:
    run(
        connection,
        """INSERT INTO asks (record, n, event, time_us, properties)
           SELECT record, n, event, time_us, properties
             FROM {rows:record int, n int, event int, time_us int, properties text} AS given WHERE true
           ON CONFLICT (record, n) DO UPDATE SET properties = excluded.properties""",
        rows=sorted(rows),
    )


#: The values by which asks win. An ask's properties stand in JSON objects, because every column of `rows` costs a
#: search through a row's JSON text.
_WON = f"""
WITH asked AS MATERIALIZED (
  SELECT ref, n, revision, source, time_us, event, skip, valid, invalid
    FROM {{rows:ref int, n int, revision int, source text, lane int, due_us int, time_us int, event int, skip int,
               valid text, invalid text}} given),
won AS (
  SELECT a.ref, a.n, a.time_us, a.revision, a.event, a.source, a.skip, p.key AS property, p.value AS value,
         {int(State.PENDING)} AS state, cast(NULL AS text) AS category, cast(NULL AS text) AS message
    FROM asked a CROSS JOIN {{pairs:a.valid}} p
  UNION ALL
  SELECT a.ref, a.n, a.time_us, a.revision, a.event, a.source, a.skip, p.key, NULL,
         {int(State.REFUSED)}, '{Category.UNMAPPABLE}', p.value
    FROM asked a CROSS JOIN {{pairs:a.invalid}} p)"""

#: Equal to what was refused of late; a time ahead of now was noted while our clock was wrong.
_STILL_REFUSED = """desired.state = 2 AND desired.value = excluded.value
      AND desired.settled_us > :refused_after AND desired.settled_us <= :now"""
#: The desired value's next state. `excluded.state` is what the mapping says: pending, or refused as invalid.
_UPSERT = f"""
{_WON}
INSERT INTO desired (record, property, value, time_us, n, revision, event, source, state, skip, category,
                     message, settled_us)
SELECT ref, property, value, time_us, n, revision, event, source, state, skip, category, message, :now
  FROM won WHERE true
ON CONFLICT (record, property) DO UPDATE SET
  value = excluded.value, time_us = excluded.time_us, n = excluded.n, revision = excluded.revision,
  event = excluded.event, source = excluded.source, skip = excluded.skip,
  displaced = CASE WHEN desired.state = 0 AND desired.event <> excluded.event THEN desired.event END,
  state = CASE
    WHEN excluded.state = 2 THEN 2
    WHEN {_STILL_REFUSED} THEN 2
    WHEN excluded.skip = 1 AND desired.state = 1 AND desired.value = excluded.value THEN 1
    ELSE 0 END,
  category = CASE
    WHEN excluded.state = 2 THEN excluded.category
    WHEN {_STILL_REFUSED} THEN desired.category END,
  message = CASE
    WHEN excluded.state = 2 THEN excluded.message
    WHEN {_STILL_REFUSED} THEN desired.message END,
  settled_us = CASE
    WHEN excluded.state = 2 THEN :now
    WHEN desired.state IN (1, 2) AND desired.value = excluded.value THEN desired.settled_us
    ELSE :now END
WHERE (excluded.time_us, excluded.n) >= (desired.time_us, desired.n) OR desired.time_us > :believed"""


#: One ask with the values by which it wins: the columns of `_WON`.
_Row = tuple[int, int, int, str, int, int, int, int, int, dict[str, str], dict[str, str]]


def _rows(
    best: Mapping[tuple[int, str], tuple[int, int, Ask, str | None]],
    records: Mapping[int, _Record],
    *,
    now_us: int,
    at_once: bool,
) -> list[_Row]:
    """The winning values by ask, in the order of records.

    A record that waits out a failure of its own keeps waiting: events for a poisonous record must not make a
    loop of it. What is due later for another reason (a value to be sent again after a doubt) is due now too.
    """
    rows: dict[tuple[int, int], _Row] = {}
    for (ref, name), (time_us, n, ask, value) in best.items():
        row = rows.get((ref, n))
        if row is None:
            touched = records[ref]
            due_us = now_us if at_once or touched.retry_us is None else max(now_us, touched.retry_us)
            revision, skip = touched.n + touched.given, int(ask.skip_unchanged)
            row = (ref, n, revision, ask.source, touched.lane, due_us, time_us, ask.event, skip, {}, {})
            rows[ref, n] = row
        if value is None:
            row[-1][name] = ask.invalid[name]
        else:
            row[-2][name] = value
    return [rows[key] for key in sorted(rows)]


def _upsert_desired(connection: Connection, rows: Sequence[_Row], merged: Merged, *, now_us: int, replay: bool) -> bool:
    """Write the values that win, and count what became of all. Returns whether some source may have nothing left that
    waits: invalid values took the place of what did, or another source's.
    """
    run(
        connection,
        _UPSERT,
        rows=rows,
        now=now_us,
        refused_after=now_us if replay else now_us - REFUSED_AGAIN_US,
        # A replay is no new word of the partner's: it wins over nothing that is newer, whatever its date.
        believed=NEVER_US if replay else now_us + FUTURE_TOLERANCE_US,
    )
    [(written, displaced, unchanged, refused, leaving)] = fetch(
        connection,
        f"""SELECT count(*), count(d.displaced), count(*) FILTER (WHERE d.state = 1),
                   count(*) FILTER (WHERE d.state = 2),
                   count(*) FILTER (WHERE (d.displaced IS NOT NULL OR EXISTS (
                     SELECT 1 FROM records r WHERE r.id = d.record AND r.doubt_us IS NOT NULL)) AND EXISTS (
                     SELECT 1 FROM due WHERE due.record = d.record AND (d.state = 2 OR due.source <> d.source)))
              FROM {{rows:ref int, n int, revision int}} a CROSS JOIN desired d WHERE {WRITTEN}""",
        rows=[row[:3] for row in rows],
    )
    merged.superseded += displaced - written
    merged.unchanged += unchanged
    merged.refused += refused
    return bool(leaving)
