"""The threads that make the calls: few, named, and never in the way of the process's end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

#: Seconds that an idle thread waits for work before it looks whether it is to end.
_WAIT_S = 1.0


class Pool(Protocol):
    """Runs calls beside the loop. Tests pass one that runs them at once, or when told."""

    def submit(self, job: Callable[[], None]) -> None: ...

    def close(self) -> None: ...


class CallThreads:
    """A fixed number of daemon threads: a call that hangs in a name look-up cannot delay the end of the
    process, and what it took stays due in the journal. A thread that died is replaced, and takes no job with it that it
    had not begun. For one caller of `submit`.
    """

    def __init__(self, *, count: int) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._there = threading.Semaphore(0)
        self._closed = threading.Event()
        self._count = count
        #: Guards `_threads`.
        self._mutex = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._started = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Run the job in one of the threads; jobs must not raise. Raises RuntimeError, and does not run it, when
        there is no thread and none can be started.
        """
        self._fill()
        self._jobs.append(job)
        self._there.release()

    def close(self) -> None:
        """Let the threads end when their job is done."""
        self._closed.set()

    def _fill(self, *, dying: threading.Thread | None = None) -> None:
        with self._mutex:
            self._threads = [one for one in self._threads if one.is_alive() and one is not dying]
            if len(self._threads) < self._count:
                try:
                    self._threads.append(self._start())
                except (RuntimeError, MemoryError):  # the system's limit: those that are there do it
                    if not self._threads:
                        raise

    def _start(self) -> threading.Thread:
        self._started += 1
        thread = threading.Thread(target=self._run, name=f"crm-call-{self._started}", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self._there.acquire(timeout=_WAIT_S)  # whoever dies here leaves the job to another
                while (job := self._next()) is not None:
                    job()
        finally:
            if self._jobs and not self._closed.is_set():
                self._fill(dying=threading.current_thread())

    def _next(self) -> Callable[[], None] | None:
        try:
            return self._jobs.popleft()
        except IndexError:
            return None
