"""Scalars and times as partners write them, to HubSpot's texts. No time is guessed (G12).

Messages quote at most 60 characters of a value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import ROUND_FLOOR, Context, Decimal
from email.utils import parsedate_to_datetime
from typing import Any

from marshmallow import ValidationError, missing

from bridge.intake.payload import MAX_DIGITS, SURROGATE

# --- dates and times as partners write them. No time is guessed (G12) ---
#
# Without a format a value is ISO 8601; eight digits that spell a date of 1900 to 2100 are that date; other digits are
# epoch seconds or milliseconds if that lies between 1990 and 2100. A format says otherwise: a strptime pattern, or one
# of the names of `FORMATS`. What cannot be read raises ValueError, whose message completes "<value> …" and names the
# format that would read it, where one would.

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FLOOR = Context(prec=64, rounding=ROUND_FLOOR)
_DIGITS = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_DATE = re.compile(r"(?:19|20)[0-9]{6}|2100[0-9]{4}")

#: Python would take the zone of a day for its time, and any character for what separates the two.
_DAY_WITH_ZONE = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})([zZ]|[+-][0-9]{2}:?[0-9]{2})")
_OTHER_SEPARATOR = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[^Tt ]|[0-9]{8}[^Tt ]")

#: Digits without a format are an epoch within these seconds only: from 1990 up to 2100.
_EPOCHS = (631_152_000, 4_102_444_800)
#: Microseconds that a second and a millisecond have.
_SECOND, _MILLISECOND = 1_000_000, 1_000
#: A time of RFC 2822 behind which no zone stands.
_ENDS_WITH_TIME = re.compile(r"[0-9]:[0-9]{2}$")
#: Digits of a number that is looked at as a time: more than any time has.
_MAX_DIGITS = 40
#: Day 0 of spreadsheets. Their days 1 to 60 are off by one, as they hold 1900 to be a leap year.
_EXCEL = datetime(1899, 12, 30)  # noqa: DTZ001 (its zone is that of the spreadsheet)
#: A time that has two digits wherever there may be two.
_SAMPLE = datetime(2026, 12, 31, 23, 58, 57, tzinfo=UTC)
#: What a spreadsheet's days look like, for a hint: 1954 to 2119.
_EXCEL_DAYS = (20_000, 80_000)
#: Patterns that a hint may name, those before that are likelier.
_USUAL = tuple(
    day + clock
    for day in (
        "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d", "%d/%m/%y", "%m/%d/%y",
        "%d.%m.%y", "%d %B %Y", "%d %b %Y", "%B %d, %Y", "%b %d, %Y", "%d-%b-%Y", "%Y%m%d", "%Y-%m", "%Y",
    )
    for clock in ("", " %H:%M:%S", " %H:%M", " %I:%M %p", " %I:%M:%S %p", " %H:%M:%S %z", "T%H:%M:%S", "T%H:%M:%S%z")
)  # fmt: skip
_USUAL_DIGITS = {14: "%Y%m%d%H%M%S", 12: "%Y%m%d%H%M", 4: "%Y"}


def instant(value: object, zone: tzinfo | None, formats: Sequence[str] = ()) -> datetime:
    """The point in time that a value names; `zone` is the one of texts that name none."""
    moment = _moment(value, formats)
    if moment.tzinfo is None:
        if zone is None:
            raise ValueError("has no time zone: set timezone:")
        moment = moment.replace(tzinfo=zone)
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("is out of range") from error


def calendar_day(value: object, zone: tzinfo | None, formats: Sequence[str] = ()) -> date:
    """The day that a value names: in `zone` where the value is an instant, else as it is written."""
    moment = _moment(value, formats)
    if moment.tzinfo is not None and zone is not None:
        try:
            return moment.astimezone(zone).date()
        except OverflowError as error:
            raise ValueError("is out of range") from error
    return moment.date()


def midnight_in_utc(value: object, formats: Sequence[str] = ()) -> date | None:
    """The day whose midnight in UTC a value names; None where it names another time, or no zone."""
    moment = _moment(value, formats)
    in_utc = moment.utcoffset() == timedelta(0) and moment.time() == time.min
    return moment.date() if in_utc else None


def microseconds(value: object, zone: tzinfo | None, formats: Sequence[str] = ()) -> int:
    """The same instant as microseconds since the epoch, fractions of them cut off."""
    return (instant(value, zone, formats) - EPOCH) // _MICROSECOND


def iso_utc(moment: datetime) -> str:
    """ISO 8601 in UTC, milliseconds only where there are any (finer fractions are cut off)."""
    moment = moment.astimezone(UTC)
    text = moment.isoformat(timespec="milliseconds" if moment.microsecond >= 1000 else "seconds")
    return text[:-6] + "Z"


def check_format(pattern: str) -> str | None:
    """Why `pattern` does not describe a date, or None when it does."""
    if pattern in FORMATS:
        return None
    if "%" not in pattern:
        written = _as_strptime(pattern)
        hint = f"; write {written!r}" if written else f"; it is a pattern such as '%d/%m/%Y', or {_listed(FORMATS)}"
        return f"{pattern!r} is not a date format{hint}"
    directives = set(re.findall(r"%(.)", pattern))
    if "d" in directives and not directives & {"Y", "y", "G"}:  # strptime takes no day without a year from 3.15 on
        return f"{pattern!r} leaves out the year"
    sample = _SAMPLE
    try:
        read = datetime.strptime(sample.strftime(pattern), pattern)  # noqa: DTZ007 (only its date counts)
    except (ValueError, re.error) as error:
        return f"{pattern!r} is not a date format: {error}"
    if read.year != sample.year:
        return f"{pattern!r} leaves out the year"
    if ("I" in directives) != ("p" in directives):
        return f"{pattern!r} leaves out the half of the day: hours up to 12 are %I with %p, those up to 24 %H"
    # A year or a month alone is its first day.
    whole = (read.month, read.day) in {(12, 31), (12, 1), (1, 1)}
    return None if whole else f"{pattern!r} leaves out the month"


def write(moment: datetime, pattern: str) -> str | int | Decimal:
    """A moment of 1900 or later in a format, as a partner would send it."""
    microseconds = (moment.astimezone(UTC) - EPOCH) // _MICROSECOND
    match pattern:
        case "epoch":
            return microseconds // _SECOND
        case "epoch_ms":
            return microseconds // _MILLISECOND
        case "excel":
            days = Decimal((moment.replace(tzinfo=None) - _EXCEL) // timedelta(seconds=1)) / 86_400
            return days.quantize(Decimal("0.00001")).normalize()
        case "rfc2822":
            return moment.strftime("%a, %d %b %Y %H:%M:%S %z")
        case _:
            return moment.strftime(pattern)


# --- reading ------------------------------------------------------------------------------------


def _moment(value: object, formats: Sequence[str]) -> datetime:
    if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
        raise ValueError("is not a date")  # noqa: TRY004 (a value is invalid, not our call)
    text = format(value, "f") if isinstance(value, Decimal) else str(value).strip()
    if formats:
        for pattern in formats:
            try:
                return _in_format(text, pattern)
            except (ValueError, OverflowError, ArithmeticError):
                continue
        raise ValueError(f"is not a date written as {_listed(formats, quoted=False)}")
    if isinstance(value, str) and not _DIGITS.fullmatch(text):
        return _iso(text)
    if len(text) <= _MAX_DIGITS:
        if _DATE.fullmatch(text) and (day := _date_of_digits(text)) is not None:
            return day
        number = Decimal(text)
        for unit in (_SECOND, _MILLISECOND):
            if _EPOCHS[0] * _SECOND <= number * unit < _EPOCHS[1] * _SECOND:
                return _epoch(number, unit)
    raise ValueError(_hinted("are digits that may mean several things", text))


def _in_format(text: str, pattern: str) -> datetime:
    if (read := FORMATS.get(pattern)) is not None:
        return read(text)
    if not text.isdigit():
        return datetime.strptime(text, pattern)  # noqa: DTZ007 (the caller knows the zone)
    # A number has lost the zeros at its beginning. Fewer digits than that could be divided in several ways.
    digits = text.zfill(len(_SAMPLE.strftime(pattern)))
    moment = datetime.strptime(digits, pattern)  # noqa: DTZ007 (the same)
    if moment.strftime(pattern) != digits:
        raise ValueError("has other digits than the pattern")
    return moment


def _date_of_digits(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, "%Y%m%d")  # noqa: DTZ007 (a day has no zone)
    except ValueError:
        return None


def _iso(text: str) -> datetime:
    try:
        if (day := _DAY_WITH_ZONE.fullmatch(text)) is not None:  # as XML writes days
            return datetime.fromisoformat(f"{day[1]}T00:00{day[2]}")
        if _OTHER_SEPARATOR.match(text) is not None:
            raise ValueError("separates date and time by neither T nor a blank")  # noqa: TRY301 (told as others)
        return datetime.fromisoformat(text.upper() if text[-1:] == "z" else text)
    except ValueError as error:
        raise ValueError(_hinted("is not an ISO 8601 date", text)) from error


def _number(text: str) -> Decimal:
    if not _DIGITS.fullmatch(text) or len(text) > _MAX_DIGITS:
        raise ValueError("is not a number")
    return Decimal(text)


def _epoch(number: Decimal, unit: int) -> datetime:
    return EPOCH + timedelta(microseconds=int(_FLOOR.to_integral_value(_FLOOR.multiply(number, unit))))


def _excel(text: str) -> datetime:
    # Spreadsheets keep fractions of a day as binary numbers: to the nearest millisecond is what was meant.
    milliseconds = (_number(text) * 86_400_000).to_integral_value()
    return _EXCEL + timedelta(milliseconds=int(milliseconds))


def _rfc2822(text: str) -> datetime:
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, IndexError) as error:  # what the library raises for some texts
        raise ValueError("is not a date of RFC 2822") from error
    if moment.tzinfo is not None or _ENDS_WITH_TIME.search(text):
        return moment
    if text.endswith("-0000"):  # a time in UTC of which the zone is not told [RFC 5322, 3.3]
        return moment.replace(tzinfo=UTC)
    raise ValueError("ends in something that is no zone of RFC 2822")


#: The formats that have a name.
FORMATS: Mapping[str, Callable[[str], datetime]] = {
    "epoch": lambda text: _epoch(_number(text), _SECOND),
    "epoch_ms": lambda text: _epoch(_number(text), _MILLISECOND),
    "excel": _excel,
    "rfc2822": _rfc2822,
}

# --- hints --------------------------------------------------------------------------------------


def _hinted(complaint: str, text: str) -> str:
    found = list(dict.fromkeys(_would_read(text)))[:2]
    return f"{complaint}; format: {_listed(found)} would read it" if found else complaint


def _would_read(text: str) -> Iterator[str]:
    """The formats that a text may have been written in, the likeliest first."""
    if _DIGITS.fullmatch(text):
        if len(text) <= _MAX_DIGITS and _EXCEL_DAYS[0] <= Decimal(text) < _EXCEL_DAYS[1]:
            yield "excel"
        elif (pattern := _USUAL_DIGITS.get(len(text))) and _is_read(text, pattern):
            yield pattern
        else:
            yield from (name for name in ("epoch", "epoch_ms") if _is_read(text, name))
    elif len(text) <= _MAX_DIGITS:
        yield from (pattern for pattern in _USUAL if _is_read(text, pattern))
        if _is_read(text, "rfc2822"):
            yield "rfc2822"


def _is_read(text: str, pattern: str) -> bool:
    try:
        year = _in_format(text, pattern).year
    except (ValueError, OverflowError, ArithmeticError):
        return False
    return pattern in FORMATS or 1900 <= year <= 2100


def _listed(words: Sequence[str] | Mapping[str, object], *, quoted: bool = True) -> str:
    texts = [word if word in FORMATS or not quoted else f'"{word}"' for word in words]
    return " or ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


#: What other programs write in place of strptime's letters.
_LETTERS = {
    "YYYY": "%Y", "yyyy": "%Y", "YY": "%y", "yy": "%y", "MMMM": "%B", "MMM": "%b", "MM": "%m", "M": "%m",
    "DD": "%d", "dd": "%d", "D": "%d", "d": "%d", "HH": "%H", "hh": "%H", "mm": "%M", "ss": "%S",
}  # fmt: skip


def _as_strptime(pattern: str) -> str | None:
    """A pattern such as DD/MM/YYYY in strptime's letters; None where it is none."""
    written = re.sub("|".join(_LETTERS), lambda found: _LETTERS[found[0]], pattern)
    return written if written != pattern and check_format(written) is None else None


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
    """The beginning of a value for a message, control characters escaped."""
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
