"""How many calls the sandbox takes: HubSpot's rolling ten seconds and its daily quota."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from bridge.model import Clock, SystemClock

DAY_S = 86_400
#: HubSpot's window [docs LIMITS].
WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a call is let in (`policy` "" means yes) and what is left; None: no such limit."""

    policy: str
    remaining: int | None
    daily_remaining: int | None


class Limits:
    """At most `calls` in every rolling window of `per_s`, and `daily` from midnight to midnight UTC.

    None means no limit. The window is a true one: a log of the times of the calls let in, not buckets.
    Refused calls count against neither limit (HubSpot does not say; this is the lenient reading, and
    every refusal is listed among the violations anyway). A batch call is one call whatever its inputs
    [issue/forum]. Thread-safe: `_lock` guards the log and the day's count. `calls` and `daily` may be
    set at any time.
    """

    def __init__(
        self,
        *,
        calls: int | None = None,
        per_s: float = WINDOW_S,
        daily: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.calls = calls
        self.per_s = per_s
        self.daily = daily
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._admitted: deque[float] = deque()
        self._day = self._today()
        self._used_today = 0

    def admit(self) -> Verdict:
        """Let one call in, or say which limit forbids it."""
        now = self._clock.monotonic()
        with self._lock:
            self._turn_the_day()
            while self._admitted and self._admitted[0] <= now - self.per_s:
                self._admitted.popleft()
            policy = ""
            if self.daily is not None and self._used_today >= self.daily:
                policy = "DAILY"
            elif self.calls is not None and len(self._admitted) >= self.calls:
                policy = "TEN_SECONDLY_ROLLING"
            else:
                self._used_today += 1
                if self.calls is not None:  # without a limit the log would only grow
                    self._admitted.append(now)
            return Verdict(
                policy,
                None if self.calls is None else max(0, self.calls - len(self._admitted)),
                None if self.daily is None else max(0, self.daily - self._used_today),
            )

    @property
    def used_today(self) -> int:
        with self._lock:
            self._turn_the_day()
            return self._used_today

    def reset(self) -> None:
        """As after midnight, and ten quiet seconds."""
        with self._lock:
            self._admitted.clear()
            self._used_today = 0

    def headers(self, verdict: Verdict) -> dict[str, str]:
        """The rate limit headers that HubSpot sends [docs LIMITS]; those of limits not set are absent."""
        found: dict[str, str] = {}
        if verdict.remaining is not None:
            found["X-HubSpot-RateLimit-Max"] = str(self.calls)
            found["X-HubSpot-RateLimit-Remaining"] = str(verdict.remaining)
            found["X-HubSpot-RateLimit-Interval-Milliseconds"] = str(round(self.per_s * 1000))
        if verdict.daily_remaining is not None:
            found["X-HubSpot-RateLimit-Daily"] = str(self.daily)
            found["X-HubSpot-RateLimit-Daily-Remaining"] = str(verdict.daily_remaining)
        return found

    def _today(self) -> int:
        return int(self._clock.now() // DAY_S)

    def _turn_the_day(self) -> None:
        if self._today() != self._day:
            self._day = self._today()
            self._used_today = 0
