"""Notices that the wall clock was set, so that what is dated by it can be dated anew.

Waits are measured on the monotonic clock and need nothing of this. Doubt outlives the process, so it is dated by
the wall clock: set forward, a doubtful call would seem to be over while it may still be applied. A clock that is
set while the process is down cannot be noticed.
"""

from __future__ import annotations

#: Differences below this are a clock that is corrected little by little: much less than the reserve of a doubt's end.
TOLERANCE_US = 5 * 1_000_000


class ClockWatch:
    """Not thread-safe: the dispatcher's loop looks."""

    def __init__(self) -> None:
        self._ahead_us: int | None = None  # of the wall clock over the monotonic one

    def set_by_us(self, now: float, now_us: int) -> int:
        """By how much the wall clock was set since it was last believed; 0 when it was not."""
        if self._ahead_us is None:
            self.believe(now, now_us)
            return 0
        by_us = now_us - round(now * 1_000_000) - self._ahead_us
        return by_us if abs(by_us) >= TOLERANCE_US else 0

    def believe(self, now: float, now_us: int) -> None:
        """From here on the clocks are taken to go together."""
        self._ahead_us = now_us - round(now * 1_000_000)
