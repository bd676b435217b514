"""The command line beside a running service, and what it says when something is wrong: one clear sentence."""

from __future__ import annotations

import json
import re
import resource
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.sandbox import Crm, SandboxServer
from tests.running import Running, eventually, running


@pytest.fixture
def crm() -> Crm:
    return Crm(open_properties=False)


@pytest.fixture
def service(tmp_path: Path, crm: Crm) -> Iterator[Running]:
    with SandboxServer(crm) as sandbox, running(tmp_path, sandbox.url) as started:
        yield started


@pytest.fixture
def stopped(tmp_path: Path) -> Running:
    """A configured service that does not run."""
    return Running(tmp_path, "http://127.0.0.1:9")


def says(done: subprocess.CompletedProcess[str], *words: str, status: int = 1) -> None:
    """One sentence on stderr with these words, this exit status, and no traceback."""
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


# --- the retry log ------------------------------------------------------------------------------


def fill(service: Running) -> None:
    """Three entries: a refused value, an unknown record, an event without an id; and a good event."""
    now = time.time()
    answer = service.post(
        [
            {"id": "good", "client": "c1", "at": now, "name": "A"},
            {"id": "bad", "client": "c2", "at": now, "name": "B", "tier": "platinum"},
            {"id": "gone", "client": "unknown-9", "at": now, "name": "C"},
            {"id": "nameless", "at": now, "name": "D"},
        ]
    )
    assert answer.json()["parked"] == 1
    assert eventually(lambda: len(service.entries()) == 3 and service.idle())


def listed(service: Running, *filters: str) -> list[dict[str, object]]:
    done = service.run("retries", "list", "--json", *filters)
    found: list[dict[str, object]] = json.loads(done.stdout)
    assert done.returncode == (0 if found else 1)
    return found


def test_the_retry_log_is_listed_with_every_field_and_filter(service: Running) -> None:
    fill(service)
    entries = {entry["record"]: entry for entry in listed(service)}
    assert set(entries) == {"c2", "unknown-9", None}
    refused = entries["c2"]
    assert list(refused) == [
        "id", "state", "source", "object_type", "id_property", "record", "category", "message", "properties",
        "event_ids", "attempts", "first_failed_at", "next_attempt_at",
    ]  # fmt: skip
    assert (refused["state"], refused["source"], refused["category"]) == ("parked", "acme", "VALIDATION_ERROR")
    assert (refused["properties"], refused["event_ids"]) == (["tier"], ["bad"])
    assert entries[None]["category"] == "UNMAPPABLE"
    assert entries["unknown-9"]["category"] == "OBJECT_NOT_FOUND"

    def records(*filters: str) -> set[object]:
        return {entry["record"] for entry in listed(service, *filters)}

    assert records("--category", "OBJECT_NOT_FOUND") == {"unknown-9"}
    assert records("--record", "c2") == {"c2"}
    assert records("--state", "retrying") == set()
    assert records("--source", "acme", "--since", "1h") == set(entries)
    assert records("--before", "2020-01-01") == set()
    assert records(str(refused["id"])) == {"c2"}


def test_an_entry_is_shown_with_its_events(service: Running) -> None:
    fill(service)
    entry = next(entry for entry in listed(service) if entry["record"] == "c2")
    shown = service.run("retries", "show", str(entry["id"]))
    assert shown.returncode == 0
    assert "platinum was not one of the allowed options" in shown.stdout
    assert "event bad of acme" in shown.stdout
    todo = re.search(r"^to do +(.*)", shown.stdout, re.MULTILINE)
    assert todo
    assert todo[1] == "Mend the property in HubSpot, or the source's mapping, then replay."
    assert service.run("retries", "show", "record-999").returncode == 1


def test_replay_uses_the_mapping_of_today(service: Running, crm: Crm) -> None:
    """The mapping is mended in the file; the kept payloads are mapped again and delivered."""
    fill(service)
    service.sources = service.sources.replace(
        "tier: {from: tier, type: enumeration}",
        "tier: {from: tier, type: enumeration, values: {platinum: gold}}",
    ).replace("id: client,", "id: client || 'c4',")
    service.configure()
    done = service.run("retries", "replay", "--category", "VALIDATION_ERROR")
    assert (done.returncode, done.stdout) == (0, "1 replayed from 1 events; 0 could not be mapped again\n")
    done = service.run("retries", "replay", "--category", "UNMAPPABLE", "--json")
    assert json.loads(done.stdout) == {"entries": 1, "events": 1, "unmapped": 0}
    assert eventually(service.idle)
    state = crm.state(id_property="acme_client_id")["partner_clients"]
    assert state["c2"]["tier"] == "gold"
    assert state["c4"] == {"company_name": "D"}
    assert {entry["record"] for entry in listed(service)} == {"unknown-9"}


def test_discard_asks_unless_told_and_acts_on_what_is_named(service: Running) -> None:
    fill(service)
    says(service.run("retries", "discard", "--record", "c2", stdin="n\n"), "give up 1 entries", status=130)
    assert len(listed(service)) == 3
    assert service.run("retries", "discard", "--record", "c2", "--yes").returncode == 0
    assert {entry["record"] for entry in listed(service)} == {"unknown-9", None}
    done = service.run("retries", "discard", "--yes")
    assert done.returncode == 2
    assert "say which entries" in done.stderr


def test_trace_tells_the_story_of_an_event_and_of_a_record(service: Running, crm: Crm) -> None:
    fill(service)
    story = service.run("trace", "bad")
    assert story.returncode == 0
    assert "company_name: delivered in call" in story.stdout
    assert "tier: refused" in story.stdout
    assert any(str(call.correlation_id) in story.stdout for call in crm.ledger.calls("update"))
    record = service.run("trace", "c2")
    assert "company_name = 'B', delivered, set by event bad" in record.stdout
    assert json.loads(service.run("trace", "nameless", "--json").stdout)["events"][0]["unmappable"]
    says(service.run("trace", "nobody"), "no event and no record nobody")


def test_status_is_healthy_then_degraded_then_out_of_reach(service: Running, crm: Crm) -> None:
    assert service.run("status").returncode == 0
    crm.faults.always("503")
    service.post({"id": "e1", "client": "c1", "at": time.time(), "name": "A"})
    assert eventually(lambda: bool(service.status()["pauses"]))
    done = service.run("status")
    assert done.returncode == 1
    assert "paused: outage" in done.stdout
    service.stop()
    says(service.run("status"), "does not answer", "start `partner-bridge serve`", status=3)


# --- what goes wrong at start -------------------------------------------------------------------


def test_a_missing_configuration_is_one_sentence(stopped: Running) -> None:
    stopped.config.unlink()
    says(stopped.run("serve"), "bridge.yaml")


def test_a_typo_in_the_configuration_names_the_place(stopped: Running) -> None:
    stopped.config.write_text(stopped.config.read_text().replace("flush_interval", "flush_intervall"))
    says(stopped.run("serve"), "bridge.yaml:4: crm.flush_intervall", "did you mean 'flush_interval'")


def test_a_missing_secret_names_its_file(stopped: Running) -> None:
    (stopped.folder / "acme.secret").unlink()
    says(stopped.run("serve"), "acme.secret", "sources.acme.verify.secrets")


#: What is replaced in bridge.yaml or written into a file, and what the one message must name.
MISTAKES = {
    "unknown-key": ("flush_interval:", "flush_intervall:", "crm.flush_intervall"),
    "wrong-type": ("batch_size: 100", "batch_size: many", "crm.batch_size"),
    "no-url": ("base_url: http:", "base_url: hapi:", "crm.base_url"),
    "empty-secret": ("acme.secret", "", "sources.acme.verify.secrets"),
    "placeholder-secret": ("acme.secret", "changeme\n", "sources.acme.verify.secrets"),
    "empty-token": ("crm.token", "", "crm.token"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_f52_a_mistake_is_one_message_soon_and_check_says_the_same(stopped: Running, mistake: str) -> None:
    """Exit status 1 after less than 2 s of work, whatever else the machine does."""
    old, new, named = MISTAKES[mistake]
    if (stopped.folder / old).exists():
        (stopped.folder / old).write_text(new, encoding="utf-8")
    else:
        text = stopped.config.read_text(encoding="utf-8")
        assert old in text
        stopped.config.write_text(text.replace(old, new, 1), encoding="utf-8")
    told = set()
    for command in ("serve", "check"):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = stopped.run(command)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
        says(done, named)
        told.add(done.stderr.removeprefix("partner-bridge: "))
    assert len(told) == 1
    assert not (stopped.folder / "journal.db").exists()


def test_f52_a_secret_that_everybody_may_read_is_warned_of(service: Running) -> None:
    """Kubernetes mounts secrets like that, so it is no reason not to serve."""
    (service.folder / "acme.secret").chmod(0o644)
    assert service.stop() == 0
    service.start()
    for text in (service.log.read_text(encoding="utf-8"), service.run("check").stderr):
        assert any(line.startswith("warning: ") and "acme.secret" in line for line in text.splitlines()), text


def test_f52_an_address_where_nobody_answers_is_told_while_webhooks_are_taken(stopped: Running) -> None:
    """It may come up later: no reason not to start."""
    assert stopped.run("check").returncode == 0
    stopped.start()
    try:
        assert stopped.post({"id": "e1", "client": "c1", "at": time.time(), "name": "A"}).status_code == 202
        assert eventually(lambda: any(pause["reason"] == "outage" for pause in stopped.status()["pauses"]))
        assert any("paused: outage" in why for why in stopped.status()["degraded"])
    finally:
        stopped.stop()


def test_a_port_in_use_names_the_setting(stopped: Running) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        stopped.port = other.getsockname()[1]
        stopped.configure()
        says(stopped.run("serve"), f"127.0.0.1:{stopped.port}", "Address already in use", "server.bind")


@pytest.mark.parametrize("url", ["sqlite:////nowhere/journal.db", "sqlite:////sys/journal.db"])
def test_a_journal_that_cannot_be_kept_names_the_file(stopped: Running, url: str) -> None:
    stopped.environ = {"BRIDGE_JOURNAL_URL": url}
    says(stopped.run("serve"), url.removeprefix("sqlite:///").removesuffix("/journal.db"), "journal.url")


def test_a_second_service_on_one_journal_is_refused(service: Running, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    second = Running(other, service.crm_url, environ={"BRIDGE_JOURNAL_URL": f"sqlite:///{tmp_path}/journal.db"})
    says(second.run("serve"), "in use by another partner-bridge service")


@pytest.mark.parametrize("variable", ["BRIDGE_LOG_LEVEL", "BRIDGE_LOG_FORMAT"])
def test_a_bad_log_setting_is_named(stopped: Running, variable: str) -> None:
    stopped.environ = {variable: "loud"}
    says(stopped.run("serve"), variable, "'loud'", "use one of")


def test_commands_without_a_journal_say_what_to_start(stopped: Running) -> None:
    says(stopped.run("retries", "list"), "there is no journal at", "partner-bridge serve")


def test_wrong_usage_exits_2(stopped: Running) -> None:
    assert stopped.run("retries", "list", "--state", "lost").returncode == 2
    assert stopped.run("nonsense").returncode == 2
