"""What answers mean: by status, by evidence for each input, and never more than the answer says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.crm.complaints import read_complaint
from bridge.crm.transport import Answer, Input, NoAnswer
from bridge.delivery.answers import (
    Broken,
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
from bridge.delivery.pauses import Stop
from bridge.model import Delivered, Outcome, Parked, Refused, RetryLater, Scope
from tests.answers import NOW_US, ROWS, Row, criteria, sent
from tests.examples import examples
from tests.fakes_delivery import confirmed, inputs, ok, record


def verdict(sent: Sequence[Input], answer: Answer | NoAnswer) -> Meaning:
    return judge(sent, answer, criteria())


def judged(sent: Sequence[Input], body: Any) -> Judged:
    told = verdict(sent, Answer(207, body))
    assert isinstance(told, Judged)
    return told


def by_ref(told: Judged) -> dict[int, Outcome]:
    return {outcome.record.ref: outcome for outcome in told.outcomes}


def stopped(answer: Answer | NoAnswer) -> Stop:
    told = verdict(sent(1), answer)
    assert isinstance(told, Stopped | Broken)
    return told.stop


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_answer_means_what_its_row_says(row: Row) -> None:
    row.check(row.answer)


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


def test_an_outage_told_of_each_input_is_told_in_hubspots_words() -> None:
    some = sent(1, 2)
    errors = [{"category": "RATE_LIMITS", "message": "try again", "context": {"ids": [str(ref)]}} for ref in (1, 2)]
    told = verdict(some, Answer(207, {"results": [], "errors": errors}))
    assert isinstance(told, Broken)
    assert "try again" in told.stop.detail
    assert told.reason.category == "RATE_LIMITS"


def test_one_inputs_bad_id_is_not_the_lanes_fault() -> None:
    """Words that quote what a partner wrote say nothing about the lane."""
    message = "Unable to perform update: 'x' is no valid acme_client_id"
    complaint = read_complaint({"category": "VALIDATION_ERROR", "message": message})
    assert not complaint.blames_id_property("acme_client_id")
    not_unique = read_complaint({"message": "Property acme_client_id is not a unique property"})
    assert not_unique.blames_id_property("acme_client_id")


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
    "answer, reason, kind",
    [
        (NoAnswer("token", doubtful=False, detail=""), "unauthorized", Stopped),
        (NoAnswer("connect", doubtful=False, detail=""), "outage", Stopped),
        (NoAnswer("tls", doubtful=False, detail=""), "outage", Stopped),
        (NoAnswer("timeout", doubtful=True, detail=""), "outage", Broken),
        (NoAnswer("truncated", doubtful=True, detail=""), "outage", Broken),
    ],
)
def test_a_call_without_an_answer_pauses_everything(answer: NoAnswer, reason: str, kind: type) -> None:
    """What was never sent cannot be to blame."""
    told = verdict(sent(1), answer)
    assert type(told) is kind
    assert (stopped(answer).scope, stopped(answer).reason) == (Scope.ALL, reason)


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
