"""Finds the culprits of a call that the CRM refused as a whole, at the cost of few more calls (G5).

Invariants: one call at a time; every record is judged by an answer to a call it was in, never by
elimination; a record is parked or refused for what the CRM said about it alone or by name.

The way: what the CRM names (trace id, id, value, property) is looked at first, else the first half. When
a half is refused, the other one is put aside; when it is taken, the culprit must be in the other. So one
culprit among 100 costs 1 call a halving, and all that was put aside then goes in a single call. Halves
keep partners apart, and what was put aside of other partners is looked at next: however many values of
one are refused without a word, the others' records go within a few calls (G11).

Not the records' fault, so that nothing is parked and the lane pauses instead, is a refusal that blames
the id property; and one that is the same for every call down to three single records and names neither
inputs nor their values or properties, while nothing else in the lane succeeds. If another partner's records
were taken lately, it may be the lane or the records: it does not pause, but nothing is judged either until
a call of it is taken, be it with a part of a record; what is left waits. After four refusals in a row
single records are probed for, of each partner first, so that a misconfigured lane costs at most eight calls
and no partner alone can make it look like one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from bridge.crm.complaints import Complaint
from bridge.crm.transport import Input
from bridge.delivery.answers import Judged
from bridge.delivery.cases import Decision, Group, Sent, Since, Step
from bridge.delivery.pauses import MISCONFIGURED, RetryPolicy, Stop
from bridge.model import Delivered, Lane, Outcome, Parked, PendingRecord, Reason, Refused, RetryLater, Scope

#: Calls that one search may cost. Five culprits among 100 need some 45; what is left then waits and
#: is tried again at growing intervals, so that a hundred culprits never mean a hundred calls at once.
MAX_CALLS = 60

#: Refusals in a row, with no success, after which single records are probed.
SUSPICIOUS_AFTER = 4

#: Single records that must be refused alike before the lane is held to be misconfigured, and partners of
#: whom one must be among them, where there are so many.
SINGLES = 3

#: Calls of a search in which everything is refused alike although another partner's records were taken lately:
#: to ask for single records, to search a few of those and to halve down to another one.
MAX_UNDECIDED_CALLS = 20

#: Seconds until what was not judged then is looked at again: some calls in every few minutes, not a storm.
UNDECIDED_S = 300.0

#: Records whose properties are searched in one search.
MAX_PROPERTY_SEARCHES = 3

#: Properties of a record that may be searched for a culprit: 8 take at most 4 calls.
MAX_PROPERTIES = 8

#: Calls of a search that may come to nothing before what was in the last one is sent again by itself.
MAX_BROKEN = 2

_EXHAUSTED = Reason("ISOLATION", "refused in company; its turn to be looked at alone will come")


class Search:
    """The search of one refused call. Not thread-safe."""

    step: ClassVar = Step.SEARCH

    def __init__(
        self,
        lane: Lane,
        untested: Sequence[int],
        policy: RetryPolicy,
        since: Since,
        *,
        proven: bool,
        flowing: Collection[str] = frozenset(),
        ready_at: float = 0.0,
    ) -> None:
        """`since`: when it begins, in its lane. `proven`: the lane has taken records before, so a record refused alone
        is worth a search. `flowing`: the sources whose records it took lately.
        """
        self.lane = lane
        self.open = False
        self.ready_at = ready_at
        self.calls = 0
        self._policy = policy
        self._since = since
        self._proven = proven
        self._flowing = frozenset(flowing)
        self._breaks = 0
        self._testing: list[int] = []  # what `next_group` told to send
        self._untested = list(untested)
        self._apart: deque[list[int]] = deque()  # to go before, and not with, anything else
        self._tainted: list[int] = []  # holds at least one culprit, if culprits are single records
        self._by_property: deque[PropertySearch] = deque()
        self._searched = 0  # records, by property
        self._records: dict[int, PendingRecord] = {}
        self._withheld: list[tuple[Input, Complaint]] = []  # refused alone, not judged before the lane flows
        self._flows = False
        self._undecided: Reason | None = None  # of what all are refused for, while it may be the lane's fault or theirs
        self._refusals = 0
        self._signature: tuple[object, ...] | None = None
        self._alike = True

    def next_group(self, *, probe: bool = False) -> Group | None:  # noqa: ARG002 (what tells most, is to be told anyway)
        if self._by_property:
            one = self._by_property[0]
            return Group((one.record.ref,), only=one.names)
        if not self._testing:
            self._testing = list(self._next_refs())
        return Group(tuple(self._testing)) if self._testing else None

    @property
    def refs(self) -> set[int]:
        refs = {*self._untested, *self._tainted, *(ref for group in self._apart for ref in group)}
        refs.update(one.record.ref for one in self._by_property)
        refs.update(one.record.ref for one, _ in self._withheld)
        return refs

    def vanished(self, refs: Collection[int]) -> Decision:
        if self._by_property and self._by_property[0].record.ref in refs:
            return self._abandon()
        self._forget(refs)
        return self._decided()

    def did_not_fit(self, refs: Collection[int]) -> Decision:
        """Their turn comes next."""
        self._testing = [ref for ref in self._testing if ref not in refs]
        return Decision()

    def accepted(self, sent: Sent, judged: Judged) -> Decision:
        """What the CRM says about single inputs is not ours to judge."""
        if self._by_property and (sent.partly or not any(isinstance(one, Delivered) for one in judged.outcomes)):
            return self._abandon()
        self.calls += 1
        self._flows = True
        if self._by_property:
            self._by_property[0].accepted()
            return self._decided()
        self._forget(self._testing)
        return replace(self._decided(), free=sent.refs)

    def rejected_alone(self, refused: Sequence[tuple[Input, Complaint]]) -> Decision:
        """A call was taken, but for these inputs of it, of which the answer names no property."""
        self._flows = True
        self._forget([one.record.ref for one, _ in refused])
        self._withheld.extend(refused)
        return self._decided()

    def rejected(self, sent: Sent, complaint: Complaint) -> Decision:
        inputs = sent.inputs
        self.calls += 1
        self._flows = self._flows or self._since.others_succeeded
        if is_misaddressed(self.lane, inputs, complaint):
            return self._misconfigured(complaint)
        self._compare(inputs, complaint)
        if self._by_property:
            self._by_property[0].rejected()
            return self._decided()
        self._records.update((one.record.ref, one.record) for one in inputs)
        self._testing = []
        self._reopen(sent.refs)
        outcomes = [self._refuse(record, names, complaint) for record, names in _certain(inputs, complaint)]
        if not outcomes and len(inputs) == 1:
            self._forget(sent.refs)
            self._withheld.append((inputs[0], complaint))
        elif not outcomes:
            self._halve(inputs, complaint)
        if self._alike and not self._flows and self._have_all_been_heard():
            if self._flowing <= {source for one, _ in self._withheld for source in one.record.sources}:
                return self._misconfigured(complaint)
            self._undecided = complaint.reason
        names = {name for one in inputs for name in one.record.values}
        retire = {name: complaint.reason_for(name) for name in complaint.definitions & names}
        return self._decided(outcomes, retire)

    def too_large(self, sent: Sent) -> Decision:
        return replace(self.vanished(sent.refs), free=sent.refs)

    def locked(self, sent: Sent, reason: Reason, ready_at: float, *, own: bool) -> Decision:  # noqa: ARG002 (why)
        self.ready_at = ready_at
        return self._broke(sent)

    def broken(self, sent: Sent, stop: Stop, reason: Reason) -> Decision:  # noqa: ARG002 (as above)
        return replace(self._broke(sent), stop=stop)

    def _broke(self, sent: Sent) -> Decision:
        """It goes on after an outage, but not with a group that breaks twice."""
        self._breaks += 1
        if self._breaks < MAX_BROKEN:
            return Decision()
        self._give_up()
        return Decision(free=sent.refs)

    def _misconfigured(self, complaint: Complaint) -> Decision:
        self._give_up()
        return Decision(stop=misconfigured(complaint))

    def _abandon(self) -> Decision:
        """The answer to a part of a record's properties told neither that they were taken nor that they were
        refused, or not all of them were sent: nothing can be concluded, and what is left of them waits.
        """
        self.calls += 1
        left = self._by_property.popleft().record
        return self._decided([self._policy.later(left, _EXHAUSTED)])

    # --- which records next -------------------------------------------------------------------

    def _next_refs(self) -> list[int]:
        if self._probes_singles():
            return (self._unheard() or self._untested)[-1:]
        if self._apart:
            return self._apart[0]
        if self._tainted:
            return self._tainted[: self._middle()]
        return self._untested

    def _middle(self) -> int:
        """Where to halve what is tainted: between two partners' records, else in the middle."""
        middle = max(1, len(self._tainted) // 2)
        partners = [self._partner(ref) for ref in self._tainted]
        borders = [place for place in range(1, len(partners)) if partners[place - 1] != partners[place]]
        return min(borders, key=lambda place: abs(place - middle), default=middle)

    def _partner(self, ref: int) -> tuple[str, ...]:
        known = self._records.get(ref)
        return known.sources if known is not None else ()

    def _unheard(self) -> list[int]:
        """The records of partners none of whose records was refused alone."""
        heard = {one.record.sources for one, _ in self._withheld}
        open_ = [*(ref for group in self._apart for ref in group), *self._untested]
        return [ref for ref in open_ if self._partner(ref) not in heard]

    def _probes_singles(self) -> bool:
        return bool(
            self._untested
            and not self._flows
            and self._alike
            and self._undecided is None
            and self._refusals >= SUSPICIOUS_AFTER
            and not self._have_all_been_heard()
        )

    def _have_all_been_heard(self) -> bool:
        heard = {one.record.sources for one, _ in self._withheld}
        return len(self._withheld) >= SINGLES and (len(heard) >= SINGLES or not self._unheard())

    def _reopen(self, refused: Collection[int]) -> None:
        """Of what was tainted these were refused: whether the rest is tainted too is open again."""
        rest = [ref for ref in self._tainted if ref not in refused]
        partners = {self._partner(ref) for ref in refused}
        was_halved = 0 < len(rest) < len(self._tainted)
        if was_halved and partners.isdisjoint(map(self._partner, rest)):
            self._apart.append(rest)
            rest = []
        self._untested += [*(ref for ref in self._tainted if ref in refused), *rest]
        self._tainted = []

    def _halve(self, inputs: Sequence[Input], complaint: Complaint) -> None:
        if complaint.duplicates and (layers := _layers(inputs, complaint.ids)):
            self._forget([ref for layer in layers for ref in layer])
            self._apart.extend(layers)
            return
        pointed_at = _pointed_at(inputs, complaint)
        tainted = pointed_at or [one.record.ref for one in inputs]
        self._forget(tainted)
        self._tainted = sorted(tainted, key=self._partner)

    def _forget(self, refs: Collection[int]) -> None:
        gone = set(refs)
        self._testing = [ref for ref in self._testing if ref not in gone]
        self._untested = [ref for ref in self._untested if ref not in gone]
        self._tainted = [ref for ref in self._tainted if ref not in gone]
        apart = ([ref for ref in group if ref not in gone] for group in self._apart)
        self._apart = deque(group for group in apart if group)

    # --- what is decided ----------------------------------------------------------------------

    def _decided(self, outcomes: Sequence[Outcome] = (), retire: Mapping[str, Reason] | None = None) -> Decision:
        outcomes = list(outcomes)
        undecided = self._undecided if self._alike and not self._flows else None
        while self._by_property and (found := self._by_property[0].found) is not None:
            self._by_property.popleft()
            outcomes.append(found if undecided is None else _undecided(found.record, undecided))
        if undecided is not None:
            self._search_withheld()
            if self.next_group() is None or self.calls >= MAX_UNDECIDED_CALLS:
                outcomes.extend(_undecided(record, undecided) for record in self._give_up())
        elif self._flows or not self._alike or self.next_group() is None:
            for one, complaint in self._withheld:
                outcomes.extend(self._judge(one.record, complaint))
            self._withheld = []
        if self.calls >= MAX_CALLS:
            outcomes.extend(self._policy.later(record, _EXHAUSTED) for record in self._give_up())
        return Decision(tuple(outcomes), retire=retire or {})

    def _search_withheld(self) -> None:
        """Ask for parts of a few: if one is taken, the lane is in order."""
        for one, complaint in list(self._withheld):
            if self._may_search(one.record):
                self._search_properties(one.record, complaint)
                self._withheld.remove((one, complaint))

    def _may_search(self, record: PendingRecord) -> bool:
        return 2 <= len(record.values) <= MAX_PROPERTIES and self._searched < MAX_PROPERTY_SEARCHES

    def _search_properties(self, record: PendingRecord, complaint: Complaint) -> None:
        self._searched += 1
        self._by_property.append(PropertySearch(record, complaint))

    def _judge(self, record: PendingRecord, complaint: Complaint) -> list[Outcome]:
        """What is to become of a record that was refused alone."""
        names = complaint.properties & record.values.keys()
        if names:
            return [self._refuse(record, names, complaint)]
        if (self._flows or self._proven) and self._may_search(record):
            self._search_properties(record, complaint)
            return []
        return [Parked(record, complaint.reason)]

    def _refuse(self, record: PendingRecord, names: Collection[str], complaint: Complaint) -> Refused:
        self._forget([record.ref])
        if len(record.values) > len(names):  # its other properties go on in this flush
            self._untested.append(record.ref)
        return Refused(record, {name: complaint.reason_for(name) for name in sorted(names)})

    def _give_up(self) -> list[PendingRecord]:
        """Look at nothing any more; returns the records that were left."""
        left = self.refs
        self._untested, self._tainted, self._testing = [], [], []
        self._apart.clear()
        self._by_property.clear()
        self._withheld = []
        return [self._records[ref] for ref in sorted(left) if ref in self._records]

    # --- whose fault it is --------------------------------------------------------------------

    def _compare(self, inputs: Sequence[Input], complaint: Complaint) -> None:
        self._refusals += 1
        self._signature = self._signature or complaint.signature
        if is_about_records(inputs, complaint):
            self._alike = False
        self._alike = self._alike and complaint.signature == self._signature


class PropertySearch:
    """The search for the one property of a record that makes the CRM refuse it without saying why.

    The properties are halved as records are. If what is left over is refused as well, the record as a whole is the
    trouble.
    """

    def __init__(self, record: PendingRecord, complaint: Complaint) -> None:
        self.record = record
        self._complaint = complaint
        self._tainted = list(record.values)
        self._untested: list[str] = []
        self._culprit: str | None = None
        self.found: Refused | Parked | None = None

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
            self.found = Parked(self.record, self._complaint.reason)
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
            self.found = Refused(self.record, {self._culprit: reason})


def misconfigured(complaint: Complaint) -> Stop:
    """The lane's trouble, and no record's."""
    reason = complaint.reason
    return Stop(Scope.LANE, MISCONFIGURED, f"{reason.category}: {reason.message}"[:300])


def _undecided(record: PendingRecord, reason: Reason) -> RetryLater:
    return RetryLater(record, reason, UNDECIDED_S, own_failure=False)


def is_misaddressed(lane: Lane, inputs: Sequence[Input], complaint: Complaint) -> bool:
    """Whether the CRM blames the property by which this lane addresses its records, and not a value of it
    that was sent.
    """
    return complaint.blames_id_property(lane.id_property) and not any(
        lane.id_property in one.record.values for one in inputs
    )


def is_about_records(inputs: Sequence[Input], complaint: Complaint) -> bool:
    """Whether the complaint names inputs, values or properties of theirs, so that it is no trouble of all."""
    sent_ids = {one.record.key.id for one in inputs}
    sent_traces = {one.trace_id for one in inputs}
    names_inputs = complaint.trace_ids & sent_traces or complaint.ids & sent_ids
    names_properties = any(complaint.properties & one.record.values.keys() for one in inputs)
    return bool(names_inputs or names_properties or complaint.values or complaint.definitions or complaint.duplicates)


def _certain(inputs: Sequence[Input], complaint: Complaint) -> list[tuple[PendingRecord, frozenset[str]]]:
    """The records of which the complaint leaves no doubt what is wrong: a property that nobody can
    write, a value that is invalid whoever has it, or the one input that it names.
    """
    definitions = complaint.definitions
    values = {(one.name, one.value) for one in complaint.named if one.code.startswith("INVALID_")}
    found = []
    for one in inputs:
        sent = one.record.values
        names = frozenset(name for name, value in sent.items() if name in definitions or (name, value.value) in values)
        if names:
            found.append((one.record, names))
    if not found and len(by_trace := _by_trace(inputs, complaint)) == 1:
        record = by_trace[0].record
        if names := complaint.properties & record.values.keys():
            found.append((record, frozenset(names)))
    return found


def _by_trace(inputs: Sequence[Input], complaint: Complaint) -> list[Input]:
    return [one for one in inputs if one.trace_id in complaint.trace_ids]


def _pointed_at(inputs: Sequence[Input], complaint: Complaint) -> list[int]:
    """The inputs that the complaint points at, by its best evidence; none if that is all of them."""
    values, properties = complaint.values, complaint.properties
    folded = {told.casefold() for told in complaint.ids}
    for matching in (
        _by_trace(inputs, complaint),
        [one for one in inputs if one.record.key.id in complaint.ids],
        [one for one in inputs if one.record.key.id.casefold() in folded],
        [one for one in inputs if any((p, v.value) in values for p, v in one.record.values.items())],
        [one for one in inputs if properties & one.record.values.keys()],
    ):
        if 0 < len(matching) < len(inputs):
            return [one.record.ref for one in matching]
    return []


def _layers(inputs: Sequence[Input], ids: Collection[str]) -> list[list[int]]:
    """Groups such that no two inputs which are one record to the CRM share one; what is in none of them
    may stay together.

    An id that is named may have its twin beside it under another spelling, or one that we cannot see. The groups go
    before what is in none of them: of twins the one that was changed last is left there, the others go in their order.
    """
    twins: dict[str, list[int]] = {told.strip().casefold(): [] for told in ids}
    for one in sorted(inputs, key=lambda one: one.record.changed):
        found = twins.get(one.record.key.id.strip().casefold())
        if found is not None:
            found.append(one.record.ref)
    layers: list[list[int]] = []
    for refs in twins.values():
        for layer, ref in enumerate(refs[:-1] or refs):
            if layer == len(layers):
                layers.append([])
            layers[layer].append(ref)
    return layers if sum(map(len, layers)) < len(inputs) else []
