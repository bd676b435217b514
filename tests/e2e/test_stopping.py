"""A clean stop (G9) under load (F12), and whatever signals come and how often (F14). F13 is in test_main_job.py."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from pathlib import Path
from typing import Any, Self

import pytest
import requests

from bridge.sandbox import Crm, SandboxServer
from tests.running import Running, eventually, running

TERM, INT, QUIT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP


def event(name: str) -> dict[str, Any]:
    return {"id": name, "client": name, "at": time.time(), "name": f"name of {name}"}


def held(crm: Crm) -> set[str]:
    return set(crm.state(id_property="acme_client_id").get("partner_clients", {}))


class Load:
    """Webhooks at an even rate, whatever becomes of them, from threads of its own; on `kept` connections, or each on
    one of its own.
    """

    def __init__(self, service: Running, *, per_s: int, senders: int = 8, kept: bool = True) -> None:
        self._service = service
        self._kept = kept
        self._every_s = senders / per_s
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(senders)]
        self.sent: set[str] = set()
        self.answers: list[tuple[str, requests.Response]] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _send(self, number: int) -> None:
        turn = 0
        with requests.Session() as session:
            while not self._over.wait(self._every_s):
                turn += 1
                name = f"c{number}-{turn}"
                self.sent.add(name)
                with contextlib.suppress(requests.RequestException):
                    answer = self._service.post(event(name), session=session if self._kept else None)
                    self.answers.append((name, answer))

    def accepted(self) -> set[str]:
        return {name for name, answer in self.answers if answer.status_code == 202}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.heavy)])
def test_f12_sigterm_under_load_loses_nothing_accepted(tmp_path: Path, workers: int) -> None:
    """200 webhooks/s: not ready first, then no connection; what fits is flushed, the rest waits; exit status 0."""
    crm = Crm(open_properties=False)
    crm.behaviour.latency_s = 0.1
    with SandboxServer(crm) as server, running(tmp_path, server.url, workers=workers, drain_timeout="3s") as service:
        ready: list[int] = []
        with Load(service, per_s=200) as load:
            assert eventually(lambda: len(load.accepted()) > 200)
            assert service.process is not None
            service.process.send_signal(TERM)
            began = time.monotonic()
            while service.process.poll() is None and time.monotonic() - began < 20:
                try:
                    ready.append(requests.get(f"{service.admin_url}/readyz", timeout=2).status_code)
                except requests.RequestException:
                    ready.append(0)
                time.sleep(0.01)
        assert service.process.wait(1) == 0
        assert time.monotonic() - began < 3 + 3
        down = [code for code in ready if code != 200]
        assert down[0] == 503  # it said so before it was gone
        assert ready[-len(down) :] == down  # and never took it back
        assert {answer.status_code for _, answer in load.answers} <= {202, 503}
        assert all("Retry-After" in answer.headers for _, answer in load.answers if answer.status_code == 503)
        accepted = load.accepted()
        assert not service.log_has("Traceback")
        before = held(crm)
        with service.journal() as journal:
            assert len(accepted - before) <= journal.refresh_figures().pending
        service.start()
        assert eventually(service.idle)
        assert accepted <= held(crm) <= load.sent
        assert crm.ledger.violations() == []


def test_while_a_stop_flushes_the_admin_port_tells_what_is_left(tmp_path: Path) -> None:
    """Webhooks are not taken any more; probes hear why, and nobody is told that a restart would help."""
    crm = Crm(open_properties=False)
    crm.behaviour.latency_s = 2.0
    with (
        SandboxServer(crm) as server,
        running(tmp_path, server.url, flush_interval="30s", drain_timeout="10s") as service,
    ):
        assert service.post([event(f"c{at}") for at in range(10)]).status_code == 202
        assert service.process is not None
        service.process.send_signal(TERM)
        assert eventually(lambda: is_refused(f"{service.url}/livez"))
        answers = {
            path: requests.get(f"{service.admin_url}{path}", timeout=10) for path in ("/livez", "/readyz", "/status")
        }
        assert {path: answer.status_code for path, answer in answers.items()} == {
            "/livez": 200,
            "/readyz": 503,
            "/status": 200,
        }
        assert answers["/status"].json()["degraded"] == ["draining"]
        assert service.process.wait(15) == 0
        assert held(crm) == {f"c{at}" for at in range(10)}
        assert not service.log_has("Traceback")


def is_refused(url: str) -> bool:
    """Whether nobody listens there."""
    try:
        requests.get(url, timeout=10)
    except requests.ConnectionError:
        return True
    return False


@pytest.mark.parametrize(
    "signals",
    [
        (TERM, TERM),
        (INT, INT),
        pytest.param((TERM, INT, QUIT), marks=pytest.mark.heavy),
        pytest.param((QUIT,), marks=pytest.mark.heavy),
        pytest.param((HUP, TERM), marks=pytest.mark.heavy),
        pytest.param((TERM, HUP, TERM), marks=pytest.mark.heavy),
    ],
    ids=lambda signals: "-".join(each.name for each in signals),
)
def test_f14_signals_of_any_kind_and_number_are_one_clean_stop(
    tmp_path: Path, signals: tuple[signal.Signals, ...]
) -> None:
    """What waits is flushed once, nothing is lost, no traceback, exit status 0. SIGHUP alone is test_reload.py."""
    crm = Crm(open_properties=False)
    crm.behaviour.latency_s = 0.5
    with SandboxServer(crm) as server, running(tmp_path, server.url, flush_interval="30s") as service:
        assert service.post([event(f"c{at}") for at in range(10)]).status_code == 202
        assert service.process is not None
        began = time.monotonic()
        for each in signals:
            service.process.send_signal(each)
            time.sleep(0.1)
        assert service.process.wait(15) == 0
        assert time.monotonic() - began < 10 + 3
        assert held(crm) == {f"c{at}" for at in range(10)}
        assert len(crm.ledger.calls("update")) == 1
        assert not service.log_has("Traceback")


@pytest.mark.parametrize("after_s", [0.0, 0.2, 0.5, pytest.param(0.9, marks=pytest.mark.heavy)])
def test_f14_sigterm_in_the_middle_of_a_start_is_a_clean_stop_too(tmp_path: Path, after_s: float) -> None:
    """As the first process of a container it would not even be delivered, had nobody asked for it."""
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as server:
        service = Running(tmp_path, server.url, workers=2, drain_timeout="2s")
        service.start(ready=False)
        process = service.process
        assert process is not None
        try:
            assert eventually(lambda: catches(process.pid, TERM), every_s=0.002)
            time.sleep(after_s)
            process.send_signal(TERM)
            assert process.wait(15) == 0
            assert not service.log_has("Traceback")
            service.start()
            assert service.post(event("c1")).status_code == 202
            assert eventually(lambda: held(crm) == {"c1"})
        finally:
            assert service.stop() == 0


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
