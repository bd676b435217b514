"""What each answer of HubSpot's leads to: real client, dispatcher and journal against the sandbox over HTTP.

The table of `tests/answers.py` says what each answer means; here it is read over HTTP, and what a meaning leads to has
its tests: one a meaning, not one a status.

Every row of the table in the README's failure chapter has its tests here: what becomes of the records, in which
state they end and with whose words, how many calls that costs, and that everything else goes on meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from bridge.crm.hubspot import HubSpot
from bridge.model import Lane, Pause
from bridge.sandbox import Crm, Fault, Input, Response, SandboxServer
from bridge.sandbox.records import Call
from bridge.settings import Retry
from tests.answers import ROWS, Row
from tests.builders import LANE
from tests.rig import Rig, rigged, says

BY_RECORD_ID = Lane("partner_clients")
BY_EXTERNAL_ID = Lane("partner_clients", "external_id")
SERVICES = Lane("partner_services")

#: Gives up after a failure or two beside others' success.
IMPATIENT = Retry(base_s=0.02, max_s=0.1, give_up_after_s=0.15)


def ids(count: int, prefix: str = "c") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def warm(rig: Rig, lane: Lane = LANE) -> int:
    """Let a record through, so that the lane has proven itself; returns the calls made so far."""
    rig.ask("1000001", lane=lane)
    rig.until(rig.idle)
    return len(rig.calls())


def delivered(rig: Rig, *records: str, lane: Lane = LANE) -> bool:
    return set(records) <= rig.held(lane).keys()


def everything_arrives(rig: Rig, records: Sequence[str], *, lane: Lane = LANE) -> None:
    """Nothing is parked on the way, and all of it is there in the end."""
    rig.until(lambda: delivered(rig, *records, lane=lane), passing_s=0.02)
    rig.until(rig.idle, passing_s=0.02)
    assert rig.entries() == {}
    rig.until(lambda: rig.pauses() == [], passing_s=0.02)


def pause(rig: Rig, reason: str) -> Pause:
    """The one pause there is, once it is there."""
    rig.until(lambda: rig.reasons() == [reason])
    [found] = rig.pauses()
    return found


def lasts_s(found: Pause) -> float:
    assert found.until_us is not None
    return (found.until_us - found.since_us) / 1e6


def once(answer: Response) -> Callable[[Call], Response | None]:
    """This answer to the first update, and the truth afterwards."""
    left = [answer]
    return lambda call: left.pop() if left and call.endpoint == "update" else None


def result(one: Input, **more: Any) -> dict[str, Any]:
    """What HubSpot says of an input that it took, with only its required field that tells anything."""
    return {"id": "9" + one.id.lstrip("c"), **more}


# --- every answer, as the client reads it -----------------------------------------------------------


@pytest.fixture(scope="module")
def wired() -> Iterator[tuple[Crm, HubSpot]]:
    crm = Crm()
    with SandboxServer(crm) as server:
        client = HubSpot(base_url=server.url, api_path="/crm/v3/objects", token=lambda: "token", timeout_s=30)
        yield crm, client
        client.close()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_answer_means_over_http_what_its_row_says(wired: tuple[Crm, HubSpot], row: Row) -> None:
    crm, client = wired
    content = row.body.encode() if isinstance(row.body, str) else orjson.dumps(row.body)
    crm.on_call = lambda call: Response(row.status, content, row.headers)
    row.check(client.update(row.inputs[0].record.key.lane, row.inputs))


# --- 2xx: per input, by evidence ------------------------------------------------------------------


@pytest.mark.parametrize("lane", [LANE, BY_RECORD_ID], ids=["by id property", "by record id"])
@pytest.mark.parametrize("echo_trace_ids", [True, False])
@pytest.mark.parametrize("echo_id_property", [True, False])
def test_f22_results_in_any_order_confirm_every_record(
    tmp_path: Path, lane: Lane, echo_trace_ids: bool, echo_id_property: bool
) -> None:
    with rigged(tmp_path) as rig:
        rig.crm.behaviour.echo_trace_ids = echo_trace_ids
        rig.crm.behaviour.echo_id_property = echo_id_property
        records = [str(number) for number in range(1, 101)]
        rig.ask_all(records, lane=lane)
        everything_arrives(rig, records, lane=lane)
        assert len(rig.calls()) == 1
        assert all(rig.held(lane)[record] == {"company_name": f"name of {record}"} for record in records)


@pytest.mark.parametrize("echo_trace_ids, echo_id_property", [(True, False), (False, True), (False, False)])
def test_an_input_left_out_of_the_answer_is_not_delivered(
    tmp_path: Path, echo_trace_ids: bool, echo_id_property: bool
) -> None:
    """A record merged into another gets neither result nor error; in the end it alone is parked for that.

    Eight calls at most that tell something, as another succeeded since the one before; G5 allows 15 in all.
    """
    with rigged(tmp_path, in_flight=1) as rig:  # so that calls are judged in their order
        rig.crm.behaviour.echo_trace_ids = echo_trace_ids
        rig.crm.behaviour.echo_id_property = echo_id_property
        rig.crm.records.merge("partner_clients", "c3", "c99", id_property="acme_client_id", silent=True)
        rig.ask_all(ids(16))
        rig.until(lambda: delivered(rig, *(set(ids(16)) - {"c3"})))
        traffic = 0

        def is_parked() -> bool:
            # Only beside others' success does its silence tell anything.
            nonlocal traffic
            traffic += 1
            rig.ask(f"other{traffic}")
            return "c3" in rig.parked()

        rig.until(is_parked, passing_s=0.1)
        rig.until(rig.idle)
        assert rig.parked().keys() == {"c3"}
        assert rig.parked()["c3"].category == "UNCONFIRMED"
        telling, calls, beside = 0, 0, True
        for call in rig.calls():
            if "c3" in {one.id for one in call.inputs}:
                telling, calls, beside = telling + beside, calls + 1, False
            else:
                beside = True
        assert telling <= 8
        assert calls <= 15
        assert "c3" not in rig.held()


def test_one_entry_of_errors_covers_several_ids(tmp_path: Path) -> None:
    """F22."""
    with rigged(tmp_path) as rig:
        unknown = ["unknown-1", "unknown-2", "unknown-3"]
        rig.ask_all([*ids(5), *unknown, *ids(5, "d")])
        rig.until(rig.idle)
        assert delivered(rig, *ids(5), *ids(5, "d"))
        assert rig.entries().keys() == set(unknown)
        for entry in rig.entries().values():
            assert (entry.state, entry.category) == ("parked", "OBJECT_NOT_FOUND")
            assert "Could not get some PARTNER_CLIENT objects" in entry.message
        assert [call.status for call in rig.calls()] == [207]


@pytest.mark.parametrize("naming", ["both", "message", "context"])
def test_a_refused_value_waits_alone_with_hubspots_message(tmp_path: Path, naming: Any) -> None:
    """F22: The record's good properties and all other records are delivered, in one call more."""
    with rigged(tmp_path) as rig:
        rig.crm.behaviour.naming = naming
        rig.ask_all({record: {"company_name": record, "tier": "gold"} for record in ids(50)})
        rig.ask("bad", {"company_name": "kept", "tier": "platinum", "annual_revenue": "many"})
        rig.until(rig.idle)
        assert rig.held()["bad"] == {"company_name": "kept"}
        assert all(rig.held()[record] == {"company_name": record, "tier": "gold"} for record in ids(50))
        [entry] = rig.entries().values()
        assert (entry.record, entry.properties) == ("bad", ("annual_revenue", "tier"))
        assert entry.category == "VALIDATION_ERROR"
        if naming != "context":
            assert "platinum was not one of the allowed options" in entry.message + str(entry)
        assert len(rig.calls()) <= 3


def test_a_refusal_of_an_input_that_names_no_property_is_narrowed_to_the_property(tmp_path: Path) -> None:
    with rigged(tmp_path) as rig:
        rig.crm.behaviour.naming = "none"
        rig.ask_all({record: {"company_name": record, "tier": "gold"} for record in ids(20)})
        rig.ask("bad", {"company_name": "kept", "notes": "kept", "phone": "1", "tier": "platinum"})
        rig.until(rig.idle)
        assert rig.held()["bad"] == {"company_name": "kept", "notes": "kept", "phone": "1"}
        [entry] = rig.entries().values()
        assert (entry.record, entry.properties, entry.category) == ("bad", ("tier",), "VALIDATION_ERROR")
        assert entry.message == "Property values were not valid"
        assert len(rig.calls()) <= 6


def test_another_error_about_one_input_parks_it(tmp_path: Path) -> None:
    with rigged(tmp_path) as rig:
        category = "SOMETHING_NEW"
        message = "the value is taken by 171591000198"

        def answer(call: Call) -> Response:
            bad = [one for one in call.inputs if one.id == "c1"]
            context = {"objectWriteTraceId": [bad[0].trace_id], "existingId": ["171591000198"]}
            results = [result(one, objectWriteTraceId=one.trace_id) for one in call.inputs if one.id != "c1"]
            entry = {"status": "error", "category": category, "message": message, "context": context}
            return says(207, {"status": "COMPLETE", "results": results, "errors": [entry], "numErrors": 1})

        rig.crm.on_call = answer
        rig.ask_all(ids(4))
        rig.until(rig.idle)
        [entry] = rig.entries().values()
        assert (entry.record, entry.state, entry.category, entry.message) == ("c1", "parked", category, message)
        assert rig.settled("delivered") == 3


def test_a_passing_error_about_one_input_is_retried(tmp_path: Path) -> None:
    def answer(call: Call) -> Response | None:
        if len(call.inputs) < 4:
            return None
        context = {"objectWriteTraceId": [one.trace_id for one in call.inputs if one.id == "c1"]}
        results = [result(one, objectWriteTraceId=one.trace_id) for one in call.inputs if one.id != "c1"]
        entry = {"message": "try again", "context": context}
        return says(207, {"results": results, "errors": [entry]})

    with rigged(tmp_path) as rig:
        rig.crm.on_call = answer
        rig.ask_all(ids(4))
        rig.until(lambda: delivered(rig, "c1"))
        rig.until(rig.idle)
        assert rig.entries() == {}
        assert [len(call.inputs) for call in rig.calls()] == [4, 1]


@pytest.mark.parametrize("apply", [True, False])
def test_f21_of_an_unfinished_call_only_what_results_confirm_counts(tmp_path: Path, apply: bool) -> None:
    """F21: The rest is due again after 2 s, whether it was written or not."""
    with rigged(tmp_path) as rig:
        rig.crm.behaviour.echo_trace_ids = True
        rig.crm.faults.next(Fault("pending", count=3, apply=apply))
        rig.ask_all(ids(10))
        rig.until(lambda: rig.settled("delivered") == 3)
        assert len(rig.calls()) == 1
        rig.ask("other")
        rig.until(lambda: rig.settled("delivered") == 4)
        rig.clock.shift(2.5)
        rig.until(rig.idle)
        assert delivered(rig, *ids(10))
        assert rig.entries() == {}
        assert rig.settled("delivered") == 11
        assert sorted(len(call.inputs) for call in rig.calls()) == [1, 7, 10]


@pytest.mark.parametrize("kind", ["pending", "html", "truncated"])
def test_f20_an_answer_that_confirms_nothing_is_an_outage(tmp_path: Path, kind: str) -> None:
    """F20: Nothing is parked; the records are sent again when a probe succeeds."""
    with rigged(tmp_path) as rig:
        rig.crm.faults.always(Fault(kind, count=0, apply=kind == "truncated"))
        rig.ask_all(ids(10))
        pause(rig, "outage")
        assert rig.settled("delivered") == 0
        rig.crm.faults.clear()
        everything_arrives(rig, ids(10))


@pytest.mark.parametrize("kind", ["html", "500", "reset", "truncated"])
def test_a_record_that_alone_provokes_nonsense_is_parked_in_the_end(tmp_path: Path, kind: str) -> None:
    """While others succeed, and at the cost of a bounded number of calls."""
    with rigged(tmp_path, retry=IMPATIENT) as rig:
        rig.crm.faults.poison("c7", kind=kind)
        rig.ask_all(ids(40))
        traffic = 0

        def is_parked() -> bool:
            nonlocal traffic
            traffic += 1
            rig.ask(f"other{traffic}")
            return "c7" in rig.parked()

        rig.until(is_parked, passing_s=0.1)
        rig.until(rig.idle, passing_s=0.1)
        assert delivered(rig, *(set(ids(40)) - {"c7"}), *(f"other{number + 1}" for number in range(traffic)))
        assert rig.parked().keys() == {"c7"}
        assert rig.parked()["c7"].category == "GAVE_UP"
        assert len([call for call in rig.calls() if "c7" in {one.id for one in call.inputs}]) <= 30


@pytest.mark.parametrize("kind", ["silent-drop", "html"])
def test_a_record_that_fails_alone_in_a_quiet_system_shows_as_retrying(tmp_path: Path, kind: str) -> None:
    """With nobody else to ask nothing is concluded and nothing parked; it is delivered as soon as it can be."""
    with rigged(tmp_path) as rig:
        rig.crm.faults.always(Fault(kind, ids=("c7",)))
        rig.ask_all(["c7", "c8"])
        rig.until(lambda: delivered(rig, "c8"), passing_s=0.02)
        rig.until(lambda: "c7" in rig.entries(), passing_s=0.02)
        calls = len(rig.calls())
        rig.until(lambda: len(rig.calls()) >= calls + 5, passing_s=0.02)
        entry = rig.entries()["c7"]
        assert entry.state == "retrying"
        assert entry.next_attempt_us is not None
        assert entry.next_attempt_us > (rig.clock.now() - 5) * 1e6
        rig.crm.faults.clear()
        everything_arrives(rig, ["c7"])


# --- OBJECT_NOT_FOUND: on_unknown -----------------------------------------------------------------


def test_an_unknown_record_is_parked_and_comes_back_with_a_new_event_merged(tmp_path: Path) -> None:
    with rigged(tmp_path) as rig:
        rig.ask("unknown-1", {"company_name": "first", "tier": "gold"})
        rig.until(lambda: "unknown-1" in rig.parked())
        rig.crm.records.add("partner_clients", "unknown-1", id_property="acme_client_id")
        rig.ask("unknown-1", {"company_name": "second"})
        rig.until(lambda: delivered(rig, "unknown-1"))
        assert rig.held()["unknown-1"] == {"company_name": "second", "tier": "gold"}
        rig.until(rig.idle)
        assert rig.entries() == {}
        assert len(rig.calls()) == 2


def test_an_unknown_record_is_waited_for_at_growing_intervals(tmp_path: Path) -> None:
    """`wait`: it is asked for again, and delivered once it exists; meanwhile it shows as retrying."""
    retry = Retry(base_s=10, max_s=10_000)
    with rigged(tmp_path, retry=retry, on_unknown=lambda record: "wait") as rig:
        rig.ask("unknown-1")
        waits: list[float] = []
        for attempt in range(1, 9):
            rig.until(lambda: len(rig.calls()) == attempt)  # noqa: B023 (run at once)
            rig.until(lambda: getattr(rig.entries().get("unknown-1"), "attempts", 0) == attempt)  # noqa: B023
            entry = rig.entries()["unknown-1"]
            assert (entry.state, entry.category) == ("retrying", "OBJECT_NOT_FOUND")
            assert entry.next_attempt_us is not None
            waits.append(entry.next_attempt_us / 1e6 - rig.clock.now())
            assert waits[-1] <= 10 * 2**attempt
            rig.clock.shift(waits[-1])
        assert max(waits[4:]) > max(waits[:2])
        rig.crm.records.add("partner_clients", "unknown-1", id_property="acme_client_id")
        rig.clock.shift(10_000)
        rig.until(lambda: delivered(rig, "unknown-1"))
        rig.until(rig.idle)
        assert rig.entries() == {}


def test_an_unknown_record_is_parked_after_seven_days_of_waiting(tmp_path: Path) -> None:
    day_s = 86_400.0
    with rigged(tmp_path, retry=Retry(base_s=600, max_s=day_s), on_unknown=lambda record: "wait") as rig:
        began = rig.clock.now()
        rig.ask("unknown-1")
        rig.until(lambda: "unknown-1" in rig.parked(), passing_s=day_s / 8)
        assert 7 * day_s <= rig.clock.now() - began < 25 * day_s
        assert rig.parked()["unknown-1"].category == "OBJECT_NOT_FOUND"
        assert len(rig.calls()) < 50


def test_an_unknown_record_is_ignored_and_counted(tmp_path: Path) -> None:
    with rigged(tmp_path, on_unknown=lambda record: "ignore") as rig:
        rig.ask_all({"unknown-1": {"company_name": "a", "tier": "gold"}, "c1": {"company_name": "b"}})
        rig.until(rig.idle)
        assert rig.entries() == {}
        assert (rig.settled("unknown"), rig.settled("delivered")) == (2, 1)
        assert len(rig.calls()) == 1
        rig.ask("unknown-1", {"company_name": "c"})  # asked again: it may exist by now
        rig.until(lambda: rig.settled("unknown") == 3)


def test_a_newer_confirmed_value_closes_what_was_refused(tmp_path: Path) -> None:
    with rigged(tmp_path) as rig:
        rig.ask("c1", {"tier": "platinum", "company_name": "a"})
        rig.until(lambda: "c1" in rig.parked())
        rig.until(rig.idle)
        rig.ask("c1", {"tier": "gold"})
        rig.until(rig.idle)
        assert rig.held()["c1"] == {"company_name": "a", "tier": "gold"}
        assert rig.entries() == {}


# --- 400 for the whole call -----------------------------------------------------------------------


@pytest.mark.parametrize("culprits, bound", [(1, 15), (5, 60)])
@pytest.mark.parametrize(
    "naming, proven",
    [("both", True), ("both", False), ("message", True), ("context", True), ("none", True), ("none", False)],
)
def test_f23_culprits_of_a_refused_call_cost_only_themselves(
    tmp_path: Path, naming: Any, culprits: int, bound: int, proven: bool
) -> None:
    """F23: HubSpot names properties and values, or nothing, but no input; the good ones go in the same flush."""
    with rigged(tmp_path) as rig:
        rig.crm.behaviour.multi_status = False
        rig.crm.behaviour.naming = naming
        before = warm(rig) if proven else 0
        bad = {f"c{number * 19 + 3}" for number in range(culprits)}
        rig.ask_all({record: {"tier": "platinum" if record in bad else "gold", "notes": record} for record in ids(100)})
        rig.until(rig.idle)
        assert rig.parked().keys() == bad
        for record in ids(100):
            if record not in bad:
                assert rig.held()[record] == {"tier": "gold", "notes": record}
        for record, entry in rig.parked().items():
            assert entry.category == "VALIDATION_ERROR"
            assert "Property values were not valid" in entry.message or "platinum was not one of" in entry.message
            if entry.properties == ("tier",):  # its good properties went
                assert rig.held()[record] == {"notes": record}
        if naming != "none":
            assert {entry.properties for entry in rig.parked().values()} == {("tier",)}
        assert len(rig.calls()) - before <= bound


def test_a_whole_call_that_names_an_input_is_narrowed_to_it(tmp_path: Path) -> None:
    def answer(call: Call) -> Response | None:
        bad = [one for one in call.inputs if one.id == "c7"]
        if not bad:
            return None
        return says(400, {"category": "VALIDATION_ERROR", "message": "no", "context": {"id": bad[0].id}})

    with rigged(tmp_path) as rig:
        rig.crm.on_call = answer
        rig.ask_all(ids(100))
        rig.until(rig.idle)
        assert rig.parked().keys() == {"c7"}
        assert delivered(rig, *(set(ids(100)) - {"c7"}))
        assert len(rig.calls()) <= 3


@pytest.mark.parametrize("first", ["c5", "C5"])
def test_of_two_ids_of_one_record_the_older_change_goes_first(tmp_path: Path, first: str) -> None:
    """However the two stand in the call that is refused: the newer value is what stays."""
    crm = Crm(open_properties=False, fold_case=True)
    with rigged(tmp_path, crm) as rig:
        crm.behaviour.duplicates = "sent"
        crm.records.add("partner_clients", "c5", id_property="acme_client_id")
        warm(rig)
        rig.ask_all(
            {first: {"company_name": "older"}, first.swapcase(): {"company_name": "newer"}, "c6": {"notes": "x"}}
        )
        rig.until(rig.idle)
        assert rig.entries() == {}
        assert rig.held()["c5"] == {"company_name": "newer"}


@pytest.mark.parametrize("told", ["sent", "record"])
@pytest.mark.parametrize("how", ["letter case", "merged records"])
def test_two_ids_of_one_record_go_in_separate_calls(tmp_path: Path, told: Any, how: str) -> None:
    """`Duplicate IDs` costs a few calls; both values are delivered, nothing is parked."""
    crm = Crm(open_properties=False, fold_case=how == "letter case")
    with rigged(tmp_path, crm) as rig:
        crm.behaviour.duplicates = told
        twin = "C5" if how == "letter case" else "old5"
        crm.records.add("partner_clients", "c5", id_property="acme_client_id")
        if how == "merged records":
            crm.records.merge("partner_clients", twin, "c5", id_property="acme_client_id", silent=False)
        before = warm(rig)
        rig.ask_all({**{record: {"company_name": record} for record in ids(40)}, twin: {"notes": "twin"}})
        rig.until(rig.idle)
        assert rig.entries() == {}
        assert rig.held()["c5"] == {"company_name": "c5", "notes": "twin"}
        assert delivered(rig, *ids(40))
        assert len(rig.calls()) - before <= 15
        assert {call.status for call in rig.calls()} <= {200, 400}


def test_a_property_that_is_not_unique_pauses_its_lane_and_no_other(tmp_path: Path) -> None:
    """At most 8 calls and then a pause, nothing parked; once it is unique, everything is delivered."""
    with rigged(tmp_path) as rig:
        rig.crm.define("partner_clients", "external_id")
        rig.ask_all(ids(250), lane=BY_EXTERNAL_ID)
        found = pause(rig, "misconfigured")
        assert (found.scope.value, found.target) == ("lane", "partner_clients/external_id")
        assert "non-unique partner_clients property external_id" in found.detail
        assert len(rig.calls()) <= 8
        rig.ask_all(ids(20))
        rig.until(lambda: delivered(rig, *ids(20)))
        assert rig.entries() == {}
        rig.crm.define("partner_clients", "external_id", unique=True)
        everything_arrives(rig, ids(250), lane=BY_EXTERNAL_ID)


NO_SUCH = 'Property "external_id" does not exist'

NO_SUCH_DETAIL = {"message": NO_SUCH, "code": "PROPERTY_DOESNT_EXIST", "context": {"propertyName": ["external_id"]}}


@pytest.mark.parametrize("per_input", [False, True], ids=["whole call", "per input"])
def test_an_id_property_that_the_portal_lacks_pauses_its_lane_and_parks_nothing(
    tmp_path: Path, per_input: bool
) -> None:
    """HubSpot may say so as it does of any property, for the call or once for each input."""

    def answer(call: Call) -> Response | None:
        if call.endpoint != "update" or all(one.id_property != "external_id" for one in call.inputs):
            return None
        error = {
            "category": "VALIDATION_ERROR",
            "message": "Property values were not valid",
            "errors": [NO_SUCH_DETAIL],
        }
        if not per_input:
            return says(400, error)
        errors = [{**error, "context": {"objectWriteTraceId": [one.trace_id]}} for one in call.inputs]
        return says(207, {"status": "COMPLETE", "results": [], "errors": errors, "numErrors": len(errors)})

    with rigged(tmp_path) as rig:
        rig.crm.on_call = answer
        rig.ask_all(ids(250), lane=BY_EXTERNAL_ID)
        found = pause(rig, "misconfigured")
        assert (found.scope.value, found.target) == ("lane", "partner_clients/external_id")
        assert len(rig.calls()) <= 8
        rig.ask_all(ids(20))
        rig.until(lambda: delivered(rig, *ids(20)))
        assert rig.entries() == {}
        rig.crm.define("partner_clients", "external_id", unique=True)
        rig.crm.on_call = None
        everything_arrives(rig, ids(250), lane=BY_EXTERNAL_ID)


def test_a_lane_is_taken_up_again_by_records_that_are_refused_for_their_own_values(tmp_path: Path) -> None:
    """Nothing else is there to probe with; each record's good properties are delivered."""
    with rigged(tmp_path) as rig:
        rig.crm.define("partner_clients", "external_id")
        wanted = {record: {"company_name": record, "tier": "platinum"} for record in ids(3)}
        rig.ask_all(wanted, lane=BY_EXTERNAL_ID)
        pause(rig, "misconfigured")
        rig.crm.behaviour.multi_status = False
        rig.crm.define("partner_clients", "external_id", unique=True)
        rig.until(lambda: delivered(rig, *ids(3), lane=BY_EXTERNAL_ID), passing_s=0.02)
        rig.until(rig.idle)
        assert all(rig.held(BY_EXTERNAL_ID)[record] == {"company_name": record} for record in ids(3))
        assert {entry.properties for entry in rig.parked().values()} == {("tier",)}
        assert rig.pauses() == []


def test_a_lane_whose_calls_are_all_refused_alike_pauses(tmp_path: Path) -> None:
    """The same 400 down to single inputs, naming nothing, without a success: not the records' fault."""
    with rigged(tmp_path) as rig:
        rig.crm.faults.always("whole-400")
        rig.ask_all(ids(100))
        found = pause(rig, "misconfigured")
        assert "Invalid input (details will vary based on the error)" in found.detail
        assert len(rig.calls()) <= 8
        assert rig.entries() == {}
        rig.crm.faults.clear()
        everything_arrives(rig, ids(100))


@pytest.mark.parametrize("multi_status", [True, False])
@pytest.mark.parametrize("name", ["retired_one", "hs_health_score"], ids=["unknown", "read-only"])
def test_a_property_that_nobody_can_write_costs_two_calls_in_ten_minutes(
    tmp_path: Path, multi_status: bool, name: str
) -> None:
    """Not one more for each batch; its values are refused with HubSpot's words, all else is delivered."""
    with rigged(tmp_path, batch_size=20) as rig:
        rig.crm.behaviour.multi_status = multi_status
        before = warm(rig)
        rig.ask_all({record: {"company_name": record, name: "1"} for record in ids(200)})
        rig.until(rig.idle)
        assert all(rig.held()[record] == {"company_name": record} for record in ids(200))
        assert {entry.properties for entry in rig.entries().values()} == {(name,)}
        assert len(rig.entries()) == 200
        assert all(name in entry.message for entry in rig.entries().values())
        # Calls that were open together with the first refusal meet it too.
        assert len(rig.calls()) - before <= 10 + 2 + 3 * 2
        rig.clock.shift(300)
        before = len(rig.calls())
        rig.ask_all({record: {"company_name": record, name: "1"} for record in ids(100, "d")})
        rig.until(rig.idle)
        assert len(rig.calls()) - before == 5
        rig.clock.shift(400)
        before = len(rig.calls())
        rig.ask_all({record: {"company_name": record, name: "1"} for record in ids(100, "e")})
        rig.until(rig.idle)
        assert 5 < len(rig.calls()) - before <= 5 + 2
        assert len(rig.entries()) == 400


def test_a_property_that_exists_at_last_is_delivered_by_the_next_asking_call(tmp_path: Path) -> None:
    with rigged(tmp_path) as rig:
        rig.ask("c1", {"company_name": "a", "shoe_size": "43"})
        rig.until(lambda: "c1" in rig.parked())
        rig.crm.define("partner_clients", "shoe_size")
        rig.clock.shift(601)
        rig.ask_all({"c2": {"shoe_size": "44"}, "c3": {"shoe_size": "45"}})
        rig.until(lambda: delivered(rig, "c2", "c3"))
        rig.ask("c1", {"shoe_size": "42"})
        rig.until(rig.idle)
        assert rig.held()["c1"] == {"company_name": "a", "shoe_size": "42"}
        assert rig.entries() == {}


# --- what concerns everything, a type or one call ---------------------------------------------------


def test_a_refused_token_pauses_everything_until_another_is_there(tmp_path: Path) -> None:
    with rigged(tmp_path, Crm(tokens=["token"])) as rig:
        warm(rig)
        rig.crm.access.accept_only("another")
        rig.ask_all(ids(30))
        assert pause(rig, "unauthorized").scope.value == "all"
        rig.token = "another"
        everything_arrives(rig, ids(30))


def test_f26_a_missing_scope_pauses_that_object_type_only(tmp_path: Path) -> None:
    """F26."""
    with rigged(tmp_path) as rig:
        rig.crm.on_call = lambda call: Fault("403") if call.object_type == "partner_services" else None
        rig.ask_all([str(number) for number in range(1, 31)], lane=SERVICES)
        found = pause(rig, "forbidden")
        assert (found.scope.value, found.target) == ("object_type", "partner_services")
        rig.ask_all(ids(30))
        rig.until(lambda: delivered(rig, *ids(30)))
        assert rig.entries() == {}
        before = len(rig.calls("partner_services"))
        assert before <= 12
        rig.crm.on_call = None
        rig.until(lambda: len(rig.held(SERVICES)) == 30)
        rig.until(lambda: rig.pauses() == [])
        assert rig.entries() == {}


def test_a_redirect_is_never_followed(tmp_path: Path) -> None:
    elsewhere = Crm()
    with SandboxServer(elsewhere) as other, rigged(tmp_path) as rig:
        path = "/crm/v3/objects/partner_clients/batch/update"
        rig.crm.faults.always(Fault("redirect", location=other.url + path))
        rig.ask_all(ids(3))
        pause(rig, "misconfigured")
        rig.until(lambda: len(rig.calls()) > 3)
        assert elsewhere.ledger.calls() == []


def test_f27_a_lock_delays_its_own_records_two_seconds_and_nobody_else(tmp_path: Path) -> None:
    """F27."""
    with rigged(tmp_path) as rig:
        warm(rig)
        rig.crm.on_call = once(says(423, {"status": "error", "message": "locked", "category": "LOCKED"}))
        rig.ask_all(ids(10))
        rig.until(lambda: len(rig.calls()) == 2)
        rig.crm.on_call = None
        for number in range(4):  # time enough for a mistake
            rig.ask(f"other{number}")
            rig.until(lambda: delivered(rig, f"other{number}"))  # noqa: B023 (run at once)
        assert not delivered(rig, "c0")
        assert rig.pauses() == []
        rig.clock.shift(2.0)
        everything_arrives(rig, ids(10))
        assert [call.status for call in rig.calls() if "c0" in {one.id for one in call.inputs}] == [423, 200]


def test_a_record_that_meets_lock_after_lock_is_asked_for_every_two_seconds_at_most(tmp_path: Path) -> None:
    """Also where `retry.base` is shorter than that."""
    with rigged(tmp_path) as rig:
        warm(rig)
        began: list[float] = []

        def answer(call: Call) -> Response | None:
            if all(one.id != "c1" for one in call.inputs):
                return None
            began.append(rig.clock.monotonic())
            return says(423, {"status": "error", "message": "locked"}) if len(began) < 4 else None

        rig.crm.on_call = answer
        rig.ask("c1")
        rig.until(lambda: delivered(rig, "c1"), passing_s=0.05)
        assert all(later - earlier >= 2.0 for earlier, later in pairwise(began))
        assert len(began) == 4


def test_f27_a_call_that_is_too_large_is_halved_and_a_single_record_parked(tmp_path: Path) -> None:
    """F27."""

    def answer(call: Call) -> Response | None:
        size = sum(len(value) for one in call.inputs for value in one.properties.values())
        return says(413, "Request Entity Too Large") if size > 5_000 else None

    with rigged(tmp_path) as rig:
        rig.crm.on_call = answer
        rig.ask_all({record: {"notes": "x" * 400} for record in ids(30)})
        rig.ask("huge", {"notes": "x" * 6_000})
        rig.until(rig.idle)
        assert delivered(rig, *ids(30))
        [entry] = rig.entries().values()
        assert (entry.record, entry.state, entry.category) == ("huge", "parked", "HTTP_413")
        assert "Request Entity Too Large" in entry.message
        assert len(rig.calls()) <= 15


@pytest.mark.parametrize(
    "told, body, seconds",
    [
        ("7", "TEN_SECONDLY_ROLLING", 7.0),
        ("date", "TEN_SECONDLY_ROLLING", 30.0),
        (None, "SECONDLY", 1.0),
        (None, "text", 10.0),
    ],
)
def test_a_429_pauses_everything_for_as_long_as_it_says(
    tmp_path: Path, told: str | None, body: str, seconds: float
) -> None:
    """With a number, a date or nothing; then everything is sent, and no call was wasted."""
    with rigged(tmp_path) as rig:
        warm(rig)
        header = formatdate(math.ceil(rig.clock.now()) + 30, usegmt=True) if told == "date" else told
        kind = "429-text" if body == "text" else "429"
        policy = "TEN_SECONDLY_ROLLING" if body == "text" else body
        rig.crm.faults.next(Fault(kind, retry_after=header, policy=policy))
        rig.ask_all(ids(5))
        found = pause(rig, "rate_limited")
        rig.ask_all(["7"], lane=SERVICES)
        assert found.scope.value == "all"
        assert abs(lasts_s(found) - seconds) <= (1.5 if told == "date" else 0.01)
        calls = len(rig.calls())
        rig.clock.shift(seconds * 0.7)
        assert rig.reasons() == ["rate_limited"]
        assert len(rig.calls()) == calls
        rig.clock.shift(seconds * 0.3 + 1.5)
        everything_arrives(rig, ids(5))
        assert len(rig.calls()) == calls + 2


def test_a_spent_daily_quota_is_probed_at_growing_intervals(tmp_path: Path) -> None:
    with rigged(tmp_path, retry=Retry(base_s=10, max_s=600)) as rig:
        warm(rig)
        rig.crm.faults.always(Fault("429", policy="DAILY"))
        rig.ask_all(ids(5))
        pause(rig, "daily_limit")
        calls = len(rig.calls())
        for minute in range(60):
            rig.clock.shift(60)
            rig.until(lambda: rig.dispatcher.in_flight == 0 and rig.reasons() == ["daily_limit"])
            assert minute < 59 or len(rig.calls()) - calls <= 40
        rig.crm.faults.clear()
        rig.clock.shift(601)
        everything_arrives(rig, ids(5))


def test_a_migrating_account_is_left_alone_for_as_long_as_it_says(tmp_path: Path) -> None:
    seconds = 20 * 3600.0
    with rigged(tmp_path) as rig:
        warm(rig)
        rig.crm.faults.next(Fault("477", retry_after=str(20 * 3600)))
        rig.ask_all(ids(5))
        found = pause(rig, "migrating")
        assert found.scope.value == "all"
        assert lasts_s(found) == pytest.approx(seconds, abs=0.01)
        rig.clock.shift(seconds + 0.1)
        everything_arrives(rig, ids(5))
        assert rig.parked() == {}


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault(kind) for kind in ("502-html", "503", "reset", "answer-lost")),
        Fault("timeout", hold_s=30),
        Fault("drip", pace_s=0.2),
        Fault("truncated"),
    ],
    ids=lambda fault: fault.kind,
)
def test_trouble_on_the_way_pauses_everything_and_loses_nothing(tmp_path: Path, fault: Fault) -> None:
    """For as long as it lasts one record at a time probes; then all goes, nothing was parked or counted."""
    with rigged(tmp_path, timeout_s=0.3) as rig:
        rig.crm.faults.always(fault)
        rig.ask_all(ids(120))
        found = pause(rig, "outage")
        assert found.scope.value == "all"
        rig.until(lambda: len(rig.calls()) >= 4, passing_s=0.1)
        assert rig.entries() == {}
        rig.crm.faults.clear()
        rig.until(lambda: delivered(rig, *ids(120)), passing_s=0.1)
        rig.until(lambda: rig.pauses() == [], passing_s=0.1)
        assert rig.parked() == {}
        # The probes were single records, and not those of the call that failed while others were there.
        assert all(len(call.inputs) == 1 for call in rig.calls()[2:4])


def test_an_answer_without_end_is_no_outage_and_is_believed_for_each_record_alone(tmp_path: Path) -> None:
    """Calls go again in halves, and of a single record's answer the result that was read is enough."""
    with rigged(tmp_path, timeout_s=20.0) as rig:
        rig.crm.faults.always(Fault("endless"))
        rig.ask_all(ids(7))
        rig.until(lambda: delivered(rig, *ids(7)) and rig.idle())
        assert [len(call.inputs) for call in rig.calls()].count(1) == 7
        assert rig.pauses() == []
        assert rig.entries() == {}
        assert rig.settled("delivered") == 7


def test_the_probe_of_an_outage_had_no_part_in_it(tmp_path: Path) -> None:
    """So one poisonous record cannot pass its trouble off as an outage: everything else goes on at once."""
    with rigged(tmp_path, retry=Retry(base_s=0.05, max_s=0.4, give_up_after_s=3600)) as rig:
        rig.crm.faults.poison("c0", kind="503")
        rig.ask_all(ids(100))
        rig.until(lambda: rig.reasons() == ["outage"])
        rig.ask("fresh")
        rig.until(lambda: delivered(rig, "fresh", *(set(ids(100)) - {"c0"})), passing_s=0.05)
        rig.until(lambda: rig.pauses() == [], passing_s=0.05)
        assert rig.parked() == {}


def test_half_a_surrogate_pair_within_a_message_refuses_the_value_as_any_other(tmp_path: Path) -> None:
    """JSON in the message of a 400 may hold it, cut out of the middle of an emoji; nothing can keep it."""
    inner = r'[{"isValid":false,"message":"\ud83d was not one of the allowed options","error":"INVALID_OPTION",'
    body = {
        "category": "VALIDATION_ERROR",
        "message": "Property values were not valid: " + inner + '"name":"company_name","propertyValue":"\\ud83d"}]',
    }
    with rigged(tmp_path) as rig:
        began = warm(rig)
        rig.crm.on_call = lambda call: says(400, body) if any(one.id == "c1" for one in call.inputs) else None
        rig.ask_all(["c1", "c2", "c3"])
        rig.until(lambda: delivered(rig, "c2", "c3") and rig.entries() != {}, passing_s=0.02)
        rig.until(rig.idle, passing_s=0.02)
        assert set(rig.entries()) == {"c1"}
        assert len(rig.calls()) - began <= 8


# --- what partners write is data --------------------------------------------------------------------


OWN_WORDS = {
    "bad0": "acme_client_id is non-unique",
    "bad1": "Unable to perform update/upsert by non-unique 0-2 property acme_client_id in portal ID 1",
    "bad2": 'Property "acme_client_id" does not exist',
}


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in company"])
@pytest.mark.parametrize("multi_status", [True, False], ids=["207", "400"])
def test_the_crms_own_words_as_a_value_stop_no_other_partner(tmp_path: Path, multi_status: bool, alone: bool) -> None:
    """HubSpot quotes the value in its message; only that value is refused, and no pause arises."""
    with rigged(tmp_path) as rig:
        rig.crm.behaviour.multi_status = multi_status
        before = warm(rig)
        for bad, words in OWN_WORDS.items():
            rig.ask(bad, {"company_name": "kept", "tier": words}, source="hostile")
            if alone:
                rig.until(lambda: rig.reasons() != [] or bad in rig.parked())  # noqa: B023 (run at once)
        rig.ask_all({record: {"company_name": record, "tier": "gold"} for record in ids(60)}, source="other")
        rig.until(lambda: rig.reasons() != [] or rig.idle())
        assert rig.pauses() == []
        assert all(rig.held()[record] == {"company_name": record, "tier": "gold"} for record in ids(60))
        assert all(rig.held()[bad] == {"company_name": "kept"} for bad in OWN_WORDS)
        assert rig.entries().keys() == OWN_WORDS.keys()
        assert {(entry.properties, entry.category) for entry in rig.entries().values()} == {
            (("tier",), "VALIDATION_ERROR")
        }
        assert len(rig.calls()) - before <= 2 * len(OWN_WORDS) + 2


def test_json_within_ids_retires_no_property(tmp_path: Path) -> None:
    """A CRM that folds letter case quotes them in `Duplicate IDs found in batch input: [{"error":…`."""
    told = '{"error":"PROPERTY_DOESNT_EXIST","name":"company_name","k":"%s"}'
    crm = Crm(open_properties=False, fold_case=True)
    crm.define("partner_clients", "external_id", unique=True)
    with rigged(tmp_path, crm) as rig:
        twins = [told % "a", told % "A"]
        rig.ask_all({twin: {"company_name": f"name {at}"} for at, twin in enumerate(twins)}, source="hostile")
        rig.until(rig.idle)
        assert rig.calls()[0].status == 400
        rig.ask_all(ids(20), lane=BY_EXTERNAL_ID, source="other")
        rig.until(rig.idle)
        assert rig.entries() == {}
        assert delivered(rig, *ids(20), lane=BY_EXTERNAL_ID)
        assert rig.held()[twins[0]] == {"company_name": "name 1"}


def test_a_value_that_holds_the_crms_sentence_refuses_no_allowed_value_of_others(tmp_path: Path) -> None:
    """ "gold was not one of the allowed options: [gold] was not one of …" is not about "gold"."""
    with rigged(tmp_path) as rig:
        rig.crm.behaviour.multi_status = False
        rig.crm.behaviour.naming = "context"
        warm(rig)
        told = "gold was not one of the allowed options: [gold]"
        rig.ask_all({**{record: {"tier": "gold"} for record in ids(60)}, "bad": {"tier": told, "notes": "kept"}})
        rig.until(rig.idle)
        assert rig.entries().keys() == {"bad"}
        assert all(rig.held()[record] == {"tier": "gold"} for record in ids(60))
        assert rig.held()["bad"] == {"notes": "kept"}


@pytest.mark.parametrize("naming", ["none", "words"])
@pytest.mark.parametrize("together", [True, False], ids=["in one call", "before them"])
def test_many_refusals_without_a_name_of_one_partner_hold_up_no_other(
    tmp_path: Path, naming: Any, together: bool
) -> None:
    """They look like a lane in which nothing is taken; the other's records go within a few calls, and none pauses. What
    is refused alike after the last success waits unjudged: it may be the lane.
    """
    with rigged(tmp_path) as rig:
        rig.crm.behaviour.multi_status = False
        rig.crm.behaviour.naming = naming
        bad, good = {record: {"tier": "platinum"} for record in ids(70, "bad")}, ids(30)
        rig.ask("before", source="other")
        rig.until(rig.idle)
        rig.ask_all(bad, source="hostile")
        if not together:
            rig.until(lambda: len(rig.calls()) > 2)
        rig.ask_all(good, source="other")
        rig.until(lambda: delivered(rig, *good))
        assert sum(any(one.id in good for one in call.inputs) for call in rig.calls()) <= 3
        rig.until(lambda: rig.reasons() != [] or rig.entries().keys() == bad.keys(), passing_s=0.02)
        assert rig.pauses() == []
