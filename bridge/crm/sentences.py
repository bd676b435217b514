"""Every sentence and pattern by which a message of the CRM is read, and what may be concluded from it (G11).

HubSpot's messages quote raw what partners wrote, so a message is evidence only where it is HubSpot's from beginning to
end. Status, `category`, `policyName`, `errors[]` and `context` are HubSpot's own: they are read first, and no message
overrules them. These are all the places where a message is read:

what is read, whole        where, and what is concluded
-------------------------  --------------------------------------------------------------------------------
JSON behind `LISTED`, to   A 400, an entry of a 207's `errors[]`: the properties it names, with codes and
the end of the text        values.
`UNFIT`                    The same, and a detail that names no property: where no other property is named and
                           the name is the lane's id property, the lane is misconfigured.
`VALUES`, if divisible in  The same, where one property is named: its value. It counts only against records
one way only               of the call that have exactly this value of that property.
`DUPLICATES`               A 400: the ids of `context`, never those quoted, go in separate calls.
`LIMITS`                   A 429 without `policyName`: which limit it is, and so how long to wait.
`UNKNOWN_TYPE`             The Properties API, asked for this object type: there is none.
`gist`                     A 400 that names nothing: whether two refusals say the same.

Everything else is shown to people and steers nothing. A refusal in other words is unexplained: its records are found by
sending them apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: What may stand in a place of a sentence. Where that is any text, a partner may have written it.
_PLACES: Mapping[str, re.Pattern[str]] = {
    "name": re.compile(r"[a-z0-9_]+"),  # of a property
    "type": re.compile(r"[\w-]+", re.ASCII),  # of objects, by name or number
    "number": re.compile(r"[0-9]+"),
    "kind": re.compile(r"[A-Za-z ]+\.?"),  # of value
    "limit": re.compile(r"[a-z_]+"),
    "value": re.compile(r".+", re.DOTALL),
    "texts": re.compile(r".*", re.DOTALL),
}

_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence with places, as in `You have reached your {limit} limit.`"""

    wording: str
    _fixed: tuple[str, ...] = field(init=False, repr=False)
    _places: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_fixed", tuple(_PLACE.split(self.wording)[::2]))
        object.__setattr__(self, "_places", tuple(_PLACE.findall(self.wording)))

    def read(self, text: str) -> Mapping[str, str] | None:
        """What stands in the places, if the text is this sentence from beginning to end and can be divided in one
        way only. Takes time in proportion to the length of the text.
        """
        first, last = self._fixed[0], self._fixed[-1]
        if not self._places:
            return {} if text == self.wording else None
        if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
            return None
        rest = text[len(first) : len(text) - len(last)]
        found = []
        for part in self._fixed[1:-1]:
            at = rest.find(part)
            if at < 0 or rest.find(part, at + 1) >= 0:
                return None
            found.append(rest[:at])
            rest = rest[at + len(part) :]
        told = dict(zip(self._places, (*found, rest), strict=True))
        return told if all(_PLACES[place].fullmatch(filled) for place, filled in told.items()) else None


#: Before the JSON list of what is wrong with single values [issue/forum AMP; docs ERR].
LISTED = "Property values were not valid: "

#: Characters of such a list that are read. A value of 65,536 may stand in it three times, escaped.
MAX_LISTED = 4 * 1024 * 1024

#: Records are addressed by a property that is not unique [issue/forum segmentio/action-destinations#3957,
#: HubSpot/hubspot-api-nodejs#548], or that does not exist [issue/forum AMP]. The shorter ones [unverified].
UNFIT = (
    Sentence("Unable to perform update/upsert by non-unique {type} property {name} in portal ID {number}"),
    Sentence("Unable to perform update by non-unique property {name} in portal {number}"),
    Sentence("Unable to perform update by non-unique property {name}"),
    Sentence("Property {name} is not a unique property"),
    Sentence('Property "{name}" does not exist'),
)

#: A value does not fit [issue/forum AMP].
VALUES = (
    Sentence("{value} was not one of the allowed options: [{texts}]"),
    Sentence("{value} was not a valid {kind}"),
)

#: Two inputs are one record [issue/forum LIVE1, AMP, RUDDER]. The shorter ones [unverified].
DUPLICATES = (
    Sentence("Duplicate IDs found in batch input: [{texts}]. IDs must be unique"),
    Sentence("Duplicate IDs found in batch input: [{texts}]."),
    Sentence("Duplicate IDs found in batch input"),
)

#: A 429 [docs LIMITS; issue/forum HubSpot/hubspot-api-python#117].
LIMITS = (Sentence("You have reached your {limit} limit."),)

#: The Properties API, asked for an object type that there is not [capture AMP].
UNKNOWN_TYPE = (Sentence("Unable to infer object type from: {type}"),)


def listed(message: str) -> list[dict[str, Any]]:
    """The single errors that stand as JSON within a message."""
    if not message.startswith(LISTED) or len(message) > MAX_LISTED:
        return []
    try:
        found = json.loads(message[len(LISTED) :])
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) and all(isinstance(item, dict) for item in found) else []


def unfit(message: str) -> str | None:
    """The property of which it says that no record can be addressed by it."""
    return _told(UNFIT, "name", message)


def value(message: str) -> str | None:
    """The value of which it says that it does not fit."""
    return _told(VALUES, "value", message)


def is_duplicates(message: str) -> bool:
    """Whether it says that two inputs are one record."""
    return any(sentence.read(message) is not None for sentence in DUPLICATES)


def limit(message: str) -> str:
    """The name of the limit that was reached, which `policyName` writes in capitals; else nothing."""
    return _told(LIMITS, "limit", message) or ""


def unknown_type(message: str) -> str | None:
    """The object type of which it says that there is none."""
    return _told(UNKNOWN_TYPE, "type", message)


def gist(message: str) -> str:
    """Equal for two messages that say the same, but for numbers."""
    return re.sub(r"\d+", "#", message)


def _told(sentences: tuple[Sentence, ...], place: str, message: str) -> str | None:
    for sentence in sentences:
        if (told := sentence.read(message)) is not None:
            return told[place]
    return None
