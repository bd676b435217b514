"""What people use today, in a virtual environment of its own: Celery on Redis, HubSpot's official SDK, Fluentd.

The environment is made at the first use, in the user's cache folder, and used again. The programs that run in it are
in `tests/bench/peers/` and know nothing of ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.processes import process
from tests.bench.row import Missing
from tests.running import SECRET, free_port

REQUIREMENTS = ("celery[redis]==5.7.0", "flask>=3.1,<3.2", "gunicorn>=27,<28", "hubspot-api-client==12.0.0")
#: As the bridge has it: processes, and threads of each.
WORKERS, THREADS = 2, 32
#: Tasks that Celery's worker does at once: as many as the bridge has calls in flight.
CONCURRENCY = 8


def script(name: str) -> Path:
    """A program of the peers."""
    return Path(__file__).parent / "peer_programs" / name


def peer_python() -> Path:
    """The interpreter of the peers' environment. Raises Missing when it cannot be made."""
    wanted = hashlib.sha256("\n".join((*REQUIREMENTS, sys.version)).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "partner-bridge-bench" / wanted
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *REQUIREMENTS]
        subprocess.run(install, check=True, capture_output=True, timeout=900)
    except subprocess.SubprocessError as error:
        raise Missing(f"{', '.join(REQUIREMENTS)} cannot be installed") from error
    (folder / "complete").touch()
    return python


@dataclass(frozen=True, slots=True)
class Peer:
    """A running peer, and where its webhooks go."""

    folder: Path
    url: str
    flush_url: str = ""


@contextlib.contextmanager
def redis() -> Iterator[str]:
    """A Redis that is as durable as the bridge: it answers after fsync. Raises Missing."""
    program = shutil.which("redis-server")
    if program is None:
        raise Missing("redis-server is not installed")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        options = {"port": port, "bind": "127.0.0.1", "dir": name, "save": "", "appendonly": "yes",
                   "appendfsync": "always", "daemonize": "no"}  # fmt: skip
        command = [program, *(part for option, value in options.items() for part in (f"--{option}", str(value)))]
        with process(command, port=port):
            yield f"redis://127.0.0.1:{port}/0"


@contextlib.contextmanager
def celery(crm_url: str = "", *, way: str = "single", workers: bool = True) -> Iterator[Peer]:
    """Flask that verifies and hands each webhook to Celery; `way`: one call for each event ("single"), or batches of
    100 ("batch"). Without `workers` tasks stay where they are.
    """
    python = peer_python()
    port = free_port()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        (folder / "acme.secret").write_text(SECRET + "\n", encoding="utf-8")
        environ = {
            "PEER_REDIS": stack.enter_context(redis()),
            "PEER_SECRET": SECRET,
            "PEER_CRM": crm_url,
            "PEER_WAY": way,
            "PYTHONPATH": str(script("").resolve()),
        }
        if workers:
            stack.enter_context(process(_worker(python), environ=environ, log=folder / "celery.log"))
        stack.enter_context(process(_gunicorn(python, port), port=port, environ=environ, log=folder / "flask.log"))
        yield Peer(folder, f"http://127.0.0.1:{port}/webhooks/acme", f"http://127.0.0.1:{port}/flush")


def _worker(python: Path) -> Sequence[str | Path]:
    return [python, "-m", "celery", "-A", "celery_app", "worker", "-P", "threads", "-c", str(CONCURRENCY),
            "-l", "ERROR", "--without-gossip", "--without-mingle"]  # fmt: skip


def _gunicorn(python: Path, port: int) -> Sequence[str | Path]:
    return [python, "-m", "gunicorn", "-k", "gthread", "-w", str(WORKERS), "--threads", str(THREADS),
            "-b", f"127.0.0.1:{port}", "--keep-alive", "75", "--log-level", "warning", "celery_app:web"]  # fmt: skip


_FLUENTD = """\
<source>
  @type http
  port {port}
  bind 127.0.0.1
</source>
<match **>
  @type http
  endpoint http://127.0.0.1:9/
  <buffer>
    @type file
    path {folder}/buffer
    flush_interval 1h
    total_limit_size 8GB
  </buffer>
</match>
"""


@contextlib.contextmanager
def fluentd() -> Iterator[Peer]:
    """Fluentd with a file buffer; it neither verifies nor maps nor waits for fsync. Raises Missing."""
    program = shutil.which("fluentd")
    if program is None:
        raise Missing("fluentd is not installed")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        (folder / "acme.secret").write_text(SECRET + "\n", encoding="utf-8")
        (folder / "fluent.conf").write_text(_FLUENTD.format(port=port, folder=folder), encoding="utf-8")
        with process([program, "-c", str(folder / "fluent.conf")], port=port, log=folder / "fluentd.log"):
            yield Peer(folder, f"http://127.0.0.1:{port}/webhooks/acme")
