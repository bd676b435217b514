"""Users' own marshmallow schemas, and the processes in which they run.

`schema: module.path:ClassName`, a marshmallow schema of the user's own in place of `properties:`.

`load()` gets the event and returns {property: str | number | bool | date | datetime | list | None}.
None and blank text leave the property out, "" clears it. Keys of the event that the schema does not
name are left aside unless its `Meta` says otherwise; those that cannot be a property's name are invalid.

Schemas run in processes of their own (`bridge.intake.schema_process`), which have nothing of ours but what Python
needs, and are killed when they take too long: a thread could not be ended, and a regular expression keeps the
interpreter to itself. Whatever a schema raises, returns or does concerns that one event only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import tzinfo
from typing import Any, TypeVar

import orjson

from bridge.errors import BridgeError, MappingError
from bridge.http.waiting import Permits, Wait, wait_in_thread
from bridge.intake.expressions import ExpressionError, Frame
from bridge.intake.interpreter import SCHEMA_S
from bridge.intake.language import Path
from bridge.intake.payload import to_json
from bridge.intake.schema_process import ANSWER, LENGTH
from bridge.intake.values import Gap, Reading, UnmappableError

# --- the processes in which users' schemas run (`bridge.intake.schema_process`), seen from ours ---
#
# One that was killed or has ended is replaced outside of any request, by a thread: a start takes as long as the modules
# take to be imported.

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
    """A schema cannot be used, or could not do what was asked; the message says why."""


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
        """Import a schema now, and in every process that starts later. Returns why it cannot be used, if so.
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


#: Processes that one worker has for all its schemas.
PROCESSES = 2
#: Seconds that a schema may take for an event. What takes longer is parked: it would hold up its own source only, but
#: a sender gives up after some seconds.
EVENT_S = 1.0
#: An event is parked when it has lost so many processes, the last of which had served no other: what others left there
#: is not its fault, nor who kills a process just then.
LOSSES = 2


class Schemas:
    """The processes for all schemas of one configuration. They start with the first one that is used, end with this
    object, and import what stands there then: another object takes what has changed.

    Who maps several requests at once lets them go through `queue`, so that `PROCESSES` processes are enough.
    """

    def __init__(self) -> None:
        self._pool = Pool()
        self._faults: dict[str, str | None] = {}
        self._permits: Permits | None = None
        weakref.finalize(self, self._pool.close)

    def fault(self, name: str) -> str | None:
        """Why a schema cannot be used, if so: imports its module."""
        if name not in self._faults:
            self._faults[name] = self._pool.learn(name)
        return self._faults[name]

    def declared(self, name: str) -> Mapping[str, str]:
        """The properties that a schema's fields make, each with the key that it is read from; none where that is not
        known.
        """
        return self._pool.declared.get(name, {})

    def queue(self) -> Queue:
        """For one source."""
        if self._permits is None:
            self._permits = Permits(PROCESSES)
        return Queue(self._permits, self._pool)

    def load(self, name: str, zone: tzinfo | None, event: Mapping[str, Any], frame: Frame) -> Reading:
        """An event's properties. Raises UnmappableError."""
        request = f"load\n{name}\n{zone or ''}\n{to_json(event)}".encode()
        try:
            found = self._loaded(name, request, frame)
        except SchemaError as error:
            raise UnmappableError(str(error)) from error
        if "error" in found:
            raise UnmappableError(found["error"])
        return Reading(found["valid"], found["invalid"])

    def call(self, name: str, function: Callable[..., Any]) -> Any:
        """What a function of ours makes of the schema, as JSON can hold it. Raises SchemaError."""
        if (fault := self.fault(name)) is not None:
            raise SchemaError(fault)
        request = f"call\n{name}\n{function.__module__}:{function.__qualname__}\n".encode()
        with self._pool.lent(wait_in_thread, IMPORT_S) as process:
            found, _ = process.ask(request, wait_in_thread, IMPORT_S)
        if "error" in found:
            raise SchemaError(found["error"])
        return found["result"]

    def _loaded(self, name: str, request: bytes, frame: Frame) -> dict[str, Any]:
        """What a process answers. The request's time is what the schema takes, not how long we take to ask and hear."""
        lost, fresh = 0, True
        while True:
            if frame.schema_s <= 0:
                raise SchemaError(f"the schema took more than {SCHEMA_S:g} s for the events of one request")
            began, ours_s = time.monotonic(), 0.0
            try:
                with self._pool.lent(frame.wait, frame.schema_s) as process:
                    fresh, asked = not process.served, time.monotonic()
                    found, took_s = process.load(name, request, frame.wait, EVENT_S)
                    ours_s = time.monotonic() - asked - took_s
            except LostError:
                lost += 1
                if fresh and lost >= LOSSES:
                    raise
            else:
                return found
            finally:
                frame.schema_s -= time.monotonic() - began - ours_s


class OwnSchema:
    """The user's schema, as a block reads values with it."""

    def __init__(
        self,
        name: str,
        path: Path,
        zone: tzinfo | None,
        schemas: Schemas,
        problems: list[MappingError],
    ) -> None:
        self._name = name
        self._zone = zone
        self._schemas = schemas
        if (fault := schemas.fault(name)) is not None:
            problems.append(MappingError(path, f"{name!r} cannot be used: {fault}"))
        self._keys = schemas.declared(name)
        self._looked_for = frozenset(self._keys)

    @property
    def looked_for(self) -> frozenset[str]:
        """See bridge.intake.values.Values. What it does not declare cannot be counted: it may come from the payload."""
        return self._looked_for

    def read(self, event: dict[str, Any], frame: Frame) -> Reading:
        """See bridge.intake.values.Values."""
        reading = self._schemas.load(self._name, self._zone, event, frame)
        try:
            frame.keep(sum(map(len, reading.valid.values())))
        except ExpressionError as error:
            raise UnmappableError(f"the values {error}") from error
        return reading._replace(gaps=tuple(self._gaps(event, reading)))

    def _gaps(self, event: Mapping[str, Any], reading: Reading) -> Iterator[Gap]:
        for name, key in self._keys.items():
            if reading.valid.get(name) or name in reading.invalid:
                continue
            if name in reading.valid:
                yield Gap(name, "null")
            else:
                yield Gap(name, "null" if key in event else "absent", key)


class Queue:
    """How the requests of one source with schemas wait for each other, so that it holds up nobody else."""

    def __init__(self, permits: Permits, pool: Pool) -> None:
        self._own = Permits(1)
        self._permits = permits
        self._pool = pool

    def enter(self, wait: Wait, timeout_s: float) -> bool:
        """Whether it is this request's turn, and a process is there for it, within the time."""
        deadline = time.monotonic() + timeout_s
        if not self._own.take(wait, timeout_s):
            return False
        if self._permits.take(wait, deadline - time.monotonic()):
            if self._pool.is_ready(wait, deadline - time.monotonic()):
                return True
            self._permits.give_back()
        self._own.give_back()
        return False

    def leave(self) -> None:
        self._permits.give_back()
        self._own.give_back()
