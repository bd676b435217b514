"""What the journal tells of the properties that a source's events asked for: what has stopped, whoever read it."""

from __future__ import annotations

import pytest

from bridge.journal import event_log
from bridge.journal.event_log import ENOUGH, SAMPLE, Asking, Presence
from bridge.journal.store import Journal
from bridge.model import Event, to_us
from tests.builders import event
from tests.fakes import FakeClock

HOUR_S = 3_600.0


class Sender:
    """Sends events with ids of their own, a second apart, a hundred at once."""

    def __init__(self, journal: Journal, clock: FakeClock) -> None:
        self._journal, self._clock, self._sent = journal, clock, 0

    def send(self, number: int, *names: str, source: str = "acme", every: int = 1) -> None:
        """Every so manieth event has these properties beside `name`."""
        events: list[Event] = []
        for at in range(number):
            self._sent += 1
            found = {"name": "A"} | (dict.fromkeys(names, "x") if at % every == 0 else {})
            events.append(event(f"{source}-{self._sent}", str(self._sent), found, source=source))
        for first in range(0, number, 100):
            self._clock.advance(100)
            self._journal.append(events[first : first + 100])


@pytest.fixture
def sender(journal: Journal, clock: FakeClock) -> Sender:
    return Sender(journal, clock)


def test_a_property_that_used_to_come_has_stopped(journal: Journal, clock: FakeClock, sender: Sender) -> None:
    """With the share of before, and when it came last."""
    sender.send(100, "tier")
    last_us = to_us(clock.now())
    sender.send(50)
    found = journal.presence("acme")
    share = found.of("tier")
    assert share.stopped
    assert (share.late, share.late_events, share.lacking) == (0, 50, 50)
    assert (share.earlier, share.earlier_events, share.last_us) == (100, 100, last_us)
    assert not found.of("name").stopped
    assert (found.of("name").late, found.of("name").lacking, found.of("name").since_us) == (50, 0, None)
    never = found.of("titel")
    assert (never.stopped, never.late, never.lacking, never.last_us) == (False, 0, 150, None)


def test_the_events_of_others_tell_nothing(journal: Journal, sender: Sender) -> None:
    sender.send(100, "tier")
    sender.send(100, source="shop")
    sender.send(100, "tier", source="beta")
    assert journal.presence("acme").of("tier").lacking == 0
    assert not journal.presence("shop").of("tier").stopped
    assert journal.presence("nobody").of("tier").late_events == 0


def test_what_stopped_long_ago_is_told_by_the_events_of_the_day_before(
    journal: Journal, clock: FakeClock, sender: Sender
) -> None:
    """All events that are looked at without a gap lack it by then."""
    sender.send(200, "tier")
    clock.advance(30 * HOUR_S)
    sender.send(SAMPLE + 100)
    share = journal.presence("acme").of("tier")
    assert share.stopped
    assert (share.lacking, share.last_us) == (SAMPLE, None)
    assert (share.earlier, share.earlier_events) == (200, 200)
    assert share.since_us is not None


@pytest.mark.parametrize("before, after", [(ENOUGH - 1, 100), (100, ENOUGH - 1), (5, 5), (0, 0), (0, 1)])
def test_a_few_events_tell_nothing(journal: Journal, sender: Sender, before: int, after: int) -> None:
    sender.send(before, "tier")
    sender.send(after)
    assert not journal.presence("acme").of("tier").stopped


def test_what_comes_now_and_then_has_not_stopped(journal: Journal, sender: Sender) -> None:
    """One in ten may be missing for a while."""
    sender.send(400, "tier", every=10)
    sender.send(45)
    share = journal.presence("acme").of("tier")
    assert (share.late, share.lacking) == (0, 54)
    assert not share.stopped


def test_an_event_that_asks_several_records_counts_once(journal: Journal, sender: Sender) -> None:
    """And one that asks for nothing does not count at all."""
    sender.send(1)
    both = event("both", "b1", {"tier": "x"}).updates + event("both", "b2", {"city": "x"}).updates
    journal.append([event("both", updates=both), event("none", updates=(), unmappable="the record id is missing")])
    found = journal.presence("acme")
    assert [each.properties for each in found.newest] == [{"tier", "city"}, {"name"}]


def test_an_invalid_value_has_come(journal: Journal) -> None:
    """That it cannot be taken is told elsewhere."""
    journal.append([event("e1", "1", {"name": "A"}, invalid={"tier": "is 'Iron'"})])
    assert journal.presence("acme").of("tier").late == 1


def test_a_bounded_number_of_events_is_walked_through(
    journal: Journal, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a source of which there are none among them nothing is known."""
    monkeypatch.setattr(event_log, "WALKED", 150)
    sender.send(100, "tier")
    sender.send(100, source="shop")
    assert len(journal.presence("acme").newest) == 50
    sender.send(50, source="shop")
    assert journal.presence("acme").of("tier").late_events == 0
    assert len(journal.presence("shop").newest) == 150


def test_events_of_another_block_are_no_sign_that_a_property_has_stopped() -> None:
    """One source, two kinds of events: a batch of the one kind says nothing of what the other brings."""
    kinds = {"contact": frozenset({"firstname", "email"}), "deal": frozenset({"amount"})}
    told = ["deal"] * 30 + ["contact", "deal"] * 200
    found = Presence(tuple(Asking(at, -at, kinds[kind]) for at, kind in enumerate(told)))
    assert found.of("firstname").stopped
    share = found.of("firstname", kinds["contact"])
    assert (share.stopped, share.late, share.late_events) == (False, 50, 50)
