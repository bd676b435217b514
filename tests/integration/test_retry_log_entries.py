"""Which entries of the retry log are meant, and what is told of them: on both databases."""

from __future__ import annotations

import pytest

from bridge.journal.control import STALLED_US, Act
from bridge.journal.retry_log import Filter, Reference
from bridge.journal.store import Journal
from bridge.model import Outcome, Parked, Reason, Refused, RetryLater, to_us
from bridge.settings import Journal as JournalSettings
from tests.builders import event
from tests.fakes import FakeClock
from tests.integration.test_journal_contract import clock, journal, settle, take, url

__all__ = ["clock", "journal", "url"]  # fixtures

MISSING = Reason("OBJECT_NOT_FOUND", "No such record (50% sure)")


@pytest.fixture
def log(journal: Journal, clock: FakeClock) -> Journal:
    """One entry of each kind: parked, retried, refused twice over, and an event without a record."""
    journal.append(
        [
            event("e-parked", "Ana_1"),
            event("e-retried", "Bob", {"city": "Lugo"}),
            event("e-refused", "Cid", {"tier": "unicorn", "city": "nowhere"}),
        ]
    )
    clock.advance(1)
    journal.append([event("e-lost", updates=(), unmappable="the record id is missing")])
    taken = {record.key.id: record for record in take(journal, clock)}
    refused = {"tier": Reason("VALIDATION_ERROR", "unicorn is none"), "city": Reason("VALIDATION_ERROR", "Nowhere!")}
    outcomes: list[Outcome] = [
        Parked(taken["Ana_1"], MISSING),
        RetryLater(taken["Bob"], Reason("INTERNAL_ERROR", "try again"), 60.0),
        Refused(taken["Cid"], refused),
    ]
    settle(journal, clock, list(taken.values()), *outcomes)
    return journal


def found(journal: Journal, search: str) -> list[str]:
    return [entry.record or entry.event_ids[0] for entry in journal.entries(Filter(search=search))]


@pytest.mark.parametrize(
    "search, records",
    [
        ("ana", ["Ana_1"]),
        ("NA_1", ["Ana_1"]),
        ("n%1", []),
        ("50% SURE", ["Ana_1"]),
        ("e-retried", ["Bob"]),
        ("e-retr", []),
        ("e-refused", ["Cid"]),
        ("nowhere!", ["Cid"]),
        ("is none", ["Cid"]),
        ("e-lost", ["e-lost"]),
        ("id is missing", ["e-lost"]),
        ("o", ["Ana_1", "Bob", "Cid", "e-lost"]),
        ("'; DROP TABLE records", []),
    ],
)
def test_search_finds_parts_of_records_and_messages_and_whole_events(
    log: Journal, search: str, records: list[str]
) -> None:
    """Whatever their case; the signs of a pattern are letters like any other."""
    assert sorted(found(log, search)) == records


def test_an_entry_tells_all_that_is_behind_it(log: Journal) -> None:
    [refused] = log.entries(Filter(record="Cid"))
    assert (refused.properties, refused.event_ids, refused.source) == (("city", "tier"), ("e-refused",), "acme")
    assert sorted(refused.message.split("; ")) == ["Nowhere!", "unicorn is none"]
    [lost] = log.entries(Filter(category="UNMAPPABLE"))
    assert (lost.properties, lost.event_ids, lost.record) == ((), ("e-lost",), None)
    assert log.entries(Filter(record="Nobody")) == []


def test_the_overview_counts_all_and_shows_a_page(log: Journal) -> None:
    """In the order of the list, with the groups of the whole."""
    every = log.entries(Filter())
    pages = [log.overview(Filter(), limit=3, offset=offset) for offset in (0, 3, 6)]
    assert [entry for page in pages for entry in page.page] == every
    assert [page.entries for page in pages] == [4, 4, 4]
    assert sum(group.entries for group in pages[0].groups) == 4
    states = {(entry.category, entry.state) for entry in every}
    assert {(group.category, group.state) for group in pages[0].groups} == states
    assert {state for _, state in states} == {"parked", "retrying"}
    assert not pages[0].more_groups
    assert log.count_entries(Filter(state="parked")) == 3
    assert log.overview(Filter(record="Bob"), limit=1).groups[0].message == "try again"


def test_references_go_on_where_they_stopped(log: Journal) -> None:
    """Also after what was there has gone."""
    every = log.references(Filter())
    assert [entry.id for entry in log.entries(Filter())] == [each.id for each in every]
    assert log.references(Filter(), limit=2) == every[:2]
    assert log.references(Filter(), after=Reference.at(every[1].place)) == every[2:]
    log.discard(every[:3])
    assert [each.id for each in log.references(Filter(), after=every[2])] == [every[3].id]


@pytest.mark.parametrize("place", ["", "7", "7.record", "x.record-1", "7.records-1", "7.record-1; --", "-7.record-1"])
def test_only_places_that_were_told_are_read(place: str) -> None:
    with pytest.raises(ValueError, match="is not what"):
        Reference.at(place)


def test_one_act_at_a_time(journal: Journal, clock: FakeClock) -> None:
    """Until it has ended, or its process must have died; a late word of an older one is not heard."""
    now_us = to_us(clock.now())
    first = Act("one", "replay", "session", {"category": "X"}, 4_000, began_us=now_us, told_us=now_us)
    second = Act("two", "discard", "token", {}, 2, began_us=now_us + STALLED_US + 1, told_us=now_us + STALLED_US + 1)
    assert journal.latest_act() is None
    assert journal.begin_act(first)
    assert not journal.begin_act(Act("early", "replay", "token", {}, 1, began_us=now_us + 1, told_us=now_us + 1))
    assert journal.latest_act() == first
    assert journal.begin_act(second)
    journal.tell_act(first)
    assert journal.latest_act() == second


class CountingTakes(FakeClock):
    """Counting takes so long, as it does with a million entries."""

    seconds = 0.0

    def monotonic(self) -> float:
        self.advance(self.seconds)
        return super().monotonic()


def test_counting_the_log_takes_a_tenth_of_the_time_at_most(url: str) -> None:
    clock = CountingTakes()
    journal = Journal(settings=JournalSettings(url=url), clock=clock)

    def parked_after_one_more(name: str) -> int:
        journal.append([event(name, updates=(), unmappable="the record id is missing")])
        return journal.refresh_figures().parked

    try:
        assert [parked_after_one_more(f"quick-{at}") for at in range(3)] == [1, 2, 3]
        clock.seconds = 2.0
        assert [parked_after_one_more(f"slow-{at}") for at in range(3)] == [4, 4, 4]
        clock.advance(20.0)
        clock.seconds = 0.0
        assert [parked_after_one_more(f"again-{at}") for at in range(2)] == [7, 8]
    finally:
        journal.close()
