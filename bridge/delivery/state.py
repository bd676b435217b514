"""The state of delivery (what is due, open, gone wrong or paused), and the choice of the next call.

Plain state without threads, journal or network, so that every decision can be stepped in a test. G4 is kept here: a
record in an open call or in a case is held, and what is held is neither read from the journal as due nor put into a
batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from bridge.delivery.buffer import Buffer
from bridge.delivery.cases import Case, Cases, Group, Step, Successes
from bridge.delivery.pauses import Gate, Pauses, RetryPolicy
from bridge.model import Lane, Outcome, PendingRecord, Reason, Refused, Scope, Taken

# --- retired properties, which nobody can write: one costs two calls per 10 minutes ---
#
# When HubSpot rejects a call because a property does not exist or is read-only, it would reject every call with that
# property. So its values are refused without being sent, and after a while one call tries again.

#: Seconds for which a property is left out before one call tries again.
RETIRED_S = 600.0

#: Seconds that this call has for an answer; meanwhile the property stays left out of others.
_TRYING_S = 150.0


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

    def accepted(self, object_type: str, names: Collection[str]) -> None:
        """The CRM accepted a call with these properties."""
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
                retirement.until = now + _TRYING_S  # this call tries; others wait for its answer
            else:
                out[name] = retirement.reason
        return out


# --- the state ---

#: Searches in one lane beyond which no new batch of that lane is begun: its calls are better spent on finding the
#: culprits than on meeting more of them.
MAX_SEARCHES = 4

#: Seconds for which an accepted record shows that its lane is in order, however many of another partner's the CRM
#: rejects without a reason.
TRUSTED_S = 600.0


@dataclass(slots=True, eq=False)
class Work:
    """One call to make: records of a lane, and their case, if they are of one."""

    lane: Lane
    refs: tuple[int, ...]
    began: float  # monotonic
    probe: bool = False
    only: frozenset[str] | None = None  # send only these properties
    case: Case | None = None
    held: set[int] = field(default_factory=set)
    sent: bool = False  # it may have reached the CRM
    partly: bool = False  # not all of `only` was sent

    def __post_init__(self) -> None:
        self.held.update(self.refs)

    @property
    def step(self) -> Step:
        """Why it is made."""
        if self.probe:
            return Step.PROBE
        return Step.FRESH if self.case is None else self.case.step


@dataclass(slots=True)
class DeliveryState:
    """Not thread-safe: the dispatcher's lock guards it."""

    buffer: Buffer
    pauses: Pauses
    policy: RetryPolicy
    cases: Cases = field(default_factory=Cases)
    retired: Retired = field(default_factory=Retired)
    open: set[Work] = field(default_factory=set)
    successes: Successes = field(default_factory=Successes)
    misconfigured: set[Lane] = field(default_factory=set)  # and not proven since
    last_accepted: dict[Lane, dict[str, float]] = field(
        default_factory=dict
    )  # source → when the CRM last accepted a record of it

    def busy(self) -> set[int]:
        """The records of calls that are not settled yet."""
        return set().union(*(work.held for work in self.open))

    def held(self) -> set[int]:
        """Every record that must not be in a new batch."""
        return self.cases.holding() | self.busy()

    def is_proven(self, lane: Lane) -> bool:
        """Whether the CRM has accepted a call of this lane since the start, or since the lane was found misconfigured.
        Until then the lane makes one call at a time, so that trouble of the whole lane is met once and not by every
        call in flight.
        """
        return self.successes.count(lane, Scope.LANE) > 0 and lane not in self.misconfigured

    def is_free(self, lane: Lane, now: float) -> bool:
        """Whether another call of this lane may begin."""
        if self.pauses.gate(lane, now) is not Gate.OPEN:
            return False
        return self.is_proven(lane) or not any(work.lane == lane for work in self.open)

    def is_free_for_more(self, lane: Lane, now: float) -> bool:
        """Whether a new batch of this lane may begin."""
        most = MAX_SEARCHES if self.is_proven(lane) else 1
        return self.cases.searches(lane) < most and self.is_free(lane, now)

    def waiting(self) -> set[Lane]:
        """The lanes that have anything to be sent."""
        return {work.lane for work in self.open} | self.cases.lanes() | set(self.buffer.lanes())

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to be sent, and no pause."""
        return self.pauses.none and not self.waiting()

    def note_success(self, lane: Lane, sources: Iterable[str], now: float) -> None:
        """The CRM accepted a call of this lane, with records of these sources."""
        self.successes.note(lane)
        self.misconfigured.discard(lane)
        self.last_accepted.setdefault(lane, {}).update(dict.fromkeys(sources, now))

    def note_misconfigured(self, lane: Lane) -> None:
        self.misconfigured.add(lane)
        self.last_accepted.pop(lane, None)

    def trusted_sources(self, lane: Lane, now: float) -> frozenset[str]:
        """The sources of which the CRM accepted records in this lane lately."""
        return frozenset(source for source, at in self.last_accepted.get(lane, {}).items() if now - at < TRUSTED_S)

    def did_not_fit(self, work: Work, taken: Taken) -> None:
        """Not all records of this call fitted into it: it is made without the others."""
        left = taken.left
        work.refs = tuple(ref for ref in work.refs if ref not in left)
        work.held.difference_update(left)
        if work.case is not None:
            self.cases.apply(work.case, work.case.did_not_fit(left))
        served = {source for record in taken.records for source in record.sources}
        self.buffer.did_not_fit(work.lane, left, served=served)

    def begin(self, work: Work) -> None:
        """The call is being made: its records are in no other one."""
        self.open.add(work)
        if work.probe:
            self.pauses.probe(work.lane)
        if work.case is not None:
            work.case.open = True

    def close(self, work: Work) -> None:
        """The call is over and settled, or was not made: its records are free unless a case holds them."""
        self.open.discard(work)
        if work.probe:
            self.pauses.probe_ended(work.lane)
        if work.case is not None:
            work.case.open = False


# --- the next call: a new batch, a case that goes on, or a probe ---
#
# New batches and cases take turns, so that neither bad records hold up good ones nor good ones bad ones. When the time
# of a pause is over, its probe goes before anything else, since a backlog elsewhere may never end. A record that had no
# part in the failure is the first choice, because only that tells whether the CRM is well.

#: Records that are remembered because they were probes already.
_MAX_PROBED = 1_000


class Chooser:
    """Not thread-safe: the dispatcher's lock guards it."""

    def __init__(self, state: DeliveryState) -> None:
        self._state = state
        self._fresh_next = True
        self._probed: set[int] = set()

    def next_work(self, *, now: float, now_us: int, draining: bool = False) -> Work | None:
        """The call to make now, noted as open; None when there is none."""
        paused = not self._state.pauses.none
        if not paused:
            self._probed.clear()
        work = (
            (next(self._probes(now), None) if paused else None)
            or (None if self._fresh_next else self._of_case(now))
            or self._fresh(now, now_us, draining=draining)
            or self._of_case(now)
        )
        if work is not None:
            self._fresh_next = work.probe or work.case is not None
            self._state.begin(work)
        return work

    def flush_in(self, *, now: float, now_us: int) -> float | None:
        """Seconds until the next new batch is due; None when nothing may be begun."""
        state = self._state
        return state.buffer.flush_in(now=now, now_us=now_us, open_to=lambda lane: state.is_free_for_more(lane, now))

    def _fresh(self, now: float, now_us: int, *, draining: bool) -> Work | None:
        state = self._state
        while True:
            lane = state.buffer.next_lane(
                now=now,
                now_us=now_us,
                open_to=lambda lane: state.is_free_for_more(lane, now),
                draining=draining,
            )
            if lane is None:
                return None
            if refs := state.buffer.cut(lane, now=now, skip=partial(state.cases.resume, lane)):
                return Work(lane, tuple(refs), now)

    def _of_case(self, now: float) -> Work | None:
        state = self._state
        busy = state.busy()

        def may_send(lane: Lane, group: Group) -> bool:
            return busy.isdisjoint(group.refs) and state.is_free(lane, now)

        if (found := state.cases.next(now, may_send)) is None:
            return None
        case, group = found
        return Work(case.lane, group.refs, now, only=group.only, case=case)

    def _probes(self, now: float) -> Iterator[Work]:
        state = self._state
        for lane in state.buffer.lanes():
            if state.pauses.gate(lane, now, early=True) is not Gate.PROBE:
                continue
            anyone = state.pauses.gate(lane, now) is Gate.PROBE
            if refs := self._cut_probe(lane, now, anyone=anyone):
                yield Work(lane, tuple(refs), now, probe=True)
        busy = state.busy()
        for case, group in state.cases.probes():
            if busy.isdisjoint(group.refs) and state.pauses.gate(case.lane, now) is Gate.PROBE:
                yield Work(case.lane, group.refs, now, probe=True, only=group.only, case=case)

    def _cut_probe(self, lane: Lane, now: float, *, anyone: bool) -> list[int]:
        """A record that has not been a probe yet; if there is none and `anyone` may be, one that has."""
        if len(self._probed) >= _MAX_PROBED:
            self._probed.clear()
        cases = self._state.cases
        put_off: list[int] = []

        def is_passed_over(ref: int) -> bool:
            if cases.is_put_off(ref):
                put_off.append(ref)
                return True
            return ref in self._probed

        refs = self._state.buffer.cut(lane, now=now, size=1, skip=is_passed_over)
        if refs:
            self._probed.update(refs)
        elif anyone:
            self._probed.clear()  # every record that is due was a probe: they start over
            # Where nothing else is due, a record that was put off has to do.
            for ref in put_off:
                cases.resume(lane, ref)
        return refs
