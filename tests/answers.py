"""HubSpot's answers, one a row: what becomes of the call's inputs, and whether delivery pauses.

`tests/unit/test_answers.py` has each row judged, `tests/integration/test_answers_over_http.py` once it came over HTTP.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bridge.crm.transport import Answer, Input, NoAnswer
from bridge.delivery.answers import Broken, Criteria, Judged, Meaning, Stopped, doubtful, judge
from bridge.delivery.pauses import Backoff, RetryPolicy
from bridge.delivery.ports import OnUnknown
from bridge.model import Delivered, Ignored, Outcome, Parked, Refused, RetryLater, Scope
from tests.fakes_delivery import BY_RECORD_ID, inputs, record

NOW_US = 1_700_000_000_000_000
WORDS = {Delivered: "delivered", Parked: "parked", RetryLater: "later", Ignored: "ignored", Refused: "refused"}


def criteria(on_unknown: OnUnknown = "park") -> Criteria:
    backoff = Backoff(base_s=2.0, max_s=60.0, chance=random.Random(1))
    return Criteria(lambda _: on_unknown, RetryPolicy(backoff, 86_400.0), NOW_US)


def sent(*refs: int, by_record_id: bool = False) -> list[Input]:
    """Inputs whose ids are these numbers, and `t1`, `t2` … their trace ids."""
    return inputs(*(record(ref, lane=BY_RECORD_ID) if by_record_id else record(ref) for ref in refs))


def spelled(*ids: str) -> list[Input]:
    """The same with these ids."""
    told = zip(sent(*range(1, len(ids) + 1)), ids, strict=True)
    return [replace(one, record=replace(one.record, key=replace(one.record.key, id=id_))) for one, id_ in told]


def told(meaning: Meaning, some: Sequence[Input]) -> str:
    """What becomes of each input in a word, with what is refused of it; else of the whole call, by its class."""
    if not isinstance(meaning, Judged):
        return type(meaning).__name__
    words = {one.ref: "silent" for one in meaning.silent}
    words |= {one.record.ref: "unexplained" for one, _ in meaning.unexplained}
    words |= {outcome.record.ref: _word(outcome) for outcome in meaning.outcomes}
    assert words.keys() == {one.record.ref for one in some}
    return " ".join(words[one.record.ref] for one in some)


def _word(outcome: Outcome) -> str:
    of = ":" + ",".join(sorted(outcome.properties)) if isinstance(outcome, Refused) else ""
    return WORDS[type(outcome)] + of


@dataclass(frozen=True)
class Row:
    """`becomes` as `told` says it; `pause` the scope and the reason. A body that is a text is no JSON."""

    name: str
    status: int
    body: Any
    becomes: str
    pause: tuple[Scope, str] | None = None
    inputs: Sequence[Input] = field(default_factory=lambda: sent(1, 2))
    headers: Mapping[str, str] = field(default_factory=dict)
    on_unknown: OnUnknown = "park"
    delay_s: float | None = None
    probes: bool = True
    doubtful: bool = False

    @property
    def answer(self) -> Answer:
        if isinstance(self.body, str):
            return Answer(self.status, excerpt=self.body[:500], headers=self.headers)
        return Answer(self.status, self.body, headers=self.headers)

    def check(self, answer: Answer | NoAnswer) -> None:
        """That this answer leads to what the row says."""
        meaning = judge(self.inputs, answer, criteria(self.on_unknown))
        assert told(meaning, self.inputs) == self.becomes
        stop = meaning.stop if isinstance(meaning, Stopped | Broken) else None
        assert (stop and (stop.scope, stop.reason)) == self.pause
        assert stop is None or (stop.delay_s, stop.probes) == (self.delay_s, self.probes)
        assert doubtful(answer) is self.doubtful


def by(ref: int) -> dict[str, Any]:
    """The result that confirms this input."""
    return {"id": f"9{ref}", "objectWriteTraceId": f"t{ref}"}


def says(*results: Any, errors: Sequence[Any] = (), **more: Any) -> dict[str, Any]:
    return {"results": list(results), "errors": list(errors), **more}


def error(category: Any, *ids: str, **more: Any) -> dict[str, Any]:
    return {"category": category, "context": {"ids": list(ids)}, **more}


UNKNOWN = "OBJECT_NOT_FOUND"
ALL_OUT = (Scope.ALL, "outage")
LIMITED = (Scope.ALL, "rate_limited")
DAILY = (Scope.ALL, "daily_limit")
BOTH_UNKNOWN = {"category": UNKNOWN, "context": {"objectWriteTraceId": ["t1,t3"]}}
NULLS = {"links": None, "errors": None, "id": None}
BY_ID = sent(1, 2, by_record_id=True)
ONE = sent(1)
NON_UNIQUE = "Unable to perform update/upsert by non-unique 0-5 property acme_client_id in portal ID 1"
NOT_VALID = {"message": "wood was not a valid one", "code": "INVALID_OPTION", "context": {"propertyName": ["tier"]}}


def limited(name: str, body: Any, delay_s: float | None, *, daily: bool = False, **headers: str) -> Row:
    """A 429."""
    told = {key.replace("_", "-"): value for key, value in headers.items()}
    return Row(name, 429, body, "Stopped", DAILY if daily else LIMITED, headers=told, delay_s=delay_s, probes=daily)


RESULTS = [
    Row("results by trace id, in any order", 200, says(by(2), by(1)), "delivered delivered"),
    Row("results by record id, in any order", 200, says({"id": "2"}, {"id": 1}), "delivered delivered", inputs=BY_ID),
    Row(
        "results by the property that repeats the id",
        *(200, says({"properties": {"hs_object_id": "2"}}, {"properties": {"hs_object_id": 1}}), "delivered delivered"),
        inputs=BY_ID,
    ),
    Row(
        "results by the id property's value, however it is spelled",
        *(200, says({"id": "77", "properties": {"acme_client_id": "ann@x.com "}}), "delivered silent"),
        inputs=spelled("Ann@X.com", "2"),
    ),
    Row(
        "a record id that equals another input's id",  # by id property, HubSpot's own ids mean nothing to us
        *(200, says({"id": "2", "properties": {"acme_client_id": "1"}}), "delivered silent silent"),
        inputs=sent(1, 2, 3),
    ),
    Row(
        "the same without the property",
        *(200, says(by(1), {"id": "2"}), "delivered silent silent"),
        inputs=sent(1, 2, 3),
    ),
    Row("as many results as inputs, without a name", 200, says({"id": "8"}, {"id": "9"}), "delivered delivered"),
    Row(
        "as many results left as inputs",  # records were merged: HubSpot answers under other ids
        *(200, says({"id": "1"}, {"id": "900"}), "delivered delivered"),
        inputs=BY_ID,
    ),
    Row("a result too few", 200, says({"id": "1"}), "delivered silent", inputs=BY_ID),
    Row("a result twice", 200, says({"id": "1"}, {"id": "1"}), "delivered silent", inputs=BY_ID),
    Row("a result without anything", 200, says({"id": "1"}, {}), "delivered silent", inputs=BY_ID),
    Row("a result too many", 200, says({"id": "1"}, {"id": "8"}, {"id": "9"}), "delivered silent", inputs=BY_ID),
    Row("results that are none", 200, says({"id": "1"}, "2", None, ["2"]), "delivered silent", inputs=BY_ID),
    Row("silence about a single input", 200, says(), "silent", inputs=ONE),
    Row("no results", 200, {"results": []}, "Broken", ALL_OUT),
    Row("results that are no list", 200, {"results": {"id": "1"}}, "Broken", ALL_OUT),
    Row("an empty object", 200, {}, "Broken", ALL_OUT),
    Row("a list", 200, [], "Broken", ALL_OUT, doubtful=True),
    Row("a number", 200, 5, "Broken", ALL_OUT, doubtful=True),
    Row("nothing", 200, "", "Broken", ALL_OUT, doubtful=True),
    Row("HTML", 200, "<html>well</html>", "Broken", ALL_OUT, doubtful=True),
    Row("a mebibyte of nested lists", 200, "[" * 2**20, "Broken", ALL_OUT, doubtful=True),
    *(
        row
        for status in ("PENDING", "PROCESSING", "CANCELED", "CANCELLED", "pending")
        for row in (
            Row(f"{status} in part", 202, says(by(1), {"id": "x"}, status=status), "delivered later", doubtful=True),
            Row(f"{status} as a whole", 202, says(status=status), "Broken", ALL_OUT, doubtful=True),
        )
    ),
]

ERRORS = [
    Row(
        "a vague error keeps left-over results from confirming",
        *(207, says({"id": "1"}, {"id": "900"}, errors=[{"category": "VALIDATION_ERROR"}]), "delivered silent"),
        inputs=BY_ID,
    ),
    Row(
        "one error about several inputs, by id",
        *(207, says(by(2), errors=[error(UNKNOWN, "1", "3")]), "parked delivered parked"),
        inputs=sent(1, 2, 3),
    ),
    Row(
        "one error about several inputs, by joined trace ids",
        *(207, says(by(2), errors=[BOTH_UNKNOWN]), "parked delivered parked"),
        inputs=sent(1, 2, 3),
    ),
    Row(
        "an error each, results without a name",
        *(207, says({"id": "9"}, errors=[error(UNKNOWN, "1"), error(UNKNOWN, "3")]), "parked delivered parked"),
        inputs=sent(1, 2, 3),
    ),
    *(
        Row(
            f"a sub-category that is {kind!r}, and nulls",
            *(207, says(by(2), errors=[error(UNKNOWN, "1", subCategory=kind, **NULLS)]), "parked delivered"),
        )
        for kind in ("crm.NOT_FOUND", {"name": "crm.NOT_FOUND"}, None)
    ),
    Row("unknown, waited for", 207, says(by(2), errors=[error(UNKNOWN, "1")]), "later delivered", on_unknown="wait"),
    Row("unknown, ignored", 207, says(by(2), errors=[error(UNKNOWN, "1")]), "ignored delivered", on_unknown="ignore"),
    Row(
        "an id in lower case",  # as HubSpot writes an e-mail address
        *(207, says(by(2), errors=[error(UNKNOWN, "ann@x.com")]), "parked delivered"),
        inputs=spelled("Ann@X.com", "Bob@X.com"),
    ),
    *(
        # HubSpot may write an id otherwise than we know how to read: those inputs are asked for alone, nobody waits.
        Row(
            f"{category} about ids that are none of ours",
            207,
            says(errors=[error(category, "x", "y")]),
            "silent silent",
        )
        for category in ("VALIDATION_ERROR", UNKNOWN)
    ),
    Row(
        "values told otherwise than they were sent",
        *(207, says(errors=[error("VALIDATION_ERROR", "1", "2", errors=[NOT_VALID])]), "silent silent"),
        inputs=inputs(record(1, {"tier": "wood "}), record(2, {"tier": "Gold"})),
    ),
    Row(
        "a refused value",
        *(207, says(by(2), errors=[error("VALIDATION_ERROR", "1", errors=[NOT_VALID])]), "refused:tier delivered"),
        inputs=inputs(record(1, {"tier": "wood", "name": "A"}), record(2)),
    ),
    Row(
        "a refused value without a name",
        207,
        says(by(2), errors=[error("VALIDATION_ERROR", "1")]),
        "unexplained delivered",
    ),
    Row(
        "a property that is none of ours",
        *(207, says(by(2), errors=[error("VALIDATION_ERROR", "1", errors=[NOT_VALID])]), "parked delivered"),
    ),
    Row(
        "the id property, of every input",
        *(207, says(errors=[error("VALIDATION_ERROR", each, message=NON_UNIQUE) for each in "12"]), "Rejected"),
    ),
    *(
        Row(f"the category {category!r}", 207, says(by(2), errors=[error(category, "1")]), f"{word} delivered")
        for word, categories in {
            "later": ("RATE_LIMITS", "INTERNAL_ERROR", "LOCKED", None, 7),
            "parked": ("CONFLICT", "MERGED_OBJECT", "SOMETHING_NEW"),
        }.items()
        for category in categories
    ),
    *(
        # As a 503 would be: whose fault it is nobody can tell.
        Row(
            f"{category} of all of {len(some)}",
            207,
            says(errors=[error(category, str(each)) for each in range(1, len(some) + 1)]),
            "Locked" if category == "LOCKED" else "Broken",
            None if category == "LOCKED" else ALL_OUT,
            inputs=some,
        )
        for category in ("RATE_LIMITS", "INTERNAL_ERROR", "LOCKED")
        for some in (ONE, sent(1, 2, 3))
    ),
    # Each of these says more than that it will pass, or something else than that.
    Row("no category, of all", 207, says(errors=[error(None, "1", "2")]), "later later"),
    Row(
        "passing errors of all, and results",
        207,
        says(by(1), by(2), errors=[error("TIMEOUT", "1", "2")]),
        "later later",
    ),
    Row(
        "passing errors of all that name a property",
        *(207, says(errors=[error("INTERNAL_ERROR", "1", "2", errors=[NOT_VALID])]), "later later"),
        inputs=inputs(record(1, {"tier": "wood"}), record(2, {"tier": "wood"})),
    ),
    Row(
        "passing errors of all, not finished",
        *(207, says(errors=[error("TIMEOUT", "1", "2")], status="PROCESSING"), "later later"),
        doubtful=True,
    ),
    Row("an error and a result", 207, says(by(1), by(2), errors=[error("CONFLICT", "1")]), "parked delivered"),
    Row(
        "the result of an input with an error confirms no other",
        *(207, says({"id": "1"}, errors=[error("CONFLICT", "1")]), "parked silent"),
        inputs=BY_ID,
    ),
    Row(
        "an error without a name about the only input",
        207,
        says(errors=[{"category": "CONFLICT"}]),
        "parked",
        inputs=ONE,
    ),
]

WHOLE = [
    *(Row(f"{status}", status, {"message": "no"}, "Rejected") for status in (400, 422)),
    *(Row(f"{status}", status, {"message": "locked"}, "Locked") for status in (408, 409, 423, 425)),
    *(Row(f"{status}", status, "too large", "TooLarge") for status in (413, 414)),
    Row("401", 401, {}, "Stopped", (Scope.ALL, "unauthorized")),
    Row("403", 403, {}, "Broken", (Scope.OBJECT_TYPE, "forbidden")),
    *(Row(f"{status}", status, {}, "Broken", (Scope.OBJECT_TYPE, "misconfigured")) for status in (404, 405)),
    Row(
        *("302", 302, "", "Broken", (Scope.OBJECT_TYPE, "misconfigured")),
        headers={"location": "http://elsewhere"},
    ),
    *(Row(f"{status}", status, "<html>", "Broken", ALL_OUT) for status in (500, 503, 521, 999)),
    # A proxy gave up waiting: the call may still be applied.
    *(Row(f"{status}", status, "<html>", "Broken", ALL_OUT, doubtful=True) for status in (502, 504, 520, 522, 524)),
    *(
        Row(
            *(f"477 for {asked} s", 477, {}, "Stopped", (Scope.ALL, "migrating")),
            headers={"retry-after": asked},
            delay_s=delay_s,
        )
        for asked, delay_s in {"7200": 7200.0, "0": 0.5, "999999": 86_400.0}.items()
    ),
]

LIMITS = [
    limited("429 ten-secondly", {"policyName": "TEN_SECONDLY_ROLLING"}, 10.0),
    limited("429 ten-secondly in words", {"message": "You have reached your ten_secondly_rolling limit."}, 10.0),
    limited("429 secondly", {"policyName": "SECONDLY"}, 1.0),
    limited("429 secondly in words", {"message": "You have reached your secondly limit."}, 1.0),
    limited("429 secondly, not as its words", {"policyName": "SECONDLY", "message": "your daily limit."}, 1.0),
    limited("429 daily", {"policyName": "DAILY"}, None, daily=True),
    limited("429 daily in words", {"message": "You have reached your daily limit."}, None, daily=True),
    limited("429 daily, for a minute", {"policyName": "DAILY"}, 60.0, daily=True, retry_after="60"),
    limited("429 daily, at once", {"policyName": "DAILY"}, 0.5, daily=True, retry_after="0"),
    limited("429 at once", "", 0.5, retry_after="0"),  # or there would be no pause at all
    limited("429 without a word", "", 10.0),
    limited("429 by a policy that is a list", {"policyName": ["DAILY"]}, 10.0),
    limited("429 that quotes a value", {"message": "'DAILY' was not a valid number."}, 10.0),
    limited("429 with its window", "", 20.0, x_hubspot_ratelimit_interval_milliseconds="20000"),
    limited("429 with a window that is none", "", 10.0, x_hubspot_ratelimit_interval_milliseconds="²"),
    limited("429 for a year", "", 3600.0, retry_after=str(365 * 86_400)),
    limited("429 for less than no time", "", 10.0, retry_after="-5"),
    limited("429 soon", "", 10.0, retry_after="soon"),
    limited("429 for a part of a second", "", 0.75, retry_after="0.75"),
]

ROWS = [*RESULTS, *ERRORS, *WHOLE, *LIMITS]
