"""Large requests on a real journal: durable as a whole, merged in slices, whoever ends them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import JournalError
from bridge.journal.appending import (
    ABANDONED_AFTER_US,
    PIECE_EVENTS,
    SLICE_BYTES,
    SLICE_EVENTS,
    decode,
    encode,
    pieces,
    slices,
)
from bridge.journal.database import fetch
from bridge.journal.event_log import EventFilter
from bridge.journal.group_commit import GroupCommit
from bridge.journal.retry_log import Filter
from bridge.journal.store import Journal
from bridge.model import Event, Intake, Lane, PropertyUpdate, RecordKey, to_us
from tests.builders import event
from tests.fakes import FakeClock


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
    assert not journal.merge_staged()  # somebody may still be at it
    clock.advance(ABANDONED_AFTER_US / 1e6 + 1)
    assert journal.merge_staged()
    assert known(journal) == {one.id for one in events}
    assert staged(journal) == 0
    assert not journal.merge_staged()
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
    clock.advance(ABANDONED_AFTER_US / 1e6 + 1)
    assert journal.merge_staged()
    refs = [one.ref for one in journal.due(limit=10, exclude=())]
    taken = {record.key.id: record.values for record in journal.take(refs, began_at_us=to_us(clock.now())).records}
    assert {name: value.value for name, value in taken["7"].items()} == {"company_name": "new", "notes": "new"}


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TEXTS_BY_NAME = st.dictionaries(TEXTS, TEXTS, max_size=3)
UPDATES = st.builds(
    PropertyUpdate,
    record=st.builds(RecordKey, lane=st.builds(Lane, TEXTS, TEXTS), id=TEXTS),
    properties=TEXTS_BY_NAME,
    invalid=TEXTS_BY_NAME,
    skip_unchanged=st.booleans(),
)
EVENTS = st.builds(
    Event,
    source=TEXTS,
    id=TEXTS,
    content_hash=TEXTS,
    occurred_at_us=st.none() | st.integers(-(2**63), 2**63 - 1),
    payload=TEXTS,
    context=TEXTS,
    root=st.none() | st.sampled_from(["{}", "a root", ""]) | TEXTS,
    updates=st.lists(UPDATES, max_size=3).map(tuple),
    unmappable=st.none() | TEXTS,
)


@given(st.lists(EVENTS, max_size=5))
def test_what_is_kept_comes_back_as_it_was(events: list[Event]) -> None:
    assert decode(encode(events)) == events


def test_a_root_that_all_events_share_is_kept_once(journal: Journal) -> None:
    """Kept with each event, a megabyte would become gigabytes."""
    root = "x" * 1_000_000
    events = [replace(one, root=root) for one in large(3 * SLICE_EVENTS)]
    assert len(encode(events)) < 2 * len(root)
    commits = GroupCommit(journal=journal)
    assert len(commits.append(events)) == len(events)
    commits.close()
    assert journal.size() < 10 * len(root)


def test_a_slice_is_bounded_by_what_is_kept_of_headers_and_query_too() -> None:
    """Written with each event, it is as large as if each had brought it."""
    events = [replace(one, context=json.dumps({"headers": {"x_topic": "x" * 100_000}})) for one in large(60)]
    parts = list(slices(events))
    assert [one for part in parts for one in part] == events
    assert max(sum(len(one.context) for one in part) for part in parts) <= SLICE_BYTES
    assert len(parts) >= 3


def test_an_event_that_cannot_be_merged_is_parked_and_holds_up_nothing(journal: Journal, clock: FakeClock) -> None:
    events = large(2 * SLICE_EVENTS)
    events[SLICE_EVENTS + 1] = event("bad", None)  # type: ignore[arg-type]  # the database takes no record without an id
    journal.append(events[:1], staging=[events[1:]])
    clock.advance(ABANDONED_AFTER_US / 1e6 + 1)
    assert journal.merge_staged()
    assert staged(journal) == 0
    assert known(journal) == {one.id for one in events}
    (entry,) = journal.entries(Filter(state="parked"))
    assert list(entry.event_ids) == ["bad"]
    assert "could not take" in entry.message


def test_what_arrives_between_the_slices_is_newer_than_all_of_them(journal: Journal, clock: FakeClock) -> None:
    """Events without a time of their own count as of their arrival, not of their slice."""
    merged_before: list[bool] = []

    def arrive_between() -> None:
        if not merged_before:
            merged_before.append("old" in known(journal))
            clock.advance(1)
            journal.append([event("new", "7", {"company_name": "new"}, at=None)])

    commits = GroupCommit(journal=journal, committed=arrive_between)
    commits.append([*large(2 * SLICE_EVENTS, at=None), event("old", "7", {"company_name": "old"}, at=None)])
    commits.close()
    assert merged_before == [False]
    assert "old" in known(journal)
    refs = [one.ref for one in journal.due(limit=1_000, exclude=())]
    taken = {record.key.id: record.values for record in journal.take(refs, began_at_us=to_us(clock.now())).records}
    assert taken["7"]["company_name"].value == "new"


def test_the_rest_of_a_large_request_is_as_new_as_its_beginning(journal: Journal, clock: FakeClock) -> None:
    """Without times of their own all its events are the newest at their arrival, also where another source's clock is
    two minutes ahead, and the last word of the request on a record is its last one.
    """
    commits = GroupCommit(journal=journal)
    ahead = clock.now() + 120
    commits.append([event(f"a{at}", f"r{at}", {"company_name": "old"}, at=ahead, source="a") for at in (1, 250)])
    clock.advance(10)
    rest = large(6 * SLICE_EVENTS, at=None)
    rest[1] = event("b1", "r1", {"company_name": "new"}, at=None)
    rest[250] = event("b250", "r250", {"company_name": "new"}, at=None)
    rest[20] = event("first", "s", {"company_name": "first"}, at=clock.now() + 100)
    rest[150] = event("second", "s", {"company_name": "second"}, at=None)
    rest[151] = event("third", "t", {"company_name": "third"}, at=clock.now() + 200)
    rest[152] = event("last", "t", {"company_name": "last"}, at=None)
    commits.append(rest)
    commits.close()
    refs = [one.ref for one in journal.due(limit=1_000, exclude=())]
    taken = {record.key.id: record.values for record in journal.take(refs, began_at_us=to_us(clock.now())).records}
    told = {record: taken[record]["company_name"].value for record in ("r1", "r250", "s", "t")}
    assert told == {"r1": "new", "r250": "new", "s": "second", "t": "last"}


def test_a_clock_that_was_set_back_does_not_hold_up_what_was_left(journal: Journal, clock: FakeClock) -> None:
    events = large(2 * SLICE_EVENTS)
    journal.append(events[:SLICE_EVENTS], staging=[events[SLICE_EVENTS:]])
    clock.jump(-86_400)
    assert journal.merge_staged()
    assert known(journal) == {one.id for one in events}


def test_of_a_long_request_whose_process_ended_before_it_was_whole_nothing_is_merged(
    journal: Journal, clock: FakeClock
) -> None:
    """It was not answered; another one that was whole is merged after it."""
    first, second, last = pieces(large(3 * PIECE_EVENTS))
    journal.stage(second, after=journal.stage(first, after=None, whole=False), whole=False)
    journal.stage(last, after=None, whole=True)
    assert not journal.merge_staged()  # somebody may still be at it
    clock.advance(ABANDONED_AFTER_US / 1e6 + 1)
    assert journal.merge_staged()
    assert staged(journal) == 1
    assert journal.merge_staged()
    assert known(journal) == {one.id for one in last}
    assert staged(journal) == 0
    assert not journal.merge_staged()


def test_a_long_request_whose_process_ended_once_it_was_whole_is_merged(journal: Journal, clock: FakeClock) -> None:
    events = large(3 * PIECE_EVENTS)
    left = None
    for part in pieces(events):
        left = journal.stage(part, after=left, whole=part[-1] is events[-1])
    clock.advance(ABANDONED_AFTER_US / 1e6 + 1)
    assert journal.merge_staged()
    assert known(journal) == {one.id for one in events}
    assert staged(journal) == 0


@pytest.mark.parametrize("root", [None, '{"whole": 1}'])
def test_what_the_program_before_left_of_a_long_request_is_merged(
    journal: Journal, clock: FakeClock, root: str | None
) -> None:
    """It merges pieces one by one, as a request each, and must be able to read them so."""
    events = [replace(one, root=root) for one in large(3 * PIECE_EVENTS)]
    first, second, last = pieces(events)
    left = journal.stage(second, after=journal.stage(first, after=None, whole=False), whole=False)
    journal.stage(last, after=left, whole=True)
    with journal._database.write() as connection:
        texts = [json.loads(text) for (text,) in fetch(connection, "SELECT events FROM staged ORDER BY id")]
        assert all(place is None or document["roots"][place] for document in texts for place in document["root_of"])
        connection.execute(sa.text("DELETE FROM staged WHERE request IS NULL"))
    journal.append(first)
    assert not journal.merge_staged()
    clock.advance(ABANDONED_AFTER_US / 1e6 + 1)
    assert journal.merge_staged()
    assert journal.merge_staged()
    assert known(journal) == {one.id for one in events}
    assert staged(journal) == 0


def test_a_clock_slightly_behind_drops_no_request_that_is_being_kept(journal: Journal, clock: FakeClock) -> None:
    """Of two replicas one keeps it, the other is on duty."""
    first, last = pieces(large(2 * PIECE_EVENTS))
    left = journal.stage(first, after=None, whole=False)
    clock.jump(-2)
    assert not journal.merge_staged()
    clock.jump(2)
    journal.stage(last, after=left, whole=True)
    assert staged(journal) == 2


def test_a_request_that_was_dropped_before_its_end_is_not_taken(journal: Journal, clock: FakeClock) -> None:
    """Its process stood still meanwhile."""
    first, second, last = pieces(large(3 * PIECE_EVENTS))
    left = journal.stage(second, after=journal.stage(first, after=None, whole=False), whole=False)
    clock.advance(ABANDONED_AFTER_US / 1e6 + 1)
    assert journal.merge_staged()
    with pytest.raises(JournalError, match="too long"):
        journal.stage(last, after=left, whole=True)
    assert staged(journal) == 0
    assert known(journal) == set()


def test_the_pieces_of_a_request_share_its_root_and_its_order(journal: Journal, clock: FakeClock) -> None:
    """What has no time of its own is as new as it stands in the request, whichever piece it is in."""
    events = [replace(one, root="x" * 1_000_000) for one in large(3 * PIECE_EVENTS, at=None)]
    ahead = event("first", "7", {"company_name": "first"}, at=clock.now() + 100)
    events[0] = replace(ahead, root="x" * 1_000_000)
    events[-1] = event("last", "7", {"company_name": "last"}, at=None)
    left = None
    for part in pieces(events):
        left = journal.stage(part, after=left, whole=part[-1] is events[-1])
    assert journal.size() < 5 * 1_000_000
    clock.advance(ABANDONED_AFTER_US / 1e6 + 1)
    assert journal.merge_staged()
    refs = [one.ref for one in journal.due(limit=2_000, exclude=())]
    taken = {record.key.id: record.values for record in journal.take(refs, began_at_us=to_us(clock.now())).records}
    assert taken["7"]["company_name"].value == "last"


@pytest.mark.parametrize("commit", range(1, 7))
def test_a_long_request_whose_process_is_killed_is_taken_whole_or_not_at_all(
    journal: Journal, journal_url: str, commit: int
) -> None:
    """Before each of the commits that keep its three pieces, and of some that merge them."""
    number = 3 * PIECE_EVENTS
    command = [sys.executable, "-m", "tests.killed", journal_url, str(number), str(commit)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    while journal.merge_staged():  # as of later: the test's clock is far from the time of its arrival
        pass
    assert known(journal) == ({f"e{at}" for at in range(number)} if commit > 3 else set())
    assert staged(journal) == 0
