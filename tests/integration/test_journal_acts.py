"""People's acts beside what goes on: a discard gives up what was confirmed, and no act fills the journal unnoticed."""

from __future__ import annotations

import pytest

from bridge.delivery.dispatcher import ClockWatch
from bridge.errors import JournalFullError
from bridge.journal import retry_log
from bridge.journal.control import Resynced, ValueFilter
from bridge.journal.event_log import EventFilter, KeptEvent, Remapped
from bridge.journal.replay import Difference
from bridge.journal.retry_log import Discarded, Filter
from bridge.journal.store import Journal
from bridge.model import Delivered, Parked, PropertyUpdate, Reason, Refused, RetryLater, to_us
from bridge.settings import Journal as JournalSettings
from tests.builders import event, key
from tests.fakes import FakeClock
from tests.integration.test_journal_contract import clock, journal, settle, take, url, values

__all__ = ["clock", "journal", "url"]  # fixtures

MISSING = Reason("OBJECT_NOT_FOUND", "not there")
BAD = Reason("VALIDATION_ERROR", "not valid")


def small(url: str, clock: FakeClock, *, max_pending: int) -> Journal:
    return Journal(settings=JournalSettings(url=url, max_pending=max_pending), clock=clock)


def as_sent(kept: KeptEvent) -> Remapped:
    """The mapping is what it was: event e7 asked record 7."""
    return Remapped((PropertyUpdate(key(kept.event_id[1:]), {"tier": "gold"}),))


def mended(kept: KeptEvent) -> Remapped:
    return Remapped((PropertyUpdate(key(kept.event_id[1:]), {"tier": "silver"}),))


# --- discard ------------------------------------------------------------------------------------


def test_a_discard_spares_what_was_replayed_or_came_back_since_it_was_counted(
    journal: Journal, clock: FakeClock
) -> None:
    journal.append([event("e1", "1"), event("e2", "2"), event("e3", "3")])
    taken = take(journal, clock)
    settle(journal, clock, taken, *(Parked(record, MISSING) for record in taken))
    counted = Filter(seen_us=to_us(clock.now()))
    assert len(journal.entries(counted)) == 3
    clock.advance(5)
    journal.append([event("n1", "1", {"city": "Lugo"})])  # brings record 1 back, merged
    journal.append([event("e4", "4")])
    taken = [record for record in take(journal, clock) if record.key.id == "4"]
    settle(journal, clock, taken, Parked(taken[0], MISSING))  # nobody has seen this one
    assert journal.discard(journal.references(counted), counted) == Discarded(entries=2, values=2)
    assert [entry.record for entry in journal.entries(Filter())] == ["4"]
    assert {record.key.id: values(record) for record in take(journal, clock)} == {"1": {"tier": "gold", "city": "Lugo"}}


def test_a_discard_spares_the_newer_value_of_a_record_that_is_retried(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", "1", {"tier": "gold", "city": "Lugo"})])
    taken = take(journal, clock)
    settle(journal, clock, taken, RetryLater(taken[0], MISSING, 60))
    counted = Filter(state="retrying", seen_us=to_us(clock.now()))
    clock.advance(5)
    journal.append([event("e2", "1", {"tier": "silver"})])
    assert journal.discard(journal.references(counted), counted) == Discarded(entries=1, values=1)
    [entry] = journal.entries(Filter())
    assert (entry.state, entry.properties, entry.event_ids) == ("retrying", ("tier",), ("e2",))
    clock.advance(60)
    assert [values(record) for record in take(journal, clock)] == [{"tier": "silver"}]


def test_a_discard_spares_a_property_that_was_refused_since(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", "1", {"tier": "platinum", "city": "?"})])
    taken = take(journal, clock)
    settle(journal, clock, taken, Refused(taken[0], {"tier": BAD}))
    counted = Filter(seen_us=to_us(clock.now()))
    clock.advance(5)
    taken = take(journal, clock)
    settle(journal, clock, taken, Refused(taken[0], {"city": BAD}))
    assert journal.discard(journal.references(counted), counted) == Discarded(entries=1, values=1)
    assert [entry.properties for entry in journal.entries(Filter())] == [("city",)]


def test_a_discard_applies_its_filter_in_the_transaction_that_gives_up(
    journal: Journal, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the listing and the second step the record of that step is delivered to."""
    monkeypatch.setattr(retry_log, "STEP", 1)
    journal.append([event("e1", "1"), event("e2", "2")])
    taken = take(journal, clock)
    settle(journal, clock, taken, *(Parked(record, MISSING) for record in taken))

    def meanwhile(_done: int) -> None:
        if journal.append([event("n2", "2", {"city": "Vigo"})]).receipts[0].intake == "accepted":
            [record] = take(journal, clock)
            settle(journal, clock, [record], Delivered(record))

    assert journal.discard(journal.references(Filter()), progress=meanwhile) == Discarded(entries=1, values=1)
    assert {value["property"]: value["state"] for value in journal.trace_record("2")[0]["values"]} == {
        "tier": "delivered",
        "city": "delivered",
    }


def test_entries_are_found_by_id_and_nonsense_finds_none(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", "1"), event("e2", updates=(), unmappable="no id")])
    taken = take(journal, clock)
    settle(journal, clock, taken, Parked(taken[0], MISSING))
    ids = [entry.id for entry in journal.entries(Filter())]
    assert len(ids) == 2
    for entry_id in ids:
        assert [entry.id for entry in journal.entries(Filter(ids=(entry_id,)))] == [entry_id]
    for nonsense in ("record-", "record-x", "record-²", f"record-{10**30}", "1", "", "event-1) OR (1=1"):
        assert journal.entries(Filter(ids=(nonsense,))) == []


# --- room ---------------------------------------------------------------------------------------


def test_replaying_what_is_parked_is_refused_before_it_begins_when_it_would_stop_intake(
    url: str, clock: FakeClock
) -> None:
    journal = small(url, clock, max_pending=4)
    journal.append([event(f"e{at}", str(at)) for at in range(3)])
    taken = take(journal, clock)
    settle(journal, clock, taken, *(Parked(record, MISSING) for record in taken))
    journal.append([event("e7", "7")])
    with pytest.raises(JournalFullError, match=r"3 records to send and 1 that wait .*max_pending \(4\)"):
        journal.replay(journal.entries(Filter()), as_sent)
    assert len(journal.entries(Filter())) == 3
    assert journal.replay(journal.entries(Filter(record="1")), as_sent).entries == 1
    journal.close()


def test_what_is_retried_may_be_hastened_in_a_full_journal_too(url: str, clock: FakeClock) -> None:
    """It is pending already."""
    journal = small(url, clock, max_pending=1)
    journal.append([event("e1", "1")])
    taken = take(journal, clock)
    settle(journal, clock, taken, RetryLater(taken[0], MISSING, 600))
    assert take(journal, clock) == []
    assert journal.replay(journal.entries(Filter()), as_sent).entries == 1
    assert len(take(journal, clock)) == 1
    journal.close()


def test_an_act_ends_between_two_steps_when_the_journal_fills_meanwhile(
    url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells how far it came; what it did stays done, and a second run does the rest."""
    monkeypatch.setattr("bridge.journal.event_log.PAGE", 2)
    monkeypatch.setattr("bridge.journal.control.STEP", 2)
    journal = small(url, clock, max_pending=4)
    for at in range(0, 6, 3):
        journal.append([event(f"e{n}", str(n)) for n in range(at, at + 3)])
        taken = take(journal, clock)
        settle(journal, clock, taken, *(Delivered(record) for record in taken))
    assert journal.refresh_figures().pending == 0

    with pytest.raises(JournalFullError, match=r"max_pending \(4\).*\(4 events are replayed\)"):
        journal.replay_events(EventFilter(), mended)
    assert len(take(journal, clock)) == 4
    foreseen: list[Difference] = []
    journal.replay_events(EventFilter(), mended, dry_run=True, differences=foreseen.extend)  # tells of the rest
    assert {found.event for found in foreseen} == {"e4", "e5"}
    taken = take(journal, clock)
    settle(journal, clock, taken, *(Delivered(record) for record in taken))
    assert journal.replay_events(EventFilter(), mended).events == 6
    assert len(take(journal, clock)) == 2
    taken = take(journal, clock)
    settle(journal, clock, taken, *(Delivered(record) for record in taken))

    def arrive(records: int) -> None:
        journal.append([event(f"m{clock.now()}-{n}", f"more {clock.now()}-{n}") for n in range(records)])
        clock.advance(2)

    chosen = ValueFilter(object_type="partner_clients")
    with pytest.raises(JournalFullError, match="6 records to send"):
        journal.resync(chosen)
    larger = small(url, clock, max_pending=7)
    with pytest.raises(JournalFullError, match=r"\(4 records are due\)"):
        larger.resync(chosen, progress=arrive)
    larger.close()
    assert Resynced(0, 0) == journal.count_known(ValueFilter(record="0"))  # it is due, not delivered
    journal.close()


# --- the clock ----------------------------------------------------------------------------------


def test_a_clock_that_is_set_is_noticed_and_one_that_is_corrected_is_not() -> None:
    watch = ClockWatch()
    assert watch.set_by_us(1.0, 1_000_000) == 0
    assert watch.set_by_us(2.0, 2_400_000) == 0
    assert watch.set_by_us(3.0, 3_000_000 + to_us(86_400)) == to_us(86_400)
    assert watch.set_by_us(4.0, 4_000_000 + to_us(86_400)) == to_us(86_400)  # until it is believed
    watch.believe(4.0, 4_000_000 + to_us(86_400))
    assert watch.set_by_us(5.0, 5_000_000) == -to_us(86_400)
