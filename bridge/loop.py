"""The event loop of a worker process, and the threads beside it.

Requests of partners are greenlets in one thread: a slow or idle client costs a few kilobytes, not a thread, and
the interpreter's lock is not passed around. Nothing is monkey-patched: whatever may block (the disk, the CRM, the
admin port's queries) runs in threads of the ordinary kind, and the loop waits for them without standing still.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gevent
from gevent import hub as gevent_hub
from gevent.lock import BoundedSemaphore
from gevent.threadpool import ThreadPool

from bridge.intake.unreadable import LateBodyError

WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

#: Bytes of a body that goes to another thread; what is longer is cut, and then no JSON any more.
MAX_BODY = 1 << 20


def breathe() -> None:
    """Let the other greenlets go first."""
    gevent.sleep(0)


class Turns:
    """How many greenlets work at once; the others wait, in order."""

    def __init__(self, size: int) -> None:
        self._semaphore = BoundedSemaphore(size)

    def acquire(self, *, timeout: float) -> bool:
        return bool(self._semaphore.acquire(timeout=timeout))

    def release(self) -> None:
        self._semaphore.release()


class LoopBell:
    """What one greenlet waits for."""

    __slots__ = ("_hub", "_rung", "_waiting")

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._rung = False
        self._waiting: Any = None

    def wait(self, timeout_s: float) -> bool:
        """Whether it was rung within the time."""
        if self._rung:
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
        return self._rung

    def ring(self) -> None:
        """Wake who waits; called in the loop."""
        self._rung = True
        if self._waiting is not None:
            self._waiting.switch()


class LoopSignals:
    """How greenlets wait for a thread: it wakes the loop once for all of them. Built in the loop's thread."""

    def __init__(self) -> None:
        self._hub = gevent_hub.get_hub()
        self._rung: deque[tuple[Sequence[LoopBell], Callable[[], None]]] = deque()
        self._async = self._hub.loop.async_()
        self._async.start(self._wake)

    def bell(self) -> LoopBell:
        return LoopBell(self._hub)

    def soon(self, act: Callable[[], None]) -> None:
        """Act once every greenlet that can go on now has had its turn."""
        self._hub.loop.run_callback(act)

    def ring(self, bells: Sequence[LoopBell], then: Callable[[], None]) -> None:
        """Wake the greenlets, then act. Called by another thread."""
        self._rung.append((bells, then))
        self._async.send()

    def _wake(self) -> None:
        while self._rung:
            bells, then = self._rung.popleft()
            for bell in bells:
                bell.ring()
            self._hub.loop.run_callback(then)


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
