"""A readiness check that hangs is answered in time, and costs one thread however often it is asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bridge.errors import JournalFullError
from bridge.operations.health import BoundedCheck, Health
from tests.stopwatch import Stopwatch


class Journal:
    """A check that does what the test says: passes, fails or hangs."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.checks = 0

    def check(self) -> None:
        self.checks += 1
        self.goes_on.wait(10)
        if self.error is not None:
            raise self.error


@pytest.fixture
def journal() -> Iterator[Journal]:
    made = Journal()
    yield made
    made.goes_on.set()


def test_the_verdict_is_that_of_the_check(journal: Journal) -> None:
    """Whatever is raised is an answer."""
    ready = BoundedCheck(journal.check, timeout_s=5, fresh_s=0)
    assert ready() == Health(ok=True)
    journal.error = JournalFullError("the journal is full")
    assert ready() == Health(ok=False, why="the journal is full")
    journal.error = ZeroDivisionError("a secret")
    assert ready() == Health(ok=False, why="the journal cannot be checked (ZeroDivisionError)")
    journal.error = None
    assert ready() == Health(ok=True)
    assert journal.checks == 4


def test_a_check_that_hangs_is_answered_in_time(journal: Journal) -> None:
    """By one thread, however many ask; once it goes on, so do the answers."""
    ready = BoundedCheck(journal.check, timeout_s=0.1, fresh_s=0)
    journal.goes_on.clear()
    threads = threading.active_count()
    for _ in range(3):
        began = time.monotonic()
        with ThreadPoolExecutor(20) as pool:
            verdicts = set(pool.map(lambda _: ready(), range(20)))
        assert verdicts == {Health(ok=False, why="the journal does not answer")}
        assert time.monotonic() - began < 1.0
    assert journal.checks == 1
    assert threading.active_count() == threads + 1
    journal.goes_on.set()
    deadline = time.monotonic() + 5
    while not ready().ok and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ready() == Health(ok=True)


def test_once_it_is_known_to_hang_nobody_waits_for_it(journal: Journal) -> None:
    """Only who asked first waited; a few threads answer all probes."""
    ready = BoundedCheck(journal.check, timeout_s=0.2)
    journal.goes_on.clear()
    ready()
    watch = Stopwatch()
    assert {ready() for _ in range(1_000)} == {Health(ok=False, why="the journal does not answer")}
    assert watch.seconds < 0.2


def test_many_questions_are_one_check(journal: Journal) -> None:
    """And a later one is another."""
    ready = BoundedCheck(journal.check, timeout_s=5, fresh_s=60)
    assert {ready() for _ in range(1_000)} == {Health(ok=True)}
    assert journal.checks == 1
    ready = BoundedCheck(journal.check, timeout_s=5, fresh_s=0.05)
    ready()
    time.sleep(0.06)
    ready()
    assert journal.checks == 3


def test_f49_a_limit_of_threads_is_told_and_forgotten(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a thread to be had the question is asked again; who has one needs no other."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    ready = BoundedCheck(journal.check, timeout_s=5, fresh_s=0)
    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            assert ready() == Health(ok=False, why="the journal cannot be checked (can't start new thread)")
    assert ready() == Health(ok=True)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert ready() == Health(ok=True)
    assert journal.checks == 2
