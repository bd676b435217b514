"""The image: built from the Dockerfile as it is, and run as Kubernetes runs it: read-only, no capabilities.

Needs root, buildah, podman and runc; tests/containers.py tells on which base it is built.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from standardwebhooks.webhooks import Webhook

from bridge import __version__
from tests.containers import BASE, MARKS, Engine, output

pytestmark = MARKS

CONFIG = """
crm:
  base_url: {crm}
  token: {{file: /run/secrets/partner-bridge/hubspot-token}}
  flush_interval: 50ms
sources:
  acme:
    verify:
      scheme: standard-webhooks
      secrets: [{{file: /run/secrets/partner-bridge/acme}}]
    event_id: id
    record: {{id: data.id, id_property: acme_client_id}}
    properties: {{company_name: data.name}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_the_image_says_what_it_is_and_starts_unprivileged(engine: Engine) -> None:
    (seen,) = json.loads(output(*engine.podman("image", "inspect", engine.image)))
    config = seen["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["partner-bridge"]
    assert config["Cmd"] == ["serve"]
    assert config["Labels"]["org.opencontainers.image.version"] == __version__
    assert output(*engine.hardened("version", command=("--version",))).split()[-1] == __version__


def test_the_image_reads_requests_with_the_parser_in_c_and_has_no_compiler(engine: Engine) -> None:
    """gunicorn takes it where it is there."""
    asked = (
        "import shutil; from gunicorn.config import Config; from gunicorn.http import message; "
        "print(message._check_fast_parser(Config()), shutil.which('gcc'), shutil.which('cc'))"
    )
    found = output(*engine.hardened("parser", "--entrypoint=python3", command=("-c", asked)))
    assert found.split() == ["True", "None", "None"]


def test_the_image_is_small_and_the_service_starts_quickly(
    engine: Engine, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """A megabyte is 10^6 bytes, as registries count."""

    def megabytes(image: str) -> float:
        (seen,) = json.loads(output(*engine.podman("image", "inspect", image)))
        return float(seen["Size"]) / 1e6

    own = megabytes(engine.image) - megabytes(BASE)
    record_testsuite_property("megabytes_over_the_base", round(own))
    assert own < 130
    began = time.monotonic()
    output(*engine.hardened("quick", command=("--version",)))
    record_testsuite_property("seconds_to_answer_a_command", round(time.monotonic() - began, 2))


def test_nothing_but_the_journal_and_temporary_files_can_be_written(engine: Engine, tmp_path: Path) -> None:
    os.chown(tmp_path, 10001, 10001)
    script = """
    grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status
    for folder in / /etc /opt/partner-bridge /opt/partner-bridge/bin /run /usr /var /tmp /var/lib/partner-bridge; do
      if touch $folder/probe 2>/dev/null; then echo "writable $folder"; fi
    done
    for tool in gcc make git /opt/partner-bridge/bin/pip; do
      if command -v $tool; then echo "tool $tool"; fi
    done
    find / -xdev '(' -name .lock -o -path '*/.cache/pip' ')' -exec echo left {} ';' 2>/dev/null
    true  # find fails at folders that are closed to this user
    """
    options = ("--entrypoint=sh", f"--volume={tmp_path}:/var/lib/partner-bridge")
    seen = output(*engine.hardened("probe", *options, command=("-c", script))).splitlines()
    assert [line.split() for line in seen] == [
        ["CapEff:", "0000000000000000"],
        ["NoNewPrivs:", "1"],
        ["Seccomp:", "2"],
        ["writable", "/tmp"],
        ["writable", "/var/lib/partner-bridge"],
    ]


def test_a_webhook_passes_through_the_hardened_container_and_it_stops_cleanly(engine: Engine, tmp_path: Path) -> None:
    crm, public, admin = free_port(), free_port(), free_port()
    key = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    mounts = container_files(tmp_path, f"http://127.0.0.1:{crm}", key)
    binds = (f"--env=BRIDGE_BIND=127.0.0.1:{public}", f"--env=BRIDGE_ADMIN_BIND=127.0.0.1:{admin}")
    log = tmp_path / "log"
    with (
        log.open("w") as sink,
        running([sys.executable, "-m", "bridge", "sandbox", "--port", str(crm)], sink),
        running(engine.hardened("serve", *mounts, *binds), sink) as service,
    ):
        until(lambda: request(f"http://127.0.0.1:{admin}/readyz")[0] == 200, service, log)
        body = b'{"id": "e1", "data": {"id": "7", "name": "Acme"}}'
        unsigned, _ = request(f"http://127.0.0.1:{public}/webhooks/acme", body)
        accepted, _ = request(f"http://127.0.0.1:{public}/webhooks/acme", body, signed(body, key))
        assert (unsigned, accepted) == (401, 202), log.read_text()
        until(lambda: company_name(crm, "7") == "Acme", service, log)
        service.terminate()
        assert service.wait(40) == 0, log.read_text()
    assert (tmp_path / "journal" / "journal.db").exists()


def container_files(folder: Path, crm: str, key: str) -> list[str]:
    """Configuration, secrets and journal as the chart mounts them."""
    (folder / "config").mkdir()
    (folder / "config" / "bridge.yaml").write_text(CONFIG.format(crm=crm))
    (folder / "secrets").mkdir()
    for name, text in {"hubspot-token": "pat-test", "acme": key}.items():
        file = folder / "secrets" / name
        file.write_text(text)
        os.chown(file, 0, 10001)
        file.chmod(0o440)
    (folder / "journal").mkdir()
    os.chown(folder / "journal", 10001, 10001)
    return [
        f"--volume={folder}/config:/etc/partner-bridge:ro",
        f"--volume={folder}/secrets:/run/secrets/partner-bridge:ro",
        f"--volume={folder}/journal:/var/lib/partner-bridge",
    ]


class running:  # noqa: N801 (reads as a phrase in `with`)
    """A process that is ended with the block, kindly if it has not ended by then."""

    def __init__(self, command: list[Any], sink: Any) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(40)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def signed(body: bytes, key: str) -> dict[str, str]:
    """The headers of the library that partners use."""
    now = datetime.now(UTC)
    signature = Webhook(key).sign("msg_1", now, body.decode())
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signature,
    }


def request(url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Status and body of the answer; status 0 when nobody answers."""
    asked = urllib.request.Request(url, body, {"content-type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(asked, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError:
        return 0, b""


def company_name(crm: int, client: str) -> object:
    """What the CRM holds for a client, asked as any of HubSpot's clients would."""
    asked = {"inputs": [{"id": client}], "idProperty": "acme_client_id", "properties": ["company_name"]}
    status, body = request(
        f"http://127.0.0.1:{crm}/crm/v3/objects/partner_clients/batch/read",
        json.dumps(asked).encode(),
        {"authorization": "Bearer pat-test"},
    )
    results = json.loads(body)["results"] if status in {200, 207} else []
    return results[0]["properties"].get("company_name") if results else None


def until(true: Any, service: subprocess.Popen[bytes], log: Path, seconds: float = 60) -> None:
    """Wait until `true()`; tells the log when the service ends before, or time runs out."""
    end = time.monotonic() + seconds
    while not true():
        assert service.poll() is None, f"the service ended:\n{log.read_text()}"
        assert time.monotonic() < end, f"not within {seconds} s:\n{log.read_text()}"
        time.sleep(0.1)
