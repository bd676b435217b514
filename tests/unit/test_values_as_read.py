"""What the mapping makes of dates and numbers, against what a person would read: told here without any parser of ours.

A person is stood in for in two ways. Where a value is written by the test, it knows what it wrote. Where a text is any
text, `read_number` and `read_day` below spell the rules of the manual out once more, digit by digit.
"""

from __future__ import annotations

import calendar
import re
import string
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from fractions import Fraction
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from bridge.intake.mapping import CompiledSource, compile_source
from bridge.intake.payload import parse_json
from bridge.settings import MappingBlock, Property, Record, Source, Verify

MARKS = [(".", ""), (".", ","), (",", "."), (",", " "), (",", ""), (".", "'"), (".", " ")]
SCALES = [None, "0.01", "100", "-1", "1.5", "1e-3"]
ZONES = ["UTC", "America/New_York", "Europe/Madrid", "Asia/Kolkata", "Pacific/Kiritimati"]
DAYS = st.dates(date(1900, 1, 1), date(2100, 12, 31))
MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2100, 12, 31))  # noqa: DTZ001 (the zone is drawn)


@cache
def source(**how: Any) -> CompiledSource:
    block = MappingBlock(Record("id", "acme_id"), properties={"value": Property("value", **how)})
    return compile_source(Source("acme", Verify("none"), (block,)))


def sent(written: str, **how: Any) -> str | None:
    """What `map` sends for a value as JSON writes it; None where it is invalid."""
    body = parse_json(b'{"id":1,"value":%s}' % written.encode())
    [event] = source(**how).map_body(body).events
    [update] = event.updates
    assert update.properties.keys() | update.invalid.keys() <= {"value"}
    assert not update.properties or not update.invalid
    return update.properties.get("value")


def quoted(text: str) -> str:
    return '"' + "".join(f"\\u{ord(char):04x}" for char in text) + '"'


# --- numbers ------------------------------------------------------------------------------------


def exact(text: str) -> Fraction:
    """The number that plain digits with at most one point spell."""
    assert re.fullmatch(r"-?[0-9]+(\.[0-9]*[1-9])?", text, re.ASCII), text
    whole, _, fraction = text.lstrip("-").partition(".")
    value = Fraction(int(whole + fraction), 10 ** len(fraction))
    return -value if text.startswith("-") else value


def grouped(digits: str, mark: str) -> str:
    """The digits with a mark before each three."""
    head = len(digits) % 3
    return mark.join(filter(None, [digits[:head], *(digits[at : at + 3] for at in range(head, len(digits), 3))]))


@given(
    number=st.integers(-(10**18), 10**18),
    places=st.integers(0, 6),
    marks=st.sampled_from(MARKS),
    scale=st.sampled_from(SCALES),
    group=st.booleans(),
    blanks=st.sampled_from(["", " ", "\t"]),
)
def test_a_number_that_was_written_arrives_to_the_digit(
    number: int, places: int, marks: tuple[str, str], scale: str | None, *, group: bool, blanks: str
) -> None:
    """In each way of writing it, times the scale."""
    point, mark = marks
    digits = str(abs(number)).rjust(places + 1, "0")
    whole, fraction = digits[: len(digits) - places], digits[len(digits) - places :]
    text = ("-" if number < 0 else "") + (grouped(whole, mark) if group and mark else whole)
    text += point + fraction if fraction else ""
    found = sent(quoted(blanks + text + blanks), type="number", decimal=point, thousands=mark, scale=scale)
    assert found is not None
    assert exact(found) == Fraction(number, 10**places) * Fraction(scale or "1")
    if not mark and point == ".":
        assert sent(text, type="number", scale=scale) == found, "a number as its text"


def read_number(text: str, point: str, mark: str) -> Fraction | None:
    """Digits, with marks between threes of them only (as India has it: between twos before the last three), and one
    decimal mark.
    """
    sign = -1 if text[:1] == "-" else 1
    whole, found, fraction = text[text[:1] in {"+", "-"} :].partition(point)
    parts = whole.split(mark) if mark else [whole]
    for part in (*parts, fraction):
        if any(char not in string.digits for char in part):
            return None
    if not (whole or fraction) or (found and not whole and not fraction):
        return None
    widths = [len(part) for part in parts]
    if len(parts) > 1 and not (set(widths[1:]) == {3} and 1 <= widths[0] <= 3):
        indian = widths[-1] == 3 and set(widths[1:-1]) == {2} and 1 <= widths[0] <= 2
        if not indian:
            return None
    return sign * Fraction(int("".join(parts) + fraction or "0"), 10 ** len(fraction))


GROUPS = st.lists(st.from_regex(r"[0-9]{1,3}", fullmatch=True), min_size=1, max_size=4)


@given(
    text=st.text("0123456789.,' +-e٣", max_size=12)
    | st.builds(lambda mark, parts: mark.join(parts), st.sampled_from(".,' "), GROUPS),
    marks=st.sampled_from(MARKS),
)
@example(text="1.234", marks=(",", "."))
@example(text="1.234", marks=(".", ""))
@example(text="1,234", marks=(",", "."))
@example(text="12,34,567", marks=(".", ","))
@example(text="1,234,56,789", marks=(".", ","))
@example(text="1,23", marks=(".", ","))
def test_what_a_person_would_not_read_as_a_number_is_none(text: str, marks: tuple[str, str]) -> None:
    """Of any text: what is sent is what it spells. Fewer may be taken than a person could guess, never others."""
    found = sent(quoted(text), type="number", decimal=marks[0], thousands=marks[1])
    if found is None:
        return
    plain, _, exponent = text.strip().partition("e")
    value = read_number(plain, *marks)
    assert value is not None, found
    assert exact(found) == value * Fraction(10) ** int(exponent or "0")


# --- dates --------------------------------------------------------------------------------------


@given(day=DAYS, writing=st.sampled_from(["%Y-%m-%d", "%Y%m%d"]), zone=st.sampled_from([None, *ZONES]))
def test_a_day_that_was_written_is_that_day(day: date, writing: str, zone: str | None) -> None:
    """In whatever zone: a day has none. Eight digits are one as a text and as a number."""
    text = day.strftime(writing)
    assert sent(quoted(text), type="date", timezone=zone) == day.isoformat()
    if text.isdigit():
        assert sent(text, type="date", timezone=zone) == day.isoformat()


@given(moment=MOMENTS, written=st.sampled_from(ZONES), read=st.sampled_from(ZONES), digits=st.sampled_from([0, 3, 6]))
def test_an_instant_is_that_instant_and_its_day_that_of_the_zone(
    moment: datetime, written: str, read: str, digits: int
) -> None:
    """Whatever zone it is written in, and with as many digits of a second as it has."""
    moment = moment.replace(microsecond=moment.microsecond // 10 ** (6 - digits) * 10 ** (6 - digits))
    zoned = moment.replace(tzinfo=ZoneInfo(written))
    assume(zoned.utcoffset().seconds % 60 == 0)  # type: ignore[union-attr]  # it has one
    text = zoned.isoformat(timespec={0: "seconds", 3: "milliseconds", 6: "microseconds"}[digits])
    instant = sent(quoted(text), type="datetime")
    assert instant is not None
    assert abs(datetime.fromisoformat(instant) - zoned) < timedelta(milliseconds=1)
    assert sent(quoted(text), type="date", timezone=read) == zoned.astimezone(ZoneInfo(read)).date().isoformat()
    assert sent(quoted(text), type="date") == moment.date().isoformat(), "without a zone the day as it is written"


@given(moment=MOMENTS)
def test_each_format_that_has_a_name_is_read_as_it_was_written(moment: datetime) -> None:
    """Epochs of any year, spreadsheets' days, and the dates of mail."""
    moment = moment.replace(microsecond=0, tzinfo=UTC)
    wanted = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    seconds = calendar.timegm(moment.timetuple())
    for written, name in ((f"{seconds}", "epoch"), (f"{seconds * 1000}", "epoch_ms")):
        assert sent(written, type="datetime", format=(name,)) == wanted
        assert sent(quoted(written), type="datetime", format=(name,)) == wanted
    mail = quoted(format_datetime(moment))
    assert sent(mail, type="datetime", format=("%d/%m/%Y", "rfc2822")) == wanted
    days = (moment.date() - date(1899, 12, 30)).days
    cell = f"{days + (seconds % 86_400) / 86_400:.6f}"
    assert sent(cell, type="date", format=("excel",)) in {
        moment.date().isoformat(),
        (moment + timedelta(milliseconds=50)).date().isoformat(),
    }
    assert sent(f"{days}", type="date", format=("rfc2822", "excel")) == moment.date().isoformat()


@given(day=DAYS, first=st.sampled_from(["%d/%m/%Y", "%m/%d/%Y"]), second=st.sampled_from(["%d.%m.%Y", "%Y-%m-%d"]))
def test_a_pattern_reads_what_it_writes_and_nothing_else(day: date, first: str, second: str) -> None:
    """Of a list each, and never the other order of day and month than is written."""
    for pattern in (first, second):
        assert sent(quoted(day.strftime(pattern)), type="date", format=(first, second)) == day.isoformat()
    turned = f"{day.month:02}/{day.day:02}/{day.year}"
    wanted = date(day.year, day.day, day.month).isoformat() if day.day <= 12 else None
    assert sent(quoted(turned), type="date", format=("%d/%m/%Y",)) == wanted


def read_digits(text: str) -> datetime | None:
    """Eight digits of a day from 1900 to 2100; else seconds or milliseconds from 1990 up to 2100."""
    if re.fullmatch(r"[0-9]{8}", text, re.ASCII) and 1900 <= int(text[:4]) <= 2100:
        year, month, day = int(text[:4]), int(text[4:6]), int(text[6:])
        if 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]:
            return datetime(year, month, day, tzinfo=UTC)
    for unit in (1, 1000):
        since = Fraction(text) / unit
        if calendar.timegm((1990, 1, 1, 0, 0, 0)) <= since < calendar.timegm((2100, 1, 1, 0, 0, 0)):
            return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(since * 1_000_000 // 1))
    return None


NEAR = [
    "19000101", "18991231", "21001231", "21010101", "20270105", "20271305", "20270229", "20280229", "2027", "202701",
    "631151999", "631152000", "631152000.5", "4102444799", "4102444799.999", "4102444800", "631151999999",
    "631152000000", "4102444799999", "4102444800000", "20260105103000", "202601051030", "45911.32", "0", "-1", "1e9",
    "1767609000", "1767609000000", "01767609000", "020270105",
]  # fmt: skip
BARE = st.text("0123456789", min_size=1, max_size=16) | st.sampled_from(NEAR)


@given(
    text=BARE | st.from_regex(r"-?[0-9]{1,14}\.[0-9]{1,4}", fullmatch=True, alphabet=string.printable),
    day=st.booleans(),
)
def test_bare_digits_are_a_time_of_1990_to_2100_or_eight_that_spell_a_day(text: str, *, day: bool) -> None:
    """Or they are invalid, as a text and as a number."""
    assume("e" not in text)
    wanted = read_digits(text)
    how: dict[str, Any] = {"type": "date"} if day else {"type": "datetime", "timezone": "UTC"}
    expected = None
    if wanted is not None:
        millis = f".{wanted.microsecond // 1000:03}" if wanted.microsecond >= 1000 else ""
        expected = wanted.date().isoformat() if day else f"{wanted:%Y-%m-%dT%H:%M:%S}{millis}Z"
    assert sent(quoted(text), **how) == expected
    if not re.match(r"-?0[0-9]", text):
        assert sent(text, **how) == expected


@given(text=st.text("0123456789-:TZ+. /W", max_size=25))
@example(text="2026-01-05")
@example(text="2026-W02-1")
@example(text="2026-01-05T24:00:00Z")
@example(text="2026-01-05 10")
@example(text="20260105T103000Z")
@example(text="2026-1-5")
@example(text="2026-01-05T10:30:00+0130")
@example(text="10:30")
@example(text="20260")
@example(text="2026005")
def test_what_is_sent_for_any_text_of_a_day_has_that_days_digits(text: str) -> None:
    """Year, month and day stand in the text as they are sent, unless it counts weeks, or is bare digits."""
    found = sent(quoted(text), type="date")
    stripped = text.strip()
    if found is None or re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", stripped) or "W" in text:
        return
    assert re.match(r"([0-9]{4})-?([0-9]{2})-?([0-9]{2})", stripped), found
    assert stripped.replace("-", "")[:8] == found.replace("-", "")


@pytest.mark.parametrize("text", NEAR)
def test_the_edges(text: str) -> None:
    """Each as the rules have it, whatever hypothesis finds worth trying."""
    if "e" not in text:
        wanted = read_digits(text)
        assert sent(quoted(text), type="date") == (wanted.date().isoformat() if wanted else None)
