"""Values: a partner's way of writing in, HubSpot's string or a message out."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError, missing

from bridge.errors import MappingError
from bridge.intake.fields import build_field, zone_of
from bridge.intake.texts import check_format, instant, iso_utc, text_of_result
from bridge.intake.values import PropertySchema
from bridge.settings import Property, PropertyType

MADRID = zone_of("Europe/Madrid", ())


def convert(value: Any, zone: str | None = None, **options: Any) -> str:
    return str(build_field(Property("a", **options), zone_of(zone, ()), ("p",)).deserialize(value))


def complaint(value: Any, **options: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        convert(value, **options)
    return "; ".join(str(message) for message in caught.value.messages)


@pytest.mark.parametrize(
    "value, options, expected",
    [
        ("  as it is ", {}, "  as it is "),
        (1011, {}, "1011"),
        (Decimal("5.0"), {}, "5.0"),
        (Decimal("1E+3"), {}, "1000"),
        (True, {}, "true"),
        ("ünï 😀", {}, "ünï 😀"),
        (" a@b.de ", {"format": ("email",)}, "a@b.de"),
        (" gold ", {"type": "enumeration"}, "gold"),
        (3, {"type": "enumeration"}, "3"),
        ("+49 228 1", {"type": "phone_number"}, "+49 228 1"),
        (492281, {"type": "phone_number"}, "492281"),
        ("Gold", {"values": {"Gold": "gold"}}, "gold"),
        (" Gold ", {"type": "enumeration", "values": {"Gold": "gold"}}, "gold"),
        (7, {"type": "enumeration", "values": {"7": "seven"}}, "seven"),
        (True, {"values": {"true": "on"}}, "on"),
        ("x", {"values": {"Gold": "gold", "*": "other"}}, "other"),
        ("J", {"type": "bool", "values": {"J": "yes", "N": "no"}}, "true"),
        ("gone", {"values": {"gone": ""}}, ""),
        (["a", "b", "a"], {"type": "enumeration", "multiple": True}, "a;b"),
        (["a", None, "", 3], {"type": "enumeration", "multiple": True}, "a;3"),
        ("a, b ,,c", {"type": "enumeration", "multiple": True, "separator": ","}, "a;b;c"),
        ("single", {"type": "enumeration", "multiple": True}, "single"),
        (["A", "B"], {"type": "enumeration", "multiple": True, "values": {"A": "a", "*": "z"}}, "a;z"),
    ],
)
def test_texts_and_options(value: object, options: dict[str, Any], expected: str) -> None:
    """string keeps its blanks, the other types are trimmed; values: look at the text."""
    assert convert(value, **options) == expected


@pytest.mark.parametrize(
    "value, scale, expected",
    [
        (5, None, "5"),
        (-5, None, "-5"),
        (123450, "0.01", "1234.5"),
        (Decimal("1.50"), None, "1.5"),
        (Decimal("0.1") + Decimal("0.2"), None, "0.3"),
        (Decimal("-0.0"), None, "0"),
        (Decimal("1E+20"), None, "1" + "0" * 20),
        (Decimal("1E-7"), None, "0.0000001"),
        (" 12.5 ", None, "12.5"),
        ("+1e3", None, "1000"),
        (".5", "2", "1"),
        ("12345678901234567890.1234567890", None, "12345678901234567890.123456789"),
        ("9" * 300, "10", "9" * 300 + "0"),
    ],
)
def test_numbers_are_decimal_and_written_plainly(value: object, scale: str | None, expected: str) -> None:
    """No binary floating point, no exponent, no zeros that say nothing."""
    assert convert(value, type="number", scale=scale) == expected


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30))
def test_a_number_keeps_its_value(number: Decimal) -> None:
    """Whatever its form, the text reads as the same number."""
    text = convert(number, type="number")
    assert Decimal(text) == number
    assert "e" not in text.lower()


@pytest.mark.parametrize(
    "value, expected",
    [
        *((value, "true") for value in (True, 1, "true", "TRUE", " yes ", "1")),
        *((value, "false") for value in (False, 0, "false", "No", "0")),
    ],
)
def test_bools(value: object, expected: str) -> None:
    """true, yes, 1 and their opposites, in any case."""
    assert convert(value, type="bool") == expected


@pytest.mark.parametrize(
    "value, zone, format_, expected",
    [
        ("2026-01-02", None, None, "2026-01-02"),
        ("20260102", None, None, "2026-01-02"),
        ("2026-01-02T23:30:00", None, None, "2026-01-02"),  # as it is written
        ("2026-01-02T23:30:00-05:00", None, None, "2026-01-02"),  # the value's own zone
        ("2026-01-02T23:30:00Z", "Europe/Madrid", None, "2026-01-03"),  # the day there
        (1767396600, "Europe/Madrid", None, "2026-01-03"),
        (1767396600, None, None, "2026-01-02"),
        (1767396600000, None, None, "2026-01-02"),
        ("1767396600", None, None, "2026-01-02"),
        (20270105, None, None, "2027-01-05"),  # a number as the text: eight digits that spell a date
        (Decimal(20270105), None, None, "2027-01-05"),
        ("21001231", None, None, "2100-12-31"),
        (631152000, None, None, "1990-01-01"),  # the first and the last second that digits may mean
        (4102444799, None, None, "2099-12-31"),
        (4102444799999, None, None, "2099-12-31"),
        ("31/12/2026", None, "%d/%m/%Y", "2026-12-31"),
        (20261231, None, "%Y%m%d", "2026-12-31"),
        ("9999-12-31", None, None, "9999-12-31"),
        ("2027", None, "%Y", "2027-01-01"),
        (2027, None, "%Y", "2027-01-01"),
        ("2027-03", None, "%Y-%m", "2027-03-01"),
        (-1, None, "epoch", "1969-12-31"),
        (0, None, "epoch_ms", "1970-01-01"),
        (253402300799, None, "epoch", "9999-12-31"),
        (253402300799, None, "epoch_ms", "1978-01-11"),
        (Decimal("45911.32"), None, "excel", "2025-09-11"),
        ("45911", None, "excel", "2025-09-11"),
        ("31122026", None, "%d%m%Y", "2026-12-31"),
        (1122026, None, "%d%m%Y", "2026-12-01"),  # a number has lost the zero at its beginning
        ("2026-01-05-05:00", None, None, "2026-01-05"),  # as XML writes days
        ("2026-01-05Z", "Europe/Madrid", None, "2026-01-05"),
        ("Thu, 31 Dec 2026 23:30:00 -0500", None, "rfc2822", "2026-12-31"),
        ("Thu, 31 Dec 2026 23:30:00 -0500", "Europe/Madrid", "rfc2822", "2027-01-01"),
    ],
)
def test_dates(value: object, zone: str | None, format_: str | None, expected: str) -> None:
    """Of an instant, the day in the configured zone, else in its own."""
    assert convert(value, zone, type="date", format=(format_,) if format_ else ()) == expected


@pytest.mark.parametrize(
    "value, zone, format_, expected",
    [
        ("2026-01-02T03:04:05Z", None, None, "2026-01-02T03:04:05Z"),
        ("2026-01-02t03:04:05z", None, None, "2026-01-02T03:04:05Z"),
        ("2026-01-02T03:04:05.1239999+02:00", None, None, "2026-01-02T01:04:05.123Z"),
        ("2026-07-02T03:04:05", "Europe/Madrid", None, "2026-07-02T01:04:05Z"),
        ("2026-01-02", "Europe/Madrid", None, "2026-01-01T23:00:00Z"),
        (1767323045, None, None, "2026-01-02T03:04:05Z"),
        (Decimal("1767323045.25"), None, None, "2026-01-02T03:04:05.250Z"),
        (1767323045250, None, None, "2026-01-02T03:04:05.250Z"),
        ("1767323045.25", None, None, "2026-01-02T03:04:05.250Z"),
        (Decimal("-0.001"), None, "epoch", "1969-12-31T23:59:59.999Z"),
        ("20260105103000", "UTC", "%Y%m%d%H%M%S", "2026-01-05T10:30:00Z"),
        (20270105, "Europe/Madrid", None, "2027-01-04T23:00:00Z"),
        (Decimal("46027.4375"), "UTC", "excel", "2026-01-05T10:30:00Z"),
        (Decimal("46027.43751157407"), "UTC", "excel", "2026-01-05T10:30:01Z"),  # the binary number of 10:30:01
        ("2026-01-05-05:00", "UTC", None, "2026-01-05T05:00:00Z"),  # midnight there
        ("Mon, 05 Jan 2026 10:30:00 -0000", "America/New_York", "rfc2822", "2026-01-05T10:30:00Z"),
        ("Mon, 05 Jan 2026 10:30:00", "America/New_York", "rfc2822", "2026-01-05T15:30:00Z"),
        ("Mon, 05 Jan 2026 10:30:00 EST", "UTC", "rfc2822", "2026-01-05T15:30:00Z"),
        ("05/01/2026 01:30 PM", "UTC", "%d/%m/%Y %I:%M %p", "2026-01-05T13:30:00Z"),
        ("02.01.2026 03:04", "UTC", "%d.%m.%Y %H:%M", "2026-01-02T03:04:00Z"),
        ("02.01.2026 03:04 +0100", None, "%d.%m.%Y %H:%M %z", "2026-01-02T02:04:00Z"),
    ],
)
def test_datetimes(value: object, zone: str | None, format_: str | None, expected: str) -> None:
    """ISO 8601 in UTC; milliseconds where there are any."""
    assert convert(value, zone, type="datetime", format=(format_,) if format_ else ()) == expected


@pytest.mark.parametrize(
    "pattern, found",
    [
        ("%d/%m/%Y", None),
        ("%Y-%m", None),
        ("epoch", None),
        ("%d/%m", "leaves out the year"),
        ("%m/%%d", "leaves out the year"),
        ("%Y", None),
        ("%d.%Y", "leaves out the month"),
        ("%d/%m/%Y %I:%M", "leaves out the half of the day: hours up to 12 are %I with %p, those up to 24 %H"),
        ("%Y %Q", "is not a date format: 'Q' is a bad directive in format '%Y %Q'"),
        ("DD/MM/YYYY", "is not a date format; write '%d/%m/%Y'"),
        ("DD/MM", "is not a date format; it is a pattern such as '%d/%m/%Y', or epoch, epoch_ms, excel or rfc2822"),
    ],
)
def test_a_format_says_which_day_of_which_year_it_is(pattern: str, found: str | None) -> None:
    """Python reads none without a year from 3.15 on, and warns of it from 3.13 on."""
    assert check_format(pattern) == (found and f"{pattern!r} {found}")


def test_of_several_formats_the_first_that_reads_a_value_counts() -> None:
    """In their order: what the first cannot read goes to the next."""
    either: dict[str, Any] = {"type": "date", "format": ("%d/%m/%Y", "%m/%d/%Y", "excel")}
    assert convert("01/02/2026", **either) == "2026-02-01"
    assert convert("12/31/2026", **either) == "2026-12-31"
    assert convert(46027, **either) == "2026-01-05"
    assert "%d/%m/%Y, %m/%d/%Y or excel" in complaint("2026-01-05", **either)


@pytest.mark.parametrize(
    "value, hints",
    [
        ("20260105103000", ['"%Y%m%d%H%M%S"']),
        (20260105103000, ['"%Y%m%d%H%M%S"']),
        (Decimal("45911.32"), ["excel"]),
        ("2027", ['"%Y"']),
        (0, ["epoch", "epoch_ms"]),
        (-1, ["epoch", "epoch_ms"]),
        ("05/01/2027", ['"%d/%m/%Y"', '"%m/%d/%Y"']),
        ("31/12/2026", ['"%d/%m/%Y"']),
        ("5 January 2027", ['"%d %B %Y"']),
        ("Tue, 05 Jan 2027 10:30:00 +0100", ["rfc2822"]),
        ("20261331", ["epoch", "epoch_ms"]),  # a date of no calendar
        ("soon", []),
        (10**30, []),
    ],
)
def test_what_is_no_time_by_itself_names_the_format_that_would_read_it(value: object, hints: list[str]) -> None:
    """One, or the two that would; the field reads it with each."""
    text = complaint(value, type="date")
    assert ("format:" in text) == bool(hints)
    for hint in hints:
        assert hint in text
        assert convert(value, type="date", format=(hint.strip('"'),))


@given(st.integers(-(10**16), 10**16) | st.decimals(-(10**14), 10**14, places=3))
def test_digits_are_a_time_of_1990_to_2100_or_none(value: int | Decimal) -> None:
    """As a number and as its text, unless eight digits spell a date of 1900 to 2100."""
    field = build_field(Property("a", type="date"), None, ("p",))
    text = format(value, "f")
    try:
        read = str(field.deserialize(value))
    except ValidationError:
        with pytest.raises(ValidationError):
            field.deserialize(text)
        return
    assert str(field.deserialize(text)) == read
    spelt = len(text) == 8 and read.replace("-", "") == text
    assert 1900 <= int(read[:4]) <= 2100 if spelt else 1990 <= int(read[:4]) < 2100


MARKS = [
    ("1.234,50", ",", ".", "1234.5"),
    ("1.234.567", ",", ".", "1234567"),
    ("1234,5", ",", "", "1234.5"),
    ("1234,5", ",", ".", "1234.5"),
    ("-1 234,5", ",", " ", "-1234.5"),
    ("1\u202f234\u00a0567,5", ",", " ", "1234567.5"),
    ("12,34,567.5", ".", ",", "1234567.5"),  # as India writes it
    ("1'234.50", ".", "'", "1234.5"),
    (",5", ",", ".", "0.5"),
    (1234, ",", ".", "1234"),
    (Decimal("1.5"), ",", ".", "1.5"),  # a number has no marks
]


@pytest.mark.parametrize("value, decimal, thousands, expected", MARKS)
def test_numbers_are_read_in_the_marks_that_they_are_written_in(
    value: object, decimal: str, thousands: str, expected: str
) -> None:
    """Decimal and thousands, as the file says."""
    assert convert(value, type="number", decimal=decimal, thousands=thousands) == expected


@pytest.mark.parametrize(
    "value, decimal, thousands",
    [
        ("1.5", ",", "."),  # neither 1.5 nor 15
        ("0.500", ",", "."),
        ("000.123", ",", "."),
        ("0,500", ".", ","),
        ("1.5", ",", ""),
        ("1.2345", ",", "."),
        ("1234.567", ",", "."),
        (".123", ",", "."),
        ("1,234,5", ".", ","),
        ("1,5", ".", ","),
        ("1..234", ",", "."),
        ("1.234,5,6", ",", "."),
        ("1e5", ",", "."),
        ("", ",", "."),
    ],
)
def test_a_number_whose_marks_stand_where_none_can_stand_is_none(
    value: str, decimal: Literal[".", ","], thousands: str
) -> None:
    """It may be written otherwise than the file says: a value a thousand times too large would be worse."""
    field = build_field(Property("a", type="number", decimal=decimal, thousands=thousands), None, ("p",))
    with pytest.raises(ValidationError, match="not a number"):
        field.convert(value)


@given(st.datetimes(timezones=st.timezones()))
def test_an_instant_survives_the_way_through_text(moment: datetime) -> None:
    """To the millisecond, whatever zone it was written in."""
    offset = moment.utcoffset()
    assert offset is not None
    moment = moment.replace(tzinfo=timezone(offset), fold=0)
    try:
        exact = moment.astimezone(UTC)
    except OverflowError:
        return  # beyond the year 9999 or before 1
    text = iso_utc(instant(moment.isoformat(), None))
    assert exact - datetime.fromisoformat(text) < timedelta(milliseconds=1)
    assert text.endswith("Z")


NOT: dict[str, list[Any]] = {
    "number": ["1,5", "1.234,50", "0x1", "NaN", "1e999", "١", True, [1]],
    "bool": ["maybe", 2, Decimal("1.0"), "on", {}],
    "date": ["31/12/2026", "soon", "2026-02-30", True, {}, 10**18, -1, 253402300799, "2027", Decimal("45911.32")],
    "datetime": ["2026-01-02T25:00Z", "1e5", 10**17, "0001-01-01T00:00+14:00"],
}


@pytest.mark.parametrize(
    "value, options, message",
    [
        ({"a": 1}, {}, "is an object"),
        (["a"], {}, "is a list"),
        ("\0", {}, "NUL"),
        ("x" * 65_537, {}, "65537 characters"),
        (";x", {}, "append"),
        (" ;x", {}, "append"),
        ("a@", {"format": ("email",)}, "e-mail"),
        ("x", {"values": {"Gold": "gold"}}, "'x', which values: does not list"),
        ([";"], {"type": "enumeration", "multiple": True}, "';'"),
        (["a;b"], {"type": "enumeration", "multiple": True}, "';'"),
        ([["a"]], {"type": "enumeration", "multiple": True}, "a list"),
        (["x" * 40_000, "y" * 40_000], {"type": "enumeration", "multiple": True}, "characters"),
        ("call me", {"type": "phone_number"}, "phone number"),
        (True, {"type": "phone_number"}, "phone number"),
        *((value, {"type": type_}, "") for type_, values in NOT.items() for value in values),
        ("2026-01-02T03:04:05", {"type": "datetime"}, "timezone"),
        ("2026-01-02", {"type": "date", "format": ("%d/%m/%Y",)}, "written as"),
        (10**40, {"type": "date", "format": ("epoch",)}, "written as"),
        (1122026, {"type": "date", "format": ("%Y%m%d",)}, "written as"),
        ("2026115", {"type": "date", "format": ("%Y%m%d",)}, "written as"),
        ("112026", {"type": "date", "format": ("%d%m%Y",)}, "written as"),
        ("2026-01-05x10", {"type": "datetime"}, "ISO 8601"),
        ("Mon, 05 Jan 2026 10:30:00 CET", {"type": "datetime", "format": ("rfc2822",)}, "written as"),
        ("5 Jan 2026 10:30 PM", {"type": "datetime", "format": ("rfc2822",)}, "written as"),
        ("x", {"type": "date", "format": ("excel", "rfc2822")}, "written as excel or rfc2822"),
    ],
)
def test_what_is_invalid_says_why_in_a_short_line(value: object, options: dict[str, Any], message: str) -> None:
    """With a cut of the value of at most 60 characters."""
    text = complaint(value, **options)
    assert message in text
    assert len(text) < 200
    assert "\0" not in text


@pytest.mark.filterwarnings("ignore:Parsing dates involving a day of month:DeprecationWarning")  # from Python 3.13 on
@pytest.mark.parametrize(
    "options, key",
    [
        ({"type": "string", "scale": "2"}, "scale"),
        ({"type": "number", "scale": "much"}, "scale"),
        ({"type": "number", "format": ("%d",)}, "format"),
        ({"type": "date", "format": ("%d/%m",)}, "format"),
        ({"type": "date", "format": ("epoch", "%Q")}, "format"),
        ({"type": "date", "format": ("DD/MM/YYYY",)}, "format"),
        ({"type": "datetime", "format": ("%d/%m/%Y %I:%M",)}, "format"),
        ({"type": "datetime", "format": ("%d/%m/%Y %H:%M %p",)}, "format"),
        ({"type": "date", "decimal": ","}, "decimal"),
        ({"type": "string", "thousands": "."}, "thousands"),
        ({"type": "number", "thousands": "."}, "thousands"),
        ({"type": "string", "format": ("url",)}, "format"),
        ({"type": "string", "timezone": "UTC"}, "timezone"),
        ({"type": "date", "timezone": "Mars/Olympus"}, "timezone"),
        ({"type": "date", "timezone": "../etc/passwd"}, "timezone"),
        ({"type": "enumeration", "separator": ","}, "separator"),
        ({"type": "money"}, "type"),
        ({"type": "bool", "constant": "maybe"}, "constant"),
    ],
)
def test_options_that_do_not_fit_are_found_beforehand(options: dict[str, Any], key: str) -> None:
    """Each names the option it is about."""
    with pytest.raises(ExceptionGroup) as caught:
        build_field(Property("a", **options), None, ("properties", "p"))
    paths = [error.path for error in caught.value.exceptions if isinstance(error, MappingError)]
    assert ("properties", "p", key) in paths


@pytest.mark.parametrize(
    "options, wrong",
    [
        ({"type": "number", "values": {"a": "1,5", "b": "1.5", "c": "", "*": "x"}}, {"a", "*"}),
        ({"type": "date", "values": {"a": "soon", "b": "2026-01-02"}}, {"a"}),
        ({"type": "enumeration", "values": {"a": "x;y", "b": ";z"}}, {"b"}),
        ({"type": "enumeration", "multiple": True, "values": {"a": "x;y", "b": "z"}}, {"a"}),
    ],
)
def test_values_that_the_property_cannot_hold_are_found_beforehand(options: dict[str, Any], wrong: set[str]) -> None:
    """Else every such event would be invalid, and the partner could do nothing about it."""
    with pytest.raises(ExceptionGroup) as caught:
        build_field(Property("a", **options), None, ("properties", "p"))
    paths = [error.path for error in caught.value.exceptions if isinstance(error, MappingError)]
    assert paths == [("properties", "p", "values", key) for key in options["values"] if key in wrong]


OPTIONS: dict[str, dict[str, Any]] = {"plain": {}, "strict": {"required": True, "multiple": True}}
SCALARS = st.none() | st.booleans() | st.integers() | st.decimals(allow_nan=False, allow_infinity=False) | st.text()
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(), SCALARS, max_size=2)
SCHEMA = PropertySchema.from_dict(
    {
        f"{name}_{type_}": build_field(Property("a", type=type_, **options), MADRID, ())
        for type_ in get_args(PropertyType)
        for name, options in OPTIONS.items()
    }
)()


@given(st.dictionaries(st.sampled_from(sorted(SCHEMA.load_fields)), VALUES))
def test_the_short_way_through_a_schema_gives_what_load_gives(raw: dict[str, Any]) -> None:
    """PropertySchema.read spares marshmallow's closures, not its fields."""
    assert isinstance(SCHEMA, PropertySchema)
    valid, invalid = SCHEMA.read(raw)
    try:
        expected, messages = SCHEMA.load(raw), {}
    except ValidationError as error:
        expected, messages = error.valid_data, error.messages_dict
    assert valid == expected
    assert {name: "; ".join(texts) for name, texts in messages.items()} == invalid


@pytest.mark.parametrize(
    "value, expected",
    [
        ("text", "text"),
        ("", ""),
        ("  ", missing),
        (None, missing),
        (1, "1"),
        (1.5, "1.5"),
        (0.1, "0.1"),
        (Decimal("2.50"), "2.5"),
        (False, "false"),
        (date(2026, 1, 2), "2026-01-02"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05Z"),
        (datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T02:04:05Z"),  # noqa: DTZ001 (the block's zone)
        (["a", "b"], "a;b"),
        ([], missing),
    ],
)
def test_what_a_schema_of_ones_own_returns_is_written_alike(value: object, expected: object) -> None:
    """None and blanks are left out, "" clears."""
    assert text_of_result(value, MADRID) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {}, object(), ["a;b"], ";x", b"bytes"])
def test_what_hubspot_cannot_take_is_refused_from_any_schema(value: object) -> None:
    """The same limits hold."""
    with pytest.raises(ValidationError):
        text_of_result(value, None)


#: What a text may hold before its first character that people see, as HubSpot or anything on the way may pass over it.
UNSEEN = st.text(
    st.characters(categories=("Cc", "Cf", "Zs", "Zl", "Zp"), exclude_characters="\0")
    | st.sampled_from("\u034f\u115f\u17b4\u180b\u2800\u3164\ufe0f\uffa0\U000e0100"),
    max_size=4,
)


@given(UNSEEN, st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4))
def test_nothing_that_hubspot_might_take_for_an_append_is_sent(before: str, after: str) -> None:
    """However a `;` is led in: as a text, an option, in a list, by a schema of one's own or by the configuration."""
    text = f"{before};{after}"
    several: dict[str, Any] = {"type": "enumeration", "multiple": True}
    assert "append" in complaint(text)
    assert "append" in complaint(text, type="enumeration")
    assert "';'" in complaint([text, "b"], **several)
    for made in (text, [text, "b"]):
        with pytest.raises(ValidationError, match="';'"):
            text_of_result(made, None)
    for options in ({"constant": text}, {"values": {"Gold": text}}, {"values": {"*": text}} | several):
        with pytest.raises(ExceptionGroup):
            build_field(Property(**options), None, ())


@given(UNSEEN)
def test_a_list_that_begins_with_nothing_seen_is_no_append(before: str) -> None:
    """Its first ';' joins two elements, and would be taken for an append all the same."""
    if before.strip():
        assert "append" in complaint([before, "b"], type="enumeration", multiple=True)


@pytest.mark.parametrize("text", ["a;b", "a\u200b;b", "-;b", "é\u0301;b", "😀;b", "\u200ba", "\ufe0f", "\u00a0 x"])
def test_a_semicolon_after_what_is_seen_is_a_text(text: str) -> None:
    """As it is."""
    assert convert(text) == text
