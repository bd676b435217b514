"""Images and containers for tests: buildah and podman on a store of their own, on a base that needs no registry."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
TOOLS = ("buildah", "podman", "runc", "mmdebstrap")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
BASE = "localhost/bridge-test-base:latest"
#: What holds a pod's namespaces: the base, asleep.
PAUSE = "localhost/bridge-test-pause:latest"

#: for the tests that build images
MARKS = [
    pytest.mark.heavy,
    pytest.mark.image,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="buildah and podman are used as root here"),
]


def output(*command: str | Path, given: str | None = None) -> str:
    """What the command prints; a failure shows all of it."""
    done = subprocess.run(command, text=True, input=given, capture_output=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@dataclass(frozen=True)
class Engine:
    """buildah and podman on a store of their own, which no other container of this machine sees."""

    home: Path
    image: str = "localhost/partner-bridge:test"

    @property
    def store(self) -> list[str]:
        return [f"--root={self.home}/store", f"--runroot={self.home}/run", "--storage-driver=overlay"]

    def buildah(self, *arguments: str | Path) -> str:
        return output("buildah", *self.store, *arguments).strip()

    def podman(self, *arguments: str | Path) -> list[str | Path]:
        engine = ["--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime=runc"]
        return ["podman", *self.store, *engine, *arguments]

    def build(self, source: Path, image: str, *options: str, base: str = BASE) -> None:
        """Build the Dockerfile of `source`; layers are kept, so that a second one with the same lock is quick."""
        self.buildah(
            *("build", "--layers", "--isolation=chroot", "--network=host", "--pull=never"),
            *pip_mounts(self),
            *(
                f"--build-arg=BASE={base}",
                "--build-arg=COMPILER=gcc libc6-dev python3-dev",
                *options,
                f"--tag={image}",
                str(source),
            ),
        )

    def hardened(self, name: str, *options: str, command: tuple[str, ...] = ()) -> list[str | Path]:
        """A `podman run` with what the chart's security contexts ask for."""
        return self.podman(
            *("run", "--rm", f"--name={name}", "--pull=never", "--network=host"),
            *("--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp:rw,size=16m"),
            *("--cap-drop=all", "--security-opt=no-new-privileges", "--memory=512m", "--pids-limit=256"),
            *("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"),
            *options,
            *(self.image, *command),
        )

    def close(self) -> None:
        for arguments in (("pod", "rm", "--all", "--force", "--time=0"), ("rm", "--all", "--force", "--time=0")):
            subprocess.run(self.podman(*arguments), check=False, capture_output=True)
        subprocess.run(self.podman("unmount", "--all"), check=False, capture_output=True)
        subprocess.run(["umount", f"{self.home}/store/overlay"], check=False, capture_output=True)
        shutil.rmtree(self.home, ignore_errors=True)


def make_base(engine: Engine) -> None:
    """The base under `BASE`: the one that `BRIDGE_TEST_BASE` names (the real one, where it can be pulled), or a small
    Debian with Python, as no image registry may be in reach.
    """
    if given := os.environ.get("BRIDGE_TEST_BASE"):
        engine.buildah("pull", given)
        engine.buildah("tag", given, BASE)
    else:
        _stand_in(engine)
    container = engine.buildah("from", "--pull=never", BASE)
    engine.buildah("config", "--entrypoint", '["/bin/sleep", "infinity"]', container)
    engine.buildah("commit", "--quiet", "--rm", container, PAUSE)


def _stand_in(engine: Engine) -> None:
    tar = engine.home / "base.tar"
    packages = "python3,python3-venv,ca-certificates"
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    output("mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", release, tar)
    container = engine.buildah("from", "scratch")
    engine.buildah("add", "--quiet", container, tar, "/")
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    engine.buildah("config", "--env", f"PATH={path}", container)
    engine.buildah("commit", "--quiet", "--rm", container, BASE)
    tar.unlink()


def pip_mounts(engine: Engine) -> list[str]:
    """This machine's way to its package index, for the pip inside the build: settings and certificates."""
    listed = output(sys.executable, "-m", "pip", "config", "list")
    pattern = r"^(?:global|:env:)\.(cert|proxy|index-url|trusted-host)='(.*)'$"
    settings: dict[str, str] = dict(re.findall(pattern, listed, re.MULTILINE))
    certificates = settings.get("cert") or os.environ.get("SSL_CERT_FILE")
    mounts = [f"--volume={engine.home}/pip.conf:/etc/pip.conf:ro"]
    if certificates:
        settings["cert"] = certificates
        mounts.append(f"--volume={certificates}:{certificates}:ro")
    lines = ["[global]", *(f"{name} = {value}" for name, value in settings.items())]
    (engine.home / "pip.conf").write_text("\n".join(lines) + "\n")
    return mounts
