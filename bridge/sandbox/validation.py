"""Whether HubSpot would take a value for a property, and its words when it would not.

Rules by type: [docs PROPS]. Codes: [issue/forum AMP, docs ERR] as far as they were seen; `VALUE_TOO_LONG`,
`INVALID_OWNER_ID` and `CONFLICTING_UNIQUE_VALUE` are [unverified].
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime

from bridge.sandbox.definitions import PropertyDefinition

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
