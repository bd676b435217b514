"""Whatever stops or fails, people are told what to do about it."""

from __future__ import annotations

import pytest

from bridge.delivery import pauses
from bridge.model import Category
from bridge.operations.metrics import USUAL_ENTRIES
from bridge.showing import advised, what_to_do

ELSE = what_to_do("NEVER_HEARD_OF")


@pytest.mark.parametrize("category", sorted({category for _, category in USUAL_ENTRIES} | set(map(str, Category))))
def test_every_usual_failure_has_advice_of_its_own(category: str) -> None:
    """Which ends as a sentence does."""
    assert what_to_do(category) != ELSE
    assert what_to_do(category).endswith(".")


def test_what_is_retried_needs_nobody() -> None:
    assert what_to_do("OBJECT_NOT_FOUND", "retrying").startswith("Nothing to do")
    assert "replay" in ELSE


@pytest.mark.parametrize(
    "reason",
    [
        pauses.OPERATOR, pauses.UNAUTHORIZED, pauses.MISCONFIGURED, pauses.DAILY_LIMIT, pauses.OUTAGE,
        "forbidden", "rate_limited", "migrating",
    ],
)  # fmt: skip
def test_every_pause_tells_what_happened_and_what_to_do(reason: str) -> None:
    """And only a person's own is a person's to end."""
    told = advised({"reason": reason})
    assert told["what"] != advised({"reason": "never heard of"})["what"]
    assert told["todo"].endswith(".")
    assert told["by_person"] == (reason == "operator")
