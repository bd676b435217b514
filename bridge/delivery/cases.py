"""The calls that went wrong and are not done with: which records they hold, and which of them goes next.

A case holds records until it is known what is wrong with each of them, and decides what the answers to its calls mean.
There are two kinds: a search (`search`) finds the records for which the CRM rejected a call; a retrial (below) sends
records again whose call came to nothing. Both stand in one list and take turns, or a stream of rejected records would
hold up those of broken calls for ever.

Cases are in memory only: after a crash the records are due again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar, Protocol

from bridge.crm.complaints import Complaint
from bridge.crm.transport import Input
from bridge.delivery.answers import Judged
from bridge.delivery.pauses import RetryPolicy, Stop
from bridge.model import Category, Lane, Outcome, Parked, Reason, RetryLater, Scope

#: Records of retrials that are held in memory; those of further failed calls stay due.
MAX_HELD = 4_000

#: Records put off that are remembered; forgetting one costs another round of halving.
MAX_PUT_OFF = 10_000


class Step(StrEnum):
    """Why a call is made, as logs tell it."""

    FRESH = "fresh"
    PROBE = "probe"
    RETRIAL = "suspect"
    SEARCH = "isolation"


@dataclass(frozen=True, slots=True)
class Moment:
    """One reading of the clocks."""

    now: float  # monotonic
    now_us: int


@dataclass(frozen=True, slots=True)
class Group:
    """What to send in one call: records, or (`only`) some properties of a single one."""

    refs: tuple[int, ...]
    only: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """What a call contained, and when it ended. `partly`: not all of its group's `only` was sent."""

    inputs: Sequence[Input]
    refs: tuple[int, ...]
    at: Moment
    probe: bool = False
    partly: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from an answer. `free`: records of the call that its case no longer holds although nothing was
    decided about them; `opens`: further cases; `put_off`: the case to resume when its record is due again; `retire`:
    properties that nobody can write.
    """

    outcomes: tuple[Outcome, ...] = ()
    free: tuple[int, ...] = ()
    opens: tuple[Case, ...] = ()
    put_off: Case | None = None
    stop: Stop | None = None
    retire: Mapping[str, Reason] = field(default_factory=dict)

    def and_then(self, more: Decision) -> Decision:
        """Both together."""
        return Decision(
            (*self.outcomes, *more.outcomes),
            (*self.free, *more.free),
            (*self.opens, *more.opens),
            put_off=more.put_off or self.put_off,
            stop=more.stop or self.stop,
            retire={**self.retire, **more.retire},
        )


class Case(Protocol):
    """Records whose call went wrong. It is over when it has none left. One call of it at a time is `open`."""

    step: ClassVar[Step]  # its kind
    lane: Lane
    open: bool
    ready_at: float  # when it may go on, but for a probe

    @property
    def refs(self) -> Collection[int]:
        """The records that must not go in any other call."""
        ...

    def next_group(self, *, probe: bool = False) -> Group | None:
        """What to send next, the same until it was answered; None when the case is over."""
        ...

    def accepted(self, sent: Sent, judged: Judged) -> Decision:
        """The CRM accepted the call, and judged its inputs so."""
        ...

    def rejected(self, sent: Sent, complaint: Complaint) -> Decision:
        """The CRM rejected the call as a whole for what is in it."""
        ...

    def too_large(self, sent: Sent) -> Decision:
        """The call, of several records, was too large."""
        ...

    def locked(self, sent: Sent, reason: Reason, ready_at: float, *, own: bool) -> Decision:
        """The call met a lock, which lasts until `ready_at` at least. `own`: see `Locked`."""
        ...

    def broken(self, sent: Sent, stop: Stop, reason: Reason) -> Decision:
        """The call came to nothing. If that may be the CRM's trouble, delivery is to pause for `stop`."""
        ...

    def vanished(self, refs: Collection[int]) -> Decision:
        """These have nothing to be sent any more."""
        ...

    def did_not_fit(self, refs: Collection[int]) -> Decision:
        """These did not fit into the call: its answer will be about the others."""
        ...


class Successes:
    """How many calls the CRM accepted: in all, by object type, and by lane."""

    def __init__(self) -> None:
        self._counts = Counter[Lane | str]()

    def note(self, lane: Lane) -> None:
        self._counts.update(("", lane.object_type, lane))

    def count(self, lane: Lane, scope: Scope) -> int:
        if scope is Scope.LANE:
            return self._counts[lane]
        return self._counts[lane.object_type if scope is Scope.OBJECT_TYPE else ""]

    def since_now(self, lane: Lane, scope: Scope) -> Since:
        return Since(self, lane, scope, {each: self.count(lane, each) for each in Scope})


@dataclass(frozen=True, slots=True)
class Since:
    """A moment, by the successes until then."""

    _successes: Successes
    lane: Lane
    scope: Scope
    counts: Mapping[Scope, int]

    @property
    def others_succeeded(self) -> bool:
        """Whether the CRM has accepted a call since."""
        return self._successes.count(self.lane, self.scope) > self.counts[self.scope]

    def within(self, scope: Scope) -> Since:
        """The same moment, for trouble of this scope."""
        return replace(self, scope=scope)

    def now(self) -> Since:
        return self._successes.since_now(self.lane, self.scope)


class Cases:
    """Not thread-safe: the dispatcher's lock guards it."""

    def __init__(self) -> None:
        self._cases: list[Case] = []
        self._put_off: dict[int, Case] = {}
        self._last = Step.RETRIAL

    def holding(self) -> set[int]:
        """The records of every case."""
        return set().union(*(case.refs for case in self._cases))

    def lanes(self) -> set[Lane]:
        return {case.lane for case in self._cases}

    def searches(self, lane: Lane) -> int:
        """How many searches are under way in this lane."""
        return sum(case.step is Step.SEARCH and case.lane == lane for case in self._cases)

    def next(self, now: float, may_send: Callable[[Lane, Group], bool]) -> tuple[Case, Group] | None:
        """The case that goes on now, and its group: the kinds take turns, in each the longest waiting goes first."""
        ready = [case for case in self._cases if not case.open and case.ready_at <= now]
        for case in sorted(ready, key=lambda case: (case.step is self._last, case.ready_at)):
            if (group := case.next_group()) is not None and may_send(case.lane, group):
                self._last = case.step
                return case, group
        return None

    def probes(self) -> list[tuple[Case, Group]]:
        """What may be sent as a probe before its time: retrials first, as theirs is a single record."""
        idle = sorted((case for case in self._cases if not case.open), key=lambda case: case.step is Step.SEARCH)
        return [(case, group) for case in idle if (group := case.next_group(probe=True)) is not None]

    def add(self, case: Case) -> bool:
        """Take up a case; False when too many records are held already."""
        held = sum(len(one.refs) for one in self._cases if one.step is Step.RETRIAL)
        if case.step is Step.RETRIAL and held + len(case.refs) > MAX_HELD:
            return False
        self._cases.append(case)
        return True

    def apply(self, case: Case | None, decision: Decision) -> None:
        """Take over what was decided about a call of this case, or of none."""
        if case in self._cases and not case.refs:
            self._cases.remove(case)
        for opened in decision.opens:
            if opened.refs:
                self.add(opened)
        if self._put_off:
            for outcome in decision.outcomes:
                if not isinstance(outcome, RetryLater):  # settled one way or the other
                    self._put_off.pop(outcome.record.ref, None)
        if decision.put_off is not None:
            (ref,) = decision.put_off.refs
            self._put_off.pop(ref, None)
            while len(self._put_off) >= MAX_PUT_OFF:
                del self._put_off[next(iter(self._put_off))]
            self._put_off[ref] = decision.put_off

    # --- put off until the record is due again ------------------------------------------------

    def is_put_off(self, ref: int) -> bool:
        return ref in self._put_off

    def resume(self, lane: Lane, ref: int) -> bool:
        """This record is due again: its case goes on, if it was put off."""
        if (case := self._put_off.get(ref)) is None:
            return False
        if ref not in self.holding():
            case = copy(case)
            case.lane = lane
            self._cases.append(case)
        return True


# --- retrials: records whose call came to nothing although the CRM may be well are sent again by themselves ---
#
# A call that ended without a usable answer (5xx, time-out, silence about an input, a lock) says nothing of its records.
# They stay out of other calls, so that no other record suffers, and are sent again together. When that fails although
# other calls succeeded meanwhile, they are halved. A record that fails alone while others succeed is put off: tried
# again at growing delays, always alone, until it is given up. While no other call succeeds it may be the CRM: nothing
# is concluded, and nothing counts against a record.

#: Why a record goes again about which the CRM said nothing.
SILENT = Reason(Category.UNCONFIRMED, "HubSpot took the call and said nothing about this record")

#: Seconds that a call which met a lock waits at least: HubSpot's locks last 2 s.
LOCK_S = 2.0


def halves(refs: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The two halves, without empty ones."""
    middle = len(refs) // 2
    return [half for half in (refs[:middle], refs[middle:]) if half]


@dataclass(slots=True, eq=False)
class Retrial:
    """A group of records that is sent again. `since`: when it failed last, and whose success counts from then on (of
    any call, or of those of its object type). Not thread-safe.
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
    asks_one: bool = False  # several met a lock while nothing else was sent: a single one tells whether all are locked

    def next_group(self, *, probe: bool = False) -> Group | None:
        """As a probe a single record, which is enough."""
        return Group(self.refs[:1] if probe or self.asks_one else self.refs) if self.refs else None

    def vanished(self, refs: Collection[int]) -> Decision:
        self.refs = tuple(ref for ref in self.refs if ref not in refs)
        return Decision()

    def did_not_fit(self, refs: Collection[int]) -> Decision:
        self.vanished(refs)
        return Decision(opens=(replace(self, refs=tuple(sorted(refs)), open=False),))

    def accepted(self, sent: Sent, judged: Judged) -> Decision:
        if not judged.silent or len(sent.inputs) > 1 or len(self.refs) > 1:  # silence about one of several is its own
            return self._let_go(sent)
        if not self.since.others_succeeded:
            return self._nobody_else(sent, SILENT)
        self.silences += 1
        if self.silences < 2:
            return self._put_off(self.policy.later(judged.silent[0], SILENT))
        twice = replace(SILENT, message=f"{SILENT.message}, twice while it was alone")
        return self._ended(Parked(judged.silent[0], twice))

    def rejected(self, sent: Sent, complaint: Complaint) -> Decision:  # noqa: ARG002 (whatever it says)
        """A search will find out whose fault it is."""
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
        if self.alone:  # it failed as before, and there is no other record to ask: no news about the CRM
            return self._nobody_else(sent, reason)
        return replace(self._postponed(sent.at.now), stop=stop)

    def _postponed(self, ready_at: float) -> Decision:
        """It failed and nobody knows why: the same goes again later."""
        self.failures += 1
        self.ready_at = ready_at
        self.since = self.since.now()
        self._rotate()
        return Decision()

    def _rotate(self) -> None:
        """Another record is the next probe."""
        self.refs = (*self.refs[1:], *self.refs[:1])

    def _halved(self, ready_at: float) -> Decision:
        """It failed while others succeed, so the culprit is in one of the halves; or it was too large."""
        again = replace(
            self, failures=self.failures + 1, ready_at=ready_at, since=self.since.now(), open=False, asks_one=False
        )
        opens = tuple(replace(again, refs=half) for half in halves(self.refs))
        self.refs = ()
        return Decision(opens=opens)

    def _blamed(self, sent: Sent, reason: Reason, *, at_least_s: float = 0.0) -> Decision:
        """It failed alone while others succeed: the fault is its own."""
        record = sent.inputs[0].record
        outcome = self.policy.failed(record, reason, now_us=sent.at.now_us, at_least_s=at_least_s)
        return self._put_off(outcome) if isinstance(outcome, RetryLater) else self._ended(outcome)

    def _nobody_else(self, sent: Sent, reason: Reason, *, at_least_s: float = 0.0) -> Decision:
        """It failed alone while nothing else was sent, which says nothing: it goes again later and is shown as
        retrying, but the failure does not count against it.
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
