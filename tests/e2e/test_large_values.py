"""The longest values that a property takes, by the hundred: memory is bounded and nothing pauses (F57)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.backends import journal_url
from tests.bench.crm import sandbox
from tests.bench.large import EMOJI, LONGEST, RECORDS, delivered

__all__ = ["journal_url"]

#: The chart's limit is 512 MiB; what a restart and the console need beside this fits in.
MOST_MB = 320

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(400)]


@pytest.mark.parametrize(
    "records, text",
    [(RECORDS, EMOJI), (2 * RECORDS, "x" * LONGEST), (RECORDS, "x" * (LONGEST - 1) + EMOJI[0])],
    ids=["emoji", "ascii", "one emoji each"],
)
def test_hundreds_of_the_longest_values_wait_and_are_delivered_in_bounded_memory(
    tmp_path: Path, journal_url: str, records: int, text: str
) -> None:
    """Of all processes together, from the first webhook to the last call."""
    with sandbox() as crm:
        found = delivered(tmp_path, crm, records=records, text=text, journal_url=journal_url)
    sys.stdout.write(f"{found.peak_mb:.0f} MiB at most, {found.calls} calls, {found.took_s:.1f} s\n")
    assert found.pauses == 0
    assert found.peak_mb <= MOST_MB
