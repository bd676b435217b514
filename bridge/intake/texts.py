"""Scalars as HubSpot's texts, and what HubSpot takes for one. Raises marshmallow's ValidationError.

Messages quote at most 60 characters of a value.
"""

from __future__ import annotations

import re
from datetime import date, datetime, tzinfo
from decimal import Decimal
from typing import Any

from marshmallow import ValidationError, missing

from bridge.intake.payload import MAX_DIGITS, SURROGATE
from bridge.intake.times import instant, iso_utc

#: The longest text that HubSpot takes as a property's value.
MAX_TEXT = 65_536
#: What may be the name of a property.
PROPERTY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,254}")
#: Characters without a shape that Python calls printable: joiners, fillers, selectors and the empty Braille cell.
_INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    + "".join(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
)
#: How much of a value a message may quote.
_SHOWN = 60

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
#: What is written as a space between thousands: also the ones that do not break a line.
_SPACES = str.maketrans({"\u00a0": " ", "\u2009": " ", "\u202f": " "})


def show(value: object) -> str:
    """A short cut of a value for a message, control characters escaped."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = _scalar_text(value)
    return repr(text[:_SHOWN]) + ("…" if len(text) > _SHOWN else "")


def text_of(value: object) -> str:
    """The text of a scalar; numbers without exponent. Raises ValidationError for anything else."""
    if isinstance(value, (str, bool, int, float, Decimal)):
        return _scalar_text(value)
    raise ValidationError(f"is {show(value)} where one value is expected")


def plain_number(number: Decimal) -> str:
    """Decimal text without exponent and without zeros that say nothing."""
    text = format(number, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text


def safe_text(text: str) -> str:
    """A text that HubSpot can take as a value. Raises ValidationError for one that it cannot."""
    if len(text) > MAX_TEXT:
        raise ValidationError(f"has {len(text)} characters; HubSpot takes {MAX_TEXT}")
    if (what := unstorable(text)) is not None:
        raise ValidationError(f"is {show(text)}, which holds {what}")
    if appends(text):
        raise ValidationError("begins with ';', which would append")
    return text


def unstorable(text: str) -> str | None:
    """What a text holds that neither HubSpot nor a database takes, for messages; None where it holds nothing such."""
    if "\0" in text:
        return "a NUL character"
    if not text.isascii() and SURROGATE.search(text):
        return "half a surrogate pair"
    return None


def appends(text: str) -> bool:
    """Whether HubSpot may take it for options to add to those that are there: nobody knows what it passes over before
    it looks for the ';', so nothing counts there that people cannot see.
    """
    if ";" not in text:
        return False
    first = next(char for char in text if char != " " and char.isprintable() and char not in _INVISIBLE)
    return first == ";"


def join_texts(texts: list[str]) -> str:
    """Several options as one value. Raises ValidationError where one of them holds a ';'."""
    for text in texts:
        if ";" in text:
            raise ValidationError(f"holds the element {show(text)} with a ';' in it")
    return safe_text(";".join(dict.fromkeys(texts)))


class Marks:
    """The marks with which texts write numbers, such as 1.234,50."""

    def __init__(self, decimal: str, thousands: str) -> None:
        self._decimal, self._thousands = decimal, thousands
        mark = re.escape(thousands)
        threes, twos = rf"[0-9]{{0,2}}(?:{mark}[0-9]{{3}})+", rf"[0-9]?(?:{mark}[0-9]{{2}})+{mark}[0-9]{{3}}"
        groups = f"[1-9](?:{threes}|{twos})|" if thousands else ""
        self._written = re.compile(rf"[+-]?(?:{groups}[0-9]*)(?:{re.escape(decimal)}[0-9]*)?")

    def plain(self, text: str) -> str:
        """The text without these marks, or nothing where it is not written so: a mark between other than three digits
        (in India two, but for the last three) stands for something else.
        """
        text = text.translate(_SPACES) if self._thousands == " " else text
        if not self._written.fullmatch(text):
            return ""
        return text.replace(self._thousands, "").replace(self._decimal, ".")


def read_number(value: object, marks: Marks | None = None) -> Decimal:
    """The exact number that a number or a text is. Raises ValidationError."""
    if isinstance(value, Decimal):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return Decimal(value)
    if isinstance(value, str):
        text = value.strip() if marks is None else marks.plain(value.strip())
        if len(text) <= MAX_DIGITS and _NUMBER.fullmatch(text):
            number = Decimal(text)
            exponent = int(number.as_tuple().exponent)
            if abs(exponent) <= MAX_DIGITS and abs(number.adjusted()) <= MAX_DIGITS:
                return number
    raise ValidationError(f"is {show(value)}, not a number")


def text_of_result(value: object, zone: tzinfo | None) -> Any:
    """The text of what a user's own schema returned: `missing` for None and blank text, "" clears."""
    if isinstance(value, datetime):
        try:
            return iso_utc(instant(value.isoformat(), zone))
        except ValueError as error:
            raise ValidationError(f"is {value.isoformat()!r}, which {error}") from error
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float):
        value = Decimal(repr(value))
    if isinstance(value, Decimal):
        if not value.is_finite() or abs(value.adjusted()) > MAX_DIGITS:
            raise ValidationError("is not a finite number")
        return plain_number(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        texts = [text_of_result(element, zone) for element in value]
        texts = [text for text in texts if text is not missing and text]
        return join_texts(texts) if texts else missing
    if value is None or (isinstance(value, str) and value and value.isspace()):
        return missing
    return safe_text(text_of(value))


def _scalar_text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return format(value, "f")
    return str(value)
