"""What the journal tells of what fills it, and how it gives room back (G8). The long runs are test_endurance.py."""

from __future__ import annotations

import dataclasses
import itertools
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from bridge.errors import JournalFullError
from bridge.journal.database import fetch, run
from bridge.journal.retry_log import Filter
from bridge.journal.sqlite.database import SPARE_PAGES
from bridge.journal.store import Journal
from bridge.model import (
    Delivered,
    Event,
    Ignored,
    Lane,
    Outcome,
    Parked,
    PendingRecord,
    Reason,
    Refused,
    RetryLater,
    SystemClock,
    to_us,
)
from bridge.settings import Journal as JournalSettings
from tests.builders import LANE, call, event
from tests.empty_journal import prepare
from tests.fakes import FakeClock
from tests.statements import scans, written

SERVICES = Lane("partner_services", "acme_service_id")
REASON = Reason("VALIDATION_ERROR", "no")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def journal(journal_url: str, clock: FakeClock) -> Iterator[Journal]:
    opened = Journal(settings=JournalSettings(url=journal_url, max_pending=6), clock=clock)
    yield opened
    opened.close()


def test_f36_the_figures_tell_whose_records_wait(journal: Journal, clock: FakeClock) -> None:
    """Most first; a record that waits for two sources is pending once, and waits for both."""
    asked = [("a1", "1", "acme", LANE), ("a2", "2", "acme", LANE), ("a3", "9", "acme", SERVICES)]
    asked += [
        ("b1", "1", "beta", LANE),
        ("b2", "3", "beta", LANE),
        ("b3", "4", "beta", LANE),
        ("b4", "5", "beta", LANE),
    ]
    journal.append(
        [event(name, record, {source: "x"}, source=source, lane=lane) for name, record, source, lane in asked]
    )
    figures = journal.refresh_figures()
    assert figures.pending == 6
    assert figures.waiting == (
        ("beta", "partner_clients", 4),
        ("acme", "partner_clients", 2),
        ("acme", "partner_services", 1),
    )
    assert journal.figures() == figures
    clock.advance(2)
    with pytest.raises(JournalFullError, match=r"max_pending 6\), most of them from beta for partner_clients"):
        journal.refuse_if_full()


def test_every_queue_is_found_in_order(journal: Journal) -> None:
    asked = [(source, lane) for lane in (LANE, SERVICES) for source in ("a", "b", "c")]
    for source, lane in asked:
        journal.append(
            [event(f"{lane.object_type} {each}", f"{source}{each}", source=source, lane=lane) for each in range(3)]
        )
    rows = journal.due(limit=2, exclude=())
    assert [(row.source, row.lane) for row in rows] == [each for each in asked for _ in range(2)]


def test_figures_of_a_later_version_are_read(journal: Journal) -> None:
    """A rollback finds what the newer program kept, and goes on without it; an upgrade misses what it did not."""
    kept = dataclasses.asdict(journal.refresh_figures())
    del kept["waiting"]
    with journal._database.write() as connection:
        text = orjson.dumps(kept | {"something_new": [1]}).decode()
        run(connection, "UPDATE dispatcher SET figures = :figures", figures=text)
    assert journal.figures().pending == 0
    assert journal.figures().waiting == ()


def test_f55_pruned_room_is_given_back_in_small_steps(tmp_path: Path) -> None:
    """All but a little of it, page by page, until nothing is left to do."""
    url = f"sqlite:///{tmp_path}/journal.db"
    prepare(url)
    journal = Journal(settings=JournalSettings(url=url, retention_s=0.001), clock=SystemClock())
    raw = sqlite3.connect(tmp_path / "journal.db")
    try:
        journal.append([event(f"e{each}", updates=(), unmappable="no id", payload="x" * 4000) for each in range(1500)])
        journal.discard(journal.entries(Filter()))
        before = raw.execute("PRAGMA page_count").fetchone()[0]
        while journal.prune():
            pass
        assert raw.execute("PRAGMA freelist_count").fetchone()[0] <= SPARE_PAGES
        assert raw.execute("PRAGMA page_count").fetchone()[0] < before / 3
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        raw.close()
        journal.close()


def test_no_step_of_intake_delivery_or_retention_reads_a_whole_table(tmp_path: Path) -> None:
    """While the write lock is held: however much there is, others wait as long as for little."""
    url = f"sqlite:///{tmp_path}/journal.db"
    prepare(url)
    clock = FakeClock()
    with written() as statements:
        journal = Journal(settings=JournalSettings(url=url), clock=clock)
        for turn in range(3):
            events = [event(f"e{turn}-{n}", f"c{n}", {"tier": f"{turn}"}, invalid={"city": "no"}) for n in range(5)]
            journal.append([dataclasses.replace(one, root=f"root {turn}") for one in events], staging=[events])
            settle_all(journal, clock, Delivered, lambda one: RetryLater(one, REASON, 1.0), Ignored)
            clock.advance(2)
            settle_all(journal, clock, Delivered, lambda one: Parked(one, REASON))
            clock.advance(200)
            assert journal.merge_staged()
            settle_all(journal, clock, lambda one: Refused(one, dict.fromkeys(one.values, REASON)))
        clock.advance(40 * 86_400)
        assert journal.prune()
        journal.close()
    assert len(statements) > 100
    assert scans(tmp_path / "journal.db", statements) == set()


def settle_all(journal: Journal, clock: FakeClock, *outcomes: Callable[[PendingRecord], Outcome]) -> None:
    """One call with all that is due; its records fare in turn as `outcomes` say."""
    taken = journal.take([row.ref for row in journal.due(limit=10, exclude=())], began_at_us=to_us(clock.now())).records
    judged = [outcome(record) for record, outcome in zip(taken, itertools.cycle(outcomes), strict=False)]
    journal.settle(taken, judged, call=call(taken, began=clock.now(), status=200), doubtful=False)


def test_a_body_is_kept_as_long_as_an_event_of_it(journal: Journal, clock: FakeClock) -> None:
    def rooted(name: str) -> Event:
        return dataclasses.replace(event(name, name), root="one body")

    def bodies() -> int:
        with journal._database.read() as connection:
            return int(fetch(connection, "SELECT count(*) FROM roots")[0][0])

    journal.append([rooted("e1")])
    settle_all(journal, clock, Delivered)
    clock.advance(4 * 86_400)
    journal.append([rooted("e2")])
    settle_all(journal, clock, Delivered)
    clock.advance(4 * 86_400)
    journal.prune()
    assert (journal.trace_event("e1"), bodies()) == ([], 1)
    clock.advance(4 * 86_400)
    journal.prune()
    assert (journal.trace_event("e2"), bodies()) == ([], 0)
