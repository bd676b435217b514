"""Which ids are one record (G4): how those of each lane are compared, and what that makes one.

Mapping gives ids as they are compared (`RecordKey`). What stands in the journal was compared as an older program or
configuration did, so `unite` goes through it at each start and reload, and now and then by whoever delivers. Of records
that became one the newest value of each property stays, and goes to the CRM once more where an older one may have been
written after it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy.engine import Connection

from bridge.journal.database import Database, is_postgresql, portions, run, select
from bridge.journal.due import forget_failures, reconcile
from bridge.journal.merging import stored_lanes
from bridge.journal.schema import State
from bridge.model import Lane, comparable

#: The records that a person means by a text, whose `parameters` these are: in whatever letter case, where that tells
#: none apart. By the index of lane and id.
RECORDS_MEANT = """SELECT o.id FROM lanes l CROSS JOIN records o
                    WHERE o.lane = l.id AND o.record = CASE WHEN l.caseless = 1 THEN :caseless ELSE :record END"""
#: What no id holds: no database takes it either.
_UNFIT = re.compile(r"[\0\ud800-\udfff]")
#: Records looked at in one go, and those that are changed in one transaction.
PAGE, STEP = 20_000, 100


def parameters(text: str) -> dict[str, str]:
    """See `RECORDS_MEANT`. What no id can hold means none."""
    text = "" if _UNFIT.search(text) else text.strip()
    return {"record": comparable(text, caseless=False), "caseless": comparable(text, caseless=True)}


def unite(database: Database, caseless: Mapping[Lane, bool], *, now_us: int) -> int:
    """Compare the ids of these lanes as is said from now on. Returns how many records were others' twins. Raises
    JournalError; then, as after a crash, the next time goes on with it.
    """
    lanes = database.transact(lambda connection: _compare(connection, caseless))
    gone, left = 0, bool(lanes)
    while left:  # once more where one had to make room for another first
        passed = _Pass()
        after: int | None = 0
        while after is not None:
            with database.read() as connection:
                misplaced, after = _misplaced(connection, lanes, after)
            for refs in portions(misplaced, STEP):
                passed.add(database.transact(partial(_step, refs=refs, caseless=lanes, now_us=now_us)))
        gone += passed.gone
        left = passed.put_off > 0 and passed.placed > 0
    database.transact(lambda connection: _note_united(connection, lanes))
    return gone


@dataclass(slots=True)
class _Pass:
    """How many records were put where they belong, how many went into others, and how many wait for that."""

    placed: int = 0
    gone: int = 0
    put_off: int = 0

    def add(self, other: _Pass) -> None:
        self.placed += other.placed
        self.gone += other.gone
        self.put_off += other.put_off


def _compare(connection: Connection, caseless: Mapping[Lane, bool]) -> dict[int, bool]:
    """Note how these lanes compare ids; returns those whose records may have been compared in another way. Where letter
    case does not count that is always so: a program that does not know of it may have run beside this one.

    Whatever is merged from here on is compared so (`bridge.journal.merging`); on PostgreSQL the lock waits for what was
    begun by another word before.
    """
    noted = stored_lanes(connection, set(caseless))
    changed = {noted[lane].id: how for lane, how in caseless.items() if noted[lane].caseless is not how}
    if is_postgresql(connection) and any(noted[lane].caseless is (not how) for lane, how in caseless.items()):
        run(connection, "LOCK TABLE lanes IN ACCESS EXCLUSIVE MODE")
    run(
        connection,
        """UPDATE lanes SET caseless = r.caseless, united = NULL FROM {rows:lane int, caseless int} r
            WHERE lanes.id = r.lane""",
        rows=sorted((number, int(how)) for number, how in changed.items()),
    )
    return {
        noted[lane].id: how
        for lane, how in caseless.items()
        if how or noted[lane].id in changed or not noted[lane].united
    }


def _note_united(connection: Connection, lanes: Mapping[int, bool]) -> None:
    """All records of these lanes stand where they belong, unless another process has said otherwise meanwhile."""
    run(
        connection,
        """UPDATE lanes SET united = 1 FROM {rows:lane int, caseless int} r
            WHERE lanes.id = r.lane AND lanes.caseless = r.caseless AND lanes.united IS NULL""",
        rows=sorted((number, int(how)) for number, how in lanes.items()),
    )


def _misplaced(connection: Connection, caseless: Mapping[int, bool], after: int) -> tuple[list[int], int | None]:
    """Of the next records, `PAGE` at most, those that stand under another text than their ids are compared by, and
    where to go on (None at the end). The database leaves out those of which it is plain that they do not.
    """
    other = "record COLLATE \"C\" ~ '[^ -~]'" if is_postgresql(connection) else "record GLOB '*[^ -~]*'"
    rows = select(
        connection,
        "id, lane, record, spelling",
        # `+`: by no index of lanes, in which all of them would have to be sorted for each page.
        f"""SELECT id, lane, record, spelling FROM records
            WHERE id > :after AND +lane IN (SELECT id FROM {{ids}})
              AND (spelling IS NOT NULL OR record <> lower(record) OR {other}) ORDER BY id LIMIT :page""",
        ids=sorted(caseless),
        after=after,
        page=PAGE,
    )
    found = [ref for ref, lane, record, told in rows if comparable(told or record, caseless=caseless[lane]) != record]
    return found, rows[-1][0] if len(rows) == PAGE else None


@dataclass(frozen=True, slots=True)
class _Record:
    """A row of `records`. `sent`: its id as the CRM is told it."""

    ref: int
    lane: int
    record: str
    sent: str
    n: int
    newest_us: int
    doubt_us: int | None
    doubt_n: int


@dataclass(slots=True)
class _United:
    """Several records that are one. `twins` go into the one that is kept, their changes counted on from its own."""

    kept: _Record
    record: str
    twins: dict[int, int] = field(default_factory=dict)  # by record: what its `n` and revisions are raised by
    n: int = 0
    newest: tuple[int, int, str] = (0, 0, "")  # (time, record, spelling)
    doubt_us: int | None = None
    doubt_n: int = 0  # lower than any before: what a call that is open now puts back must not hide this

    @property
    def refs(self) -> tuple[int, ...]:
        return (self.kept.ref, *self.twins)

    def add(self, one: _Record) -> None:
        if one is not self.kept:
            self.twins[one.ref] = self.n
        self.n += one.n
        self.newest = max(self.newest, (one.newest_us, one.ref, one.sent))
        self.doubt_us = max(filter(None, (self.doubt_us, one.doubt_us)), default=None)
        self.doubt_n = min(self.doubt_n, one.doubt_n - 1, -1)


def _step(connection: Connection, refs: Sequence[int], caseless: Mapping[int, bool], now_us: int) -> _Pass:
    """Put these records where they belong."""
    if is_postgresql(connection):  # no other process may make a record there meanwhile
        run(connection, "LOCK TABLE records IN EXCLUSIVE MODE")
    groups, put_off = _groups(connection, refs, caseless)
    several = [one for one in groups if one.twins]
    _unite_values(connection, several, now_us)
    run(
        connection,
        """UPDATE asks SET record = r.kept, n = asks.n + r.raised FROM {rows:twin int, kept int, raised int} r
            WHERE asks.record = r.twin""",
        rows=_moves(several),
    )
    _unite_due(connection, several)
    run(
        connection,
        "DELETE FROM records WHERE id IN (SELECT id FROM {ids})",
        ids=[twin for one in several for twin in one.twins],
    )
    run(
        connection,
        """UPDATE records SET record = r.record, spelling = r.spelling, n = r.n, newest_us = r.newest_us
             FROM {rows:ref int, record text, spelling text, n int, newest_us int} r WHERE records.id = r.ref""",
        rows=[
            (one.kept.ref, one.record, sent if sent != one.record else None, one.n, newest_us)
            for one in groups
            for newest_us, _, sent in [one.newest]
        ],
    )
    run(
        connection,  # what an open call of one of them may undo is anything
        """UPDATE records SET doubt_us = r.doubt_us, doubt_n = r.doubt_n
             FROM {rows:ref int, doubt_us int, doubt_n int} r WHERE records.id = r.ref""",
        rows=[(one.kept.ref, one.doubt_us, one.doubt_n) for one in several],
    )
    kept = [one.kept.ref for one in several]
    forget_failures(connection, kept)
    reconcile(connection, kept, now_us=now_us, moved=kept)
    gone = sum(len(one.twins) for one in several)
    return _Pass(placed=len(groups), gone=gone, put_off=put_off)


def _groups(connection: Connection, refs: Sequence[int], caseless: Mapping[int, bool]) -> tuple[list[_United], int]:
    """These records, with those that stand where they belong, as what they are to be; and how many have to wait because
    one stands there that belongs elsewhere itself.
    """

    def read(found: str, **given: object) -> Iterator[_Record]:
        for ref, lane, record, spelling, n, newest_us, doubt_us, doubt_n in select(
            connection,
            "id, lane, record, spelling, n, newest_us, doubt_us, doubt_n",
            f"SELECT o.id, o.lane, o.record, o.spelling, o.n, o.newest_us, o.doubt_us, o.doubt_n FROM {found}",
            **given,
        ):
            sent = comparable(spelling or record, caseless=False)
            yield _Record(ref, lane, record, sent, n, newest_us, doubt_us, doubt_n or 0)

    there = {one.ref: one for one in read("records o WHERE o.id IN (SELECT id FROM {ids})", ids=list(refs))}
    belongs = {
        one.ref: (one.lane, compared)
        for one in there.values()
        if (compared := comparable(one.sent, caseless=caseless[one.lane])) != one.record  # else another process did it
    }
    holders = {
        (one.lane, one.record): one
        for one in read(
            "{rows:lane int, record text} r JOIN records o ON o.lane = r.lane AND o.record = r.record",
            rows=sorted(set(belongs.values())),
        )
    }
    members: dict[tuple[int, str], list[_Record]] = {}
    for ref, place in belongs.items():
        members.setdefault(place, []).append(there[ref])
    groups, put_off = [], 0
    for place, found in members.items():
        holder = holders.get(place)
        if holder is not None and comparable(holder.sent, caseless=caseless[holder.lane]) != holder.record:
            put_off += len(found)
            continue
        found.sort(key=lambda one: (one.newest_us, one.ref), reverse=True)
        if holder is not None:
            found.insert(0, holder)
        one = _United(found[0], place[1])
        for member in found:
            one.add(member)
        groups.append(one)
    return groups, put_off


def _moves(several: Sequence[_United]) -> list[tuple[int, int, int]]:
    return sorted((twin, one.kept.ref, raised) for one in several for twin, raised in one.twins.items())


def _unite_values(connection: Connection, several: Sequence[_United], now_us: int) -> None:
    """Keep the newest value of each property; at equal times the later arrival's."""
    group_of = {ref: one for one in several for ref in one.refs}
    standing: dict[tuple[int, str], list[tuple[int, int, int, State, str | None]]] = {}
    for ref, name, value, time_us, event, state in select(
        connection,
        "record, property, value, time_us, event, state",
        """SELECT record, property, value, time_us, event, state FROM desired
            WHERE record IN (SELECT id FROM {ids})""",
        ids=sorted(group_of),
    ):
        place = group_of[ref].kept.ref, name
        standing.setdefault(place, []).append((time_us, event, ref, State(state), value))
    gone, again = [], []
    for (kept, name), values in standing.items():
        *others, (_, _, ref, state, value) = sorted(values, key=lambda row: row[:3])
        gone += [(other, name) for _, _, other, *_ in others]
        if state in {State.DELIVERED, State.UNKNOWN} and any(older != value for *_, older in others):
            again.append((kept, name))
    run(
        connection,
        """DELETE FROM desired WHERE (record, property) IN
             (SELECT record, property FROM {rows:record int, property text} AS given)""",
        rows=gone,
    )
    run(
        connection,
        """UPDATE desired SET record = r.kept, n = desired.n + r.raised, revision = desired.revision + r.raised
             FROM {rows:twin int, kept int, raised int} r WHERE desired.record = r.twin""",
        rows=_moves(several),
    )
    run(
        connection,
        """UPDATE desired SET state = 0, settled_us = :now, call = NULL FROM {rows:record int, property text} r
            WHERE desired.record = r.record AND desired.property = r.property""",
        rows=again,
        now=now_us,
    )
    run(
        connection,  # what an open call has of it is settled by nothing
        """UPDATE desired SET revision = r.n FROM {rows:kept int, n int} r
            WHERE desired.record = r.kept AND desired.state = 0""",
        rows=sorted((one.kept.ref, one.n) for one in several),
    )


def _unite_due(connection: Connection, several: Sequence[_United]) -> None:
    """What is due of twins is due of the one that is kept, and has waited as long."""
    rows = _moves(several)
    run(
        connection,
        """INSERT INTO due (record, source, lane, due_us, since_us)
           SELECT r.kept, due.source, due.lane, min(due.due_us), min(due.since_us)
             FROM {rows:twin int, kept int, raised int} r JOIN due ON due.record = r.twin
            GROUP BY r.kept, due.source, due.lane
           ON CONFLICT (record, source) DO UPDATE
             SET since_us = CASE WHEN excluded.since_us < due.since_us THEN excluded.since_us ELSE due.since_us END""",
        rows=rows,
    )
    run(connection, "DELETE FROM due WHERE record IN (SELECT id FROM {ids})", ids=[twin for twin, *_ in rows])
