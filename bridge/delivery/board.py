"""What delivery knows at a time: what is due, what is open, what went wrong, and what is stopped.

Plain state without threads, journal or network, so that every decision can be stepped in a test. G4 is
kept here: a record that is in an open call or in a case is held, and what is held is neither asked of the
journal nor cut into a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from bridge.delivery.buffer import Buffer
from bridge.delivery.cases import Case, Cases, Step, Successes
from bridge.delivery.pauses import Gate, Pauses
from bridge.delivery.retired import Retired
from bridge.delivery.retry_policy import RetryPolicy
from bridge.model import Lane, Scope, Taken

#: Searches in one lane beyond which no new batch of that lane is begun: its calls are better spent on
#: finding the culprits than on meeting more of them.
MAX_SEARCHES = 4

#: Seconds for which a record that the CRM took shows that its lane is in order, however many of another partner's
#: it refuses without a word.
TRUSTED_S = 600.0


@dataclass(slots=True, eq=False)
class Work:
    """One call to make: which records of a lane, and of which case, if they are of one."""

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
class Board:
    """Not thread-safe: the dispatcher's lock guards it."""

    buffer: Buffer
    pauses: Pauses
    policy: RetryPolicy
    cases: Cases = field(default_factory=Cases)
    retired: Retired = field(default_factory=Retired)
    open: set[Work] = field(default_factory=set)
    successes: Successes = field(default_factory=Successes)
    cold: set[Lane] = field(default_factory=set)  # lanes seen that have not proven themselves
    taken: dict[Lane, dict[str, float]] = field(default_factory=dict)  # source → when a record of it was last taken

    def busy(self) -> set[int]:
        """The records of calls that are not settled yet."""
        return set().union(*(work.held for work in self.open))

    def held(self) -> set[int]:
        """Every record that must not enter a new batch."""
        return self.cases.holding() | self.busy()

    def is_proven(self, lane: Lane) -> bool:
        """Whether the CRM has taken a call of this lane since the start, or since it was found
        misconfigured. Until then the lane makes one call at a time, so that trouble which concerns the
        whole lane is met once and not by every call in flight.
        """
        return self.successes.count(lane, Scope.LANE) > 0 and lane not in self.cold

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
        """The lanes that have anything to be sent now."""
        return {work.lane for work in self.open} | self.cases.lanes() | set(self.buffer.lanes())

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to be sent, and nothing that stops it."""
        return self.pauses.none and not self.waiting()

    def note_success(self, lane: Lane, sources: Iterable[str], now: float) -> None:
        """The CRM took a call of this lane, and in it records of these sources."""
        self.successes.note(lane)
        self.cold.discard(lane)
        self.taken.setdefault(lane, {}).update(dict.fromkeys(sources, now))

    def note_misconfigured(self, lane: Lane) -> None:
        self.cold.add(lane)
        self.taken.pop(lane, None)

    def flowing(self, lane: Lane, now: float) -> frozenset[str]:
        """The sources whose records in this lane the CRM took lately."""
        return frozenset(source for source, at in self.taken.get(lane, {}).items() if now - at < TRUSTED_S)

    def leave(self, work: Work, taken: Taken) -> None:
        """Not all records of this call fitted into it: it goes on without the others."""
        left = taken.left
        work.refs = tuple(ref for ref in work.refs if ref not in left)
        work.held.difference_update(left)
        if work.case is not None:
            self.cases.follow(work.case, work.case.left(left))
        served = {source for record in taken.records for source in record.sources}
        self.buffer.left(work.lane, left, served=served)

    def begin(self, work: Work) -> None:
        """The call is being made: its records are in no other one."""
        self.open.add(work)
        if work.probe:
            self.pauses.probe(work.lane)
        if work.case is not None:
            work.case.open = True

    def close(self, work: Work) -> None:
        """The call is over and settled (or never began): its records are free unless held otherwise."""
        self.open.discard(work)
        if work.probe:
            self.pauses.probe_ended(work.lane)
        if work.case is not None:
            work.case.open = False
