"""The processes in which users' schemas run (`bridge.intake.schema_process`), seen from ours.

One that was killed or has ended is replaced outside of any request, by a thread: a start takes as long as the modules
take to be imported.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import orjson

from bridge.errors import BridgeError
from bridge.intake.schema_process import ANSWER, LENGTH
from bridge.intake.waiting import Permits, Wait, wait_in_thread

#: Seconds for a schema's module to be imported.
IMPORT_S = 30.0
#: Bytes of an answer: an event of a megabyte may become some more.
MAX_ANSWER = 8 << 20

#: What of our environment a schema's process gets. The rest may hold secrets, and is of no use to a function of events.
_ENVIRONMENT = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ")
_ENVIRONMENT_PREFIXES = ("LC_", "PYTHON")

Given = TypeVar("Given")
Found = TypeVar("Found")


class SchemaError(BridgeError):
    """A schema cannot be used, or could not do what was asked; says why."""


class LostError(SchemaError):
    """The process ended, or has no memory left: perhaps through what it was asked, perhaps through what came before."""


class Process:
    """One process for schemas. Used by one request at a time. Raises SchemaError if the system grants none."""

    def __init__(self) -> None:
        #: The schemas that it was to import, and what was wrong.
        self.faults: dict[str, str | None] = {}
        #: The properties that they declare: see `schema_process.declared`.
        self.declared: dict[str, dict[str, str]] = {}
        #: Whether it has answered an event.
        self.served = False
        try:
            self._ours, theirs = socket.socketpair()
        except OSError as error:
            raise _no_process(error.strerror) from error
        self._ours.setblocking(False)
        with theirs:
            command = [sys.executable, "-P", "-m", "bridge.intake.schema_process", str(theirs.fileno())]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=sys.__stderr__.fileno() if sys.__stderr__ is not None else subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env=_environment(),
                    start_new_session=True,  # signals of a terminal are ours
                )
            except OSError as error:
                self._ours.close()
                raise _no_process(error.strerror) from error

    def learn(self, name: str) -> None:
        """Have it import a schema."""
        found, _ = self.ask(f"import\n{name}\n\n".encode() + orjson.dumps(sys.path), wait_in_thread, IMPORT_S)
        self.faults[name] = found.get("error")
        self.declared[name] = found.get("declared", {})

    def load(self, name: str, request: bytes, wait: Wait, timeout_s: float) -> tuple[dict[str, Any], float]:
        """See `ask`, which this does for an event."""
        if (fault := self.faults.get(name)) is not None:
            return {"error": f"the schema could not be imported again: {fault}"}, 0.0
        self.served = True
        return self.ask(request, wait, timeout_s)

    def ask(self, request: bytes, wait: Wait, timeout_s: float) -> tuple[dict[str, Any], float]:
        """The answer, and the seconds that it took there. Raises SchemaError, after which this process is of no use."""
        try:
            self._send(len(request).to_bytes(LENGTH, "big") + request, wait, timeout_s)
            length, took_us = ANSWER.unpack(self._receive(ANSWER.size, wait, timeout_s))
            if length > MAX_ANSWER:
                raise SchemaError(f"the schema returned more than {MAX_ANSWER} bytes")
            found: dict[str, Any] = orjson.loads(self._receive(length, wait, timeout_s))
        except TimeoutError as error:
            raise SchemaError(f"the schema took more than {timeout_s:.2g} s") from error
        except OSError as error:
            raise LostError("the schema ended its process") from error
        except ValueError as error:
            raise SchemaError("the schema spoke for its process") from error
        if found.get("lost"):
            raise LostError(found["error"])
        return found, took_us / 1e6

    def lives(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        self._process.kill()
        self._ours.close()
        self._process.wait()

    def _send(self, message: bytes, wait: Wait, timeout_s: float) -> None:
        rest = memoryview(message)
        while rest:
            rest = rest[self._when_ready(self._ours.send, rest, wait, timeout_s, writing=True) :]

    def _receive(self, length: int, wait: Wait, timeout_s: float) -> bytes:
        found = bytearray()
        while len(found) < length:
            part = self._when_ready(self._ours.recv, length - len(found), wait, timeout_s, writing=False)
            if not part:
                raise LostError("the schema ended its process")
            found += part
        return bytes(found)

    def _when_ready(
        self, act: Callable[[Given], Found], given: Given, wait: Wait, timeout_s: float, *, writing: bool
    ) -> Found:
        """What the socket does as soon as it can. It is tried before each wait and after the last one: when it is late
        that may be us, not the schema. Raises TimeoutError.
        """
        deadline, late = time.monotonic() + timeout_s, False
        while True:
            with contextlib.suppress(BlockingIOError):
                return act(given)
            if late:
                raise TimeoutError
            late = not wait(self._ours.fileno(), writing, deadline - time.monotonic())


class Pool:
    """The processes of one configuration. All import the same schemas, one after the other."""

    def __init__(self) -> None:
        self._names: list[str] = []
        #: The properties that each schema declares: see `schema_process.declared`.
        self.declared: dict[str, dict[str, str]] = {}
        self._lock = threading.RLock()  # a finalizer may come to `close` within any of its uses
        self._living: set[Process] = set()
        #: Processes, and why there is none for somebody who waits; `_ready` has as many permits.
        self._idle: list[Process | SchemaError] = []
        self._ready = Permits(0)
        self._starting = self._waiting = 0
        self._closed = False

    def learn(self, name: str) -> str | None:
        """Import a schema here and now, and in every process that starts later. Returns why it cannot be used, if so.
        For the time before the first request.
        """
        try:
            process = self._take(wait_in_thread, 0) if self._idle else self._made()
            try:
                process.learn(name)
            except BaseException:
                self._drop(process)
                raise
        except SchemaError as error:
            return str(error)
        if process.faults[name] is None:
            self._names.append(name)
            self.declared[name] = process.declared[name]
        self._put(process)
        return process.faults[name]

    @contextmanager
    def lent(self, wait: Wait, timeout_s: float) -> Iterator[Process]:
        """A process, which is killed and replaced if what is done with it raises. Raises SchemaError when none is
        ready within the time.
        """
        process = self._take(wait, timeout_s)
        try:
            yield process
        except BaseException:
            self._drop(process)
            with contextlib.suppress(SchemaError):  # whoever needs it tries again
                self._start()
            raise
        self._put(process)

    def is_ready(self, wait: Wait, timeout_s: float) -> bool:
        """Whether a process is there for whoever comes next, within the time."""
        try:
            self._put(self._take(wait, timeout_s))
        except SchemaError:
            return False
        return True

    def close(self) -> None:
        """End them all, those that are being asked or started too."""
        with self._lock:
            self._closed = True
            living = list(self._living)
        for process in living:
            self._drop(process)

    def _take(self, wait: Wait, timeout_s: float) -> Process:
        deadline = time.monotonic() + timeout_s
        with self._lock:
            self._waiting += 1
        try:
            while True:
                if self._waiting > self._starting + len(self._idle):
                    self._start()
                if not self._ready.take(wait, deadline - time.monotonic()):
                    raise SchemaError("the schema is being started")
                found = self._idle.pop()
                if isinstance(found, SchemaError):
                    raise found
                if found.lives():
                    return found
                self._drop(found)
        finally:
            with self._lock:
                self._waiting -= 1

    def _put(self, found: Process | SchemaError) -> None:
        self._idle.append(found)
        self._ready.give_back()

    def _drop(self, process: Process) -> None:
        process.end()
        with self._lock:
            self._living.discard(process)

    def _start(self) -> None:
        with self._lock:
            self._starting += 1
        try:
            threading.Thread(target=self._started, name="schemas", daemon=True).start()
        except RuntimeError as error:
            with self._lock:
                self._starting -= 1
            raise _no_process(error) from error

    def _started(self) -> None:
        found: Process | SchemaError
        try:
            found = self._made()
        except SchemaError as error:
            found = error
        with self._lock:
            self._starting -= 1
            wanted = isinstance(found, Process) or self._waiting
        if wanted:
            self._put(found)

    def _made(self) -> Process:
        process = Process()
        with self._lock:
            self._living.add(process)
            closed = self._closed
        if closed:
            self._drop(process)
            raise SchemaError("the schemas are not used any more")
        try:
            for name in tuple(self._names):
                process.learn(name)
        except BaseException:
            self._drop(process)
            raise
        return process


def _no_process(why: object) -> SchemaError:
    return SchemaError(f"no process for schemas can be started: {why}")


def _environment() -> dict[str, str]:
    kept = {
        name: text
        for name, text in os.environ.items()
        if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)
    }
    path = os.pathsep.join(filter(None, sys.path))
    # Compiled files are told apart by second and size, and a reload must take what stands there.
    return kept | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
