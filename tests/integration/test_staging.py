"""Large requests on a real journal: durable as a whole, merged in slices, whoever ends them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.journal import versions
from bridge.journal.database import fetch
from bridge.journal.event_log import EventFilter
from bridge.journal.group_commit import GroupCommit
from bridge.journal.staging import LEFT_AFTER_US, SLICE_EVENTS
from bridge.journal.store import Journal
from bridge.model import Event, Intake, to_us
from bridge.settings import Journal as JournalSettings
from tests.builders import event
from tests.fakes import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def journal(tmp_path: Path, clock: FakeClock) -> Iterator[Journal]:
    settings = JournalSettings(url=f"sqlite:///{tmp_path}/journal.db")
    versions.prepare(settings.url)
    made = Journal(settings=settings, clock=clock)
    yield made
    made.close()


def staged(journal: Journal) -> int:
    with journal._database.read() as connection:
        return int(fetch(connection, "SELECT count(*) FROM staged")[0][0])


def known(journal: Journal) -> set[str]:
    return {logged.event for logged in journal.events(EventFilter())}


def large(number: int, *, at: float | None = 1_700_000_000.0) -> list[Event]:
    return [event(f"e{n}", f"c{n}", {"company_name": f"name {n}"}, at=at) for n in range(number)]


def test_all_of_a_large_request_is_taken_and_nothing_is_left_behind(journal: Journal) -> None:
    commits = GroupCommit(journal=journal)
    events = large(3 * SLICE_EVENTS + 1)
    receipts = commits.append(events)
    assert [receipt.event_id for receipt in receipts] == [one.id for one in events]
    assert {receipt.intake for receipt in receipts} == {Intake.ACCEPTED}
    assert {receipt.intake for receipt in commits.append(events)} == {Intake.DUPLICATE}
    commits.close()
    assert staged(journal) == 0
    assert known(journal) == {one.id for one in events}


def test_what_a_process_left_behind_is_merged_by_whoever_is_on_duty(journal: Journal, clock: FakeClock) -> None:
    """The first slice's transaction was the last thing that it did."""
    events = large(3 * SLICE_EVENTS)
    journal.append(events[:SLICE_EVENTS], staging=[events[SLICE_EVENTS:]])
    assert not journal.merge_left()  # somebody may still be at it
    clock.advance(LEFT_AFTER_US / 1e6 + 1)
    assert journal.merge_left()
    assert known(journal) == {one.id for one in events}
    assert staged(journal) == 0
    assert not journal.merge_left()
    assert journal.refresh_figures().pending == len(events)


def test_what_is_merged_late_keeps_the_time_of_its_arrival(journal: Journal, clock: FakeClock) -> None:
    """Neither without a time of its own nor with one of the future does it beat what arrived since."""
    old = [
        event("undated", "7", {"company_name": "old"}, at=None),
        event("future", "7", {"notes": "old"}, at=clock.now() + 86_400),
    ]
    journal.append([event("first", "other")], staging=[old])
    clock.advance(10)
    journal.append([event("newer", "7", {"company_name": "new", "notes": "new"}, at=None)])
    clock.advance(LEFT_AFTER_US / 1e6 + 1)
    assert journal.merge_left()
    refs = [one.ref for one in journal.due(limit=10, exclude=())]
    taken = {record.key.id: record.values for record in journal.take(refs, began_at_us=to_us(clock.now()))}
    assert {name: value.value for name, value in taken["7"].items()} == {"company_name": "new", "notes": "new"}
