"""`schema: module.path:ClassName`, a marshmallow schema of the user's own in place of `properties:`.

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
import time
import weakref
from collections.abc import Callable, Mapping
from datetime import tzinfo
from typing import Any

import orjson

from bridge.errors import BridgeError, MappingError
from bridge.intake.expressions import ExpressionError, Scope
from bridge.intake.interpreter import SCHEMA_S
from bridge.intake.payload import to_json
from bridge.intake.schema_process import LENGTH
from bridge.intake.values import Reading, UnmappableError
from bridge.intake.waiting import Permits, Wait, wait_in_thread

#: Processes that one worker has for all its schemas.
PROCESSES = 2
#: Seconds that a schema may take for an event. What takes longer is parked: it would hold up its own source only, but
#: a sender gives up after some seconds.
EVENT_S = 1.0
#: Seconds for its module to be imported when the configuration is read.
IMPORT_S = 30.0
#: Bytes of an answer: an event of a megabyte may become some more.
MAX_ANSWER = 8 << 20

#: What of our environment a schema's process gets. The rest may hold secrets, and is of no use to a function of events.
_ENVIRONMENT = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "TMPDIR", "TZ")
_ENVIRONMENT_PREFIXES = ("LC_", "PYTHON")


class SchemaError(BridgeError):
    """A schema cannot be used, or could not do what was asked; says why."""


class _Process:
    """One process for schemas. Used by one request at a time."""

    def __init__(self) -> None:
        self.imported: set[str] = set()
        self._ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-P", "-m", "bridge.intake.schema_process", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sys.__stderr__.fileno() if sys.__stderr__ is not None else subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=_environment(),
                start_new_session=True,  # signals of a terminal are ours
            )
        self._ours.setblocking(False)

    def ask(self, request: bytes, wait: Wait, timeout_s: float) -> bytes:
        """The answer. Raises SchemaError, after which this process is of no use any more."""
        deadline = time.monotonic() + timeout_s
        try:
            self._send(len(request).to_bytes(LENGTH, "big") + request, wait, deadline)
            length = int.from_bytes(self._receive(LENGTH, wait, deadline), "big")
            if length > MAX_ANSWER:
                raise SchemaError(f"the schema returned more than {MAX_ANSWER} bytes")
            return self._receive(length, wait, deadline)
        except TimeoutError as error:
            raise SchemaError(f"the schema took more than {timeout_s:.2g} s") from error
        except OSError as error:
            raise SchemaError("the schema ended its process") from error

    def end(self) -> None:
        self._ours.close()
        self._process.kill()
        self._process.wait()

    def _send(self, message: bytes, wait: Wait, deadline: float) -> None:
        rest = memoryview(message)
        while rest:
            self._await(True, wait, deadline)
            with contextlib.suppress(BlockingIOError):
                rest = rest[self._ours.send(rest) :]

    def _receive(self, length: int, wait: Wait, deadline: float) -> bytes:
        found = bytearray()
        while len(found) < length:
            self._await(False, wait, deadline)
            with contextlib.suppress(BlockingIOError):
                part = self._ours.recv(length - len(found))
                if not part:
                    raise SchemaError("the schema ended its process")
                found += part
        return bytes(found)

    def _await(self, writing: bool, wait: Wait, deadline: float) -> None:
        if not wait(self._ours.fileno(), writing, deadline - time.monotonic()):
            raise TimeoutError


class Schemas:
    """The processes for all schemas of one configuration. They start with the first one that is used, end with this
    object, and import what stands there then: another object takes what has changed.

    Who maps several requests at once lets them go through `lane`, so that there are no more processes than `PROCESSES`.
    """

    def __init__(self) -> None:
        self._idle: list[_Process] = []
        self._faults: dict[str, str | None] = {}
        self._permits: Permits | None = None
        weakref.finalize(self, _end_all, self._idle)

    def fault(self, name: str) -> str | None:
        """Why a schema cannot be used, if so: imports its module."""
        if name not in self._faults:
            try:
                self._ask(name, b"", wait_in_thread, IMPORT_S)
            except SchemaError as error:
                self._faults[name] = str(error)
            else:
                self._faults[name] = None
        return self._faults[name]

    def lane(self) -> Lane:
        """For one source."""
        if self._permits is None:
            self._permits = Permits(PROCESSES)
        return Lane(self._permits)

    def load(self, name: str, zone: tzinfo | None, event: Mapping[str, Any], scope: Scope) -> Reading:
        """An event's properties. Raises UnmappableError."""
        if scope.schema_s <= 0:
            raise UnmappableError(f"the schema took more than {SCHEMA_S:g} s for the events of one request")
        request = f"load\n{name}\n{zone or ''}\n{to_json(event)}".encode()
        began = time.monotonic()
        try:
            found = self._ask(name, request, scope.wait, min(EVENT_S, scope.schema_s), scope.schema_s)
        except SchemaError as error:
            raise UnmappableError(str(error)) from error
        finally:
            scope.schema_s -= time.monotonic() - began
        return Reading(found["valid"], found["invalid"])

    def call(self, name: str, function: Callable[..., Any]) -> Any:
        """What a function of ours makes of the schema, as JSON can hold it. Raises SchemaError."""
        request = f"call\n{name}\n{function.__module__}:{function.__qualname__}\n".encode()
        return self._ask(name, request, wait_in_thread, IMPORT_S)["result"]

    def _ask(self, name: str, request: bytes, wait: Wait, timeout_s: float, import_s: float = IMPORT_S) -> Any:
        """What a process answers, after it has imported the schema; b"" asks for no more than that."""
        process = self._idle.pop() if self._idle else _Process()
        try:
            answer = b"{}"
            if name not in process.imported:
                path = orjson.dumps(sys.path)
                answer = process.ask(f"import\n{name}\n\n".encode() + path, wait, import_s)
                if b'"error"' not in answer:
                    process.imported.add(name)
            if request and name in process.imported:
                answer = process.ask(request, wait, timeout_s)
            found: dict[str, Any] = orjson.loads(answer)
        except BaseException:
            process.end()
            if process.imported:  # the next request need not wait for all of a start
                self._idle.append(_Process())
            raise
        self._idle.append(process)
        if "error" in found:
            raise SchemaError(found["error"])
        return found


class OwnSchema:
    """The user's schema, as a block reads values with it."""

    def __init__(
        self,
        name: str,
        path: tuple[str | int, ...],
        zone: tzinfo | None,
        schemas: Schemas,
        problems: list[MappingError],
    ) -> None:
        self._name = name
        self._zone = zone
        self._schemas = schemas
        if (fault := schemas.fault(name)) is not None:
            problems.append(MappingError(path, f"{name!r} cannot be used: {fault}"))

    def read(self, event: dict[str, Any], scope: Scope) -> Reading:
        """See bridge.intake.values.Values."""
        reading = self._schemas.load(self._name, self._zone, event, scope)
        try:
            scope.keep(sum(map(len, reading.valid.values())))
        except ExpressionError as error:
            raise UnmappableError(f"the values {error}") from error
        return reading


class Lane:
    """How the requests of one source with schemas wait for each other, so that it holds up nobody else."""

    def __init__(self, processes: Permits) -> None:
        self._own = Permits(1)
        self._processes = processes

    def enter(self, wait: Wait, timeout_s: float) -> bool:
        """Whether it is this request's turn within the time."""
        began = time.monotonic()
        if not self._own.take(wait, timeout_s):
            return False
        if self._processes.take(wait, timeout_s - (time.monotonic() - began)):
            return True
        self._own.give_back()
        return False

    def leave(self) -> None:
        self._processes.give_back()
        self._own.give_back()


def _environment() -> dict[str, str]:
    kept = {
        name: text
        for name, text in os.environ.items()
        if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)
    }
    path = os.pathsep.join(filter(None, sys.path))
    # Compiled files are told apart by second and size, and a reload must take what stands there.
    return kept | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def _end_all(processes: list[_Process]) -> None:
    while processes:
        processes.pop().end()
