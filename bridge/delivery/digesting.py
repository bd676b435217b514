"""Draws the consequences of a verdict: outcomes for the journal, pauses, isolations, suspects.

Two rules are easily got wrong: a 5xx says nothing about whose fault it is before another record's call
has ended; and nothing that concerns all records of a lane, a type or the portal may count against one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bridge.delivery.board import Board, Narrowing, Step, Work
from bridge.delivery.complaints import Complaint
from bridge.delivery.isolation import Isolation, Ruling, is_about_records, is_misaddressed
from bridge.delivery.pauses import MISCONFIGURED, OUTAGE, Stop
from bridge.delivery.ports import Input
from bridge.delivery.suspects import MAX_HELD, Suspect, Trouble
from bridge.delivery.verdicts import Again, Broken, Conflict, Judged, Rejected, Stopped, TooLarge, Verdict
from bridge.model import Category, Delivered, Outcome, Parked, PendingRecord, Reason, RetryLater, Scope

#: Seconds that a call which met a lock waits at least: HubSpot's locks last 2 s.
CONFLICT_S = 2.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What to tell the journal; `hold_s` is for the limiter."""

    outcomes: tuple[Outcome, ...] = ()
    hold_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Moment:
    """One reading of the clocks."""

    now: float  # monotonic
    now_us: int


class Digester:
    """Not thread-safe: the dispatcher's lock guards it."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._stumbles = Counter[int]()  # by record: calls whose outcome could not be written down

    def vanished(self, work: Work, refs: Sequence[int]) -> Decision:
        """These records had nothing to be sent any more when they were taken."""
        if work.suspect is not None:
            self._board.suspects.remove(work.suspect, refs)
        if work.narrowing is not None and refs:
            return self._ruled(work, work.narrowing, work.narrowing.isolation.drop(refs))
        return Decision()

    def digest(self, work: Work, inputs: Sequence[Input], verdict: Verdict, at: Moment) -> Decision:
        """The consequences of this verdict on this call. The work stays open until it is settled."""
        match verdict:
            case Judged():
                decision = self._judged(work, inputs, verdict, at)
            case Rejected(complaint):
                decision = self._rejected(work, inputs, complaint, at)
            case TooLarge(reason):
                decision = self._too_large(work, inputs, reason, at)
            case Conflict(reason):
                decision = self._conflict(work, inputs, reason, at)
            case Again():
                decision = Decision()  # what was taken stays due, what was suspect stays suspect
            case Stopped(stop):
                decision = self._stop(work, stop, at)
            case Broken(stop, reason):
                decision = self._broken(work, inputs, stop, reason, at)
        # An outcome may be about a record that an isolation held back until now.
        work.held.update(outcome.record.ref for outcome in decision.outcomes)
        self._board.suspects.forget([one.record.ref for one in decision.outcomes if not isinstance(one, RetryLater)])
        return decision

    # --- the call was taken -------------------------------------------------------------------

    def _judged(self, work: Work, inputs: Sequence[Input], verdict: Judged, at: Moment) -> Decision:
        outcomes = list(verdict.outcomes)
        delivered = [outcome.record for outcome in outcomes if isinstance(outcome, Delivered)]
        if outcomes or verdict.unexplained:
            sources = {source for record in delivered for source in record.sources}
            self._board.note_success(work.lane, sources, at.now)
            retired, object_type = self._board.retired, work.lane.object_type
            retired.taken(object_type, {name for record in delivered for name in record.values})
            retired.retire(object_type, verdict.retire, at.now)
            self._answered(work, taken=True)
            self._board.pauses.disproved(now=at.now)
        elif work.probe:
            stop = Stop(Scope.ALL, OUTAGE, "an answer that confirms nothing")
            return self._broken(work, inputs, stop, Reason(Category.UNCONFIRMED, stop.detail), at)
        if work.narrowing is not None:
            isolation = work.narrowing.isolation
            ruling = isolation.abandon() if work.partly or (work.only and not delivered) else isolation.accepted()
            outcomes.extend(self._ruled(work, work.narrowing, ruling).outcomes)
        if work.suspect is not None:
            settled = {outcome.record.ref for outcome in outcomes}
            settled.update(one.record.ref for one, _ in verdict.unexplained)
            self._board.suspects.remove(work.suspect, settled)
        if verdict.unexplained:
            outcomes.extend(self._unexplained(work, verdict))
        if verdict.silent and work.only is None:
            outcomes.extend(self._silent(work, inputs, verdict.silent, at))
        return Decision(tuple(outcomes))

    def _unexplained(self, work: Work, verdict: Judged) -> Sequence[Outcome]:
        """The CRM refused these without naming a property: a few are searched, the others are parked."""
        refs = [one.record.ref for one, _ in verdict.unexplained]
        isolation = Isolation(lane=work.lane, refs=refs, proven=True)
        narrowing = Narrowing(isolation, self._board.successes.get(work.lane, 0))
        self._board.narrowings.append(narrowing)
        return self._ruled(work, narrowing, isolation.refused_alone(verdict.unexplained)).outcomes

    def _silent(
        self, work: Work, inputs: Sequence[Input], silent: Sequence[PendingRecord], at: Moment
    ) -> list[Outcome]:
        """The CRM said nothing about these: again in halves, until each was silent alone twice."""
        suspects, suspect = self._board.suspects, work.suspect
        message = "HubSpot took the call and said nothing about this record"
        reason = Reason(Category.UNCONFIRMED, message)
        if suspect is None or len(inputs) > 1:
            if suspect is not None:
                suspects.remove(suspect, [record.ref for record in silent])
            ready_at = at.now + self._board.patience.backoff.delay_s(1)
            return self._in_halves(work, silent, Trouble.SILENT, reason, ready_at)
        if not suspects.others_succeed(suspect):
            return [self._nobody_to_ask(suspect, silent[0], reason, at)]
        suspect.silences += 1
        if suspect.silences >= 2:
            suspects.remove(suspect)
            return [Parked(silent[0], Reason(Category.UNCONFIRMED, f"{message}, twice while it was alone"))]
        suspects.remember(suspect)
        return [self._board.patience.later(silent[0], reason)]

    def _in_halves(
        self, work: Work, records: Sequence[PendingRecord], trouble: Trouble, reason: Reason, ready_at: float
    ) -> list[Outcome]:
        """Put them under suspicion, half by half. Those beyond what can be are tried again later."""
        middle = len(records) // 2
        return [
            self._board.patience.later(record, reason)
            for half in (records[:middle], records[middle:])
            if not self._board.suspects.add(work.lane, [one.ref for one in half], trouble, ready_at=ready_at)
            for record in half
        ]

    # --- the call was refused -----------------------------------------------------------------

    def _rejected(self, work: Work, inputs: Sequence[Input], complaint: Complaint, at: Moment) -> Decision:
        board = self._board
        self._answered(work, taken=False)
        if work.probe and board.pauses.stops_lane(work.lane):
            if is_misaddressed(work.lane, inputs, complaint) or not is_about_records(inputs, complaint):
                return self._stop(work, _misconfigured(complaint.reason), at)
            self._answered(work, taken=True)  # another trouble, and this record's own: the lane's is over
        if work.suspect is not None:
            board.suspects.remove(work.suspect, _refs(inputs))
        narrowing = work.narrowing
        if narrowing is None:
            isolation = Isolation(
                lane=work.lane,
                refs=_refs(inputs),
                proven=board.is_proven(work.lane),
                flowing=board.flowing(work.lane, at.now),
            )
            isolation.next_group()
            narrowing = Narrowing(isolation, board.successes.get(work.lane, 0))
            board.narrowings.append(narrowing)
        flows = board.successes.get(work.lane, 0) > narrowing.successes
        ruling = narrowing.isolation.rejected(inputs, complaint, flows=flows)
        board.retired.retire(work.lane.object_type, ruling.retire, at.now)
        if ruling.misconfigured is not None:
            board.narrowings.remove(narrowing)
            board.note_misconfigured(work.lane)
            return self._stop(work, _misconfigured(ruling.misconfigured), at)
        return self._ruled(work, narrowing, ruling)

    def _ruled(self, work: Work, narrowing: Narrowing, ruling: Ruling) -> Decision:
        isolation = narrowing.isolation
        if isolation.next_group() is None and narrowing in self._board.narrowings:
            self._board.narrowings.remove(narrowing)
        reason = Reason("ISOLATION", "refused in company; its turn to be looked at alone will come")
        later = (self._board.patience.later(record, reason) for record in ruling.exhausted)
        decision = Decision((*ruling.outcomes, *later))
        work.held.update(outcome.record.ref for outcome in decision.outcomes)
        return decision

    def _too_large(self, work: Work, inputs: Sequence[Input], reason: Reason, at: Moment) -> Decision:
        self._answered(work, taken=False)
        outcomes: list[Outcome] = []
        if len(inputs) == 1:
            outcomes.append(Parked(inputs[0].record, reason))
            outcomes.extend(self.vanished(work, work.refs).outcomes)
        elif work.suspect is not None:
            self._board.suspects.halve(work.suspect, ready_at=at.now)
        else:
            outcomes.extend(self.vanished(work, _refs(inputs)).outcomes)
            records = [one.record for one in inputs]
            outcomes.extend(self._in_halves(work, records, Trouble.LARGE, reason, at.now))
        return Decision(tuple(outcomes))

    def _conflict(self, work: Work, inputs: Sequence[Input], reason: Reason, at: Moment) -> Decision:
        board, suspect = self._board, work.suspect
        self._answered(work, taken=False)
        ready_at = at.now + CONFLICT_S
        outcomes: tuple[Outcome, ...] = ()
        if work.narrowing is not None:
            work.narrowing.ready_at = ready_at
            self._broken_again(work, inputs, Trouble.CONFLICT, Scope.ALL, ready_at)
        elif suspect is None:
            if not board.suspects.add(work.lane, _refs(inputs), Trouble.CONFLICT, ready_at=ready_at):
                return self._stop(work, _unwell(reason), at)
        elif len(suspect.refs) == 1:
            outcomes = (self._worn(suspect, inputs[0].record, reason, at, at_least_s=CONFLICT_S),)
        elif board.suspects.others_succeed(suspect):
            board.suspects.halve(suspect, ready_at=max(ready_at, at.now + self._delay_s(suspect)))
        else:
            board.suspects.postpone(suspect, ready_at=max(ready_at, at.now + self._delay_s(suspect)))
        return Decision(outcomes)

    # --- the call came to nothing -------------------------------------------------------------

    def stumbled(self, work: Work, now: float) -> None:
        """The outcome of this call could not be written down, and nobody knows for which record: again in halves,
        later each time, so that it is no loop and holds up nobody else.
        """
        held = self._board.suspects.holding().union(*(one.isolation.holding() for one in self._board.narrowings))
        refs = [ref for ref in work.refs if ref not in held]
        if len(self._stumbles) > MAX_HELD:
            self._stumbles.clear()
        self._stumbles.update(refs)
        middle = len(refs) // 2
        for half in (refs[:middle], refs[middle:]):
            failures = max((self._stumbles[ref] for ref in half), default=0)
            ready_at = now + self._board.patience.backoff.delay_s(failures)
            self._board.suspects.add(work.lane, half, Trouble.BROKEN, failures=failures, ready_at=ready_at)

    def _stop(self, work: Work, stop: Stop, at: Moment) -> Decision:
        delay_s = self._board.pauses.stop(
            work.lane,
            stop,
            now=at.now,
            now_us=at.now_us,
            began=work.began,
            known=work.suspect is not None or work.narrowing is not None,
        )
        return Decision(hold_s=delay_s if stop.reason == "rate_limited" else 0.0)

    def _answered(self, work: Work, *, taken: bool) -> None:
        """A probe got a sound answer: the trouble is over, as far as this answer tells."""
        if work.probe:
            self._board.pauses.answered(work.lane, taken=taken)

    def _broken(self, work: Work, inputs: Sequence[Input], stop: Stop, reason: Reason, at: Moment) -> Decision:
        suspects, suspect = self._board.suspects, work.suspect
        if suspect is not None and not work.probe:
            if suspects.others_succeed(suspect):
                return self._guilty(suspect, inputs, reason, at)
            if suspect.lonely:  # an old acquaintance, and nobody else to ask: no news about the CRM
                return Decision((self._nobody_to_ask(suspect, inputs[0].record, reason, at),))
            suspects.postpone(suspect, ready_at=at.now)
        elif suspect is not None:
            suspect.refs.append(suspect.refs.pop(0))  # another record is the next probe
        elif work.narrowing is not None:
            self._broken_again(work, inputs, Trouble.BROKEN, stop.scope, at.now)
        elif work.step is Step.FRESH:
            suspects.add(work.lane, _refs(inputs), Trouble.BROKEN, scope=stop.scope, ready_at=at.now)
        return self._stop(work, stop, at)

    def _broken_again(
        self, work: Work, inputs: Sequence[Input], trouble: Trouble, scope: Scope, ready_at: float
    ) -> None:
        """An isolation goes on after an outage; a group that breaks twice becomes suspect instead."""
        narrowing = work.narrowing
        if narrowing is None:
            return
        narrowing.breaks += 1
        if narrowing.breaks >= 2 and narrowing in self._board.narrowings:
            self._board.narrowings.remove(narrowing)
            self._board.suspects.add(work.lane, _refs(inputs), trouble, scope=scope, ready_at=ready_at)

    def _guilty(self, suspect: Suspect, inputs: Sequence[Input], reason: Reason, at: Moment) -> Decision:
        """It failed while others succeed: no outage, but something in this group."""
        if len(suspect.refs) > 1:
            self._board.suspects.halve(suspect, ready_at=at.now + self._delay_s(suspect))
            return Decision()
        return Decision((self._worn(suspect, inputs[0].record, reason, at),))

    def _worn(
        self, suspect: Suspect, record: PendingRecord, reason: Reason, at: Moment, *, at_least_s: float = 0.0
    ) -> Outcome:
        outcome = self._board.patience.wear(record, reason, now_us=at.now_us, at_least_s=at_least_s)
        if isinstance(outcome, RetryLater):
            self._board.suspects.remember(suspect)
        else:
            self._board.suspects.remove(suspect)
        return outcome

    def _nobody_to_ask(self, suspect: Suspect, record: PendingRecord, reason: Reason, at: Moment) -> Outcome:
        """It failed alone while nothing else was sent, which tells nothing: later again, counted against
        nobody, and shown as retrying.
        """
        delay_s = self._delay_s(suspect)
        self._board.suspects.postpone(suspect, ready_at=at.now + delay_s)
        return RetryLater(record, reason, delay_s, own_failure=False)

    def _delay_s(self, suspect: Suspect) -> float:
        return self._board.patience.backoff.delay_s(suspect.failures)


def _refs(inputs: Sequence[Input]) -> list[int]:
    return [one.record.ref for one in inputs]


def _unwell(reason: Reason) -> Stop:
    """More records in trouble than can be told apart: that is the CRM's."""
    return Stop(Scope.ALL, OUTAGE, f"{reason.category}: {reason.message}"[:300])


def _misconfigured(reason: Reason) -> Stop:
    return Stop(Scope.LANE, MISCONFIGURED, f"{reason.category}: {reason.message}"[:300])
