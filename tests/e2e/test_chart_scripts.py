"""The chart's two scripts, as they stand in the rendered pods, against a running service."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from bridge.sandbox import Crm, SandboxServer
from tests.charts import ACME as SIGNED
from tests.charts import CHART, Json, objects, values_of
from tests.running import ACME, Running, eventually, running


@pytest.fixture
def crm() -> Iterator[SandboxServer]:
    with SandboxServer(Crm()) as server:
        yield server


def mount(volume: Path, number: int, text: str) -> None:
    """What the kubelet does with a ConfigMap: a new folder, then one rename of the link to it."""
    folder = volume / f"..{number}"
    folder.mkdir()
    (folder / "bridge.yaml").write_text(text, encoding="utf-8")
    (volume / "..new").symlink_to(folder.name)
    (volume / "..new").replace(volume / "..data")
    if not (volume / "bridge.yaml").is_symlink():
        (volume / "bridge.yaml").symlink_to("..data/bridge.yaml")


class Mounted(Running):
    """A service that reads its configuration from a mounted ConfigMap."""

    @property
    def config(self) -> Path:
        return self.folder / "volume" / "bridge.yaml"

    def configure(self) -> None:
        """Beside the volume, for `mount`; the credentials are files of the folder."""


@contextmanager
def sidecar(folder: Path, config: Path) -> Iterator[Path]:
    """The sidecar's command with the script that its ConfigMap holds; gives its log."""
    (container,) = [
        each
        for each in objects(values_of("reload"))["statefulset"]["spec"]["template"]["spec"]["containers"]
        if each["name"] == "reload"
    ]
    assert container["command"][0] == "python"
    script, log = folder / "reload.py", folder / "reload.log"
    script.write_text(objects(values_of("reload"))["reload"]["data"]["reload.py"], encoding="utf-8")
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, script, config], stdout=output, stderr=output)
    try:
        yield log
        assert process.poll() is None, log.read_text(encoding="utf-8")
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_sidecar_makes_the_service_take_over_a_changed_config_map(
    tmp_path: Path, crm: SandboxServer, workers: int
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    plain = Running(tmp_path, crm.url, workers=workers)
    texts = [plain.config.read_text(encoding="utf-8")]
    plain.sources = ACME + ACME.replace("acme:", "second:")
    plain.configure()
    texts.append(plain.config.read_text(encoding="utf-8"))
    absolute = [text.replace("file: ", f"file: {tmp_path}/") for text in texts]
    mount(volume, 1, absolute[0])
    service = Mounted(
        tmp_path,
        crm.url,
        port=plain.port,
        admin_port=plain.admin_port,
        environ={"BRIDGE_CONFIG": str(volume / "bridge.yaml")},
    )
    try:
        service.start()
        pids = service.pids()
        with sidecar(tmp_path, service.config) as log:
            # Once at the start, by the master alone, which tells its workers.
            assert eventually(lambda: service.log_has("the configuration was reloaded", times=workers), within_s=20)
            assert log.read_text(encoding="utf-8").count("SIGHUP") == 1
            assert service.post({"id": "1", "client": "c"}, source="second").status_code == 404
            mount(volume, 2, absolute[1])
            assert eventually(lambda: service.log_has("the configuration was reloaded", times=2 * workers), within_s=20)
            assert service.post({"id": "1", "client": "c"}, source="second").status_code == 202
            assert log.read_text(encoding="utf-8").count("SIGHUP") == 2
        assert service.pids() == pids
    finally:
        if service.process is not None:
            service.stop()


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
