"""Undo on a running service: a mended mapping, values sent once more, delivery stopped; here and from elsewhere."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from bridge.sandbox import Crm, SandboxServer
from tests import forked
from tests.running import ACME, Running, eventually, running

TOKEN = "a-token-of-more-than-sixteen-characters"

#: Someone wrote two properties the wrong way round.
SWAPPED = ACME.replace("company_name: name", "company_name: notes").replace("      notes: notes", "      notes: name")


@pytest.fixture
def crm() -> Crm:
    return Crm(open_properties=False)


@pytest.fixture
def service(tmp_path: Path, crm: Crm) -> Iterator[Running]:
    with SandboxServer(crm) as sandbox, running(tmp_path, sandbox.url) as started:
        yield started


@pytest.fixture
def guarded(tmp_path: Path, crm: Crm) -> Iterator[Running]:
    """A service whose admin port asks for a token and answers on all interfaces."""
    with SandboxServer(crm) as sandbox:
        made = Running(tmp_path, sandbox.url, environ={"BRIDGE_ADMIN_TOKEN": TOKEN})
        text = made.config.read_text(encoding="utf-8")
        made.config.write_text(
            text.replace("  workers:", "  admin_token: {env: BRIDGE_ADMIN_TOKEN}\n  workers:").replace(
                f"admin_bind: 127.0.0.1:{made.admin_port}", f"admin_bind: 0.0.0.0:{made.admin_port}"
            ),
            encoding="utf-8",
        )
        try:
            made.start()
            yield made
        finally:
            made.stop()


def state(crm: Crm) -> dict[str, Any]:
    found: dict[str, Any] = crm.state(id_property="acme_client_id").get("partner_clients", {})
    return found


def acts(service: Running) -> list[dict[str, Any]]:
    """The log's lines on what operators did through the API."""
    lines = map(json.loads, service.log.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["event"] == "operator acted"]


def remote(service: Running, *arguments: str, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
    """A command in a folder without a configuration, that knows only where the admin port answers."""
    elsewhere = service.folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    more = () if token is None else ("--admin-token", token)
    return forked.run(*arguments, "--admin-url", service.admin_url, *more, cwd=elsewhere)


# --- replay -------------------------------------------------------------------------------------


def test_a_mapping_that_swapped_two_properties_is_undone_and_newer_values_stay(tmp_path: Path, crm: Crm) -> None:
    """1,000 events delivered with the wrong mapping, a newer event in between; `events replay --since` mends it."""
    with SandboxServer(crm) as sandbox, running(tmp_path, sandbox.url, sources=SWAPPED) as made:
        now = time.time()
        events = [
            {"id": f"e{n}", "client": f"c{n % 250}", "at": now - 2000 + n, "name": f"name {n}", "notes": f"notes {n}"}
            for n in range(1000)
        ]
        for at in range(0, 1000, 250):
            assert made.post(events[at : at + 250]).status_code == 202
        made.post({"id": "newer", "client": "c7", "at": now, "name": "newest"})
        assert eventually(made.idle)
        assert state(crm)["c8"] == {"company_name": "notes 758", "notes": "name 758"}

        made.sources = ACME
        made.configure()
        foreseen = json.loads(made.run("events", "replay", "--since", "1h", "--dry-run", "--json").stdout)
        assert (foreseen["events"], foreseen["dry_run"]) == (1001, True)
        assert state(crm)["c8"]["notes"] == "name 758"
        done = made.run("events", "replay", "--since", "1h")
        assert done.returncode == 0, done.stderr
        assert "e758\tc8\tcompany_name\treplaced\tnotes 758\tname 758" in done.stdout
        assert "1001 events replayed" in done.stdout
        assert eventually(made.idle)

        wanted = {f"c{n}": {"company_name": f"name {750 + n}", "notes": f"notes {750 + n}"} for n in range(250)}
        wanted["c7"] = {"company_name": "newest", "notes": "notes 757"}
        assert state(crm) == wanted
        again = json.loads(made.run("events", "replay", "--since", "1h", "--dry-run", "--json").stdout)
        assert set(again["changes"]) <= {"kept"}


def test_events_are_listed_with_their_outcome(service: Running) -> None:
    now = time.time()
    service.post(
        [
            {"id": "e1", "client": "c1", "at": now - 1, "name": "A"},
            {"id": "e0", "client": "c1", "at": now - 9, "name": "B"},
            {"id": "gone", "client": "unknown-1", "at": now, "name": "C"},
            {"id": "nameless", "at": now, "name": "D"},
        ]
    )
    assert eventually(service.idle)

    def listed(*filters: str) -> dict[str, str]:
        done = service.run("events", "list", "--json", *filters)
        found = {event["id"]: event["outcome"] for event in json.loads(done.stdout)}
        assert done.returncode == (0 if found else 1), done.stderr
        return found

    every = {"e1": "delivered", "e0": "superseded", "gone": "parked", "nameless": "parked"}
    assert listed() == every
    assert listed("--outcome", "superseded") == {"e0": "superseded"}
    assert listed("--outcome", "parked", "--record", "unknown-1") == {"gone": "parked"}
    assert listed("--since", "1h", "--source", "acme", "e1", "e0") == {"e1": "delivered", "e0": "superseded"}
    assert listed("--until", "2020-01-01") == {}
    assert "e0\tacme" in service.run("events", "list").stdout
    assert service.run("events", "replay").returncode == 2
    assert service.run("events", "replay", "nope").returncode == 1


# --- resync, pause ------------------------------------------------------------------------------


def test_resync_mends_what_someone_overwrote(service: Running, crm: Crm) -> None:
    service.post({"id": "e1", "client": "c1", "at": time.time(), "name": "A"})
    assert eventually(service.idle)
    crm.records.add("partner_clients", "c1", id_property="acme_client_id", properties={"company_name": "overwritten"})
    refused = service.run("resync", "--object-type", "partner_clients", stdin="n\n")
    assert (refused.returncode, "send 1 values of 1 records once more?" in refused.stderr) == (130, True)
    assert service.run("resync").returncode == 2
    assert service.run("resync", "--source", "nobody", "--yes").returncode == 1
    done = service.run("resync", "--all", "--yes", "--json")
    assert json.loads(done.stdout) == {"dry_run": False, "records": 1, "values": 1}
    assert eventually(lambda: state(crm)["c1"].get("company_name") == "A")


def test_a_pause_holds_over_a_restart_and_shows_everywhere(service: Running, crm: Crm) -> None:
    assert service.run("pause", "--reason", "audit of the portal").returncode == 0
    time.sleep(1.2)  # the dispatcher looks at people's pauses once a second
    assert service.post({"id": "e1", "client": "c1", "at": time.time(), "name": "A"}).status_code == 202
    assert service.run("status").returncode == 1
    assert service.stop() == 0
    service.start()
    time.sleep(0.5)
    [pause] = service.status()["pauses"]
    assert (pause["reason"], pause["scope"], pause["detail"]) == ("operator", "all", "audit of the portal")
    metrics = requests.get(f"{service.admin_url}/metrics", timeout=5).text
    assert 'bridge_crm_paused{reason="operator",scope="all"} 1.0' in metrics
    assert eventually(lambda: service.log.read_text(encoding="utf-8").count('"event":"delivery paused"') == 2)
    assert not crm.ledger.calls("update")
    resumed = service.run("resume")
    assert (resumed.returncode, resumed.stdout) == (0, "resumed: all delivery\n")
    assert eventually(lambda: state(crm).get("c1") == {"company_name": "A"})
    assert service.run("resume").stdout == "no operator's pause holds\n"


def test_one_object_type_is_paused_by_itself(service: Running) -> None:
    service.run("pause", "--object-type", "partner_services")
    service.run("pause", "--object-type", "partner_clients")
    assert [pause["target"] for pause in service.status()["pauses"]] == ["partner_services", "partner_clients"]
    assert service.run("resume", "--object-type", "partner_services").stdout == "resumed: partner_services\n"
    assert [pause["target"] for pause in service.status()["pauses"]] == ["partner_clients"]


# --- from elsewhere -----------------------------------------------------------------------------


def test_every_command_works_through_the_admin_api(guarded: Running, crm: Crm) -> None:
    now = time.time()
    guarded.post(
        [
            {"id": "e1", "client": "c1", "at": now, "name": "A"},
            {"id": "bad/1", "client": "unknown-1", "at": now, "name": "B"},
        ]
    )
    assert eventually(lambda: len(guarded.entries()) == 1 and guarded.idle())

    def does(*arguments: str, status: int = 0) -> str:
        done = remote(guarded, *arguments)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    [entry] = json.loads(does("retries", "list", "--json", "--since", "1h"))
    assert entry["record"] == "unknown-1"
    assert "event bad/1 of acme" in does("retries", "show", entry["id"])
    does("retries", "show", "record-999", status=1)
    does("retries", "list", "--record", "nobody", status=1)
    assert [event["outcome"] for event in json.loads(does("events", "list", "--json"))] == ["delivered", "parked"]
    assert "0 could not be mapped" in does("events", "replay", "e1")
    assert "asked partner_clients unknown-1" in does("trace", "bad/1")
    does("trace", "nobody", status=1)
    assert json.loads(does("resync", "--record", "c1", "--yes", "--json"))["values"] == 1
    assert "1 replayed" in does("retries", "replay", entry["id"])
    assert eventually(lambda: len(guarded.entries()) == 1 and guarded.idle())
    assert "1 entries discarded" in does("retries", "discard", "--all", "--yes")
    assert "paused" in does("pause", "--reason", "because")
    assert "operator" in does("status", status=1)
    assert "resumed: all delivery" in does("resume")
    does("status")
    wanted = ["events replay", "resync", "retries replay", "retries discard", "pause", "resume"]
    assert eventually(lambda: [line["act"] for line in acts(guarded)] == wanted)
    assert {line["who"] for line in acts(guarded)} == {"token"}
    assert (acts(guarded)[1]["filter"], acts(guarded)[1]["values"]) == ({"record": "c1"}, 1)
    assert TOKEN not in guarded.log.read_text(encoding="utf-8")


def test_a_wrong_token_and_a_port_without_service_are_one_sentence(guarded: Running) -> None:
    for token in ("wrong", None):
        done = remote(guarded, "events", "list", token=token)
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (1, 1)
        assert "--admin-token" in done.stderr
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        guarded.admin_port, kept = unused.getsockname()[1], guarded.admin_port
        done = remote(guarded, "pause")
        assert (done.returncode, "does not answer" in done.stderr, len(done.stderr.splitlines())) == (1, True, 1)
        assert remote(guarded, "status").returncode == 3
        guarded.admin_port = kept


def test_without_the_token_only_health_metrics_and_status_answer(guarded: Running) -> None:
    for path in ("/livez", "/readyz", "/metrics", "/status"):
        assert requests.get(guarded.admin_url + path, timeout=5).status_code == 200
    for path in ("/api/retries", "/api/pause", "/api/trace/e1", "/", "/nonsense"):
        answer = requests.get(guarded.admin_url + path, timeout=5)
        assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert answer.headers["Content-Type"] == "application/problem+json"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert requests.get(f"{guarded.admin_url}/api/pause", headers=headers, timeout=5).json() == []


def test_without_a_configured_token_the_api_is_off_beyond_loopback(tmp_path: Path) -> None:
    made = Running(tmp_path, "http://127.0.0.1:9")
    made.environ = {"BRIDGE_ADMIN_BIND": f"0.0.0.0:{made.admin_port}"}
    made.start()
    try:
        assert requests.get(f"{made.admin_url}/status", timeout=5).status_code == 200
        answer = requests.get(f"{made.admin_url}/api/retries", timeout=5)
        assert (answer.status_code, "server.admin_token" in answer.json()["detail"]) == (403, True)
    finally:
        made.stop()


def test_on_loopback_the_api_is_open_to_this_machine_and_not_to_web_pages(service: Running) -> None:
    pause = f"{service.admin_url}/api/pause"
    assert requests.get(pause, timeout=5).json() == []
    assert requests.get(pause, headers={"Host": "rebound.example"}, timeout=5).status_code == 403
    assert requests.post(pause, data={"reason": "a form"}, timeout=5).status_code == 415
    assert requests.post(pause, data="{", headers={"Content-Type": "application/json"}, timeout=5).status_code == 400
    answer = requests.post(pause, json={"raeson": "?"}, timeout=5)
    assert (answer.status_code, answer.json()["errors"]) == (422, {"raeson": ["Unknown field."]})
    assert requests.post(f"{service.admin_url}/api/resync", json={}, timeout=5).status_code == 422
    assert requests.get(f"{service.admin_url}/api/events?since=yesterday", timeout=5).status_code == 422
    endless = "1" + "0" * 30
    for path in (f"retries?offset={endless}", f"events?after={endless}"):
        assert requests.get(f"{service.admin_url}/api/{path}", timeout=5).status_code == 422
    assert (
        requests.post(
            f"{service.admin_url}/api/resync", json={"all": True, "after": int(endless)}, timeout=5
        ).status_code
        == 422
    )
    assert requests.get(f"{service.admin_url}/api/events?since={endless}d", timeout=5).status_code == 200
    for since in (f"{endless}d", "9999-12-31T23:59:59-23:59", "0001-01-01"):
        assert requests.get(f"{service.admin_url}/retries", params={"since": since}, timeout=5).status_code == 200
    assert requests.post(pause, json={"reason": "maintenance"}, timeout=5).json()["detail"] == "maintenance"
    assert len(requests.delete(pause, timeout=5).json()) == 1
    assert eventually(lambda: [line["act"] for line in acts(service)] == ["pause", "resume"])
    assert [(line["who"], line.get("pauses")) for line in acts(service)] == [("loopback", None), ("loopback", 1)]
