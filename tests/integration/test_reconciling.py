"""What is due, and what fails, follows from what waits (`bridge.journal.due`), on both databases."""

from __future__ import annotations

from bridge.journal.control import ValueFilter
from bridge.journal.due import DOUBT_US
from bridge.journal.retry_log import Filter
from bridge.journal.store import Journal
from bridge.model import Delivered, Parked, Reason, RetryLater, to_us
from tests.builders import event
from tests.fakes import FakeClock
from tests.integration.test_journal_contract import clock, journal, settle, silver_confirmed_in_doubt, take, url, values

__all__ = ["clock", "journal", "url"]  # fixtures

DOUBT_S = DOUBT_US / 1e6
AGAIN = Reason("INTERNAL_ERROR", "again")


def sources(journal: Journal) -> list[str]:
    """For whom something is due now."""
    return sorted(due.source for due in journal.due(limit=10, exclude=()))


def deliver(journal: Journal, clock: FakeClock, *names: str) -> None:
    """Confirm these values of the first record, whatever else waits for it."""
    [record] = journal.take([1], began_at_us=to_us(clock.now()), only=names).records
    settle(journal, clock, [record], Delivered(record))


def test_a_source_whose_value_another_replaced_has_nothing_due(journal: Journal) -> None:
    journal.append([event("e1", source="acme")])
    journal.append([event("e2", source="other")])
    assert sources(journal) == ["other"]


def test_an_invalid_value_in_place_of_the_last_that_waited_leaves_nothing_due(journal: Journal) -> None:
    journal.append([event("e1")])
    journal.append([event("e2", properties={}, invalid={"tier": "no such tier"})])
    assert sources(journal) == []


def test_a_source_leaves_when_its_own_values_are_delivered(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold"}, source="acme")])
    journal.append([event("e2", properties={"city": "Lugo"}, source="other")])
    deliver(journal, clock, "tier")
    assert sources(journal) == ["other"]


def test_what_goes_once_more_after_a_doubt_is_due_for_its_own_source(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold", "city": "Vigo"}, source="acme")])
    settle(journal, clock, take(journal, clock), doubtful=True)
    journal.append([event("e2", properties={"tier": "silver"}, source="acme")])
    journal.append([event("e3", properties={"city": "Lugo"}, source="other")])
    deliver(journal, clock, "city")
    deliver(journal, clock, "tier")
    assert sources(journal) == []
    clock.advance(DOUBT_S)
    assert sources(journal) == ["acme", "other"]
    deliver(journal, clock, "tier")
    assert sources(journal) == ["other"]


def test_what_is_left_of_a_resync_waits_since_the_resync(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold", "city": "Lugo"})])
    deliver(journal, clock, "tier", "city")
    clock.advance(86_400)
    journal.resync(ValueFilter())
    resynced_us = to_us(clock.now())
    clock.advance(1)
    deliver(journal, clock, "tier")
    assert journal.refresh_figures().oldest_pending_us == resynced_us


def test_what_was_delivered_meanwhile_does_not_fail(journal: Journal, clock: FakeClock) -> None:
    """A call that got no answer is judged after another has confirmed its values."""
    journal.append([event("e1")])
    [lost] = take(journal, clock)
    settle(journal, clock, [lost], doubtful=True)
    deliver(journal, clock, "tier")
    journal.settle([], [RetryLater(lost, AGAIN, 5.0)], call=None, doubtful=False)
    assert journal.entries(Filter()) == []


def test_what_is_parked_as_it_is_sent_once_more_stays_until_a_replay(journal: Journal, clock: FakeClock) -> None:
    """An event that changes nothing does not bring it back."""
    silver_confirmed_in_doubt(journal, clock)
    clock.advance(DOUBT_S)
    [again] = take(journal, clock)
    settle(journal, clock, [again], Parked(again, AGAIN))
    journal.append([event("e3", properties={"tier": "silver"}, skip_unchanged=True)])
    entries = journal.entries(Filter())
    assert [entry.state for entry in entries] == ["parked"]
    assert sources(journal) == []
    journal.replay(entries, lambda kept: None)
    assert journal.entries(Filter()) == []
    assert [values(record) for record in take(journal, clock)] == [{"tier": "silver"}]


def test_a_failure_ends_with_the_confirmed_value_that_went_once_more(journal: Journal, clock: FakeClock) -> None:
    """An invalid value takes its place: nothing is left to be retried, and nothing that waits."""
    silver_confirmed_in_doubt(journal, clock)
    clock.advance(DOUBT_S + 1)
    [again] = take(journal, clock)
    assert list(again.values) == ["tier"]
    settle(journal, clock, [again], RetryLater(again, AGAIN, 3_600.0))
    journal.append([event("e9", properties={}, invalid={"tier": "no such tier"})])
    assert [(entry.id.split("-")[0], entry.state) for entry in journal.entries(Filter())] == [("refused", "parked")]
    clock.advance(4_000)
    assert sources(journal) == []
