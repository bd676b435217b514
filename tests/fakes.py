"""Fakes for what tests cannot have for real: time that is told what to be."""

from __future__ import annotations


class FakeClock:
    """A clock that moves only when told to. `now` and `monotonic` advance together unless `jump`ed."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._monotonic = 1_000.0

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds
        self._monotonic += seconds

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back; waits are not affected."""
        self._now += seconds
