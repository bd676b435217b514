"""What delivery knows at a time: what is due, what is open, what is being narrowed, and what is stopped.

Plain state without threads, journal or network, so that every decision can be stepped in a test. G4 is
kept here: a record that is in an open call, in an isolation or under suspicion is held, and what is held
is neither asked of the journal nor cut into a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from bridge.delivery.buffer import Buffer
from bridge.delivery.isolation import Isolation
from bridge.delivery.patience import Patience
from bridge.delivery.pauses import Gate, Pauses
from bridge.delivery.retired import Retired
from bridge.delivery.suspects import Suspect, Suspects
from bridge.model import Lane, Taken

#: Isolations in one lane beyond which no new batch of that lane is begun: its calls are better spent on
#: finding the culprits than on meeting more of them.
MAX_ISOLATIONS = 4


#: Seconds for which a record that the CRM took shows that its lane is in order, however many of another partner's
#: it refuses without a word.
TRUSTED_S = 600.0


class Step(StrEnum):
    """Why a call is made."""

    FRESH = "fresh"
    PROBE = "probe"
    SUSPECT = "suspect"
    ISOLATION = "isolation"


@dataclass(slots=True, eq=False)
class Narrowing:
    """An isolation under way. `successes`: the lane's at its beginning."""

    isolation: Isolation
    successes: int
    open: bool = False
    ready_at: float = 0.0
    breaks: int = 0


@dataclass(slots=True, eq=False)
class Work:
    """One call to make: which records of a lane, and what the answer is for."""

    lane: Lane
    refs: tuple[int, ...]
    step: Step
    began: float  # monotonic
    probe: bool = False
    only: frozenset[str] | None = None  # send only these properties
    suspect: Suspect | None = None
    narrowing: Narrowing | None = None
    held: set[int] = field(default_factory=set)
    sent: bool = False  # it may have reached the CRM
    partly: bool = False  # not all of `only` was sent

    def __post_init__(self) -> None:
        self.held.update(self.refs)


@dataclass(slots=True)
class Board:
    """Not thread-safe: the dispatcher's lock guards it."""

    buffer: Buffer
    pauses: Pauses
    patience: Patience
    suspects: Suspects = field(default_factory=Suspects)
    retired: Retired = field(default_factory=Retired)
    narrowings: list[Narrowing] = field(default_factory=list)
    open: set[Work] = field(default_factory=set)
    successes: dict[Lane, int] = field(default_factory=dict)  # calls that the CRM took
    cold: set[Lane] = field(default_factory=set)  # lanes seen that have not proven themselves
    taken: dict[Lane, dict[str, float]] = field(default_factory=dict)  # source → when a record of it was last taken

    def busy(self) -> set[int]:
        """The records of calls that are not settled yet."""
        return set().union(*(work.held for work in self.open))

    def held(self) -> set[int]:
        """Every record that must not enter a new batch."""
        held = self.suspects.holding() | self.busy()
        held.update(*(narrowing.isolation.holding() for narrowing in self.narrowings))
        return held

    def is_proven(self, lane: Lane) -> bool:
        """Whether the CRM has taken a call of this lane since the start, or since it was found
        misconfigured. Until then the lane makes one call at a time, so that trouble which concerns the
        whole lane is met once and not by every call in flight.
        """
        return lane in self.successes and lane not in self.cold

    def is_free(self, lane: Lane, now: float) -> bool:
        """Whether another call of this lane may begin."""
        if self.pauses.gate(lane, now) is not Gate.OPEN:
            return False
        return self.is_proven(lane) or not any(work.lane == lane for work in self.open)

    def is_free_for_more(self, lane: Lane, now: float) -> bool:
        """Whether a new batch of this lane may begin."""
        under_way = sum(narrowing.isolation.lane == lane for narrowing in self.narrowings)
        return under_way < (MAX_ISOLATIONS if self.is_proven(lane) else 1) and self.is_free(lane, now)

    def waiting(self) -> set[Lane]:
        """The lanes that have anything to be sent now."""
        lanes = {work.lane for work in self.open} | {suspect.lane for suspect in self.suspects.any()}
        lanes.update(narrowing.isolation.lane for narrowing in self.narrowings)
        return lanes.union(self.buffer.lanes())

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to be sent, and nothing that stops it."""
        return self.pauses.none and not self.waiting()

    def note_success(self, lane: Lane, sources: Iterable[str], now: float) -> None:
        """The CRM took a call of this lane, and in it records of these sources."""
        self.successes[lane] = self.successes.get(lane, 0) + 1
        self.cold.discard(lane)
        self.suspects.succeeded(lane)
        self.taken.setdefault(lane, {}).update(dict.fromkeys(sources, now))

    def note_misconfigured(self, lane: Lane) -> None:
        self.cold.add(lane)
        self.taken.pop(lane, None)

    def flowing(self, lane: Lane, now: float) -> frozenset[str]:
        """The sources whose records in this lane the CRM took lately."""
        return frozenset(source for source, at in self.taken.get(lane, {}).items() if now - at < TRUSTED_S)

    def narrow(self, work: Work, taken: Taken) -> None:
        """Not all records of this call fitted into it: it goes on without the others."""
        left = taken.left
        work.refs = tuple(ref for ref in work.refs if ref not in left)
        work.held.difference_update(left)
        if work.suspect is not None:
            self.suspects.part(work.suspect, left)
        if work.narrowing is not None:
            work.narrowing.isolation.leave(left)
        served = {source for record in taken.records for source in record.sources}
        self.buffer.left(work.lane, left, served=served)

    def close(self, work: Work) -> None:
        """The call is over and settled (or never began): its records are free unless held otherwise."""
        self.open.discard(work)
        if work.probe:
            self.pauses.probe_ended(work.lane)
        if work.suspect is not None:
            work.suspect.open = False
        if work.narrowing is not None:
            work.narrowing.open = False
