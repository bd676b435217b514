"""`schema: module.path:ClassName`, a marshmallow schema of the user's own in place of `properties:`.

`load()` gets the event and returns {property: str | number | bool | date | datetime | list | None}.
None and blank text leave the property out, "" clears it. Keys of the event that the schema does not
name are left aside unless its `Meta` says otherwise; those that cannot be a property's name are invalid.

Schemas run in processes of their own (`bridge.intake.schema_process`), which have nothing of ours but what Python
needs, and are killed when they take too long: a thread could not be ended, and a regular expression keeps the
interpreter to itself. Whatever a schema raises, returns or does concerns that one event only.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from datetime import tzinfo
from typing import Any

from bridge.errors import MappingError
from bridge.intake.expressions import ExpressionError, Scope
from bridge.intake.interpreter import SCHEMA_S
from bridge.intake.payload import to_json
from bridge.intake.schema_pool import IMPORT_S, LostError, Pool, SchemaError
from bridge.intake.values import Gap, Reading, UnmappableError
from bridge.intake.waiting import Permits, Wait, wait_in_thread

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

    Who maps several requests at once lets them go through `lane`, so that there are no more processes than `PROCESSES`.
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

    def lane(self) -> Lane:
        """For one source."""
        if self._permits is None:
            self._permits = Permits(PROCESSES)
        return Lane(self._permits, self._pool)

    def load(self, name: str, zone: tzinfo | None, event: Mapping[str, Any], scope: Scope) -> Reading:
        """An event's properties. Raises UnmappableError."""
        request = f"load\n{name}\n{zone or ''}\n{to_json(event)}".encode()
        try:
            found = self._loaded(name, request, scope)
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

    def _loaded(self, name: str, request: bytes, scope: Scope) -> dict[str, Any]:
        """What a process answers. The request's time is what the schema takes, not how long we take to ask and hear."""
        lost, fresh = 0, True
        while True:
            if scope.schema_s <= 0:
                raise SchemaError(f"the schema took more than {SCHEMA_S:g} s for the events of one request")
            began, ours_s = time.monotonic(), 0.0
            try:
                with self._pool.lent(scope.wait, scope.schema_s) as process:
                    fresh, asked = not process.served, time.monotonic()
                    found, took_s = process.load(name, request, scope.wait, EVENT_S)
                    ours_s = time.monotonic() - asked - took_s
            except LostError:
                lost += 1
                if fresh and lost >= LOSSES:
                    raise
            else:
                return found
            finally:
                scope.schema_s -= time.monotonic() - began - ours_s


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
        self._keys = schemas.declared(name)
        self._looked_for = frozenset(self._keys)

    @property
    def looked_for(self) -> frozenset[str]:
        """See bridge.intake.values.Values. What it does not declare cannot be counted: it may come from the payload."""
        return self._looked_for

    def read(self, event: dict[str, Any], scope: Scope) -> Reading:
        """See bridge.intake.values.Values."""
        reading = self._schemas.load(self._name, self._zone, event, scope)
        try:
            scope.keep(sum(map(len, reading.valid.values())))
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


class Lane:
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
