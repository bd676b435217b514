"""The sandbox over HTTP: trouble on demand, and what of it takes effect."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import requests

from bridge.sandbox import Behaviour, Call, Crm, Fault, Response, SandboxServer, ViolationKind

PATH = "/crm/v3/objects/partner_clients/batch/update"
TOKEN = {"Authorization": "Bearer pat-test"}
NO_ANSWER = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, requests.Timeout)


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer(Crm()) as server:
        yield server


def post(server: SandboxServer, *ids: str, timeout_s: float = 10, **properties: str) -> requests.Response:
    inputs = [{"id": id_, "properties": properties or {"notes": "x"}} for id_ in ids]
    return requests.post(
        f"{server.url}{PATH}",
        json={"inputs": inputs},
        headers=TOKEN,
        timeout=timeout_s,
        allow_redirects=False,
    )


def written(server: SandboxServer) -> set[str]:
    return set(server.crm.state().get("partner_clients", {}))


@pytest.mark.parametrize(
    "kind, status",
    [
        ("401", 401), ("403", 403), ("404", 404), ("409", 409), ("413", 413), ("423", 423), ("429", 429),
        ("429-text", 429), ("477", 477), ("500", 500), ("502", 502), ("502-html", 502), ("503", 503),
        ("504", 504), ("521", 521), ("524", 524), ("redirect", 302), ("whole-400", 400), ("html", 200),
        ("blank", 200), ("empty", 200), ("garbage", 200),
    ],
)  # fmt: skip
def test_a_scripted_fault_meets_one_call_and_writes_nothing(server: SandboxServer, kind: str, status: int) -> None:
    """The call after it is served as if nothing had been."""
    server.crm.faults.next(kind)
    assert post(server, "1").status_code == status
    assert written(server) == set()
    assert post(server, "1").status_code == 200
    assert [call.fault for call in server.crm.ledger.calls()] == [kind, None]


def test_a_fault_may_be_applied_all_the_same(server: SandboxServer) -> None:
    """After a 5xx the outcome is unknown: it may have been written."""
    server.crm.faults.next(Fault("500", apply=True))
    assert post(server, "1").status_code == 500
    assert written(server) == {"1"}


def test_faults_have_parameters(server: SandboxServer) -> None:
    """Retry-After, the policy of a 429, the place of a redirect."""
    server.crm.faults.next(Fault("477", retry_after="86400"))
    server.crm.faults.next(Fault("429", policy="DAILY", retry_after="-1"))
    server.crm.faults.next(Fault("redirect", location="http://127.0.0.1:1/"))
    assert post(server, "1").headers["Retry-After"] == "86400"
    daily = post(server, "1")
    assert (daily.headers["Retry-After"], daily.json()["policyName"]) == ("-1", "DAILY")
    assert post(server, "1").headers["Location"] == "http://127.0.0.1:1/"


def test_an_outage_lasts_until_it_is_switched_off(server: SandboxServer) -> None:
    """Standing faults hit every call, of reads too when they are told to."""
    server.crm.faults.always(Fault("503", on="any"))
    assert [post(server, "1").status_code for _ in range(3)] == [503] * 3
    url = f"{server.url}/crm/v3/properties/partner_clients"
    assert requests.get(url, headers=TOKEN, timeout=10).status_code == 503
    server.crm.faults.stop("503")
    assert post(server, "1").status_code == 200


def test_a_poisonous_record_breaks_every_call_that_contains_it(server: SandboxServer) -> None:
    """And no other."""
    server.crm.faults.poison("bad")
    assert post(server, "1", "bad").status_code == 500
    assert post(server, "1").status_code == 200
    assert post(server, "bad").status_code == 500
    server.crm.faults.clear()
    server.crm.faults.poison("bad", kind="whole-400")
    refused = post(server, "1", "bad")
    assert refused.status_code == 400
    assert "bad" not in refused.text


def test_a_silent_drop_leaves_an_input_out_of_everything(server: SandboxServer) -> None:
    """Neither written nor answered; by id or by chance."""
    server.crm.faults.next(Fault("silent-drop", ids=("2",)))
    answer = post(server, "1", "2")
    assert answer.status_code == 200
    assert [result["id"] for result in answer.json()["results"]] == ["1"]
    assert written(server) == {"1"}
    server.crm.faults.next(Fault("silent-drop", count=2))
    assert len(post(server, "1", "2", "3").json()["results"]) == 1


def test_known_records_may_be_unknown_for_once(server: SandboxServer) -> None:
    """OBJECT_NOT_FOUND for the inputs concerned."""
    server.crm.faults.next(Fault("unknown", ids=("2",)))
    assert post(server, "1", "2").json()["errors"][0]["context"]["ids"] == ["2"]


@pytest.mark.parametrize("kind", ["pending", "processing", "canceled"])
def test_an_unfinished_call_confirms_only_some(server: SandboxServer, kind: str) -> None:
    """Only what results confirm is written, unless the fault says that the rest is written unseen."""
    server.crm.faults.next(Fault(kind, count=1))
    answer = post(server, "1", "2", "3").json()
    assert answer["status"] == kind.upper()
    assert [result["id"] for result in answer["results"]] == ["1"]
    assert written(server) == {"1"}
    server.crm.faults.next(Fault(kind, count=0, apply=True))
    assert post(server, "2", "3").json()["results"] == []
    assert written(server) == {"1", "2", "3"}


def test_a_reset_comes_before_or_after_the_update(server: SandboxServer) -> None:
    """A client cannot tell the two apart."""
    server.crm.faults.next("reset")
    with pytest.raises(requests.ConnectionError):
        post(server, "1")
    assert written(server) == set()
    server.crm.faults.next("answer-lost")
    with pytest.raises(requests.ConnectionError):
        post(server, "2")
    assert written(server) == {"2"}
    assert [call.status for call in server.crm.ledger.calls()] == [None, None]


def test_a_silent_crm_ends_the_call_when_its_client_leaves(server: SandboxServer) -> None:
    """So that the next call of the same record is not taken for one that overlaps."""
    server.crm.faults.next("timeout")
    with pytest.raises(requests.Timeout):
        post(server, "1", timeout_s=0.1)
    assert post(server, "1").status_code == 200
    assert server.crm.ledger.violations() == []


@pytest.mark.parametrize("reset", [False, True])
def test_an_update_may_be_applied_late(server: SandboxServer, reset: bool) -> None:
    """After the client has given up, and over a newer value."""
    server.crm.faults.next(Fault("apply-late", apply_after_s=0.3, reset=reset))
    with pytest.raises(NO_ANSWER):
        post(server, "1", timeout_s=0.1, notes="old")
    post(server, "1", notes="new")
    assert server.crm.state()["partner_clients"]["1"] == {"notes": "new"}
    assert server.crm.settle()
    assert server.crm.state()["partner_clients"]["1"] == {"notes": "old"}
    assert [entry.value for entry in server.crm.ledger.applied()] == ["new", "old"]


def test_an_update_whose_client_left_during_the_latency_still_takes_effect() -> None:
    """As it would at HubSpot; and it counts as closed."""
    with SandboxServer(Crm(behaviour=Behaviour(latency_s=0.3))) as server:
        with pytest.raises(requests.Timeout):
            post(server, "1", timeout_s=0.1, notes="old")
        assert written(server) == set()
        post(server, "1", notes="new")
        assert {entry.value for entry in server.crm.ledger.applied()} == {"old", "new"}
        assert server.crm.ledger.violations() == []


def test_a_truncated_body_is_cut_in_the_middle(server: SandboxServer) -> None:
    """Content-Length promises more than arrives."""
    server.crm.faults.next("truncated")
    with pytest.raises(NO_ANSWER):
        post(server, "1")
    assert written(server) == {"1"}


def test_a_body_may_drip_or_never_end(server: SandboxServer) -> None:
    """Either defeats a time-out that is counted from byte to byte."""
    server.crm.faults.next(Fault("drip", pace_s=0.001))
    assert post(server, "1").json()["results"][0]["id"] == "1"
    server.crm.faults.next("endless")
    body = {"inputs": [{"id": "2", "properties": {}}]}
    with requests.post(f"{server.url}{PATH}", json=body, headers=TOKEN, timeout=10, stream=True) as answer:
        pieces = answer.iter_content(0x10000)
        assert sum(len(next(pieces)) for _ in range(20)) > 0x80000


def test_rates_are_met_and_repeatable() -> None:
    """Two sandboxes of one seed fail the same calls."""

    def statuses(seed: int) -> list[int]:
        with SandboxServer(Crm(rates={"500": 0.3, "429": 0.2}, seed=seed)) as server:
            return [post(server, "1").status_code for _ in range(60)]

    first = statuses(7)
    assert first == statuses(7)
    assert first != statuses(8)
    assert {200, 429, 500} == set(first)


def test_a_hook_may_answer_or_choose_the_fault(server: SandboxServer) -> None:
    """It sees the call and comes before everything else."""

    def on_call(call: Call) -> Fault | Response | None:
        if call.inputs[0].id == "1":
            return Fault("502")
        return Response(418, b"{}") if call.inputs[0].id == "2" else None

    server.crm.on_call = on_call
    assert [post(server, id_).status_code for id_ in "123"] == [502, 418, 200]


def test_a_record_in_two_open_calls_is_noted(server: SandboxServer) -> None:
    """Also when both succeed; and so is a call that a client has given up but not closed."""
    entered, leave = threading.Barrier(2), threading.Event()

    def on_call(call: Call) -> None:
        if call.seq == 1:
            entered.wait(5)
            leave.wait(5)

    server.crm.on_call = on_call
    first = threading.Thread(target=post, args=(server, "1", "2"))
    first.start()
    entered.wait(5)
    post(server, "2", "3")
    leave.set()
    first.join()
    (violation,) = server.crm.ledger.violations()
    assert (violation.call, violation.kind) == (2, ViolationKind.OVERLAP)
    assert "also in call 1" in violation.detail
    post(server, "2")
    assert len(server.crm.ledger.violations()) == 1


def test_a_server_can_go_away_and_come_back_on_its_port() -> None:
    """An outage of refused connections; the state survives it, and stopping does not wait for held calls."""
    crm = Crm()
    server = SandboxServer(crm)
    server.start()
    post(server, "1")
    crm.faults.next("timeout")
    lost: list[Exception] = []

    def call_in_vain() -> None:
        with pytest.raises(NO_ANSWER) as caught:
            post(server, "2")
        lost.append(caught.value)

    held = threading.Thread(target=call_in_vain)
    held.start()
    while len(crm.ledger.calls()) < 2:
        time.sleep(0.01)
    began = time.monotonic()
    server.stop()
    held.join(5)
    assert time.monotonic() - began < 2
    assert len(lost) == 1
    with pytest.raises(requests.ConnectionError):
        post(server, "1")
    with server:
        assert post(server, "3").status_code == 200
    assert written(server) == {"1", "3"}


def test_faults_hit_the_token_endpoint_too(server: SandboxServer) -> None:
    """`on: token`; update calls do not use it up."""
    server.crm.faults.next(Fault("500", on="token"))
    assert post(server, "1").status_code == 200
    assert requests.post(f"{server.url}/oauth/v3/token", data={}, timeout=10).status_code == 500
    assert requests.post(f"{server.url}/oauth/v3/token", data={}, timeout=10).status_code == 400
