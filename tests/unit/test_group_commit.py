"""Group commit: many senders, few transactions, and one bad request costs only itself."""

from __future__ import annotations

import functools
import operator
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from bridge.errors import JournalFullError, JournalUnavailableError
from bridge.journal.appending import Appended
from bridge.journal.group_commit import GROUP_EVENTS, GroupCommit
from bridge.model import Event, Receipt
from tests.builders import event


class MemoryAppender:
    """A journal in memory: remembers its groups; refuses groups that hold a poisonous event, as a database would."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.full = False
        self.broken = False
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def refuse_if_full(self) -> None:
        if self.full:
            raise JournalFullError("full")

    def append(self, events: Sequence[Event]) -> Appended:
        self.entered.set()
        self.gate.wait(20)
        if self.broken:
            raise JournalUnavailableError("disk full")
        if any(one.id == "poison" for one in events):
            raise ValueError("data error")
        self.groups.append([one.id for one in events])
        return Appended([Receipt(one.id, one.intake) for one in events])


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


def test_a_full_journal_refuses_without_queueing(commits: GroupCommit, appender: MemoryAppender) -> None:
    appender.full = True
    with pytest.raises(JournalFullError):
        commits.append([event()])
    assert appender.groups == []


def test_groups_are_bounded(commits: GroupCommit, appender: MemoryAppender) -> None:
    size = GROUP_EVENTS // 2
    queued(commits, appender, [[f"{at}-{place}" for place in range(size)] for at in range(5)])
    assert [len(group) for group in appender.groups] == [1, GROUP_EVENTS, GROUP_EVENTS, size]


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
