"""The chart's pod under podman: what Helm renders is played as it is, and this module is its kubelet.

Left to it: the probes, the mounted ConfigMap and Secrets (podman's never change), the preStop hook. The pod has no
network but its own; a sandbox CRM beside the service and a client share it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chart.rendering import Json, objects
from tests.containers import PAUSE, Engine, output

CRM = "http://127.0.0.1:9100"
USER = 10001
#: what podman would do by other means: probes by curl inside, ports by publishing them
LEFT_OUT = ("startupProbe", "livenessProbe", "readinessProbe", "ports")

#: Runs inside the pod: reads one request as JSON, writes status and body. Status 0: nobody answers.
CLIENT = """
import json, sys, urllib.error, urllib.request
asked = json.load(sys.stdin)
body = asked["body"].encode() if asked["body"] is not None else None
request = urllib.request.Request(asked["url"], body, asked["headers"])
try:
    with urllib.request.urlopen(request, timeout=10) as answer:
        seen = answer.status, answer.read().decode()
except urllib.error.HTTPError as error:
    seen = error.code, error.read().decode()
except OSError as error:
    seen = 0, str(error)
json.dump(seen, sys.stdout)
"""


def project(volume: Path, files: Mapping[str, str], mode: int) -> None:
    """What the kubelet does with a ConfigMap or Secret: a new folder, then one rename of the link to it."""
    volume.mkdir(exist_ok=True)
    number = len(list(volume.glob("..2*")))
    folder = volume / f"..2026-{number}"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
        os.chown(folder / name, 0, USER)
        (folder / name).chmod(mode)
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(f"..data/{name}")
    (volume / "..new").symlink_to(folder.name)
    (volume / "..new").replace(volume / "..data")


@dataclass
class Pod:
    """One pod of a release, and the folders behind its volumes.

    `name` tells it from others; `sockets` is a folder that it sees as /run/postgresql, for there is no network.
    """

    engine: Engine
    folder: Path
    values: Json
    secrets: dict[str, str]
    image: str = ""
    name: str = "pod"
    sockets: Path | None = None
    _running: bool = field(default=False, init=False)

    def template(self) -> Json:
        """The pod as the chart renders it."""
        found = objects({**self.values, **self._image_values()})
        (owner,) = (found[kind] for kind in ("statefulset", "deployment") if kind in found)
        template: Json = owner["spec"]["template"]
        return template

    def start(self, *, crm: bool = True, wait: bool = True) -> float:
        """Play the pod on its volumes, with a CRM or without; returns the seconds until it was ready."""
        spec = self.template()["spec"]
        self.folder.mkdir(exist_ok=True)
        self._fill(spec["volumes"])
        (service,) = [each for each in spec["containers"] if each["name"] == "bridge"]
        for key in LEFT_OUT:
            service.pop(key, None)
        if self.sockets is not None:
            spec["volumes"].append({"name": "sockets", "hostPath": {"path": str(self.sockets), "type": "Directory"}})
            service["volumeMounts"].append({"name": "sockets", "mountPath": "/run/postgresql"})
        security = service["securityContext"]
        beside = {"image": f"{self.engine.image}", "imagePullPolicy": "Never", "securityContext": security}
        spec["containers"] += [
            {"name": "client", **beside, "command": ["sleep", "infinity"]},
            *([{"name": "crm", **beside, "args": ["sandbox", "--latency", "1ms"]}] if crm else []),
        ]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name},
            "spec": spec | {"restartPolicy": "Never"},
        }
        began = time.monotonic()
        self._podman("kube", "play", "--network=none", "-", given=json.dumps(pod))
        self._running = True
        if wait:
            self.until(self.ready)
        return time.monotonic() - began

    def _fill(self, volumes: list[Json]) -> None:
        """Give each volume of the pod its folder, as the kubelet does."""
        for volume in volumes:
            place = self.folder / volume["name"]
            if "secret" in volume:
                assert volume.pop("secret")["defaultMode"] == 0o440
                self.rotate(self.secrets)
            elif "configMap" in volume:
                project(place, self._maps()[volume.pop("configMap")["name"]], 0o644)
            elif "emptyDir" in volume:
                del volume["emptyDir"]
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir()
                place.chmod(0o777)
            else:
                continue
            volume["hostPath"] = {"path": str(place), "type": "Directory"}
        if all(volume["name"] != "journal" for volume in volumes):  # its claim's template
            place = self.folder / "journal"
            place.mkdir(exist_ok=True)
            os.chown(place, 0, USER)  # by fsGroup
            place.chmod(0o2775)
            volumes.append({"name": "journal", "hostPath": {"path": str(place), "type": "Directory"}})

    def _image_values(self) -> Json:
        repository, _, tag = (self.image or self.engine.image).rpartition(":")
        return {"image": {"repository": repository, "tag": tag, "pullPolicy": "Never"}}

    def _maps(self) -> dict[str, dict[str, str]]:
        """What each ConfigMap of the release holds, by its name."""
        found = objects({**self.values, **self._image_values()}).values()
        return {each["metadata"]["name"]: each["data"] for each in found if each["kind"] == "ConfigMap"}

    def reconfigure(self, values: Json) -> None:
        """An upgrade has changed the ConfigMap and nothing of the pod, and the kubelet has noticed."""
        before = self.template()
        self.values = values
        assert self.template() == before
        project(self.folder / "config", self._maps()["rel-partner-bridge"], 0o644)

    def rotate(self, secrets: dict[str, str]) -> None:
        """The Secret has changed, and the kubelet has noticed."""
        self.secrets = secrets
        project(self.folder / "secrets", secrets, 0o440)

    def request(self, url: str, body: str | None = None, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Status and body, as seen from within the pod."""
        asked = {"url": url, "body": body, "headers": {"content-type": "application/json", **(headers or {})}}
        status, text = json.loads(self.run("python", "-c", CLIENT, container="client", given=json.dumps(asked)))
        return status, text

    def ready(self) -> bool:
        """What the readiness probe asks."""
        return self.request("http://127.0.0.1:9090/readyz")[0] == 200

    def run(self, *command: str, container: str = "bridge", given: str = "") -> str:
        """What a command inside the container prints."""
        return self._podman("exec", "--interactive", f"{self.name}-{container}", *command, given=given)

    def inspect(self) -> Json:
        """What podman knows of the service's container."""
        (seen,) = json.loads(self._podman("container", "inspect", f"{self.name}-bridge"))
        assert isinstance(seen, dict)
        return seen

    def memory(self) -> int:
        """Bytes that the service's processes have, shared ones counted once."""
        space = Path(f"/proc/{self.inspect()['State']['Pid']}/ns/pid").readlink()
        total = 0
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "ns/pid").readlink() == space:
                    lines = (process / "smaps_rollup").read_text().splitlines()
                    total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            except OSError:  # it has ended
                continue
        return total

    def kill(self) -> None:
        """End the service as a node does that runs out of memory."""
        self._podman("kill", "--signal=KILL", f"{self.name}-bridge")
        self._podman("wait", f"{self.name}-bridge")

    def revive(self) -> None:
        """Start the container again, as the kubelet does."""
        self._podman("start", f"{self.name}-bridge")
        self.until(self.ready)

    def stop(self) -> tuple[int, float]:
        """preStop, SIGTERM, and the grace period before SIGKILL; returns exit status and seconds since SIGTERM."""
        spec = self.template()["spec"]
        began = time.monotonic()
        for hook in spec["containers"][0].get("lifecycle", {}).values():
            self.run(*hook["exec"]["command"])
        left = spec["terminationGracePeriodSeconds"] - (time.monotonic() - began)
        told = time.monotonic()
        self._podman("stop", f"--time={int(left)}", f"{self.name}-bridge")
        took = time.monotonic() - told
        status = int(self.inspect()["State"]["ExitCode"])
        self.remove()
        return status, took

    def remove(self) -> None:
        """Nothing is left but the volumes."""
        if self._running:
            self._running = False
            self._podman("pod", "rm", "--force", "--time=0", self.name)

    def until(self, true: Any, seconds: float = 60) -> None:
        """Wait until `true()`; tells the log when time runs out."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"not within {seconds} s:\n{self.log()}"
            time.sleep(0.2)

    def log(self) -> str:
        done = subprocess.run(
            self.engine.podman("logs", f"{self.name}-bridge"), capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    def _podman(self, *arguments: str, given: str | None = None) -> str:
        return output("env", f"CONTAINERS_CONF={self._settings()}", *self.engine.podman(*arguments), given=given)

    def _settings(self) -> Path:
        file = self.folder / "containers.conf"
        if not file.exists():
            limit = os.sysconf("SC_OPEN_MAX")
            file.write_text(
                f'[containers]\ndefault_ulimits = ["nofile={limit}:{limit}", "nproc=1024:1024"]\n'
                f'[engine]\ninfra_image = "{PAUSE}"\n'
            )
        return file


@contextmanager
def playing(engine: Engine, folder: Path, values: Json, secrets: dict[str, str], **more: Any) -> Iterator[Pod]:
    """A pod that is gone at the end, whatever happens; `more` as of `Pod`."""
    pod = Pod(engine, folder, values, secrets, **more)
    try:
        yield pod
    finally:
        pod.remove()
