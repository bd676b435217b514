"""A total deadline for a call that no server can beat: at the deadline its socket is shut down.

Timeouts of a socket are per `recv`: a server that sends a byte a second, be it of headers, of a proxy's
answer or of the body, resets them at each byte. So every call is watched by one thread that knows the
socket it uses at the moment. What no deadline can cut is the name look-up, which the resolver bounds.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from contextvars import ContextVar
from typing import Any

import requests.adapters
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

#: Seconds the watching thread sleeps at most, so that it ends soon after `close`.
_LONGEST_SLEEP_S = 1.0


class Watched:
    """One call under watch. `sent`: bytes of the request may have left; `cut`: the deadline struck.

    Thread-safe: `_lock` guards the socket against being shut down after the call has ended.
    """

    def __init__(self, *, deadline: float) -> None:
        self.deadline = deadline
        self.sent = False
        self.cut = False
        self.connecting = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._over = False

    def uses(self, sock: socket.socket | None) -> None:
        with self._lock:
            self._socket = sock
            if self.cut:
                self._shut()

    def strike(self) -> None:
        """End the call now, whatever it waits for."""
        with self._lock:
            if not self._over:
                self.cut = True
                self._shut()

    def end(self) -> None:
        with self._lock:
            self._over = True
            self._socket = None

    def _shut(self) -> None:
        # The base class's method: SSLSocket.shutdown would drop the TLS layer under the reading thread,
        # which then took cipher text for an answer.
        if self._socket is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Watch:
    """Strikes the calls whose deadline has passed. Thread-safe: `_changed` guards `_calls`."""

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._calls: set[Watched] = set()
        self._closed = False
        self._thread: threading.Thread | None = None

    def begin(self) -> Watched:
        """Watch a call of the current thread; `end` must follow. Raises RuntimeError when no thread is to be had."""
        call = Watched(deadline=time.monotonic() + self._timeout_s)
        with self._changed:
            if not self._closed and (self._thread is None or not self._thread.is_alive()):
                thread = threading.Thread(target=self._run, name="crm-deadlines", daemon=True)
                thread.start()
                self._thread = thread
            self._calls.add(call)
            if self._closed:
                call.strike()
            elif len(self._calls) == 1:  # all deadlines are equally far: only the first one needs a wake-up
                self._changed.notify()
        _current.set(call)
        return call

    def end(self, call: Watched) -> None:
        call.end()
        _current.set(None)
        with self._changed:
            self._calls.discard(call)

    def close(self) -> None:
        """Strike every open call and every later one."""
        with self._changed:
            self._closed = True
            for call in self._calls:
                call.strike()
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for call in self._calls:
                    if call.deadline <= now:
                        call.strike()
                ahead = [call.deadline - now for call in self._calls if not call.cut]
                self._changed.wait(min([*ahead, _LONGEST_SLEEP_S]) if self._calls else 60.0)


#: The call that the current thread makes; connections are opened deep inside of urllib3.
_current: ContextVar[Watched | None] = ContextVar("bridge_crm_call", default=None)


class _WatchedHTTP(HTTPConnection):
    def connect(self) -> None:
        with _connecting():
            super().connect()

    def send(self, data: Any) -> None:
        if self.sock is None and self.auto_open:
            self.connect()
        _about_to_send(self.sock)
        super().send(data)


class _WatchedHTTPS(HTTPSConnection):
    def connect(self) -> None:
        with _connecting():
            super().connect()

    def send(self, data: Any) -> None:
        if self.sock is None and self.auto_open:
            self.connect()
        _about_to_send(self.sock)
        super().send(data)


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _WatchedHTTP


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _WatchedHTTPS


class WatchedAdapter(requests.adapters.HTTPAdapter):
    """A transport adapter whose connections tell the current call which socket it uses."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
        return manager


@contextlib.contextmanager
def _connecting() -> Any:
    call = _current.get()
    if call is None:
        yield
        return
    call.connecting = True
    try:
        yield
    finally:
        call.connecting = False


def _about_to_send(sock: socket.socket | None) -> None:
    """Bytes leave now: those of the request itself unless a tunnel is being asked for."""
    call = _current.get()
    if call is not None:
        call.uses(sock)
        call.sent = call.sent or not call.connecting
