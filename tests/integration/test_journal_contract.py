"""The journal's contract, run against every backend: what §3 of the architecture promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.errors import JournalFullError
from bridge.journal.event_log import EventFilter, KeptEvent, Remapped
from bridge.journal.retry_log import Filter
from bridge.journal.store import Journal
from bridge.model import (
    Category,
    Delivered,
    Event,
    Ignored,
    Intake,
    Lane,
    Outcome,
    Parked,
    Pause,
    PendingRecord,
    PropertyUpdate,
    Reason,
    Refused,
    RetryLater,
    Scope,
    Taken,
    to_us,
)
from bridge.settings import Journal as JournalSettings
from tests.builders import call, event, key
from tests.fakes import FakeClock

#: Examples of one test share a journal, but no events or records.
EXAMPLES = count()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def url(journal_url: str) -> str:
    return journal_url


@pytest.fixture
def journal(url: str, clock: FakeClock) -> Iterator[Journal]:
    opened = Journal(settings=JournalSettings(url=url), clock=clock)
    yield opened
    opened.close()


def take(journal: Journal, clock: FakeClock, *, exclude: Sequence[int] = ()) -> list[PendingRecord]:
    refs = list(dict.fromkeys(found.ref for found in journal.due(limit=1000, exclude=set(exclude))))
    return sorted(journal.take(refs, began_at_us=to_us(clock.now())).records, key=lambda record: record.key)


def settle(
    journal: Journal, clock: FakeClock, taken: Sequence[PendingRecord], *outcomes: Outcome, doubtful: bool = False
) -> None:
    status = None if doubtful else 200
    journal.settle(taken, outcomes, call=call(taken, began=clock.now(), status=status), doubtful=doubtful)


def values(record: PendingRecord) -> dict[str, str]:
    return {name: value.value for name, value in record.values.items()}


# --- bytes --------------------------------------------------------------------------------------


def cut(journal: Journal, clock: FakeClock, refs: Sequence[int], max_bytes: int, **how: Any) -> Taken:
    return journal.take(refs, began_at_us=to_us(clock.now()), max_bytes=max_bytes, **how)


def test_what_does_not_fit_into_a_call_stays_due_as_it_was(journal: Journal, clock: FakeClock) -> None:
    """The first of those asked for goes in any case, and what fits beside it; the others keep no mark of a call."""
    wanted = {"c1": "x" * 500, "c2": "\N{GRINNING FACE}" * 150, "c3": "y" * 400, "c4": "z" * 40}
    journal.append([event(record, record, {"note": text}) for record, text in wanted.items()])
    refs = [due.ref for due in journal.due(limit=10, exclude=())]
    taken = cut(journal, clock, [refs[2], refs[0], refs[1], refs[3]], 1_000)
    assert [record.key.id for record in taken.records] == ["c3", "c1", "c4"]
    assert taken.left == {refs[1]: 610}
    assert taken.size == 500 + 400 + 40 + 3 * 10
    settle(journal, clock, taken.records, *(Delivered(record) for record in taken.records))
    assert [due.ref for due in journal.due(limit=10, exclude=())] == [refs[1]]
    [record] = cut(journal, clock, [refs[1]], 1_000).records
    assert (values(record), record.doubt_at_us) == ({"note": wanted["c2"]}, None)


def test_a_record_that_is_too_large_goes_in_parts_those_that_waited_longest_first(
    journal: Journal, clock: FakeClock
) -> None:
    """What was sent is settled, the rest stays due; what is changed meanwhile does not overtake it."""
    for at in range(5):
        journal.append([event(f"e{at}", "c1", {f"p{4 - at}": "x" * 400})])
    [due] = journal.due(limit=10, exclude=())
    [first] = cut(journal, clock, [due.ref], 1_000).records
    assert sorted(first.values) == ["p3", "p4"]
    journal.append([event("e9", "c1", {"p3": "newer"})])
    settle(journal, clock, [first], Delivered(first))
    seen = []
    while journal.due(limit=10, exclude=()):
        [part] = cut(journal, clock, [due.ref], 1_000).records
        seen.append(sorted(part.values))
        settle(journal, clock, [part], Delivered(part))
    assert seen == [["p1", "p2"], ["p0", "p3"]]


def test_a_value_that_is_too_large_by_itself_is_taken_alone(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", "c1", {"a": "x" * 5_000, "b": "y" * 5_000}), event("e2", "c2", {"a": "small"})])
    refs = [due.ref for due in journal.due(limit=10, exclude=())]
    taken = cut(journal, clock, refs, 1_000)
    assert [list(record.values) for record in taken.records] == [["a"]]
    assert taken.size == 1_000
    assert list(taken.left) == refs[1:]


def test_only_some_properties_are_taken_whatever_else_waits(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", "c1", {f"p{at}": "x" * 400 for at in range(9)})])
    [due] = journal.due(limit=10, exclude=())
    taken = cut(journal, clock, [due.ref], 1_000, only={"p7", "p2", "p5"})
    assert sorted(taken.records[0].values) == ["p2", "p5", "p7"]
    assert cut(journal, clock, [due.ref], 1_000, only={"other"}).records == []
    assert journal.due(limit=10, exclude=())


# --- append -------------------------------------------------------------------------------------


def test_an_appended_event_is_due_with_its_values(journal: Journal, clock: FakeClock) -> None:
    appended = journal.append([event(properties={"tier": "gold", "city": "Lugo"})])
    assert [receipt.intake for receipt in appended.receipts] == [Intake.ACCEPTED]
    [record] = take(journal, clock)
    assert (record.key, record.sources, values(record)) == (key(), ("acme",), {"tier": "gold", "city": "Lugo"})


def test_a_second_delivery_changes_nothing(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold"})])
    journal.append([event("e2", properties={"tier": "silver"})])
    appended = journal.append([event("e1", properties={"tier": "gold"}), event("e1")])
    assert [receipt.intake for receipt in appended.receipts] == [Intake.DUPLICATE] * 2
    assert not any(receipt.conflict for receipt in appended.receipts)
    assert values(take(journal, clock)[0]) == {"tier": "silver"}


def test_a_duplicate_in_one_request_takes_effect_once(journal: Journal) -> None:
    appended = journal.append([event("e1"), event("e1"), event("e2")])
    assert [receipt.intake for receipt in appended.receipts] == [Intake.ACCEPTED, Intake.DUPLICATE, Intake.ACCEPTED]


def test_one_id_of_two_sources_is_two_events(journal: Journal) -> None:
    appended = journal.append([event("e1", source="a"), event("e1", source="b")])
    assert [receipt.intake for receipt in appended.receipts] == [Intake.ACCEPTED] * 2


def with_content(content_hash: str, **asked: Any) -> Event:
    return replace(event("e1", **asked), content_hash=content_hash)


def test_the_same_id_that_asks_for_something_else_is_an_event_of_its_own(journal: Journal, clock: FakeClock) -> None:
    first = with_content("p1:0123456789:", properties={"tier": "gold"})
    other = with_content("p2:ab0123456789:", properties={"city": "Lugo"}, record="8")
    third = with_content("p3:cd0123456789:", properties={"tier": "iron"})
    same = with_content("p4:0123456789:", properties={"tier": "gold"})  # asks for what the first asked for
    old = with_content("p2", properties={"city": "Lugo"}, record="8")  # as an older version told it
    told = [
        (receipt.event_id, receipt.intake, receipt.conflict)
        for group in ([first], [other, third, other, same], [old, third, first])
        for receipt in journal.append(group).receipts
    ]
    assert told == [
        ("e1", Intake.ACCEPTED, False),
        ("e1~ab012345", Intake.ACCEPTED, True),
        ("e1~cd012345", Intake.ACCEPTED, True),
        ("e1~ab012345", Intake.DUPLICATE, False),
        ("e1", Intake.DUPLICATE, False),
        ("e1~p2", Intake.ACCEPTED, True),
        ("e1~cd012345", Intake.DUPLICATE, False),
        ("e1", Intake.DUPLICATE, False),
    ]
    assert {one.key.id: values(one) for one in take(journal, clock)} == {"7": {"tier": "iron"}, "8": {"city": "Lugo"}}


def test_an_event_of_an_older_version_is_compared_by_its_payload(journal: Journal) -> None:
    journal.append([with_content("p1")])
    receipts = journal.append([with_content("p1:0123456789:"), with_content("p2:0123456789:")]).receipts
    assert [(one.event_id, one.intake) for one in receipts] == [
        ("e1", Intake.DUPLICATE),
        ("e1~01234567", Intake.ACCEPTED),
    ]


def test_two_that_are_told_apart_by_no_eight_digits_are_told_apart_by_all(journal: Journal) -> None:
    journal.append([with_content("p1:00:")])
    receipts = journal.append([with_content("p2:abcdef0123:"), with_content("p3:abcdef0145:")]).receipts
    assert [(one.event_id, one.intake) for one in receipts] == [
        ("e1~abcdef01", Intake.ACCEPTED),
        ("e1~abcdef0145", Intake.ACCEPTED),
    ]


def test_an_event_without_updates_is_ignored_and_kept(journal: Journal, clock: FakeClock) -> None:
    [receipt] = journal.append([event(updates=())]).receipts
    assert receipt.intake is Intake.IGNORED
    assert take(journal, clock) == []
    assert journal.trace_event("e1")[0]["taken_as"] == "ignored"


# --- last writer wins ---------------------------------------------------------------------------


def test_an_older_event_never_overwrites_a_newer_value(journal: Journal, clock: FakeClock) -> None:
    now = clock.now()
    journal.append([event("new", properties={"tier": "gold"}, at=now - 10)])
    appended = journal.append([event("old", properties={"tier": "silver", "city": "Lugo"}, at=now - 20)])
    assert appended.merged.superseded == 1
    assert values(take(journal, clock)[0]) == {"tier": "gold", "city": "Lugo"}


def test_an_older_event_never_overwrites_a_delivered_newer_value(journal: Journal, clock: FakeClock) -> None:
    now = clock.now()
    journal.append([event("new", properties={"tier": "gold"}, at=now - 10)])
    taken = take(journal, clock)
    settle(journal, clock, taken, Delivered(taken[0]))
    journal.append([event("old", properties={"tier": "silver"}, at=now - 20)])
    assert take(journal, clock) == []
    assert journal.due(limit=10, exclude=()) == []


def test_at_equal_times_the_later_arrival_wins(journal: Journal, clock: FakeClock) -> None:
    at = clock.now() - 10
    journal.append([event("e1", properties={"tier": "gold"}, at=at), event("e2", properties={"tier": "silver"}, at=at)])
    assert values(take(journal, clock)[0]) == {"tier": "silver"}
    journal.append([event("e3", properties={"tier": "bronze"}, at=at)])
    assert values(take(journal, clock)[0]) == {"tier": "bronze"}


def test_an_event_without_a_time_is_the_newest_at_its_arrival(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold"}, at=clock.now() + 200)])
    journal.append([event("e2", properties={"tier": "silver"})])
    assert values(take(journal, clock)[0]) == {"tier": "silver"}


@pytest.mark.parametrize("ahead", [301.0, 86_400.0, 86_400.0 * 3650])
def test_a_time_too_far_ahead_freezes_nothing(journal: Journal, clock: FakeClock, ahead: float) -> None:
    appended = journal.append([event("e1", properties={"tier": "gold"}, at=clock.now() + ahead)])
    assert appended.merged.future == 1
    clock.advance(1)
    journal.append([event("e2", properties={"tier": "silver"}, at=clock.now())])
    assert values(take(journal, clock)[0]) == {"tier": "silver"}


def test_our_clock_a_day_ahead_does_not_hold_back_due_records(journal: Journal, clock: FakeClock) -> None:
    clock.jump(86_400)
    journal.append([event("e1")])
    clock.jump(-86_400)
    assert [record.key.id for record in take(journal, clock)] == ["7"]


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
@pytest.mark.parametrize("dated", [True, False])
def test_our_clock_a_day_off_freezes_no_value(journal: Journal, clock: FakeClock, jump: float, dated: bool) -> None:
    """What arrives while our clock is wrong gives way to what arrives after, with or without a time of its own."""
    real = clock.now()
    clock.jump(jump)
    journal.append([event("e1", properties={"tier": "gold"}), event("e2", properties={"city": "Lugo"}, at=real)])
    clock.jump(-jump)
    clock.advance(10)
    at = clock.now() - 5 if dated else None
    journal.append([event("e3", properties={"tier": "silver", "city": "Vigo"}, at=at)])
    assert values(take(journal, clock)[0]) == {"tier": "silver", "city": "Vigo"}


def test_a_doubt_noted_by_a_wrong_clock_is_over_at_once(journal: Journal, clock: FakeClock) -> None:
    clock.jump(86_400)
    journal.append([event("e1", properties={"tier": "gold"})])
    settle(journal, clock, take(journal, clock), doubtful=True)
    journal.append([event("e2", properties={"tier": "silver"})])
    taken = take(journal, clock)
    settle(journal, clock, taken, Delivered(taken[0]))
    clock.jump(-86_400)
    clock.advance(1)
    [again] = take(journal, clock)
    assert values(again) == {"tier": "silver"}
    settle(journal, clock, [again], Delivered(again))
    assert journal.due(limit=10, exclude=()) == []


def test_a_value_that_arrives_during_a_call_stays_due(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold", "city": "Lugo"})])
    taken = take(journal, clock)
    journal.append([event("e2", properties={"tier": "silver"})])
    settle(journal, clock, taken, Delivered(taken[0]))
    assert [values(record) for record in take(journal, clock)] == [{"tier": "silver"}]


def test_a_late_event_during_a_call_leaves_nothing_due(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold"}, at=clock.now())])
    taken = take(journal, clock)
    journal.append([event("e0", properties={"tier": "silver"}, at=clock.now() - 60)])
    settle(journal, clock, taken, Delivered(taken[0]))
    assert journal.due(limit=10, exclude=()) == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from(["1", "2", "3"]),
            st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["x", "y", "z", ""]), min_size=1),
            st.integers(-200, 200),
        ),
        min_size=1,
        max_size=25,
    ),
    cuts=st.sets(st.integers(0, 25), max_size=6),
    deliver=st.sets(st.integers(0, 25), max_size=3),
)
def test_merging_equals_applying_one_by_one_in_order_of_time(
    url: str,
    changes: list[tuple[str, dict[str, str], int]],
    cuts: set[int],
    deliver: set[int],
) -> None:
    """However events are grouped, shuffled and delivered in between, the newest value of each property stands."""
    clock = FakeClock()
    lane = Lane(f"example_{next(EXAMPLES)}")
    journal = Journal(settings=JournalSettings(url=url), clock=clock)
    crm: dict[tuple[str, str], str] = {}

    def flush() -> None:
        taken = take(journal, clock)
        for record in taken:
            crm.update({(record.key.id, name): value for name, value in values(record).items()})
        settle(journal, clock, taken, *(Delivered(record) for record in taken))

    group: list[Event] = []
    for at, (record, properties, offset) in enumerate(changes):
        group.append(event(f"e{at} of {lane}", record, properties, at=clock.now() + offset, lane=lane))
        if at in cuts:
            journal.append(group)
            group = []
        if at in deliver:
            flush()
    if group:
        journal.append(group)
    flush()
    model: dict[tuple[str, str], tuple[int, int, str]] = {}
    for at, (record, properties, offset) in enumerate(changes):
        for name, value in properties.items():
            model[record, name] = max(model.get((record, name), (-999, -1, "")), (offset, at, value))
    assert crm == {address: newest[2] for address, newest in model.items()}
    assert journal.due(limit=10, exclude=()) == []
    journal.close()


# --- unchanged, refused -------------------------------------------------------------------------


def test_a_source_may_leave_out_confirmed_values(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold"})])
    taken = take(journal, clock)
    settle(journal, clock, taken, Delivered(taken[0]))
    appended = journal.append([event("e2", properties={"tier": "gold", "city": "Lugo"}, skip_unchanged=True)])
    assert appended.merged.unchanged == 1
    assert values(take(journal, clock)[0]) == {"city": "Lugo"}


def test_an_unconfirmed_value_is_never_left_out_as_unchanged(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold"}, skip_unchanged=True)])
    journal.append([event("e2", properties={"tier": "gold"}, skip_unchanged=True)])
    assert values(take(journal, clock)[0]) == {"tier": "gold"}


def refuse(journal: Journal, clock: FakeClock, name: str = "tier") -> None:
    taken = take(journal, clock)
    reason = Reason("VALIDATION_ERROR", f"{name} was not one of the allowed options")
    settle(journal, clock, taken, Refused(taken[0], {name: reason}))


def test_a_refused_property_waits_and_the_others_go_on(journal: Journal, clock: FakeClock) -> None:
    journal.append([event(properties={"tier": "platinum", "city": "Lugo"})])
    refuse(journal, clock)
    assert values(take(journal, clock)[0]) == {"city": "Lugo"}
    [entry] = journal.entries(Filter())
    assert (entry.state, entry.category, entry.properties, entry.event_ids) == (
        "parked",
        "VALIDATION_ERROR",
        ("tier",),
        ("e1",),
    )
    assert entry.message == "tier was not one of the allowed options"


def test_an_older_value_is_not_sent_in_place_of_a_refused_one(journal: Journal, clock: FakeClock) -> None:
    now = clock.now()
    journal.append([event("new", properties={"tier": "platinum"}, at=now)])
    refuse(journal, clock)
    journal.append([event("old", properties={"tier": "gold"}, at=now - 60)])
    assert journal.due(limit=10, exclude=()) == []


def test_a_refused_value_repeated_within_the_hour_stays_refused(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "platinum"})])
    refuse(journal, clock)
    clock.advance(1800)
    appended = journal.append([event("e2", properties={"tier": "platinum"})])
    assert appended.merged.refused == 1
    assert journal.due(limit=10, exclude=()) == []
    clock.advance(1801)
    journal.append([event("e3", properties={"tier": "platinum"})])
    assert values(take(journal, clock)[0]) == {"tier": "platinum"}


def test_another_value_for_a_refused_property_closes_the_entry(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "platinum"})])
    refuse(journal, clock)
    journal.append([event("e2", properties={"tier": "gold"})])
    assert journal.entries(Filter()) == []
    assert values(take(journal, clock)[0]) == {"tier": "gold"}


def test_an_invalid_property_waits_and_its_older_value_is_not_sent(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold", "city": "Lugo"})])
    journal.append([event("e2", properties={}, invalid={"tier": "not one of gold, silver"})])
    assert values(take(journal, clock)[0]) == {"city": "Lugo"}
    [entry] = journal.entries(Filter())
    assert (entry.category, entry.message) == (Category.UNMAPPABLE, "not one of gold, silver")


# --- park, retry, ignore ------------------------------------------------------------------------


def test_a_parked_record_waits_until_a_new_event_brings_it_back_merged(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold", "city": "Lugo"})])
    taken = take(journal, clock)
    settle(journal, clock, taken, Parked(taken[0], Reason("OBJECT_NOT_FOUND", "not there")))
    assert journal.due(limit=10, exclude=()) == []
    assert [entry.state for entry in journal.entries(Filter())] == ["parked"]
    journal.append([event("e2", properties={"tier": "silver"}, source="other")])
    assert values(take(journal, clock)[0]) == {"tier": "silver", "city": "Lugo"}
    assert journal.entries(Filter()) == []


def test_a_record_that_changed_during_the_call_is_not_parked(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold"})])
    taken = take(journal, clock)
    journal.append([event("e2", properties={"tier": "silver"})])
    settle(journal, clock, taken, Parked(taken[0], Reason("OBJECT_NOT_FOUND", "not there")))
    assert values(take(journal, clock)[0]) == {"tier": "silver"}


def test_a_retried_record_is_due_after_its_delay_and_counts(journal: Journal, clock: FakeClock) -> None:
    journal.append([event()])
    taken = take(journal, clock)
    settle(journal, clock, taken, RetryLater(taken[0], Reason("INTERNAL_ERROR", "again"), 5.0))
    assert take(journal, clock) == []
    [entry] = journal.entries(Filter(state="retrying"))
    assert (entry.attempts, entry.next_attempt_us) == (1, to_us(clock.now() + 5))
    clock.advance(5.1)
    [record] = take(journal, clock)
    assert record.attempts == 1
    settle(journal, clock, [record], Delivered(record))
    assert journal.entries(Filter()) == []


def test_an_event_for_a_record_that_waits_out_a_failure_does_not_hurry_it(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1")])
    taken = take(journal, clock)
    settle(journal, clock, taken, RetryLater(taken[0], Reason("INTERNAL_ERROR", "again"), 5.0))
    journal.append([event("e2", properties={"tier": "silver"}), event("e3", source="other")])
    assert take(journal, clock) == []
    clock.advance(5.1)
    assert len(take(journal, clock)) == 1


def test_ignored_values_are_settled_but_not_taken_for_confirmed(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1")])
    taken = take(journal, clock)
    settle(journal, clock, taken, Ignored(taken[0]))
    assert journal.due(limit=10, exclude=()) == []
    journal.append([event("e2", skip_unchanged=True)])
    assert values(take(journal, clock)[0]) == {"tier": "gold"}


def test_records_without_an_outcome_stay_due(journal: Journal, clock: FakeClock) -> None:
    journal.append([event()])
    settle(journal, clock, take(journal, clock))
    assert len(take(journal, clock)) == 1


# --- due ----------------------------------------------------------------------------------------


def test_due_gives_every_source_its_oldest_records(journal: Journal, clock: FakeClock) -> None:
    journal.append([event(f"a{at}", str(at), source="a") for at in range(20)])
    clock.advance(1)
    journal.append([event("b0", "100", source="b"), event("b1", "101", source="b")])
    found = journal.due(limit=5, exclude={1, 2})
    assert [(item.source, item.ref) for item in found] == [
        ("a", 3),
        ("a", 4),
        ("a", 5),
        ("a", 6),
        ("a", 7),
        ("b", 21),
        ("b", 22),
    ]


def test_a_record_due_for_two_sources_is_taken_once_with_all_values(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold"}, source="a")])
    journal.append([event("e2", properties={"city": "Lugo"}, source="b")])
    [record] = take(journal, clock)
    assert (record.sources, values(record)) == (("a", "b"), {"tier": "gold", "city": "Lugo"})
    settle(journal, clock, [record], Delivered(record))
    assert journal.due(limit=10, exclude=()) == []


# --- doubt --------------------------------------------------------------------------------------


def test_a_value_confirmed_in_doubt_is_sent_once_more(journal: Journal, clock: FakeClock) -> None:
    """Call 1 (gold) gets no answer and may still be applied; silver is confirmed and sent again at the end."""
    journal.append([event("e1", properties={"tier": "gold"})])
    settle(journal, clock, take(journal, clock), doubtful=True)
    journal.append([event("e2", properties={"tier": "silver"})])
    clock.advance(1)
    taken = take(journal, clock)
    settle(journal, clock, taken, Delivered(taken[0]))
    assert take(journal, clock) == []
    clock.advance(120)
    [again] = take(journal, clock)
    assert values(again) == {"tier": "silver"}
    settle(journal, clock, [again], Delivered(again))
    clock.advance(1000)
    assert journal.due(limit=10, exclude=()) == []


def test_the_same_value_confirmed_in_doubt_is_not_sent_again(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold"})])
    settle(journal, clock, take(journal, clock), doubtful=True)
    clock.advance(1)
    taken = take(journal, clock)
    settle(journal, clock, taken, Delivered(taken[0]))
    clock.advance(1000)
    assert take(journal, clock) == []


def test_a_new_value_does_not_wait_for_the_end_of_a_doubt(journal: Journal, clock: FakeClock) -> None:
    """The record waits to be sent again; what arrives meanwhile goes at once, and all of it again at the end."""
    journal.append([event("e1", properties={"tier": "gold", "city": "Lugo"})])
    settle(journal, clock, take(journal, clock), doubtful=True)
    journal.append([event("e2", properties={"tier": "silver"})])
    clock.advance(1)
    taken = take(journal, clock)
    settle(journal, clock, taken, Delivered(taken[0]))
    journal.append([event("e3", properties={"city": "Vigo"})])
    [now] = take(journal, clock)
    assert values(now) == {"city": "Vigo"}
    settle(journal, clock, [now], Refused(now, {"city": Reason("VALIDATION_ERROR", "no")}))
    assert take(journal, clock) == []
    clock.advance(120)
    assert [values(record) for record in take(journal, clock)] == [{"tier": "silver"}]


def silver_confirmed_in_doubt(journal: Journal, clock: FakeClock) -> None:
    """A call with gold gets no answer, one with silver is confirmed ten seconds later."""
    journal.append([event("e1", properties={"tier": "gold"})])
    settle(journal, clock, take(journal, clock), doubtful=True)
    clock.advance(10)
    journal.append([event("e2", properties={"tier": "silver"})])
    taken = take(journal, clock)
    settle(journal, clock, taken, Delivered(taken[0]))


def sent_at_the_end(journal: Journal, clock: FakeClock) -> list[dict[str, str]]:
    """What goes out when every doubt is over, and then nothing any more."""
    found = []
    for _ in range(10):
        clock.advance(121)
        taken = take(journal, clock)
        found += [values(record) for record in taken]
        settle(journal, clock, taken, *map(Delivered, taken))
    assert journal.due(limit=10, exclude=()) == []
    return found


def test_another_propertys_doubt_does_not_end_one(journal: Journal, clock: FakeClock) -> None:
    silver_confirmed_in_doubt(journal, clock)
    clock.advance(10)
    journal.append([event("e3", properties={"city": "Lugo"})])
    [other] = take(journal, clock)
    assert values(other) == {"city": "Lugo"}
    settle(journal, clock, [other], doubtful=True)
    [other] = take(journal, clock)
    settle(journal, clock, [other], Delivered(other))
    assert {"tier": "silver"}.items() <= sent_at_the_end(journal, clock)[0].items()


def test_a_value_that_is_sent_once_more_without_an_answer_is_sent_again(journal: Journal, clock: FakeClock) -> None:
    silver_confirmed_in_doubt(journal, clock)
    clock.advance(121)
    [again] = take(journal, clock)
    assert values(again) == {"tier": "silver"}
    settle(journal, clock, [again], doubtful=True)
    assert sent_at_the_end(journal, clock) == [{"tier": "silver"}]


def large_confirmed_in_doubt(journal: Journal, clock: FakeClock) -> int:
    """A call with four large values gets no answer; newer ones are confirmed in parts, as one call cannot hold them."""
    parts = ("p1", "p2", "p3", "p4")
    journal.append([event("e1", properties=dict.fromkeys(parts, "o" * 400))])
    settle(journal, clock, take(journal, clock), doubtful=True)
    clock.advance(1)
    journal.append([event("e2", properties={"p5": "n" * 400})])
    journal.append([event("e3", properties=dict.fromkeys(parts, "n" * 400))])
    [due] = journal.due(limit=10, exclude=())
    assert len(parts_sent(journal, clock, due.ref)) > 1
    return due.ref


def parts_sent(journal: Journal, clock: FakeClock, ref: int, *, doubtful: Sequence[int] = ()) -> list[list[str]]:
    """What goes now, call by call, each confirmed but the `doubtful`."""
    sent: list[list[str]] = []
    for _ in range(20):
        taken = cut(journal, clock, [due.ref for due in journal.due(limit=10, exclude=())], 1_000).records
        for record in taken:
            assert record.ref == ref
            assert set(values(record).values()) == {"n" * 400}
            is_doubtful = len(sent) in doubtful
            sent.append(sorted(record.values))
            settle(journal, clock, [record], *([] if is_doubtful else [Delivered(record)]), doubtful=is_doubtful)
        clock.advance(1)
    return sent


@pytest.mark.parametrize("by_s", [0.0, 3600.0, -3600.0])
def test_a_record_too_large_for_one_call_is_sent_once_more_in_full(
    journal: Journal, clock: FakeClock, by_s: float
) -> None:
    """In parts, each value once, whatever the clock was set to; then nothing any more."""
    ref = large_confirmed_in_doubt(journal, clock)
    clock.jump(by_s)
    journal.clock_was_set(to_us(by_s))
    clock.advance(121)
    sent = parts_sent(journal, clock, ref)
    assert sorted(name for part in sent for name in part) == ["p1", "p2", "p3", "p4", "p5"]
    clock.advance(1000)
    assert journal.due(limit=10, exclude=()) == []


@pytest.mark.parametrize("doubtful", [0, 1, 2])
def test_a_part_that_is_sent_once_more_without_an_answer_is_sent_again(
    journal: Journal, clock: FakeClock, doubtful: int
) -> None:
    ref = large_confirmed_in_doubt(journal, clock)
    clock.advance(121)
    sent = parts_sent(journal, clock, ref, doubtful=[doubtful])
    clock.advance(121)
    sent += parts_sent(journal, clock, ref)
    confirmed = [name for at, part in enumerate(sent) if at != doubtful for name in part]
    assert set(confirmed) == {"p1", "p2", "p3", "p4", "p5"}
    clock.advance(1000)
    assert journal.due(limit=10, exclude=()) == []


def test_of_a_doubtful_record_the_rest_is_sent_once_more_after_one_property_was_alone(
    journal: Journal, clock: FakeClock
) -> None:
    """As an isolation does, which looks for the property that is refused."""
    ref = large_confirmed_in_doubt(journal, clock)
    clock.advance(121)
    [record] = cut(journal, clock, [ref], 1_000, only={"p3"}).records
    settle(journal, clock, [record], Delivered(record))
    rest = sorted(name for part in parts_sent(journal, clock, ref) for name in part)
    assert rest == ["p1", "p2", "p4", "p5"]


@pytest.mark.parametrize("by_s", [3600.0, -3600.0])
def test_a_clock_that_is_set_ends_no_doubt(journal: Journal, clock: FakeClock, by_s: float) -> None:
    silver_confirmed_in_doubt(journal, clock)
    clock.advance(10)
    clock.jump(by_s)
    journal.clock_was_set(to_us(by_s))
    assert take(journal, clock) == []
    assert sent_at_the_end(journal, clock) == [{"tier": "silver"}]


def test_a_crash_during_a_call_leaves_doubt(url: str, clock: FakeClock) -> None:
    """The mark is made before the call, so that the death of the process cannot lose it."""
    before = Journal(settings=JournalSettings(url=url), clock=clock)
    before.append([event("e1", properties={"tier": "gold"})])
    take(before, clock)
    before.close()
    after = Journal(settings=JournalSettings(url=url), clock=clock)
    after.append([event("e2", properties={"tier": "silver"})])
    clock.advance(1)
    taken = take(after, clock)
    settle(after, clock, taken, Delivered(taken[0]))
    clock.advance(121)
    assert [values(record) for record in take(after, clock)] == [{"tier": "silver"}]
    after.close()


# --- retry log ----------------------------------------------------------------------------------


@pytest.mark.parametrize("parked", [True, False])
def test_a_failure_behind_which_nothing_waits_any_more_is_none(
    journal: Journal, clock: FakeClock, parked: bool
) -> None:
    """The mapping finds the newer value invalid, and the older one must not be sent any more."""
    journal.append([event("e1")])
    [taken] = take(journal, clock)
    boom = Reason("INTERNAL_ERROR", "boom")
    settle(journal, clock, [taken], Parked(taken, boom) if parked else RetryLater(taken, boom, 5.0))
    journal.append([event("e2", properties={}, invalid={"tier": "is no number"})])
    clock.advance(10)
    assert take(journal, clock) == []
    [entry] = journal.entries(Filter())
    assert (entry.category, entry.event_ids) == ("UNMAPPABLE", ("e2",))
    assert journal.refresh_figures().entries == (("parked", "UNMAPPABLE", 1),)


@pytest.mark.parametrize(
    "outcome",
    [Delivered, Ignored, lambda one: Refused(one, dict.fromkeys(one.values, Reason("VALIDATION_ERROR", "no")))],
)
def test_what_waits_of_a_record_that_goes_on_changing_is_as_old_as_its_oldest_value(
    journal: Journal, clock: FakeClock, outcome: Callable[[PendingRecord], Outcome]
) -> None:
    journal.append([event("e", at=clock.now())])
    for turn in range(50):
        taken = take(journal, clock)
        clock.advance(1)
        journal.append([event(f"e{turn}", properties={"tier": f"{turn}"}, at=clock.now())])
        clock.advance(1)
        settle(journal, clock, taken, *map(outcome, taken))
    assert journal.refresh_figures().oldest_pending_us == to_us(clock.now() - 1)


def as_kept(mapped: dict[str, Remapped]) -> Callable[[KeptEvent], Remapped | None]:
    return lambda kept: mapped.get(kept.event_id)


def remapped(properties: dict[str, str], record: str = "7") -> Remapped:
    return Remapped((PropertyUpdate(key(record), properties),))


def test_replay_maps_again_and_makes_due_now(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "platinum", "city": "Lugo"})])
    refuse(journal, clock)
    taken = take(journal, clock)
    settle(journal, clock, taken, Delivered(taken[0]))
    journal.replay(journal.entries(Filter()), as_kept({"e1": remapped({"tier": "gold", "city": "Lugo"})}))
    assert journal.entries(Filter()) == []
    assert values(take(journal, clock)[0]) == {"tier": "gold", "city": "Lugo"}


def test_replay_never_overwrites_a_newer_value(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "platinum", "city": "Lugo"}, at=clock.now() - 60)])
    refuse(journal, clock)
    taken = take(journal, clock)
    settle(journal, clock, taken, Delivered(taken[0]))
    journal.append([event("e2", properties={"city": "Vigo"}, at=clock.now() - 50)])
    journal.replay(journal.entries(Filter()), as_kept({"e1": remapped({"tier": "gold", "city": "Lugo"})}))
    assert values(take(journal, clock)[0]) == {"tier": "gold", "city": "Vigo"}


def test_replay_withdraws_what_the_event_no_longer_asks(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "platinum", "city": "Lugo"})])
    taken = take(journal, clock)
    settle(journal, clock, taken, Parked(taken[0], Reason("OBJECT_NOT_FOUND", "not there")))
    journal.replay(journal.entries(Filter()), as_kept({"e1": remapped({"city": "Vigo"})}))
    assert values(take(journal, clock)[0]) == {"city": "Vigo"}


def test_a_replay_during_a_call_is_not_settled_by_that_call(journal: Journal, clock: FakeClock) -> None:
    """The replayed value keeps its `n`, but the call that is under way carried another revision."""
    journal.append([event("e1", properties={"tier": "gold"})])
    taken = take(journal, clock)
    settle(journal, clock, taken, RetryLater(taken[0], Reason("INTERNAL_ERROR", "again"), 0.0))
    again = take(journal, clock)
    journal.replay(journal.entries(Filter()), as_kept({"e1": remapped({"tier": "silver"})}))
    settle(journal, clock, again, Delivered(again[0]))
    assert [values(record) for record in take(journal, clock)] == [{"tier": "silver"}]


def test_replay_of_a_source_that_is_gone_sends_the_kept_values(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "platinum"})])
    refuse(journal, clock)
    journal.replay(journal.entries(Filter()), lambda _: None)
    assert values(take(journal, clock)[0]) == {"tier": "platinum"}


def test_an_unmappable_event_waits_and_replay_maps_it(journal: Journal, clock: FakeClock) -> None:
    [receipt] = journal.append([event("e1", updates=(), unmappable="record id is missing")]).receipts
    assert receipt.intake is Intake.PARKED
    [entry] = journal.entries(Filter())
    assert (entry.record, entry.category, entry.event_ids) == (None, Category.UNMAPPABLE, ("e1",))
    journal.replay([entry], as_kept({"e1": remapped({"tier": "gold"})}))
    assert journal.entries(Filter()) == []
    assert values(take(journal, clock)[0]) == {"tier": "gold"}


def test_discard_gives_up_and_older_values_stay_unsent(journal: Journal, clock: FakeClock) -> None:
    now = clock.now()
    journal.append([event("e1", properties={"tier": "platinum"}, at=now)])
    refuse(journal, clock)
    journal.append([event("x", updates=(), unmappable="record id is missing")])
    assert journal.discard(journal.entries(Filter())).values == 2
    assert journal.entries(Filter()) == []
    journal.append([event("e0", properties={"tier": "gold"}, at=now - 60)])
    assert journal.due(limit=10, exclude=()) == []


def test_filters_narrow_the_retry_log(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", "1", source="a"), event("e2", "2", source="b"), event("e3", "3", source="b")])
    taken = take(journal, clock)
    missing = Reason("OBJECT_NOT_FOUND", "not there")
    settle(
        journal,
        clock,
        taken,
        Parked(taken[0], missing),
        Parked(taken[1], missing),
        RetryLater(taken[2], Reason("INTERNAL_ERROR", "again"), 60),
    )

    def records(**chosen: object) -> list[str | None]:
        return [entry.record for entry in journal.entries(Filter(**chosen))]  # type: ignore[arg-type]  # a test table

    assert records() == ["1", "2", "3"]
    assert records(state="retrying") == ["3"]
    assert records(source="b") == ["2", "3"]
    assert records(category="OBJECT_NOT_FOUND", source="b") == ["2"]
    assert records(record="1") == ["1"]
    assert records(since_us=to_us(clock.now() + 1)) == []
    assert records(before_us=to_us(clock.now() + 1)) == ["1", "2", "3"]
    assert records(ids=(journal.entries(Filter())[1].id, "nonsense", "record-x")) == ["2"]
    assert records(ids=("nonsense",)) == []


# --- figures, retention, limits -----------------------------------------------------------------


def test_figures_count_what_waits_and_what_is_parked(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", "1"), event("e2", "2")])
    taken = take(journal, clock)
    settle(journal, clock, taken, Parked(taken[0], Reason("OBJECT_NOT_FOUND", "not there")))
    figures = journal.refresh_figures(delivery={"in_flight": 1})
    assert (figures.pending, figures.parked, figures.retrying) == (1, 1, 0)
    assert figures.oldest_pending_us == to_us(clock.now())
    assert journal.figures() == figures


def test_pauses_survive(journal: Journal) -> None:
    pause = Pause(Scope.OBJECT_TYPE, "partner_clients", "forbidden", "no scope", 1, 2)
    journal.save_pauses([pause])
    assert list(journal.load_pauses()) == [pause]


def test_retention_prunes_what_is_settled_and_keeps_what_waits(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("done", "1"), event("waits", "2"), event("x", updates=(), unmappable="no id")])
    taken = take(journal, clock)
    settle(journal, clock, taken, Delivered(taken[0]), Parked(taken[1], Reason("OBJECT_NOT_FOUND", "not there")))
    clock.advance(8 * 86_400)
    journal.prune()
    assert journal.trace_event("done") == []
    assert len(journal.trace_event("waits")) == 1
    assert len(journal.trace_event("x")) == 1
    assert journal.trace_record("1")[0]["values"] != []
    clock.advance(30 * 86_400)
    for _ in range(3):
        journal.prune()
    assert journal.trace_record("1") == []
    assert len(journal.entries(Filter())) == 2


def test_a_value_is_remembered_after_its_event_is_gone(journal: Journal, clock: FakeClock) -> None:
    now = clock.now()
    journal.append([event("e1", at=now)])
    taken = take(journal, clock)
    settle(journal, clock, taken, Delivered(taken[0]))
    clock.advance(8 * 86_400)
    journal.prune()
    journal.append([event("e0", properties={"tier": "silver"}, at=now - 60)])
    assert take(journal, clock) == []


def test_a_value_that_is_repeated_is_remembered_from_its_last_repetition_on(journal: Journal, clock: FakeClock) -> None:
    """It was delivered once, and left out each time since."""
    for day in range(60):
        journal.append([event(f"e{day}", at=clock.now(), skip_unchanged=True)])
        taken = take(journal, clock)
        assert len(taken) == (day == 0)
        settle(journal, clock, taken, *map(Delivered, taken))
        clock.advance(86_400)
        for _ in range(3):
            journal.prune()
    journal.append([event("late", properties={"tier": "silver"}, at=clock.now() - 2 * 86_400)])
    assert take(journal, clock) == []
    clock.advance(31 * 86_400)
    for _ in range(3):
        journal.prune()
    assert journal.trace_record("7") == []


def test_newer_values_are_known_as_long_as_older_events_may_be_replayed(url: str, clock: FakeClock) -> None:
    journal = Journal(settings=JournalSettings(url=url, retention_s=7 * 86_400, remember_s=86_400), clock=clock)
    journal.append([event("newer", at=clock.now())])
    taken = take(journal, clock)
    settle(journal, clock, taken, Delivered(taken[0]))
    clock.advance(6 * 86_400)
    journal.append([event("older", properties={"tier": "silver"}, at=clock.now() - 7 * 86_400)])
    for _ in range(3):
        journal.prune()
    journal.replay_events(EventFilter(), as_kept({"older": remapped({"tier": "silver"})}))
    assert take(journal, clock) == []
    journal.close()


def test_a_full_journal_refuses_and_opens_again(url: str, clock: FakeClock) -> None:
    journal = Journal(settings=JournalSettings(url=url, max_pending=20), clock=clock)
    journal.append([event(f"e{at}", str(at)) for at in range(20)])
    journal.refresh_figures()
    clock.advance(1.1)
    with pytest.raises(JournalFullError, match="max_pending 20"):
        journal.append([event("more")])
    taken = take(journal, clock)
    settle(journal, clock, taken, *(Delivered(record) for record in taken[:1]))
    journal.refresh_figures()
    clock.advance(1.1)
    with pytest.raises(JournalFullError):
        journal.append([event("more")])
    settle(journal, clock, taken, *(Delivered(record) for record in taken))
    journal.refresh_figures()
    clock.advance(1.1)
    assert journal.append([event("more")]).receipts[0].intake is Intake.ACCEPTED
    journal.close()


# --- stories ------------------------------------------------------------------------------------


def test_trace_tells_every_fate_of_an_event(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold", "city": "Lugo", "name": "A", "note": "n"})])
    refuse(journal, clock, "name")
    taken = take(journal, clock)
    settle(journal, clock, taken, Delivered(taken[0]))
    clock.advance(1)
    journal.append([event("e2", properties={"tier": "silver"})])
    journal.append([event("e3", properties={"note": "m"})])
    [story] = journal.trace_event("e1")
    fates = {fate["property"]: fate for fate in story["records"][0]["properties"]}
    assert {name: fate["fate"] for name, fate in fates.items()} == {
        "tier": "superseded",
        "city": "delivered",
        "name": "refused",
        "note": "superseded",
    }
    assert fates["city"]["call"]["correlation_id"] == "c0ffee"
    assert fates["tier"]["by_event"] == "e2"
    assert fates["tier"]["delivered_before"]["correlation_id"] == "c0ffee"
    [record] = journal.trace_record("7")
    assert [asked["event"] for asked in record["events"]] == ["e3", "e2", "e1"]
    assert {value["property"]: value["state"] for value in record["values"]} == {
        "tier": "pending",
        "city": "delivered",
        "name": "refused",
        "note": "pending",
    }


def test_trace_of_an_unknown_id_is_empty(journal: Journal) -> None:
    assert journal.trace_event("nope") == []
    assert journal.trace_record("nope") == []


def test_lanes_are_told_apart(journal: Journal, clock: FakeClock) -> None:
    other = Lane("partner_services", "")
    journal.append([event("e1", "7"), event("e2", "7", lane=other)])
    assert {record.key for record in take(journal, clock)} == {key("7"), key("7", other)}
