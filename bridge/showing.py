"""How what was written elsewhere is shown to people, and what pauses and failures mean for them.

A text that was written elsewhere is shown with everything escaped that is no visible character: controls, marks of
direction, what has no width, ends of lines. So it can neither steer a terminal nor forge a line, nor look like another.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime, timedelta
from typing import Any

import orjson

MICROSECONDS = 1_000_000
#: The Gregorian calendar repeats itself after so many years, which are so many days.
_CYCLE_YEARS, _CYCLE_DAYS = 400, 146_097
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: A run of what JSON may hold and people cannot see; its own ends of lines and blanks are no part of a text.
_UNSEEN = re.compile(r"[^\n\x20-\x7e]+")


def iso(us: int | None) -> str | None:
    """Microseconds since the epoch as ISO 8601 in UTC, to the millisecond."""
    return None if us is None else f"{exact_iso(us)[:-4]}Z"


def exact_iso(us: int) -> str:
    """The same to the microsecond, for any number: beyond the years 1 to 9999 a year has a sign, as ISO 8601 says."""
    seconds, fraction = divmod(us, MICROSECONDS)
    days, second = divmod(seconds, 86_400)
    cycles, day = divmod(days + _EPOCH.toordinal() - 1, _CYCLE_DAYS)
    of_cycle = date.fromordinal(day + 1)
    year = of_cycle.year + cycles * _CYCLE_YEARS
    written = f"{year:04}" if 1 <= year <= 9_999 else f"{year:+05}"
    minute, second = divmod(second, 60)
    return f"{written}-{of_cycle:%m-%d}T{minute // 60:02}:{minute % 60:02}:{second:02}.{fraction:06}Z"


def microseconds_of(moment: datetime) -> int:
    """A point in time, which names its zone, as microseconds since the epoch."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def printable(text: str, *, keep: str = "") -> str:
    """With everything escaped that is no visible character, but for those of `keep`."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode() for char in text
    )


def printable_json(document: Any, *, indented: bool = False) -> str:
    """A JSON document in which nothing stands raw that people cannot see; it reads as the same values.

    What is no value of JSON is written as its text.
    """
    try:
        text = orjson.dumps(document, default=str, option=orjson.OPT_INDENT_2 if indented else 0).decode()
    except TypeError:  # a number of more than 64 bits, or half a character
        text = json.dumps(document, default=str, indent=2 if indented else None)
    return text if text.isprintable() else _UNSEEN.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return "".join(char if char.isprintable() else _as_json(char) for char in found[0])


def _as_json(char: str) -> str:
    units = char.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


# --- what pauses and failures mean for people, and what they should do: in the console and on the command line ---

#: A pause: reason → what happened, and what to do.
_PAUSES = {
    "operator": (
        "Delivery was stopped by a person.",
        "Webhooks are still taken and wait in the journal. Resume when the reason is gone.",
    ),
    "unauthorized": (
        "HubSpot does not accept the credential.",
        "Put a valid token where the configuration points to; delivery goes on within seconds, without a restart.",
    ),
    "forbidden": (
        "The credential lacks a permission.",
        "Give the app the scopes of this object type in HubSpot; delivery is tried again by itself.",
    ),
    "misconfigured": (
        "HubSpot refuses every record of this kind.",
        "Compare the mapping with the portal (partner-bridge check --portal); delivery is tried again by itself.",
    ),
    "daily_limit": (
        "The day's calls are spent.",
        "Delivery goes on by itself at the portal's midnight; raise crm.rate_limit.daily if HubSpot grants more.",
    ),
    "rate_limited": ("HubSpot asks for patience.", "Nothing to do: delivery goes on by itself at the time it named."),
    "outage": ("HubSpot cannot be reached, or answers with errors.", "Look at its status page; it is tried again."),
    "migrating": ("HubSpot moves this account to another data centre.", "Nothing to do: it ends within a day."),
}
_OTHER_PAUSE = ("Delivery is paused.", "Nothing is lost; it is tried again by itself.")

#: An entry of the retry log: category → what to do.
_FAILURES = {
    "OBJECT_NOT_FOUND": "Make the record in HubSpot, or correct its id, then replay. The source's on_unknown says what "
    "becomes of such changes from now on.",
    "VALIDATION_ERROR": "Mend the property in HubSpot, or the source's mapping, then replay.",
    "UNMAPPABLE": "Mend the source's mapping, then replay: what was kept is mapped again. Discard what the partner "
    "should not have sent.",
    "UNCONFIRMED": "HubSpot never told what became of it. Look at the record there, then replay: the same value twice "
    "does no harm.",
    "GAVE_UP": "It failed for all of retry.give_up_after. Mend what the message tells, then replay.",
}
_OTHER_FAILURE = "Mend what the message tells, in HubSpot or in the source's mapping, then replay."
_RETRYING = "Nothing to do: it is sent again by itself. A replay sends it now."


def advised(pause: dict[str, Any]) -> dict[str, Any]:
    """The pause with what it means, what to do, and whether a person can end it here."""
    what, todo = _PAUSES.get(pause["reason"], _OTHER_PAUSE)
    return pause | {"what": what, "todo": todo, "by_person": pause["reason"] == "operator"}


def what_to_do(category: str, state: str = "parked") -> str:
    """What to do about an entry of the retry log, or about all of a category. A newer value is never overwritten."""
    return _RETRYING if state == "retrying" else _FAILURES.get(category, _OTHER_FAILURE)
