"""Merging updates into the state each record should have: the one place where last writer wins (G3, G4).

An *update* is what one event wants of one record. Append and replay both end here. Per record, in one
transaction: raise `n` by the number of updates (the row lock lasts to the commit, so `n` is also the order
of commits), date each update, upsert the desired values where `(time, n)` is newer, make the record due.

Dating: an update carries its event's own time, unless that is missing or more than `FUTURE_TOLERANCE_US`
ahead of arrival. Then it gets the later of now and the record's newest known time, so that it is the
newest at its arrival. A standing time that far ahead of now was given while our own clock was wrong: whatever
arrives later wins over it. So neither a partner's clock nor ours can freeze a value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson
from sqlalchemy.engine import Connection

from bridge.journal.database import fetch, is_postgresql, run, select
from bridge.journal.due import WRITTEN, making_due, reconcile
from bridge.journal.schema import NEVER, State
from bridge.model import FUTURE_TOLERANCE_US, Category, Lane, RecordKey

#: A value equal to one refused less than this ago stays refused: partners that repeat whole objects must not
#: make us repeat a 400.
REFUSED_AGAIN_US = 3_600 * 1_000_000


@dataclass(frozen=True, slots=True)
class Update:
    """One event's wish for one record. `n`, `time_us` are set when a kept event is mapped again; `names` are all
    properties that it asks for, where it brings only those that changed.
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
    doubt: bool
    given: int = 0
    updates: list[tuple[Update, int, int]] = field(default_factory=list)  # (update, n, time)


@dataclass(frozen=True, slots=True)
class StoredLane:
    """A lane's number, and what is noted of it (`bridge.journal.matching`). `caseless` None: nothing yet."""

    id: int
    caseless: bool | None = None
    united: bool = False

    def key(self, record: RecordKey) -> RecordKey:
        """The record as the journal compares ids, whatever a mapping of other days or of another process did."""
        return record if self.caseless is None else RecordKey.of(record.lane, record.sent, caseless=self.caseless)


def stored_lanes(connection: Connection, wanted: set[Lane]) -> dict[Lane, StoredLane]:
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
        Lane(object_type, id_property): StoredLane(number, None if how is None else bool(how), bool(united))
        for object_type, id_property, number, how, united in found
    }


def merge(connection: Connection, updates: Sequence[Update], *, now_us: int, replay: bool = False) -> Merged:
    """Merge these updates, in their order of arrival, and make due what has to be delivered.

    With `replay` a record that waits out a failure is due at once, and values that stand refused are
    sent again.
    """
    merged = Merged()
    if not updates:
        return merged
    records = _raise_n(connection, updates, now_us, merged)
    best: dict[tuple[int, str], tuple[int, int, Update]] = {}
    for touched in records.values():
        for update, n, time_us in touched.updates:
            for name in (*update.properties, *update.invalid):
                key = (touched.ref, name)
                standing = best.get(key)
                if standing is not None:
                    merged.superseded += 1
                if standing is None or (time_us, n) > standing[:2]:
                    best[key] = (time_us, n, update)
    by_ref = {touched.ref: touched for touched in records.values()}
    rows = _rows(best, by_ref, now_us=now_us, at_once=replay)
    merged.superseded += len(best)
    may_leave = _write(connection, rows, by_ref, merged, now_us=now_us, replay=replay)
    if unsettled := [ref for ref, touched in by_ref.items() if may_leave or touched.parked]:
        reconcile(connection, unsettled, now_us=now_us)
    return merged


def _raise_n(
    connection: Connection, updates: Sequence[Update], now_us: int, merged: Merged
) -> dict[tuple[int, str], _Record]:
    """Raise every touched record's `n`, then give each update its `n` and its time."""
    lanes = stored_lanes(connection, {update.record.lane for update in updates})
    newest: dict[tuple[int, str], list[int]] = {}  # key → [updates, newest time claimed]
    spelt: dict[tuple[int, str], str | None] = {}  # by the newest of them
    dated: list[tuple[tuple[int, str], Update, int | None]] = []
    for update in updates:
        lane = lanes[update.record.lane]
        record = lane.key(update.record)
        key = (lane.id, record.id)
        time_us = update.time_us if update.time_us is not None else update.occurred_us
        if update.time_us is None and time_us is not None and time_us > now_us + FUTURE_TOLERANCE_US:
            merged.future += 1
            time_us = None
        seen = newest.setdefault(key, [0, 0])
        seen[0] += 1
        claimed_us = now_us if time_us is None else time_us
        if claimed_us >= seen[1]:
            seen[1], spelt[key] = claimed_us, record.spelling
        dated.append((key, update, time_us))
    # Sorted: two groups that touch the same records take their locks in one order.
    rows = [(*key, count, time_us, spelt[key]) for key, (count, time_us) in sorted(newest.items())]
    believed = now_us + FUTURE_TOLERANCE_US
    if is_postgresql(connection):
        found = fetch(connection, f"{_RAISE_N} RETURNING {_TOUCHED}", rows=rows, believed=believed)
    else:
        run(connection, _RAISE_N, rows=rows, believed=believed)
        found = select(connection, _TOUCHED, _READ_TOUCHED, rows=rows)
    records = {
        (lane, record): _Record(
            ref, lane, n - newest[lane, record][0], newest_us, retry_us, parked_us is not None, doubt_us is not None
        )
        for lane, record, ref, n, newest_us, retry_us, parked_us, doubt_us in found
    }
    for key, update, time_us in dated:
        touched = records[key]
        touched.given += 1
        n = update.n if update.n is not None else touched.n + touched.given
        touched.updates.append((update, n, touched.newest_us if time_us is None else time_us))
    return records


_RAISE_N = """INSERT INTO records (lane, record, n, newest_us, spelling)
           SELECT lane, record, count, newest_us, spelling
             FROM {rows:lane int, record text, count int, newest_us int, spelling text} AS given WHERE true
           ON CONFLICT (lane, record) DO UPDATE
             SET n = records.n + excluded.n,
                 spelling = CASE WHEN records.newest_us > excluded.newest_us AND records.newest_us <= :believed
                                 THEN records.spelling ELSE excluded.spelling END,
                 newest_us = CASE WHEN records.newest_us > :believed THEN excluded.newest_us
                                  ELSE {greatest}(records.newest_us, excluded.newest_us) END"""
_TOUCHED = "lane, record, id, n, newest_us, retry_us, parked_us, doubt_us"
_READ_TOUCHED = """SELECT o.lane, o.record, o.id, o.n, o.newest_us, o.retry_us, o.parked_us, o.doubt_us
                     FROM {rows:lane int, record text} r JOIN records o ON o.lane = r.lane AND o.record = r.record"""


def _noting_asks(asked: str) -> str:
    """The statement that notes who asked for what."""
    return f"""
INSERT INTO asks (record, n, event, time_us, properties) SELECT ref, n, event, time_us, names FROM {asked} a WHERE true
ON CONFLICT (record, n) DO UPDATE SET properties = excluded.properties"""


class _Row(NamedTuple):
    """One update, with the values by which it wins."""

    ref: int
    n: int
    revision: int
    source: str
    event: int
    time_us: int
    skip: int
    valid: dict[str, str]
    invalid: dict[str, str]
    doubt: int
    lane: int
    due_us: int
    names: str  # JSON array


#: Columns of `_Row`: those from which values are written, and all of them.
_VALUES = "ref int, n int, revision int, source text, event int, time_us int, skip int, valid text, invalid text"
_ALL = f"{_VALUES}, doubt int, lane int, due_us int, names text"


def _won(columns: str) -> str:
    """`asked` with these columns, and `won`: the values by which updates win. The properties of one stand in JSON
    objects, because every column of `rows` costs a search through a row's JSON text.
    """
    return f"""
WITH asked AS MATERIALIZED (
  SELECT {re.sub(" (int|text)", "", columns)} FROM {{rows:{columns}}} given),
won AS (
  SELECT a.ref, a.n, a.time_us, a.revision, a.event, a.source, a.skip, p.key AS property, p.value AS value,
         {int(State.PENDING)} AS state, cast(NULL AS text) AS category, cast(NULL AS text) AS message
    FROM asked a CROSS JOIN {{pairs:a.valid}} p
  UNION ALL
  SELECT a.ref, a.n, a.time_us, a.revision, a.event, a.source, a.skip, p.key, NULL,
         {int(State.REFUSED)}, '{Category.UNMAPPABLE}', p.value
    FROM asked a CROSS JOIN {{pairs:a.invalid}} p)"""


#: Equal to what was refused lately; a time ahead of now was noted while our clock was wrong.
_STILL_REFUSED = """desired.state = 2 AND desired.value = excluded.value
      AND desired.settled_us > :refused_after AND desired.settled_us <= :now"""
#: The desired value's next state. `excluded.state` is what the mapping says: pending, or refused as invalid.
_UPSERT = f"""
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


def _counted(asked: str, desired: str) -> str:
    """Of what was just written of `asked`: all values, those that took the place of one that waited, those that stand
    as delivered or refused, and those with which some source may have nothing left that waits.
    """
    return f"""
SELECT count(*), count(d.displaced), count(*) FILTER (WHERE d.state = 1), count(*) FILTER (WHERE d.state = 2),
       count(*) FILTER (WHERE (d.displaced IS NOT NULL OR a.doubt = 1) AND EXISTS (
         SELECT 1 FROM due WHERE due.record = d.record AND (d.state = 2 OR due.source <> d.source)))
  FROM {asked} a CROSS JOIN {desired} d WHERE {WRITTEN}"""


#: On PostgreSQL all in one statement, which need not look for what it has just written.
_WRITE_AT_ONCE = f"""{_won(_ALL)},
noted AS ({_noting_asks("asked")}),
written AS ({_UPSERT} RETURNING record, n, revision, source, state, displaced),
waiting AS ({making_due("asked", "written")})
{_counted("asked", "written")}"""
#: On SQLite one by one, each given no more columns than it needs.
_NOTE_ASKS = _noting_asks("{rows:ref int, n int, event int, time_us int, names text}")
_WRITE_VALUES = f"{_won(_VALUES)}{_UPSERT}"
_COUNT = _counted("{rows:ref int, n int, revision int, doubt int}", "desired")
_MAKE_DUE = making_due("{rows:ref int, n int, revision int, source text, lane int, due_us int}", "desired")


def _rows(
    best: Mapping[tuple[int, str], tuple[int, int, Update]],
    records: Mapping[int, _Record],
    *,
    now_us: int,
    at_once: bool,
) -> list[_Row]:
    """The updates with the values by which they win, in the order of records.

    A record that waits out a failure of its own keeps waiting: events for a poisonous record must not make a
    loop of it. What is due later for another reason (a value to be sent again after a doubt) is due now too.
    """
    rows: dict[tuple[int, int], _Row] = {}
    for ref, touched in records.items():
        due_us = now_us if at_once or touched.retry_us is None else max(now_us, touched.retry_us)
        for update, n, time_us in touched.updates:
            names = [*update.properties, *update.invalid] if update.names is None else list(update.names)
            rows[ref, n] = _Row(
                ref=ref,
                n=n,
                revision=touched.n + touched.given,
                source=update.source,
                event=update.event,
                time_us=time_us,
                skip=int(update.skip_unchanged),
                valid={},
                invalid={},
                doubt=int(touched.doubt),
                lane=touched.lane,
                due_us=due_us,
                names=orjson.dumps(names).decode(),
            )
    for (ref, name), (_, n, update) in best.items():
        if name in update.properties:
            rows[ref, n].valid[name] = update.properties[name]
        else:
            rows[ref, n].invalid[name] = update.invalid[name]
    return [rows[key] for key in sorted(rows)]


def _write(
    connection: Connection,
    rows: Sequence[_Row],
    records: Mapping[int, _Record],
    merged: Merged,
    *,
    now_us: int,
    replay: bool,
) -> bool:
    """Note the updates, write the values that win, make their records due, and count what became of all. Returns
    whether some source may have nothing left that waits: invalid values took the place of what did, or another
    source's.
    """
    judged = {
        "now": now_us,
        "refused_after": now_us if replay else now_us - REFUSED_AGAIN_US,
        # A replay is no new word of the partner's: it wins over nothing that is newer, whatever its date.
        "believed": NEVER if replay else now_us + FUTURE_TOLERANCE_US,
    }
    if is_postgresql(connection):
        [counts] = fetch(connection, _WRITE_AT_ONCE, rows=[tuple(row) for row in rows], at_once=int(replay), **judged)
    else:
        asks = [(row.ref, row.n, row.event, row.time_us, row.names) for row in rows]
        run(connection, _NOTE_ASKS, rows=asks)
        run(connection, _WRITE_VALUES, rows=[row[: len(_VALUES.split(","))] for row in rows], **judged)
        if any(record.n for record in records.values()):
            [counts] = fetch(connection, _COUNT, rows=[(row.ref, row.n, row.revision, row.doubt) for row in rows])
        else:  # all are new: each value was written, and stands as it was given
            refused = sum(len(row.invalid) for row in rows)
            counts = (refused + sum(len(row.valid) for row in rows), 0, 0, refused, 0)
        changes = [(row.ref, row.n, row.revision, row.source, row.lane, row.due_us) for row in rows]
        run(connection, _MAKE_DUE, rows=changes, now=now_us, at_once=int(replay))
    written, displaced, unchanged, refused, leaving = counts
    merged.superseded += displaced - written
    merged.unchanged += unchanged
    merged.refused += refused
    return bool(leaving)
