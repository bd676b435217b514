"""Group commit: many senders, few transactions, and one bad request costs only itself."""

from __future__ import annotations

import functools
import operator
import threading
import time
from collections.abc import Collection, Iterator, Sequence

import pytest

from bridge.errors import JournalFullError, JournalUnavailableError
from bridge.journal import group_commit
from bridge.journal.appending import PIECE_EVENTS, SLICE_BYTES, SLICE_EVENTS, Appended, Staged
from bridge.journal.group_commit import GROUP_EVENTS, WAITING_EVENTS, GroupCommit
from bridge.model import Event, Receipt
from tests.builders import event
from tests.running import eventually


class MemoryAppender:
    """A journal in memory: remembers its groups; refuses groups that hold a poisonous event, as a database would."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.kept: list[list[str]] = []
        self.ended: list[int] = []
        self.pieces: list[int] = []  # how many events each had
        self.full = False
        self.broken = False
        self.break_after: int | None = None  # so many groups
        self.fill_after: int | None = None
        self.delay_s = 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def refuse_if_full(self) -> None:
        if self.full:
            raise JournalFullError("full")

    def stage(self, events: Sequence[Event], *, after: Staged | None, whole: bool) -> Staged:
        self.entered.set()
        self.gate.wait(20)
        time.sleep(self.delay_s)
        if self.broken or len(self.pieces) == self.break_after:
            raise JournalUnavailableError("disk full")
        self.pieces.append(len(events))
        self.full = self.full or len(self.pieces) == self.fill_after
        before = [] if after is None else [*after.events]
        if whole:
            self.kept.append([one.id for one in (*before, *events)])
        return Staged(1, [*before, *events])

    def append(
        self,
        events: Sequence[Event],
        *,
        staging: Sequence[Sequence[Event]] = (),
        staged: Collection[int] = (),
        admitted: bool = False,
    ) -> Appended:
        if self.full and not admitted:
            raise JournalFullError("full")
        self.entered.set()
        self.gate.wait(20)
        time.sleep(self.delay_s)
        if self.broken or len(self.groups) == self.break_after:
            raise JournalUnavailableError("disk full")
        if any(one.id == "poison" for one in events):
            raise ValueError("data error")
        self.groups.append([one.id for one in events])
        first = len(self.kept) + 1
        self.kept += [[one.id for one in rest] for rest in staging]
        kept = [Staged(number, rest) for number, rest in enumerate(staging, first)]
        self.full = self.full or len(self.groups) == self.fill_after
        self.ended += staged
        return Appended([Receipt(one.id, one.intake) for one in events], staged=kept)


@pytest.fixture
def appender() -> MemoryAppender:
    return MemoryAppender()


@pytest.fixture
def commits(appender: MemoryAppender) -> Iterator[GroupCommit]:
    made = GroupCommit(journal=appender)
    yield made
    appender.gate.set()
    made.close()


def in_threads(commits: GroupCommit, requests: Sequence[Sequence[str]]) -> list[list[str] | BaseException]:
    """Append each request in a thread of its own; returns receipts' ids or the error, in order."""
    results: list[list[str] | BaseException] = [[] for _ in requests]

    def run(at: int) -> None:
        try:
            results[at] = [receipt.event_id for receipt in commits.append([event(name) for name in requests[at]])]
        except Exception as error:  # noqa: BLE001 (it is the result)
            results[at] = error

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return results


def queued(commits: GroupCommit, appender: MemoryAppender, requests: Sequence[Sequence[str]]) -> list[object]:
    """The same while another request is being written: all of them wait together, then go on together."""
    appender.gate.clear()
    appender.entered.clear()
    first = threading.Thread(target=commits.append, args=([event("first")],))
    first.start()
    assert appender.entered.wait(10)

    def open_gate() -> None:
        for _ in range(1000):
            with commits._mutex:
                if len(commits._waiting) == len(requests):
                    break
            time.sleep(0.01)
        appender.gate.set()

    opener = threading.Thread(target=open_gate)
    opener.start()
    results = in_threads(commits, requests)
    opener.join()
    first.join()
    return list(results)


def test_every_sender_gets_its_own_receipts(commits: GroupCommit) -> None:
    requests = [[f"{at}-{place}" for place in range(at % 4 + 1)] for at in range(20)]
    assert in_threads(commits, requests) == requests


def test_waiting_requests_share_one_transaction(commits: GroupCommit, appender: MemoryAppender) -> None:
    queued(commits, appender, [[f"e{at}"] for at in range(10)])
    assert appender.groups[0] == ["first"]
    assert [sorted(group) for group in appender.groups[1:]] == [sorted(f"e{at}" for at in range(10))]


def test_a_data_error_is_answered_to_its_own_sender_only(commits: GroupCommit, appender: MemoryAppender) -> None:
    results = queued(commits, appender, [["a"], ["poison", "b"], ["c"], ["d"], ["e"]])
    assert [isinstance(result, ValueError) for result in results] == [False, True, False, False, False]
    assert "b" not in functools.reduce(operator.iadd, appender.groups, [])


def test_trouble_with_the_journal_is_the_answer_for_all(commits: GroupCommit, appender: MemoryAppender) -> None:
    appender.broken = True
    results = in_threads(commits, [["a"], ["b"]])
    assert all(isinstance(result, JournalUnavailableError) for result in results)
    appender.broken = False
    assert in_threads(commits, [["c"]]) == [["c"]]


def test_a_journal_that_does_not_answer_refuses_newcomers_at_once(
    commits: GroupCommit, appender: MemoryAppender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who wait already may still be taken; it is over with the group that hung."""
    monkeypatch.setattr(group_commit, "STALLED_S", 0.2)
    appender.gate.clear()
    first = threading.Thread(target=commits.append, args=([event("first")],))
    first.start()
    assert appender.entered.wait(10)
    second = threading.Thread(target=commits.append, args=([event("second")],))
    second.start()
    time.sleep(0.3)
    with pytest.raises(JournalUnavailableError, match="has not answered"):
        commits.append([event("third")])
    appender.gate.set()
    first.join(10)
    second.join(10)
    assert commits.append([event("fourth")])[0].event_id == "fourth"
    assert functools.reduce(operator.iadd, appender.groups, []) == ["first", "second", "fourth"]


def test_a_full_journal_refuses_without_queueing(commits: GroupCommit, appender: MemoryAppender) -> None:
    appender.full = True
    with pytest.raises(JournalFullError):
        commits.append([event()])
    assert appender.groups == []


def test_groups_are_bounded(commits: GroupCommit, appender: MemoryAppender) -> None:
    size = GROUP_EVENTS // 20
    queued(commits, appender, [[f"{at}-{place}" for place in range(size)] for at in range(50)])
    assert [len(group) for group in appender.groups] == [1, GROUP_EVENTS, GROUP_EVENTS, 10 * size]


def test_a_large_request_is_on_disk_at_once_and_merged_in_slices(
    commits: GroupCommit, appender: MemoryAppender
) -> None:
    names = [f"e{number}" for number in range(2 * SLICE_EVENTS + 10)]
    assert in_threads(commits, [names]) == [names]
    assert [len(group) for group in appender.groups] == [SLICE_EVENTS, SLICE_EVENTS, 10]
    assert appender.kept == [names[SLICE_EVENTS:]]
    assert appender.ended == [1]


def test_others_have_their_turn_between_the_slices_of_a_large_request(
    commits: GroupCommit, appender: MemoryAppender
) -> None:
    appender.delay_s = 0.05
    large = threading.Thread(target=commits.append, args=([event(f"e{n}") for n in range(10 * SLICE_EVENTS)],))
    large.start()
    assert appender.entered.wait(10)
    began = time.monotonic()
    commits.append([event("small")])
    assert time.monotonic() - began < 0.3  # the large one takes half a second
    assert large.is_alive()
    large.join()


def test_what_is_on_disk_counts_as_taken_whatever_happens_to_its_slices(
    commits: GroupCommit, appender: MemoryAppender
) -> None:
    appender.break_after = 1
    names = [f"e{number}" for number in range(3 * SLICE_EVENTS)]
    assert in_threads(commits, [names]) == [names]
    assert [len(group) for group in appender.groups] == [SLICE_EVENTS]
    assert appender.kept == [names[SLICE_EVENTS:]]
    assert appender.ended == []  # what is left there is merged later


def test_a_journal_that_is_full_takes_nothing_of_a_large_request_but_ends_what_it_took(
    commits: GroupCommit, appender: MemoryAppender
) -> None:
    appender.fill_after = 1
    names = [f"e{number}" for number in range(3 * SLICE_EVENTS)]
    assert in_threads(commits, [names]) == [names]
    assert appender.ended == [1]
    (refused,) = in_threads(commits, [names])
    assert isinstance(refused, JournalFullError)
    assert len(appender.groups) == 3


def test_after_closing_nothing_is_taken(appender: MemoryAppender) -> None:
    commits = GroupCommit(journal=appender)
    commits.append([event("a")])
    commits.close()
    with pytest.raises(JournalUnavailableError, match="the service is stopping"):
        commits.append([event("b")])


def test_nothing_to_append_touches_nothing(commits: GroupCommit, appender: MemoryAppender) -> None:
    assert commits.append([]) == ()
    assert appender.groups == []


def test_delivery_is_told_of_every_commit(appender: MemoryAppender) -> None:
    told: list[int] = []
    commits = GroupCommit(journal=appender, committed=lambda: told.append(1))
    commits.append([event("a")])
    commits.close()
    assert told == [1]


def test_a_large_request_is_taken_beside_others_that_wait(commits: GroupCommit, appender: MemoryAppender) -> None:
    """What counts is how much waits already, not how large the newcomer is."""
    large = [f"l{number}" for number in range(WAITING_EVENTS)]
    assert queued(commits, appender, [["small"], large]) == [["small"], large]


def test_large_requests_are_refused_when_many_slices_are_yet_to_come_and_small_ones_are_not(
    commits: GroupCommit, appender: MemoryAppender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "COMING_EVENTS", 2 * SLICE_EVENTS)
    appender.gate.clear()
    large = threading.Thread(target=commits.append, args=([event(f"l{n}") for n in range(4 * SLICE_EVENTS)],))
    large.start()
    assert appender.entered.wait(10)
    with pytest.raises(JournalUnavailableError, match=f"^{3 * SLICE_EVENTS} events of large requests wait"):
        commits.append([event(f"m{n}") for n in range(SLICE_EVENTS + 1)])
    small = threading.Thread(target=commits.append, args=([event("small")],))
    small.start()
    appender.gate.set()
    large.join(10)
    small.join(10)
    assert "small" in functools.reduce(operator.iadd, appender.groups, [])
    assert len(commits.append([event(f"m{n}") for n in range(SLICE_EVENTS + 1)])) == SLICE_EVENTS + 1


def test_the_writer_outlives_accidents_around_a_commit(
    appender: MemoryAppender, monkeypatch: pytest.MonkeyPatch
) -> None:
    accidents = [RuntimeError("told nobody")]

    def told() -> None:
        if accidents:
            raise accidents.pop()

    commits = GroupCommit(journal=appender, committed=told)
    assert commits.append([event("a")])[0].event_id == "a"  # it is on disk, whatever happened then
    with monkeypatch.context() as patched:
        patched.setattr(appender, "refuse_if_full", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            commits.append([event("b")])
    assert commits.append([event("c")])[0].event_id == "c"
    commits.close()


def heavy(name: str, size: int) -> Event:
    return event(name, "c1", {"note": "x" * size})


def test_a_group_is_bounded_in_bytes_too(appender: MemoryAppender, commits: GroupCommit) -> None:
    """What does not fit is written next; one request is written however large it is."""
    appender.gate.clear()
    share = SLICE_BYTES // 4
    sizes = [10, share, share, share, share, 10 * share, 10, 10]
    senders = []
    for number, size in enumerate(sizes):
        senders.append(threading.Thread(target=commits.append, args=([heavy(f"e{number}", size)],)))
        senders[-1].start()
        assert appender.entered.wait(10)
        waiting = eventually(lambda number=number: len(commits._waiting) == number)  # type: ignore[misc]
        assert waiting
    appender.gate.set()
    for sender in senders:
        sender.join(10)
    assert appender.groups == [["e0"], ["e1", "e2", "e3"], ["e4"], ["e5"], ["e6", "e7"]]


def test_a_large_request_is_cut_by_bytes_too(appender: MemoryAppender, commits: GroupCommit) -> None:
    """All of it is kept with its first slice, as with many events."""
    events = [heavy(f"e{number}", SLICE_BYTES // 2 - 1_000) for number in range(5)]
    assert [receipt.event_id for receipt in commits.append(events)] == [f"e{number}" for number in range(5)]
    assert appender.groups == [["e0", "e1"], ["e2", "e3"], ["e4"]]
    assert appender.kept == [["e2", "e3", "e4"]]
    assert appender.ended == [1]


def test_a_long_request_is_kept_in_pieces_before_any_of_it_is_merged(
    commits: GroupCommit, appender: MemoryAppender
) -> None:
    names = [f"e{number}" for number in range(3 * PIECE_EVENTS)]
    assert in_threads(commits, [names]) == [names]
    assert appender.pieces == [PIECE_EVENTS] * 3
    assert appender.kept == [names]
    assert functools.reduce(operator.iadd, appender.groups, []) == names
    assert appender.ended == [1]


def test_of_a_long_request_that_cannot_be_kept_nothing_is_taken(commits: GroupCommit, appender: MemoryAppender) -> None:
    """Whether the journal breaks or is full in the midst of it."""
    names = [f"e{number}" for number in range(3 * PIECE_EVENTS)]
    appender.break_after = 2
    (broken,) = in_threads(commits, [names])
    assert isinstance(broken, JournalUnavailableError)
    appender.break_after, appender.fill_after = None, 3
    (full,) = in_threads(commits, [names])
    assert isinstance(full, JournalFullError)
    assert appender.pieces == [PIECE_EVENTS] * 3
    assert appender.kept == []
    assert appender.groups == []


def test_nobody_waits_for_two_parts_of_a_large_request(commits: GroupCommit, appender: MemoryAppender) -> None:
    """What comes meanwhile is written before the next one, and not together with it."""
    appender.gate.clear()
    names = [f"l{number}" for number in range(2 * PIECE_EVENTS + 1)]
    large = threading.Thread(target=commits.append, args=([event(name) for name in names],))
    large.start()
    assert appender.entered.wait(10)
    small = threading.Thread(target=commits.append, args=([event("small")],))
    small.start()
    assert eventually(lambda: len(commits._waiting) == 1)
    appender.gate.set()
    small.join(10)
    large.join(10)
    assert appender.groups[0] == ["small"]
    assert appender.kept == [names]
