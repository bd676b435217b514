"""Finds the culprits of a call that the CRM rejected as a whole, at the cost of few more calls (G5).

Invariants: one call at a time; every record is judged by an answer to a call it was in, never by
elimination; a record is parked, or its properties are refused, for what the CRM said about it alone or by name.

The records that the CRM names (by trace id, id, value, property) are sent first, else the first half. When a half is
rejected, the other one is put aside; when it is accepted, the culprit must be in the other. So one culprit among 100
costs 1 call a halving, and all that was put aside then goes in a single call. Halves keep partners apart, and what was
put aside of other partners is sent next: however many values of one partner are rejected without a reason, the others'
records are delivered within a few calls (G11).

Two rejections are no record's fault, so that nothing is parked and the lane pauses instead: one that blames the id
property; and one that is the same for every call down to three single records and names neither inputs nor their values
or properties, while nothing else in the lane succeeds. If another partner's records were accepted lately, it may be the
lane or the records. Then the lane does not pause, and nothing is judged until it accepts a call, if only with a part of
a record; what is left waits. After four rejections in a row single records are sent, one of each partner first, so that
a misconfigured lane costs at most eight calls and no partner alone can make a lane look misconfigured.
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

#: Rejections in a row, with no success, after which single records are sent.
SUSPICIOUS_AFTER = 4

#: Single records that must be rejected alike before the lane counts as misconfigured. They must be of as many partners,
#: where there are so many.
SINGLES = 3

#: Calls of a search in which everything is rejected alike although another partner's records were accepted lately:
#: for single records, for the properties of a few of those, and for halving down to another one.
MAX_UNDECIDED_CALLS = 20

#: Seconds until the records that were not judged then are tried again: some calls in every few minutes, not a storm.
UNDECIDED_S = 300.0

#: Records whose properties are searched in one search.
MAX_PROPERTY_SEARCHES = 3

#: Properties of a record that may be searched for a culprit: 8 take at most 4 calls.
MAX_PROPERTIES = 8

#: Calls of a search that may come to nothing before the records of the last one become a retrial.
MAX_BROKEN = 2

_EXHAUSTED = Reason("ISOLATION", "refused in company; its turn to be looked at alone will come")


class Search:
    """The search of one rejected call. Not thread-safe."""

    step: ClassVar = Step.SEARCH

    def __init__(
        self,
        lane: Lane,
        untested: Sequence[int],
        policy: RetryPolicy,
        since: Since,
        *,
        proven: bool,
        trusted: Collection[str] = frozenset(),
        ready_at: float = 0.0,
    ) -> None:
        """`since`: when it begins, in its lane. `proven`: the lane accepted records before, so a record that is
        rejected alone is worth a search. `trusted`: the sources of which it accepted records lately.
        """
        self.lane = lane
        self.open = False
        self.ready_at = ready_at
        self.calls = 0
        self._policy = policy
        self._since = since
        self._proven = proven
        self._trusted = frozenset(trusted)
        self._breaks = 0
        self._testing: list[int] = []  # what `next_group` said is to be sent
        self._untested = list(untested)
        self._apart: deque[list[int]] = deque()  # each to be sent before, and not with, anything else
        self._tainted: list[int] = []  # holds at least one culprit, if culprits are single records
        self._by_property: deque[PropertySearch] = deque()
        self._searched = 0  # records, by property
        self._records: dict[int, PendingRecord] = {}
        self._rejected_alone: list[tuple[Input, Complaint]] = []  # not judged before the lane accepts something
        self._lane_accepts = False  # since the search began
        self._undecided: Reason | None = None  # why all are rejected, while it may be the lane's fault or theirs
        self._rejections = 0
        self._signature: tuple[object, ...] | None = None
        self._alike = True  # all rejections say the same, and name no record

    def next_group(self, *, probe: bool = False) -> Group | None:  # noqa: ARG002 (a search goes on with the same group)
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
        refs.update(one.record.ref for one, _ in self._rejected_alone)
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
        """What the CRM says about single inputs is judged already."""
        if self._by_property and (sent.partly or not any(isinstance(one, Delivered) for one in judged.outcomes)):
            return self._abandon()
        self.calls += 1
        self._lane_accepts = True
        if self._by_property:
            self._by_property[0].accepted()
            return self._decided()
        self._forget(self._testing)
        return replace(self._decided(), free=sent.refs)

    def rejected_alone(self, refused: Sequence[tuple[Input, Complaint]]) -> Decision:
        """A call was accepted but for these of its inputs, of which the answer names no property."""
        self._lane_accepts = True
        self._forget([one.record.ref for one, _ in refused])
        self._rejected_alone.extend(refused)
        return self._decided()

    def rejected(self, sent: Sent, complaint: Complaint) -> Decision:
        inputs = sent.inputs
        self.calls += 1
        self._lane_accepts = self._lane_accepts or self._since.others_succeeded
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
            self._rejected_alone.append((inputs[0], complaint))
        elif not outcomes:
            self._halve(inputs, complaint)
        if self._alike and not self._lane_accepts and self._enough_singles():
            if self._trusted <= {source for one, _ in self._rejected_alone for source in one.record.sources}:
                return self._misconfigured(complaint)
            self._undecided = complaint.reason
        names = {name for one in inputs for name in one.record.values}
        retire = {name: complaint.reason_for(name) for name in complaint.definitions & names}
        return self._decided(outcomes, retire)

    def too_large(self, sent: Sent) -> Decision:
        return replace(self.vanished(sent.refs), free=sent.refs)

    def locked(self, sent: Sent, reason: Reason, ready_at: float, *, own: bool) -> Decision:  # noqa: ARG002 (the reason is no record's)
        self.ready_at = ready_at
        return self._broke(sent)

    def broken(self, sent: Sent, stop: Stop, reason: Reason) -> Decision:  # noqa: ARG002 (as above)
        return replace(self._broke(sent), stop=stop)

    def _broke(self, sent: Sent) -> Decision:
        """The search goes on after an outage, but not with a group that breaks twice."""
        self._breaks += 1
        if self._breaks < MAX_BROKEN:
            return Decision()
        self._give_up()
        return Decision(free=sent.refs)

    def _misconfigured(self, complaint: Complaint) -> Decision:
        self._give_up()
        return Decision(stop=misconfigured(complaint))

    def _abandon(self) -> Decision:
        """The answer to a part of a record's properties says neither that they were accepted nor that they were
        rejected, or not all of them were sent: nothing can be concluded, and the rest of them waits.
        """
        self.calls += 1
        left = self._by_property.popleft().record
        return self._decided([self._policy.later(left, _EXHAUSTED)])

    # --- which records next -------------------------------------------------------------------

    def _next_refs(self) -> list[int]:
        if self._probes_singles():
            return (self._of_other_partners() or self._untested)[-1:]
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

    def _of_other_partners(self) -> list[int]:
        """The records of partners of whom none was rejected alone yet."""
        heard = {one.record.sources for one, _ in self._rejected_alone}
        open_ = [*(ref for group in self._apart for ref in group), *self._untested]
        return [ref for ref in open_ if self._partner(ref) not in heard]

    def _probes_singles(self) -> bool:
        return bool(
            self._untested
            and not self._lane_accepts
            and self._alike
            and self._undecided is None
            and self._rejections >= SUSPICIOUS_AFTER
            and not self._enough_singles()
        )

    def _enough_singles(self) -> bool:
        heard = {one.record.sources for one, _ in self._rejected_alone}
        return len(self._rejected_alone) >= SINGLES and (len(heard) >= SINGLES or not self._of_other_partners())

    def _reopen(self, refused: Collection[int]) -> None:
        """These were rejected: whether the rest of what was tainted holds a culprit too is open again."""
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
        tainted = _pointed_at(inputs, complaint) or [one.record.ref for one in inputs]
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
        undecided = self._undecided if self._alike and not self._lane_accepts else None
        while self._by_property and (found := self._by_property[0].found) is not None:
            self._by_property.popleft()
            outcomes.append(found if undecided is None else _undecided(found.record, undecided))
        if undecided is not None:
            self._search_rejected_alone()
            if self.next_group() is None or self.calls >= MAX_UNDECIDED_CALLS:
                outcomes.extend(_undecided(record, undecided) for record in self._give_up())
        elif self._lane_accepts or not self._alike or self.next_group() is None:
            for one, complaint in self._rejected_alone:
                outcomes.extend(self._judge(one.record, complaint))
            self._rejected_alone = []
        if self.calls >= MAX_CALLS:
            outcomes.extend(self._policy.later(record, _EXHAUSTED) for record in self._give_up())
        return Decision(tuple(outcomes), retire=retire or {})

    def _search_rejected_alone(self) -> None:
        """Send parts of a few records: if one is accepted, the lane is in order."""
        for one, complaint in list(self._rejected_alone):
            if self._may_search(one.record):
                self._search_properties(one.record, complaint)
                self._rejected_alone.remove((one, complaint))

    def _may_search(self, record: PendingRecord) -> bool:
        return 2 <= len(record.values) <= MAX_PROPERTIES and self._searched < MAX_PROPERTY_SEARCHES

    def _search_properties(self, record: PendingRecord, complaint: Complaint) -> None:
        self._searched += 1
        self._by_property.append(PropertySearch(record, complaint))

    def _judge(self, record: PendingRecord, complaint: Complaint) -> list[Outcome]:
        """The outcome of a record that was rejected alone; none yet where its properties are worth a search."""
        names = complaint.properties & record.values.keys()
        if names:
            return [self._refuse(record, names, complaint)]
        if (self._lane_accepts or self._proven) and self._may_search(record):
            self._search_properties(record, complaint)
            return []
        return [Parked(record, complaint.reason)]

    def _refuse(self, record: PendingRecord, names: Collection[str], complaint: Complaint) -> Refused:
        self._forget([record.ref])
        if len(record.values) > len(names):  # its other properties go on in this flush
            self._untested.append(record.ref)
        return Refused(record, {name: complaint.reason_for(name) for name in sorted(names)})

    def _give_up(self) -> list[PendingRecord]:
        """Search no more; returns the records that are left."""
        left = self.refs
        self._untested, self._tainted, self._testing = [], [], []
        self._apart.clear()
        self._by_property.clear()
        self._rejected_alone = []
        return [self._records[ref] for ref in sorted(left) if ref in self._records]

    # --- whose fault it is --------------------------------------------------------------------

    def _compare(self, inputs: Sequence[Input], complaint: Complaint) -> None:
        self._rejections += 1
        self._signature = self._signature or complaint.signature
        if is_about_records(inputs, complaint):
            self._alike = False
        self._alike = self._alike and complaint.signature == self._signature


class PropertySearch:
    """The search for the one property for which the CRM rejects a record without saying so.

    The properties are halved as records are. If those left over are rejected as well, the record is parked as a whole.
    """

    def __init__(self, record: PendingRecord, complaint: Complaint) -> None:
        self.record = record
        self._complaint = complaint
        self._tainted = list(record.values)
        self._untested: list[str] = []
        self.found: Refused | Parked | None = None

    @property
    def names(self) -> frozenset[str]:
        """The properties to send next."""
        return frozenset(self._untested if self._is_halved else self._tainted[: len(self._tainted) // 2])

    @property
    def _is_halved(self) -> bool:
        """Whether one property is left as the culprit, if the untested ones are accepted."""
        return len(self._tainted) == 1

    def accepted(self) -> None:
        """The CRM accepted `names`."""
        if self._is_halved:
            self._untested = []
        else:
            self._tainted = self._tainted[len(self._tainted) // 2 :]
        self._conclude()

    def rejected(self) -> None:
        if self._is_halved:
            self.found = Parked(self.record, self._complaint.reason)
            return
        middle = len(self._tainted) // 2
        self._untested += self._tainted[middle:]
        self._tainted = self._tainted[:middle]
        self._conclude()

    def _conclude(self) -> None:
        if self._is_halved and not self._untested:
            (culprit,) = self._tainted
            self.found = Refused(self.record, {culprit: self._complaint.reason_for(culprit)})


def misconfigured(complaint: Complaint) -> Stop:
    """The lane is at fault, and no record."""
    reason = complaint.reason
    return Stop(Scope.LANE, MISCONFIGURED, f"{reason.category}: {reason.message}"[:300])


def _undecided(record: PendingRecord, reason: Reason) -> RetryLater:
    return RetryLater(record, reason, UNDECIDED_S, own_failure=False)


def is_misaddressed(lane: Lane, inputs: Sequence[Input], complaint: Complaint) -> bool:
    """Whether the CRM blames the property by which this lane addresses its records, and not a value of it that was
    sent.
    """
    return complaint.blames_id_property(lane.id_property) and not any(
        lane.id_property in one.record.values for one in inputs
    )


def is_about_records(inputs: Sequence[Input], complaint: Complaint) -> bool:
    """Whether the complaint names inputs, or values or properties of theirs: then it is not about the whole lane."""
    sent_ids = {one.record.key.id for one in inputs}
    sent_traces = {one.trace_id for one in inputs}
    names_inputs = complaint.trace_ids & sent_traces or complaint.ids & sent_ids
    names_properties = any(complaint.properties & one.record.values.keys() for one in inputs)
    return bool(names_inputs or names_properties or complaint.values or complaint.definitions or complaint.duplicates)


def _certain(inputs: Sequence[Input], complaint: Complaint) -> list[tuple[PendingRecord, frozenset[str]]]:
    """The records, with their properties, that the complaint leaves no doubt about: a property that nobody can write, a
    value that is invalid in any record, or the one input that it names.
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
    """The inputs that the complaint names, by its best evidence; none if that is all of them."""
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
    """Groups of which none holds two inputs that are one record to the CRM; the inputs in none of them may stay
    together.

    An id that is named may have its twin in the call under another spelling, or one that we cannot see. The groups are
    sent first: of twins the one that was changed last is in none of them, the others go in their order.
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
