"""The sandbox's properties, and whether HubSpot would take a value for one."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

FIELD_TYPES = {
    "string": "text",
    "number": "number",
    "date": "date",
    "datetime": "date",
    "bool": "booleancheckbox",
    "enumeration": "select",
    "phone_number": "phonenumber",
    "json": "text",
    "object_coordinates": "text",
}

#: Types that HubSpot keeps to itself; writing them is refused like a read-only property [docs PROPS].
INTERNAL_TYPES = frozenset({"json", "object_coordinates"})


@dataclass(frozen=True, slots=True)
class PropertyDefinition:
    """One property as the Properties API describes it [spec PROP-v3].

    `options` are the internal values that an enumeration takes. `field_type` "checkbox" makes it a
    list (`"a;b"`), "" stands for the type's usual one. `email` and `owner` add the checks that HubSpot
    makes for e-mail addresses and owner ids. Raises ValueError for a type HubSpot does not have.
    """

    name: str
    type: str = "string"
    field_type: str = ""
    label: str = ""
    options: tuple[str, ...] = ()
    unique: bool = False
    read_only: bool = False
    calculated: bool = False
    email: bool = False
    owner: bool = False

    def __post_init__(self) -> None:
        if self.type not in FIELD_TYPES:
            raise ValueError(f"{self.name}: no property type {self.type!r}; one of {', '.join(FIELD_TYPES)}")

    @property
    def multiple(self) -> bool:
        """Whether a value is a list of options separated by semicolons."""
        return self.field_type == "checkbox"

    @property
    def writable(self) -> bool:
        return not (self.read_only or self.calculated or self.type in INTERNAL_TYPES)

    def as_json(self) -> dict[str, Any]:
        """The `Property` object of the Properties API [spec PROP-v3]."""
        options = ("true", "false") if self.type == "bool" else self.options
        return {
            "name": self.name,
            "label": self.label or self.name.replace("_", " ").capitalize(),
            "type": self.type,
            "fieldType": self.field_type or FIELD_TYPES[self.type],
            "groupName": "partner_information",
            "description": "",
            "options": [
                {
                    "label": value.capitalize(),
                    "value": value,
                    "displayOrder": place,
                    "hidden": False,
                    "description": "",
                }
                for place, value in enumerate(options)
            ],
            "displayOrder": -1,
            "calculated": self.calculated,
            "externalOptions": self.owner,
            "hasUniqueValue": self.unique,
            "hidden": False,
            "hubspotDefined": self.name.startswith(("hs_", "hubspot_")),
            "formField": False,
            "archived": False,
            "modificationMetadata": {
                "archivable": True,
                "readOnlyDefinition": False,
                "readOnlyValue": not self.writable,
            },
        }


#: What every object type has.
COMMON = (
    PropertyDefinition("hs_object_id", "number", label="Record ID", read_only=True),
    PropertyDefinition("hs_lastmodifieddate", "datetime", read_only=True),
    PropertyDefinition("lastmodifieddate", "datetime", read_only=True),
    PropertyDefinition("createdate", "datetime", read_only=True),
    PropertyDefinition("hubspot_owner_id", "enumeration", label="Owner", owner=True),
)

#: Our own choice: HubSpot publishes no property list for partner_clients [spec PC-v3].
PARTNER_CLIENTS = (
    PropertyDefinition("company_name"),
    PropertyDefinition("annual_revenue", "number"),
    PropertyDefinition("renewal_date", "date"),
    PropertyDefinition("last_seen_at", "datetime"),
    PropertyDefinition("active", "bool"),
    PropertyDefinition("tier", "enumeration", options=("gold", "silver", "bronze")),
    PropertyDefinition(
        "products",
        "enumeration",
        "checkbox",
        options=("crm", "marketing", "sales", "service", "cms", "commerce", "data"),
    ),
    PropertyDefinition("contact_email"),
    PropertyDefinition("phone", "phone_number"),
    PropertyDefinition("lifecycle", "enumeration", options=("lead", "trial", "active", "paused", "churned", "closed")),
    PropertyDefinition("notes", field_type="textarea"),
    PropertyDefinition("acme_client_id", unique=True),
    PropertyDefinition("external_id", unique=True),
    PropertyDefinition("hs_health_score", "number", calculated=True, read_only=True),
)


class Properties:
    """All definitions, by object type. Thread-safe: `_lock` guards `_defined`.

    `open_properties`: an undeclared name counts as a string property, and as unique when it is used as
    an id property, so that anybody's own configuration works. Otherwise it does not exist.
    """

    def __init__(self, *, open_properties: bool = True) -> None:
        self.open_properties = open_properties
        self._lock = threading.Lock()
        self._common = {definition.name: definition for definition in COMMON}
        self._defined: dict[str, dict[str, PropertyDefinition]] = {
            "partner_clients": self._common | {definition.name: definition for definition in PARTNER_CLIENTS}
        }

    def define(self, object_type: str, definition: PropertyDefinition) -> None:
        """Add a definition, or put it in place of the one of that name."""
        with self._lock:
            known = self._defined.get(object_type, self._common)
            # Copied, not changed: `table` hands dictionaries out that calls in progress still read.
            self._defined[object_type] = {**known, definition.name: definition}

    def retire(self, object_type: str, name: str) -> None:
        """Take a definition away; while `open_properties` is set, the name is then a plain string's."""
        with self._lock:
            known = self._defined.get(object_type, self._common)
            self._defined[object_type] = {key: value for key, value in known.items() if key != name}

    def table(self, object_type: str) -> dict[str, PropertyDefinition]:
        """The definitions of one object type by name; not to be changed."""
        with self._lock:
            return self._defined.get(object_type, self._common)

    def identifies(self, object_type: str, name: str) -> bool:
        """Whether `name` may be an `idProperty`: `hasUniqueValue` is asked for [docs PROPS]."""
        definition = self.table(object_type).get(name)
        return self.open_properties if definition is None else definition.unique


# --- whether HubSpot would take a value for a property, and its words when it would not ---
#
# Rules by type: [docs PROPS]. Codes: [issue/forum AMP, docs ERR] as far as they were seen; `VALUE_TOO_LONG`,
# `INVALID_OWNER_ID` and `CONFLICTING_UNIQUE_VALUE` are [unverified].

#: The longest text that a property holds, in characters [docs PROPS].
MAX_TEXT = 65_536
DAY_MS = 86_400_000
#: Epoch milliseconds below this (1973) are epoch seconds sent by mistake, which HubSpot may refuse with
#: INVALID_DATE [docs changelog "CRM API Write Validation Enforcement"].
SECONDS_SUSPECTED_BELOW_MS = 100_000_000_000

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_EPOCH = re.compile(r"-?\d{1,15}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_UTC = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?(Z|[+-]00:?00)")
_EMAIL = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)+")


@dataclass(frozen=True, slots=True)
class Flaw:
    """Why one value is refused: HubSpot's code and sentence."""

    name: str
    code: str
    message: str
    value: str = ""


def missing(name: str, value: str) -> Flaw:
    """The flaw of a value for a property that does not exist."""
    return Flaw(name, "PROPERTY_DOESNT_EXIST", f'Property "{name}" does not exist', value)


def check(definition: PropertyDefinition, value: str) -> Flaw | None:
    """The flaw of `value`, or None when HubSpot takes it. The empty text clears and always fits."""
    name = definition.name
    if not definition.writable:
        kind = "calculated" if definition.calculated else "read only"
        return Flaw(name, "READ_ONLY_VALUE", f'"{name}" is a {kind} property; its value cannot be set.', value)
    if not value:
        return None
    if definition.owner:
        if value.isascii() and value.isdigit():
            return None
        return Flaw(name, "INVALID_OWNER_ID", f"{value} was not a valid owner id.", value)
    return _CHECKS[definition.type](definition, value)


def _text(definition: PropertyDefinition, value: str) -> Flaw | None:
    if len(value) > MAX_TEXT:
        message = f"{definition.name} is {len(value)} characters long, at most {MAX_TEXT} are allowed."
        return Flaw(definition.name, "VALUE_TOO_LONG", message)
    if definition.email and not _EMAIL.fullmatch(value):
        return Flaw(definition.name, "INVALID_EMAIL", f"Email address {value} is invalid", value)
    return None


def _number(definition: PropertyDefinition, value: str) -> Flaw | None:
    if _NUMBER.fullmatch(value):
        return None
    return Flaw(definition.name, "INVALID_INTEGER", f"{value} was not a valid number.", value)


def _not_a_time(definition: PropertyDefinition, value: str) -> Flaw:
    return Flaw(definition.name, "INVALID_LONG", f"{value} was not a valid long.", value)


def _date(definition: PropertyDefinition, value: str) -> Flaw | None:
    if _EPOCH.fullmatch(value):
        if int(value) % DAY_MS == 0:
            return None
        return Flaw(definition.name, "INVALID_DATE", f"{value} is not at midnight UTC.", value)
    if not _DATE.fullmatch(value):
        return _not_a_time(definition, value)
    try:
        date.fromisoformat(value)
    except ValueError:
        return _not_a_time(definition, value)
    return None


def _datetime(definition: PropertyDefinition, value: str) -> Flaw | None:
    if _EPOCH.fullmatch(value):
        if abs(int(value)) >= SECONDS_SUSPECTED_BELOW_MS:
            return None
        return Flaw(definition.name, "INVALID_DATE", f"{value} is not a time in milliseconds.", value)
    if not _UTC.fullmatch(value):
        return _not_a_time(definition, value)
    try:
        datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        return _not_a_time(definition, value)
    return None


def _options(definition: PropertyDefinition, value: str) -> Flaw | None:
    allowed = ("true", "false") if definition.type == "bool" else definition.options
    # A leading semicolon appends; spaces around one belong to the option and so match none [docs PROPS].
    chosen = value.removeprefix(";").split(";") if definition.multiple else [value]
    wrong = next((option for option in chosen if option not in allowed), None)
    if wrong is None:
        return None
    message = f"{wrong} was not one of the allowed options: [{', '.join(allowed)}]"
    return Flaw(definition.name, "INVALID_OPTION", message, value)


def merged(definition: PropertyDefinition | None, before: str, value: str) -> str:
    """What a property holds once `value` is written: `";d;e"` appends to a list of options [docs PROPS]."""
    if definition is None or not definition.multiple or not value.startswith(";"):
        return value
    kept = before.split(";") if before else []
    return ";".join([*kept, *(option for option in value[1:].split(";") if option not in kept)])


_CHECKS: dict[str, Callable[[PropertyDefinition, str], Flaw | None]] = {
    "string": _text,
    "phone_number": _text,
    "number": _number,
    "date": _date,
    "datetime": _datetime,
    "bool": _options,
    "enumeration": _options,
}
