"""The command line for people: tables, colours and progress on a terminal, plain lines in a pipe, completion."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.cli import run
from bridge.sandbox import Crm, SandboxServer
from tests.running import Running, eventually, running
from tests.terminals import COLOUR, Seen, on_terminal

HOSTILE = "\x1b[2Jgone\x1b[31m[/red]\x07"
ESCAPED = r"\x1b[2Jgone\x1b[31m[/red]\x07"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Of each kind one entry in the retry log, and a sender who writes to terminals."""
    folder = tmp_path_factory.mktemp("terminal")
    with SandboxServer(Crm(open_properties=False)) as sandbox, running(folder, sandbox.url) as started:
        now = time.time()
        events: list[dict[str, Any]] = [
            {"id": "good", "client": "c1", "at": now, "name": "A"},
            {"id": "bad", "client": "c2", "at": now, "name": "B", "tier": f"platinum{HOSTILE}"},
            {"id": HOSTILE, "client": f"unknown{HOSTILE}", "at": now, "name": HOSTILE},
            {"id": "nameless", "at": now, "name": "D"},
        ]
        assert started.post(events).status_code == 202
        assert eventually(lambda: len(started.entries()) == 3 and started.idle())
        yield started


def seen(service: Running, *arguments: str, **options: Any) -> Seen:
    return on_terminal(*arguments, "--config", str(service.config), cwd=service.folder, **options)


# --- tables and colours -------------------------------------------------------------------------


def test_a_terminal_gets_tables_and_colours(service: Running) -> None:
    shown = seen(service, "retries", "list")
    assert shown.status == 0
    assert "\x1b[31mparked" in shown.text
    header, *rows = shown.plain.splitlines()
    assert re.match(r"id +state +source +record", header)
    assert all(len(row) <= 120 for row in rows)
    assert all(re.search(r"T\d\d:\d\d:\d\dZ", row) for row in rows if "parked" in row)  # short cells stay whole
    delivered = seen(service, "events", "list", "good")
    assert "\x1b[32mdelivered" in delivered.text
    assert re.search(r"T\d\d:\d\d:\d\dZ", delivered.plain)  # whole seconds: people look, programs ask for --json


def test_a_narrow_terminal_loses_nothing(service: Running) -> None:
    """What does not fit goes on in the next line of its cell."""
    narrow, wide = (seen(service, "retries", "list", columns=columns).plain for columns in (60, 240))
    assert max(map(len, narrow.splitlines())) <= 60
    assert sorted(narrow.replace(" ", "").replace("\n", "")) == sorted(wide.replace(" ", "").replace("\n", ""))


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "TERM=dumb"])
def test_who_wants_no_colour_gets_none(service: Running, environ: dict[str, str | None]) -> None:
    shown = seen(service, "events", "list", environ=environ)
    assert "delivered" in shown.text
    assert not COLOUR.search(shown.text)


def test_a_pipe_gets_plain_lines_with_tabs(service: Running) -> None:
    done = service.run("events", "list")
    assert "\x1b" not in done.stdout + done.stderr
    header, *rows = done.stdout.splitlines()
    assert header.split("\t")[:4] == ["id", "source", "received", "outcome"]
    assert len(rows) == 4


@pytest.mark.parametrize("command", [("retries", "list"), ("trace", HOSTILE)], ids=["list", "trace"])
def test_what_a_sender_wrote_steers_no_terminal_and_forges_no_line(
    service: Running, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its bytes are shown, escaped, also in HubSpot's message that quotes them."""
    shown = seen(service, *command, columns=400)
    assert "\x1b[2J" not in shown.text
    assert "\x07" not in shown.text
    assert run([*command, "--config", str(service.config)]) == 0
    piped = capsys.readouterr().out
    assert "\x1b" not in piped
    assert ESCAPED in shown.plain
    assert ESCAPED in piped


LOGS = """
import os, structlog
from bridge.operations import logs
logs.configure(os.environ)
structlog.get_logger().warning("webhook refused", source="acme\\x1b[2J", reason="stale")
"""


@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}], ids=["colour", "NO_COLOR"])
def test_logs_on_a_terminal_are_for_people(tmp_path: Path, environ: dict[str, str | None]) -> None:
    """In colour unless they want none, and escaped."""
    shown = on_terminal(cwd=tmp_path, environ={"BRIDGE_LOG_FORMAT": None, **environ}, program=("-c", LOGS))
    assert shown.status == 0, shown.text
    assert bool(COLOUR.search(shown.text)) == (not environ)
    assert re.search(r"\[warning *\] webhook refused +reason=stale source=acme\\x1b\[2J", shown.plain)


def test_status_says_in_a_word_how_it_is(service: Running) -> None:
    assert seen(service, "status").text.startswith("\x1b[1;32mhealthy")
    assert service.run("pause", "--object-type", "deals", "--reason", "audit").returncode == 0
    try:
        assert eventually(lambda: bool(service.status()["pauses"]))
        degraded = seen(service, "status")
        assert degraded.status == 1
        assert degraded.text.startswith("\x1b[1;31mdegraded")
        assert "Resume when the reason is gone." in degraded.plain
        assert re.search(r"operator +deals +\S+Z +- +audit", degraded.plain)
    finally:
        assert service.run("resume").returncode == 0


# --- asking and progress ------------------------------------------------------------------------


def test_long_work_shows_progress_on_a_terminal_and_is_quiet_in_a_pipe(service: Running, tmp_path: Path) -> None:
    for arguments, label in (
        (("retries", "replay", "--state", "parked"), "replaying"),
        (("events", "replay", "--all"), "comparing"),
        (("resync", "--all", "--yes"), "making due"),
        (("journal", "backup", str(tmp_path / "a.db")), "backing up"),
    ):
        shown = seen(service, *arguments)
        assert shown.status == 0, shown.text
        assert re.search(rf"{label} +━+", shown.plain), (arguments, shown.plain)
    for arguments in (("retries", "replay", "--state", "parked"), ("journal", "backup", str(tmp_path / "b.db"))):
        done = service.run(*arguments)
        assert done.returncode == 0, done.stderr
        assert "━" not in done.stdout + done.stderr
    assert eventually(lambda: len(service.entries()) == 3 and service.idle())


def test_what_cannot_be_undone_asks_first(service: Running) -> None:
    declined = seen(service, "retries", "discard", "--all", types="n\n")
    assert (declined.status, "nothing was done" in declined.plain) == (130, True)
    unasked = service.run("retries", "discard", "--all", stdin="")
    assert (unasked.returncode, "--yes goes on without asking" in unasked.stderr) == (130, True)
    assert len(service.entries()) == 3
    agreed = seen(service, "retries", "discard", "nope", "--all", types="y\n")
    assert agreed.status == 1  # nothing matched, so there was nothing to ask


# --- programs -----------------------------------------------------------------------------------


def test_all_that_lists_prints_json(service: Running, capsys: pytest.CaptureFixture[str]) -> None:
    def document(*arguments: str) -> Any:
        assert run([*arguments, "--json", "--config", str(service.config)]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    for arguments in (
        ("retries", "list"),
        ("events", "list"),
        ("events", "replay", "--all", "--dry-run"),
        ("trace", "good"),
        ("status",),
        ("journal", "info"),
        ("journal", "verify"),
        ("check",),
        ("resume",),
    ):
        assert isinstance(document(*arguments), list | dict)
    entry = service.entries()[0].id
    assert document("retries", "show", entry)["id"] == entry


def test_parked_events_are_those_that_the_retry_log_holds(service: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one of which a single value was refused, however its outcome is told."""

    def listed(outcome: str) -> dict[str, str]:
        assert run(["events", "list", "--outcome", outcome, "--json", "--config", str(service.config)]) == 0
        return {event["id"]: event["outcome"] for event in json.loads(capsys.readouterr().out)}

    assert listed("parked") == {"bad": "refused", HOSTILE: "parked", "nameless": "parked"}
    assert listed("refused") == {"bad": "refused"}


COMPLETE = """\
eval "$(_PARTNER_BRIDGE_COMPLETE=bash_source partner-bridge)"
COMP_WORDS=({words}) COMP_CWORD={at}
_partner_bridge_completion partner-bridge
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(service: Running, *words: str) -> set[str]:
    """What bash offers for the last word."""
    bash = shutil.which("bash") or ""
    script = COMPLETE.format(words=" ".join(f"'{word}'" for word in ("partner-bridge", *words)), at=len(words))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environ = os.environ | {"PATH": path, "BRIDGE_CONFIG": str(service.config)}
    done = subprocess.run([bash, "-c", script], env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_the_shell_completes_commands_options_and_sources(service: Running) -> None:
    assert completed(service, "re") == {"retries", "resync", "resume"}
    assert completed(service, "retries", "list", "--state", "") == {"retrying", "parked"}
    assert completed(service, "send", "a") == {"acme"}
    assert completed(service, "events", "list", "--source", "") == {"acme"}
    assert "--outcome" in completed(service, "events", "list", "--o")
