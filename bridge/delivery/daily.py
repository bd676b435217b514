"""The day's calls: our own budget (`rate_limit.daily`), and what HubSpot says is left of the portal's quota.

The quota begins anew at midnight of the portal, whose time zone HubSpot does not tell. So our own count
runs from midnight to midnight UTC, and `X-HubSpot-RateLimit-Daily-Remaining` bounds it; where the budget
is the portal's whole quota (`-Daily` names the same number), the header alone counts. Spent by our own
count, delivery waits for midnight UTC without a call. Spent by HubSpot's word, one record asks at growing
intervals, so that delivery goes on soon after the portal's midnight wherever that is.
"""

from __future__ import annotations

from collections.abc import Mapping

from bridge.delivery.calls import Answer, NoAnswer
from bridge.delivery.pauses import DAILY_LIMIT, Stop
from bridge.model import MICROSECONDS, Scope

DAY_US = 86_400 * MICROSECONDS

#: The pause's detail when our own budget is spent. It is never taken up after a restart: the count tells
#: anew whether it holds, also when the budget was raised meanwhile.
SPENT = "the budget of the day (crm.rate_limit.daily) is spent; it begins anew at midnight UTC"

_QUOTA_SPENT = "HubSpot says that no call is left today; asked again at growing intervals"


def day_began_us(now_us: int) -> int:
    """Midnight UTC before this time."""
    return now_us - now_us % DAY_US


class DailyBudget:
    """Counts calls. Not thread-safe: the dispatcher's lock guards it."""

    def __init__(self, daily: int | None) -> None:
        """`daily` None: only HubSpot's word counts."""
        self.daily = daily
        self._day_us = 0
        self._used = 0
        self._open = 0  # calls begun and not closed
        self._told: int | None = None  # what was left by HubSpot's last word
        self._told_daily: int | None = None

    def begin(self, used: int, now_us: int) -> None:
        """So many calls were made since midnight UTC, before this process."""
        self._day_us = day_began_us(now_us)
        self._used = used

    def left(self, now_us: int) -> int | None:
        """Calls that may still begin today; None when nobody says."""
        self._turn_the_day(now_us)
        told = None if self._told is None else max(0, self._told - self._open)
        known = [left for left in (self._own(), told) if left is not None]
        return min(known) if known else None

    def started(self, now_us: int) -> None:
        """A call begins."""
        self._turn_the_day(now_us)
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
            # Without the header: one less; but a call that went through tells that 0 is an old story.
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
        """What is left by our own count; None without a budget, or where HubSpot's word takes its place."""
        if self.daily is None or (self._told is not None and self._told_daily == self.daily):
            return None
        return max(0, self.daily - self._used)

    def _turn_the_day(self, now_us: int) -> None:
        # Whichever way the clock jumped: a day that is not ours begins with its own count.
        if day_began_us(now_us) != self._day_us:
            self._day_us = day_began_us(now_us)
            self._used = self._open


def _number(headers: Mapping[str, str], name: str) -> int | None:
    told = headers.get(name, "").strip()
    return int(told) if told.isascii() and told.isdigit() and len(told) < 12 else None
