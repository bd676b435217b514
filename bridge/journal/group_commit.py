"""Group commit: all requests that wait share one transaction and one fsync (G1, G5).

A data error of one request must not fail the others: when a group's transaction fails for a reason that lies
in its rows, each request is tried alone and only the culprit's sender gets the error. Trouble with the
journal itself (full disk, lock, full journal) is the answer for all.

What is written at once of a large request is the longest that the others wait for. So it is merged in slices, and kept
for that in pieces where it is long; each is a group of its own, so that nobody waits for two in a row.

Writer and senders take turns: a group is handed over when everything that came in together has been queued,
and the next one when the senders of the last have been answered. Were they to overlap, two threads would pass
the interpreter's lock to and fro many times a request, which costs a third of the throughput.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from bridge.errors import JournalError, JournalUnavailableError
from bridge.journal.appending import SLICE_BYTES, Appended, Staged, pieces, slices, weight
from bridge.model import Event, Receipt

#: Events merged in one transaction, beside `SLICE_BYTES`; longer groups make everyone wait longer without saving much.
GROUP_EVENTS = 1_000
#: When so many events wait to be written, some two seconds' work, what comes on top is refused at once.
WAITING_EVENTS = 10_000
#: The same for large requests, with the slices that are yet to come: some ten seconds' work.
COMING_EVENTS = 50_000
#: When one group has been written for this long, what comes is refused at once: the journal does not answer, and a
#: sender makes more of a 503 than of its own time-out.
STALLED_S = 4.0
#: A request is answered 503 when its group was not committed after this long.
PATIENCE_S = 20.0


class Appender(Protocol):
    """What a group commit writes to."""

    def append(
        self,
        events: Sequence[Event],
        *,
        staging: Sequence[Sequence[Event]] = (),
        staged: Collection[int] = (),
        admitted: bool = False,
    ) -> Appended: ...

    def stage(self, events: Sequence[Event], *, after: Staged | None, whole: bool) -> Staged: ...

    def refuse_if_full(self) -> None: ...


class Waiter(Protocol):
    """What one sender waits for."""

    def wait(self, timeout_s: float) -> bool:
        """Whether it was woken within the time."""
        ...


W = TypeVar("W", bound=Waiter)


class Signals(Protocol[W]):
    """How senders wait and are woken: in threads, or in an event loop."""

    def waiter(self) -> W: ...

    def soon(self, act: Callable[[], None]) -> None:
        """Act when what came in together has been queued. Called by a sender."""
        ...

    def wake(self, waiters: Sequence[W], then: Callable[[], None]) -> None:
        """Wake the senders, then act. Called by the writer's thread."""
        ...


class _ThreadWaiter:
    def __init__(self) -> None:
        self.event = threading.Event()

    def wait(self, timeout_s: float) -> bool:
        return self.event.wait(timeout_s)


class ThreadSignals:
    """Senders are threads."""

    def waiter(self) -> _ThreadWaiter:
        return _ThreadWaiter()

    def soon(self, act: Callable[[], None]) -> None:
        act()

    def wake(self, waiters: Sequence[_ThreadWaiter], then: Callable[[], None]) -> None:
        for waiter in waiters:
            waiter.event.set()
        then()


@dataclass(slots=True, eq=False)
class _Request:
    """Events of one request on their way to the disk: all of them, a slice, or a piece to be kept."""

    events: Sequence[Event]
    waiter: Waiter
    rest: Sequence[Event] = ()  # with the first slice: what follows
    follows: bool = False  # a later slice: the request is on disk already
    ends: int | None = None  # with the last slice: where that was kept
    piece: bool = False
    after: Staged | None = None  # with a further piece: what was kept before
    whole: bool = False  # with the last piece
    receipts: Sequence[Receipt] = ()
    staged: Staged | None = None  # the rest, or all of it, as it is kept
    error: BaseException | None = None
    size: int = field(init=False)  # bytes of its texts

    def __post_init__(self) -> None:
        root = next((event.root for event in self.events if event.root is not None), "")  # they share it
        self.size = sum(map(weight, self.events)) + len(root)

    @property
    def large(self) -> bool:
        """Whether it is a part of a large request."""
        return bool(self.rest) or self.follows or self.piece


class GroupCommit:
    """Writes the events of many senders in few transactions. Thread-safe.

    `_mutex` guards all that changes; the thread `journal-writer` alone calls the journal.
    """

    def __init__(
        self,
        *,
        journal: Appender,
        committed: Callable[[], None] = lambda: None,
        signals: Signals[Any] | None = None,
    ) -> None:
        """`committed` is called after every commit: there may be something to deliver."""
        self._journal = journal
        self._committed = committed
        self._signals: Signals[Any] = signals or ThreadSignals()
        self._mutex = threading.Condition()
        self._waiting: deque[_Request] = deque()
        self._events = 0  # in all that waits
        self._coming = 0  # in the rests of large requests that are not at their end
        self._writing_since: float | None = None  # monotonic
        self._called = False  # the writer is at work, or will be called
        self._turn = False  # the writer's
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
        head = next(slices(events))
        rest = events[len(head) :]
        if not rest:
            return self._take(_Request(head, self._signals.waiter())).receipts
        self._expect(len(rest))
        try:
            if len(next(pieces(rest))) < len(rest):
                return self._take_rest(self._keep(events))
            first = self._take(_Request(head, self._signals.waiter(), rest))
            assert first.staged is not None  # noqa: S101 (kept with the first slice)
            return [*first.receipts, *self._take_rest(first.staged)]
        finally:
            self._expect(-len(rest))

    def _keep(self, events: Sequence[Event]) -> Staged:
        """In pieces, so that others have their turn in between."""
        left = None
        at = 0
        for part in pieces(events):
            at += len(part)
            request = _Request(part, self._signals.waiter(), piece=True, after=left, whole=at == len(events))
            left = self._take(request).staged
        assert left is not None  # noqa: S101 (there are events)
        return left

    def _take_rest(self, left: Staged) -> Sequence[Receipt]:
        """In slices, so that others have their turn in between. All of it is on disk already: what cannot be merged
        now is merged later, and counts as taken.
        """
        rest = left.events
        receipts: list[Receipt] = []
        with contextlib.suppress(JournalError):
            at = 0
            for part in slices(rest):
                at += len(part)
                ends = left.id if at == len(rest) else None
                receipts += self._take(_Request(part, self._signals.waiter(), follows=True, ends=ends)).receipts
        return receipts + [Receipt(event.id, event.intake) for event in rest[len(receipts) :]]

    def _take(self, request: _Request) -> _Request:
        with self._mutex:
            if self._stopped:
                raise JournalUnavailableError("the journal is closed: the service is stopping")
            if not request.follows:
                self._refuse_if_stalled()
            if not request.follows and request.after is None:
                self._refuse_if_many_wait()
            self._waiting.append(request)
            self._events += len(request.events)
            call, self._called = not self._called, True
        if call:
            self._signals.soon(self._give_turn)
        if not request.waiter.wait(PATIENCE_S):
            self._withdraw(request)
            raise JournalUnavailableError(f"the journal did not commit within {PATIENCE_S:.0f} s")
        if request.error is not None:
            raise request.error
        return request

    def _refuse_if_stalled(self) -> None:
        """`_mutex` is held."""
        since = self._writing_since
        if since is not None and (stalled_s := time.monotonic() - since) >= STALLED_S:
            raise JournalUnavailableError(f"the journal has not answered for {stalled_s:.0f} s")

    def _refuse_if_many_wait(self) -> None:
        """`_mutex` is held. However large a request is, alone it is taken."""
        if self._events >= WAITING_EVENTS:
            raise JournalUnavailableError(f"{self._events} events wait to be written")

    def _expect(self, events: int) -> None:
        """So many events of a large request are yet to come, or not any more where that is negative."""
        with self._mutex:
            if events > 0 and self._coming >= COMING_EVENTS:
                raise JournalUnavailableError(f"{self._coming} events of large requests wait to be written")
            self._coming += events

    @property
    def is_running(self) -> bool:
        """False when the writer's thread has ended by accident: nothing is taken any more."""
        return self._stopped or self._thread.is_alive()

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits and stop."""
        with self._mutex:
            self._stopped = True
            self._mutex.notify()
        self._thread.join(timeout_s)

    def _withdraw(self, request: _Request) -> None:
        with self._mutex, contextlib.suppress(ValueError):
            self._waiting.remove(request)
            self._events -= len(request.events)

    def _give_turn(self) -> None:
        with self._mutex:
            self._turn = self._called = bool(self._waiting)
            if self._turn:
                self._mutex.notify()

    def _run(self) -> None:
        while True:
            with self._mutex:
                while not self._turn and not self._stopped:
                    self._mutex.wait()
                if not self._waiting and self._stopped:
                    return
                group = self._next_group()
                self._turn = False
                self._writing_since = time.monotonic()
            try:
                if group:
                    self._write(group)
            except Exception as error:  # noqa: BLE001 (without this thread nothing could be taken any more)
                for request in group:
                    request.error = None if request.receipts else request.error or error
            with self._mutex:
                self._writing_since = None
            self._signals.wake([request.waiter for request in group], self._give_turn)

    def _next_group(self) -> list[_Request]:
        """The oldest requests, at least one unless none waits, up to `GROUP_EVENTS` events and `SLICE_BYTES`, or a part
        of a large one; `_mutex` is held.
        """
        group: list[_Request] = []
        events = size = 0
        while self._waiting:
            following = self._waiting[0]
            events += len(following.events)
            size += following.size
            if group and (events > GROUP_EVENTS or size > SLICE_BYTES or following.large):
                break
            group.append(self._waiting.popleft())
            if following.large:
                break
        self._events -= sum(len(request.events) for request in group)
        return group

    def _write(self, group: Sequence[_Request]) -> None:
        try:
            self._journal.refuse_if_full()
        except JournalError as error:
            for request in group:
                request.error = None if request.follows else error
            group = [request for request in group if request.follows]
        if group:
            self._commit(group)

    def _commit(self, group: Sequence[_Request]) -> None:
        beginnings = [request for request in group if request.rest]
        try:
            if (piece := group[0]).piece:  # alone
                piece.staged = self._journal.stage(piece.events, after=piece.after, whole=piece.whole)
                return
            appended = self._journal.append(
                [event for request in group for event in request.events],
                staging=[request.rest for request in beginnings],
                staged=[request.ends for request in group if request.ends is not None],
                admitted=True,
            )
        except JournalError as error:
            for request in group:
                request.error = error
        except Exception as error:  # noqa: BLE001 (every sender must get an answer, whatever happened)
            if len(group) == 1:
                group[0].error = error
                return
            for request in group:
                self._commit([request])
        else:
            at = 0
            for request in group:
                request.receipts = appended.receipts[at : at + len(request.events)]
                at += len(request.events)
            for request, left in zip(beginnings, appended.staged, strict=True):
                request.staged = left
            self._committed()
