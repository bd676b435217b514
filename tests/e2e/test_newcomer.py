"""What a newcomer types: the demo, and from an empty folder to an own signed webhook in the sandbox."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import requests

from tests import forked
from tests.listening import listening
from tests.running import eventually, free_port

BRIDGE = [sys.executable, "-m", "bridge"]


def bridge(*arguments: str, cwd: Path, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "HUBSPOT_ACCESS_TOKEN"} | (environ or {})
    return forked.run(*arguments, cwd=cwd, env=env, within_s=120)


def test_the_demo_accounts_for_every_event(tmp_path: Path) -> None:
    began = time.monotonic()
    done = bridge("demo", "--events", "100", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every one is accounted for" in done.stdout
    assert "0 not as expected" in done.stdout
    for kind in ("good", "late", "invalid", "refused", "duplicate", "no id"):
        assert kind in done.stdout
    assert next(line.split()[-1] for line in done.stdout.splitlines() if line.startswith("  ")) == "init"
    assert time.monotonic() - began < 60


def test_a_demo_that_is_kept_leads_into_the_console(tmp_path: Path) -> None:
    """With data that goes on coming; a stop leaves nothing behind."""
    printed = tmp_path / "printed"
    (tmp_path / "tmp").mkdir()
    with printed.open("w") as output:
        kept = subprocess.Popen(
            [*BRIDGE, "demo", "--events", "20", "--keep"],
            stdout=output,
            env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
            start_new_session=True,
        )
    try:
        assert eventually(lambda: "Ctrl-C ends it" in printed.read_text(), within_s=60), printed.read_text()
        console = re.findall(r"^ +(http://127.0.0.1:\d+/)$", printed.read_text(), re.MULTILINE)[-1]
        before = requests.get(f"{console}api/events", timeout=9).json()
        assert requests.get(console, headers={"Accept": "text/html"}, timeout=9).text.count("<figure") == 6
        assert eventually(lambda: len(requests.get(f"{console}api/events", timeout=9).json()) > len(before))
    finally:
        kept.terminate()
    assert kept.wait(30) == 0
    assert list((tmp_path / "tmp").glob("partner-bridge-demo-*")) == []


def next_command(printed: str) -> list[str]:
    """What the last line that says `next:` tells to type."""
    line = [line for line in printed.splitlines() if "next: " in line][-1]
    words = shlex.split(line.partition("next: ")[2])
    assert words[0] == "partner-bridge"
    return words[1:]


def test_from_an_empty_folder_to_an_own_webhook_each_command_prints_the_next(tmp_path: Path) -> None:
    port, admin_port = free_port(), free_port()
    environ = {"BRIDGE_BIND": f"127.0.0.1:{port}", "BRIDGE_ADMIN_BIND": f"127.0.0.1:{admin_port}"}
    first = bridge("init", cwd=tmp_path, environ=environ)
    assert first.returncode == 0, first.stderr
    check = next_command(first.stdout + first.stderr)
    second = bridge(*check, cwd=tmp_path, environ=environ)
    assert second.returncode == 0, second.stderr
    serve = next_command(second.stdout + second.stderr)
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*BRIDGE, *serve], cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environ
        )
    try:
        assert eventually(lambda: "next: " in log.read_text(encoding="utf-8")), log.read_text(encoding="utf-8")
        send = next_command(log.read_text(encoding="utf-8"))
        fourth = bridge(*send, cwd=tmp_path, environ=environ)
        assert fourth.returncode == 0, fourth.stdout + fourth.stderr
        trace = next_command(fourth.stdout + fourth.stderr)
        assert eventually(lambda: "delivered" in bridge(*trace, cwd=tmp_path, environ=environ).stdout)

        def pending() -> int:  # counted once a second
            status = bridge("status", "--json", cwd=tmp_path, environ=environ)
            assert status.returncode == 0
            return int(json.loads(status.stdout)["pending"])

        assert eventually(lambda: pending() == 0)
        metrics = requests.get(f"http://127.0.0.1:{admin_port}/metrics", timeout=5).text
        assert 'bridge_events_total{outcome="accepted",source="acme"} 1.0' in metrics
        assert requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).status_code == 404
        spoofed = requests.get(
            f"http://127.0.0.1:{port}/metrics", headers={"Host": f"127.0.0.1:{admin_port}"}, timeout=5
        )
        assert spoofed.status_code == 404
    finally:
        child.send_signal(signal.SIGTERM)
        assert child.wait(40) == 0
    assert "Traceback" not in log.read_text(encoding="utf-8")


def test_a_new_partner_is_set_up_before_anything_is_served(tmp_path: Path) -> None:
    """init → listen → send → check → serve: the partner's own request becomes the example that `check` holds."""
    port, admin_port = free_port(), free_port()
    environ = {"BRIDGE_BIND": f"127.0.0.1:{port}", "BRIDGE_ADMIN_BIND": f"127.0.0.1:{admin_port}"}
    assert bridge("init", "--from", "github", cwd=tmp_path, environ=environ).returncode == 0
    with listening(tmp_path, "github", "--save", "kept", environ=environ, port=str(port)) as listener:
        send = next_command(listener.notes)
        sent = bridge(*send, cwd=tmp_path, environ=environ)
        assert sent.returncode == 0, sent.stdout + sent.stderr
        assert "next: " not in sent.stderr, "there is nothing to trace"
        assert listener.stop() == 0
    assert "signature  accepted: signed as github does, with its secret (github.secret)" in listener.text
    mapped = bridge(*next_command(listener.notes), cwd=tmp_path, environ=environ)
    assert mapped.returncode == 0, mapped.stderr
    (one,) = json.loads(mapped.stdout)["inputs"]
    assert one["properties"] == {"company_name": "globex", "active": "true"}
    (kept,) = (tmp_path / "kept").iterdir()
    config = tmp_path / "bridge.yaml"
    example = (
        f"      - file: kept/{kept.name}\n        expect: [{{id: '7', properties: {json.dumps(one['properties'])}}}]\n"
    )
    config.write_text(config.read_text() + example)
    checked = bridge("check", "--sandbox", cwd=tmp_path, environ=environ)
    assert checked.returncode == 0, checked.stderr
    assert "2 examples" in checked.stdout
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*BRIDGE, *next_command(checked.stdout)],
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environ,
        )
    try:
        assert eventually(lambda: "next: " in log.read_text(encoding="utf-8")), log.read_text(encoding="utf-8")
        again = bridge("send", "github", f"kept/{kept.name}", cwd=tmp_path, environ=environ)
        assert again.returncode == 0, again.stdout + again.stderr
        trace = next_command(again.stderr)
        assert eventually(lambda: "delivered" in bridge(*trace, cwd=tmp_path, environ=environ).stdout)
    finally:
        child.send_signal(signal.SIGTERM)
        assert child.wait(40) == 0
