"""Undo: mapping kept events again, sending known values once more, stopping delivery (§3 of the architecture)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.errors import JournalFullError
from bridge.journal.control import Resynced, ValueFilter
from bridge.journal.event_log import EventFilter, KeptEvent, Remap, Remapped
from bridge.journal.replay import Difference, Replayed
from bridge.journal.retry_log import Filter
from bridge.journal.store import Journal
from bridge.model import Delivered, Ignored, Parked, Pause, PropertyUpdate, Reason, RetryLater, Scope, to_us
from bridge.settings import Journal as JournalSettings
from tests.backends import verify
from tests.builders import LANE, event, key
from tests.empty_journal import prepare
from tests.fakes import FakeClock
from tests.integration.test_journal_contract import clock, journal, refuse, settle, take, url, values

__all__ = ["clock", "journal", "url"]  # fixtures

ALL = EventFilter()


def deliver(journal: Journal, clock: FakeClock, crm: dict[tuple[str, str], str] | None = None) -> None:
    """Confirm everything that is due."""
    taken = take(journal, clock)
    for record in taken:
        if crm is not None:
            crm.update({(record.key.id, name): value for name, value in values(record).items()})
    settle(journal, clock, taken, *(Delivered(record) for record in taken))


def mapping(**by_event: dict[str, str]) -> Remap:
    """Today's mapping: what each event asks of record 7."""
    return lambda kept: (
        Remapped((PropertyUpdate(key(), by_event[kept.event_id]),)) if by_event[kept.event_id] else Remapped(())
    )


def replay(
    journal: Journal, remap: Remap, chosen: EventFilter = ALL, *, dry_run: bool = False
) -> tuple[Replayed, list[Difference]]:
    found: list[Difference] = []
    return journal.replay_events(chosen, remap, dry_run=dry_run, differences=found.extend), found


def told(differences: Sequence[Difference]) -> set[tuple[str, str | None, str, str | None, str | None, str | None]]:
    return {(d.event, d.property, d.what, d.old, d.new, d.by) for d in differences}


# --- replay -------------------------------------------------------------------------------------


def test_a_delivered_value_that_maps_to_another_becomes_pending(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold", "city": "Lugo"})])
    deliver(journal, clock)
    done, differences = replay(journal, mapping(e1={"tier": "silver", "city": "Lugo"}))
    assert (done.events, done.unmapped) == (1, 0)
    assert told(differences) == {("e1", "tier", "replaced", "gold", "silver", None)}
    assert [values(record) for record in take(journal, clock)] == [{"tier": "silver"}]


def test_a_dry_run_tells_the_same_and_changes_nothing(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold", "city": "Lugo"}, at=clock.now() - 9)])
    journal.append([event("e2", properties={"city": "Vigo"}, at=clock.now() - 8)])
    deliver(journal, clock)
    remap = mapping(e1={"city": "gold", "tier": "Lugo", "zip": "1"}, e2={"tier": "Vigo"})
    _, foreseen = replay(journal, remap, dry_run=True)
    assert take(journal, clock) == []
    assert {value["property"]: value["value"] for value in journal.trace_record("7")[0]["values"]} == {
        "tier": "gold",
        "city": "Vigo",
    }
    _, differences = replay(journal, remap)
    assert foreseen == differences
    assert {difference.what for difference in replay(journal, remap, dry_run=True)[1]} == {"kept"}


def test_a_newer_value_is_kept_and_named(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold"}, at=clock.now() - 9)])
    journal.append([event("e2", properties={"tier": "bronze"}, at=clock.now() - 8)])
    deliver(journal, clock)
    _, differences = replay(journal, mapping(e1={"tier": "silver"}), EventFilter(ids=("e1",)))
    assert told(differences) == {("e1", "tier", "kept", "bronze", "silver", "e2")}
    assert take(journal, clock) == []


def test_a_property_newly_asked_for_overwrites_an_older_event_only(journal: Journal, clock: FakeClock) -> None:
    now = clock.now()
    journal.append([event("old", properties={"a": "1", "b": "1"}, at=now - 9)])
    journal.append([event("mid", properties={"x": "2"}, at=now - 8)])
    journal.append([event("new", properties={"b": "3"}, at=now - 7)])
    deliver(journal, clock)
    _, differences = replay(journal, mapping(mid={"x": "2", "a": "2", "b": "2"}), EventFilter(ids=("mid",)))
    assert told(differences) == {
        ("mid", "a", "replaced", "1", "2", None),
        ("mid", "b", "kept", "3", "2", "new"),
    }
    assert [values(record) for record in take(journal, clock)] == [{"a": "2"}]


def test_a_delivered_value_that_is_withdrawn_stays_in_the_crm_and_that_is_said(
    journal: Journal, clock: FakeClock
) -> None:
    journal.append([event("e1", properties={"tier": "gold", "city": "Lugo"})])
    deliver(journal, clock)
    _, [difference] = replay(journal, mapping(e1={"city": "Lugo"}))
    assert (difference.what, difference.property, difference.old, difference.new) == ("withdrawn", "tier", "gold", None)
    assert difference.note == "the CRM keeps the old value"
    assert take(journal, clock) == []
    assert [value["property"] for value in journal.trace_record("7")[0]["values"]] == ["city"]


def test_in_place_of_a_withdrawn_value_stands_the_next_newest_mapped_today(journal: Journal, clock: FakeClock) -> None:
    """The event that is replayed alone withdraws; the older one, which nobody chose, gives the value."""
    now = clock.now()
    journal.append([event("e0", properties={"a": "old a"}, at=now - 10)])
    journal.append([event("e1", properties={"a": "wrong a"}, at=now - 9)])
    deliver(journal, clock)
    remap = mapping(e0={"a": "old a, mended"}, e1={"b": "right b"})
    _, differences = replay(journal, remap, EventFilter(ids=("e1",)))
    assert told(differences) == {
        ("e1", "b", "set", None, "right b", None),
        ("e1", "a", "withdrawn", "wrong a", "old a, mended", "e0"),
    }
    assert [values(record) for record in take(journal, clock)] == [{"a": "old a, mended", "b": "right b"}]


def test_the_next_newest_is_not_sent_again_where_the_crm_has_it(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e0", properties={"a": "same"}, at=clock.now() - 10)])
    journal.append([event("e1", properties={"a": "same"}, at=clock.now() - 9)])
    deliver(journal, clock)
    replay(journal, mapping(e0={"a": "same"}, e1={}))
    assert take(journal, clock) == []
    assert journal.trace_record("7")[0]["values"][0]["event"] == "e0"


def test_an_older_event_that_newly_asks_takes_what_a_newer_one_gives_up(journal: Journal, clock: FakeClock) -> None:
    """Whatever their order in the log: e1 arrived first and is older, e2 gives `a` up."""
    now = clock.now()
    journal.append([event("e1", properties={"b": "1"}, at=now - 10)])
    journal.append([event("e2", properties={"a": "2"}, at=now - 9)])
    deliver(journal, clock)
    remap = mapping(e1={"a": "1"}, e2={"b": "2"})
    assert replay(journal, remap, dry_run=True)[1] == replay(journal, remap)[1]
    assert [values(record) for record in take(journal, clock)] == [{"a": "1", "b": "2"}]


def test_an_event_that_maps_to_another_record_leaves_the_first(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", "7", {"tier": "gold"})])
    replay(journal, lambda _: Remapped((PropertyUpdate(key("8"), {"tier": "gold"}),)))
    assert [(record.key.id, values(record)) for record in take(journal, clock)] == [("8", {"tier": "gold"})]
    [story] = journal.trace_event("e1")
    assert {asked["record"]: [fate["fate"] for fate in asked["properties"]] for asked in story["records"]} == {
        "7": [],
        "8": ["pending"],
    }
    replay(journal, mapping(e1={"tier": "gold"}))
    assert [(record.key.id, values(record)) for record in take(journal, clock)] == [("7", {"tier": "gold"})]


def test_a_value_found_invalid_today_waits_in_the_retry_log(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"tier": "gold"})])
    deliver(journal, clock)
    remap: Remap = lambda _: Remapped((PropertyUpdate(key(), {}, {"tier": "not a tier"}),))  # noqa: E731 (one line)
    _, [difference] = replay(journal, remap)
    assert (difference.what, difference.note) == ("refused", "not a tier; the CRM keeps the old value")
    assert [entry.properties for entry in journal.entries(Filter())] == [("tier",)]
    assert replay(journal, remap)[1] == []


def test_an_ignored_event_that_matches_today_is_mapped_and_the_other_way_round(
    journal: Journal, clock: FakeClock
) -> None:
    journal.append([event("e1", updates=()), event("e2", "8")])
    deliver(journal, clock)
    replay(journal, lambda kept: Remapped((PropertyUpdate(key(), {"a": "1"}),) if kept.event_id == "e1" else ()))
    assert [values(record) for record in take(journal, clock)] == [{"a": "1"}]
    outcomes = {logged.event: logged.outcome for logged in journal.events(ALL)}
    assert outcomes == {"e1": "pending", "e2": "ignored"}


def test_an_unmappable_event_can_be_mapped_today_and_a_discarded_one_stays_discarded(
    journal: Journal, clock: FakeClock
) -> None:
    journal.append([event("e1", updates=(), unmappable="no id"), event("e2", updates=(), unmappable="no id")])
    journal.discard([entry for entry in journal.entries(Filter()) if entry.event_ids == ("e2",)])
    mended = Remapped((PropertyUpdate(key(), {"a": "1"}),))
    done, differences = replay(journal, lambda kept: mended if kept.event_id == "e1" else Remapped((), "no name"))
    assert (done.events, done.unmapped) == (2, 1)
    assert [(d.event, d.what, d.note) for d in differences if d.what == "unmappable"] == [
        ("e1", "unmappable", "can be mapped now"),
        ("e2", "unmappable", "no name"),
    ]
    assert [values(record) for record in take(journal, clock)] == [{"a": "1"}]
    assert journal.entries(Filter()) == []
    assert {logged.event: logged.outcome for logged in journal.events(ALL)} == {"e1": "pending", "e2": "discarded"}


def test_events_of_a_source_that_is_gone_stay_as_they_are(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1")])
    done, differences = replay(journal, lambda _: None)
    assert (done.events, done.unmapped, differences) == (0, 1, [])
    assert len(take(journal, clock)) == 1


def test_a_replay_brings_a_parked_record_back_or_lets_it_rest(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", "7", {"a": "1"}), event("e2", "8", {"a": "1"})])
    taken = take(journal, clock)
    settle(journal, clock, taken, *(Parked(record, Reason("OBJECT_NOT_FOUND", "not there")) for record in taken))
    replay(journal, lambda kept: Remapped((PropertyUpdate(key(), {"a": "2"}),) if kept.event_id == "e1" else ()))
    assert [(record.key.id, values(record)) for record in take(journal, clock)] == [("7", {"a": "2"})]
    assert journal.entries(Filter()) == []


def test_a_replay_during_a_call_is_not_settled_by_it(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"a": "1", "b": "1"})])
    taken = take(journal, clock)
    replay(journal, mapping(e1={"a": "2", "b": "1"}))
    settle(journal, clock, taken, Delivered(taken[0]))
    assert [values(record) for record in take(journal, clock)] == [{"a": "2"}]


def test_a_retry_replay_withdraws_in_favour_of_the_next_newest_too(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e0", properties={"tier": "gold"}, at=clock.now() - 10)])
    journal.append([event("e1", properties={"tier": "platinum"}, at=clock.now() - 9)])
    refuse(journal, clock)
    journal.replay(journal.entries(Filter()), mapping(e0={"tier": "gold"}, e1={"city": "Lugo"}))
    assert journal.entries(Filter()) == []
    assert [values(record) for record in take(journal, clock)] == [{"tier": "gold", "city": "Lugo"}]


def test_a_swap_of_many_events_in_steps_leaves_newer_values(journal: Journal, clock: FakeClock) -> None:
    """1,000 events wrote two properties the wrong way round; one newer event lies in between."""
    now = clock.now()
    crm: dict[tuple[str, str], str] = {}
    for at in range(0, 1000, 250):
        journal.append(
            [event(f"e{n}", str(n % 200), {"a": f"b{n}", "b": f"a{n}"}, at=now - 5000 + n) for n in range(at, at + 250)]
        )
        deliver(journal, clock, crm)
    journal.append([event("newer", "7", {"a": "newest"}, at=now - 10)])
    deliver(journal, clock, crm)

    def remap(kept: KeptEvent) -> Remapped:
        if kept.event_id == "newer":
            return Remapped((PropertyUpdate(key(), {"a": "newest"}),))
        n = int(kept.event_id[1:])
        return Remapped((PropertyUpdate(key(str(n % 200)), {"a": f"a{n}", "b": f"b{n}"}),))

    looked: list[int] = []
    done = journal.replay_events(EventFilter(since_us=0), remap, progress=looked.append)
    assert (done.events, sum(looked)) == (1001, 1001)
    deliver(journal, clock, crm)
    model = {(str(n % 200), name): f"{name}{n}" for n in range(1000) for name in ("a", "b")} | {("7", "a"): "newest"}
    assert crm == model
    assert {d.what for d in replay(journal, remap)[1]} == {"kept"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), step=st.sampled_from([1, 2, 200]))
def test_replaying_everything_equals_having_mapped_it_so_from_the_beginning(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, data: st.DataObject, step: int
) -> None:
    """Whatever the two mappings, the order of arrival and the size of a step; a dry run foretells the end."""
    monkeypatch.setattr("bridge.journal.event_log.PAGE", step)
    asked = st.dictionaries(
        st.sampled_from("78"),
        st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"), min_size=1),
        max_size=2,
    )
    events = data.draw(st.lists(st.tuples(asked, asked, st.integers(-9, 9)), min_size=1, max_size=8))
    clock, folder = FakeClock(), tmp_path_factory.mktemp("journal")
    prepare(f"sqlite:///{folder}/journal.db")
    journal = Journal(settings=JournalSettings(url=f"sqlite:///{folder}/journal.db"), clock=clock)
    crm: dict[tuple[str, str], str] = {}
    delivered = data.draw(st.sets(st.integers(0, 8)))
    for at, (before, _, offset) in enumerate(events):
        updates = [PropertyUpdate(key(record), properties) for record, properties in before.items()]
        journal.append([event(f"e{at}", updates=updates, at=clock.now() - 60 + offset)])
        if at in delivered:
            deliver(journal, clock, crm)
        clock.advance(1)

    def remap(kept: KeptEvent) -> Remapped:
        today = events[int(kept.event_id[1:])][1]
        return Remapped(tuple(PropertyUpdate(key(record), properties) for record, properties in today.items()))

    foreseen = replay(journal, remap, dry_run=True)[1]
    differences = replay(journal, remap)[1]
    deliver(journal, clock, crm)
    wanted: dict[tuple[str, str], tuple[float, int, str]] = {}
    for at, (_, today, offset) in enumerate(events):
        for record, properties in today.items():
            for name, value in properties.items():
                # The time moves on by a second with each event; ties go to the later arrival.
                mine = (offset + at, at, value)
                wanted[record, name] = max(wanted.get((record, name), mine), mine)
    stand = {
        (record, value["property"]): value["value"]
        for record in "78"
        for story in journal.trace_record(record)
        for value in story["values"]
    }
    assert stand == {address: newest[2] for address, newest in wanted.items()}
    assert {address: crm[address] for address in stand} == stand
    assert journal.due(limit=9, exclude=()) == []
    assert [d for d in replay(journal, remap)[1] if d.what != "kept"] == []
    if step == 200:  # else what changes to and fro between steps is told from the journal's values
        assert foreseen == differences
    journal.close()
    verify(f"sqlite:///{folder}/journal.db")


# --- the event log ------------------------------------------------------------------------------


def test_every_outcome_is_listed_and_filtered(journal: Journal, clock: FakeClock) -> None:
    now = clock.now()
    journal.append([event("overtaken", "1", {"a": "1"}, at=now - 9), event("done", "1", {"a": "2"}, at=now - 8)])
    journal.append([event("unknown", "2"), event("parked", "3"), event("retried", "4"), event("gone", "5")])
    taken = take(journal, clock)
    missing = Reason("OBJECT_NOT_FOUND", "not there")
    settle(
        journal,
        clock,
        taken,
        Delivered(taken[0]),
        Ignored(taken[1]),
        Parked(taken[2], missing),
        RetryLater(taken[3], missing, 60),
        Parked(taken[4], missing),
    )
    journal.discard([entry for entry in journal.entries(Filter()) if entry.record == "5"])
    clock.advance(1)
    journal.append([event("same", "1", {"a": "2"}, skip_unchanged=True), event("late", "1", {"a": "3"}, at=now - 20)])
    journal.append([event("nothing", updates=()), event("nameless", updates=(), unmappable="no id")])
    journal.append([event("waits", "6"), event("bad", "7", {}, invalid={"a": "no"})])
    outcomes = {
        "overtaken": "superseded", "done": "superseded", "unknown": "unknown", "parked": "parked",
        "retried": "retrying", "gone": "discarded", "same": "unchanged", "late": "superseded", "nothing": "ignored",
        "nameless": "parked", "waits": "pending", "bad": "refused",
    }  # fmt: skip
    assert {logged.event: logged.outcome for logged in journal.events(ALL)} == outcomes
    for outcome in set(outcomes.values()):
        chosen = EventFilter(outcome=outcome)  # type: ignore[arg-type]  # a test table
        meant = {"parked", "refused"} if outcome == "parked" else {outcome}  # both are parked in the retry log
        assert {logged.event for logged in journal.events(chosen)} == {e for e, o in outcomes.items() if o in meant}

    def fates(event_id: str) -> list[str]:
        [story] = journal.trace_event(event_id)
        return [fate["fate"] for asked in story["records"] for fate in asked["properties"]]

    assert {name: fates(name) for name in outcomes if name not in {"nothing", "nameless"}} == {
        name: [outcome] for name, outcome in outcomes.items() if name not in {"nothing", "nameless"}
    }


def test_the_event_log_is_filtered_by_source_time_record_and_id(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", "1", source="a"), event("e2", "2", source="b")])
    clock.advance(10)
    journal.append([event("e1", "2", source="b"), event("e3", "3", source="a")])

    def found(**chosen: object) -> list[tuple[str, str]]:
        wanted = EventFilter(**chosen)  # type: ignore[arg-type]  # a test table
        logged = [(one.source, one.event) for one in journal.events(wanted)]
        assert journal.count_events(wanted) == len(logged)
        return logged

    assert found() == [("a", "e1"), ("b", "e2"), ("b", "e1"), ("a", "e3")]
    assert found(source="a") == [("a", "e1"), ("a", "e3")]
    assert found(ids=("e1", "nope")) == [("a", "e1"), ("b", "e1")]
    assert found(record="2", source="b") == [("b", "e2"), ("b", "e1")]
    assert found(since_us=to_us(clock.now() - 5)) == [("b", "e1"), ("a", "e3")]
    assert found(until_us=to_us(clock.now() - 5)) == [("a", "e1"), ("b", "e2")]
    assert found(ids=("nope",)) == []


def test_trace_tells_which_event_took_the_place_and_whether_it_was_delivered_before(
    journal: Journal, clock: FakeClock
) -> None:
    now = clock.now()
    journal.append([event("e1", properties={"a": "1"}, at=now - 9)])
    clock.advance(1)
    journal.append([event("e2", properties={"a": "2"}, at=now - 8)])
    deliver(journal, clock)
    clock.advance(1)
    journal.append([event("late", properties={"a": "0"}, at=now - 20), event("e3", properties={"a": "3"}, at=now - 7)])
    deliver(journal, clock)

    def superseded(event_id: str) -> tuple[str, bool]:
        [fate] = journal.trace_event(event_id)[0]["records"][0]["properties"]
        assert fate["fate"] == "superseded"
        return fate["by_event"], fate["delivered_before"] is not None

    assert superseded("e1") == ("e2", False)
    assert superseded("e2") == ("e3", True)
    assert superseded("late") == ("e2", False)


# --- resync -------------------------------------------------------------------------------------


def test_resync_sends_delivered_values_once_more_and_newer_events_win_as_ever(
    journal: Journal, clock: FakeClock
) -> None:
    now = clock.now()
    journal.append([event("e1", properties={"a": "1", "b": "1"}, at=now - 9)])
    deliver(journal, clock)
    journal.append([event("e2", properties={"b": "2"}, at=now - 8)])
    assert journal.count_known(ValueFilter()) == Resynced(1, 1)
    assert journal.resync(ValueFilter()) == Resynced(1, 1)
    assert [values(record) for record in take(journal, clock)] == [{"a": "1", "b": "2"}]
    deliver(journal, clock)
    journal.resync(ValueFilter())
    journal.append([event("e0", properties={"a": "0"}, at=now - 20)])
    assert [values(record) for record in take(journal, clock)] == [{"a": "1", "b": "2"}]


def test_resync_is_narrowed_by_source_object_type_and_record(journal: Journal, clock: FakeClock) -> None:
    other = type(LANE)("partner_services", "")
    journal.append([event("e1", "1", {"a": "1"}, source="a"), event("e2", "1", {"b": "1"}, source="b")])
    journal.append([event("e3", "2", {"a": "1"}, source="a"), event("e4", "2", lane=other, source="a")])
    for _ in range(2):
        taken = take(journal, clock)
        settle(journal, clock, taken, *(Delivered(record) for record in taken))
    assert journal.count_known(ValueFilter()) == Resynced(3, 4)
    assert journal.count_known(ValueFilter(source="a")) == Resynced(3, 3)
    assert journal.count_known(ValueFilter(object_type="partner_services")) == Resynced(1, 1)
    assert journal.resync(ValueFilter(source="b", record="1")) == Resynced(1, 1)
    assert [(record.sources, values(record)) for record in take(journal, clock)] == [(("b",), {"b": "1"})]


def test_values_whose_event_is_pruned_are_sent_once_more(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"a": "1"})])
    deliver(journal, clock)
    clock.advance(8 * 86_400)
    journal.prune()
    assert journal.trace_event("e1") == []
    journal.resync(ValueFilter(source="acme"))
    assert [values(record) for record in take(journal, clock)] == [{"a": "1"}]


def test_a_resync_during_a_call_is_not_settled_by_it(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"a": "1"})])
    deliver(journal, clock)
    journal.resync(ValueFilter())
    taken = take(journal, clock)
    settle(journal, clock, taken, Delivered(taken[0]))
    journal.resync(ValueFilter())
    again = take(journal, clock)
    settle(journal, clock, taken, Delivered(taken[0]))
    assert len(take(journal, clock)) == 1
    settle(journal, clock, again, Delivered(again[0]))
    assert take(journal, clock) == []


def test_a_parked_record_stays_parked_when_its_values_are_sent_once_more(journal: Journal, clock: FakeClock) -> None:
    journal.append([event("e1", properties={"a": "1"})])
    deliver(journal, clock)
    journal.append([event("e2", properties={"b": "1"})])
    taken = take(journal, clock)
    settle(journal, clock, taken, Parked(taken[0], Reason("OBJECT_NOT_FOUND", "not there")))
    journal.resync(ValueFilter())
    assert take(journal, clock) == []
    journal.replay(journal.entries(Filter()), mapping(e1={"a": "1"}, e2={"b": "1"}))
    assert [values(record) for record in take(journal, clock)] == [{"a": "1", "b": "1"}]


def test_a_resync_that_would_stop_intake_is_refused(url: str, clock: FakeClock) -> None:
    journal = Journal(settings=JournalSettings(url=url, max_pending=3), clock=clock)
    journal.append([event(f"e{at}", str(at)) for at in range(3)])
    deliver(journal, clock)
    with pytest.raises(JournalFullError, match="max_pending"):
        journal.resync(ValueFilter())
    assert journal.resync(ValueFilter(record="1")) == Resynced(1, 1)
    journal.close()


# --- pauses -------------------------------------------------------------------------------------


def test_people_pause_and_resume_and_the_dispatcher_leaves_those_pauses_alone(
    journal: Journal, clock: FakeClock
) -> None:
    outage = Pause(Scope.ALL, "", "outage", "503", 1, 2)
    journal.save_pauses([outage])
    made = journal.pause(detail="maintenance")
    assert (made.scope, made.reason, made.detail, made.until_us) == (Scope.ALL, "operator", "maintenance", None)
    clock.advance(5)
    assert journal.pause(detail="longer").since_us == made.since_us
    journal.pause("partner_services")
    journal.save_pauses([])
    assert [(held.scope, held.target, held.detail) for held in journal.load_pauses()] == [
        (Scope.ALL, "", "longer"),
        (Scope.OBJECT_TYPE, "partner_services", ""),
    ]
    journal.save_pauses([outage])
    assert [held.target for held in journal.resume("partner_services")] == ["partner_services"]
    assert journal.resume("partner_services") == []
    assert len(journal.resume()) == 1
    assert list(journal.load_pauses()) == [outage]
