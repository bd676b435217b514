"""The sandbox's records: which exist, how they are addressed, what they hold. No HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bridge.model import RecordKey

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
        """Of records that become one the older stays; those that were one stay so."""
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
