"""The worker's connections, over real sockets: many idle or slow clients, deadlines, memory, a clean end."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from bridge.intake.signatures import sign
from bridge.sandbox import Crm, SandboxServer
from bridge.settings import Secret, Verify
from tests.running import Running, eventually, free_port

HEAD = b"POST /webhooks/acme HTTP/1.1\r\nHost: bridge\r\nContent-Type: application/json\r\n"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Running]:
    """A service whose patience with clients is short, and that holds few bytes."""
    made = Running(tmp_path, f"http://127.0.0.1:{free_port()}", module="tests.impatient")
    made.start()
    try:
        yield made
    finally:
        made.stop()


def connect(service: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=10)


def read_all(client: socket.socket) -> bytes:
    """Everything until the other side closes."""
    received = b""
    while chunk := client.recv(65_536):
        received += chunk
    return received


def read_ok(client: socket.socket) -> None:
    """The whole answer of a health check."""
    received = b""
    while not received.endswith(b"ok\n"):
        received += client.recv(65_536)
    assert received.startswith(b"HTTP/1.1 200")


def test_f44_200_slow_clients_starve_nobody_and_are_cut_off(service: Running) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(service)) for _ in range(200)]
        beginnings = (HEAD, HEAD + b"Content-Length: 100000\r\n\r\n")
        for number, client in enumerate(clients):
            client.sendall(beginnings[number % 2])
        began = time.monotonic()
        slowest = 0.0
        while time.monotonic() - began < 1.5:  # before their deadline
            for client in clients:
                client.sendall(b"x" if clients.index(client) % 2 else b"")
            at = time.monotonic()
            assert service.post({"id": f"e{at}", "at": time.time(), "client": "1", "name": "A"}).status_code == 202
            for url in (service.url, service.admin_url):
                assert requests.get(f"{url}/livez", timeout=5).status_code == 200
            slowest = max(slowest, time.monotonic() - at)
        assert slowest < 1.0
        answers = [read_all(client)[:12] for client in clients]
        assert set(answers[0::2]) == {b""}  # no whole head: there is nobody to answer
        assert set(answers[1::2]) == {b"HTTP/1.1 408"}
        assert time.monotonic() - began < 10


def test_an_idle_connection_is_kept_for_a_while_and_then_closed(service: Running) -> None:
    with connect(service) as client:
        for _ in range(2):
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: bridge\r\n\r\n")
            read_ok(client)
            time.sleep(1.0)
        began = time.monotonic()
        assert read_all(client) == b""
        assert 0.5 < time.monotonic() - began < 5.0


def test_pipelined_requests_are_answered_in_order(service: Running) -> None:
    with connect(service) as client:
        client.sendall(
            b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        received = read_all(client)
    assert received.index(b"HTTP/1.1 200") < received.index(b"HTTP/1.1 404")


def test_large_bodies_take_turns_beyond_what_the_memory_may_hold(service: Running) -> None:
    """`tests.impatient` lets 200 kB in: the oldest request goes on, the others wait for it, all are answered."""
    body = b" " * 150_000 + b"[]"
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(service)) for _ in range(4)]
        for client in clients:
            client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-2])
        time.sleep(0.3)
        for client in clients:
            client.sendall(body[-2:])
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 401"


def test_a_stop_closes_idle_connections_and_finishes_what_has_begun(service: Running) -> None:
    with connect(service) as idle, connect(service) as busy:
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: bridge\r\n\r\n")
        read_ok(idle)
        verify = Verify("standard-webhooks", (Secret(file=service.folder / "acme.secret"),))
        headers = sign(verify, body=b"[]", url=service.url, now=time.time(), delivery_id="d1")
        head = HEAD + b"".join(f"{name}: {text}\r\n".encode() for name, text in headers.items())
        busy.sendall(head + b"Content-Length: 2\r\n\r\n[")
        time.sleep(0.2)
        assert service.process is not None
        service.process.terminate()
        assert read_all(idle) == b""
        busy.sendall(b"]")
        assert read_all(busy).startswith(b"HTTP/1.1 202")
        assert service.process.wait(10) == 0


def test_two_workers_share_the_connections(tmp_path: Path) -> None:
    with SandboxServer(Crm()) as crm:
        service = Running(tmp_path, crm.url, workers=2)
        service.start()
        try:
            payloads = [{"id": f"e{n}", "at": time.time(), "client": str(n), "name": "A"} for n in range(200)]
            assert {answer.status_code for answer in service.post_all(payloads, senders=16) if answer} == {202}
            assert eventually(service.idle)
        finally:
            assert service.stop() == 0


@pytest.mark.heavy
def test_more_connections_than_there_is_room_for_take_the_place_of_those_that_wait(tmp_path: Path) -> None:
    """1,100 clients that begin a request and stop: who sends a whole one is answered at once."""
    service = Running(tmp_path, f"http://127.0.0.1:{free_port()}")
    service.start()
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(1_100):
                stack.enter_context(connect(service)).sendall(b"POST /w")
            for _ in range(5):
                began = time.monotonic()
                assert requests.get(f"{service.url}/livez", timeout=10).status_code == 200
                assert service.post({"id": f"e{began}", "client": "1", "name": "A"}).status_code == 202
                assert time.monotonic() - began < 2.0
    finally:
        assert service.stop() == 0
