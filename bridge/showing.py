"""How what partners, the CRM and the journal say is written for people: times, texts and JSON.

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
