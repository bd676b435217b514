"""F59: how times, texts and JSON are written for people, whatever they hold."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.operations.console.texts import ago, short
from bridge.operations.queries import moment_us
from bridge.showing import exact_iso, iso, microseconds_of, printable, printable_json

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@given(st.datetimes(timezones=st.just(UTC)))
def test_f59_a_time_of_the_calendar_is_written_to_the_digit(moment: datetime) -> None:
    """Cut off at the millisecond, never rounded up into another second or year."""
    us = microseconds_of(moment)
    assert EPOCH + timedelta(microseconds=us) == moment
    assert exact_iso(us) == moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
    assert iso(us) == moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert moment_us(exact_iso(us)) == us


@pytest.mark.parametrize(
    "us, written",
    [
        (253_402_300_799_999_999, "9999-12-31T23:59:59.999Z"),
        (253_402_300_800_000_000, "+10000-01-01T00:00:00.000Z"),
        (-62_135_596_800_000_000, "0001-01-01T00:00:00.000Z"),
        (-62_135_596_800_000_001, "+0000-12-31T23:59:59.999Z"),
        (2**63 - 1, "+294247-01-10T04:00:54.775Z"),
        (-(2**63), "-290308-12-21T19:59:05.224Z"),
    ],
)
def test_f59_a_time_beyond_the_calendar_has_a_year_with_a_sign(us: int, written: str) -> None:
    """Whatever number a journal holds has a text, in every form that a page shows."""
    assert iso(us) == written
    assert short(iso(us)) == written[:-5].replace("T", " ")
    assert ago(iso(us))


@given(st.text())
def test_json_that_is_shown_is_ascii_or_visible_and_reads_as_the_same(text: str) -> None:
    """Names, values and what is within lists."""
    document = {text: [text, {"n": 1}], "s": text}
    shown = printable_json(document)
    assert shown.isprintable()
    assert json.loads(shown) == document
    assert json.loads(printable_json(document, indented=True)) == document


def test_json_that_is_shown_holds_what_orjson_does_not_write() -> None:
    """Half a character, a number of more than 64 bits, and what is no value of JSON."""
    assert json.loads(printable_json({"half": "\ud800", "long": 2**70, "when": EPOCH.date()})) == {
        "half": "\ud800", "long": 2**70, "when": "1970-01-01",
    }  # fmt: skip


@given(st.text())
def test_a_text_that_is_shown_steers_nothing(text: str) -> None:
    """Neither escape sequences nor marks that turn the direction of writing; what may stay is named."""
    assert printable(text).isprintable()
    assert printable(text, keep="\n").replace("\n", "").isprintable()
