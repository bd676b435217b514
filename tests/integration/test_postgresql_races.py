"""Races that only PostgreSQL can show: two acts on two connections, stepped through statement by statement.

Whatever the interleaving under READ COMMITTED, the journal must end as if one act had followed the other.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import sql

from bridge.errors import JournalError
from bridge.journal.appending import Staged, drop_incomplete
from bridge.journal.control import ValueFilter
from bridge.journal.event_log import EventFilter, KeptEvent, Remapped
from bridge.journal.retry_log import Filter
from bridge.journal.schema import INVARIANTS, metadata
from bridge.journal.store import Journal
from bridge.model import (
    Delivered,
    Outcome,
    Parked,
    PendingRecord,
    PropertyUpdate,
    Reason,
    Refused,
    RetryLater,
    to_us,
)
from bridge.settings import Journal as JournalSettings
from tests.builders import call, event, key
from tests.fakes import FakeClock
from tests.postgres import fresh_database, shared
from tests.stepping import Stepper, interleaved

#: Interleavings with two changes of turn that the long run tries, and where they begin.
MANY = int(os.environ.get("RACE_EXAMPLES", "1200"))
SEED = int(os.environ.get("RACE_SEED", "7"))

Act = Callable[[Journal], Any]


@dataclass
class Stage:
    """A journal in PostgreSQL that can be put back to where every race begins."""

    url: str
    clock: FakeClock
    admin: psycopg.Connection[Any]
    journals: tuple[Journal, Journal]
    taken: list[PendingRecord]
    incomplete: Staged
    rows: Mapping[str, list[tuple[Any, ...]]]
    serial: dict[tuple[str, str], tuple[Any, Any]]

    def reset(self) -> None:
        with self.admin.transaction():
            self.admin.execute("SET LOCAL synchronous_commit = off")
            for table in reversed(metadata.sorted_tables):  # a TRUNCATE makes all of their files anew
                self.admin.execute(f"DELETE FROM {table.name}".encode())
            for table in metadata.sorted_tables:
                columns = ", ".join(f'"{column.name}"' for column in table.columns)
                with self.admin.cursor().copy(f"COPY {table.name} ({columns}) FROM STDIN".encode()) as copy:
                    for row in self.rows[table.name]:
                        copy.write_row(row)
                number = table.autoincrement_column
                if number is not None:
                    self.admin.execute(
                        f"SELECT setval(pg_get_serial_sequence('{table.name}', '{number.name}'), 1000)".encode()
                    )

    def read(self, table: str) -> list[tuple[Any, ...]]:
        columns = [sql.Identifier(column.name) for column in metadata.tables[table].columns]
        return self.admin.execute(
            sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(columns), sql.Identifier(table))
        ).fetchall()

    def outcome(self) -> dict[str, Any]:
        """What the journal says, without the numbers that a transaction which was undone leaves out."""
        query = self.admin.execute
        return {
            "events": sorted(query("SELECT event_id, source, intake, unmappable, waits FROM events").fetchall()),
            "records": sorted(
                query(
                    """SELECT l.object_type, r.record, r.n, r.newest_us, r.attempts, r.failing_since_us, r.retry_us,
                              r.parked_us, r.category, r.message, r.doubt_us, r.doubt_n
                         FROM records r JOIN lanes l ON l.id = r.lane"""
                ).fetchall(),
                key=repr,
            ),
            "desired": sorted(
                query(
                    """SELECT r.record, d.property, d.value, d.time_us, d.n, d.revision, e.event_id, d.source, d.state,
                              d.skip, o.event_id, d.category, d.message, d.settled_us, d.call IS NULL
                         FROM desired d JOIN records r ON r.id = d.record LEFT JOIN events e ON e.seq = d.event
                         LEFT JOIN events o ON o.seq = d.displaced"""
                ).fetchall(),
                key=repr,
            ),
            "asks": sorted(
                query(
                    """SELECT r.record, a.n, e.event_id, a.time_us, a.properties FROM asks a
                         JOIN records r ON r.id = a.record LEFT JOIN events e ON e.seq = a.event"""
                ).fetchall(),
                key=repr,
            ),
            "due": sorted(
                query(
                    """SELECT r.record, due.source, due.due_us, due.since_us FROM due
                         JOIN records r ON r.id = due.record"""
                ).fetchall(),
                key=repr,
            ),
            "staged": sorted(query("SELECT request, incomplete FROM staged").fetchall(), key=repr),
            "calls": sorted(query("SELECT status FROM calls").fetchall(), key=repr),
        }

    def breaches(self) -> list[str]:
        """What must hold between the tables, whatever happened."""
        found = []
        for what, query in INVARIANTS:
            if "json_valid" in query:
                continue
            row = self.admin.execute(f"SELECT count(*) {query}".encode()).fetchone()
            if row is not None and row[0]:
                found.append(f"{row[0]} {what}")
        return found

    def one_after_the_other(self, first: str, second: str) -> tuple[Any, Any]:
        """The outcome when the first act is over before the second begins, and what they return."""
        if (first, second) not in self.serial:
            self.reset()
            returned = {name: shown(ACTS[name](self, self.journals[at])) for at, name in enumerate((first, second))}
            assert self.breaches() == []
            self.serial[first, second] = (returned, self.outcome())
        return self.serial[first, second]

    def statements(self, name: str) -> int:
        """How many an act consists of when nothing disturbs it."""
        self.reset()
        stepper = Stepper(self.journals[0], self.admin)
        stepper.start(lambda journal: ACTS[name](self, journal))
        stepper.join()
        return stepper.at

    def race(self, first: str, second: str, *, after: int, then: int = 1_000_000) -> str | None:
        """What went wrong with this interleaving; None when it ended as if the acts had followed each other."""
        wanted = [self.one_after_the_other(first, second), self.one_after_the_other(second, first)]
        self.reset()
        steppers = [Stepper(journal, self.admin) for journal in self.journals]
        results = interleaved(
            steppers[0],
            lambda journal: ACTS[first](self, journal),
            steppers[1],
            lambda journal: ACTS[second](self, journal),
            after=after,
            then=then,
        )
        returned = dict(zip((first, second), map(shown, results), strict=True))
        how = f"{first}, {second} after {after} statements for {then}"
        if breaches := self.breaches():
            return f"{how}: {breaches}"
        outcome = self.outcome()
        if outcome not in [found for _, found in wanted]:
            return f"{how}: {[difference(outcome, found) for _, found in wanted]}"
        if (returned, outcome) not in wanted:
            return f"{how}: returned {returned}, not one of {[found for found, _ in wanted]}"
        return None


def shown(result: Any) -> str:
    """What an act returned, without the numbers of rows."""
    receipts = getattr(result, "receipts", None)
    return repr(sorted(map(repr, receipts))) if receipts is not None else ""


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name in one:
        if one[name] != other[name]:
            both = (one[name], other[name])
            found[name] = (
                both if isinstance(one[name], int) else [set(both[0]) - set(both[1]), set(both[1]) - set(both[0])]
            )
    return found


# --- the acts -----------------------------------------------------------------------------------


def appends(*events: Any) -> Callable[[Stage, Journal], Any]:
    return lambda stage, journal: journal.append(events)


def settles(outcome: Callable[[PendingRecord], Outcome], *, doubtful: bool = False) -> Callable[[Stage, Journal], Any]:
    def act(stage: Stage, journal: Journal) -> Any:
        outcomes = [] if doubtful else [outcome(record) for record in stage.taken]
        status = None if doubtful else 200
        made = call(stage.taken, began=stage.clock.now(), status=status)
        return journal.settle(stage.taken, outcomes, call=made, doubtful=doubtful)

    return act


def remap(kept: KeptEvent) -> Remapped:
    """As it was, but for e2: today's mapping finds another property for it."""
    record = {"e1": "r1", "e2": "r1", "e3": "r2", "e4": "r3", "e5": "r4"}.get(kept.event_id, "r1")
    properties = {"tier": "remapped"} if kept.event_id == "e2" else {"notes": f"{kept.event_id} again"}
    return Remapped((PropertyUpdate(key(record), properties),))


def replays_retries(stage: Stage, journal: Journal) -> Any:
    return journal.replay(journal.entries(Filter()), remap)


def replays_events(stage: Stage, journal: Journal) -> Any:
    return journal.replay_events(EventFilter(ids=("e1", "e2", "e3", "e4", "e5")), remap, differences=lambda _: None)


def keeps_last(stage: Stage, journal: Journal) -> Any:
    with contextlib.suppress(JournalError):  # it was dropped before
        journal.stage([event("s3", "r2", {"notes": "staged"})], after=stage.incomplete, whole=True)


def drops(stage: Stage, journal: Journal) -> Any:
    journal._database.transact(partial(drop_incomplete, id_=stage.incomplete.id))


def takes(stage: Stage, journal: Journal) -> Any:
    refs = sorted({ref for (ref, *_rest) in stage.rows["records"]})
    journal.take(refs, began_at_us=to_us(stage.clock.now()))


#: The past, so that an event without a time of its own is the newest.
AT = 1_799_999_000.0

ACTS: dict[str, Callable[[Stage, Journal], Any]] = {
    "newer": appends(event("n1", "r1", {"company_name": "newer"}, at=AT + 50)),
    "older": appends(event("o1", "r1", {"company_name": "older", "fresh": "1"}, at=AT - 50)),
    "undated": appends(event("u1", "r1", {"company_name": "undated"})),
    "crosswise": appends(
        event("x1", "r1", {"tier": "x"}, at=AT + 60),
        event("x2", "new-b", at=AT),
        event("x3", "new-a", at=AT),
        event("x4", "r2", {"tier": "x"}, at=AT + 60),
    ),
    "counterwise": appends(
        event("y1", "r2", {"tier": "y"}, at=AT + 70),
        event("y2", "new-a", at=AT),
        event("y3", "new-b", at=AT),
        event("y4", "r1", {"tier": "y"}, at=AT + 50),
    ),
    "doubles": appends(event("d1", "r1", {"tier": "d"}), event("d2", "r2", {"tier": "d"}), event("d3", "fresh-1")),
    "doubles again": appends(
        event("d3", "fresh-1"), event("d2", "r2", {"tier": "d"}), event("d1", "r1", {"tier": "d"})
    ),
    "unparks": appends(event("p1", "r4", {"company_name": "known by now"}, at=AT + 10)),
    "delivered": settles(Delivered),
    "retried": settles(lambda record: RetryLater(record, Reason("UNCONFIRMED", "silent"), delay_s=5)),
    "parked": settles(lambda record: Parked(record, Reason("OBJECT_NOT_FOUND", "no such client"))),
    "refused": settles(lambda record: Refused(record, {"company_name": Reason("VALIDATION_ERROR", "too long")})),
    "lost": settles(Delivered, doubtful=True),
    "taken": takes,
    "retries replayed": replays_retries,
    "events replayed": replays_events,
    "discarded": lambda stage, journal: journal.discard(journal.references(Filter())),
    "resync": lambda stage, journal: journal.resync(ValueFilter()),
    "staged merged": lambda stage, journal: journal.merge_staged(),
    "last piece kept": keeps_last,
    "incomplete dropped": drops,
    "pruned": lambda stage, journal: journal.prune(),
}

#: A dispatcher settles what it took itself, one call at a time for each record.
DELIVERIES = {"delivered", "retried", "parked", "refused", "lost", "taken"}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    url = fresh_database()
    clock = FakeClock()
    settings = JournalSettings(url=url, retention_s=3_600.0)
    journals = (Journal(settings=settings, clock=clock), Journal(settings=settings, clock=clock))
    journal = journals[0]
    journal.append([event("old", "gone", at=AT)])
    journal.append([event("e1", "r1", {"company_name": "first", "notes": "n"}, at=AT)])
    journal.append([event("e5", "r4", at=AT)])
    [*gone] = journal.take([1, 2, 3], began_at_us=to_us(clock.now())).records
    outcomes: list[Outcome] = [Delivered(record) for record in gone[:2]]
    outcomes.append(Parked(gone[2], Reason("OBJECT_NOT_FOUND", "no such client")))
    journal.settle(gone, outcomes, call=call(gone, began=clock.now()), doubtful=False)
    clock.advance(7_200)
    journal.append([event("e2", "r1", {"company_name": "second"}, at=AT + 1), event("e3", "r2", at=AT)])
    journal.append([event("e4", "r3", {"tier": "t"}, at=AT)], staging=[[event("s1", "r1", {"notes": "staged"})]])
    incomplete = journal.stage([event("s2", "r1", {"notes": "staged"})], after=None, whole=False)
    taken = list(journal.take([2, 4, 5], began_at_us=to_us(clock.now())).records)
    clock.advance(100)  # what is staged counts as left behind
    admin = shared().connect(url.rpartition("/")[2])
    admin.execute("SET deadlock_timeout = '10ms'")
    admin.execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET deadlock_timeout = '10ms'".encode())
    made = Stage(url, clock, admin, journals, taken, incomplete, {}, {})
    made.rows = {table.name: made.read(table.name) for table in metadata.sorted_tables}
    for one in journals:
        one._database._engine.dispose()  # type: ignore[attr-defined]  # connections from before the setting
    yield made
    for one in journals:
        one.close()
    admin.close()
    shared().drop(url)


def pairs() -> Iterator[tuple[str, str]]:
    for first, second in itertools.product(ACTS, repeat=2):
        one_process = {first, second} <= DELIVERIES
        # A resync means what was delivered when it looked: what is delivered meanwhile need not be sent once more.
        looked = "resync" in {first, second} and {first, second} & DELIVERIES
        if first != second and not one_process and not looked:
            yield first, second


#: Those of which the journal's docstrings promise something by name.
NAMED = [
    ("crosswise", "counterwise"),
    ("doubles", "doubles again"),
    ("delivered", "newer"),
    ("newer", "delivered"),
    ("retried", "newer"),
    ("parked", "newer"),
    ("lost", "newer"),
    ("retries replayed", "newer"),
    ("newer", "events replayed"),
    ("delivered", "events replayed"),
    ("retries replayed", "retried"),
    ("events replayed", "retries replayed"),
    ("discarded", "unparks"),
    ("last piece kept", "incomplete dropped"),
    ("incomplete dropped", "last piece kept"),
]


@pytest.mark.parametrize("first, second", NAMED, ids=[" × ".join(pair) for pair in NAMED])
def test_two_acts_at_once_end_as_if_one_followed_the_other(stage: Stage, first: str, second: str) -> None:
    """The second one comes after each statement of the first."""
    found = [stage.race(first, second, after=after) for after in range(stage.statements(first) + 1)]
    wrong = [one for one in found if one]
    assert not wrong, "\n".join(wrong)


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_every_two_acts_at_once_end_as_if_one_followed_the_other(stage: Stage) -> None:
    """With two changes of turn, at random places."""
    chance = random.Random(SEED)
    lengths = {name: stage.statements(name) for name in ACTS}
    every = list(pairs())
    wrong = []
    for _ in range(MANY):
        first, second = chance.choice(every)
        after, then = chance.randrange(lengths[first] + 1), chance.randrange(lengths[second] + 2)
        if found := stage.race(first, second, after=after, then=then):
            wrong.append(found)
    assert not wrong, f"{len(wrong)} with RACE_SEED={SEED}:\n" + "\n".join(wrong)
