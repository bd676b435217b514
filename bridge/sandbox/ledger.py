"""What happened to the sandbox: every call, every applied value, every breach of the contract.

Memory is bounded: of calls and of applied inputs the newest `max_inputs` inputs each are kept (a call
without inputs weighs as one), of violations the newest 10,000. `dropped_*` count what was let go.
"""

from __future__ import annotations

import bisect
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from bridge.model import Clock, SystemClock
from bridge.sandbox.records import Address

#: An input of eight properties takes some 1.5 kB in both logs together: the default bounds them at about 400 MB.
DEFAULT_MAX_INPUTS = 250_000
MAX_VIOLATIONS = 10_000


class Input(NamedTuple):
    """One input of a batch call, as it was sent."""

    id: str
    id_property: str
    trace_id: str
    properties: Mapping[str, str]


@dataclass(slots=True)
class Call:
    """One call of the API. `started` and `ended` are seconds on a monotonic clock, `started_at` since
    the epoch. `ended` is None while the call is open, `status` is None where no answer was given.
    `endpoint` is update, read, list, get, properties, token or usage; `fault` the kind of fault played.
    """

    seq: int
    endpoint: str
    path: str
    object_type: str
    inputs: tuple[Input, ...]
    started: float
    started_at: float
    ended: float | None = None
    status: int | None = None
    fault: str | None = None
    correlation_id: str = ""


class Applied(NamedTuple):
    """One value that was written; `seq` counts them in the order of application."""

    seq: int
    at: float
    call: int
    object_type: str
    id_property: str
    id: str
    record_id: str
    property: str
    value: str


class ViolationKind(StrEnum):
    """What a client of HubSpot must not do."""

    DUPLICATE = "record twice in one call"
    OVERLAP = "record in two open calls"
    NOT_A_STRING = "value is not a string"
    TOO_MANY = "more than 100 inputs"
    EMPTY = "no inputs"
    MISSING_ID = "input without id"
    MALFORMED = "malformed body"
    RATE_LIMITED = "call over the rate limit"


@dataclass(frozen=True, slots=True)
class Violation:
    call: int
    kind: ViolationKind
    detail: str


class Ledger:
    """Thread-safe: `_lock` guards everything. The same record counts as open in two calls by the address
    used: two addresses of one record are the sender's own affair. A call whose client has closed the
    connection is no longer open, however long its processing goes on.
    """

    def __init__(self, *, max_inputs: int = DEFAULT_MAX_INPUTS, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._max_inputs = max_inputs
        self._lock = threading.Lock()
        self._calls: deque[Call] = deque()
        self._kept_inputs = 0
        self._last_call = 0
        self._applied: deque[tuple[int, float, int, Address, str, dict[str, str]]] = deque(maxlen=max_inputs)
        self._last_applied = 0
        self._violations: deque[Violation] = deque(maxlen=MAX_VIOLATIONS)
        self._open: dict[Address, tuple[Call, Callable[[], bool]]] = {}
        self._statuses: Counter[str] = Counter()
        self.dropped_calls = 0

    def begin(
        self,
        endpoint: str,
        path: str,
        object_type: str,
        inputs: Sequence[Input],
        *,
        connected: Callable[[], bool] = lambda: True,
    ) -> Call:
        """Open a call; `connected` tells later whether its client still waits for the answer."""
        now = self._clock.monotonic()
        with self._lock:
            self._last_call += 1
            call = Call(self._last_call, endpoint, path, object_type, tuple(inputs), now, self._clock.now())
            self._calls.append(call)
            self._kept_inputs += max(1, len(call.inputs))
            while self._kept_inputs > self._max_inputs and len(self._calls) > 1:
                self._kept_inputs -= max(1, len(self._calls.popleft().inputs))
                self.dropped_calls += 1
            if endpoint == "update":
                self._open_addresses(call, connected)
        return call

    def finish(self, call: Call, status: int | None) -> None:
        """Close a call. To be called before the last byte of its answer leaves: the client may send the
        same record again as soon as it has read it.
        """
        with self._lock:
            if call.ended is not None:
                return
            call.ended = self._clock.monotonic()
            call.status = status
            self._statuses["no answer" if status is None else str(status)] += 1
            for item in call.inputs:
                address = Address(call.object_type, item.id_property, item.id)
                if address in self._open and self._open[address][0] is call:
                    del self._open[address]

    def violate(self, call: Call, kind: ViolationKind, detail: str) -> None:
        with self._lock:
            self._violations.append(Violation(call.seq, kind, detail))

    def apply(self, call: Call, address: Address, record_id: str, values: dict[str, str]) -> None:
        """Log the values that were just written to one record; the caller holds `Records.lock`."""
        with self._lock:
            entry = (self._last_applied, self._clock.now(), call.seq, address, record_id, values)
            self._applied.append(entry)
            self._last_applied += len(values)

    def calls(self, endpoint: str | None = None, *, after: int = 0) -> list[Call]:
        """Copies of the calls that are kept, oldest first, open ones included."""
        with self._lock:
            return [
                replace(call)
                for call in self._calls
                if call.seq > after and (endpoint is None or call.endpoint == endpoint)
            ]

    def applied(self, *, after: int = 0, limit: int | None = None) -> list[Applied]:
        """The applied values that are kept and whose `seq` is above `after`, oldest first."""
        with self._lock:
            entries = list(self._applied)
        found: list[Applied] = []
        # An entry holds the values base+1 … base+n: the last one with base <= after may still count.
        first = max(0, bisect.bisect_right(entries, after, key=lambda entry: entry[0]) - 1)
        for base, at, call, address, record_id, values in entries[first:]:
            for place, (name, value) in enumerate(values.items(), start=base + 1):
                if place > after:
                    found.append(Applied(place, at, call, *address, record_id, name, value))
            if limit is not None and len(found) >= limit:
                return found[:limit]
        return found

    def violations(self, kind: ViolationKind | None = None) -> list[Violation]:
        with self._lock:
            return [violation for violation in self._violations if kind is None or violation.kind == kind]

    @property
    def last_applied(self) -> int:
        """The number of the newest applied value, 0 before the first."""
        with self._lock:
            return self._last_applied

    def counts(self) -> dict[str, int]:
        """How many calls were answered how: {status: calls}, "no answer" among them."""
        with self._lock:
            return dict(self._statuses)

    def clear(self) -> None:
        """Forget everything but the open calls; numbers go on counting."""
        with self._lock:
            self._calls.clear()
            self._kept_inputs = 0
            self._applied.clear()
            self._violations.clear()
            self._statuses.clear()
            self.dropped_calls = 0

    def _open_addresses(self, call: Call, connected: Callable[[], bool]) -> None:
        mine: set[Address] = set()
        for item in call.inputs:
            address = Address(call.object_type, item.id_property, item.id)
            if address in mine:
                self._violations.append(Violation(call.seq, ViolationKind.DUPLICATE, str(tuple(address))))
                continue
            mine.add(address)
            other = self._open.get(address)
            if other is not None and other[1]():
                detail = f"{tuple(address)}, also in call {other[0].seq}"
                self._violations.append(Violation(call.seq, ViolationKind.OVERLAP, detail))
            self._open[address] = (call, connected)
