"""Whatever is read of the journal at once is bounded in bytes, also where each record and event is large (G8)."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from bridge.journal import control, event_log, retry_log
from bridge.journal.control import ValueFilter
from bridge.journal.event_log import EventFilter, KeptEvent, Remapped
from bridge.journal.replay import Difference
from bridge.journal.retry_log import Filter
from bridge.journal.store import Journal
from bridge.model import Delivered, Parked, PendingRecord, PropertyUpdate, Reason, to_us
from bridge.settings import Journal as JournalSettings
from tests.backends import journal_url
from tests.builders import call, event, key
from tests.fakes import FakeClock

__all__ = ["journal_url"]

#: Events whose payloads come to several times what is read at once.
EVENTS, LONGEST = 18, 65_536
VALUE = "x" * LONGEST
NAMES = [f"p{at}" for at in range(8)]
#: What a portion may become in memory, read and mapped.
MOST = 8 * event_log.PORTION_BYTES


@pytest.fixture
def journal(journal_url: str) -> Iterator[Journal]:
    opened = Journal(settings=JournalSettings(url=journal_url), clock=FakeClock())
    for number in range(EVENTS):
        opened.append([asked(f"e{number}", f"c{number}")])
    yield opened
    opened.close()


def asked(name: str, record: str) -> Any:
    values = dict.fromkeys(NAMES, VALUE)
    return event(name, record, values, payload=orjson.dumps({"id": name, **values}).decode())


def mapped(kept_event: KeptEvent) -> Remapped:
    """The same once more, with other values."""
    payload = orjson.loads(kept_event.payload)
    values = {name: "y" + payload[name][1:] for name in NAMES}
    return Remapped((PropertyUpdate(key(f"c{payload['id'][1:]}"), values),))


def settle(journal: Journal, outcome: Callable[[PendingRecord], Any]) -> None:
    """Judge everything that is due."""
    while due := journal.due(limit=100, exclude=()):
        taken = journal.take([one.ref for one in due], began_at_us=to_us(FakeClock().now())).records
        done = call(taken, began=FakeClock().now())
        journal.settle(taken, [outcome(record) for record in taken], call=done, doubtful=False)


def peak(act: Callable[[], Any]) -> int:
    """The most bytes that were held at any time while it went on, beside what was there before."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_replay_of_events_reads_so_much_at_once(journal: Journal) -> None:
    """Its differences tell the beginnings of long values."""
    found: list[Difference] = []

    def replay(*, dry_run: bool) -> None:
        done = journal.replay_events(EventFilter(), mapped, dry_run=dry_run, differences=found.extend)
        assert done.events == EVENTS

    assert peak(lambda: replay(dry_run=True)) < MOST
    assert len(found) == EVENTS * len(NAMES)
    assert {len(one.old or "") for one in found} == {retry_log.VALUE + 1}
    assert peak(lambda: replay(dry_run=False)) < MOST
    assert {word.value[0] for record in _all_due(journal) for word in record.values.values()} == {"y"}


def test_a_replay_of_events_ends_between_portions_too(journal: Journal) -> None:
    """So that an answer over HTTP keeps its time however large a page's events are."""
    after, steps, events = 0, 0, 0
    while True:
        done = journal.replay_events(EventFilter(), mapped, after=after, enough=lambda: True)
        after, steps, events = done.after, steps + 1, events + done.events
        if not after:
            break
    assert events == EVENTS
    assert steps > EVENTS * len(NAMES) * LONGEST // event_log.PORTION_BYTES


def test_a_replay_of_the_retry_log_reads_so_much_at_once(journal: Journal) -> None:
    settle(journal, lambda record: Parked(record, Reason("OBJECT_NOT_FOUND", "no such record")))
    entries = journal.references(Filter())
    assert len(entries) == EVENTS

    def replay() -> None:
        assert journal.replay(entries, mapped).events == EVENTS

    assert peak(replay) < MOST
    assert journal.entries(Filter()) == []


def test_a_resync_writes_so_much_at_once(journal: Journal) -> None:
    """In many small transactions, and all of it in the end."""
    settle(journal, Delivered)
    steps: list[int] = []
    done = journal.resync(ValueFilter(), progress=steps.append)
    assert (done.records, done.values) == (EVENTS, EVENTS * len(NAMES))
    assert sum(step > 0 for step in steps) > 1
    assert max(steps) * len(NAMES) * LONGEST < control.STEP_BYTES + len(NAMES) * LONGEST
    assert len({record.key for record in _all_due(journal)}) == EVENTS


def test_what_people_look_at_tells_the_beginnings_of_long_values(journal: Journal) -> None:
    journal.append([asked("e99", "c0")])
    for story in (*journal.trace_record("c0"), *journal.trace_event("e99")):
        assert len(orjson.dumps(story)) < 50_000
    [record] = journal.trace_record("c0")
    assert {one["value"] for one in record["values"]} == {"x" * retry_log.VALUE + "…"}
    settle(journal, lambda record: Parked(record, Reason("OBJECT_NOT_FOUND", "no such record")))
    [entry] = journal.entries(Filter(record="c0"))
    assert [len(payload) for payload in journal.payloads(entry).values()] == [retry_log.PAYLOAD + 1]


def _all_due(journal: Journal) -> list[PendingRecord]:
    """Everything that is due, as calls would take it."""
    found: list[PendingRecord] = []

    def deliver(record: PendingRecord) -> Delivered:
        found.append(record)
        return Delivered(record)

    settle(journal, deliver)
    return found
