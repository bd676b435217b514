"""The sandbox's records, and the ledger of what happened to them. No HTTP."""

from __future__ import annotations

import bisect
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from bridge.model import Clock, RecordKey, SystemClock

#: Record ids given to records that were first addressed by an id property start here.
FIRST_RECORD_ID = 101_000_000_001


class Address(NamedTuple):
    """How a call names a record; `id_property` is "" for HubSpot's record id."""

    object_type: str
    id_property: str
    id: str


@dataclass(slots=True)
class Record:
    """One record. `unique` holds the id property values it was first addressed by, `properties` what
    was written to it. Changed only under `Records.lock`.
    """

    id: str
    object_type: str
    created_at: str
    updated_at: str
    properties: dict[str, str] = field(default_factory=dict)
    unique: dict[str, str] = field(default_factory=dict)
    archived: bool = False

    def all_properties(self) -> dict[str, str]:
        """What a read returns."""
        return {
            **self.unique,
            **self.properties,
            "hs_object_id": self.id,
            "createdate": self.created_at,
            "lastmodifieddate": self.updated_at,
        }


class Records:
    """All records. `lock` guards everything below it and is held by callers for a whole call, so that a
    batch is applied as one step and the log of applied values is in the order of application.

    Open world (`strict` False): a record comes into existence when it is first addressed, but ids that
    start with "unknown" (any case) never do. Strict: only records that were added exist.
    `fold_case`: ids that differ in letter case only name one record, as e-mail addresses do.
    """

    def __init__(
        self, *, known: Iterable[RecordKey] | None = None, strict: bool = False, fold_case: bool = False
    ) -> None:
        self.strict = strict or known is not None
        self._fold_case = fold_case
        self.lock = threading.RLock()
        self._found: dict[Address, Record] = {}
        self._addressed: dict[Address, Record] = {}
        self._silent: set[Address] = set()
        self._last_id = FIRST_RECORD_ID - 1
        for key in known or ():
            self.add(key.lane.object_type, key.id, id_property=key.lane.id_property)

    def add(
        self,
        object_type: str,
        *ids: str,
        id_property: str = "",
        properties: Mapping[str, str] | None = None,
        now: str = "2026-01-01T00:00:00.000Z",
    ) -> None:
        """Make records exist (again); `properties` are written to each of them."""
        with self.lock:
            for id_ in ids:
                address = Address(object_type, id_property, id_)
                record = self.ensure(address, now)
                record.archived = False
                self._silent.discard(self._key(address))
                record.properties.update(properties or {})
                if properties:
                    self._addressed[address] = record

    def archive(self, object_type: str, id_: str, *, id_property: str = "") -> None:
        """Archive a record: from now on it is answered as not found ([unverified] by the reference)."""
        with self.lock:
            self.ensure(Address(object_type, id_property, id_), "").archived = True

    def merge(self, object_type: str, id_: str, into: str, *, id_property: str = "", silent: bool = True) -> None:
        """Merge a record into another one.

        `silent`: inputs for `id_` get neither a result nor an error and change nothing [issue/forum
        RUDDER]. Otherwise `id_` becomes a second name of the survivor, so that both in one call are
        "Duplicate IDs" [issue/forum segmentio/action-destinations#3969].
        """
        with self.lock:
            address = Address(object_type, id_property, id_)
            self._found[self._key(address)] = self.ensure(Address(object_type, id_property, into), "")
            if silent:
                self._silent.add(self._key(address))

    @property
    def fold_case(self) -> bool:
        return self._fold_case

    @fold_case.setter
    def fold_case(self, fold_case: bool) -> None:
        """Where two records become one, the older stays; records that were one stay one."""
        with self.lock:
            self._fold_case = fold_case
            for address in [*self._found]:
                self._found.setdefault(self._key(address), self._found[address])
            self._silent.update([self._key(address) for address in self._silent])

    # --- for a call, under `lock` ---------------------------------------------------------------

    def find(self, address: Address) -> Record | None:
        """The record, archived or not, or None: it may still come into existence, see `may_exist`."""
        return self._found.get(self._key(address) if self.fold_case else address)

    def is_silent(self, address: Address) -> bool:
        """Whether inputs for this address are dropped without a word."""
        return bool(self._silent) and self._key(address) in self._silent

    def may_exist(self, address: Address) -> bool:
        """Whether an address that was never used is taken for an existing record's."""
        return not self.strict and address.id[:7].lower() != "unknown"

    def identity(self, address: Address) -> object:
        """Equal for two addresses exactly when they name one record."""
        record = self.find(address)
        return self._key(address) if record is None else record.id

    def ensure(self, address: Address, now: str) -> Record:
        """The record at this address, created if need be."""
        record = self.find(address)
        if record is not None:
            return record
        object_type, id_property, id_ = address
        record = Record(self._new_id(object_type) if id_property else id_, object_type, now, now)
        if id_property:
            record.unique[id_property] = id_
            self._found[self._key(Address(object_type, "", record.id))] = record
        self._found[self._key(address)] = record
        return record

    def holder(self, object_type: str, name: str, value: str) -> Record | None:
        """The record that has `value` in the unique property `name`."""
        return self.find(Address(object_type, name, value))

    def write(self, address: Address, record: Record, values: Mapping[str, str], now: str) -> None:
        """Set values and remember the address used, for `state`."""
        record.properties.update(values)
        record.updated_at = now
        self._addressed[address] = record

    def reindex(self, record: Record, name: str, value: str) -> None:
        """A unique property changed: the record is found by the new value, no longer by the old one."""
        old = record.properties.get(name, record.unique.pop(name, ""))
        self._found.pop(self._key(Address(record.object_type, name, old)), None)
        if value:
            self._found[self._key(Address(record.object_type, name, value))] = record

    # --- for people and tests -------------------------------------------------------------------

    def of_type(self, object_type: str) -> Iterator[Record]:
        """The records that are not archived, oldest first."""
        with self.lock:
            seen = {record.id: record for record in self._found.values() if record.object_type == object_type}
        return (record for record in seen.values() if not record.archived)

    def state(self, *, id_property: str | None = None) -> dict[str, dict[str, dict[str, str]]]:
        """{object type: {id as it was addressed: {property: value}}}, written values only.

        `id_property` narrows to addresses by that property ("": by record id). A text that was used by
        several id properties of one object type appears as `property=text` for each of them.
        """
        with self.lock:
            used = [
                (address, dict(record.properties))
                for address, record in self._addressed.items()
                if id_property is None or address.id_property == id_property
            ]
        properties_of: dict[tuple[str, str], set[str]] = {}
        for address, _ in used:
            properties_of.setdefault((address.object_type, address.id), set()).add(address.id_property)
        found: dict[str, dict[str, dict[str, str]]] = {}
        for address, values in used:
            ambiguous = len(properties_of[address.object_type, address.id]) > 1
            name = f"{address.id_property or 'id'}={address.id}" if ambiguous else address.id
            found.setdefault(address.object_type, {})[name] = values
        return found

    def clear(self) -> None:
        """Forget every record, also those that were added."""
        with self.lock:
            self._found.clear()
            self._addressed.clear()
            self._silent.clear()

    def _key(self, address: Address) -> Address:
        return address._replace(id=address.id.lower()) if self.fold_case else address

    def _new_id(self, object_type: str) -> str:
        self._last_id += 1
        while Address(object_type, "", str(self._last_id)) in self._found:
            self._last_id += 1
        return str(self._last_id)


# --- what happened to the sandbox: every call, every applied value, every breach of the contract ---
#
# Memory is bounded: of calls and of applied inputs the newest `max_inputs` inputs each are kept (a call
# without inputs weighs as one), of violations the newest 10,000. `dropped_*` count what was let go.

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
