"""The threads that make the calls: few, named, and never in the way of the process's end."""

from __future__ import annotations

import queue
import threading
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
    process, and what it took stays due in the journal. Thread-safe.
    """

    def __init__(self, *, count: int) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._count = count
        self._threads: list[threading.Thread] = []

    def submit(self, job: Callable[[], None]) -> None:
        """Run the job in one of the threads; jobs must not raise."""
        if len(self._threads) < self._count:
            name = f"crm-call-{len(self._threads) + 1}"
            thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put(job)

    def close(self) -> None:
        """Let the threads end when their job is done."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                job = self._jobs.get(timeout=_WAIT_S)
            except queue.Empty:
                continue
            job()
