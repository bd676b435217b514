"""Records whose call came to nothing although the CRM may be well: sent again by themselves, halved.

A call that ended without a usable answer (5xx, time-out, silence about an input, a lock) tells nothing of its records.
They stay out of other calls, so that nothing else pays for them, and are sent again whole; when that fails although
other calls succeeded meanwhile, they are halved. A record that fails alone while others succeed is put off: tried
again at growing delays, always alone, until it is given up. Without a success of others nothing is concluded: then it
is the CRM, and no record's patience is burned.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar

from bridge.delivery.cases import Decision, Group, Sent, Since, Step
from bridge.delivery.complaints import Complaint
from bridge.delivery.meanings import Judged
from bridge.delivery.pauses import Stop
from bridge.delivery.retry_policy import RetryPolicy
from bridge.model import Category, Lane, Outcome, Parked, Reason, RetryLater

#: Why a record goes again about which the CRM said nothing.
SILENT = Reason(Category.UNCONFIRMED, "HubSpot took the call and said nothing about this record")

#: Seconds that a call which met a lock waits at least: HubSpot's locks last 2 s.
LOCK_S = 2.0


def halves(refs: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The two halves, or the one that there is."""
    middle = len(refs) // 2
    return [half for half in (refs[:middle], refs[middle:]) if half]


@dataclass(slots=True, eq=False)
class Retrial:
    """A group of records that goes again. `since`: when it failed last, and whose success counts from then on (of any
    call, or of its object type's). Not thread-safe.
    """

    step: ClassVar = Step.RETRIAL
    lane: Lane
    refs: tuple[int, ...]
    policy: RetryPolicy
    since: Since
    ready_at: float = 0.0
    failures: int = 1
    silences: int = 0  # how often this one record, alone, met silence
    alone: bool = False  # it failed alone before, while others succeeded
    open: bool = False
    asks_one: bool = False  # several met a lock while nothing else was sent: whether all are locked, a single one tells

    def next_group(self, *, probe: bool = False) -> Group | None:
        """A single record as a probe, which does for all."""
        return Group(self.refs[:1] if probe or self.asks_one else self.refs) if self.refs else None

    def vanished(self, refs: Collection[int]) -> Decision:
        self.refs = tuple(ref for ref in self.refs if ref not in refs)
        return Decision()

    def left(self, refs: Collection[int]) -> Decision:
        self.vanished(refs)
        return Decision(opens=(replace(self, refs=tuple(sorted(refs)), open=False),))

    def taken(self, sent: Sent, judged: Judged) -> Decision:
        if not judged.silent or len(sent.inputs) > 1 or len(self.refs) > 1:  # silence about one of several is its own
            return self._let_go(sent)
        if not self.since.others_succeeded:
            return self._nobody_else(sent, SILENT)
        self.silences += 1
        if self.silences < 2:
            return self._put_off(self.policy.later(judged.silent[0], SILENT))
        twice = replace(SILENT, message=f"{SILENT.message}, twice while it was alone")
        return self._ended(Parked(judged.silent[0], twice))

    def refused(self, sent: Sent, complaint: Complaint) -> Decision:  # noqa: ARG002 (whatever it says)
        """Whose fault it is, a search will tell."""
        return self._let_go(sent)

    def _let_go(self, sent: Sent) -> Decision:
        self.vanished(sent.refs)
        self.asks_one = False
        return Decision(free=sent.refs)

    def too_large(self, sent: Sent) -> Decision:
        return self._halved(sent.at.now)

    def locked(self, sent: Sent, reason: Reason, ready_at: float, *, own: bool) -> Decision:
        if len(self.refs) == 1:
            blamed = own or self.since.others_succeeded
            return (self._blamed if blamed else self._nobody_else)(sent, reason, at_least_s=LOCK_S)
        ready_at = max(ready_at, sent.at.now + self._delay_s())
        if self.since.others_succeeded:
            return self._halved(ready_at)
        self.asks_one = True
        return self._postponed(ready_at)

    def broken(self, sent: Sent, stop: Stop, reason: Reason) -> Decision:
        self.since = self.since.within(stop.scope)
        if sent.probe:
            self._rotate()
            return Decision(stop=stop)
        if self.since.others_succeeded:  # no outage, but something in this group
            return self._halved(sent.at.now + self._delay_s()) if len(self.refs) > 1 else self._blamed(sent, reason)
        if self.alone:  # as before, and nobody else to ask: no news about the CRM
            return self._nobody_else(sent, reason)
        return replace(self._postponed(sent.at.now), stop=stop)

    def _postponed(self, ready_at: float) -> Decision:
        """It failed and nobody knows why: the same again later."""
        self.failures += 1
        self.ready_at = ready_at
        self.since = self.since.now()
        self._rotate()
        return Decision()

    def _rotate(self) -> None:
        """Another record is the next probe."""
        self.refs = (*self.refs[1:], *self.refs[:1])

    def _halved(self, ready_at: float) -> Decision:
        """It failed while others succeed: the culprit is in one of the halves; or it was too large."""
        again = replace(
            self, failures=self.failures + 1, ready_at=ready_at, since=self.since.now(), open=False, asks_one=False
        )
        opens = tuple(replace(again, refs=half) for half in halves(self.refs))
        self.refs = ()
        return Decision(opens=opens)

    def _blamed(self, sent: Sent, reason: Reason, *, at_least_s: float = 0.0) -> Decision:
        """It failed alone while others succeed: its own fault."""
        record = sent.inputs[0].record
        outcome = self.policy.failed(record, reason, now_us=sent.at.now_us, at_least_s=at_least_s)
        return self._put_off(outcome) if isinstance(outcome, RetryLater) else self._ended(outcome)

    def _nobody_else(self, sent: Sent, reason: Reason, *, at_least_s: float = 0.0) -> Decision:
        """It failed alone while nothing else was sent, which tells nothing: later again, counted against nobody, and
        shown as retrying.
        """
        delay_s = max(at_least_s, self._delay_s())
        later = RetryLater(sent.inputs[0].record, reason, delay_s, own_failure=False)
        return replace(self._postponed(sent.at.now + delay_s), outcomes=(later,))

    def _put_off(self, later: RetryLater) -> Decision:
        """It goes back to the journal until it is due."""
        again = replace(self, since=self.since.now(), ready_at=0.0, failures=1, alone=True, open=False)
        return replace(self._ended(later), put_off=again)

    def _ended(self, outcome: Outcome) -> Decision:
        self.refs = ()
        return Decision((outcome,))

    def _delay_s(self) -> float:
        return self.policy.backoff.delay_s(self.failures)
