"""Polls of the queue of due records on PostgreSQL, which do not read again what is over (`bridge.journal.due`)."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from bridge.journal.due import WHOLE_EVERY_S
from bridge.journal.store import Journal
from bridge.model import Delivered, Lane, to_us
from bridge.settings import Journal as JournalSettings
from tests.builders import call, event
from tests.fakes import FakeClock
from tests.postgres import shared

ALL = 100


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def journal(database_url: str, clock: FakeClock) -> Iterator[Journal]:
    opened = Journal(settings=JournalSettings(url=database_url), clock=clock)
    yield opened
    opened.close()


def due(journal: Journal) -> list[tuple[str, str, int]]:
    return [(one.lane.object_type, one.source, one.ref) for one in journal.due(limit=ALL, exclude=())]


def test_a_new_queue_is_seen_at_once(journal: Journal) -> None:
    """Before, between and behind those that are known."""
    found = []
    for number, (lane, source) in enumerate(
        [("b", "m"), ("b", "x"), ("b", "a"), ("b", "p"), ("c", "m"), ("a", "m"), ("b", "n"), ("c", "a"), ("c", "z")]
    ):
        journal.append([event(f"e{number}", str(number), source=source, lane=Lane(lane))])
        found.append((lane, source))
        assert sorted({(lane, source) for lane, source, _ in due(journal)}) == sorted(found)


def test_what_was_committed_late_is_seen_in_a_second(journal: Journal, clock: FakeClock, database_url: str) -> None:
    journal.append([event("e1", "1")])
    assert len(due(journal)) == 1
    journal.append([event("late", "2")])
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE due SET due_us = due_us - 5000000 WHERE record = 2")
    assert [ref for *_, ref in due(journal)] == [1]
    clock.advance(WHOLE_EVERY_S + 5)
    assert [ref for *_, ref in due(journal)] == [2, 1]


def test_a_clock_that_was_set_back_hides_nothing(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", "1")])
    assert len(due(journal)) == 1
    clock.jump(-3600)
    journal.append([event("e2", "2")])
    assert sorted(ref for *_, ref in due(journal)) == [1, 2]


def test_dead_rows_are_not_read_again_beside_an_old_snapshot(
    journal: Journal, clock: FakeClock, database_url: str
) -> None:
    """A poll costs as much as what it finds, however much was delivered since the snapshot was taken."""
    with shared().connect(database_url.rpartition("/")[2]) as old, old.transaction():
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM due")
        for step in range(4):
            clock.advance(10)
            journal.append([event(f"{step}-{n}", f"{step}-{n}") for n in range(500)])
            taken = journal.take(
                [one.ref for one in journal.due(limit=500, exclude=())], began_at_us=to_us(clock.now())
            ).records
            outcomes = [Delivered(record) for record in taken]
            journal.settle(taken, outcomes, call=call(taken, began=clock.now()), doubtful=False)
        clock.advance(10)
        journal.append([event("last", "last")])
        from_the_beginning, shortly_before = pages_read(journal), pages_read(journal)
    assert from_the_beginning > 15
    assert shortly_before < 7


def pages_read(journal: Journal) -> int:
    """Pages that the search for the oldest due rows reads, after one more poll: the dead ones fill a page by 100."""
    assert len(due(journal)) == 1
    with journal._database.read() as connection:
        plan = connection.exec_driver_sql(
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT record FROM due WHERE lane = 1 AND source = 'acme' "
            f"AND due_us >= {journal._due_scan.from_us((1, 'acme'))} ORDER BY due_us"
        ).scalar_one()
    return int(plan[0]["Plan"]["Shared Hit Blocks"])
