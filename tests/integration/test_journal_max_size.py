"""A journal near `max_size` (G8): settled events go before their time, the oldest first; then webhooks are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.errors import JournalFullError
from bridge.journal.event_log import EventFilter
from bridge.journal.retry_log import Filter
from bridge.journal.store import EARLY_AT, REOPEN_AT, Journal
from bridge.model import Event
from bridge.settings import Journal as JournalSettings
from tests.builders import event
from tests.empty_journal import prepare
from tests.fakes import FakeClock

#: Of each event, so that a few thousand outweigh the write-ahead log.
PAYLOAD = "x" * 8_000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def journal(tmp_path: Path, clock: FakeClock) -> Iterator[Journal]:
    url = f"sqlite:///{tmp_path}/journal.db"
    prepare(url)
    opened = Journal(settings=JournalSettings(url=url), clock=clock)
    yield opened
    opened.close()


def append(journal: Journal, clock: FakeClock, events: list[Event]) -> None:
    for at in range(0, len(events), 500):
        journal.append(events[at : at + 500])
        clock.advance(1.1)


def limit(journal: Journal, clock: FakeClock, max_size: float) -> None:
    settings = dataclasses.replace(journal._settings, max_size=int(max_size))
    journal.reconfigure(settings, retry_max_s=900.0)
    clock.advance(1.1)


def kept(journal: Journal) -> set[str]:
    return {logged.event for logged in journal.events(EventFilter())}


def test_f36_near_its_size_settled_events_go_early_and_nothing_else_does(journal: Journal, clock: FakeClock) -> None:
    ignored = [event(f"i{at}", updates=(), payload=PAYLOAD) for at in range(4_000)]
    parked = [event(f"p{at}", updates=(), unmappable="no id", payload=PAYLOAD) for at in range(200)]
    pending = [event(f"w{at}", f"c{at}", payload=PAYLOAD) for at in range(200)]
    append(journal, clock, [*parked, *pending, *ignored])
    assert journal.prune() == 0  # all of it is young

    before = journal.size()
    limit(journal, clock, before / 0.95)
    for _ in range(1_000):
        journal.prune()
        clock.advance(1.1)
        if journal.size() < EARLY_AT * before / 0.95:
            break
    left = kept(journal)
    assert {each.id for each in (*parked, *pending)} <= left
    gone = {each.id for each in ignored} - left
    assert gone == {f"i{at}" for at in range(len(gone))}  # the oldest
    assert 0 < len(gone) < 2_000  # and no more than had to
    while journal.prune():
        pass
    assert kept(journal) == left
    assert journal.append([event("more", payload=PAYLOAD)]).receipts[0].event_id == "more"


def test_f36_at_its_size_webhooks_are_refused_until_there_is_room_again(journal: Journal, clock: FakeClock) -> None:
    """What is parked never goes by itself; what fills it is told."""
    parked = [event(f"p{at}", updates=(), unmappable="no id", payload=PAYLOAD) for at in range(4_000)]
    append(journal, clock, parked)
    full = journal.size()
    limit(journal, clock, full)
    journal.refresh_figures()
    told = rf"max_size {full}\): 0 records wait to be delivered, 4000 entries are parked"
    with pytest.raises(JournalFullError, match=told):
        journal.append([event("more")])
    assert 0 in [journal.prune() for _ in range(20)]  # there is an end to looking for what may go
    assert len(kept(journal)) == 4_000

    journal.discard(journal.entries(Filter(), limit=1_200))
    refused = True
    for _ in range(1_000):
        clock.advance(1.1)
        size = journal.size()
        try:
            journal.refuse_if_full()
        except JournalFullError:
            assert size >= REOPEN_AT * full
        else:
            refused = False
            break
        journal.prune()
    assert not refused
    assert size < REOPEN_AT * full
    assert len(kept(journal)) >= 2_800
