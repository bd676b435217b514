"""What `helm test` runs, and the addresses that the pod gets, as rendered, against a running service."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from bridge.sandbox import Crm, SandboxServer
from tests.chart.rendering import ACME as SIGNED
from tests.chart.rendering import CHART, Json, objects, values_of
from tests.running import Running, running


@pytest.fixture
def crm() -> Iterator[SandboxServer]:
    with SandboxServer(Crm()) as server:
        yield server


def ask(test: str, at: str, **changed: str) -> subprocess.CompletedProcess[str]:
    """Run what the pod of `helm test` runs, with the Service's address exchanged for `at`."""
    values: Json = {"config": {"sources": {"acme": SIGNED}}}
    (container,) = objects(values)[f"tests/{test}"]["spec"]["containers"]
    variables = {each["name"]: each["value"] for each in container["env"]} | changed
    variables["URL"] = variables["URL"].replace("http://rel-partner-bridge:80", at)
    command = [sys.executable, "-c", *container["args"]]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=30, check=False)


def test_the_tests_of_the_release_pass_on_a_sound_service(tmp_path: Path, crm: SandboxServer) -> None:
    with running(tmp_path, crm.url) as service:
        for test in ("ready", "unsigned"):
            done = ask(test, service.url)
            assert done.returncode == 0, done.stderr
        metrics = requests.get(f"{service.admin_url}/metrics", timeout=5).text
        assert 'bridge_webhooks_total{code="401",source="acme"} 1.0' in metrics


def test_the_address_of_ipv6_serves_ipv4_as_well(tmp_path: Path, crm: SandboxServer) -> None:
    """What the pod gets on such a cluster, with the ports exchanged for free ones."""
    spec = objects(values_of("ipv6"))["statefulset"]["spec"]["template"]["spec"]
    given = {each["name"]: each["value"] for each in spec["containers"][0]["env"] if each["name"].endswith("BIND")}
    plain = Running(tmp_path, crm.url)
    binds = {
        "BRIDGE_BIND": given["BRIDGE_BIND"].replace(":8080", f":{plain.port}"),
        "BRIDGE_ADMIN_BIND": given["BRIDGE_ADMIN_BIND"].replace(":9090", f":{plain.admin_port}"),
    }
    with running(tmp_path, crm.url, port=plain.port, admin_port=plain.admin_port, environ=binds):
        for host in ("127.0.0.1", "[::1]"):
            assert requests.get(f"http://{host}:{plain.admin_port}/readyz", timeout=5).status_code == 200
            assert ask("unsigned", f"http://{host}:{plain.port}").returncode == 0


def test_a_test_of_the_release_says_what_it_saw_instead(tmp_path: Path, crm: SandboxServer) -> None:
    script = (CHART / "files" / "ask.py").read_text(encoding="utf-8")
    with running(tmp_path, crm.url) as service:
        impatient = script.replace("monotonic() + 60", "monotonic() + 0")
        assert impatient != script
        done = subprocess.run(
            [sys.executable, "-c", impatient],
            env={"URL": f"{service.url}/readyz", "BODY": "", "EXPECT": "401"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 1
    assert "answered 200, not 401" in done.stderr
