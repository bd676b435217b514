"""`partner-bridge map` and `send`: the same code as the service, from the command line."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from flask import Flask
from werkzeug.serving import make_server

from bridge.cli import run
from bridge.config import load_settings
from bridge.intake.mapping import compile_source
from bridge.intake.signatures import Verifier
from bridge.intake.webhooks import Counts, Endpoint, Webhooks, register_problem_handlers
from bridge.model import Event, Intake, Receipt

CONFIG = """
crm: {token: {env: TOKEN}}
sources:
  acme:
    verify: {scheme: standard-webhooks, secrets: [{env: ACME_SECRET}]}
    event_id: id
    occurred_at: at
    when: _headers.x_topic == 'clients'
    record: {id: client.id, id_property: acme_id}
    properties:
      name: client.name
      tier: {from: client.plan, type: enumeration, values: {Gold: gold}}
    examples:
      - payload: {id: e1, at: "2026-01-02T03:04:05Z", client: {id: 7, plan: Gold}}
        headers: {X-Topic: clients}
        expect: [{id: "7", properties: {tier: gold}}]
  bare:
    verify: {scheme: none}
    object_type: contacts
    on_invalid: reject
    record: {id: id}
    properties: {name: name}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKEN", "pat-eu1-4f1c2a9e-77b0")
    monkeypatch.setenv("ACME_SECRET", "whsec_cThaci0xdll3M0twVDZ4SjBjTmY1c0xiQXo3")
    file = tmp_path / "bridge.yaml"
    file.write_text(CONFIG)
    return file


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    file = tmp_path / "payload.json"
    file.write_text('{"id": "e7", "client": {"id": 7, "name": "A", "plan": "Iron"}}')
    return file


class Journal:
    """Keeps what it is given; every event is taken once."""

    def __init__(self) -> None:
        self.events: dict[str, Event] = {}

    def append(self, events: Sequence[Event]) -> Sequence[Receipt]:
        known = set(self.events)
        self.events.update({event.id: event for event in events})
        return [Receipt(e.id, Intake.DUPLICATE if e.id in known else e.intake) for e in events]


class Deaf:
    def webhook(self, source: str, code: int, duration_s: float, counts: Counts) -> None: ...

    def verification(self, source: str, result: str, secret: int | None) -> None: ...


@pytest.fixture
def service(config: Path) -> Iterator[tuple[str, Journal]]:
    """The webhook endpoints on a real port."""
    journal = Journal()
    sources = load_settings(config).sources
    endpoints = {
        name: Endpoint(compile_source(source), Verifier(source.verify), 10_000) for name, source in sources.items()
    }
    app = Flask("test")
    register_problem_handlers(app)
    app.register_blueprint(Webhooks(sources=lambda: endpoints, journal=journal, observer=Deaf()).blueprint())
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, name="service", daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", journal
    server.shutdown()
    thread.join(10)
    server.server_close()


def test_map_prints_the_inputs_and_what_is_wrong(
    config: Path, payload: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1, as something is invalid."""
    assert run(["map", "--config", str(config), "acme", str(payload), "--header", "X-Topic: clients"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "object_type": "partner_clients",
        "inputs": [{"id": "7", "idProperty": "acme_id", "properties": {"name": "A"}}],
        "ignored": [],
        "parked": [],
        "invalid": [{"index": 0, "errors": {"tier": "is 'Iron', which values: does not list"}}],
        "left_out": [],
    }


def test_map_tells_which_path_found_nothing(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that is mistyped would else be a property that is just missing; that is nothing invalid."""
    config.write_text(CONFIG.replace("name: client.name", "name: client.nmae\n      city: client.city"))
    payload = tmp_path / "one.json"
    payload.write_text('{"id": "e7", "client": {"id": 7, "name": "A", "city": " ", "plan": "Gold"}}')
    assert run(["map", "--config", str(config), "acme", str(payload), "--header", "X-Topic: clients"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["inputs"] == [{"id": "7", "idProperty": "acme_id", "properties": {"tier": "gold"}}]
    assert told["left_out"] == [{"index": 0, "absent": {"name": "client.nmae"}, "null": {"city": "client.city"}}]
    assert run(["map", "--config", str(config), "acme", str(payload)]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == []  # it is ignored: nothing was looked for


def test_map_tells_what_would_be_ignored_or_refused(
    config: Path, payload: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ignoring is fine, refusing is not."""
    assert run(["map", "--config", str(config), "acme", str(payload)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ignored"] == ["e7"]
    assert told["ignored_because"] == {"e7": "`when` does not hold: _headers.x_topic == 'clients'"}
    assert run(["map", "--config", str(config), "bare", str(payload)]) == 1
    assert json.loads(capsys.readouterr().out)["refused"]["status"] == 422
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert run(["map", "--config", str(config), "bare", str(broken)]) == 1
    assert json.loads(capsys.readouterr().out)["refused"]["status"] == 400


def test_map_and_check_point_at_a_day_that_was_written_as_its_midnight_in_utc(
    config: Path, payload: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it becomes is as documented, hence neither is an error."""
    zone = CONFIG.replace(
        "    verify: {scheme: standard", "    timezone: America/New_York\n    verify: {scheme: standard"
    )
    dated = zone.replace("      name: client.name\n", "      renews: {from: client.renews, type: date}\n")
    example = "plan: Gold, renews: 2026-01-05T00:00:00Z}}", "{renews: 2026-01-04, tier: gold}"
    config.write_text(dated.replace("plan: Gold}}", example[0]).replace("{tier: gold}", example[1]))
    payload.write_text('{"id": "e7", "client": {"id": 7, "renews": 1767571200}}')
    assert run(["map", "--config", str(config), "acme", str(payload), "--header", "X-Topic: clients"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["inputs"][0]["properties"] == {"renews": "2026-01-04"}
    hint = (
        "midnight in UTC, which is 2026-01-04 in America/New_York; where the day 2026-01-05 is meant, give the "
        "property `timezone: UTC`"
    )
    assert told["hints"] == [f"renews is '1767571200', {hint}"]
    assert run(["check", "--config", str(config)]) == 0
    found = " ".join(capsys.readouterr().err.split())
    assert f"sources.acme.examples[0]: renews is '2026-01-05T00:00:00Z', {hint}" in found


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nosuch", "-"], "there is no source 'nosuch'"),
        (["acme", "/nosuch/file"], "/nosuch/file cannot be read"),
        (["acme", "-", "--header", "no colon"], "is not 'Name: value'"),
    ],
)
def test_wrong_use_is_one_clear_sentence(
    config: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never a traceback."""
    assert run(["map", "--config", str(config), *arguments]) in {1, 2}
    assert message in capsys.readouterr().err


def test_send_signs_the_example_and_makes_each_an_event_of_its_own(
    config: Path, service: tuple[str, Journal], capsys: pytest.CaptureFixture[str]
) -> None:
    """So that a second send is no duplicate."""
    url, journal = service
    for _ in range(2):
        assert run(["send", "--config", str(config), "acme", "--url", f"{url}/webhooks/acme"]) == 0
    out, err = capsys.readouterr()
    assert out.count('"accepted":1') == 2
    assert "a fresh event_id (id) and a fresh occurred_at (at)" in err
    assert len(journal.events) == 2
    assert [event.updates[0].properties for event in journal.events.values()] == [{"tier": "gold"}] * 2


def test_send_takes_a_file_of_many_payloads(
    config: Path, service: tuple[str, Journal], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One a line, with what the answers sum to; exit status 1 if one was refused."""
    url, _journal = service
    lines = tmp_path / "all.ndjson"
    lines.write_text("\n".join(f'{{"id": {n}, "name": "N{n}"}}' for n in range(20)) + "\n\n")
    command = ["send", "--config", str(config), "bare", str(lines), "--url", f"{url}/webhooks/bare"]
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out) == {
        "sent": 20,
        "answers": {"202": 20},
        "accepted": 20,
        "duplicates": 0,
        "ignored": 0,
        "parked": 0,
    }
    lines.write_text('{"id": 1, "name": "A"}\n{"id": "x", "name": "A"}\n')
    assert run(command) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["answers"] == {"202": 1, "422": 1}
    assert "urn:partner-bridge:problem:invalid" in err


def test_send_says_when_nobody_listens(config: Path, payload: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what to look at."""
    command = ["send", "--config", str(config), "acme", str(payload), "--url", "http://127.0.0.1:9/webhooks/acme"]
    assert run(command) == 1
    assert "is it running?" in capsys.readouterr().err
