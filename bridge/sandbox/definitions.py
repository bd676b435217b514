"""What the sandbox's properties are: name, type, options, unique or read-only."""

from __future__ import annotations

import threading
from dataclasses import dataclass
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
