"""`POST /webhooks/<source>`: every answer of the interface, through real requests to a real Flask app."""

from __future__ import annotations

import base64
import gzip
import io
import json
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from werkzeug.test import Client, EnvironBuilder, TestResponse
from werkzeug.wrappers import Response

from bridge.errors import JournalError, JournalFullError, JournalUnavailableError
from bridge.http.waiting import Wait, wait_in_thread
from bridge.intake import webhooks
from bridge.intake.mapping import compile_source
from bridge.intake.signatures import Verifier, sign
from bridge.intake.webhooks import TURN_PATIENCE_S, Counts, Endpoint, Webhooks, register_problem_handlers
from bridge.model import Event, Intake, Receipt
from bridge.settings import MappingBlock, Property, Record, Reply, Secret, Source, Verify
from bridge.tryout.dry_run import KnownIds
from tests.fakes import FakeClock

SECRET = Secret(env="UNSET_IN_TESTS", default="whsec_" + base64.b64encode(b"k" * 32).decode())
STANDARD = Verify("standard-webhooks", (SECRET,))
MAX_BODY = 1_000


class FakeJournal:
    """Takes events as the journal does: one id takes effect once, and all of a request or nothing."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str], Event] = {}
        self.failure: Exception | None = None
        self._lock = threading.Lock()
        self._known: dict[str, KnownIds] = defaultdict(KnownIds)

    def append(self, events: Sequence[Event]) -> Sequence[Receipt]:
        if self.failure is not None:
            raise self.failure
        receipts = []
        with self._lock:
            for event in events:
                receipt = self._known[event.source].receipt(event)
                if receipt.intake is not Intake.DUPLICATE:
                    self.events[event.source, receipt.event_id] = event
                receipts.append(receipt)
        return receipts


class Watching:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.webhooks: list[tuple[str, int, Counts]] = []
        self.verifications: list[tuple[str, str, int | None]] = []

    def webhook(self, source: str, code: int, duration_s: float, counts: Counts) -> None:
        assert duration_s >= 0
        self.webhooks.append((source, code, counts))

    def verification(self, source: str, result: str, secret: int | None) -> None:
        self.verifications.append((source, result, secret))


def make_source(name: str, **changes: Any) -> Source:
    tier = Property("plan", type="enumeration", values={"Gold": "gold"})
    block = MappingBlock(
        Record("id", "acme_id"),
        properties={"name": Property("name"), "tier": tier},
        on_invalid=changes.pop("on_invalid", "park"),
    )
    options: dict[str, Any] = {"verify": STANDARD, "event_id": "eid", "when": "type != 'noise'", **changes}
    return Source(name=name, mappings=(block,), **options)


SOURCES = [
    make_source("acme"),
    make_source("open", verify=Verify("none")),
    make_source("strict", verify=Verify("none"), on_invalid="reject"),
    make_source("quiet", verify=Verify("none"), reply=Reply(200, "none")),
    make_source("unnamed", event_id=None),
]


class OneTurn:
    """One request at a time, for threads."""

    def __init__(self) -> None:
        self._semaphore = threading.BoundedSemaphore(1)
        self.timeouts: list[float] = []

    def acquire(self, source: str = "", weight: int = 0, *, timeout: float) -> bool:
        self.timeouts.append(timeout)
        return self._semaphore.acquire(timeout=timeout)

    def release(self, source: str = "", weight: int = 0) -> None:
        self._semaphore.release()


class House:
    """The app with everything around it."""

    def __init__(self) -> None:
        self.journal, self.seen, self.clock = FakeJournal(), Watching(), FakeClock()
        self.drains = False
        self.turns = OneTurn()
        self.wait: Wait = wait_in_thread
        self.endpoints = {
            source.name: Endpoint(compile_source(source), Verifier(source.verify), MAX_BODY) for source in SOURCES
        }
        self.app = Flask("test")
        register_problem_handlers(self.app)
        receiver = Webhooks(
            sources=lambda: self.endpoints,
            journal=self.journal,
            observer=self.seen,
            draining=lambda: self.drains,
            clock=self.clock,
            turns=self.turns,
            wait=self._await,
        )
        self.app.register_blueprint(receiver.blueprint())
        self.client = Client(self.app)

    def _await(self, descriptor: int, writing: bool, timeout_s: float) -> bool:
        return self.wait(descriptor, writing, timeout_s)

    def post(
        self, source: str, body: Any, *, raw: bool = False, headers: Mapping[str, str] | None = None, **more: Any
    ) -> TestResponse:
        data = body if raw else json.dumps(body).encode()
        signed = {}
        if source in self.endpoints:
            verify = self.endpoints[source].source.source.verify
            signed = sign(verify, body=data, now=self.clock.now(), delivery_id="msg_1")
        sent = {"Content-Type": "application/json", **signed, **(headers or {})}
        return self.client.post(f"/webhooks/{source}", data=data, headers=sent, **more)


@pytest.fixture
def house() -> House:
    return House()


def problem(response: Response, status: int, slug: str) -> dict[str, Any]:
    assert response.status_code == status
    assert response.content_type == "application/problem+json"
    body: dict[str, Any] = json.loads(response.data)
    assert body["type"] == f"urn:partner-bridge:problem:{slug}"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["instance"].startswith("/")
    return body


# --- what is taken ------------------------------------------------------------------------------


def test_the_answer_counts_every_event_once(house: House) -> None:
    """Accepted, duplicate, ignored and parked, with ids in order and what was invalid."""
    house.post("acme", {"eid": "e1", "id": 7, "name": "A"})
    answer = house.post(
        "acme",
        [
            {"eid": "e1", "id": 7, "name": "A"},
            {"eid": "e2", "id": 7, "name": "B", "plan": "Iron"},
            {"eid": "e3", "type": "noise"},
            {"eid": "e4", "name": "no id"},
            {"eid": "e5", "id": 8, "plan": "Iron"},
        ],
    )
    assert answer.status_code == 202
    assert answer.content_type == "application/json"
    invalid = {"tier": "is 'Iron', which values: does not list"}
    assert json.loads(answer.data) == {
        "accepted": 1,
        "duplicates": 1,
        "ignored": 1,
        "parked": 2,
        "ids": ["e1", "e2", "e3", "e4", "e5"],
        "invalid": [
            {"index": 1, "errors": invalid},
            {"index": 3, "errors": {"record": "the record id is missing"}},
            {"index": 4, "errors": invalid},
        ],
    }
    assert set(house.journal.events) == {("acme", f"e{n}") for n in range(1, 6)}
    found = {"present": {"name": 3}, "absent": {"name": 1, "tier": 2}, "invalid": {"tier": 2}}
    assert house.seen.webhooks[-1] == (
        "acme",
        202,
        Counts(1, 1, 1, 2, invalid=3, records=1, event_ids=("e1", "e2", "e3", "e4", "e5"), found=found),
    )
    assert house.seen.verifications[-1] == ("acme", "accepted", 0)


def test_an_empty_list_is_zeros(house: House) -> None:
    """And nothing is written."""
    answer = json.loads(house.post("acme", []).data)
    assert answer == {"accepted": 0, "duplicates": 0, "ignored": 0, "parked": 0, "ids": [], "invalid": []}


def test_long_answers_are_cut_at_a_hundred(house: House) -> None:
    """The counts are not."""
    house.endpoints["open"] = Endpoint(house.endpoints["open"].source, house.endpoints["open"].verifier, 10**6)
    answer = json.loads(house.post("open", [{"eid": str(n), "id": n, "plan": "x"} for n in range(150)]).data)
    assert (answer["parked"], len(answer["ids"]), len(answer["invalid"])) == (150, 100, 100)


def test_some_senders_demand_an_answer_without_a_body(house: House) -> None:
    """`reply: {status: 200, body: none}`."""
    answer = house.post("quiet", {"id": 7, "name": "A"})
    assert (answer.status_code, answer.data) == (200, b"")
    assert len(house.journal.events) == 1


def test_without_an_event_id_the_delivery_id_counts(house: House) -> None:
    """A second delivery of the same message is a duplicate; one that asks for something else is an event of its own."""
    assert json.loads(house.post("unnamed", {"id": 7}).data)["ids"] == ["msg_1"]
    assert json.loads(house.post("unnamed", {"id": 7}).data)["duplicates"] == 1
    assert json.loads(house.post("unnamed", {"id": 8}).data)["accepted"] == 1
    assert [counts.conflicts for _, _, counts in house.seen.webhooks] == [0, 0, 1]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON; charset=UTF-8",
        'application/json;charset="utf8"',
        "application/vnd.a+json",
    ],
)
def test_json_media_types_are_taken(house: House, content_type: str) -> None:
    """With or without charset."""
    assert house.post("acme", {"id": 7}, headers={"Content-Type": content_type}).status_code == 202


def test_gzip_is_inflated_and_signed_as_it_was_sent(house: House) -> None:
    """Several members too."""
    body = gzip.compress(b'{"id": 7,') + gzip.compress(b'"name": "A"}')
    answer = house.post("acme", body, raw=True, headers={"Content-Encoding": "gzip"})
    assert json.loads(answer.data)["accepted"] == 1


# --- what is refused ----------------------------------------------------------------------------


def test_every_unverified_request_gets_the_same_answer_to_the_byte(house: House) -> None:
    """Which cause it was is for the metrics only; nothing is stored."""
    body = b'{"id": 7}'
    good = sign(STANDARD, body=body, now=house.clock.now(), delivery_id="m")
    stale = sign(STANDARD, body=body, now=house.clock.now() - 301, delivery_id="m")
    future = sign(STANDARD, body=body, now=house.clock.now() + 301, delivery_id="m")
    causes = [{}, stale, future, {**good, "webhook-id": "n"}, {**good, "webhook-signature": "v1"}]
    answers = {
        (answer.status_code, answer.data, answer.content_type)
        for headers in causes
        for answer in [
            house.client.post("/webhooks/acme", data=body, headers={"Content-Type": "application/json", **headers})
        ]
    }
    assert len(answers) == 1
    problem(house.client.post("/webhooks/acme", data=body, content_type="application/json"), 401, "unauthorized")
    results = [result for _, result, _ in house.seen.verifications[: len(causes)]]
    assert results == ["missing_header", "stale", "future", "mismatch", "malformed"]
    assert not house.journal.events


def test_a_source_without_a_readable_secret_lets_nobody_in(house: House) -> None:
    """Not even by an empty signature."""
    verify = Verify("bearer", (Secret(env="SURELY_NOT_SET_ANYWHERE"),))
    house.endpoints["acme"] = Endpoint(house.endpoints["acme"].source, Verifier(verify), MAX_BODY)
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer x"}):
        problem(house.client.post("/webhooks/acme", json={}, headers=headers), 401, "unauthorized")
    assert house.seen.verifications[-1] == ("acme", "no_secret", None)


@pytest.mark.parametrize("body", [b"", b"{", b"[NaN]", b'{"a":1,"a":2}', b"\xff", b'"text"', b"[1]", b"[" * 900])
def test_what_is_no_json_object_is_malformed(house: House, body: bytes) -> None:
    """400, with a sentence for the sender."""
    problem(house.post("acme", body, raw=True), 400, "malformed")
    assert not house.journal.events


def test_unknown_sources_routes_and_methods(house: House) -> None:
    """Problems everywhere, and no redirects."""
    problem(house.post("nobody", {}), 404, "unknown-source")
    assert house.seen.webhooks[-1][:2] == ("unknown", 404)
    for path in ("/", "/webhooks", "/webhooks/", "/webhooks/acme/", "/webhooks/a/b", "//webhooks//acme", "/%2e%2e"):
        problem(house.client.post(path, json={}), 404, "not-found")
    for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE"):
        answer = house.client.open("/webhooks/acme", method=method)
        assert answer.status_code == 405
        assert answer.headers["Allow"] == "POST"
        if method != "HEAD":
            problem(answer, 405, "method-not-allowed")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "text/json+json"},
        {"Content-Type": ""},
        {"Content-Encoding": "br"},
        {"Content-Encoding": "gzip, gzip"},
        {"Content-Encoding": "deflate"},
    ],
)
def test_other_media_types_and_encodings_are_unsupported(house: House, headers: dict[str, str]) -> None:
    """Signed or not."""
    problem(house.post("acme", {"id": 7}, headers=headers), 415, "unsupported-media-type")


class Stream(io.RawIOBase):
    """A request body as gunicorn gives it: in small pieces, and broken off at will."""

    def __init__(self, body: bytes, *, breaks: bool = False) -> None:
        super().__init__()
        self._body = io.BytesIO(body)
        self._breaks = breaks

    def read(self, size: int | None = -1) -> bytes:
        part = self._body.read(min(size or 0, 100) if (size or 0) >= 0 else -1)
        if not part and self._breaks:
            raise OSError("no more data")
        return part


def stream(house: House, body: bytes, *, length: int | None = None, breaks: bool = False) -> Response:
    """Post a body, chunked where no length is given."""
    builder = EnvironBuilder("/webhooks/open", method="POST", content_type="application/json")
    environ = builder.get_environ()
    environ["wsgi.input"] = Stream(body, breaks=breaks)
    environ.pop("CONTENT_LENGTH", None)
    if length is None:
        environ["wsgi.input_terminated"] = True
        environ["HTTP_TRANSFER_ENCODING"] = "chunked"
    else:
        environ["CONTENT_LENGTH"] = str(length)
    return Response.from_app(house.app, environ)


def padded(size: int) -> bytes:
    return b'{"id": 7}'.ljust(size)


@pytest.mark.parametrize("size, status", [(999, 202), (1000, 202), (1001, 413), (5000, 413)])
def test_the_limit_holds_to_the_byte_chunked_or_not(house: House, size: int, status: int) -> None:
    """Never a truncated body that happens to be JSON."""
    for answer in (stream(house, padded(size)), stream(house, padded(size), length=size)):
        assert answer.status_code == status
        if status == 413:
            problem(answer, 413, "too-large")


def test_a_body_that_breaks_off_is_refused(house: House) -> None:
    """Whether the stream raises or just ends early."""
    problem(stream(house, b'{"id": 7}', breaks=True), 400, "malformed")
    problem(stream(house, b'{"id": 7}', length=500), 400, "malformed")
    problem(stream(house, b'{"id": 7}', length=500, breaks=True), 400, "malformed")
    problem(stream(house, b"", length=0), 400, "malformed")
    assert not house.journal.events


def test_gzip_is_bounded_and_checked(house: House) -> None:
    """A bomb is cut at the limit; damage and rubbish behind the end are seen."""
    whole = gzip.compress(b'{"id": 7}')
    gzipped = {"Content-Encoding": "gzip"}
    problem(house.post("open", gzip.compress(b" " * 500_000), raw=True, headers=gzipped), 413, "too-large")
    problem(house.post("open", gzip.compress(padded(1001)), raw=True, headers=gzipped), 413, "too-large")
    assert house.post("open", gzip.compress(padded(1000)), raw=True, headers=gzipped).status_code == 202
    for broken in (whole[:-3], whole + b"rubbish", b"rubbish", gzip.compress(whole)):
        problem(house.post("open", broken, raw=True, headers=gzipped), 400, "malformed")


def test_a_strict_source_takes_all_or_nothing(house: House) -> None:
    """422 names each index; the good events of the request are not taken either."""
    answer = house.post("strict", [{"id": 7, "name": "A"}, {"id": 7, "plan": "Iron"}, {"name": "A"}])
    errors = problem(answer, 422, "invalid")["errors"]
    assert errors == [
        {"index": 1, "errors": {"tier": "is 'Iron', which values: does not list"}},
        {"index": 2, "errors": {"record": "the record id is missing"}},
    ]
    assert not house.journal.events
    assert house.post("strict", {"id": 7, "name": "A"}).status_code == 202


@pytest.mark.parametrize(
    "failure, slug",
    [
        (JournalFullError("full"), "journal-full"),
        (JournalUnavailableError("disk"), "unavailable"),
        (JournalError("?"), "unavailable"),
    ],
)
def test_what_cannot_be_written_is_not_answered_202(house: House, failure: Exception, slug: str) -> None:
    """503 with a jittered Retry-After, and it works again afterwards."""
    house.journal.failure = failure
    waits = set()
    for _ in range(40):
        answer = house.post("acme", {"id": 7})
        problem(answer, 503, slug)
        waits.add(int(answer.headers["Retry-After"]))
    assert len(waits) > 1
    assert min(waits) > 0
    house.journal.failure = None
    assert house.post("acme", {"id": 7}).status_code == 202


def test_while_draining_nothing_is_taken(house: House) -> None:
    """503, so that the sender comes back."""
    house.drains = True
    answer = house.post("acme", {"id": 7})
    problem(answer, 503, "draining")
    assert answer.headers["Retry-After"]


def test_an_accident_is_answered_without_its_story(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """500 as a problem; no text of the exception leaves, nor is it in the log."""

    @house.app.get("/broken")
    def broken() -> str:
        raise ZeroDivisionError("a secret")

    house.journal.failure = ZeroDivisionError("a secret")
    for answer in (house.client.get("/broken"), house.post("acme", {"id": 7, "name": "a secret"})):
        problem(answer, 500, "internal")
        assert b"secret" not in answer.data
    assert "secret" not in capsys.readouterr().out


def test_a_long_array_leaves_room_for_others() -> None:
    """Between slices the worker is asked to let others in."""
    breaths: list[int] = []
    source = compile_source(make_source("open", verify=Verify("none")))
    mapped = source.map_body([{"id": n, "name": "A"} for n in range(1000)], pause=lambda: breaths.append(1))
    assert len(mapped.events) == 1000
    assert len(breaths) == 100


def test_many_threads_at_once(house: House) -> None:
    """Fifty deliveries of one event take effect once, and all are told so."""
    answers: list[TestResponse] = []

    def deliver() -> None:
        answers.append(House.post(house, "acme", {"eid": "e1", "id": 7, "name": "A"}))

    threads = [threading.Thread(target=deliver, name=f"sender {n}") for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    bodies = [json.loads(answer.data) for answer in answers]
    assert sum(body["accepted"] for body in bodies) == 1
    assert sum(body["duplicates"] for body in bodies) == 49


@pytest.fixture(scope="module")
def lasting() -> House:
    return House()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=300), encoding=st.sampled_from(["", "gzip", "br"]))
def test_no_bytes_whatever_make_it_stumble(lasting: House, body: bytes, encoding: str) -> None:
    """Refused with one of the promised statuses."""
    answer = lasting.post("open", body, raw=True, headers={"Content-Encoding": encoding} if encoding else {})
    assert answer.status_code in {202, 400, 413, 415}


def test_one_request_more_than_may_be_worked_on_waits_and_is_then_asked_to_come_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TURN_PATIENCE_S", 0.05)
    for number, answer in enumerate((202, 401, 400)):  # each gives its turn back
        body = b"{" if answer == 400 else json.dumps({"eid": f"e{number}", "id": "7", "name": "A"}).encode()
        headers = {"webhook-signature": "v1,bad"} if answer == 401 else {}
        assert house.post("acme", body, raw=True, headers=headers).status_code == answer
    assert house.turns.acquire(timeout=1)
    refused = house.post("acme", {"eid": "late", "id": "7", "name": "A"})
    assert refused.status_code == 503
    assert 2 <= int(refused.headers["Retry-After"]) <= 10
    assert refused.json is not None
    assert refused.json["type"] == "urn:partner-bridge:problem:busy"
    assert ("acme", "late") not in house.journal.events
    house.turns.release()
    assert house.post("acme", {"eid": "late", "id": "7", "name": "A"}).status_code == 202


def test_what_a_request_waited_for_its_sources_schemas_it_does_not_wait_again(house: House) -> None:
    """Its sender gives up after five seconds, whatever it waited for."""
    own = MappingBlock(Record("id", "acme_id"), schema="tests.own_schemas:Own")
    source = compile_source(Source("own", verify=Verify("none"), mappings=(own,)))
    house.endpoints["own"] = Endpoint(source, Verifier(source.source.verify), MAX_BODY)
    lane = source.queue
    assert lane is not None
    assert lane.enter(wait_in_thread, 0)

    def wait(descriptor: int, writing: bool, timeout_s: float) -> bool:
        if house.wait is wait:  # the first time, while it waits for the one before
            house.wait = wait_in_thread
            house.clock.advance(3)
            lane.leave()
        return wait_in_thread(descriptor, writing, timeout_s)

    house.wait = wait
    assert house.post("own", {"id": "7", "name": "A"}).status_code == 202
    assert house.turns.timeouts == [TURN_PATIENCE_S - 3]


def test_the_server_is_told_of_a_request_that_is_the_partners(house: House) -> None:
    """Before it waits for its turn; never of one whose signature does not hold."""
    told: list[str] = []
    for source, wrong in (("acme", {}), ("acme", {"webhook-signature": "v1,bad"}), ("open", {})):
        house.post(
            source,
            {"id": "7", "name": "A"},
            headers=wrong,
            environ_overrides={"bridge.proved": lambda: told.append(source)},  # noqa: B023 (called at once)
        )
    assert told == ["acme"]
