"""Greenlets that wait for the journal's thread, and threads beside the loop."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import gevent
import pytest

from bridge.errors import JournalUnavailableError
from bridge.journal import group_commit
from bridge.journal.group_commit import GroupCommit
from bridge.server.loop import LIGHT, MAX_BODY, LoopSignals, LoopWaiter, Threads, Turns, breathe, wait_for
from tests.builders import event
from tests.unit.test_group_commit import MemoryAppender


@pytest.fixture
def appender() -> MemoryAppender:
    return MemoryAppender()


@pytest.fixture
def commits(appender: MemoryAppender) -> Iterator[GroupCommit]:
    made = GroupCommit(journal=appender, signals=LoopSignals())
    yield made
    appender.gate.set()
    made.close()


def test_greenlets_share_a_transaction_and_get_their_own_receipts(
    commits: GroupCommit, appender: MemoryAppender
) -> None:
    senders = [gevent.spawn(commits.append, [event(f"e{number}")]) for number in range(50)]
    gevent.joinall(senders, timeout=5, raise_error=True)
    assert [sender.get(timeout=5)[0].event_id for sender in senders] == [f"e{number}" for number in range(50)]
    assert len(appender.groups) == 1  # all of them were there before the writer got its turn


def test_what_comes_in_during_a_commit_is_the_next_group(commits: GroupCommit, appender: MemoryAppender) -> None:
    appender.gate.clear()
    senders = [gevent.spawn(commits.append, [event("first")])]
    gevent.sleep(0.05)
    senders += [gevent.spawn(commits.append, [event(f"e{number}")]) for number in range(20)]
    gevent.sleep(0.05)
    appender.gate.set()
    gevent.joinall(senders, timeout=5, raise_error=True)
    assert [len(group) for group in appender.groups] == [1, 20]


def test_one_bad_request_costs_only_itself(commits: GroupCommit) -> None:
    senders = [gevent.spawn(commits.append, [event(name)]) for name in ("a", "b")]
    bad = gevent.get_hub()  # a greenlet's error is not the loop's
    bad.NOT_ERROR = (*bad.NOT_ERROR, ValueError)
    poisoned = gevent.spawn(commits.append, [event("poison")])
    gevent.joinall([*senders, poisoned], timeout=5)
    assert [sender.get(timeout=5)[0].event_id for sender in senders] == ["a", "b"]
    assert isinstance(poisoned.exception, ValueError)


def test_a_journal_that_hangs_is_told_of_in_time_and_holds_nobody_else(
    commits: GroupCommit, appender: MemoryAppender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "PATIENCE_S", 0.2)
    appender.gate.clear()
    outcomes: list[str] = []

    def send(name: str) -> None:
        try:
            commits.append([event(name)])
        except JournalUnavailableError as error:
            outcomes.append(str(error))

    senders = [gevent.spawn(send, name) for name in ("a", "b")]
    ticks = 0
    began = time.monotonic()
    while not all(sender.ready() for sender in senders) and time.monotonic() - began < 5:
        gevent.sleep(0.01)
        ticks += 1
    assert len(outcomes) == 2
    assert ticks > 5  # the loop went on meanwhile
    appender.gate.set()
    assert gevent.spawn(commits.append, [event("c")]).get(timeout=5)[0].event_id == "c"


def test_more_than_the_writer_can_do_soon_is_refused_at_once(
    commits: GroupCommit, appender: MemoryAppender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "WAITING_EVENTS", 10)
    appender.gate.clear()
    first = gevent.spawn(commits.append, [event("first")])
    gevent.sleep(0.05)
    waiting = gevent.spawn(commits.append, [event(f"w{number}") for number in range(20)])  # alone it may be larger
    gevent.sleep(0)
    with pytest.raises(JournalUnavailableError, match="20 events wait to be written"):
        commits.append([event("too much")])
    appender.gate.set()
    gevent.joinall([first, waiting], timeout=5, raise_error=True)
    assert len(waiting.get(timeout=5)) == 20


def test_a_withdrawn_request_is_not_written_later(
    commits: GroupCommit, appender: MemoryAppender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "PATIENCE_S", 0.2)
    appender.gate.clear()

    def send(name: str) -> str:
        try:
            return commits.append([event(name)])[0].event_id
        except JournalUnavailableError:
            return "refused"

    first = gevent.spawn(send, "first")
    gevent.sleep(0.05)
    second = gevent.spawn(send, "second")
    gevent.joinall([first, second], timeout=5)
    assert [first.value, second.value] == ["refused", "refused"]
    appender.gate.set()
    assert gevent.spawn(send, "third").get(timeout=5) == "third"
    # The first was being written when its sender gave up; a second delivery will find out.
    assert [name for group in appender.groups for name in group] == ["first", "third"]


def test_blocking_apps_run_in_threads_beside_the_loop() -> None:
    pool = Threads(2)
    release = threading.Event()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        release.wait(5)
        start_response("200 OK", [("X-Thread", threading.current_thread().name)])
        return [environ["wsgi.input"].read()]

    started: list[Any] = []

    def serve() -> list[bytes]:
        environ = {"wsgi.input": io.BytesIO(b"body")}
        return list(pool.serve(app, environ, lambda *given: started.append(given)))

    serving = gevent.spawn(serve)
    breathe()
    gevent.sleep(0.05)
    assert not serving.ready()
    release.set()
    assert serving.get(timeout=5) == [b"body"]
    assert started[0][0] == "200 OK"


@pytest.mark.parametrize("length, read", [(MAX_BODY, b"body"), (MAX_BODY + 1, b"")])
def test_a_body_that_says_it_is_too_long_is_not_read_for_an_app_beside_the_loop(length: int, read: bytes) -> None:
    """Nor asked for, if its sender waits to be asked: the app refuses it by its length."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    environ = {"wsgi.input": io.BytesIO(b"body"), "CONTENT_LENGTH": str(length)}
    assert list(Threads(1).serve(app, environ, lambda *_: None)) == [read]


def test_one_woken_just_when_the_patience_ends_is_told_so_or_not_but_is_woken_once() -> None:
    signals = LoopSignals()
    outcomes: list[bool] = []

    def wait(waiter: LoopWaiter, timeout_s: float) -> None:
        outcomes.append(waiter.wait(timeout_s))
        gevent.sleep(0.002)  # a second wake-up would end this early, or find nobody

    for number in range(300):
        waiter = signals.waiter()
        waiting = gevent.spawn(wait, waiter, 0.003)
        waker = threading.Timer(0.003 + (number % 10 - 5) * 1e-4, signals.wake, ([waiter], lambda: None))
        waker.start()
        waiting.get(timeout=5)
        waker.join()
        gevent.sleep(0)
    assert len(outcomes) == 300


@pytest.mark.parametrize("size", [1, 2, 3, 4, 32])
def test_turns_are_bounded_and_waited_for_in_time(size: int) -> None:
    """All of them can be had, and one source alone gets at least one."""
    turns = Turns(size)
    assert turns.acquire("0", timeout=0.01)
    for number in range(1, size):
        assert turns.acquire(str(number), timeout=0.01)
    assert not turns.acquire("one more", timeout=0.01)
    waiting = gevent.spawn(turns.acquire, "one more", timeout=5)
    gevent.sleep(0)
    assert not waiting.ready()
    turns.release("0")
    assert waiting.get(timeout=5) is True


@pytest.mark.parametrize("weight", [0, LIGHT + 1])
@pytest.mark.parametrize("size, share", [(1, 1), (2, 1), (4, 3), (32, 24)])
def test_a_quarter_of_the_turns_is_kept_from_one_source(size: int, share: int, weight: int) -> None:
    """Whatever its requests weigh; another's are worked on at once."""
    turns = Turns(size)
    for _ in range(share):
        assert turns.acquire("many", weight, timeout=0.01)
    assert not turns.acquire("many", weight, timeout=0.01)
    for number in range(size - share):
        assert turns.acquire(f"other {number}", timeout=0.01)


def test_one_sources_light_requests_put_off_nobodys_heavy_one() -> None:
    turns = Turns(8)
    for _ in range(6):
        assert turns.acquire("many", timeout=0.01)
    assert turns.acquire("other", LIGHT + 1, timeout=0.01)


def test_of_those_that_wait_the_source_goes_first_that_holds_the_fewest_turns() -> None:
    """And of two that hold as few, the one whose last turn is longer ago: nobody waits for all of another's."""
    turns = Turns(1)
    assert turns.acquire("many", timeout=0.01)
    order: list[str] = []

    def work(source: str) -> None:
        assert turns.acquire(source, timeout=5)
        order.append(source)
        turns.release(source)

    working = [gevent.spawn(work, source) for source in ("many", "many", "many", "many", "one", "one")]
    gevent.sleep(0)
    turns.release("many")
    gevent.joinall(working, timeout=5, raise_error=True)
    assert order == ["many", "one", "many", "one", "many", "many"]


def test_light_ones_never_wait_for_heavy_ones() -> None:
    """Heavy ones wait for room among themselves, and leave a quarter of the turns."""
    turns = Turns(8, room=3 * LIGHT)
    assert turns.acquire("large", 2 * LIGHT, timeout=0.01)
    assert not turns.acquire("large", 2 * LIGHT, timeout=0.01)
    waiting = gevent.spawn(turns.acquire, "large", 2 * LIGHT, timeout=5)
    gevent.sleep(0)
    for number in range(7):
        assert turns.acquire(f"small {number}", LIGHT, timeout=0.01)
    assert not turns.acquire("small 7", LIGHT, timeout=0.01)
    light = gevent.spawn(turns.acquire, "small 7", LIGHT, timeout=5)
    gevent.sleep(0)
    turns.release("large", 2 * LIGHT)
    assert light.get(timeout=5) is True
    assert not waiting.ready()
    turns.release("small 0", LIGHT)
    assert waiting.get(timeout=5) is True


def test_heavy_ones_leave_a_quarter_of_the_turns() -> None:
    """However many sources they are of."""
    turns = Turns(8)
    for number in range(6):
        assert turns.acquire(f"large {number}", LIGHT + 1, timeout=0.01)
    waiting = gevent.spawn(turns.acquire, "large 6", LIGHT + 1, timeout=5)
    gevent.sleep(0)
    for number in range(2):
        assert not waiting.ready()
        assert turns.acquire(f"small {number}", LIGHT, timeout=0.01)
    turns.release("large 0", LIGHT + 1)
    gevent.sleep(0)
    assert waiting.get(timeout=5) is True


def test_what_is_too_heavy_for_the_room_has_its_turn_alone() -> None:
    turns = Turns(8, room=3 * LIGHT)
    assert turns.acquire("a", 9 * LIGHT, timeout=0.01)
    assert not turns.acquire("b", LIGHT + 1, timeout=0.01)
    turns.release("a", 9 * LIGHT)
    assert turns.acquire("b", LIGHT + 1, timeout=0.01)
    assert not turns.acquire("a", 9 * LIGHT, timeout=0.01)
    turns.release("b", LIGHT + 1)
    assert turns.acquire("a", 9 * LIGHT, timeout=0.01)


def test_of_heavy_ones_the_source_goes_first_that_holds_least() -> None:
    """One partner's many large requests do not put off another's single one."""
    turns = Turns(8, room=4 * LIGHT)
    order: list[str] = []

    def work(source: str) -> None:
        assert turns.acquire(source, 2 * LIGHT, timeout=5)
        order.append(source)
        gevent.sleep(0.01)
        turns.release(source, 2 * LIGHT)

    working = [gevent.spawn(work, source) for source in ("many", "many", "many", "many", "one")]
    gevent.joinall(working, timeout=5, raise_error=True)
    assert order.index("one") == 2


class Slices:
    """Greenlets that work on and on, a slice after another, and how many slices each source has had."""

    def __init__(self, sources: dict[str, int]) -> None:
        self.had: Counter[str] = Counter()
        self._turns = Turns(64)
        self._working = [gevent.spawn(self._work, source) for source, count in sources.items() for _ in range(count)]
        gevent.sleep(0.01)

    def _work(self, source: str) -> None:
        assert self._turns.acquire(source, timeout=1)
        while True:
            self.had[source] += 1
            breathe()

    def end(self) -> None:
        gevent.killall(self._working, timeout=5)
        breathe()  # of those that were killed nothing is left behind


def test_who_needs_little_waits_for_one_slice_of_the_others_at_each_step() -> None:
    """Not for one of each of them: twenty packets, echoed while thirty requests are worked on."""
    slices, (ours, theirs) = Slices({"many": 30}), socket.socketpair()
    with ours, theirs:
        before = slices.had["many"]
        for _ in range(20):
            ours.send(b"x")
            assert wait_for(theirs.fileno(), False, 5)
            theirs.recv(1)
    assert slices.had["many"] - before <= 2 * 20
    slices.end()


def test_sources_whose_requests_are_worked_on_go_on_in_turn() -> None:
    """However many requests one has: another's gets as many slices as all of them."""
    slices = Slices({"many": 30, "one": 1})
    while slices.had["one"] < 100:
        gevent.sleep(0.001)
    assert 0.8 < slices.had["one"] / slices.had["many"] < 1.2
    slices.end()


def test_a_descriptor_is_waited_for_in_time() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert wait_for(ours.fileno(), True, 0.1)
        assert not wait_for(ours.fileno(), False, 0.01)
        theirs.send(b"x")
        assert wait_for(ours.fileno(), False, 5)
