"""Group commit: all requests that wait share one transaction and one fsync (G1, G5).

A data error of one request must not fail the others: when a group's transaction fails for a reason that lies
in its rows, each request is tried alone and only the culprit's sender gets the error. Trouble with the
journal itself (full disk, lock, full journal) is the answer for all.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from bridge.errors import JournalError, JournalUnavailableError
from bridge.journal.appending import Appended
from bridge.model import Event, Receipt

#: Events merged in one transaction; longer groups make everyone wait longer without saving much.
GROUP_EVENTS = 1_000
#: A request is answered 503 when its group was not committed after this long.
PATIENCE_S = 20.0


class Appender(Protocol):
    """What a group commit writes to."""

    def append(self, events: Sequence[Event]) -> Appended: ...

    def refuse_if_full(self) -> None: ...


class _Request:
    """One request's events on their way to the disk."""

    __slots__ = ("done", "error", "events", "receipts")

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.done = threading.Event()
        self.receipts: Sequence[Receipt] = ()
        self.error: BaseException | None = None


class GroupCommit:
    """Writes the events of many threads in few transactions. Thread-safe.

    `_mutex` guards `_waiting` and `_stopped`; the thread `journal-writer` alone calls the journal.
    """

    def __init__(self, *, journal: Appender, committed: Callable[[], None] = lambda: None) -> None:
        """`committed` is called after every commit: there may be something to deliver."""
        self._journal = journal
        self._committed = committed
        self._mutex = threading.Condition()
        self._waiting: deque[_Request] = deque()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)
        self._thread.start()

    def append(self, events: Sequence[Event]) -> Sequence[Receipt]:
        """Return when these events are on disk, with a receipt for each, in order.

        Raises JournalFullError, JournalUnavailableError or JournalError: then none of them was taken, except
        after a wait of `PATIENCE_S`, when a second delivery will find out.
        """
        if not events:
            return ()
        self._journal.refuse_if_full()
        request = _Request(events)
        with self._mutex:
            if self._stopped:
                raise JournalUnavailableError("the journal is closed: the service is stopping")
            self._waiting.append(request)
            self._mutex.notify()
        if not request.done.wait(PATIENCE_S):
            raise JournalUnavailableError(f"the journal did not commit within {PATIENCE_S:.0f} s")
        if request.error is not None:
            raise request.error
        return request.receipts

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits and stop."""
        with self._mutex:
            self._stopped = True
            self._mutex.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._mutex:
                while not self._waiting and not self._stopped:
                    self._mutex.wait(1.0)
                if not self._waiting:
                    return
                group = self._next_group()
            self._commit(group)

    def _next_group(self) -> list[_Request]:
        """The oldest requests, at least one, up to `GROUP_EVENTS` events. Called with `_mutex` held."""
        group = [self._waiting.popleft()]
        size = len(group[0].events)
        while self._waiting and size + len(self._waiting[0].events) <= GROUP_EVENTS:
            group.append(self._waiting.popleft())
            size += len(group[-1].events)
        return group

    def _commit(self, group: list[_Request]) -> None:
        try:
            receipts = self._journal.append([event for request in group for event in request.events]).receipts
        except JournalError as error:
            self._finish(group, error=error)
        except Exception as error:  # noqa: BLE001 (every sender must get an answer, whatever happened)
            if len(group) == 1:
                self._finish(group, error=error)
                return
            for request in group:
                self._commit([request])
        else:
            at = 0
            for request in group:
                request.receipts = receipts[at : at + len(request.events)]
                at += len(request.events)
            self._finish(group, error=None)
            self._committed()

    def _finish(self, group: Sequence[_Request], *, error: BaseException | None) -> None:
        for request in group:
            request.error = error
            request.done.set()
