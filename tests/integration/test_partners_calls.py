"""As partners really call: lines and forms, handshakes, limits, answers of their liking; through a real Flask app."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

from bridge.http.limits import Quotas
from bridge.intake.mapping import compile_source
from bridge.intake.signatures import Verifier, sign
from bridge.intake.webhooks import Counts, Endpoint
from bridge.settings import Challenge, Reply, RequestLimit, Secret, Verify
from tests.integration.test_webhooks import STANDARD, House, make_source, problem

NONE = Verify("none")
SLACK = Verify("slack", (Secret(env="UNSET_IN_TESTS", default="a slack secret of ours"),))
NDJSON, FORM = "application/x-ndjson", "application/x-www-form-urlencoded"

Make = Callable[..., House]


@pytest.fixture
def make() -> Make:
    """A house whose source `acme` has these options."""

    def made(*, max_body: int = 10_000, **options: Any) -> House:
        house = House()
        source = make_source("acme", **options)
        house.endpoints["acme"] = Endpoint(
            compile_source(source), Verifier(source.verify), max_body, Quotas().quota("acme", source.limit)
        )
        return house

    return made


def post(house: House, body: bytes, content_type: str, **headers: str) -> TestResponse:
    sent = {"Content-Type": content_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return house.post("acme", body, raw=True, headers=sent)


# --- bodies -------------------------------------------------------------------------------------


def test_lines_are_events(make: Make) -> None:
    """Signed as a whole; blank lines count for nothing; packed too."""
    house = make(body="ndjson")
    body = b'{"eid": "e1", "id": 1, "name": "A"}\n\n{"eid": "e2", "id": 2, "name": "B"}\n'
    assert json.loads(post(house, body, NDJSON).data)["ids"] == ["e1", "e2"]
    packed = post(house, gzip.compress(body), NDJSON, Content_Encoding="gzip")
    assert json.loads(packed.data)["duplicates"] == 2


def test_lines_without_ids_of_their_own_have_the_deliverys(make: Make) -> None:
    """With their place in it, even when it is one line."""
    house = make(body="ndjson", event_id=None)
    assert json.loads(post(house, b'{"id": 1}\n{"id": 2}', NDJSON).data)["ids"] == ["msg_1#0", "msg_1#1"]
    assert json.loads(post(house, b'{"id": 1}', NDJSON).data)["ids"] == ["msg_1#0"]


def test_one_faulty_line_refuses_all(make: Make) -> None:
    """400 names the line; nothing is taken, and no line may be anything but an object."""
    house = make(body="ndjson")
    answer = problem(post(house, b'{"id": 1, "name": "A"}\n{"id": 2', NDJSON), 400, "malformed")
    assert answer["detail"].startswith("line 2: ")
    problem(post(house, b'{"id": 1}\n[1]', NDJSON), 400, "malformed")
    assert not house.journal.events


def test_a_form_is_an_event(make: Make) -> None:
    """Its fields are texts; a field that is there twice is a list."""
    house = make(body="form", when="type[1] == 'b'")
    answer = post(house, b"eid=e1&id=7&name=Caf%C3%A9&type=a&type=b", FORM)
    assert json.loads(answer.data)["accepted"] == 1
    [event] = house.journal.events.values()
    assert json.loads(event.payload) == {"eid": "e1", "id": "7", "name": "Café", "type": ["a", "b"]}
    assert event.updates[0].properties == {"name": "Café"}


def test_json_in_a_form_is_an_event(make: Make) -> None:
    """As GitHub's and Slack's `payload`."""
    house = make(body="form", payload_field="payload")
    answer = post(house, urlencode({"payload": '{"eid": "e1", "id": 7, "name": "A"}', "x": "y"}).encode(), FORM)
    assert json.loads(answer.data)["accepted"] == 1
    problem(post(house, b"other=1", FORM), 400, "malformed")


@pytest.mark.parametrize("form, wrong", [("ndjson", FORM), ("form", NDJSON), ("form", "application/json")])
def test_each_form_takes_its_media_type_only(make: Make, form: str, wrong: str) -> None:
    problem(post(make(body=form), b"{}", wrong), 415, "unsupported-media-type")


@pytest.mark.parametrize("form, content_type, pad", [("ndjson", NDJSON, b" "), ("form", FORM, b"x")])
def test_max_body_holds_for_every_form(make: Make, form: str, content_type: str, pad: bytes) -> None:
    """As sent and inflated."""
    house = make(body=form, verify=NONE, max_body=1000)
    large = b'{"id": 1}'.ljust(1001, pad)
    problem(post(house, large, content_type), 413, "too-large")
    problem(post(house, gzip.compress(large), content_type, Content_Encoding="gzip"), 413, "too-large")
    assert post(house, large[:1000], content_type).status_code == 202


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form, content_type, body", [("json", "application/json", b"[]"), ("ndjson", NDJSON, b"")])
def test_an_empty_list_is_fine_in_every_form(make: Make, form: str, content_type: str, body: bytes) -> None:
    answer = post(make(body=form), body, content_type)
    assert answer.status_code == 202
    assert json.loads(answer.data) == {
        "accepted": 0, "duplicates": 0, "ignored": 0, "parked": 0, "ids": [], "invalid": [],
    }  # fmt: skip


@pytest.mark.parametrize("status", [200, 202, 204, 299])
def test_partners_get_the_answer_they_ask_for(make: Make, status: int) -> None:
    """204 has no body by its nature."""
    answer = post(make(reply=Reply(status)), b'{"id": 1, "name": "A"}', "application/json")
    assert answer.status_code == status
    assert bool(answer.data) == (status != 204)
    answer = post(make(reply=Reply(status, "none")), b"[]", "application/json")
    assert (answer.status_code, answer.data) == (status, b"")


def test_an_array_of_five_thousand_is_taken_at_once(make: Make) -> None:
    """All of its events or none, in the order that they came in."""
    house = make(max_body=10**7, on_invalid="reject")
    events = [{"eid": f"e{n}", "id": n, "name": "A"} for n in range(5000)]
    answer = json.loads(post(house, json.dumps(events).encode(), "application/json").data)
    assert (answer["accepted"], answer["ids"]) == (5000, [f"e{n}" for n in range(100)])
    assert list(house.journal.events) == [("acme", f"e{n}") for n in range(5000)]
    events = [{**event, "eid": f"x{n}"} for n, event in enumerate(events)]
    events[4999]["plan"] = "Iron"
    problem(post(house, json.dumps(events).encode(), "application/json"), 422, "invalid")
    assert len(house.journal.events) == 5000


# --- handshakes ---------------------------------------------------------------------------------


def plain(answer: TestResponse, text: str) -> None:
    """What no browser takes for a page."""
    assert (answer.status_code, answer.text) == (200, text)
    assert answer.content_type == "text/plain; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_get_that_asks_for_its_challenge_gets_it(make: Make) -> None:
    """As Dropbox and Meta ask: unsigned, the token in the query."""
    house = make(challenge=Challenge('_query."hub.challenge"', when="_query.\"hub.mode\" == 'subscribe'"))
    asked = {"hub.mode": "subscribe", "hub.challenge": "1158201444", "hub.verify_token": "x"}
    plain(house.client.get("/webhooks/acme", query_string=asked), "1158201444")
    assert house.seen.webhooks[-1] == ("acme", 200, Counts())
    assert house.seen.verifications == []
    for other in ({}, {"hub.challenge": "1"}, {"hub.mode": "unsubscribe", "hub.challenge": "1"}):
        problem(house.client.get("/webhooks/acme", query_string=other), 400, "malformed")
    assert not house.journal.events
    assert house.post("acme", {"id": 7}).status_code == 202


def test_a_source_without_a_handshake_takes_no_get(make: Make) -> None:
    """And `Allow` tells what each takes."""
    for challenge, allowed in (
        (None, "POST"),
        (Challenge("challenge", "POST"), "POST"),
        (Challenge("_query.c"), "GET, POST"),
    ):
        house = make(challenge=challenge)
        for method in ("HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", *(["GET"] if allowed == "POST" else [])):
            answer = house.client.open("/webhooks/acme?c=1", method=method)
            assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
    problem(house.client.get("/webhooks/nobody?c=1"), 404, "unknown-source")


def slack(house: House, event: dict[str, Any], *, good: bool = True) -> TestResponse:
    body = json.dumps(event).encode()
    headers = sign(SLACK, body=body, now=house.clock.now(), delivery_id="")
    return house.client.post(
        "/webhooks/acme", data=body if good else body + b" ", content_type="application/json", headers=headers
    )


def test_slacks_url_verification(make: Make) -> None:
    """A signed POST; unsigned it gets what any unsigned request gets."""
    house = make(verify=SLACK, challenge=Challenge("challenge", "POST", "type == 'url_verification'", signed=True))
    asked = {
        "token": "t",
        "challenge": "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P",
        "type": "url_verification",
    }
    plain(slack(house, asked), asked["challenge"])
    problem(slack(house, asked, good=False), 401, "unauthorized")
    assert [result for _, result, _ in house.seen.verifications] == ["accepted", "mismatch"]
    assert slack(house, {"type": "event_callback", "challenge": "c", "id": 7, "name": "A"}).status_code == 202
    assert len(house.journal.events) == 1


def test_an_unsigned_post_is_answered_only_where_the_source_says_so(make: Make) -> None:
    """And only if it is the handshake: everything else stays 401, with one and the same answer."""
    house = make(challenge=Challenge("{challenge: challenge}", "POST", "type == 'hello'", as_="json"))

    def unsigned(body: bytes, **more: Any) -> TestResponse:
        return house.client.post("/webhooks/acme", data=body, content_type="application/json", **more)

    answer = unsigned(b'{"type": "hello", "challenge": "a<b"}')
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    assert answer.data == b'{"challenge":"a\\u003cb"}'
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert house.seen.verifications == []
    refused = [
        unsigned(b'{"type": "other", "challenge": "a"}'),
        unsigned(b"{"),
        unsigned(b'{"type": "hello", "challenge": "a", "pad": "' + b"x" * 70_000 + b'"}'),
        unsigned(gzip.compress(b'{"type": "hello", "challenge": "a"}'), headers={"Content-Encoding": "gzip"}),
    ]
    assert [answer.status_code for answer in refused] == [401, 401, 413, 401]
    assert len({answer.data for answer in refused if answer.status_code == 401}) == 1
    assert house.post("acme", {"type": "hello", "challenge": "a"}).data == b'{"challenge":"a"}'
    assert not house.journal.events


def test_a_long_unsigned_body_is_not_looked_at(make: Make) -> None:
    """Parsing costs more than a signature check."""
    house = make(max_body=10**6, challenge=Challenge("challenge", "POST", "type == 'hello'"))
    body = b'{"type": "hello", "challenge": "a", "pad": "' + b"x" * 70_000 + b'"}'
    problem(house.client.post("/webhooks/acme", data=body, content_type="application/json"), 401, "unauthorized")


def test_a_post_without_body_can_be_a_handshake(make: Make) -> None:
    """As Microsoft Graph asks: text/plain, no body, the token in the query, text with spaces."""
    house = make(challenge=Challenge("_query.validationToken", "POST", "_query.validationToken"))
    token = "Validation: Testing client application reachability for subscription Request-Id: 4f2"
    asked = {"validationToken": token}
    plain(house.client.post("/webhooks/acme", query_string=asked, content_type="text/plain"), token)
    problem(house.client.post("/webhooks/acme", content_type="text/plain"), 415, "unsupported-media-type")
    problem(
        house.client.post("/webhooks/acme", query_string={"other": "x"}, content_type="application/json"),
        401,
        "unauthorized",
    )


def test_a_get_that_must_be_signed(make: Make) -> None:
    """Over the method, the URL or whatever else the scheme covers."""
    house = make(challenge=Challenge("_query.c", signed=True))
    headers = sign(STANDARD, body=b"", method="GET", now=house.clock.now(), delivery_id="m")
    plain(house.client.get("/webhooks/acme?c=abc", headers=headers), "abc")
    problem(house.client.get("/webhooks/acme?c=abc"), 401, "unauthorized")
    problem(house.client.get("/webhooks/acme?d=abc", headers=headers), 400, "malformed")


@pytest.mark.parametrize(
    "asked",
    ["<script>alert(1)</script>", "a\r\nSet-Cookie: x=1", "a\nb", "a\0b", "\x1b[2J", "\u202eabc", "x" * 4097, "a>b"],
)
def test_what_no_token_holds_is_not_echoed(make: Make, asked: str) -> None:
    """No markup, no header, no terminal tricks, nothing long."""
    house = make(challenge=Challenge("_query.c"))
    answer = house.client.get("/webhooks/acme", query_string={"c": asked})
    problem(answer, 400, "malformed")
    assert asked.encode() not in answer.data
    assert set(answer.headers.keys()) == {"Content-Type", "Content-Length"}


@pytest.mark.parametrize(
    "reply, as_, expected",
    [
        ("_query.c", "text", b"abc"),
        ("length(_query.c)", "text", b"3"),
        ("`1.50`", "text", b"1.5"),
        ("_query.c", "json", b'"abc"'),
        ("{plainToken: _query.c, ok: `true`}", "json", b'{"plainToken":"abc","ok":true}'),
        ("_query", "text", None),
        ("`true`", "text", None),
        ("_query.d", "json", None),
        ("sum(_query.c)", "json", None),
        ("_headers.user_agent", "text", b"partner/1.0"),
    ],
)
def test_the_reply_is_whatever_the_expression_finds(make: Make, reply: str, as_: Any, expected: bytes | None) -> None:
    """As text or as JSON; what cannot be put so, or is not there, is 400."""
    house = make(challenge=Challenge(reply, as_=as_))
    answer = house.client.get("/webhooks/acme?c=abc", headers={"User-Agent": "partner/1.0"})
    if expected is None:
        problem(answer, 400, "malformed")
    else:
        assert (answer.status_code, answer.data) == (200, expected)


def test_no_handshake_can_ask_for_credentials(make: Make) -> None:
    """Refused when the source is compiled; computed names find nothing."""
    with pytest.raises(ExceptionGroup):
        make(challenge=Challenge("_headers.authorization"))
    with pytest.raises(ExceptionGroup):
        make(verify=Verify("bearer", STANDARD.secrets, header="X-Key"), challenge=Challenge("_headers.x_key"))
    house = make(challenge=Challenge("_headers", as_="json"))
    answer = house.client.get("/webhooks/acme", headers={"Authorization": "Bearer abc", "Cookie": "a=1", "X-A": "b"})
    assert "x_a" in json.loads(answer.data)
    assert not {"authorization", "cookie"} & set(json.loads(answer.data))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.dictionaries(st.sampled_from(["c", "d"]), st.text(max_size=50)), as_=st.sampled_from(["text", "json"]))
def test_nothing_asked_makes_it_stumble(make: Make, query: Mapping[str, str], as_: Any) -> None:
    """200 or 400, and never a browser's page."""
    house = make(challenge=Challenge("_query.c", as_=as_))
    answer = house.client.get("/webhooks/acme", query_string=query)
    assert answer.status_code in {200, 400}
    assert b"<" not in answer.data
    assert "html" not in str(answer.content_type)


# --- limit --------------------------------------------------------------------------------------


def test_a_source_over_its_limit_waits(make: Make) -> None:
    """429 with the time to wait; other sources go on."""
    house = make(limit=RequestLimit(3, 10.0))
    assert [house.post("acme", {"id": n, "name": "A"}).status_code for n in range(3)] == [202, 202, 202]
    house.clock.advance(2.5)
    answer = house.post("acme", {"id": 9, "name": "A"})
    problem(answer, 429, "too-many-requests")
    assert answer.headers["Retry-After"] == "8"
    assert house.seen.webhooks[-1][:2] == ("acme", 429)
    assert house.post("open", {"id": 1, "name": "A"}).status_code == 202
    house.clock.advance(8)
    assert house.post("acme", {"id": 9, "name": "A"}).status_code == 202


def test_the_wall_clock_has_no_say_in_the_limit(make: Make) -> None:
    """F31: a day forth or back neither opens nor closes it."""
    house = make(limit=RequestLimit(1, 10.0))
    assert house.post("acme", {"id": 1, "name": "A"}).status_code == 202
    for jump in (86_400, -172_800):
        house.clock.jump(jump)
        assert house.post("acme", {"id": 1, "name": "A"}).status_code == 429
    house.clock.advance(10)
    assert house.post("acme", {"id": 1, "name": "A"}).status_code == 202


def test_junk_does_not_use_up_the_partners_allowance(make: Make) -> None:
    """Whoever cannot sign cannot silence the partner."""
    house = make(limit=RequestLimit(2, 10.0))
    for _ in range(20):
        problem(house.client.post("/webhooks/acme", data=b"{}", content_type="application/json"), 401, "unauthorized")
        assert house.client.get("/webhooks/acme").status_code == 405
    assert [house.post("acme", {"id": n}).status_code for n in range(3)] == [202, 202, 429]


def test_over_the_limit_nothing_is_read(make: Make) -> None:
    """Neither body nor signature: that is what protects us."""
    house = make(limit=RequestLimit(1, 10.0), max_body=100)
    assert house.post("acme", {"id": 1, "name": "A"}).status_code == 202
    judged = len(house.seen.verifications)
    problem(house.post("acme", b"x" * 5000, raw=True), 429, "too-many-requests")
    assert len(house.seen.verifications) == judged


def test_a_genuine_request_counts_whatever_it_holds(make: Make) -> None:
    """Malformed, a duplicate, or a handshake: it had its signature checked and its body parsed."""
    house = make(limit=RequestLimit(3, 10.0), challenge=Challenge("c", "POST", "c", signed=True))
    statuses = [house.post("acme", body).status_code for body in ("text", {"c": "x"}, {"id": 1}, {"id": 1})]
    assert statuses == [400, 200, 202, 429]


def test_a_limit_of_another_length_is_kept_apart(make: Make) -> None:
    """A second source has its own window."""
    house = make(limit=RequestLimit(1, 10.0))
    other = replace(house.endpoints["acme"].source.source, name="other")
    house.endpoints["other"] = Endpoint(
        compile_source(other), Verifier(other.verify), 1000, Quotas().quota("other", other.limit)
    )
    assert [house.post(name, {"id": 1}).status_code for name in ("acme", "other", "acme", "other")] == [
        202, 202, 429, 429,
    ]  # fmt: skip
