"""Dates and times as partners write them: ISO 8601, epoch seconds or milliseconds, or a format.

Numbers, and texts of digits, are epochs: below 10^11 seconds, from there on milliseconds (10^11 s is
the year 5138, 10^11 ms is 1973). A text of exactly eight digits is a calendar date (20261231).
Errors are ValueErrors whose message completes "<value> …".
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import ROUND_FLOOR, Context, Decimal

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECONDS_FROM = 100_000_000_000
_MICROSECOND = timedelta(microseconds=1)
_FLOOR = Context(prec=64, rounding=ROUND_FLOOR)
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?")


def instant(value: object, zone: tzinfo | None, pattern: str | None = None) -> datetime:
    """The point in time that a value names; `zone` is the one of texts that name none."""
    moment = _moment(value, pattern)
    if moment.tzinfo is None:
        if zone is None:
            raise ValueError("has no time zone: set timezone:")
        moment = moment.replace(tzinfo=zone)
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("is out of range") from error


def calendar_day(value: object, zone: tzinfo | None, pattern: str | None = None) -> date:
    """The day that a value names: in `zone` where the value is an instant, else as it is written."""
    moment = _moment(value, pattern)
    if moment.tzinfo is not None and zone is not None:
        try:
            return moment.astimezone(zone).date()
        except OverflowError as error:
            raise ValueError("is out of range") from error
    return moment.date()


def microseconds(value: object, zone: tzinfo | None) -> int:
    """The same instant as microseconds since the epoch, fractions of them cut off."""
    return (instant(value, zone) - EPOCH) // _MICROSECOND


def iso_utc(moment: datetime) -> str:
    """ISO 8601 in UTC, milliseconds only where there are any (finer fractions are cut off)."""
    moment = moment.astimezone(UTC)
    text = moment.isoformat(timespec="milliseconds" if moment.microsecond >= 1000 else "seconds")
    return text[:-6] + "Z"


def check_format(pattern: str) -> str | None:
    """Why `pattern` does not describe a date, or None when it does."""
    sample = datetime(2026, 12, 31, 23, 58, 57, tzinfo=UTC)
    try:
        read = datetime.strptime(sample.strftime(pattern), pattern)  # noqa: DTZ007 (only its date counts)
    except (ValueError, re.error) as error:
        return f"{pattern!r} is not a date format: {error}"
    return None if read.date() == sample.date() else f"{pattern!r} leaves out the day, the month or the year"


def _moment(value: object, pattern: str | None) -> datetime:
    if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
        raise ValueError("is not a date")  # noqa: TRY004 (a value is invalid, not our call)
    if pattern is not None:
        text = format(value, "f") if isinstance(value, Decimal) else str(value).strip()
        try:
            return datetime.strptime(text, pattern)  # noqa: DTZ007 (the caller knows the zone)
        except ValueError as error:
            raise ValueError(f"is not a date written as {pattern}") from error
    if isinstance(value, str):
        text = value.strip()
        if not _NUMBER.fullmatch(text) or (len(text) == 8 and text.isdigit()):
            return _iso(text)
        value = Decimal(text)
    return _epoch(value)


def _iso(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.upper() if text[-1:] == "z" else text)
    except ValueError as error:
        raise ValueError("is not an ISO 8601 date") from error


def _epoch(value: int | Decimal) -> datetime:
    try:
        scale = 1_000 if value >= _MILLISECONDS_FROM or value <= -_MILLISECONDS_FROM else 1_000_000
        if isinstance(value, int):
            return EPOCH + timedelta(microseconds=value * scale)
        whole = _FLOOR.to_integral_value(_FLOOR.multiply(value, scale))
        return EPOCH + timedelta(microseconds=int(whole))
    except (OverflowError, ArithmeticError) as error:
        raise ValueError("is out of range") from error
