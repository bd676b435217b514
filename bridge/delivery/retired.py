"""Properties that nobody can write: left out of calls, so that a retired one costs two calls per 10 minutes.

When HubSpot refuses a call because a property does not exist or is read-only, every call with that
property would be refused. So its values are refused as a group, without being sent, and after a while one
call asks again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from bridge.model import Outcome, PendingRecord, Reason, Refused

#: Seconds for which a property is left out before one call asks again.
RETIRED_S = 600.0

#: Seconds that the asking call has for an answer; meanwhile the property stays left out of others.
_ASKING_S = 150.0


@dataclass(slots=True)
class _Retirement:
    reason: Reason
    until: float  # monotonic


class Retired:
    """The retired properties by object type. Not thread-safe: the dispatcher's lock guards it."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], _Retirement] = {}

    def retire(self, object_type: str, reasons: Mapping[str, Reason], now: float) -> None:
        for name, reason in reasons.items():
            self._known[object_type, name] = _Retirement(reason, now + RETIRED_S)

    def taken(self, object_type: str, names: Collection[str]) -> None:
        """The CRM took a call with these properties."""
        if self._known:
            for name in names:
                self._known.pop((object_type, name), None)

    def strip(
        self, object_type: str, records: Sequence[PendingRecord], now: float
    ) -> tuple[list[PendingRecord], list[Outcome]]:
        """The records without their retired properties, which are refused."""
        out = self._left_out(object_type, records, now)
        if not out:
            return list(records), []
        left: list[PendingRecord] = []
        refused: list[Outcome] = []
        for record in records:
            names = out.keys() & record.values.keys()
            if not names:
                left.append(record)
                continue
            refused.append(Refused(record, {name: out[name] for name in sorted(names)}))
            values = {name: value for name, value in record.values.items() if name not in names}
            if values:
                left.append(replace(record, values=values))
        return left, refused

    def _left_out(self, object_type: str, records: Sequence[PendingRecord], now: float) -> dict[str, Reason]:
        out = {}
        for (known_type, name), retirement in self._known.items():
            if known_type != object_type or not any(name in record.values for record in records):
                continue
            if retirement.until <= now:
                retirement.until = now + _ASKING_S  # this call asks; others wait for what it learns
            else:
                out[name] = retirement.reason
        return out
