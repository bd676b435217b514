"""When a record that keeps failing by itself is tried again, and when it is parked at last.

The time does not run in pauses: beside the time since the first failure, the delays that the record's
own failures asked for must add up to `give_up_after` as well. That needs no record of past pauses and
survives restarts and a jumping clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge.delivery.pauses import Backoff
from bridge.model import MICROSECONDS, Category, Parked, PendingRecord, Reason, RetryLater

#: Seconds for which `on_unknown: wait` asks again for a record that the CRM does not know.
AWAIT_CREATION_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Pure but for the backoff's jitter; safe to share between threads."""

    backoff: Backoff
    give_up_after_s: float

    def failed(
        self, record: PendingRecord, reason: Reason, *, now_us: int, at_least_s: float = 0.0
    ) -> RetryLater | Parked:
        """The record failed by its own fault: later again, or parked when its time is over."""
        if self._is_over(record, self.give_up_after_s, now_us):
            hours = self.give_up_after_s / 3600
            message = f"gave up after {record.attempts + 1} attempts in {hours:.4g} h: {reason.message}"
            return Parked(record, Reason(Category.GAVE_UP, message[:500]))
        return self.later(record, reason, at_least_s=at_least_s)

    def await_creation(self, record: PendingRecord, reason: Reason, *, now_us: int) -> RetryLater | Parked:
        """The CRM does not know the record yet."""
        if self._is_over(record, AWAIT_CREATION_S, now_us):
            return Parked(record, reason)
        return self.later(record, reason)

    def later(self, record: PendingRecord, reason: Reason, *, at_least_s: float = 0.0) -> RetryLater:
        delay_s = max(at_least_s, self.backoff.delay_s(record.attempts + 1))
        return RetryLater(record, reason, delay_s)

    def _is_over(self, record: PendingRecord, longest_s: float, now_us: int) -> bool:
        if record.failing_since_us is None:
            return False
        failing_s = (now_us - record.failing_since_us) / MICROSECONDS
        return failing_s >= longest_s and self.backoff.patience_used_s(record.attempts) >= longest_s
