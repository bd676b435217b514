"""The limits of calls: a rate, and the day's budget.

The calls of the deployment stay within the rate limit, evenly spaced, and use it fully (G6).

Invariant: no rolling window of `per_s` holds more than `calls` starts. The log of starts ensures that, with a window
that is one percent longer. Half of that is the age that a grant may reach before its call is sent, half is left for the
network between us and the CRM. Under a backlog one call starts every `per_s × 1.02 / calls`; after idleness a call
starts at once. Starts that were late, because of a timer or a busy machine, are caught up within the invariant.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bridge.crm.transport import Answer, NoAnswer
from bridge.delivery.pauses import DAILY_LIMIT, Stop
from bridge.model import MICROSECONDS, Scope

#: Share of the window by which the spacing is wider than the limit asks. Simulated: no 429 at 0.98 use.
MARGIN = 0.02

#: Share of the window by which late starts may be caught up. Timers wake a millisecond late, which at 19 calls a second
#: would cost 2 % of the limit; a busy machine is some hundred late. The log of starts keeps the limit all the same.
SLACK = 0.05

#: Share of the window that a grant stays fresh: a process can freeze between grant and call.
MAX_AGE = 0.005


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave to start one call, given at `at` on the monotonic clock."""

    at: float


class Limiter:
    """Grants call starts. Thread-safe: `_lock` guards everything below it."""

    def __init__(self, *, calls: int, per_s: float) -> None:
        if calls < 1 or per_s <= 0:
            raise ValueError("a rate limit needs at least one call in a window longer than nothing")
        self.interval_s = per_s * (1 + MARGIN) / calls
        self._calls = calls
        self._window_s = per_s * (1 + MARGIN / 2)
        self._slack_s = per_s * SLACK
        self._max_age_s = per_s * MAX_AGE
        self._lock = threading.Lock()
        self._starts: deque[float] = deque()
        self._next_at = float("-inf")
        self._held_until = float("-inf")
        self._wanted_since: float | None = None
        self._waited_s = 0.0

    def wait_s(self, now: float) -> float:
        """How long until a call may start; 0 when it may start now."""
        with self._lock:
            return self._wait_s(now)

    def acquire(self, now: float) -> Grant | None:
        """A grant for one call that starts now, or None when it is too early (see `wait_s`)."""
        with self._lock:
            if self._wait_s(now) > 0:
                if self._wanted_since is None:
                    self._wanted_since = now
                return None
            if self._wanted_since is not None:
                self._waited_s += max(0.0, now - self._wanted_since)
                self._wanted_since = None
            late_s = now - self._next_at
            self._next_at = (self._next_at if late_s <= self._slack_s else now) + self.interval_s
            self._starts.append(now)
            return Grant(now)

    def fresh(self, grant: Grant, now: float) -> bool:
        """Whether the granted call may still be sent now; if not, the grant is to be renewed."""
        return 0 <= now - grant.at <= self._max_age_s

    def renew(self, grant: Grant, now: float) -> Grant | None:
        """A grant that starts now in place of a stale one, whose call was not sent; None when it is too early, and the
        old one stays. So a slow journal or a busy machine costs next to nothing of the limit.
        """
        with self._lock:
            self._forget(now)
            counted = grant.at in self._starts  # not after a window's time: then it needs a place of its own
            if now < max(grant.at, self._held_until) or len(self._starts) - counted >= self._calls:
                return None
            if counted:
                self._starts.remove(grant.at)
            self._starts.append(now)
            return Grant(now)

    def hold(self, until: float) -> None:
        """Grant nothing before `until`: the CRM said 429 although we kept the limit."""
        with self._lock:
            self._held_until = max(self._held_until, until)

    def follow(self, ages: Iterable[float], *, now: float) -> None:
        """Count the calls that another limiter granted so many seconds ago, and keep the spacing after them."""
        with self._lock:
            self._starts = deque(sorted(now - max(0.0, age) for age in ages))
            self._forget(now)
            if self._starts:
                self._next_at = now + self.interval_s

    def not_wanted(self) -> None:
        """Nothing is ready to be sent any more: from now on nothing waits for the limit."""
        with self._lock:
            self._wanted_since = None

    @property
    def waited_s(self) -> float:
        """Seconds for which work was ready and the limit held it back, since the start."""
        with self._lock:
            return self._waited_s

    def used(self, now: float) -> int:
        """Calls started within the current window."""
        with self._lock:
            self._forget(now)
            return len(self._starts)

    def _wait_s(self, now: float) -> float:
        self._forget(now)
        at = max(self._next_at, self._held_until)
        if len(self._starts) >= self._calls:
            at = max(at, self._starts[0] + self._window_s)
        return max(0.0, at - now)

    def _forget(self, now: float) -> None:
        # Strictly older: a start exactly one window ago still counts, whichever side the CRM counts it on.
        while self._starts and now - self._starts[0] > self._window_s:
            self._starts.popleft()


# --- the day's calls: our own budget (`rate_limit.daily`), and what HubSpot says is left of the portal's quota ---
#
# The quota begins anew at midnight of the portal, whose time zone HubSpot does not tell. So our own count runs from
# midnight to midnight UTC, and `X-HubSpot-RateLimit-Daily-Remaining` bounds it; where the budget is the portal's whole
# quota (`-Daily` names the same number), only the header counts. When our own count is spent, delivery waits for
# midnight UTC without a call. When HubSpot says that nothing is left, probes at growing intervals find out when it goes
# on, soon after the portal's midnight.

DAY_US = 86_400 * MICROSECONDS

#: The pause's detail when our own budget is spent. The pause is not restored after a restart: the count says whether it
#: still holds, also when the budget was raised meanwhile.
SPENT = "the budget of the day (crm.rate_limit.daily) is spent; it begins anew at midnight UTC"

_QUOTA_SPENT = "HubSpot says that no call is left today; asked again at growing intervals"


def day_began_us(now_us: int) -> int:
    """Midnight UTC before this time."""
    return now_us - now_us % DAY_US


class DailyBudget:
    """Counts calls. Not thread-safe: the dispatcher's lock guards it."""

    def __init__(self, daily: int | None) -> None:
        """`daily` None: only HubSpot's count matters."""
        self.daily = daily
        self._day_us = 0
        self._used = 0
        self._open = 0  # calls begun and not closed
        self._told: int | None = None  # what HubSpot said last is left
        self._told_daily: int | None = None

    def begin(self, used: int, now_us: int) -> None:
        """So many calls were made since midnight UTC, before this process."""
        self._day_us = day_began_us(now_us)
        self._used = used

    def left(self, now_us: int) -> int | None:
        """Calls that may still begin today; None when nobody says."""
        self._begin_another_day(now_us)
        told = None if self._told is None else max(0, self._told - self._open)
        known = [left for left in (self._own(), told) if left is not None]
        return min(known) if known else None

    def started(self, now_us: int) -> None:
        """A call begins."""
        self._begin_another_day(now_us)
        self._used += 1
        self._open += 1

    def closed(self, *, sent: bool) -> None:
        """A call is over, or was not made after all."""
        self._open = max(0, self._open - 1)
        if not sent:
            self._used = max(0, self._used - 1)

    def answered(self, answer: Answer | NoAnswer, *, refused: bool) -> None:
        """Read HubSpot's headers. `refused`: it answered that the daily quota is used up."""
        headers = answer.headers if isinstance(answer, Answer) else {}
        told = _number(headers, "x-hubspot-ratelimit-daily-remaining")
        if refused:
            told = 0
        if told is not None:
            self._told, self._told_daily = told, _number(headers, "x-hubspot-ratelimit-daily") or self._told_daily
        elif self._told is not None and isinstance(answer, Answer):
            # Without the header: one less. But a call that went through shows that 0 holds no longer.
            self._told = self._told - 1 if self._told > 1 else None

    def stop(self, now_us: int) -> Stop | None:
        """The pause that is due because nothing is left. Open calls are waited for: some may not be sent."""
        if self._open or self.left(now_us) != 0:
            return None
        if self._own() != 0:
            return Stop(Scope.ALL, DAILY_LIMIT, _QUOTA_SPENT)
        wait_s = (self._day_us + DAY_US - now_us) / MICROSECONDS
        return Stop(Scope.ALL, DAILY_LIMIT, SPENT, delay_s=max(wait_s, 1.0), probes=False)

    def _own(self) -> int | None:
        """What is left by our own count; None without a budget, or where HubSpot's count takes its place."""
        if self.daily is None or (self._told is not None and self._told_daily == self.daily):
            return None
        return max(0, self.daily - self._used)

    def _begin_another_day(self, now_us: int) -> None:
        # Whichever way the clock jumped, another day has a count of its own.
        if day_began_us(now_us) != self._day_us:
            self._day_us = day_began_us(now_us)
            self._used = self._open


def _number(headers: Mapping[str, str], name: str) -> int | None:
    told = headers.get(name, "").strip()
    return int(told) if told.isascii() and told.isdigit() and len(told) < 12 else None
