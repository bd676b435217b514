"""How much people's acts may make pending: no more than intake can do with (G7).

A replay or a resync makes records pending as events do. Beyond `max_pending` intake answers 503, so an act ends
there with a JournalFullError that tells how far it came. What it did stays done: acts may be repeated, and what
is pending already is not counted twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bridge.errors import JournalFullError

#: Seconds for which a count of what is pending is believed.
COUNTED_S: Final = 1.0


class Room:
    """Asked between the steps of one act. Not thread-safe."""

    def __init__(self, *, count: Callable[[], int], max_pending: int, monotonic: Callable[[], float]) -> None:
        self._count = count
        self._max_pending = max_pending
        self._monotonic = monotonic
        self._counted_at = float("-inf")
        self._pending = 0

    def made_pending(self, records: int) -> None:
        """A step made so many records pending at most."""
        self._pending += records

    def check(self, *, wanted: int = 0, done: str = "") -> None:
        """Raise JournalFullError unless so many records more, and at least one, may be made pending."""
        if self._pending + wanted >= self._max_pending or self._monotonic() - self._counted_at >= COUNTED_S:
            self._pending, self._counted_at = self._count(), self._monotonic()
        if self._pending + wanted >= self._max_pending:
            more = f"{wanted} records to send and {self._pending}" if wanted else f"{self._pending} records"
            raise JournalFullError(
                f"{more} that wait are more than journal.max_pending ({self._max_pending}) lets in{done}: narrow it "
                "down, wait until more is delivered, or raise that"
            )
