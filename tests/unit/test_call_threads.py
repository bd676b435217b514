"""The threads that make the calls: replaced when they die, and honest when there can be none (F48, F49)."""

from __future__ import annotations

import ctypes
import queue
import threading
import time
from collections.abc import Callable

import pytest

from bridge.delivery.caller import CallThreads
from tests.fakes_delivery import InlinePool
from tests.running import eventually
from tests.unit.test_dispatcher import House


def test_a_thread_that_died_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _args: None)
    threads = CallThreads(count=2)
    done: queue.SimpleQueue[str] = queue.SimpleQueue()

    def die() -> None:
        done.put(threading.current_thread().name)
        raise SystemExit

    for _ in range(6):
        threads.submit(die)
        done.get(timeout=5)
    threads.submit(lambda: done.put("done"))
    assert done.get(timeout=5) == "done"
    threads.close()


def test_a_job_outlives_the_idle_thread_that_would_have_taken_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it waits, which it notices only when there is something to do."""
    monkeypatch.setattr(threading, "excepthook", lambda _args: None)
    threads = CallThreads(count=1)
    done: list[int] = []
    threads.submit(lambda: done.append(1))
    assert eventually(lambda: done == [1])
    time.sleep(0.1)
    [idle] = [each for each in threading.enumerate() if each.name == "crm-call-1"]
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(idle.ident or 0), ctypes.py_object(SystemExit))
    threads.submit(lambda: done.append(2))
    assert eventually(lambda: done == [1, 2])
    threads.close()


def no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def test_at_the_limit_of_threads_those_that_are_there_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = CallThreads(count=4)
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    threads.submit(lambda: done.put("first"))
    with monkeypatch.context() as limited:
        no_more_threads(limited)
        threads.submit(lambda: done.put("second"))
    assert {done.get(timeout=5), done.get(timeout=5)} == {"first", "second"}
    threads.close()


def test_without_any_thread_the_job_is_refused_and_may_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = CallThreads(count=4)
    done: queue.SimpleQueue[str] = queue.SimpleQueue()
    with monkeypatch.context() as limited:
        no_more_threads(limited)
        with pytest.raises(RuntimeError, match="new thread"):
            threads.submit(lambda: done.put("refused"))
    threads.submit(lambda: done.put("taken"))
    assert done.get(timeout=5) == "taken"
    assert done.empty()
    threads.close()


class FullPool(InlinePool):
    """Takes no job until it is told that there is room."""

    room = False

    def submit(self, job: Callable[[], None]) -> None:
        if not self.room:
            raise RuntimeError("can't start new thread")
        super().submit(job)


def test_records_of_a_call_that_no_thread_could_make_are_free_for_the_next() -> None:
    pool = FullPool()
    house = House(pool=pool)
    house.journal.put(1, {"tier": "gold"})
    house.clock.pass_(1.0)
    with pytest.raises(RuntimeError):
        house.dispatcher.run_once()
    assert house.dispatcher.in_flight == 0
    pool.room = True
    house.clock.pass_(1.0)
    house.dispatcher.run_once()
    assert house.journal.state(1) == "delivered"
