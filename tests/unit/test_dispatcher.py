"""The dispatcher, stepped: what it calls, when it pauses, and what becomes of every record."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bridge.crm.hubspot import OpenBytes
from bridge.crm.properties import ABSENT, Definition, NotTold
from bridge.crm.transport import Answer, Input, NoAnswer
from bridge.delivery.caller import Pool
from bridge.delivery.dispatcher import Dispatcher
from bridge.delivery.limiter import Limiter
from bridge.delivery.pauses import Backoff
from bridge.delivery.portal_rules import Portal
from bridge.delivery.ports import OnUnknown
from bridge.delivery.search import MAX_UNDECIDED_CALLS, UNDECIDED_S
from bridge.delivery.state import TRUSTED_S
from bridge.errors import CrmUnreachableError, JournalUnavailableError
from bridge.model import Call, Lane, Outcome, Pause, PendingRecord, Scope, Taken, to_us
from bridge.settings import Crm, RateLimit, Retry
from tests.fakes_delivery import (
    BY_RECORD_ID,
    CLIENTS,
    FakeClock,
    FakeCrm,
    FakeJournal,
    FakeObserver,
    HeldPool,
    InlinePool,
    Script,
    ok,
    refused_whole,
)

#: No limit to speak of.
UNLIMITED = RateLimit(calls=1_000, per_s=1e-12)


class House:
    """A dispatcher with everything around it faked, stepped by hand."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        pool: Pool | None = None,
        batch_size: int = 100,
        max_in_flight: int = 8,
        on_unknown: OnUnknown | Callable[[PendingRecord], OnUnknown] = "park",
        give_up_after_s: float = 86_400.0,
        rate: RateLimit = UNLIMITED,
        journal: type[FakeJournal] = FakeJournal,
        open_bytes: OpenBytes | None = None,
        portal: Portal | None = None,
        flush_interval_s: float = 0.5,
    ) -> None:
        self.clock = FakeClock()
        self.journal = journal(self.clock)
        self.crm = FakeCrm(script)
        self.observer = FakeObserver()
        self.dispatcher = Dispatcher(
            journal=self.journal,
            crm=self.crm,
            settings=Crm(
                batch_size=batch_size,
                max_in_flight=max_in_flight,
                flush_interval_s=flush_interval_s,
                rate_limit=rate,
            ),
            retry=Retry(base_s=2.0, max_s=60.0, give_up_after_s=give_up_after_s),
            on_unknown=on_unknown if callable(on_unknown) else lambda _: on_unknown,
            portal=portal,
            clock=self.clock,
            observer=self.observer,
            pool=pool if pool is not None else InlinePool(),
            open_bytes=open_bytes,
            backoff=Backoff(base_s=2.0, max_s=60.0, chance=random.Random(7)),
        )

    def put(self, *refs: int, lane: Lane = CLIENTS, source: str = "acme", **values: str) -> None:
        for ref in refs:
            self.journal.put(ref, values or {"name": f"Client {ref}"}, lane=lane, source=source)

    def run(self, seconds: float, step_s: float = 0.05) -> None:
        """Let time pass and step the loop."""
        for _ in range(round(seconds / step_s)):
            self.clock.pass_(step_s)
            self.dispatcher.run_once()


def poison(*refs: int, answer: Answer | NoAnswer | None = None) -> Script:
    """A CRM to which any call with one of these records comes to nothing."""
    told = Answer(500, {"message": "boom"}) if answer is None else answer

    def script(_: Lane, sent: Sequence[Input]) -> Answer | NoAnswer:
        return told if any(one.record.ref in refs for one in sent) else ok(sent)

    return script


def down(_: Lane, __: Sequence[Input]) -> Answer:
    return Answer(503)


def down_for_each(_: Lane, sent: Sequence[Input]) -> Answer:
    """The same as a 207 says it: an error that may pass about every single input."""
    errors = [{"category": "INTERNAL_ERROR", "context": {"objectWriteTraceId": [one.trace_id]}} for one in sent]
    return ok((), errors)


# --- the plain way ------------------------------------------------------------------------------


def test_due_records_are_delivered_in_one_call_after_the_flush_interval() -> None:
    house = House()
    house.put(*range(30))
    house.run(0.4)
    assert house.crm.calls == []
    house.run(0.2)
    assert house.crm.sizes == [30]
    assert house.journal.states() == {"delivered": 30}


@pytest.mark.parametrize("flush_interval_s, poll_s", [(1.0, 0.25), (0.1, 0.1), (0.0, 0.05)])
def test_while_there_is_nothing_to_do_it_looks_now_and_then(flush_interval_s: float, poll_s: float) -> None:
    """No change is sent later for it: it has waited since its arrival when it is seen."""
    house = House(flush_interval_s=flush_interval_s)
    looks = house.journal.looks
    for _ in range(8):
        assert house.dispatcher.run_once() == pytest.approx(poll_s)
        house.clock.pass_(poll_s + 0.001)
    assert house.journal.looks == looks + 8
    house.put(1)
    house.clock.pass_(poll_s * 0.9)
    wait_s = house.dispatcher.run_once()
    house.clock.pass_(wait_s)
    house.run(max(0.0, flush_interval_s - poll_s * 0.9 - wait_s) + 0.05)
    assert house.crm.sizes == [1]


def test_what_this_process_takes_in_is_seen_at_once() -> None:
    house = House(flush_interval_s=1.0)
    house.dispatcher.run_once()
    looks = house.journal.looks
    house.clock.pass_(0.02)
    house.put(*range(100))
    house.dispatcher.notify()
    house.dispatcher.run_once()
    assert (house.journal.looks, house.crm.sizes) == (looks + 1, [100])


def test_while_it_is_paused_it_looks_as_often_as_ever() -> None:
    house = House(down, flush_interval_s=1.0)
    house.put(1)
    house.run(1.1)
    assert [pause.reason for pause in house.dispatcher.pauses] == ["outage"]
    assert house.dispatcher.run_once() <= 0.05


def test_a_full_batch_does_not_wait() -> None:
    house = House()
    house.put(*range(250))
    house.run(0.05)
    assert house.crm.sizes == [100, 100]
    house.run(1)
    assert house.crm.sizes == [100, 100, 50]


def test_a_call_serves_one_lane() -> None:
    house = House()
    house.put(1, 2, lane=CLIENTS)
    house.put(3, lane=BY_RECORD_ID)
    house.run(1)
    assert sorted(house.crm.sizes) == [1, 2]


def test_what_arrives_while_a_call_is_open_is_sent_after_it() -> None:
    """The newer value is neither lost nor sent beside the older one."""
    house = House()

    def script(_: Lane, sent: Sequence[Input]) -> Answer:
        if len(house.crm.calls) == 1:
            house.put(1, name="new")
            house.run(5)
            assert len(house.crm.calls) == 1
        return ok(sent)

    house.crm.script = script
    house.put(1, name="old")
    house.run(7)
    assert [sent[0].record.values["name"].value for _, sent in house.crm.calls] == ["old", "new"]
    assert house.journal.state(1) == "delivered"


def test_what_arrives_before_the_take_is_merged_into_the_call() -> None:
    pool = HeldPool()
    house = House(pool=pool)
    house.put(1, name="old")
    house.run(1)
    house.put(1, name="new")
    pool.release()
    assert house.crm.state[1] == {"name": "new"}
    assert house.journal.state(1) == "delivered"


def test_calls_in_flight_are_bounded() -> None:
    pool = HeldPool()
    house = House(pool=pool, max_in_flight=3, batch_size=1)
    house.put(1)
    house.run(0.1)
    pool.release()  # the lane has proven itself
    house.put(*range(2, 20))
    house.run(1)
    assert len(pool.jobs) == 3


def test_a_lane_that_has_not_proven_itself_makes_one_call_at_a_time() -> None:
    pool = HeldPool()
    house = House(pool=pool)
    house.put(*range(500))
    house.run(1)
    assert len(pool.jobs) == 1
    pool.release()
    house.run(0.1)
    assert len(pool.jobs) == 4


def test_a_single_change_is_not_delayed_by_another_sources_backlog() -> None:
    house = House()
    house.put(*range(5_000), source="big")
    house.run(0.05)
    house.dispatcher.limiter = Limiter(calls=1, per_s=1.0)
    house.put(9_999, source="small")
    before = len(house.crm.calls)
    house.run(0.2)
    position = next(
        place for place, (_, sent) in enumerate(house.crm.calls) if any(one.record.ref == 9_999 for one in sent)
    )
    assert position - before <= 1


# --- what the CRM refuses -----------------------------------------------------------------------


def test_a_refused_property_waits_and_the_others_are_delivered() -> None:
    def script(_: Lane, sent: Sequence[Input]) -> Answer:
        bad = [one for one in sent if "tier" in one.record.values]
        error = {
            "category": "VALIDATION_ERROR",
            "message": "tier is wrong",
            "context": {"objectWriteTraceId": ["?"], "propertyName": ["tier"]},
        }
        errors = [{**error, "context": {"objectWriteTraceId": [one.trace_id], "propertyName": ["tier"]}} for one in bad]
        return ok([one for one in sent if one not in bad], errors)

    house = House(script)
    house.put(1, name="A", tier="wood")
    house.put(2, name="B")
    house.run(2)
    assert house.journal.state(1) == "refused"
    assert house.crm.state == {1: {"name": "A"}, 2: {"name": "B"}}


def not_found(_: Lane, sent: Sequence[Input]) -> Answer:
    missing = [one for one in sent if one.record.ref == 1]
    ids = [one.record.key.id for one in missing]
    errors = [{"category": "OBJECT_NOT_FOUND", "message": "gone", "context": {"ids": ids}}]
    return ok([one for one in sent if one not in missing], errors if missing else ())


@pytest.mark.parametrize("policy, state", [("park", "parked"), ("wait", "retrying"), ("ignore", "delivered")])
def test_an_unknown_record_goes_the_way_its_source_says(policy: OnUnknown, state: str) -> None:
    house = House(not_found, on_unknown=policy)
    house.put(1, 2)
    house.run(1)
    assert house.journal.state(1) == state
    assert house.journal.state(2) == "delivered"
    assert house.journal.ignored == ([1] if policy == "ignore" else [])


def test_one_culprit_costs_few_calls_and_the_good_ones_go_on() -> None:
    house = House(poison(37, answer=refused_whole()))
    house.put(*range(100))
    house.run(1)
    assert house.journal.states() == {"delivered": 99, "parked": 1}
    assert len(house.crm.calls) <= 15


def test_a_misconfigured_lane_pauses_and_parks_nothing() -> None:
    house = House(lambda _, __: refused_whole("portal says no"))
    house.put(*range(1_000))
    house.run(1)
    assert house.journal.states() == {"due": 1_000}
    assert len(house.crm.calls) <= 8
    assert [pause.reason for pause in house.dispatcher.pauses] == ["misconfigured"]
    house.run(30)
    assert len(house.crm.calls) <= 8 + 15
    assert set(house.crm.sizes[8:]) == {1}
    house.crm.script = lambda _, sent: ok(sent)
    house.run(120)
    assert house.journal.states() == {"delivered": 1_000}


@pytest.mark.parametrize("later_s, paused", [(TRUSTED_S - 60, False), (TRUSTED_S + 60, True)])
def test_a_lane_that_lately_took_anothers_records_does_not_pause(later_s: float, paused: bool) -> None:
    """Of one partner all are refused: it may be the lane or them, so none is judged; long after it is the lane."""
    house = House()
    house.put(1, source="other")
    house.run(1)
    house.crm.script = lambda _, __: refused_whole("portal says no")
    house.clock.pass_(later_s)
    house.put(*range(10, 20))
    house.run(1)
    assert [pause.reason for pause in house.dispatcher.pauses] == (["misconfigured"] if paused else [])
    assert house.journal.states() == {"delivered": 1, "due": 10}


def test_a_lane_that_breaks_after_anothers_success_parks_nothing_and_costs_few_calls() -> None:
    """A thousand good records wait until it is in order again, at a few calls for each hundred of them."""
    house = House()
    house.put(1, source="other")
    house.run(1)
    house.crm.script = lambda _, __: refused_whole("portal says no")
    for begin in range(10, 1_010, 100):
        house.put(*range(begin, begin + 100))
        house.run(30, step_s=1)
    assert house.journal.states() == {"delivered": 1, "due": 1_000}
    assert len(house.crm.calls) <= 10 * 2 * MAX_UNDECIDED_CALLS
    assert {row.attempts for row in house.journal.rows.values()} == {0}
    house.crm.script = lambda _, sent: ok(sent)
    house.run(UNDECIDED_S + 30, step_s=1)
    assert house.journal.states() == {"delivered": 1_001}


def test_a_misconfigured_lane_leaves_the_others_alone() -> None:
    def script(lane: Lane, sent: Sequence[Input]) -> Answer:
        message = "Unable to perform update by non-unique property acme_client_id in portal 1"
        return refused_whole(message) if lane == CLIENTS else ok(sent)

    house = House(script)
    house.put(*range(100))
    house.put(*range(100, 300), lane=BY_RECORD_ID)
    house.run(1)
    assert house.journal.states() == {"due": 100, "delivered": 200}
    assert house.crm.calls.count((CLIENTS, house.crm.calls[0][1])) <= 1


NOT_UNIQUE = "Unable to perform update/upsert by non-unique 0-5 property acme_client_id in portal ID 1"

BAD_TIER = {
    "message": "wood was not one of the allowed options: [gold]",
    "code": "INVALID_OPTION",
    "context": {"propertyName": ["tier"]},
}


def test_a_lane_goes_on_although_what_probes_it_is_refused_for_a_fault_of_its_own() -> None:
    """The lane's trouble is over, and of the only records there are each has a bad value."""
    house = House(lambda _, __: refused_whole(NOT_UNIQUE))
    house.put(1, 2, name="A", tier="wood")
    house.run(2)
    assert [pause.reason for pause in house.dispatcher.pauses] == ["misconfigured"]

    def script(_: Lane, sent: Sequence[Input]) -> Answer:
        bad = any("tier" in one.record.values for one in sent)
        return refused_whole("Property values were not valid", errors=[BAD_TIER]) if bad else ok(sent)

    house.crm.script = script
    house.run(130)
    assert house.dispatcher.pauses == []
    assert house.journal.states() == {"refused": 2}
    assert house.crm.state == {1: {"name": "A"}, 2: {"name": "A"}}


def test_a_lane_stays_paused_while_its_probes_are_refused_as_before() -> None:
    house = House(lambda _, __: refused_whole(NOT_UNIQUE))
    house.put(1, 2, tier="wood")
    house.run(300, step_s=0.5)
    assert [pause.reason for pause in house.dispatcher.pauses] == ["misconfigured"]
    assert house.journal.states() == {"due": 2}


def test_a_pause_ends_when_nothing_waits_for_its_end_any_more() -> None:
    """What it held up was withdrawn, as by a replay with the right id property: nothing is left to probe with."""
    house = House(lambda _, __: refused_whole(NOT_UNIQUE))
    house.put(1, 2)
    house.run(2)
    for ref in (1, 2):
        house.journal.rows[ref].pending.clear()
    calls = len(house.crm.calls)
    house.run(140, step_s=0.5)
    assert house.dispatcher.pauses == []
    assert house.journal.stored_pauses == []
    assert len(house.crm.calls) == calls


def test_an_unknown_property_costs_a_few_calls_for_any_number_of_records() -> None:
    def script(_: Lane, sent: Sequence[Input]) -> Answer:
        if not any("ghost" in one.record.values for one in sent):
            return ok(sent)
        error = {"code": "PROPERTY_DOESNT_EXIST", "context": {"propertyName": ["ghost"]}, "message": "no ghost"}
        return refused_whole("Property values were not valid", errors=[error])

    house = House(script)
    for ref in range(2_000):
        house.put(ref, name="A", ghost="boo")
    house.run(2)
    assert house.journal.states() == {"refused": 2_000}
    assert all(values == {"name": "A"} for values in house.crm.state.values())
    assert len(house.crm.calls) <= 23
    house.run(601, step_s=0.5)
    house.put(1, ghost="back")
    house.crm.script = lambda _, sent: ok(sent)
    house.run(2)
    assert house.crm.state[1]["ghost"] == "back"


# --- outages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("outage", [down, down_for_each])
def test_an_outage_pauses_everything_and_burns_no_patience(outage: Script) -> None:
    house = House(outage)
    house.put(*range(1_000))
    house.run(600)
    assert house.journal.states() == {"due": 1_000}
    assert all(row.attempts == 0 for row in house.journal.rows.values())
    assert [pause.reason for pause in house.dispatcher.pauses] == ["outage"]
    assert len(house.crm.calls) < 60
    assert set(house.crm.sizes[1:]) == {1}


@pytest.mark.parametrize("outage", [down, down_for_each])
def test_after_an_outage_everything_is_delivered(outage: Script) -> None:
    house = House(outage)
    house.put(*range(1_000))
    house.run(60)
    house.crm.script = lambda _, sent: ok(sent)
    house.run(70)
    assert house.journal.states() == {"delivered": 1_000}
    assert house.dispatcher.pauses == []
    assert house.journal.stored_pauses == []


def test_the_probe_is_a_record_that_had_no_part_in_the_failure() -> None:
    house = House(poison(5))
    house.put(*range(100))
    house.run(0.1)
    house.put(200)
    house.run(5)
    assert [one.record.ref for one in house.crm.calls[1][1]] == [200]


def test_one_poisonous_record_stops_nobody_and_is_given_up_alone() -> None:
    house = House(poison(5), give_up_after_s=600)
    house.put(*range(100))
    for minute in range(3):
        house.put(*range(1_000 + minute * 100, 1_100 + minute * 100))
        house.run(60, step_s=0.1)
    assert house.journal.states() == {"delivered": 399, "retrying": 1}
    assert [pause.reason for pause in house.dispatcher.pauses] == []
    for ref in range(2_000, 2_400):
        house.put(ref)
        house.run(5, step_s=0.25)
    assert house.journal.state(5) == "parked"
    parked = house.journal.rows[5].parked
    assert parked is not None
    assert parked.category == "GAVE_UP"


def test_a_lonely_record_is_tried_alone_without_pausing_the_others() -> None:
    house = House(poison(5))
    house.put(*range(10))
    for ref in range(100, 160):
        house.put(ref)
        house.run(3, step_s=0.1)
    calls_with_five = [len(sent) for _, sent in house.crm.calls[-30:] if any(one.record.ref == 5 for one in sent)]
    assert set(calls_with_five) == {1}
    assert house.journal.states() == {"delivered": 69, "retrying": 1}


def test_a_record_with_a_passing_error_is_tried_alone_without_pausing_the_others() -> None:
    """One that its calls tell of beside others, and one that only its own call tells of."""

    def script(_: Lane, sent: Sequence[Input]) -> Answer:
        bad = [one for one in sent if one.record.ref == 5]
        return ok([one for one in sent if one not in bad], down_for_each(CLIENTS, bad).body["errors"])

    house = House(script)
    house.put(*range(10))
    for ref in range(100, 160):
        house.put(ref)
        house.run(3, step_s=0.1)
    assert house.journal.states() == {"delivered": 69, "retrying": 1}
    assert house.journal.rows[5].attempts > 1
    assert len(house.observer.pauses) <= 2


def test_a_record_that_fails_with_nobody_else_to_ask_is_an_outage() -> None:
    """Nothing tells a poisonous record from an outage: no patience is burned."""
    house = House(poison(1))
    house.put(1)
    house.run(300)
    assert house.journal.state(1) == "due"
    assert [pause.reason for pause in house.dispatcher.pauses] == ["outage"]


def test_a_failure_beside_calls_that_end_well_hardly_slows_delivery() -> None:
    """Whoever was open beside the failed call has answered what a probe would ask."""
    pool = HeldPool()
    answers = iter(["ok", "500"])
    house = House(lambda _, sent: Answer(500) if next(answers, "ok") == "500" else ok(sent), pool=pool)
    house.put(*range(600))
    house.run(0.1)
    pool.release()
    house.run(0.1)
    assert len(pool.jobs) == 5
    pool.release()
    assert len(house.dispatcher.pauses) == 1
    house.clock.pass_(0.01)
    pool.release()
    assert len(house.dispatcher.pauses) == 0
    while house.journal.states() != {"delivered": 600}:
        house.run(0.1)
        for _ in list(pool.jobs):
            pool.release()


def test_a_good_record_soon_gets_past_a_poisonous_one_in_a_quiet_system() -> None:
    house = House(poison(1))
    house.put(1)
    house.run(300)
    house.put(2)
    house.run(5)
    assert house.journal.state(2) == "delivered"


def test_silence_about_a_record_parks_it_after_it_was_alone_twice() -> None:
    def script(_: Lane, sent: Sequence[Input]) -> Answer:
        return Answer(200, {"status": "COMPLETE", "results": [r for r in ok(sent).body["results"] if r["id"] != "93"]})

    house = House(script)
    house.put(*range(10))
    for ref in range(100, 130):
        house.put(ref)
        house.run(3, step_s=0.1)
    assert house.journal.states() == {"delivered": 39, "parked": 1}
    parked = house.journal.rows[3].parked
    assert parked is not None
    assert parked.category == "UNCONFIRMED"
    assert 3 <= sum(any(one.record.ref == 3 for one in sent) for _, sent in house.crm.calls) <= 5


def test_an_answer_that_confirms_nothing_is_an_outage() -> None:
    house = House(lambda _, __: Answer(200, {"status": "COMPLETE", "results": []}))
    house.put(*range(10))
    house.run(60)
    assert house.journal.states() == {"due": 10}
    assert [pause.reason for pause in house.dispatcher.pauses] == ["outage"]


def test_a_forbidden_object_type_leaves_the_others_alone() -> None:
    services = Lane("partner_services")

    def script(lane: Lane, sent: Sequence[Input]) -> Answer:
        return Answer(403, {"category": "MISSING_SCOPES"}) if lane == services else ok(sent)

    house = House(script)
    house.put(*range(100))
    house.put(*range(100, 300), lane=services)
    house.run(10)
    assert house.journal.states() == {"delivered": 100, "due": 200}
    house.crm.script = lambda _, sent: ok(sent)
    house.run(120)
    assert house.journal.states() == {"delivered": 300}


SERVICES = Lane("partner_services")

#: Calls are rarer than work, as under a backlog.
SCARCE = RateLimit(calls=20, per_s=1.0)


def test_a_stopped_object_type_is_probed_beside_a_backlog_of_others() -> None:
    refused: list[bool] = []

    def script(lane: Lane, sent: Sequence[Input]) -> Answer:
        if lane == SERVICES and not refused:
            refused.append(True)
            return Answer(403, {"category": "MISSING_SCOPES"})
        return ok(sent)

    house = House(script, batch_size=5, rate=SCARCE)
    house.put(1, 2, lane=SERVICES)
    house.run(1)
    assert [pause.reason for pause in house.dispatcher.pauses] == ["forbidden"]
    house.put(*range(100, 2_000))
    house.run(10)
    assert house.journal.states()["due"] > 500
    assert [house.journal.state(ref) for ref in (1, 2)] == ["delivered"] * 2


def test_suspects_have_their_turn_beside_a_stream_of_bad_records() -> None:
    locked: list[bool] = []

    def script(lane: Lane, sent: Sequence[Input]) -> Answer:
        if lane == SERVICES and not locked:
            locked.append(True)
            return Answer(423)
        return refused_whole() if any(one.record.ref % 5 == 0 for one in sent) else ok(sent)

    house = House(script, batch_size=5, rate=SCARCE)
    house.put(*range(101, 105))  # the lane proves itself
    house.run(1)
    house.put(*range(105, 1_000))
    house.put(1, 2, lane=SERVICES)
    house.run(8)
    assert house.journal.states()["due"] > 100
    assert [house.journal.state(ref) for ref in (1, 2)] == ["delivered"] * 2


def test_a_new_token_is_tried_at_once() -> None:
    house = House(lambda _, __: Answer(401))
    house.put(*range(300))
    house.run(200)
    assert [pause.reason for pause in house.dispatcher.pauses] == ["unauthorized"]
    before = len(house.crm.calls)
    house.crm.token = "two"
    house.crm.script = lambda _, sent: ok(sent)
    house.run(1.5)
    assert len(house.crm.calls) > before
    assert house.journal.states() == {"delivered": 300}


def test_a_rate_limit_answer_stops_all_for_as_long_as_it_says() -> None:
    answers = [Answer(429, {"policyName": "TEN_SECONDLY_ROLLING"}, headers={"retry-after": "30"})]
    house = House(lambda _, sent: answers.pop() if answers else ok(sent))
    house.put(*range(300))
    house.run(29)
    assert len(house.crm.calls) == 1
    house.run(2)
    assert house.journal.states() == {"delivered": 300}


def test_a_lock_delays_only_the_call_that_met_it() -> None:
    answers = [Answer(423), Answer(423)]
    house = House(lambda _, sent: answers.pop() if answers else ok(sent))
    house.put(*range(50))
    house.run(1)
    assert house.dispatcher.pauses == []
    house.run(30)
    assert house.journal.states() == {"delivered": 50}


def test_a_call_that_is_too_large_is_halved() -> None:
    house = House(lambda _, sent: Answer(413) if len(sent) > 30 else ok(sent))
    house.put(*range(100))
    house.run(2)
    assert house.journal.states() == {"delivered": 100}
    assert house.crm.sizes == [100, 50, 50, 25, 25, 25, 25]


def test_an_operators_pause_is_honoured_and_never_probed() -> None:
    house = House()
    pause = Pause(Scope.ALL, "", "operator", "maintenance", since_us=0, until_us=None)
    house.journal.stored_pauses = [pause]
    house.put(1)
    house.run(600, step_s=0.5)
    assert house.crm.calls == []
    assert house.journal.stored_pauses == [pause]
    house.journal.stored_pauses = []
    house.run(3)
    assert house.journal.state(1) == "delivered"


def test_pauses_survive_a_restart() -> None:
    house = House(down)
    house.put(1)
    house.run(100)
    (stored,) = house.journal.stored_pauses
    again = House()
    again.clock.seconds = house.clock.seconds
    again.journal.stored_pauses = [stored]
    again.dispatcher.restore_pauses()
    again.put(1, 2, 3)
    assert stored.until_us is not None
    left_s = stored.until_us / 1_000_000 - again.clock.now()
    again.run(left_s - 0.1)
    assert again.crm.calls == []
    again.run(1)
    assert again.crm.sizes[0] == 1
    assert again.journal.states() == {"delivered": 3}


# --- the journal fails --------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [1, 2, 3, 4, 5])
def test_a_failing_journal_delays_and_loses_nothing(fails: int) -> None:
    house = House()
    house.put(*range(250))
    house.journal.fails = fails
    house.run(0.2)
    house.journal.fails = fails
    house.run(30)
    assert house.journal.states() == {"delivered": 250}
    assert "JournalUnavailableError" in house.observer.errors


def test_a_journal_that_fails_to_settle_makes_the_call_happen_again() -> None:
    house = House()

    def script(_: Lane, sent: Sequence[Input]) -> Answer:
        house.journal.fails = 1 if len(house.crm.calls) == 1 else 0
        return ok(sent)

    house.crm.script = script
    house.put(1)
    house.run(5)
    assert house.crm.sizes == [1, 1]
    assert house.journal.state(1) == "delivered"


def test_a_client_that_raises_is_treated_as_a_call_that_came_to_nothing() -> None:
    def script(_: Lane, sent: Sequence[Input]) -> Answer:
        if any(one.record.ref == 3 for one in sent):
            raise TypeError("str is not valid UTF-8")
        return ok(sent)

    house = House(script)
    house.put(*range(10))
    for ref in range(100, 120):
        house.put(ref)
        house.run(3, step_s=0.1)
    assert house.journal.state(3) == "retrying"
    assert house.journal.states()["delivered"] == 29


def test_doubt_stays_after_a_call_without_an_answer_and_not_after_a_refusal() -> None:
    house = House(lambda _, __: NoAnswer("timeout", doubtful=True, detail=""))
    house.put(1)
    house.run(1)
    assert house.journal.rows[1].in_doubt
    house.crm.script = down
    house.run(10)
    assert not house.journal.rows[1].in_doubt


def test_a_stale_grant_is_not_used() -> None:
    """The process froze between the grant and the call: nothing is sent on the old grant."""
    pool = HeldPool()
    house = House(pool=pool)
    house.put(1)
    house.run(1)
    house.clock.pass_(60)
    before = house.dispatcher.limiter.used(house.clock.monotonic())
    pool.release()
    assert house.dispatcher.limiter.used(house.clock.monotonic()) == before + 1


def test_a_process_that_may_not_deliver_sends_nothing() -> None:
    house = House()
    allowed = Dispatcher(
        journal=house.journal,
        crm=house.crm,
        settings=Crm(rate_limit=RateLimit(100, 1.0)),
        retry=Retry(),
        on_unknown=lambda _: "park",
        clock=house.clock,
        observer=house.observer,
        pool=InlinePool(),
        may_call=lambda: False,
    )
    house.put(1)
    for _ in range(30):
        house.clock.pass_(0.05)
        allowed.run_once()
    assert house.crm.calls == []
    assert house.journal.state(1) == "due"
    assert not house.journal.rows[1].in_doubt


def test_the_policy_for_unknown_records_sees_the_record() -> None:
    seen: list[PendingRecord] = []

    def policy(one: PendingRecord) -> OnUnknown:
        seen.append(one)
        return "park"

    house = House(not_found, on_unknown=policy)
    house.put(1)
    house.run(1)
    assert [one.sources for one in seen] == [("acme",)]


class UnwritableJournal(FakeJournal):
    """What is said of one record cannot be written down, whatever it is."""

    def settle(
        self, taken: Sequence[PendingRecord], outcomes: Sequence[Outcome], *, call: Call | None, doubtful: bool
    ) -> None:
        if any(outcome.record.ref == 13 for outcome in outcomes):
            raise TypeError("str is not valid UTF-8: surrogates not allowed")
        super().settle(taken, outcomes, call=call, doubtful=doubtful)


def test_an_outcome_that_cannot_be_written_down_is_no_loop_and_costs_only_its_record() -> None:
    house = House(journal=UnwritableJournal)
    house.put(*range(100))
    house.run(300)
    assert house.journal.states() == {"delivered": 99, "due": 1}
    assert len(house.crm.calls) < 40
    house.put(*range(100, 200))
    calls = len(house.crm.calls)
    house.run(600)
    assert house.journal.states() == {"delivered": 199, "due": 1}
    assert len(house.crm.calls) < calls + 40  # once a minute at most, in the end
    assert set(house.observer.errors) == {"TypeError"}


def locked(_lane: Lane, _sent: Sequence[Input]) -> Answer:
    return Answer(423, {"category": "LOCKED", "message": "the records are locked"})


def test_more_locked_records_than_can_be_suspected_pause_delivery() -> None:
    """None of them is sent again within the two seconds that a lock lasts, and when it is over all arrive."""
    house = House(locked)
    house.put(*range(5_000))
    house.run(30)
    assert [pause.reason for pause in house.dispatcher.pauses] == ["outage"]
    sent: dict[int, int] = Counter(one.record.ref for _, inputs in house.crm.calls for one in inputs)
    assert max(sent.values()) < 10
    assert len(house.crm.calls) < 100
    house.crm.script = lambda _, sent: ok(sent)
    house.run(200)
    assert house.journal.states() == {"delivered": 5_000}
    assert house.dispatcher.pauses == []


def test_nothing_is_sent_once_a_pause_was_acknowledged() -> None:
    """The batch is planned, and read, when the person's pause is written down."""

    class Pausing(FakeJournal):
        def take(self, refs: Sequence[int], **how: Any) -> Taken:
            taken = super().take(refs, **how)
            self.stored_pauses = [Pause(Scope.ALL, "", "operator", "by a person", 1, None)]
            return taken

    house = House(journal=Pausing)
    house.put(*range(5))
    house.run(30)
    assert house.crm.calls == []
    assert house.journal.states() == {"due": 5}
    assert not any(row.in_doubt for row in house.journal.rows.values())
    assert [pause.reason for pause in house.dispatcher.pauses] == ["operator"]


@pytest.mark.parametrize("asked", ["load_pauses", "note_reading"])
def test_a_journal_that_is_lost_between_take_and_call_leaves_no_doubt(asked: str) -> None:
    """No call was begun: nothing must be sent once more for it."""

    class Losing(FakeJournal):
        times, silent = 3, False

        def take(self, refs: Sequence[int], **how: Any) -> Taken:
            taken = super().take(refs, **how)
            self.silent, self.times = self.times > 0, self.times - 1
            return taken

        def load_pauses(self) -> Sequence[Pause]:
            self.lost("load_pauses")
            return super().load_pauses()

        def note_reading(self, at_us: int) -> None:
            self.lost("note_reading")
            super().note_reading(at_us)

        def lost(self, name: str) -> None:
            if self.silent and name == asked:
                self.silent = False
                raise JournalUnavailableError("the database is out of reach")

    portal = FakePortal()
    house = portal.house = House(journal=Losing, portal=portal)
    house.put(*range(5))
    house.run(0.65)
    assert house.crm.calls == []
    assert not any(row.in_doubt for row in house.journal.rows.values())
    house.run(10)
    assert house.crm.sizes == [5]
    assert house.journal.states() == {"delivered": 5}


# --- bytes --------------------------------------------------------------------------------------

#: Calls of a thousand bytes at most, and two of them at a time.
SMALL = {"each": 1_000, "limit": 2_000}


def sent_bytes(house: House) -> list[int]:
    return [sum(len(v.value) for one in sent for v in one.record.values.values()) for _, sent in house.crm.calls]


def test_a_call_is_cut_by_bytes_and_the_rest_goes_in_the_next_ones() -> None:
    """The cut is no trouble of anybody: nothing is tried again, nothing counts as a failure."""
    house = House(open_bytes=OpenBytes(**SMALL))
    house.put(*range(9), name="x" * 450)
    house.put(100, 101, 102, name="small", source="beta")
    house.run(5)
    assert house.journal.states() == {"delivered": 12}
    assert max(sent_bytes(house)) <= 1_000
    assert len(house.crm.calls) == 5
    assert {call.step for call in house.observer.settled} == {"fresh"}
    assert house.observer.errors == []


def test_a_record_that_is_larger_than_a_call_goes_property_by_property() -> None:
    """All of it arrives, and nobody waits for its end."""
    house = House(open_bytes=OpenBytes(**SMALL))
    house.journal.put(1, {f"p{at:02}": "x" * 600 for at in range(12)})
    house.put(2, 3, name="y" * 300, source="beta")
    house.run(5)
    assert house.journal.states() == {"delivered": 3}
    assert house.crm.state[1] == {f"p{at:02}": "x" * 600 for at in range(12)}
    assert max(sent_bytes(house)) <= 1_000
    seen = [one.record.ref for _, sent in house.crm.calls for one in sent]
    assert seen.index(3) <= 3


def test_a_property_that_is_larger_than_a_call_goes_alone() -> None:
    house = House(open_bytes=OpenBytes(**SMALL))
    house.put(1, name="x" * 5_000, city="Lugo")
    house.run(5)
    assert house.journal.states() == {"delivered": 1}
    assert sorted(sent_bytes(house)) == [4, 5_000]


def test_two_partners_with_large_records_take_turns() -> None:
    house = House(open_bytes=OpenBytes(**SMALL))
    house.put(*range(20), name="x" * 900)
    house.put(*range(100, 120), name="x" * 900, source="beta")
    house.run(5)
    order = [one.record.ref >= 100 for _, sent in house.crm.calls for one in sent]
    assert len(order) == 40
    assert all(7 <= sum(order[at : at + 20]) <= 13 for at in range(20))


def test_a_stream_of_large_records_does_not_hold_up_another_partners() -> None:
    """Nothing is known of their sizes before they are taken."""
    house = House(open_bytes=OpenBytes(**SMALL))
    house.put(999, name="x" * 900, source="beta")
    for ref in range(40):
        house.put(ref, name="x" * 900)
        house.run(0.05)
    refs = [one.record.ref for _, sent in house.crm.calls for one in sent]
    assert refs.index(999) <= 2


def test_suspects_that_do_not_fit_into_one_call_any_more_are_judged_by_their_own() -> None:
    """They grew while they waited: only the one that fails alone is given up."""
    house = House(poison(3), open_bytes=OpenBytes(**SMALL), give_up_after_s=60.0)
    house.put(*range(8))
    house.run(1)
    house.put(*range(8), name="x" * 450)
    for other in range(100, 150):
        house.put(other)
        house.run(4, step_s=0.2)
    assert house.journal.states() == {"delivered": 57, "parked": 1}
    assert house.journal.state(3) == "parked"
    assert max(sent_bytes(house)) <= 1_000


def test_an_isolation_that_does_not_fit_into_one_call_any_more_finds_its_culprit() -> None:
    """A group that is taken clears only those that were in the call."""
    one_at_a_time = RateLimit(calls=1, per_s=0.2)
    house = House(poison(6, answer=refused_whole()), open_bytes=OpenBytes(**SMALL), rate=one_at_a_time)
    house.put(50)
    house.run(1)
    house.put(*range(8))
    while house.crm.sizes != [1, 8]:
        assert house.clock.seconds < 1_010
        house.run(0.05)
    house.put(*range(8), name="x" * 450)
    house.run(60)
    assert house.journal.states() == {"delivered": 8, "parked": 1}
    assert house.journal.state(6) == "parked"


def too_large(_: Lane, sent: Sequence[Input]) -> Answer | NoAnswer:
    """More than is read as soon as three records are in a call, or the seventh."""
    if len(sent) > 2 or any(one.record.ref == 7 for one in sent):
        return NoAnswer("oversize", doubtful=True, detail="answer over 9 bytes", status=200, body={"results": []})
    return ok(sent)


def test_an_answer_that_is_too_large_is_no_outage_its_call_goes_again_in_halves() -> None:
    """One that stays so alone is tried again later, and parked in the end."""
    house = House(too_large, give_up_after_s=60.0)
    house.put(*range(30))
    house.run(10)
    assert house.journal.states() == {"delivered": 29, "retrying": 1}
    house.run(600)
    assert house.journal.states() == {"delivered": 29, "parked": 1}
    assert house.observer.pauses == []
    reason = house.journal.rows[7].parked
    assert reason is not None
    assert "answer over 9 bytes" in reason.message


# --- what the portal's definitions rule out -----------------------------------------------------


class FakePortal:
    """A portal whose single properties cannot be asked for, and in which `a` may become read-only."""

    def __init__(self) -> None:
        self.house: House
        self.is_read_only = False
        self.absent = True

    def properties(self, _object_type: str) -> dict[str, Definition]:
        names = ("name", "a", "b", "c", "d")
        return {name: Definition(name, "string", read_only=name == "a" and self.is_read_only) for name in names}

    def property(self, _object_type: str, _name: str) -> Definition | NotTold:
        if self.absent:
            return ABSENT
        self.house.clock.pass_(30.0)
        raise CrmUnreachableError("it does not answer")


def steps(house: House, number: int, seconds: float) -> None:
    for _ in range(number):
        house.dispatcher.run_once()
        house.clock.pass_(seconds)


def test_a_portal_that_does_not_answer_holds_up_delivery_once() -> None:
    """Also where each call has a property that it does not list: the CRM decides meanwhile."""
    portal = FakePortal()
    portal.absent = False
    house = portal.house = House(portal=portal)
    house.put(1, name="A", sensitive="1")
    house.put(*range(10, 40), name="another partner's", source="globex")
    steps(house, 20, 1.0)
    assert house.journal.states() == {"delivered": 31}


def test_a_part_of_a_record_that_was_not_sent_whole_convicts_no_other_property() -> None:
    """It becomes read-only while the culprit of a refusal without words is searched for: the others are sent."""
    portal = FakePortal()

    def script(_lane: Lane, sent: Sequence[Input]) -> Answer:
        if not any("a" in one.record.values for one in sent):
            return ok(sent)
        if len(sent) == 1 and len(sent[0].record.values) == 4:
            portal.is_read_only = True
            house.clock.pass_(601.0)  # the definitions are read again before the next call
        return refused_whole("Property values were not valid")

    house = House(script, portal=portal)
    house.put(1)
    steps(house, 5, 1.0)
    house.put(2, a="A", b="B", c="C", d="D")
    steps(house, 60, 1.0)
    row = house.journal.rows[2]
    assert row.delivered == {"b": "B", "c": "C", "d": "D"}
    assert row.refused.keys() == {"a"}


def test_a_call_is_dated_by_when_it_is_sent() -> None:
    """A reading of the portal comes between: who takes over must not forget the call before the CRM does."""
    asked: list[float] = []

    class SlowPortal(FakePortal):
        def properties(self, object_type: str) -> dict[str, Definition]:
            self.house.clock.pass_(0.7)
            return super().properties(object_type)

    def script(_lane: Lane, sent: Sequence[Input]) -> Answer:
        asked.append(house.clock.now())
        return ok(sent)

    portal = SlowPortal()
    house = portal.house = House(script, portal=portal)
    house.put(1, name="A")
    steps(house, 5, 1.0)
    assert [call.started_at_us for call in house.journal.calls] == [to_us(at) for at in asked]
    assert len(house.journal.readings) == 1
