"""Finds the one property of a record that makes the CRM refuse it without saying why.

A record that is refused alone is worth a few more calls when it has few properties: the properties are
halved as records are. If what is left over is refused as well, the record as a whole is the trouble.
"""

from __future__ import annotations

from bridge.delivery.complaints import Complaint
from bridge.model import Parked, PendingRecord, Refused

#: Properties of a record that may be searched for a culprit: 8 take at most 4 calls.
MAX_PROPERTIES = 8


def is_cheap(record: PendingRecord) -> bool:
    return 2 <= len(record.values) <= MAX_PROPERTIES


class Salvage:
    """One refused record's properties, narrowed by one call at a time. Pure; not thread-safe."""

    def __init__(self, record: PendingRecord, complaint: Complaint) -> None:
        self.record = record
        self._complaint = complaint
        self._tainted = list(record.values)
        self._untested: list[str] = []
        self._culprit: str | None = None
        self.verdict: Refused | Parked | None = None

    @property
    def names(self) -> frozenset[str]:
        """The properties to send next."""
        if self._culprit is None:
            return frozenset(self._tainted[: len(self._tainted) // 2])
        return frozenset(self._untested)

    def accepted(self) -> None:
        """The CRM took `names`."""
        if self._culprit is None:
            self._tainted = self._tainted[len(self._tainted) // 2 :]
        else:
            self._untested = []
        self._conclude()

    def rejected(self) -> None:
        if self._culprit is not None:
            self.verdict = Parked(self.record, self._complaint.reason)
            return
        middle = len(self._tainted) // 2
        self._untested += self._tainted[middle:]
        self._tainted = self._tainted[:middle]
        self._conclude()

    def _conclude(self) -> None:
        if self._culprit is None and len(self._tainted) == 1:
            self._culprit = self._tainted[0]
        if self._culprit is not None and not self._untested:
            reason = self._complaint.reason_for(self._culprit)
            self.verdict = Refused(self.record, {self._culprit: reason})
