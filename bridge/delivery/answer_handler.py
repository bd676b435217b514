"""What follows from an answer: outcomes for the journal, pauses, and what becomes of the cases.

The answer to a call of a case is judged by that case. The records that it lets go, and those of a new batch, open a
case: a search after a rejection, a retrial after anything else. Two rules are easily got wrong: a 5xx says nothing
about whose fault it is before another record's call has ended; and nothing that concerns all records of a lane, an
object type or the portal may count against one record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from bridge.crm.complaints import Complaint
from bridge.crm.transport import Input
from bridge.delivery.answers import Again, Broken, Judged, Locked, Meaning, Rejected, Stopped, TooLarge
from bridge.delivery.cases import LOCK_S, MAX_HELD, SILENT, Decision, Moment, Retrial, Sent, halves
from bridge.delivery.pauses import OUTAGE, Stop
from bridge.delivery.search import Search, is_about_records, is_misaddressed, misconfigured
from bridge.delivery.state import DeliveryState, Work
from bridge.model import Category, Delivered, Lane, Outcome, Parked, PendingRecord, Reason, Scope


class AnswerHandler:
    """Not thread-safe: the dispatcher's lock guards it."""

    def __init__(self, state: DeliveryState) -> None:
        self._state = state
        self._cases = state.cases
        self._stumbles = Counter[int]()  # by record: calls whose outcome could not be written down

    def handle(
        self, work: Work, inputs: Sequence[Input], meaning: Meaning, at: Moment
    ) -> tuple[Sequence[Outcome], float]:
        """The outcomes of this call, and the seconds for which the limiter is to hold. The work stays open until it
        is settled.
        """
        sent = Sent(inputs, tuple(one.record.ref for one in inputs), at, probe=work.probe, partly=work.partly)
        match meaning:
            case Judged():
                decision = self._judged(work, sent, meaning)
            case Rejected(complaint):
                decision = self._rejected(work, sent, complaint)
            case TooLarge(reason):
                decision = self._too_large(work, sent, reason)
            case Locked(reason, own):
                decision = self._locked(work, sent, reason, own=own)
            case Broken(stop, reason):
                decision = self._broken(work, sent, stop, reason)
            case Stopped(stop):
                decision = Decision(stop=stop)
            case Again():
                decision = Decision()  # what was sent stays due, or in its case
        if decision.retire:
            self._state.retired.retire(work.lane.object_type, decision.retire, at.now)
        hold_s = 0.0 if decision.stop is None else self._stop(work, decision.stop, at)
        return self._applied(work, decision), hold_s

    def vanished(self, work: Work, refs: Sequence[int]) -> Sequence[Outcome]:
        """When they were taken, these records had nothing to be sent any more."""
        return () if work.case is None else self._applied(work, work.case.vanished(refs))

    def _applied(self, work: Work, decision: Decision) -> Sequence[Outcome]:
        self._cases.apply(work.case, decision)
        # An outcome may be about a record that a search held until now.
        work.held.update(outcome.record.ref for outcome in decision.outcomes)
        return decision.outcomes

    def stumbled(self, work: Work, now: float) -> None:
        """The outcome of this call could not be written down, and nobody knows because of which record: it goes again
        in halves, later each time, so that it does not loop and holds up no other record.
        """
        held = self._cases.holding()
        refs = tuple(ref for ref in work.refs if ref not in held)
        if len(self._stumbles) > MAX_HELD:
            self._stumbles.clear()
        self._stumbles.update(refs)
        for half in halves(refs):
            failures = max(self._stumbles[ref] for ref in half)
            ready_at = now + self._state.policy.backoff.delay_s(failures)
            self._retry(work.lane, half, ready_at=ready_at, failures=failures)

    # --- what the answer says -----------------------------------------------------------------

    def _judged(self, work: Work, sent: Sent, judged: Judged) -> Decision:
        state, now = self._state, sent.at.now
        if judged.outcomes or judged.unexplained:
            delivered = [outcome.record for outcome in judged.outcomes if isinstance(outcome, Delivered)]
            state.note_success(work.lane, {source for record in delivered for source in record.sources}, now)
            state.retired.accepted(work.lane.object_type, {name for record in delivered for name in record.values})
            self._answered(work, accepted=True)
            state.pauses.disproved(now=now)
        elif work.probe:
            stop = Stop(Scope.ALL, OUTAGE, "an answer that confirms nothing")
            return self._broken(work, sent, stop, Reason(Category.UNCONFIRMED, stop.detail))
        decision = Decision(judged.outcomes, retire=judged.retire)
        decision = decision.and_then(work.case.accepted(sent, judged) if work.case else Decision(free=sent.refs))
        if judged.unexplained:  # a few are searched, the others parked
            search = self._search(work.lane, [one.record.ref for one, _ in judged.unexplained], now)
            decision = decision.and_then(search.rejected_alone(judged.unexplained)).and_then(Decision(opens=(search,)))
        if not judged.silent or not decision.free:
            return decision
        return self._in_halves(work.lane, judged.silent, decision, SILENT, now + state.policy.backoff.delay_s(1))

    def _rejected(self, work: Work, sent: Sent, complaint: Complaint) -> Decision:
        state, lane = self._state, work.lane
        self._answered(work, accepted=False)
        if work.probe and state.pauses.stops_lane(lane):
            if is_misaddressed(lane, sent.inputs, complaint) or not is_about_records(sent.inputs, complaint):
                return Decision(stop=misconfigured(complaint))
            self._answered(work, accepted=True)  # a fault of this record's own: the lane's trouble is over
        decision = work.case.rejected(sent, complaint) if work.case else Decision(free=sent.refs)
        if decision.free:
            search = self._search(lane, decision.free, sent.at.now)
            decision = search.rejected(sent, complaint).and_then(Decision(opens=(search,)))
        if decision.stop is not None:
            state.note_misconfigured(lane)
        return decision

    def _too_large(self, work: Work, sent: Sent, reason: Reason) -> Decision:
        self._answered(work, accepted=False)
        records = [one.record for one in sent.inputs]
        if len(records) == 1:
            decision = work.case.vanished(sent.refs) if work.case else Decision()
            return Decision((Parked(records[0], reason),)).and_then(decision)
        decision = work.case.too_large(sent) if work.case else Decision(free=sent.refs)
        return self._in_halves(work.lane, records, decision, reason, sent.at.now)

    def _locked(self, work: Work, sent: Sent, reason: Reason, *, own: bool) -> Decision:
        self._answered(work, accepted=False)
        ready_at = sent.at.now + LOCK_S
        decision = work.case.locked(sent, reason, ready_at, own=own) if work.case else Decision(free=sent.refs)
        if not self._retry(work.lane, decision.free, ready_at=ready_at):
            # More locked records than can be held: that is the CRM's trouble.
            return replace(decision, stop=Stop(Scope.ALL, OUTAGE, f"{reason.category}: {reason.message}"[:300]))
        return decision

    def _broken(self, work: Work, sent: Sent, stop: Stop, reason: Reason) -> Decision:
        fresh = Decision(stop=stop, free=() if work.probe else sent.refs)  # a probe stays due, the next is another one
        decision = work.case.broken(sent, stop, reason) if work.case else fresh
        self._retry(work.lane, decision.free, ready_at=sent.at.now, scope=stop.scope)
        return decision

    def _stop(self, work: Work, stop: Stop, at: Moment) -> float:
        """Pause; returns the seconds for which the limiter is to hold."""
        began, known = work.began, work.case is not None
        delay_s = self._state.pauses.stop(work.lane, stop, now=at.now, now_us=at.now_us, began=began, known=known)
        return delay_s if stop.reason == "rate_limited" else 0.0

    def _answered(self, work: Work, *, accepted: bool) -> None:
        """A probe got a sound answer: the trouble is over, as far as this answer says."""
        if work.probe:
            self._state.pauses.answered(work.lane, accepted=accepted)

    # --- what opens a case --------------------------------------------------------------------

    def _search(self, lane: Lane, refs: Sequence[int], now: float) -> Search:
        since = self._state.successes.since_now(lane, Scope.LANE)
        proven, trusted = self._state.is_proven(lane), self._state.trusted_sources(lane, now)
        return Search(lane, refs, self._state.policy, since, proven=proven, trusted=trusted, ready_at=now)

    def _retry(
        self, lane: Lane, refs: tuple[int, ...], *, ready_at: float, scope: Scope = Scope.ALL, failures: int = 1
    ) -> bool:
        """False when these are more than can be held: they stay due."""
        if not refs:
            return True
        since = self._state.successes.since_now(lane, scope)
        return self._cases.add(Retrial(lane, refs, self._state.policy, since, ready_at=ready_at, failures=failures))

    def _in_halves(
        self, lane: Lane, records: Sequence[PendingRecord], decision: Decision, reason: Reason, ready_at: float
    ) -> Decision:
        """Retry the free ones of these records in halves. Those beyond what can be held are tried again later."""
        by_ref = {record.ref: record for record in records if record.ref in decision.free}
        beyond = [half for half in halves(tuple(by_ref)) if not self._retry(lane, half, ready_at=ready_at)]
        later = tuple(self._state.policy.later(by_ref[ref], reason) for half in beyond for ref in half)
        return decision.and_then(Decision(later))
