"""F44 and health under it: clients that send a byte a second, and a journal that hangs, keep nobody else waiting."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest
import requests

from bridge.sandbox import Crm, SandboxServer
from tests.raw_http import request
from tests.running import Running, eventually, running
from tests.stopwatch import timed

#: A request must be there whole within this, else its connection is closed.
DEADLINE_S = 30.0
#: Anybody else is answered within this.
PROMPT_S = 1.0

HEAD = request("POST", "/webhooks/acme", "Content-Type: application/json", "Content-Length: 5000")
CHUNKS = request("POST", "/webhooks/acme", "Content-Type: application/json", "Transfer-Encoding: chunked")


class SlowClients:
    """Connections on which, after a beginning, a byte a second is sent until the server closes them."""

    def __init__(self, port: int, beginnings: dict[bytes, int]) -> None:
        self._port, self._beginnings = port, beginnings
        self.open: list[socket.socket] = []
        self.received = b""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slow-clients", daemon=True)

    def __enter__(self) -> Self:
        for beginning, number in self._beginnings.items():
            for _ in range(number):
                connection = socket.create_connection(("127.0.0.1", self._port), timeout=5)
                connection.sendall(beginning)
                connection.setblocking(False)
                self.open.append(connection)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        for connection in self.open:
            connection.close()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            self.open = [connection for connection in self.open if self._is_open_after_a_byte(connection)]

    def _is_open_after_a_byte(self, connection: socket.socket) -> bool:
        try:
            connection.send(b"a")
            came = connection.recv(4096)
        except BlockingIOError:
            return True
        except OSError:
            came = b""
        self.received += came
        if not came:
            connection.close()
        return bool(came)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Running]:
    with SandboxServer(Crm()) as sandbox, running(tmp_path, sandbox.url) as started:
        yield started


def health(service: Running) -> dict[str, tuple[int, float]]:
    """`/livez` and `/readyz` on both ports, asked for at once."""
    urls = [f"{base}/{path}" for base in (service.url, service.admin_url) for path in ("livez", "readyz")]
    with ThreadPoolExecutor(len(urls)) as pool:
        pids = service.pids()
        answers = pool.map(lambda url: timed(lambda: requests.get(url, timeout=60).status_code, pids), urls)
        return dict(zip(urls, answers, strict=True))


def descriptors(service: Running) -> int:
    return max(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in service.pids())


def slow(service: Running) -> SlowClients:
    """Two hundred that never get to the end: within the request line, the headers, a body and a chunk."""
    line = b"POST /webhooks/acme?x="
    headers = HEAD[:-2] + b"X-Slow: "
    return SlowClients(service.port, {line: 40, headers: 60, HEAD: 60, CHUNKS: 20, CHUNKS + b"1000\r\n": 20})


def test_f44_others_are_served_while_two_hundred_clients_are_slow(service: Running) -> None:
    """Webhooks and health on both ports, each within a second."""
    with slow(service) as clients:
        for number in range(12):
            event = {"id": f"e{number}", "client": "c", "at": 1, "name": "Prompt"}
            status, seconds = timed(lambda: service.post(event).status_code, service.pids())  # noqa: B023 (called at once)
            assert (status, seconds < PROMPT_S) == (202, True)
            for url, (status, seconds) in health(service).items():
                assert (status, seconds < PROMPT_S) == (200, True), url
            time.sleep(0.25)
        assert len(clients.open) == 200
    assert eventually(lambda: descriptors(service) < 100)
    assert "Traceback" not in service.log.read_text(encoding="utf-8")


@pytest.mark.heavy
def test_f44_slow_clients_are_cut_at_a_deadline_and_idle_connections_are_not(service: Running) -> None:
    """On both ports, however steadily the bytes come; nothing of it is taken, and every descriptor is freed."""
    before = descriptors(service)
    with (
        socket.create_connection(("127.0.0.1", service.port), timeout=5) as idle,
        slow(service) as clients,
        SlowClients(service.admin_port, {b"GET /metrics HTTP/1.1\r\nX-Slow: ": 20}) as admins,
    ):
        began = time.monotonic()
        assert eventually(lambda: not clients.open and not admins.open, within_s=DEADLINE_S + 5, every_s=0.5)
        assert time.monotonic() - began > 5  # a sender on a bad line is given a moment
        idle.sendall(request("GET", "/livez", "Connection: close"))
        assert idle.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert b" 202 " not in clients.received
    assert b" 500 " not in clients.received + admins.received
    assert service.status()["pending"] == 0
    assert eventually(lambda: descriptors(service) <= before + 10)
    assert "Traceback" not in service.log.read_text(encoding="utf-8")


@contextlib.contextmanager
def hung_journal(service: Running) -> Iterator[None]:
    """Another process holds the database's write lock: no commit comes to its end."""
    holder = sqlite3.connect(service.folder / "journal.db", isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        yield
    finally:
        holder.close()


def test_health_answers_within_a_second_while_every_request_waits_for_the_journal(service: Running) -> None:
    """Alive and not ready, on both ports; every waiting sender gets an answer in the end."""
    assert service.post({"id": "before", "client": "c", "at": 1}).status_code == 202
    with ThreadPoolExecutor(64) as pool:
        with hung_journal(service):
            events = [{"id": f"e{number}", "client": f"c{number}", "at": 1, "name": "x"} for number in range(64)]
            waiting = [pool.submit(service.post, event) for event in events]
            time.sleep(0.5)
            rounds = 0
            while rounds < 4:
                for url, (status, seconds) in health(service).items():
                    assert seconds < PROMPT_S, url
                    assert status == (200 if url.endswith("livez") else 503), url
                metrics = f"{service.admin_url}/metrics"
                assert timed(lambda: requests.get(metrics, timeout=30), service.pids())[1] < PROMPT_S  # noqa: B023
                if any(answer.done() for answer in waiting):
                    break  # on a machine so slow that a round takes as long as a request may wait
                rounds += 1
            assert rounds
        statuses = {answer.result(30).status_code for answer in waiting}
        assert statuses <= {202, 503}
    assert eventually(service.is_ready)
    assert {status for status, _ in health(service).values()} == {200}
    assert eventually(lambda: service.post({"id": "after", "client": "c", "at": 2}).status_code == 202)
