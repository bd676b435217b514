"""Durations and sizes: what is written is what is meant, or a sentence says how to write it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.config.scalars import (
    BYTES_PER,
    LARGEST_BYTES,
    LONGEST_D,
    MS_PER,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("500ms", 0.5),
        ("30s", 30.0),
        ("5m", 300.0),
        ("1.5h", 5400.0),
        ("24h", 86_400.0),
        ("7d", 604_800.0),
        ("0s", 0.0),
        (" 2 s ", 2.0),
    ],
)
def test_a_duration_is_a_number_and_its_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text, size",
    [
        ("512KiB", 524_288),
        ("1MiB", 1_048_576),
        ("10MB", 10_000_000),
        ("20GiB", 21_474_836_480),
        ("1.5kB", 1500),
        (4096, 4096),
        ("4096", 4096),
    ],
)
def test_a_size_is_bytes_or_a_number_and_its_unit(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "s", "5", 5, 5.0, "5 M", "5 minutes", "-1s", "1h30m", "٣s", True, None, [], "1e3s"]
)
def test_what_is_no_duration_is_told_how_to_write_one(text: object) -> None:
    with pytest.raises(ValueError, match=r"such as 500ms, 30s, 5m, 24h or 7d"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "MiB", "1 Mb", "1Gi", "-1", -1, True, None, {}, "1,5MB"])
def test_what_is_no_size_is_told_how_to_write_one(text: object) -> None:
    with pytest.raises(ValueError, match=r"such as 512KiB, 1MiB, 20GiB or 10MB"):
        parse_size(text)


def test_durations_and_sizes_have_ends() -> None:
    """A slip of the finger does not become an overflow later."""
    with pytest.raises(ValueError, match=r"longer than 36500 days"):
        parse_duration("36501d")
    with pytest.raises(ValueError, match=r"more than 1024TiB"):
        parse_size("1025TiB")
    with pytest.raises(ValueError, match=r"whole number of bytes"):
        parse_size("0.3B")


@given(st.integers(0, LONGEST_D * MS_PER["d"]))
def test_a_formatted_duration_reads_back(ms: int) -> None:
    assert round(parse_duration(format_duration(ms / 1000)) * 1000) == ms


@given(st.integers(0, LARGEST_BYTES))
def test_a_formatted_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(0, 1000), st.sampled_from(sorted(MS_PER)), st.sampled_from(sorted(MS_PER)))
def test_units_of_durations_keep_their_order(number: int, one: str, other: str) -> None:
    """Twice the unit is twice the time, whatever the number."""
    assert parse_duration(f"{number}{one}") * MS_PER[other] == pytest.approx(
        parse_duration(f"{number}{other}") * MS_PER[one]
    )


@given(st.text())
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    """Nothing else comes out of a parser: no overflow, no other exception."""
    for parse in (parse_duration, parse_size):
        try:
            assert parse(text) >= 0
        except ValueError as error:
            assert str(error)  # noqa: PT017 (either way is right)


def test_every_unit_is_read() -> None:
    assert [parse_size(f"1{unit}") for unit in BYTES_PER] == list(BYTES_PER.values())
