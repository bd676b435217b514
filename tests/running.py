"""A real service in processes of its own, for tests: started, fed over HTTP, stopped and killed."""

from __future__ import annotations

import base64
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import requests

from bridge.intake.signatures import sign
from bridge.journal.retry_log import Entry, Filter
from bridge.journal.store import Journal
from bridge.model import SystemClock
from bridge.settings import Journal as JournalSettings
from bridge.settings import Secret, Verify
from tests import forked

SECRET = "whsec_" + base64.b64encode(b"a secret of twenty-four b").decode()

CONFIG = """\
crm:
  base_url: {crm_url}
  {credential}
  flush_interval: {flush_interval}
  rate_limit: {{{rate_limit}}}
  timeout: {timeout}
  batch_size: {batch_size}
  max_in_flight: {max_in_flight}
journal:
  url: {journal_url}
  max_pending: {max_pending}
  retention: {retention}
  remember: {remember}
retry: {{base: 100ms, max: 1s}}
server:
  bind: 127.0.0.1:{port}
  admin_bind: 127.0.0.1:{admin_port}
  workers: {workers}
  drain_timeout: {drain_timeout}
  public_url: {public_url}
sources:
{sources}
"""

ACME = """\
  acme:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    event_id: id
    occurred_at: at
    record: {id: client, id_property: acme_client_id}
    properties:
      company_name: name
      annual_revenue: {from: revenue, type: number}
      tier: {from: tier, type: enumeration}
      notes: notes
"""


#: Services that may be forked, by their names: those that change only what others take over later.
FORKED = {"bridge": forked.PROGRAM, "tests.impatient": "tests.impatient", "tests.cramped": "tests.cramped"}


def free_port() -> int:
    """One that stays free until it is bound, and between a stop and a start: Linux gives away those above by itself."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def has_ended(pid: int) -> bool:
    """Whether there is no such process, or only its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def eventually(check: Callable[[], bool], *, within_s: float = 60.0, every_s: float = 0.05) -> bool:
    """Whether `check` comes true within the time."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if check():
            return True
        time.sleep(every_s)
    return check()


@dataclass
class Running:
    """One service: its folder holds configuration, secret, journal and log."""

    folder: Path
    crm_url: str
    sources: str = ACME
    workers: int = 1
    calls: int = 100_000
    batch_size: int = 100
    max_in_flight: int = 8
    daily: int | None = None
    credential: str = "token: {file: crm.token}"
    max_pending: int = 1_000_000
    retention: str = "7d"
    remember: str = "30d"
    flush_interval: str = "50ms"
    timeout: str = "10s"
    drain_timeout: str = "10s"
    public_url: str = "https://hooks.example.com"
    journal_url: str = ""  # a file in the folder
    environ: Mapping[str, str] = field(default_factory=dict)
    module: str = "bridge"
    port: int = field(default_factory=free_port)
    admin_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | forked.Forked | None = None

    def __post_init__(self) -> None:
        self.journal_url = self.journal_url or f"sqlite:///{self.folder}/journal.db"
        (self.folder / "acme.secret").write_text(SECRET + "\n", encoding="utf-8")
        (self.folder / "acme.secret").chmod(0o600)
        (self.folder / "crm.token").write_text("a-token-for-the-sandbox\n", encoding="utf-8")
        (self.folder / "crm.token").chmod(0o600)
        self.configure()

    def configure(self) -> None:
        """Write bridge.yaml from the fields."""
        daily = "" if self.daily is None else f", daily: {self.daily}"
        text = CONFIG.format(
            crm_url=self.crm_url,
            journal_url=self.journal_url,
            port=self.port,
            admin_port=self.admin_port,
            workers=self.workers,
            rate_limit=f"calls: {self.calls}, per: 10s{daily}",
            credential=self.credential,
            batch_size=self.batch_size,
            max_in_flight=self.max_in_flight,
            max_pending=self.max_pending,
            retention=self.retention,
            remember=self.remember,
            flush_interval=self.flush_interval,
            timeout=self.timeout,
            drain_timeout=self.drain_timeout,
            public_url=self.public_url,
            sources=self.sources,
        )
        self.config.write_text(text, encoding="utf-8")

    @property
    def config(self) -> Path:
        return self.folder / "bridge.yaml"

    @property
    def log(self) -> Path:
        return self.folder / "service.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    # --- life ---

    def start(self, *, ready: bool = True) -> None:
        """Start it, and wait until it is ready, with all of its workers: the first one that is tells so."""
        arguments = ["serve", "--config", str(self.config)]
        env = os.environ | dict(self.environ)
        with self.log.open("ab") as output:
            if ready and self.module in FORKED and not self._concerns_the_interpreter():
                self.process = forked.Forked(arguments, stdout=output, env=env, module=FORKED[self.module])
            else:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", self.module, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env=env,
                )
        if ready:
            whole = eventually(lambda: self.is_ready() and len(self.pids()) > self.workers, every_s=0.02)
            assert whole, self.log.read_text(encoding="utf-8")

    def _concerns_the_interpreter(self) -> bool:
        """Whether a variable is for Python itself, which reads it as it starts."""
        return any(name.startswith("PYTHON") for name in self.environ)

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text(encoding="utf-8")
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.admin_url}/readyz", timeout=2).status_code == 200
        return False

    def pids(self) -> list[int]:
        """The master and its workers."""
        assert self.process is not None
        found = [self.process.pid]
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="utf-8")
            found += [int(pid) for pid in children.split()]
        return found

    def rss_mb(self) -> float:
        """Megabytes of memory that the largest worker holds now."""
        status = [Path(f"/proc/{pid}/status").read_text(encoding="utf-8") for pid in self.pids()[1:]]
        return max(int(text.split("VmRSS:")[1].split()[0]) for text in status) / 1024

    def fds(self) -> int:
        """Open descriptors of the worker that has the most."""
        return max(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in self.pids()[1:])

    def kill_all(self) -> None:
        """`kill -9` of master and workers at once; all of them have let go of their ports and files."""
        assert self.process is not None
        pids = self.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)
        assert eventually(lambda: all(map(has_ended, pids)), every_s=0.01)

    def stop(self, *, within_s: float = 30.0) -> int:
        """SIGTERM, and wait for the end; returns the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    # --- traffic ---

    def post(
        self,
        payload: Any,
        *,
        source: str = "acme",
        delivery_id: str | None = None,
        session: requests.Session | None = None,
        secret: Path | None = None,
        timeout_s: float = 30.0,
    ) -> requests.Response:
        """Sign a payload as the partner would, and post it."""
        body = payload if isinstance(payload, bytes) else orjson.dumps(payload)
        verify = Verify("standard-webhooks", (Secret(file=secret or self.folder / "acme.secret"),))
        url = f"{self.url}/webhooks/{source}"
        delivery_id = delivery_id or f"msg_{time.time_ns()}"
        headers = sign(verify, body=body, url=url, now=time.time(), delivery_id=delivery_id)
        return (session or requests).post(
            url, data=body, headers={"Content-Type": "application/json", **headers}, timeout=timeout_s
        )

    def post_all(self, payloads: list[Any], *, senders: int = 8) -> list[requests.Response | None]:
        """Post many payloads, some at a time; None where the connection failed."""
        with requests.Session() as session, ThreadPoolExecutor(senders) as pool:
            session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=senders))

            def send(payload: Any) -> requests.Response | None:
                try:
                    return self.post(payload, session=session)
                except requests.RequestException:
                    return None

            return list(pool.map(send, payloads))

    # --- looking in ---

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = requests.get(f"{self.admin_url}/status", timeout=5).json()
        return answer

    @contextlib.contextmanager
    def journal(self) -> Iterator[Journal]:
        """The journal, beside the running service."""
        opened = Journal(settings=JournalSettings(url=self.journal_url), clock=SystemClock())
        try:
            yield opened
        finally:
            opened.close()

    def entries(self) -> list[Entry]:
        with self.journal() as journal:
            return journal.entries(Filter())

    def log_has(self, text: str, *, times: int = 1) -> bool:
        """Whether the log says this so often."""
        return self.log.read_text(encoding="utf-8").count(text) >= times

    def idle(self) -> bool:
        """Whether nothing is due any more."""
        with self.journal() as journal:
            return not journal.due(limit=1, exclude=()) and not journal.entries(Filter(state="retrying"))

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """A command of the command line, with this service's configuration."""
        return forked.run(*arguments, "--config", str(self.config), stdin=stdin, env=os.environ | dict(self.environ))


@contextlib.contextmanager
def running(folder: Path, crm_url: str, **options: Any) -> Iterator[Running]:
    """A started service that is stopped, or killed, at the end."""
    service = Running(folder, crm_url, **options)
    try:
        service.start()
        yield service
    finally:
        if service.process is not None and service.process.poll() is None:
            try:
                service.stop()
            except subprocess.TimeoutExpired:
                service.kill_all()
