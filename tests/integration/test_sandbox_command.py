"""`partner-bridge sandbox`: starts, says where, ends cleanly."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import IO

import pytest
import requests

from bridge.cli import run
from bridge.sandbox import Crm, SandboxServer

COMMAND = [sys.executable, "-m", "bridge", "sandbox"]


def first_url(output: IO[str]) -> str:
    return next(word for word in output.readline().split() if word.startswith("http://"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(number: signal.Signals) -> None:
    """The greeting names URL and settings; either signal ends it with status 0 and no traceback."""
    arguments = ["--port", "0", "--latency", "1ms", "--limit", "1", "--fail", "unknown=100%", "--seed", "3"]
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            url = first_url(process.stdout)
            body = {"inputs": [{"id": "1", "properties": {"their_own": "x"}}]}
            statuses = [
                requests.post(
                    f"{url}/crm/v3/objects/partner_clients/batch/update",
                    json=body,
                    headers={"Authorization": "Bearer t"},
                    timeout=10,
                ).status_code
                for _ in range(2)
            ]
            assert statuses == [207, 429]
            process.send_signal(number)
            assert process.wait(10) == 0
        finally:
            process.kill()
        output = process.stdout.read()
        assert f"base_url: {url}" in output
        assert "Sandbox ended after 2 calls; breaches of the contract: 1" in output
        assert process.stderr.read() == ""


def test_letter_case_is_folded_on_demand() -> None:
    """Two ids that differ in it only are one record then, twice in one call."""
    inputs = [{"id": id_, "idProperty": "acme_client_id", "properties": {"notes": "x"}} for id_ in ("a1", "A1")]
    process = subprocess.Popen([*COMMAND, "--port", "0", "--fold-case"], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        try:
            answer = requests.post(
                f"{first_url(process.stdout)}/crm/v3/objects/partner_clients/batch/update",
                json={"inputs": inputs},
                headers={"Authorization": "Bearer t"},
                timeout=10,
            )
            assert answer.status_code == 400
            assert answer.json()["message"] == "Duplicate IDs found in batch input: [a1, A1]. IDs must be unique"
        finally:
            process.kill()


def test_a_port_in_use_is_one_clear_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1, and the sentence names the way out."""
    with SandboxServer(Crm()) as server:
        assert run(["sandbox", "--port", str(server.port)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{server.port} (Address already in use)" in printed.err


def test_a_host_that_is_not_ours_is_one_clear_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """Likewise for addresses that cannot be bound (192.0.2.0/24 is for documentation)."""
    assert run(["sandbox", "--host", "192.0.2.1"]) == 1
    assert "cannot listen on 192.0.2.1:9100" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--fail", "500"], "no rate"),
        (["--fail", "500=2"], "no rate"),
        (["--fail", "500=nan"], "no rate"),
        (["--fail", "no-such=1"], "no fault"),
        (["--fail", "500=60%", "--fail", "429=60%"], "more than 1"),
        (["--fail", "500=60%", "429=60%"], "more than 1"),
        (["--fail", "500=5%", "no-such=1"], "no fault"),
        (["500=5%"], "stands behind --fail"),
        (["--latency", "soon"], "no duration"),
        (["--port", "70000"], "70000"),
        (["--limit", "-1"], "-1"),
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is started."""
    assert run(["sandbox", *arguments]) == 2
    assert told in capsys.readouterr().err
