"""What answers mean: by status, by evidence for each input, and never more than the answer says."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.crm.complaints import read_complaint
from bridge.crm.transport import Answer, Input, NoAnswer
from bridge.delivery.answers import (
    Broken,
    Criteria,
    Judged,
    Locked,
    Meaning,
    Rejected,
    Stopped,
    TooLarge,
    doubtful,
    judge,
    retry_after_s,
)
from bridge.delivery.pauses import Backoff, RetryPolicy, Stop
from bridge.delivery.ports import OnUnknown
from bridge.model import Delivered, Ignored, Outcome, Parked, Refused, RetryLater, Scope
from tests.examples import examples
from tests.fakes_delivery import BY_RECORD_ID, CLIENTS, confirmed, inputs, ok, record

NOW_US = 1_700_000_000_000_000


def criteria(on_unknown: OnUnknown = "park") -> Criteria:
    backoff = Backoff(base_s=2.0, max_s=60.0, chance=random.Random(1))
    return Criteria(lambda _: on_unknown, RetryPolicy(backoff, 86_400.0), NOW_US)


def verdict(sent: Sequence[Input], answer: Answer | NoAnswer, on_unknown: OnUnknown = "park") -> Meaning:
    return judge(sent, answer, criteria(on_unknown))


def judged(sent: Sequence[Input], body: Any, on_unknown: OnUnknown = "park") -> Judged:
    told = verdict(sent, Answer(207, body), on_unknown)
    assert isinstance(told, Judged)
    return told


def by_ref(told: Judged) -> dict[int, Outcome]:
    return {outcome.record.ref: outcome for outcome in told.outcomes}


def sent(*refs: int, by_record_id: bool = False) -> list[Input]:
    lane = BY_RECORD_ID if by_record_id else CLIENTS
    return inputs(*(record(ref, lane=lane) for ref in refs))


def stopped(answer: Answer | NoAnswer) -> Stop:
    told = verdict(sent(1), answer)
    assert isinstance(told, Stopped | Broken)
    return told.stop


# --- 2xx: results -------------------------------------------------------------------------------


def test_results_confirm_by_trace_id() -> None:
    some = sent(1, 2)
    results = [{"id": "x", "objectWriteTraceId": one.trace_id} for one in reversed(some)]
    assert {type(one) for one in judged(some, {"results": results}).outcomes} == {Delivered}


def test_results_confirm_by_record_id_in_any_order() -> None:
    some = sent(1, 2, 3, by_record_id=True)
    told = judged(some, {"results": [{"id": "3"}, {"id": 1}, {"id": "2"}]})
    assert by_ref(told).keys() == {1, 2, 3}


def test_results_without_an_id_confirm_by_the_property_that_repeats_it() -> None:
    results = [{"properties": {"hs_object_id": "2"}}, {"properties": {"hs_object_id": 1}}]
    told = judged(sent(1, 2, by_record_id=True), {"results": results})
    assert {ref: type(outcome) for ref, outcome in by_ref(told).items()} == {1: Delivered, 2: Delivered}


def test_results_confirm_by_the_id_propertys_value_however_it_is_spelled() -> None:
    one, other = sent(1, 2)
    key = replace(one.record.key, id="Ann@X.com")
    some = [Input(replace(one.record, key=key), one.trace_id), other]
    results = [{"id": "77", "properties": {"acme_client_id": "ann@x.com "}}]
    told = judged(some, {"results": results})
    assert by_ref(told).keys() == {1}
    assert [silent.ref for silent in told.silent] == [2]


def test_a_record_id_that_equals_another_inputs_id_confirms_nothing() -> None:
    """By id property, HubSpot's own ids mean nothing to us."""
    some = sent(1, 2, 3)
    told = judged(some, {"results": [{"id": "2", "properties": {"acme_client_id": "1"}}]})
    assert by_ref(told).keys() == {1}
    assert [silent.ref for silent in told.silent] == [2, 3]


def test_as_many_results_as_inputs_left_over_confirm_them() -> None:
    """Records were merged: HubSpot answers under other ids."""
    told = judged(sent(1, 2, by_record_id=True), {"results": [{"id": "1"}, {"id": "900"}]})
    assert by_ref(told).keys() == {1, 2}


@pytest.mark.parametrize(
    "results",
    [
        [{"id": "1"}],
        [{"id": "1"}, {"id": "1"}],
        [{"id": "1"}, {}],
        [{"id": "1"}, {"id": "8"}, {"id": "9"}],
        [{"id": "1"}, "2", None, ["2"]],
    ],
)
def test_an_input_without_evidence_is_silent(results: list[Any]) -> None:
    told = judged(sent(1, 2, by_record_id=True), {"results": results})
    assert by_ref(told).keys() == {1}
    assert [silent.ref for silent in told.silent] == [2]


def test_a_vague_error_keeps_left_over_results_from_confirming() -> None:
    body = {"results": [{"id": "1"}, {"id": "900"}], "errors": [{"category": "VALIDATION_ERROR"}]}
    told = judged(sent(1, 2, by_record_id=True), body)
    assert by_ref(told).keys() == {1}


@pytest.mark.parametrize("body", [None, [], "ok", 5, {}, {"results": []}, {"results": {"id": "1"}}])
def test_an_answer_that_confirms_nothing_is_an_outage(body: Any) -> None:
    told = verdict(sent(1, 2), Answer(200, body))
    assert isinstance(told, Broken)
    assert told.stop.scope is Scope.ALL


def test_silence_about_a_single_input_is_silence() -> None:
    told = judged(sent(1), {"results": [], "errors": []})
    assert told.outcomes == ()
    assert [silent.ref for silent in told.silent] == [1]


@pytest.mark.parametrize("status", ["PENDING", "PROCESSING", "CANCELED", "CANCELLED", "pending"])
def test_an_unfinished_call_delivers_only_what_it_confirms(status: str) -> None:
    some = sent(1, 2)
    answer = Answer(202, {"status": status, "results": [*confirmed(some[:1]), {"id": "x"}]})
    told = verdict(some, answer)
    assert isinstance(told, Judged)
    assert {ref: type(outcome) for ref, outcome in by_ref(told).items()} == {1: Delivered, 2: RetryLater}
    assert doubtful(answer)
    nothing = verdict(some, Answer(202, {"status": status, "results": []}))
    assert isinstance(nothing, Broken)


# --- 2xx: errors --------------------------------------------------------------------------------


def test_a_validation_error_refuses_the_properties_it_names_in_hubspots_words() -> None:
    some = inputs(record(1, {"tier": "wood", "name": "A"}), record(2))
    inside = (
        '[{"isValid":false,"message":"wood was not one of the allowed options","error":"INVALID_OPTION","name":"tier"}]'
    )
    error = {
        "status": "error",
        "category": "VALIDATION_ERROR",
        "message": f"Property values were not valid: {inside}",
        "context": {"objectWriteTraceId": ["t1"]},
    }
    outcome = by_ref(judged(some, {"results": confirmed(some[1:]), "errors": [error]}))[1]
    assert isinstance(outcome, Refused)
    assert outcome.properties.keys() == {"tier"}
    assert outcome.properties["tier"].category == "VALIDATION_ERROR"
    assert outcome.properties["tier"].message == "wood was not one of the allowed options"


def test_of_an_error_about_several_inputs_each_pays_for_its_own_values_only() -> None:
    """Record 3 may be meant or not, as it has another value: nothing is held against it before it is asked alone."""
    some = inputs(record(1, {"tier": "wood", "name": "A"}), record(2, {"tier": "gold", "size": "many"}))
    some += inputs(record(3, {"tier": "gold", "name": "B"}), record(4))
    errors = [
        {"message": f"{value} was not a valid one", "code": "INVALID_OPTION", "context": {"propertyName": [name]}}
        for name, value in {"tier": "wood", "size": "many"}.items()
    ]
    error = {"category": "VALIDATION_ERROR", "context": {"ids": ["1", "2", "3"]}, "errors": errors}
    told = judged(some, {"results": confirmed(some[3:]), "errors": [error]})
    refused = {ref: one.properties.keys() for ref, one in by_ref(told).items() if isinstance(one, Refused)}
    assert refused == {1: {"tier"}, 2: {"size"}}
    assert [silent.ref for silent in told.silent] == [3]


def test_an_error_that_names_inputs_but_nobodys_values_is_no_outage() -> None:
    """HubSpot may tell a value otherwise than it was sent: those inputs are asked for alone, all others go on."""
    some = inputs(record(1, {"tier": "wood "}), record(2, {"tier": "Gold"}))
    told_value = {
        "message": "wood was not a valid one",
        "code": "INVALID_OPTION",
        "context": {"propertyName": ["tier"]},
    }
    error = {"category": "VALIDATION_ERROR", "context": {"ids": ["1", "2"]}, "errors": [told_value]}
    told = judged(some, {"results": [], "errors": [error]})
    assert told.outcomes == ()
    assert [silent.ref for silent in told.silent] == [1, 2]


def test_one_inputs_bad_id_is_not_the_lanes_fault() -> None:
    """Words that quote what a partner wrote say nothing about the lane."""
    message = "Unable to perform update: 'x' is no valid acme_client_id"
    complaint = read_complaint({"category": "VALIDATION_ERROR", "message": message})
    assert not complaint.blames_id_property("acme_client_id")
    not_unique = read_complaint({"message": "Property acme_client_id is not a unique property"})
    assert not_unique.blames_id_property("acme_client_id")


def test_errors_name_inputs_however_their_ids_are_spelled() -> None:
    """HubSpot writes an e-mail address in lower case."""
    some = [
        replace(one, record=replace(one.record, key=replace(one.record.key, id=id_)))
        for one, id_ in zip(sent(1, 2), ("Ann@X.com", "Bob@X.com"), strict=True)
    ]
    error = {"category": "OBJECT_NOT_FOUND", "context": {"ids": ["ann@x.com"]}}
    told = by_ref(judged(some, {"results": confirmed(some[1:]), "errors": [error]}))
    assert {ref: type(outcome) for ref, outcome in told.items()} == {1: Parked, 2: Delivered}


def test_a_validation_error_about_the_id_property_of_every_input_is_no_records_fault() -> None:
    some = sent(1, 2)
    message = "Unable to perform update/upsert by non-unique 0-5 property acme_client_id in portal ID 1"
    errors = [
        {"category": "VALIDATION_ERROR", "message": message, "context": {"objectWriteTraceId": [one.trace_id]}}
        for one in some
    ]
    told = verdict(some, Answer(207, {"results": [], "errors": errors}))
    assert isinstance(told, Rejected)
    assert told.complaint.blames_id_property("acme_client_id")


@pytest.mark.parametrize("category", ["VALIDATION_ERROR", "OBJECT_NOT_FOUND"])
def test_an_error_whose_ids_are_none_of_ours_is_no_outage(category: str) -> None:
    """HubSpot may write an id otherwise than we know how to read: those inputs are asked for alone, nobody waits."""
    told = judged(sent(1, 2), {"results": [], "errors": [{"category": category, "context": {"ids": ["one", "two"]}}]})
    assert told.outcomes == ()
    assert [silent.ref for silent in told.silent] == [1, 2]


def test_a_validation_error_that_names_no_property_of_ours_parks_the_record() -> None:
    error = {
        "category": "VALIDATION_ERROR",
        "message": "needs more",
        "context": {"ids": ["1"], "propertyName": ["required_elsewhere"]},
    }
    some = sent(1, 2)
    outcome = by_ref(judged(some, {"results": confirmed(some[1:]), "errors": [error]}))[1]
    assert isinstance(outcome, Parked)
    assert outcome.reason.message == "needs more"


@pytest.mark.parametrize("policy, kind", [("park", Parked), ("wait", RetryLater), ("ignore", Ignored)])
def test_unknown_records_go_the_way_of_their_source(policy: OnUnknown, kind: type) -> None:
    """One entry may cover several inputs."""
    error = {"category": "OBJECT_NOT_FOUND", "context": {"ids": ["1", "3"], "objectWriteTraceId": ["t1,t3"]}}
    some = sent(1, 2, 3)
    told = by_ref(judged(some, {"results": confirmed(some[1:2]), "errors": [error]}, policy))
    assert {ref: type(outcome) for ref, outcome in told.items()} == {1: kind, 2: Delivered, 3: kind}


@pytest.mark.parametrize(
    "category, kind", [("RATE_LIMITS", RetryLater), (None, RetryLater), (7, RetryLater), ("CONFLICT", Parked)]
)
def test_other_errors_are_permanent_unless_their_category_passes(category: Any, kind: type) -> None:
    some = sent(1, 2)
    body = {"results": confirmed(some[1:]), "errors": [{"category": category, "context": {"ids": ["1"]}}]}
    assert type(by_ref(judged(some, body))[1]) is kind


@pytest.mark.parametrize("category", ["RATE_LIMITS", "INTERNAL_ERROR", None])
@pytest.mark.parametrize("refs", [(1,), (1, 2, 3)])
def test_an_error_about_every_input_that_may_pass_is_an_outage(refs: tuple[int, ...], category: str | None) -> None:
    """As a 503 would be, whose fault it is nobody can tell."""
    some = sent(*refs)
    errors = [
        {"category": category, "message": "try again", "context": {"objectWriteTraceId": [one.trace_id]}}
        for one in some
    ]
    told = verdict(some, Answer(207, {"results": [], "errors": errors}))
    assert isinstance(told, Broken)
    assert told.stop.scope is Scope.ALL
    assert "try again" in told.stop.detail
    assert told.reason.category == (category or "UNKNOWN")


@pytest.mark.parametrize("refs", [(1,), (1, 2, 3)])
def test_a_lock_on_every_input_is_a_lock_as_423_is(refs: tuple[int, ...]) -> None:
    errors = [{"category": "LOCKED", "context": {"ids": [str(ref)]}} for ref in refs]
    assert isinstance(verdict(sent(*refs), Answer(207, {"results": [], "errors": errors})), Locked)


def test_an_error_outweighs_a_result_for_the_same_input() -> None:
    some = sent(1, 2)
    body = {"results": confirmed(some), "errors": [{"category": "CONFLICT", "context": {"ids": ["1"]}}]}
    assert {ref: type(one) for ref, one in by_ref(judged(some, body)).items()} == {1: Parked, 2: Delivered}


def test_the_result_of_an_input_with_an_error_confirms_no_other() -> None:
    some = sent(1, 2, by_record_id=True)
    body = {"results": [{"id": "1"}], "errors": [{"category": "CONFLICT", "context": {"ids": ["1"]}}]}
    told = judged(some, body)
    assert by_ref(told).keys() == {1}
    assert [silent.ref for silent in told.silent] == [2]


def test_an_error_that_names_nobody_is_about_the_only_input() -> None:
    outcome = by_ref(judged(sent(1), {"errors": [{"category": "CONFLICT", "message": "taken"}]}))[1]
    assert isinstance(outcome, Parked)


# --- the whole call -----------------------------------------------------------------------------


def test_a_400_is_isolated_by_what_it_names() -> None:
    body = {
        "status": "error",
        "category": "VALIDATION_ERROR",
        "message": 'Property values were not valid: [{"error":"INVALID_LONG","name":"size","propertyValue":"x"},'
        '{"error":"PROPERTY_DOESNT_EXIST","name":"ghost"}]',
        "errors": [{"message": "no", "code": "PROPERTY_DOESNT_EXIST", "context": {"propertyName": ["ghost"]}}],
        "context": {"ids": ["1"], "objectWriteTraceId": ["t1"]},
    }
    told = verdict(sent(1), Answer(400, body))
    assert isinstance(told, Rejected)
    complaint = told.complaint
    assert complaint.properties == {"size", "ghost"}
    assert complaint.values == {("size", "x")}
    assert complaint.definitions == {"ghost"}
    assert complaint.ids == {"1"}
    assert complaint.trace_ids == {"t1"}


@pytest.mark.parametrize(
    "answer, scope, reason, kind",
    [
        (Answer(401), Scope.ALL, "unauthorized", Stopped),
        (Answer(403), Scope.OBJECT_TYPE, "forbidden", Broken),
        (Answer(404), Scope.OBJECT_TYPE, "misconfigured", Broken),
        (Answer(302, headers={"location": "http://elsewhere"}), Scope.OBJECT_TYPE, "misconfigured", Broken),
        (Answer(405), Scope.OBJECT_TYPE, "misconfigured", Broken),
        (Answer(429), Scope.ALL, "rate_limited", Stopped),
        (Answer(477), Scope.ALL, "migrating", Stopped),
        (Answer(500), Scope.ALL, "outage", Broken),
        (Answer(503), Scope.ALL, "outage", Broken),
        (Answer(521), Scope.ALL, "outage", Broken),
        (Answer(999), Scope.ALL, "outage", Broken),
        (NoAnswer("token", doubtful=False, detail=""), Scope.ALL, "unauthorized", Stopped),
        (NoAnswer("connect", doubtful=False, detail=""), Scope.ALL, "outage", Stopped),
        (NoAnswer("tls", doubtful=False, detail=""), Scope.ALL, "outage", Stopped),
        (NoAnswer("timeout", doubtful=True, detail=""), Scope.ALL, "outage", Broken),
        (NoAnswer("truncated", doubtful=True, detail=""), Scope.ALL, "outage", Broken),
    ],
)
def test_trouble_pauses_exactly_what_it_concerns(
    answer: Answer | NoAnswer, scope: Scope, reason: str, kind: type
) -> None:
    told = verdict(sent(1), answer)
    assert type(told) is kind
    assert (stopped(answer).scope, stopped(answer).reason) == (scope, reason)


@pytest.mark.parametrize("status", [408, 409, 423, 425])
def test_locks_are_conflicts(status: int) -> None:
    assert isinstance(verdict(sent(1), Answer(status)), Locked)


@pytest.mark.parametrize("status", [413, 414])
def test_too_much_is_halved(status: int) -> None:
    assert isinstance(verdict(sent(1), Answer(status)), TooLarge)


# --- an answer that is too large ----------------------------------------------------------------


def oversize(body: Any, *, status: int = 200) -> NoAnswer:
    return NoAnswer("oversize", doubtful=True, detail="answer over 9 bytes", status=status, body=body)


def test_an_answer_that_is_too_large_is_halved_whatever_it_says() -> None:
    assert isinstance(verdict(sent(1, 2), oversize({"results": confirmed(sent(1, 2))})), TooLarge)
    assert isinstance(verdict(sent(1, 2), oversize({}, status=400)), TooLarge)


@pytest.mark.parametrize(
    "result", [{"objectWriteTraceId": "t1"}, {"id": "9", "properties": {"acme_client_id": "1"}}, {"id": "9"}]
)
def test_a_single_record_is_confirmed_by_the_result_that_was_read(result: dict[str, Any]) -> None:
    """It names the record, or is the only one in a complete answer to a call with no other record."""
    found = verdict(sent(1), oversize({"status": "COMPLETE", "results": [result]}))
    assert isinstance(found, Judged)
    assert found.outcomes == (Delivered(sent(1)[0].record),)


@pytest.mark.parametrize(
    "answer",
    [
        oversize({"status": "COMPLETE", "results": []}),
        oversize({"status": "COMPLETE"}),
        oversize({}),
        oversize({"results": [{"id": "9"}]}),  # nothing says that it is complete
        oversize({"status": "PENDING", "results": [{"id": "9"}]}),
        oversize({"status": "COMPLETE", "results": [{"id": "9"}]}, status=207),  # with errors that were not read
        oversize({"status": "COMPLETE", "results": [{"id": "9"}, {"id": "8"}]}),
        oversize({"status": "COMPLETE", "results": [{"objectWriteTraceId": "t1"}]}, status=400),
    ],
)
def test_a_single_record_of_which_nothing_was_read_is_sent_again_later(answer: NoAnswer) -> None:
    assert isinstance(verdict(sent(1), answer), Locked)


def test_an_error_that_was_read_counts_too() -> None:
    error = {"category": "OBJECT_NOT_FOUND", "context": {"objectWriteTraceId": ["t1"]}, "message": "no such object"}
    found = verdict(sent(1), oversize({"status": "COMPLETE", "errors": [error]}, status=207))
    assert isinstance(found, Judged)
    assert [type(outcome) for outcome in found.outcomes] == [Parked]


def test_what_is_too_large_and_none_of_the_crms_answers_is_an_outage() -> None:
    assert isinstance(verdict(sent(3), oversize(None)), Broken)


@pytest.mark.parametrize(
    "status, expected", [(502, True), (504, True), (524, True), (500, False), (400, False), (429, False)]
)
def test_doubt_is_left_by_proxies_that_gave_up_only(status: int, expected: bool) -> None:
    assert doubtful(Answer(status)) is expected


def test_doubt_is_left_by_unreadable_answers() -> None:
    assert doubtful(Answer(200, None))
    assert not doubtful(ok(sent(1)))
    assert doubtful(NoAnswer("reset", doubtful=True, detail=""))
    assert not doubtful(NoAnswer("connect", doubtful=False, detail=""))


@pytest.mark.parametrize(
    "told, expected",
    [
        ("7", 7.0),
        ("0", 0.0),
        ("1.5", 1.5),
        (" 12 ", 12.0),
        ("31536000", 3600.0),
        ("9" * 400, 3600.0),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2023 22:13:50", 30.0),
        ("Tue, 14 Nov 2000 22:13:50 GMT", None),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("²", None),
        ("nan", None),
        ("Tue, 99 Nov 9999999 22:13:50 GMT", None),
    ],
)
def test_retry_after_is_read_capped_or_ignored(told: str, expected: float | None) -> None:
    answer = Answer(429, headers={"retry-after": told})
    assert retry_after_s(answer, now_us=NOW_US, at_most_s=3600.0) == expected


@pytest.mark.parametrize(
    "body, headers, delay_s, probes",
    [
        ({"policyName": "TEN_SECONDLY_ROLLING"}, {}, 10.0, False),
        ({"message": "You have reached your secondly limit."}, {}, 1.0, False),
        ({"message": "You have reached your ten_secondly_rolling limit."}, {}, 10.0, False),
        ({"policyName": "DAILY"}, {}, None, True),
        ({"policyName": "DAILY"}, {"retry-after": "60"}, 60.0, True),
        ({"policyName": "DAILY"}, {"retry-after": "0"}, 0.5, True),
        (None, {"retry-after": "0"}, 0.5, False),  # or there would be no pause at all
        ({"policyName": ["DAILY"]}, {}, 10.0, False),
        ({"message": "You have reached your daily limit."}, {}, None, True),
        ({"message": "'DAILY' was not a valid number."}, {}, 10.0, False),
        ({"policyName": "SECONDLY", "message": "You have reached your daily limit."}, {}, 1.0, False),
        (None, {}, 10.0, False),
        (None, {"x-hubspot-ratelimit-interval-milliseconds": "20000"}, 20.0, False),
        (None, {"x-hubspot-ratelimit-interval-milliseconds": "²"}, 10.0, False),
    ],
)
def test_a_429_pauses_by_its_policy(body: Any, headers: dict[str, str], delay_s: float | None, probes: bool) -> None:
    told = stopped(Answer(429, body, headers=headers))
    assert (told.delay_s, told.probes) == (delay_s, probes)


def test_a_migration_is_waited_out_for_a_day_at_most() -> None:
    assert stopped(Answer(477, headers={"retry-after": "7200"})).delay_s == 7200.0
    assert stopped(Answer(477, headers={"retry-after": "0"})).delay_s == 0.5
    assert stopped(Answer(477, headers={"retry-after": "999999"})).delay_s == 86_400.0


# --- hostile bodies -----------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(allow_nan=False),
    st.sampled_from(["1", "2", "t1", "t2", "t1,t2", "name", "VALIDATION_ERROR", "OBJECT_NOT_FOUND", "PENDING"]),
    st.text(max_size=5),
)
keys = st.sampled_from(
    ["results", "errors", "status", "id", "ids", "context", "category", "message", "properties", "name",
     "objectWriteTraceId", "propertyName", "code", "error", "propertyValue", "acme_client_id"]
)  # fmt: skip
bodies = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=5)),
    max_leaves=25,
)


@settings(max_examples=examples(120), deadline=None)
@given(
    body=bodies,
    status=st.sampled_from([200, 207, 202, 400, 401, 404, 413, 423, 429, 477, 500, 302]),
    lane=st.booleans(),
)
def test_no_body_raises_and_nothing_is_delivered_without_evidence(body: Any, status: int, lane: bool) -> None:
    some = sent(1, 2, by_record_id=lane)
    answer = Answer(status, body)
    told = verdict(some, answer)
    doubtful(answer)
    if not isinstance(told, Judged):
        return
    assert isinstance(body, dict)
    refs = [outcome.record.ref for outcome in told.outcomes] + [one.ref for one in told.silent]
    assert sorted(refs) == [1, 2]
    delivered = [outcome for outcome in told.outcomes if isinstance(outcome, Delivered)]
    results = [result for result in body["results"] if isinstance(result, dict)] if delivered else []
    assert len(delivered) <= len(results)


@given(st.text(), st.text())
def test_any_message_is_read(message: str, told: str) -> None:
    read_complaint({"message": message + '[{"name": "a", "error": "INVALID_X"' + told})
    read_complaint({"message": "[{" * 50_000})


def test_messages_are_cut_and_hold_no_nul() -> None:
    complaint = read_complaint({"category": "VALIDATION_ERROR", "message": "a\x00b" + "c" * 10_000})
    assert complaint.reason.message.startswith("abc")
    assert len(complaint.reason.message) == 500


def test_a_category_becomes_a_label_only_if_it_looks_like_one() -> None:
    assert read_complaint({"category": "evil label\n" * 100}).reason.category == "UNKNOWN"


# --- what people are told -----------------------------------------------------------------------

SCOPES = {"errors": [{"message": "One is required.", "context": {"requiredGranularScopes": ["crm.objects.x.write"]}}]}


@pytest.mark.parametrize(
    "status, body, words",
    [
        (
            403,
            {"message": "This app lacks scopes.", **SCOPES},
            "This app lacks scopes. (required scopes: crm.objects.x.write)",
        ),
        (403, SCOPES, "One is required. (required scopes: crm.objects.x.write)"),
        (403, {"context": {"requiredScopes": ["contacts"]}}, "(required scopes: contacts)"),
        (400, {"errors": [{"message": "first"}, {"message": "second"}, {"message": "first"}]}, "first; second"),
        (400, {}, "HTTP 400: {}"),
        (400, {"status": "error"}, 'HTTP 400: {"status":"error"}'),
        (400, None, "HTTP 400: <html>"),
        (500, {}, "HTTP 500: {}"),
        (503, None, "HTTP 503: <html>"),
    ],
)
def test_a_failure_is_never_without_words(status: int, body: Any, words: str) -> None:
    """HubSpot's own, its errors' and the scopes it asks for; else the status and the beginning of the body."""
    told = verdict(sent(1), Answer(status, body, excerpt="<html>" if body is None else ""))
    assert isinstance(told, Rejected | Broken)
    assert words in (told.complaint.reason.message if isinstance(told, Rejected) else told.stop.detail)


@pytest.mark.parametrize("entry", [{}, {"category": "VALIDATION_ERROR"}, {"category": "OBJECT_NOT_FOUND"}])
def test_an_error_about_one_input_is_never_without_words(entry: dict[str, Any]) -> None:
    """Its own JSON, where it says nothing."""
    [one, _] = some = sent(1, 2)
    entry = {**entry, "context": {"objectWriteTraceId": [one.trace_id]}}
    told = judged(some, {"results": [{"objectWriteTraceId": some[1].trace_id}], "errors": [entry]})
    reasons = [outcome.reason for outcome in told.outcomes if isinstance(outcome, Parked | RetryLater)]
    reasons += [complaint.reason for _, complaint in told.unexplained]
    assert [one.trace_id in reason.message for reason in reasons] == [True]
