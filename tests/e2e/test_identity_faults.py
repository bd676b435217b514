"""Fault rows F31, F32 and F33: clocks that jump, events delivered again, requests captured and replayed."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from werkzeug.test import Client, TestResponse

from bridge.config import load_settings
from bridge.intake.signatures import sign
from bridge.sandbox import Crm, SandboxServer
from bridge.server.service import Service
from bridge.settings import Settings
from tests.empty_journal import prepare
from tests.running import ACME, Running, eventually, running

DAY_S = 86_400.0
MINUTE_S = 60.0


class SkewedClock:
    """The machine's clocks: the wall clock off by what a test says, and both ahead by the time that has passed."""

    def __init__(self) -> None:
        self.off_s = 0.0
        self.passed_s = 0.0

    def now(self) -> float:
        return time.time() + self.off_s + self.passed_s

    def monotonic(self) -> float:
        return time.monotonic() + self.passed_s


@dataclass
class House:
    """A whole service in this process, delivering to a sandbox, on a clock of the test's."""

    service: Service
    settings: Settings
    clock: SkewedClock
    crm: Crm

    def __post_init__(self) -> None:
        self.client = Client(self.service.public)

    def signed(
        self, payload: Any, *, source: str = "acme", sent: float | None = None, delivery_id: str = "msg_1"
    ) -> tuple[str, bytes, dict[str, str]]:
        """A request as the partner makes it at `sent`, by the partner's own right clock."""
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        path = f"/webhooks/{source}"
        headers = sign(
            self.settings.sources[source].verify,
            body=body,
            url=(self.settings.server.public_url or "") + path,
            now=time.time() + self.clock.passed_s if sent is None else sent,
            delivery_id=delivery_id,
        )
        return path, body, {"Content-Type": "application/json", **headers}

    def send(self, request: tuple[str, bytes, Mapping[str, str]]) -> TestResponse:
        path, body, headers = request
        return self.client.post(path, data=body, headers=dict(headers))

    def post(self, payload: Any, **options: Any) -> TestResponse:
        return self.send(self.signed(payload, **options))

    def held(self) -> dict[str, dict[str, str]]:
        return self.crm.state(id_property="acme_client_id").get("partner_clients", {})

    def updates(self) -> int:
        """Values that the CRM was asked to write."""
        return sum(len(call.inputs) for call in self.crm.ledger.calls("update") if call.status == 200)

    def counted(self, metric: str, **labels: str) -> float:
        self.service.metrics.flush()
        return self.service.metrics._registry.get_sample_value(metric, labels) or 0.0


@contextlib.contextmanager
def house(folder: Path, sources: str = ACME, journal_url: str = "") -> Iterator[House]:
    crm = Crm(open_properties=True)
    with SandboxServer(crm) as server:
        configured = Running(folder, server.url, sources=sources, journal_url=journal_url)
        settings = load_settings(configured.config)
        prepare(settings.journal.url)
        clock = SkewedClock()
        service = Service(settings=settings, clock=clock)
        service.start()
        try:
            yield House(service, settings, clock, crm)
        finally:
            service.stop()


STARTED = time.time()


def event(name: str = "e1", /, **values: Any) -> dict[str, Any]:
    return {"id": name, "client": "c1", "at": STARTED, "name": "A", **values}


def taken(answer: TestResponse) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    body: dict[str, Any] = json.loads(answer.data)
    return body


# --- F31 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_f31_a_jump_of_the_clock_stops_no_retry(tmp_path: Path, jump_s: float) -> None:
    """What waits out an outage, or for a record that is not there yet, is tried on after at most retry.max."""
    waits = ACME.replace("id_property: acme_client_id}", "id_property: acme_client_id, on_unknown: wait}")
    with house(tmp_path, waits) as at:
        at.crm.faults.always("503")
        taken(at.post(event()))
        assert eventually(lambda: len(at.crm.ledger.calls("update")) >= 2)
        at.clock.off_s = jump_s
        at.crm.faults.clear()
        assert eventually(lambda: at.held().get("c1", {}).get("company_name") == "A")

        at.crm.faults.poison("c2", kind="500")
        taken(at.post(event("e2", client="c2"), sent=at.clock.now()))
        taken(at.post(event("e3", client="c3"), sent=at.clock.now()))
        assert eventually(lambda: "c3" in at.held())
        at.clock.off_s = 0.0
        at.crm.faults.clear()
        assert eventually(lambda: "c2" in at.held()), "parked, or waiting for a clock that went back"


@pytest.mark.parametrize("off_s", [DAY_S, -DAY_S, 10 * MINUTE_S, -10 * MINUTE_S])
def test_f31_a_clock_too_far_off_refuses_and_loses_nothing(tmp_path: Path, off_s: float) -> None:
    """401 while ours is wrong; when it is right again the partner's next try is taken, and once only."""
    with house(tmp_path) as at:
        taken(at.post(event("before")))
        at.clock.off_s = off_s
        assert at.post(event("e1")).status_code == 401
        assert (
            at.counted(
                "bridge_verifications_total", source="acme", result="stale" if off_s > 0 else "future", secret=""
            )
            == 1
        )
        at.clock.off_s = 0.0
        assert taken(at.post(event("e1")))["accepted"] == 1
        assert taken(at.post(event("before")))["duplicates"] == 1


@pytest.mark.parametrize("off_s", [4 * MINUTE_S, -4 * MINUTE_S])
def test_f31_a_skew_within_the_tolerance_is_no_matter(tmp_path: Path, off_s: float) -> None:
    with house(tmp_path) as at:
        at.clock.off_s = off_s
        assert taken(at.post(event("e1")))["accepted"] == 1
        assert eventually(lambda: at.held().get("c1", {}).get("company_name") == "A")


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_f31_a_jump_of_the_clock_forgets_no_event(tmp_path: Path, jump_s: float) -> None:
    """A second delivery stays one, before, during and after; retention runs on the wall clock, a day is not seven."""
    with house(tmp_path) as at:
        taken(at.post(event("e1")))
        for off_s in (jump_s, 0.0):
            at.clock.off_s = off_s
            time.sleep(1.2)  # a step of retention
            assert taken(at.post(event("e1"), sent=at.clock.now()))["duplicates"] == 1


def test_f31_what_arrives_after_the_clock_went_back_wins(tmp_path: Path) -> None:
    """For events without a time of their own: the order is that of arrival, whatever the clock said."""
    undated = ACME.replace("    occurred_at: at\n", "")
    with house(tmp_path, undated) as at:
        at.clock.off_s = DAY_S
        taken(at.post(event("e1", name="first"), sent=at.clock.now()))
        assert eventually(lambda: at.held().get("c1", {}).get("company_name") == "first")
        at.clock.off_s = 0.0
        taken(at.post(event("e2", name="second")))
        assert eventually(lambda: at.held()["c1"]["company_name"] == "second")


# --- F32 ----------------------------------------------------------------------------------------


def test_f32_delivered_again_and_again(tmp_path: Path) -> None:
    """One after the other, alone and within arrays, signed anew each time: one update, the same answer."""
    with house(tmp_path) as at:
        first = taken(at.post(event("e1"), delivery_id="a"))
        again = [taken(at.post(event("e1"), delivery_id=name)) for name in ("a", "b", "c")]
        assert first["accepted"] == 1
        assert [(answer["duplicates"], answer["ids"]) for answer in again] == [(1, first["ids"])] * 3
        mixed = taken(at.post([event("e1"), event("e2", client="c2"), event("e2", client="c2")]))
        assert (mixed["accepted"], mixed["duplicates"], mixed["ids"]) == (1, 2, ["e1", "e2", "e2"])
        assert eventually(lambda: set(at.held()) == {"c1", "c2"})
        time.sleep(0.3)
        assert at.updates() == 2


def at_once(number: int, send: Callable[[int], requests.Response]) -> Sequence[requests.Response]:
    """Let so many threads send at the same moment."""
    barrier = threading.Barrier(number)

    def wait_and_send(at: int) -> requests.Response:
        barrier.wait(20)
        return send(at)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(wait_and_send, range(number)))


@pytest.mark.parametrize("workers", [1, 2])
def test_f32_fifty_deliveries_at_once_and_after_a_restart(tmp_path: Path, workers: int) -> None:
    """Of a single event and of an array, over all workers; then `kill -9`, and the same again."""
    crm = Crm(open_properties=True)
    with SandboxServer(crm) as server, running(tmp_path, server.url, workers=workers) as service:
        single = event("single")
        array = [event(f"a{n}", client=f"c{n}") for n in range(20)]
        for payload, events in ((single, 1), (array, 20)):
            answers = at_once(50, lambda at, payload=payload: service.post(payload, delivery_id=f"msg_{at % 3}"))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            assert {answer.status_code for answer in answers} == {202}
            bodies = [answer.json() for answer in answers]
            assert len({tuple(body["ids"]) for body in bodies}) == 1
            assert sum(body["accepted"] for body in bodies) == events
            assert sum(body["duplicates"] for body in bodies) == 49 * events
        assert eventually(service.idle)
        calls = crm.ledger.calls("update")
        assert sum(len(call.inputs) for call in calls) <= 21, "c1 may be in two calls, as two events ask for it"

        service.kill_all()
        service.start()
        answers = at_once(10, lambda _: service.post(single))
        assert [answer.json()["duplicates"] for answer in answers] == [1] * 10
        assert service.post(array).json()["duplicates"] == 20
        assert eventually(service.idle)
        assert len(crm.ledger.calls("update")) == len(calls)


def test_f32_delivered_again_after_a_day_and_after_retention(tmp_path: Path) -> None:
    """A duplicate for `retention`; later an event of its own, whose older time overwrites nothing newer."""
    with house(tmp_path) as at:
        old = event("e1", name="old")
        taken(at.post(old))
        assert eventually(lambda: at.held().get("c1", {}).get("company_name") == "old")
        at.clock.passed_s = DAY_S
        taken(at.post(event("e2", name="new", at=at.clock.now())))
        assert taken(at.post(old))["duplicates"] == 1
        assert eventually(lambda: at.held()["c1"]["company_name"] == "new")
        at.clock.passed_s = 8.5 * DAY_S
        assert eventually(lambda: at.service.journal.trace_event("e1") == [])
        assert taken(at.post(old))["accepted"] == 1
        time.sleep(0.3)
        assert at.held()["c1"]["company_name"] == "new"


def test_f32_what_asks_for_something_else_under_a_known_id_is_taken_counted_and_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An event of its own, under an id of its own: three changes that one id is given to all reach the CRM."""
    first, second, third = (event("e1", name=name) for name in ("first", "other secret name", "third"))
    with house(tmp_path) as at:
        assert taken(at.post(first))["ids"] == ["e1"]
        other = taken(at.post(second))
        assert (other["accepted"], other["ids"][0][:3]) == (1, "e1~")
        assert taken(at.post(third))["accepted"] == 1
        again = taken(at.post(second))
        assert (again["duplicates"], again["ids"]) == (1, other["ids"])
        assert at.counted("bridge_events_total", source="acme", outcome="conflict") == 2
        assert at.counted("bridge_events_total", source="acme", outcome="duplicate") == 1
        assert eventually(lambda: at.held().get("c1", {}).get("company_name") == "third")
    logged = capsys.readouterr().out
    assert "event id used again for something else" in logged
    assert "other secret name" not in logged


# --- F33 ----------------------------------------------------------------------------------------

SCHEMES = ("standard-webhooks", "stripe", "slack", "hubspot-v3", "zendesk", "calendly")
#: Without an `event_id`: what tells deliveries apart is what the scheme signs.
CAPTURED = "".join(
    ACME.replace("  acme:", f"  {scheme}:")
    .replace("scheme: standard-webhooks", f"scheme: {scheme}")
    .replace("    event_id: id\n", "")
    for scheme in SCHEMES
)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_f33_a_captured_request_is_taken_once(tmp_path: Path, scheme: str) -> None:
    """To the byte the same: deduplicated inside the tolerance, 401 when it is older or from the future."""
    with house(tmp_path, CAPTURED) as at:
        start = time.time()
        captured = at.signed(event("e1"), source=scheme, sent=start)
        first = taken(at.send(captured))
        assert first["accepted"] == 1
        for passed_s in (0.0, 150.0, 290.0):
            at.clock.passed_s = passed_s
            replayed = taken(at.send(captured))
            assert (replayed["duplicates"], replayed["ids"]) == (1, first["ids"])
        path, body, headers = captured
        changed = at.send((path, body.replace(b'"A"', b'"B"'), headers))
        at.clock.passed_s = 305.0
        old = at.send(captured)
        ahead = at.post(event("e2"), source=scheme, sent=at.clock.now() + 310, delivery_id="msg_2")
        assert {answer.status_code for answer in (old, ahead, changed)} == {401}
        assert len({answer.data for answer in (old, ahead, changed)}) == 1
        assert at.counted("bridge_events_total", source=scheme, outcome="accepted") == 1


@pytest.mark.parametrize("scheme", ["github", "shopify", "typeform"])
def test_f33_schemes_without_a_time_know_the_event_again(tmp_path: Path, scheme: str) -> None:
    """No age can be told, so a replay is taken for the second delivery that it is, a day later too."""
    source = ACME.replace("  acme:", "  vendor:").replace("scheme: standard-webhooks", f"scheme: {scheme}")
    with house(tmp_path, source) as at:
        captured = at.signed(event("e1"), source="vendor")
        assert taken(at.send(captured))["accepted"] == 1
        for passed_s in (0.0, DAY_S, 6 * DAY_S):
            at.clock.passed_s = passed_s
            assert taken(at.send(captured))["duplicates"] == 1


def test_f33_a_replay_against_another_source_is_refused(tmp_path: Path) -> None:
    """A request that was captured on its way to one source opens no other."""
    (tmp_path / "other.secret").write_text(
        "whsec_" + "b3RoZXIgc2VjcmV0IG9mIHR3ZW50eS1mb3VyIGI=" + "\n", encoding="utf-8"
    )
    (tmp_path / "other.secret").chmod(0o600)
    other = ACME.replace("  acme:", "  other:").replace("acme.secret", "other.secret")
    with house(tmp_path, ACME + other) as at:
        _, body, headers = at.signed(event("e1"))
        assert at.send(("/webhooks/other", body, headers)).status_code == 401
