"""Isolation: how many calls culprits cost, and that nobody pays for them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.crm.complaints import Complaint, read_complaint
from bridge.crm.transport import Input
from bridge.delivery.answers import Judged
from bridge.delivery.cases import Decision, Moment, Sent, Successes
from bridge.delivery.pauses import Backoff, RetryPolicy, Stop
from bridge.delivery.search import MAX_CALLS, MAX_UNDECIDED_CALLS, Search
from bridge.model import Delivered, Lane, Outcome, Parked, PendingRecord, Refused, RetryLater, Scope, Value
from tests.fakes_delivery import CLIENTS, inputs, record

Bad = Callable[[PendingRecord], bool]
Says = Callable[[list[Input], list[Input]], Complaint]


def mute(_: list[Input], __: list[Input]) -> Complaint:
    """A 400 that says nothing."""
    return Complaint("VALIDATION_ERROR", "nope")


class Searched:
    """A search, told in few words what became of its calls."""

    def __init__(
        self,
        refs: Collection[int],
        *,
        proven: bool,
        flows: bool = False,
        trusted: Collection[str] = (),
        lane: Lane = CLIENTS,
    ) -> None:
        """`flows`: something else in its lane succeeds after it began."""
        successes = Successes()
        self.search = Search(
            lane,
            list(refs),
            RetryPolicy(Backoff(base_s=1.0, max_s=60.0), 3_600.0),
            successes.since_now(lane, Scope.LANE),
            proven=proven,
            trusted=trusted,
        )
        if flows:
            successes.note(lane)
        self.next_group = self.search.next_group
        self.vanished = self.search.vanished

    def holding(self) -> set[int]:
        return self.search.refs

    def accepted(self, made: list[Input]) -> Decision:
        delivered = Judged(tuple(Delivered(one.record) for one in made))
        return self.search.accepted(sent_of(made), delivered)

    def rejected(self, made: list[Input], complaint: Complaint) -> Decision:
        return self.search.rejected(sent_of(made), complaint)


def sent_of(made: list[Input]) -> Sent:
    return Sent(made, tuple(one.record.ref for one in made), Moment(0.0, 0))


def is_exhausted(outcome: Outcome) -> bool:
    """Whether the search gave up looking at the record for now."""
    return isinstance(outcome, RetryLater) and outcome.reason.category == "ISOLATION"


@dataclass
class Trial:
    """What a search came to against a simulated CRM."""

    calls: int = 0
    taken: set[tuple[int, str]] = field(default_factory=set)
    outcomes: dict[int, list[Outcome]] = field(default_factory=dict)
    misconfigured: Stop | None = None
    retired: set[str] = field(default_factory=set)
    exhausted: list[PendingRecord] = field(default_factory=list)


def isolate(
    records: Mapping[int, PendingRecord],
    bad: Bad,
    *,
    says: Says = mute,
    proven: bool = True,
    flows: bool = False,
    trusted: Collection[str] = (),
    lane: Lane = CLIENTS,
) -> Trial:
    """Run a search to its end, as the dispatcher would."""
    trial, left = Trial(), dict(records)
    search = Searched(records, proven=proven, flows=flows, trusted=trusted, lane=lane)
    while trial.misconfigured is None and (group := search.next_group()) is not None:
        assert group == search.next_group()
        assert set(group.refs) <= search.holding()
        trial.calls += 1
        sent = [left[ref] for ref in group.refs]
        if group.only is not None:
            sent = [without(one, one.values.keys() - group.only) for one in sent]
        made = inputs(*sent)
        culprits = [one for one in made if bad(one.record)]
        if culprits:
            decision = search.rejected(made, says(made, culprits))
        else:
            trial.taken.update((one.record.ref, name) for one in made for name in one.record.values)
            decision = search.accepted(made)
        for outcome in decision.outcomes:
            ref = outcome.record.ref
            if is_exhausted(outcome):
                trial.exhausted.append(outcome.record)
                continue
            trial.outcomes.setdefault(ref, []).append(outcome)
            if isinstance(outcome, Refused):
                left[ref] = without(left[ref], outcome.properties)
        trial.misconfigured = decision.stop
        trial.retired |= set(decision.retire)
    return trial


def without(one: PendingRecord, names: object) -> PendingRecord:
    assert hasattr(names, "__contains__")
    return replace(one, values={name: value for name, value in one.values.items() if name not in names})


def records(count: int, properties: int = 8) -> dict[int, PendingRecord]:
    return {ref: record(ref, {f"p{place}": f"v{ref}" for place in range(properties)}) for ref in range(count)}


def check_only_culprits_pay(trial: Trial, many: Mapping[int, PendingRecord], culprits: set[int]) -> None:
    assert trial.outcomes.keys() == culprits
    assert trial.misconfigured is None
    for ref, one in many.items():
        if ref not in culprits:
            assert {(ref, name) for name in one.values} <= trial.taken


# --- a CRM that says nothing ---------------------------------------------------------------------


@pytest.mark.parametrize("proven", [True, False])
@pytest.mark.parametrize("properties", [1, 8, 20])
def test_one_culprit_among_100_costs_at_most_15_calls_wherever_it_stands(properties: int, proven: bool) -> None:
    many = records(100, properties)
    for culprit in range(100):
        trial = isolate(many, lambda one, culprit=culprit: one.ref == culprit, proven=proven)  # type: ignore[misc]  # a lambda with a default
        check_only_culprits_pay(trial, many, {culprit})
        assert trial.calls <= 15
        assert isinstance(trial.outcomes[culprit][0], Parked)


def test_five_culprits_among_100_cost_at_most_60_calls() -> None:
    chance, many = random.Random(5), records(100)
    for _ in range(200):
        culprits = set(chance.sample(range(100), 5))
        trial = isolate(many, lambda one, culprits=culprits: one.ref in culprits)  # type: ignore[misc]  # a lambda with a default
        check_only_culprits_pay(trial, many, culprits)
        assert trial.calls <= 60


def test_one_bad_property_is_found_and_the_others_are_delivered() -> None:
    many = records(100)
    for bad in range(8):
        name = f"p{bad}"
        trial = isolate(many, lambda one, name=name: one.ref == 42 and name in one.values)  # type: ignore[misc]  # a lambda with a default
        check_only_culprits_pay(trial, many, {42})
        assert trial.calls <= 15
        (outcome,) = trial.outcomes[42]
        assert isinstance(outcome, Refused)
        assert set(outcome.properties) == {name}
        assert {(42, other) for other in many[42].values if other != name} <= trial.taken


NO_SUCH = 'Property "acme_client_id" does not exist'

NO_SUCH_DETAIL = {
    "message": NO_SUCH,
    "code": "PROPERTY_DOESNT_EXIST",
    "context": {"propertyName": ["acme_client_id"]},
}


@pytest.mark.parametrize(
    "body",
    [
        {"message": NO_SUCH},
        {"message": "Property values were not valid", "errors": [NO_SUCH_DETAIL]},
        {"message": f"Property values were not valid: {json.dumps([{'message': NO_SUCH}])}"},
    ],
    ids=["in words", "in errors", "in JSON"],
)
def test_an_id_property_that_does_not_exist_is_misconfigured_at_once(body: dict[str, object]) -> None:
    told = read_complaint({"category": "VALIDATION_ERROR", **body})
    trial = isolate(records(100), lambda _: True, says=lambda _, __: told)
    assert trial.misconfigured is not None
    assert (trial.calls, trial.outcomes) == (1, {})


def test_an_id_that_does_not_fit_the_id_property_is_its_records_fault() -> None:
    detail = {
        "message": "c7 was not a valid long.",
        "code": "INVALID_LONG",
        "context": {"propertyName": ["acme_client_id"]},
    }
    told = read_complaint(
        {"category": "VALIDATION_ERROR", "message": "Property values were not valid", "errors": [detail]}
    )
    many = records(100)
    trial = isolate(many, lambda one: one.ref == 7, says=lambda _, __: told)
    check_only_culprits_pay(trial, many, {7})
    assert trial.calls <= 15


@pytest.mark.parametrize("count", [3, 5, 10, 50, 100])
def test_a_lane_in_which_everything_is_refused_alike_is_misconfigured_within_8_calls(count: int) -> None:
    trial = isolate(records(count), lambda _: True)
    assert trial.misconfigured is not None
    assert trial.outcomes == {}
    assert trial.calls <= 8


def test_two_bad_records_are_no_misconfiguration() -> None:
    trial = isolate(records(2, 1), lambda _: True)
    assert trial.misconfigured is None
    assert {ref: type(outcomes[0]) for ref, outcomes in trial.outcomes.items()} == {0: Parked, 1: Parked}


def test_a_hundred_culprits_in_a_lane_that_flows_cost_a_bounded_number_of_calls() -> None:
    """What cannot be looked at now waits; nothing is parked for what was said about others."""
    trial = isolate(records(100), lambda _: True, flows=True)
    assert trial.misconfigured is None
    assert trial.calls <= MAX_CALLS
    assert len(trial.outcomes) + len(trial.exhausted) == 100


def test_different_refusals_are_no_misconfiguration() -> None:
    def says(_: list[Input], culprits: list[Input]) -> Complaint:
        return Complaint("VALIDATION_ERROR", f"record {'x' * culprits[0].record.ref} is odd")

    trial = isolate(records(4, 1), lambda _: True, says=says)
    assert trial.misconfigured is None
    assert len(trial.outcomes) == 4


# --- several partners ----------------------------------------------------------------------------


def of(source: str, some: Mapping[int, PendingRecord]) -> dict[int, PendingRecord]:
    return {ref: replace(one, sources=(source,)) for ref, one in some.items()}


@pytest.mark.parametrize("sources", [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("bad", [1, 30, 97])
def test_another_partners_records_go_within_three_calls_however_many_are_refused(
    sources: tuple[str, str], bad: int
) -> None:
    """Without a word of which; the calls are those until the last of them was taken."""
    many = records(100)
    mixed = of(sources[0], {ref: many[ref] for ref in range(bad)}) | of(
        sources[1], {ref: many[ref] for ref in range(bad, 100)}
    )
    search = Searched(mixed, proven=False)
    left = set(range(bad, 100))
    for _ in range(3):
        group = search.next_group()
        assert group is not None
        made = inputs(*(mixed[ref] for ref in group.refs))
        if min(group.refs) < bad:
            assert search.rejected(made, mute(made, [])).stop is None
        else:
            search.accepted(made)
            left -= set(group.refs)
    assert left == set()


@pytest.mark.parametrize("count", [3, 4, 5, 10, 50, 100])
@pytest.mark.parametrize("partners", [2, 3, 5, 40])
def test_a_lane_of_several_partners_is_misconfigured_within_8_calls(count: int, partners: int) -> None:
    """If everything of each is refused alike."""
    many = records(count)
    trial = isolate({ref: replace(one, sources=(f"s{ref % partners}",)) for ref, one in many.items()}, lambda _: True)
    assert trial.misconfigured is not None
    assert trial.outcomes == {}
    assert trial.calls <= 8


def test_no_partner_alone_makes_a_lane_look_misconfigured() -> None:
    """Of the other one record is bad as well, so that nothing was taken when single records are asked for."""
    many = of("a", records(90)) | of("b", {ref: record(ref) for ref in range(90, 100)})
    trial = isolate(many, lambda one: one.ref <= 90)
    assert trial.misconfigured is None
    assert {(ref, "name") for ref in range(91, 100)} <= trial.taken


def test_a_lane_that_lately_took_anothers_records_is_not_misconfigured() -> None:
    """All of one partner's are refused alike, and the other one has nothing to be sent."""
    trial = isolate(of("a", records(20)), lambda _: True, trusted={"b"})
    assert trial.misconfigured is None
    assert len(trial.outcomes) + len(trial.exhausted) == 20
    assert isolate(of("a", records(20)), lambda _: True, trusted={"a"}).misconfigured is not None


@pytest.mark.parametrize("properties", [1, 8, 20])
@pytest.mark.parametrize("count", [3, 20, 100])
def test_nothing_is_judged_while_the_lane_may_be_the_cause(count: int, properties: int) -> None:
    """Another partner's records were taken lately, but since then nothing: all wait, and count no failure."""
    trial = isolate(of("a", records(count, properties)), lambda _: True, trusted={"b"})
    assert trial.misconfigured is None
    assert trial.calls <= MAX_UNDECIDED_CALLS
    assert trial.exhausted == []
    assert trial.outcomes.keys() == set(range(count))
    for [outcome] in trial.outcomes.values():
        assert isinstance(outcome, RetryLater)
        assert not outcome.own_failure


def test_a_part_of_a_record_that_is_taken_shows_that_the_others_are_to_blame() -> None:
    """Each has one bad property: three are searched, and the others judged."""
    trial = isolate(of("a", records(8, 4)), lambda one: "p3" in one.values, trusted={"b"})
    verdicts = [outcome for [outcome] in trial.outcomes.values()]
    assert trial.outcomes.keys() == set(range(8))
    assert sum(isinstance(one, Refused) and one.properties.keys() == {"p3"} for one in verdicts) == 3
    assert sum(isinstance(one, Parked) for one in verdicts) == 5


def test_a_good_record_among_bad_ones_is_found_and_the_bad_ones_are_judged() -> None:
    """Of one property each, so that none can be taken in part."""
    many = of("a", records(100, 1))
    trial = isolate(many, lambda one: one.ref % 2 == 1 or one.ref > 90, trusted={"b"})
    assert trial.taken
    assert any(isinstance(one, Parked) for [one] in trial.outcomes.values())
    assert not any(isinstance(one, RetryLater) for [one] in trial.outcomes.values())


@pytest.mark.parametrize("partners", [2, 3, 10])
def test_one_culprit_of_several_partners_costs_at_most_15_calls(partners: int) -> None:
    """Wherever it stands, and whoever has it; its properties are not searched here."""
    many = {ref: replace(one, sources=(f"s{ref % partners}",)) for ref, one in records(100, 20).items()}
    for culprit in range(0, 100, 3):
        trial = isolate(many, lambda one, culprit=culprit: one.ref == culprit)  # type: ignore[misc]  # a lambda with a default
        check_only_culprits_pay(trial, many, {culprit})
        assert trial.calls <= 15


# --- a CRM that tells ---------------------------------------------------------------------------


def test_a_refusal_that_blames_the_id_property_stops_the_lane_at_once() -> None:
    def says(_: list[Input], __: list[Input]) -> Complaint:
        message = "Unable to perform update/upsert by non-unique 0-2 property acme_client_id in portal ID 1"
        return Complaint("VALIDATION_ERROR", message)

    trial = isolate(records(100), lambda _: True, says=says)
    assert trial.calls == 1
    assert trial.misconfigured is not None
    assert trial.outcomes == {}


@pytest.mark.parametrize("by", ["trace", "id"])
def test_inputs_that_are_named_cost_two_calls_more(by: str) -> None:
    def says(_: list[Input], culprits: list[Input]) -> Complaint:
        traces = frozenset(one.trace_id for one in culprits) if by == "trace" else frozenset()
        ids = frozenset(one.record.key.id for one in culprits) if by == "id" else frozenset()
        return Complaint("VALIDATION_ERROR", "bad input", ids=ids, trace_ids=traces)

    many = records(100, 20)
    trial = isolate(many, lambda one: one.ref == 42, says=says)
    check_only_culprits_pay(trial, many, {42})
    assert trial.calls == 3


def option(_: list[Input], culprits: list[Input]) -> Complaint:
    """HubSpot's 400 about values: it names properties and values, not inputs."""
    values = [one.record.values["tier"].value for one in culprits if "tier" in one.record.values]
    item = '{"name":"tier","error":"INVALID_OPTION","propertyValue":"%s","message":"no option"}'
    told = ",".join(item % value for value in values)
    return read_complaint({"category": "VALIDATION_ERROR", "message": f"Property values were not valid: [{told}]"})


def test_a_value_that_is_named_is_refused_wherever_it_stands_in_two_calls() -> None:
    many = records(100)
    for ref in (3, 50, 99):
        many[ref] = record(ref, {"tier": "wood", "name": "A"})
    many[4] = record(4, {"tier": "gold", "name": "A"})
    bad: Bad = lambda one: "tier" in one.values and one.values["tier"].value == "wood"  # noqa: E731 (a condition)
    trial = isolate(many, bad, says=option)
    assert trial.calls == 2
    check_only_culprits_pay(trial, many, {3, 50, 99})
    assert all(isinstance(outcomes[0], Refused) for outcomes in trial.outcomes.values())
    assert {(3, "name"), (50, "name"), (4, "tier")} <= trial.taken


def test_a_hundred_bad_values_that_are_named_cost_two_calls() -> None:
    many = {ref: record(ref, {"tier": f"w{ref}", "name": "A"}) for ref in range(100)}
    trial = isolate(many, lambda one: "tier" in one.values, says=option)
    assert trial.calls == 2
    assert len(trial.outcomes) == 100


def test_a_property_that_is_named_narrows_to_the_inputs_that_have_it() -> None:
    def says(_: list[Input], __: list[Input]) -> Complaint:
        return read_complaint({"errors": [{"code": "ODD", "context": {"propertyName": ["mail"]}}]})

    many = records(100)
    for ref in (7, 70):
        many[ref] = record(ref, {"mail": f"m{ref}", "name": "A"})
    trial = isolate(many, lambda one: one.ref == 70 and "mail" in one.values, says=says)
    check_only_culprits_pay(trial, many, {70})
    assert (7, "mail") in trial.taken
    assert trial.calls <= 5


def test_a_property_that_nobody_can_write_is_retired() -> None:
    def says(_: list[Input], __: list[Input]) -> Complaint:
        error = {"code": "PROPERTY_DOESNT_EXIST", "context": {"propertyName": ["ghost"]}}
        return read_complaint({"category": "VALIDATION_ERROR", "errors": [error]})

    many = {ref: record(ref, {"ghost": "boo", "name": "A"}) for ref in range(100)}
    trial = isolate(many, lambda one: "ghost" in one.values, says=says)
    assert trial.calls == 2
    assert trial.retired == {"ghost"}
    assert {(ref, "name") for ref in range(100)} == trial.taken


@pytest.mark.parametrize("twins", [("A@x.com", "a@x.com"), ("a", "A", " a")])
def test_two_ids_of_one_record_go_in_separate_calls(twins: tuple[str, ...]) -> None:
    many = records(20, 1)
    for ref, told in enumerate(twins):
        many[ref] = replace(many[ref], key=replace(many[ref].key, id=told))

    def says(sent: list[Input], _: list[Input]) -> Complaint:
        return read_complaint({"message": "Duplicate IDs found in batch input: [a].", "context": {"ids": [twins[0]]}})

    calls = run_duplicates(many, says)
    assert calls <= 1 + len(twins)


def test_of_several_ids_of_one_record_the_one_that_changed_last_goes_last() -> None:
    """Whichever way they stand in the call: what is written last is what stays."""
    told, changed = ("a", "A", " a", "c3"), (30, 10, 20, 5)
    many = {
        ref: replace(one, key=replace(one.key, id=told[ref]), values={"p": Value("v", 1, (9, changed[ref]))})
        for ref, one in records(4, 1).items()
    }
    search, taken = Searched(many, proven=True), list[str]()
    while (group := search.next_group()) is not None:
        sent = inputs(*(many[ref] for ref in group.refs))
        if sum(one.record.key.id.strip().lower() == "a" for one in sent) > 1:
            message = {"message": "Duplicate IDs found in batch input: [a].", "context": {"ids": ["a"]}}
            search.rejected(sent, read_complaint(message))
        else:
            taken += [one.record.key.id for one in sent if one.record.key.id != "c3"]
            search.accepted(sent)
    assert taken == ["A", " a", "a"]


def test_a_twin_that_cannot_be_seen_goes_alone() -> None:
    """Merged records: HubSpot names one of our ids, and nothing tells the other."""
    many = records(20, 1)
    same = {3, 8}

    def says(_: list[Input], __: list[Input]) -> Complaint:
        return read_complaint({"message": "Duplicate IDs found in batch input", "context": {"ids": ["8"]}})

    search_calls = run_duplicates(many, says, same=same)
    assert search_calls == 3


def run_duplicates(many: dict[int, PendingRecord], says: Says, *, same: set[int] | None = None) -> int:
    """A CRM that refuses a call with two inputs of one record; everything must get through."""
    search = Searched(many, proven=True, flows=True)
    calls = 0
    through: set[int] = set()
    while (group := search.next_group()) is not None:
        calls += 1
        assert calls < 40
        made = inputs(*(many[ref] for ref in group.refs))
        ids = ["same" if same and one.record.ref in same else one.record.key.id.strip().casefold() for one in made]
        if len(set(ids)) < len(ids):
            assert search.rejected(made, says(made, [])).outcomes == ()
        else:
            through.update(group.refs)
            search.accepted(made)
    assert through == many.keys()
    return calls


def test_records_that_vanish_are_dropped() -> None:
    search = Searched(range(10), proven=True)
    search.next_group()
    search.vanished([0, 1])
    group = search.next_group()
    assert group is not None
    assert group.refs == tuple(range(2, 10))
    search.vanished(range(10))
    assert search.next_group() is None
    assert search.holding() == set()


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(1, 40),
    data=st.data(),
    how=st.sampled_from(["mute", "trace", "ids", "names"]),
    flows=st.booleans(),
)
def test_an_isolation_ends_and_only_culprits_pay(count: int, data: st.DataObject, how: str, flows: bool) -> None:
    """For any culprits and any way of telling: every record is taken, judged, or left for later."""
    culprits = data.draw(st.sets(st.integers(0, count - 1), max_size=8))

    def says(_: list[Input], found: list[Input]) -> Complaint:
        return Complaint(
            "VALIDATION_ERROR",
            "no",
            ids=frozenset(one.record.key.id for one in found) if how == "ids" else frozenset(),
            trace_ids=frozenset(one.trace_id for one in found[:1]) if how == "trace" else frozenset(),
            named=read_complaint({"errors": [{"context": {"propertyName": ["p0"]}}]}).named if how == "names" else (),
        )

    many = records(count, 3)
    trial = isolate(many, lambda one: one.ref in culprits and "p0" in one.values, says=says, flows=flows)
    if trial.misconfigured is not None:
        assert len(culprits) >= 3
        assert trial.outcomes == {}
        return
    waiting = {one.ref for one in trial.exhausted}
    assert trial.outcomes.keys() <= culprits
    for ref in range(count):
        if ref not in culprits and ref not in waiting:
            assert (ref, "p0") in trial.taken
        if ref in culprits and ref not in waiting:
            assert ref in trial.outcomes
