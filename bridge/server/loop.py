"""The event loop of a worker process, and the threads beside it.

Requests of partners are greenlets in one thread: a slow or idle client costs a few kilobytes, not a thread, and
the interpreter's lock is not passed around. Nothing is monkey-patched: whatever may block (the disk, the CRM, the
admin port's queries) runs in threads of the ordinary kind, and the loop waits for them without standing still.
"""

from __future__ import annotations

import functools
import io
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import gevent
import gevent.socket
from gevent import hub as gevent_hub
from gevent.event import Event
from gevent.threadpool import ThreadPool

from bridge.http.problems import LateBodyError

T = TypeVar("T")
WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

#: The source whose request a greenlet works on.
_SOURCE: ContextVar[str] = ContextVar("source", default="")


def breathe() -> None:
    """Let the other greenlets go first."""
    _pace(gevent_hub.get_hub()).breathe()


def wait_for(descriptor: int, writing: bool, timeout_s: float) -> bool:
    """Whether a descriptor can be read, or written to, within the time: how greenlets wait for another process."""
    wait = gevent.socket.wait_write if writing else gevent.socket.wait_read
    try:
        wait(descriptor, timeout=max(0.0, timeout_s))
    except TimeoutError:
        return False
    return True


#: Memory, in bytes, that requests may weigh whose weight does not count: they never wait behind large ones. What is
#: usual weighs ten to thirty times its length.
LIGHT = 2 << 20
#: What the others may weigh together in one pod: a fifth of the chart's limit of 512 MiB, in which two or three of the
#: worst megabytes fit. One that is heavier by itself has its turn alone.
ROOM = 96 << 20


class Turns:
    """How many greenlets work at once, and how much the heavy ones of them weigh together; the others wait (G11).

    A quarter of the turns is kept from heavy ones, and from any single source. Light ones go first, then the source
    that holds the fewest turns.
    """

    def __init__(self, size: int, *, room: int = ROOM) -> None:
        self._free = size
        self._share = max(1, size - max(1, size // 4))
        self._room = room
        self._held: Counter[str] = Counter()  # turns, by source
        self._heavy: list[int] = []  # weights of the heavy ones at work
        self._light_line: _Line[_Waiting] = _Line()
        self._heavy_line: _Line[_Waiting] = _Line()

    def acquire(self, source: str = "", weight: int = 0, *, timeout: float) -> bool:
        """Whether it was granted within the time; by then the greenlet works on a request of this source."""
        _SOURCE.set(source)
        if weight <= LIGHT and self._free and self._held[source] < self._share:  # then nobody is there who goes first
            self._begin(source, weight)
            return True
        line = self._heavy_line if weight > LIGHT else self._light_line
        waiting = _Waiting(weight)
        line.join(source, waiting)
        self._grant()
        try:
            waiting.granted.wait(timeout)
        finally:
            if not waiting.granted.is_set():
                line.leave(source, waiting)
                self._grant()
        return waiting.granted.is_set()

    def release(self, source: str = "", weight: int = 0) -> None:
        self._free += 1
        self._held[source] -= 1
        if weight > LIGHT:
            self._heavy.remove(weight)
        self._grant()

    def _grant(self) -> None:
        for line in (self._light_line, self._heavy_line):
            while line.sources and (source := self._first(line)) is not None:
                weight = line.sources[source][0].weight
                if not self._free or (weight > LIGHT and not self._has_room(weight)):
                    return
                self._begin(source, weight)
                line.take(source).granted.set()

    def _begin(self, source: str, weight: int) -> None:
        self._free -= 1
        self._held[source] += 1
        if weight > LIGHT:
            self._heavy.append(weight)

    def _first(self, line: _Line[_Waiting]) -> str | None:
        """The source that goes first: of those that hold less than their share, the one that holds the fewest."""
        able = [source for source in line.sources if self._held[source] < self._share]
        return min(able, key=self._held.__getitem__, default=None)

    def _has_room(self, weight: int) -> bool:
        return len(self._heavy) < self._share and (not self._heavy or sum(self._heavy) + weight <= self._room)


@dataclass(eq=False, slots=True)
class _Waiting:
    """One greenlet that waits for its turn."""

    weight: int
    granted: Event = field(default_factory=Event)


class _Line(Generic[T]):
    """What waits: of each source in the order it came, the sources in the order of their last turns."""

    def __init__(self) -> None:
        self.sources: dict[str, deque[T]] = {}

    def join(self, source: str, waiting: T) -> None:
        self.sources.setdefault(source, deque()).append(waiting)

    def take(self, source: str) -> T:
        """What has waited longest of this source."""
        line = self.sources.pop(source)
        waiting = line.popleft()
        if line:
            self.sources[source] = line
        return waiting

    def leave(self, source: str, waiting: T) -> None:
        """Take out one that waits no longer."""
        line = self.sources[source]
        line.remove(waiting)
        if not line:
            del self.sources[source]


class _Pace:
    """Those that breathe go on one by one, their sources in turn, and in between the loop does whatever else there is
    to do: who needs little waits for one slice of the others' work at each step, not for a slice of each of them.
    """

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._line: _Line[gevent_hub.Waiter[None]] = _Line()
        self._timer = hub.loop.timer(0)

    def breathe(self) -> None:
        waiter: gevent_hub.Waiter[None] = gevent_hub.Waiter(self._hub)
        self._line.join(_SOURCE.get(), waiter)
        if not self._timer.active:
            self._timer.start(self._go_on)
        waiter.get()

    def _go_on(self) -> None:
        first = self._line.take(next(iter(self._line.sources)))
        if self._line.sources:
            self._timer.start(self._go_on)
        first.switch(None)


#: One for each loop.
_pace = functools.cache(_Pace)


class LoopWaiter:
    """What one greenlet waits for."""

    __slots__ = ("_hub", "_waiting", "_woken")

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._woken = False
        self._waiting: Any = None

    def wait(self, timeout_s: float) -> bool:
        """Whether it was woken within the time."""
        if self._woken:
            return True
        self._waiting = waiting = gevent.getcurrent()
        timer = self._hub.loop.timer(timeout_s)
        timer.start(waiting.switch)
        try:
            self._hub.switch()
        finally:
            self._waiting = None
            timer.stop()
            timer.close()
        return self._woken

    def wake(self) -> None:
        """Wake who waits; called in the loop."""
        self._woken = True
        if self._waiting is not None:
            self._waiting.switch()


class LoopSignals:
    """How greenlets wait for a thread: it wakes the loop once for all of them. Built in the loop's thread."""

    def __init__(self) -> None:
        self._hub = gevent_hub.get_hub()
        self._to_wake: deque[tuple[Sequence[LoopWaiter], Callable[[], None]]] = deque()
        self._async = self._hub.loop.async_()
        self._async.start(self._wake)

    def waiter(self) -> LoopWaiter:
        return LoopWaiter(self._hub)

    def soon(self, act: Callable[[], None]) -> None:
        """Act once every greenlet that can go on now has had its turn."""
        self._hub.loop.run_callback(act)

    def wake(self, waiters: Sequence[LoopWaiter], then: Callable[[], None]) -> None:
        """Wake the greenlets, then act. Called by another thread."""
        self._to_wake.append((waiters, then))
        self._async.send()

    def _wake(self) -> None:
        while self._to_wake:
            waiters, then = self._to_wake.popleft()
            for waiter in waiters:
                waiter.wake()
            self._hub.loop.run_callback(then)


#: Bytes of a body that goes to another thread; what is longer is cut, and then no JSON any more.
MAX_BODY = 1 << 20


class Threads:
    """Runs WSGI apps that may block, so many at a time, beside the loop."""

    def __init__(self, size: int) -> None:
        self._pool = ThreadPool(size)

    def serve(self, app: WSGI, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """The app's answer. The body is read here, because sockets belong to the loop; raises LateBodyError."""
        is_too_long = int(environ.get("CONTENT_LENGTH") or 0) > MAX_BODY  # the app refuses it unread
        try:
            environ["wsgi.input"] = io.BytesIO(b"" if is_too_long else environ["wsgi.input"].read(MAX_BODY))
        except TimeoutError as error:
            raise LateBodyError from error
        started: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]], _exc_info: Any = None) -> None:
            started[:] = [status, headers]

        def answer() -> list[bytes]:
            chunks = app(environ, start)
            try:
                return list(chunks)
            finally:
                if (close := getattr(chunks, "close", None)) is not None:
                    close()

        body = self._pool.apply(answer)
        start_response(*started)
        return list(body)
