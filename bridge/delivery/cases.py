"""The calls that went wrong and are not done with: what holds their records, and which of them goes next.

A case holds records until it is known what is wrong with each of them, and decides what an answer to a call of its
own means. There are two kinds: a search (`search`) asks which records made the CRM refuse a call; a retrial (`retrial`)
sends records again whose call came to nothing. Here they stand in one list. The kinds take turns, or a stream of
records that are refused would hold up those of broken calls for ever.

Memory only: after a crash the records simply are due again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar, Protocol

from bridge.delivery.calls import Input
from bridge.delivery.complaints import Complaint
from bridge.delivery.meanings import Judged
from bridge.delivery.pauses import Stop
from bridge.model import Lane, Outcome, Reason, RetryLater, Scope

#: Records of retrials that are held in memory; those of calls that fail beyond that just stay due.
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
    """What was in a call, and when it ended. `partly`: not all of its group's `only` was sent."""

    inputs: Sequence[Input]
    refs: tuple[int, ...]
    at: Moment
    probe: bool = False
    partly: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from an answer. `free`: records of the call that its case holds no more, though nothing was decided
    about them; `opens`: further cases; `put_off`: the case to take up when its record is due again; `retire`:
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
        """What to send next, the same until its answer is told; None when the case is over."""
        ...

    def taken(self, sent: Sent, judged: Judged) -> Decision:
        """The CRM took the call, and said so much of its inputs."""
        ...

    def refused(self, sent: Sent, complaint: Complaint) -> Decision:
        """The CRM refused the call as a whole for what is in it."""
        ...

    def too_large(self, sent: Sent) -> Decision:
        """The call was too large, and of several records."""
        ...

    def locked(self, sent: Sent, reason: Reason, ready_at: float, *, own: bool) -> Decision:
        """The call met a lock, which is not over before `ready_at`. `own`: see `Locked`."""
        ...

    def broken(self, sent: Sent, stop: Stop, reason: Reason) -> Decision:
        """The call came to nothing, for which delivery stops if it may be the CRM's trouble."""
        ...

    def vanished(self, refs: Collection[int]) -> Decision:
        """These have nothing to be sent any more."""
        ...

    def left(self, refs: Collection[int]) -> Decision:
        """These did not fit into the call: its answer is about the others."""
        ...


class Successes:
    """How many calls the CRM took: in all, by object type, and by lane."""

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
        """Whether the CRM has taken a call since."""
        return self._successes.count(self.lane, self.scope) > self.counts[self.scope]

    def within(self, scope: Scope) -> Since:
        """The same moment, for a trouble that concerns this much."""
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
        """The case that goes on now, and with what: the kinds in turn, of each the one that has waited longest."""
        ready = [case for case in self._cases if not case.open and case.ready_at <= now]
        for case in sorted(ready, key=lambda case: (case.step is self._last, case.ready_at)):
            if (group := case.next_group()) is not None and may_send(case.lane, group):
                self._last = case.step
                return case, group
        return None

    def probes(self) -> list[tuple[Case, Group]]:
        """What may be sent as a probe, however long it is to wait: a retrial's first, which is a single record."""
        idle = sorted((case for case in self._cases if not case.open), key=lambda case: case.step is Step.SEARCH)
        return [(case, group) for case in idle if (group := case.next_group(probe=True)) is not None]

    def add(self, case: Case) -> bool:
        """Take up a case; False when too many records are held already."""
        held = sum(len(one.refs) for one in self._cases if one.step is Step.RETRIAL)
        if case.step is Step.RETRIAL and held + len(case.refs) > MAX_HELD:
            return False
        self._cases.append(case)
        return True

    def follow(self, case: Case | None, decision: Decision) -> None:
        """This was decided about a call of this case, or about one that was of none."""
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
