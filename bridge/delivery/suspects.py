"""Records whose call came to nothing although the CRM may be well: sent again by themselves, halved.

A call that ended without a usable answer (5xx, time-out, silence about an input, a lock) makes its records
suspect. They stay out of other calls, so that nothing else pays for them, and are sent again whole; when
that fails although other calls succeeded meanwhile, they are halved. A record that fails alone while
others succeed is *lonely*: it is tried again at growing delays, always alone, until it is given up.
Without a success of others nothing is concluded: then it is the CRM, and no record's patience is burned.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from bridge.model import Lane, Scope

#: References of suspects that are held in memory; calls that fail beyond that just stay due.
MAX_HELD = 4_000

#: Lonely records that are remembered; forgetting one costs another round of halving.
MAX_LONELY = 10_000


class Trouble(Enum):
    """What made the records suspect."""

    BROKEN = "broken"  # no usable answer
    SILENT = "silent"  # a sound answer that said nothing about them
    CONFLICT = "conflict"  # a lock
    LARGE = "large"  # too much for one call


@dataclass(slots=True, eq=False)
class Suspect:
    """A group of records under suspicion. `successes`: how many calls of others had succeeded when it
    failed last; `scope`: whose success counts (of any call, or of its object type's).
    """

    lane: Lane
    refs: list[int]
    trouble: Trouble
    scope: Scope = Scope.ALL
    successes: int = 0
    failures: int = 0
    ready_at: float = 0.0
    open: bool = False
    silences: int = 0  # how often this one record, alone, met silence
    lonely: bool = False  # it failed alone before, while others succeeded


@dataclass(frozen=True, slots=True)
class Lonely:
    """What is remembered of a record that failed alone while it waits for its next try in the journal."""

    trouble: Trouble
    scope: Scope
    successes: int
    silences: int


class Suspects:
    """Every suspect group, and the lonely. Not thread-safe: the planner's lock guards it."""

    def __init__(self) -> None:
        self._groups: list[Suspect] = []
        self._lonely: dict[int, Lonely] = {}
        self._all = 0
        self._by_type: dict[str, int] = {}

    def add(
        self,
        lane: Lane,
        refs: Sequence[int],
        trouble: Trouble,
        *,
        scope: Scope = Scope.ALL,
        failures: int = 1,
        ready_at: float = 0.0,
    ) -> bool:
        """Put a group under suspicion; False when too many are already."""
        if not refs or sum(len(group.refs) for group in self._groups) + len(refs) > MAX_HELD:
            return False
        successes = self.successes(lane, scope)
        self._groups.append(Suspect(lane, list(refs), trouble, scope, successes, failures, ready_at))
        return True

    def succeeded(self, lane: Lane) -> None:
        """A call was taken by the CRM: good news about every group that was not in it."""
        self._all += 1
        self._by_type[lane.object_type] = self._by_type.get(lane.object_type, 0) + 1

    def successes(self, lane: Lane, scope: Scope) -> int:
        return self._all if scope is Scope.ALL else self._by_type.get(lane.object_type, 0)

    def others_succeed(self, suspect: Suspect) -> bool:
        """Whether anything else succeeded since this group failed last."""
        return self.successes(suspect.lane, suspect.scope) > suspect.successes

    @property
    def none(self) -> bool:
        return not self._groups

    def next(self, now: float) -> list[Suspect]:
        """The groups that may be sent now, the one that has waited longest first."""
        ready = [group for group in self._groups if not group.open and group.ready_at <= now]
        return sorted(ready, key=lambda group: group.ready_at)

    def any(self) -> list[Suspect]:
        """The groups of which a record may be sent as a probe, however long they are to wait."""
        return [group for group in self._groups if not group.open]

    def next_in(self, now: float) -> float | None:
        """Seconds until the next group may be sent."""
        waits = [group.ready_at - now for group in self._groups if not group.open]
        return max(0.0, min(waits)) if waits else None

    def remove(self, suspect: Suspect, refs: Collection[int] | None = None) -> None:
        """Clear a whole group, or some of its records, of suspicion."""
        gone = set(suspect.refs if refs is None else refs)
        suspect.refs = [ref for ref in suspect.refs if ref not in gone]
        if not suspect.refs and suspect in self._groups:
            self._groups.remove(suspect)

    def part(self, suspect: Suspect, left: Collection[int]) -> None:
        """These did not fit into the group's call, which tells nothing about them: a group of their own."""
        suspect.refs = [ref for ref in suspect.refs if ref not in left]
        self._groups.append(replace(suspect, refs=sorted(left), open=False))

    def postpone(self, suspect: Suspect, *, ready_at: float) -> None:
        """It failed and nobody knows why: the same again later, another record first if one probes."""
        suspect.failures += 1
        suspect.ready_at = ready_at
        suspect.successes = self.successes(suspect.lane, suspect.scope)
        suspect.refs.append(suspect.refs.pop(0))

    def halve(self, suspect: Suspect, *, ready_at: float) -> None:
        """It failed while others succeed: the culprit is in one of the halves."""
        self._groups.remove(suspect)
        middle = len(suspect.refs) // 2
        for half in (suspect.refs[:middle], suspect.refs[middle:]):
            self.add(
                suspect.lane,
                half,
                suspect.trouble,
                scope=suspect.scope,
                failures=suspect.failures + 1,
                ready_at=ready_at,
            )

    # --- the lonely ---------------------------------------------------------------------------

    def is_lonely(self, ref: int) -> bool:
        return ref in self._lonely

    def remember(self, suspect: Suspect) -> None:
        """A group of one failed while others succeed; it goes back to the journal until it is due."""
        (ref,) = suspect.refs
        self.remove(suspect)
        self._lonely.pop(ref, None)
        while len(self._lonely) >= MAX_LONELY:
            del self._lonely[next(iter(self._lonely))]
        successes = self.successes(suspect.lane, suspect.scope)
        self._lonely[ref] = Lonely(suspect.trouble, suspect.scope, successes, suspect.silences)

    def recall(self, lane: Lane, ref: int) -> None:
        """A lonely record is due again: it goes alone."""
        known = self._lonely[ref]
        self._groups.append(
            Suspect(
                lane,
                [ref],
                known.trouble,
                known.scope,
                known.successes,
                failures=1,
                silences=known.silences,
                lonely=True,
            )
        )

    def forget(self, refs: Collection[int]) -> None:
        """These were settled one way or the other: nothing is held against them any more."""
        if self._lonely:
            for ref in refs:
                self._lonely.pop(ref, None)

    def holding(self) -> set[int]:
        return {ref for group in self._groups for ref in group.refs}
