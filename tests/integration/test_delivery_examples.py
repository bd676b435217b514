"""Runs of the model of delivery that once ended wrong, or that chance seldom finds, step by step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bridge.journal.event_log import EventFilter
from bridge.journal.retry_log import Filter
from tests.integration.test_delivery_model import DeliveryMachine
from tests.model_crm import BAD


@pytest.fixture
def machine() -> Iterator[DeliveryMachine]:
    """At its end the CRM must equal the model, and nothing may be frozen."""
    machine = DeliveryMachine()
    machine.begin(seed=0)
    try:
        yield machine
    finally:
        machine.teardown()


def test_a_replay_leaves_what_won_while_our_clock_was_wrong(machine: DeliveryMachine) -> None:
    """The older event's time was given by a clock a day ahead, so times alone would call it the newer one."""
    machine.events_arrive([("1", {"p": "a"}, None, False)])
    machine.our_clock_jumps(-1)
    machine.events_arrive([("1", {"p": "b"}, -400, False)])
    machine.delivery_works(3)
    assert {found.what for found in machine.replay_events(EventFilter(record="1"))} == {"kept"}


def test_a_discard_during_a_call_leaves_nothing_in_the_retry_log(machine: DeliveryMachine) -> None:
    """The call ends as a failure of a record for which nothing waits any more."""
    machine.events_arrive([("w1", {"p": "a"}, None, False), ("u1", {"p": "a"}, None, False)])
    machine.delivery_works(3)
    machine.retries_are_discarded("OBJECT_NOT_FOUND", during=True)
    machine.time_passes(10.0)


def test_what_a_person_discarded_is_not_brought_back_by_another_entry_of_its_event(machine: DeliveryMachine) -> None:
    """One property of an event was refused, the others were given up; then the refused one is replayed."""
    machine.events_arrive([("u1", {"p": "invalid", "q": "a"}, None, False)])
    machine.delivery_works(3)
    machine.retries_are_discarded("OBJECT_NOT_FOUND", during=False)
    machine.retries_are_replayed("parked", None, during=False)
    assert not [entry for entry in machine.journal.entries(Filter()) if entry.id.startswith("record-")]


@pytest.mark.parametrize("days", [1, -1])
def test_a_call_applied_late_is_made_up_for_though_our_clock_was_set(machine: DeliveryMachine, days: int) -> None:
    """By the new time the doubt would seem to be over, or to begin tomorrow."""
    machine.events_arrive([("1", {"p": "a"}, None, False)])
    machine.the_crm_is_moody(["lost-late"])
    machine.delivery_works(1)
    assert len(machine.crm.late) == 1
    machine.our_clock_jumps(days)
    machine.events_arrive([("1", {"p": "b"}, None, False)])
    machine.time_passes(1.0)
    machine.time_passes(0.2)
    assert machine.crm.state["1", "p"] == "b"


@pytest.mark.parametrize("mood", ["500", "403", "401", "429"])
def test_a_pause_is_not_longer_after_a_restart_with_a_clock_set_back(machine: DeliveryMachine, mood: str) -> None:
    machine.events_arrive([("1", {"p": "a"}, None, False)])
    machine.the_crm_is_moody([mood])
    machine.delivery_works(2)  # the second look writes the pause down
    machine.journal.close()
    machine.clock.jump(-86_400)
    machine.jumped = True
    machine.open()
    for _ in range(20):
        machine.step(1.0)
    assert machine.crm.state.get(("1", "p")) == "a"


def test_a_refusal_noted_by_a_wrong_clock_does_not_hold_the_value_for_a_day(machine: DeliveryMachine) -> None:
    """The CRM takes the value by now."""
    machine.our_clock_jumps(1)
    machine.events_arrive([("1", {"p": BAD}, None, False)])
    machine.delivery_works(2)
    calls = machine.crm.calls
    machine.our_clock_jumps(-1)
    machine.events_arrive([("1", {"p": BAD}, None, False)])
    machine.delivery_works(2)
    assert machine.crm.calls == calls + 1


def test_a_clock_that_is_set_before_the_first_step_of_a_process_is_noticed(machine: DeliveryMachine) -> None:
    """A doubt of the process before would seem to last another day, and what was applied late would stand."""
    machine.events_arrive([("1", {"p": "a"}, None, False)])
    machine.the_crm_is_moody(["lost-late"])
    machine.delivery_works(1)
    assert len(machine.crm.late) == 1
    machine.the_process_is_restarted()
    machine.events_arrive([("1", {"p": "c"}, None, False)])
    machine.our_clock_jumps(-1)
