"""The worker's connections, over real sockets: many idle or slow clients, deadlines, memory, a clean end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests

from bridge.intake.signatures import sign
from bridge.sandbox import Crm, SandboxServer
from bridge.server.worker import shares
from bridge.settings import Secret, Verify
from tests import cramped
from tests.running import Running, eventually, free_port
from tests.stopwatch import Stopwatch

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
            watch, at = Stopwatch(service.pids()), time.time()
            assert service.post({"id": f"e{at}", "at": at, "client": "1", "name": "A"}).status_code == 202
            for url in (service.url, service.admin_url):
                assert requests.get(f"{url}/livez", timeout=30).status_code == 200
            slowest = max(slowest, watch.seconds)
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


def test_a_stop_waits_for_the_request_on_a_connection_that_is_new(service: Running) -> None:
    """For a second: its sender could not tell a closed connection from a webhook that was taken."""
    assert service.process is not None
    in_time = False
    while not in_time:  # unless the machine stood still meanwhile
        with connect(service) as client, connect(service) as silent:
            began = time.monotonic()
            time.sleep(0.1)  # both are accepted
            service.process.terminate()
            time.sleep(0.4)  # the worker has seen the signal
            if in_time := time.monotonic() - began < 0.8:
                client.sendall(b"GET /livez HTTP/1.1\r\nHost: bridge\r\n\r\n")
                assert read_all(client).startswith(b"HTTP/1.1 200")
                assert read_all(silent) == b""
        assert service.process.wait(10) == 0
        if not in_time:
            service.start()


@pytest.mark.parametrize("path", ["/livez", "/api/resync"])
def test_a_body_that_does_not_come_in_time_is_answered_408_beside_the_loop_too(service: Running, path: str) -> None:
    """Health on the public port, an act on the admin port: their apps run in threads."""
    port = service.port if path == "/livez" else service.admin_port
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(head.encode() + b"Content-Length: 20\r\n\r\n{")
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert orjson.loads(answer.partition(b"\r\n\r\n")[2])["status"] == 408


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


def test_f49_few_open_files_are_shared_out_so_that_newcomers_are_served(tmp_path: Path) -> None:
    """More clients than there may be files begin a request and stop; nobody else notices."""
    service = Running(tmp_path, f"http://127.0.0.1:{free_port()}", module="tests.cramped")
    service.start()
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(cramped.FILES + 10):
                stack.enter_context(connect(service)).sendall(b"POST /w")
            time.sleep(0.5)
            for number in range(3):
                watch = Stopwatch(service.pids())
                assert requests.get(f"{service.admin_url}/livez", timeout=30).status_code == 200
                assert service.post({"id": f"e{number}", "client": "1", "name": "A"}).status_code == 202
                assert watch.seconds < 2.0
        assert not service.log_has("Too many open files")
    finally:
        assert service.stop() == 0


def test_newcomers_do_not_drive_each_other_out_while_others_are_slow_to_send(tmp_path: Path) -> None:
    """A head that comes in two pieces is waited for, though as many as may wait are sending their bodies."""
    service = Running(tmp_path, f"http://127.0.0.1:{free_port()}", module="tests.cramped")
    service.start()
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(shares(cramped.FILES)[0].connections):
                stack.enter_context(connect(service)).sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
            time.sleep(0.2)
            clients = [stack.enter_context(connect(service)) for _ in range(3)]
            for client in clients:
                client.sendall(b"GET /nowhere HTTP/1.1\r\n")
                time.sleep(0.05)
            for client in clients:
                client.sendall(b"Host: a\r\n\r\n")
                assert client.recv(12) == b"HTTP/1.1 404"
    finally:
        assert service.stop() == 0


def test_a_slow_client_does_not_cost_the_clean_end(tmp_path: Path) -> None:
    """Its request is given up in time for the worker to close the journal, before the master kills it."""
    service = Running(tmp_path, f"http://127.0.0.1:{free_port()}", drain_timeout="1s")
    service.start()
    with connect(service) as slow:
        slow.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        time.sleep(0.2)
        assert service.stop() == 0
    assert service.log_has("Worker exiting")


def large_body() -> bytes:
    """A request that takes many slices."""
    return orjson.dumps([{"id": f"e{n}", "client": str(n), "name": "A"} for n in range(9_999)])


def staged(service: Running) -> int:
    """How many requests are kept whole and wait to be merged."""
    return int(asked(service, "SELECT count(*) FROM staged WHERE request IS NULL AND incomplete IS NULL"))


def asked(service: Running, query: str) -> Any:
    with contextlib.closing(sqlite3.connect(service.folder / "journal.db")) as journal:
        return journal.execute(query).fetchone()[0]


def test_threads_bound_how_many_requests_are_worked_on(tmp_path: Path) -> None:
    """With one, a small request waits for the large one before it; health does not."""
    service = Running(tmp_path, f"http://127.0.0.1:{free_port()}")
    text = service.config.read_text(encoding="utf-8")
    service.config.write_text(text.replace("  workers: 1\n", "  workers: 1\n  threads: 1\n"), encoding="utf-8")
    service.start()
    try:
        with ThreadPoolExecutor(2) as pool:
            large = pool.submit(service.post, large_body())
            assert eventually(lambda: staged(service) == 1, every_s=0.005)
            small = pool.submit(service.post, {"id": "small", "client": "1", "name": "A"})
            assert requests.get(f"{service.url}/livez", timeout=5).status_code == 200
            assert not large.done()
            assert not small.done()
            assert {large.result().status_code, small.result().status_code} == {202}
        assert asked(service, "SELECT event_id FROM events ORDER BY seq DESC LIMIT 1") == "small"
    finally:
        assert service.stop() == 0


def test_f04_what_a_killed_worker_leaves_of_a_large_request_is_merged_by_others(tmp_path: Path) -> None:
    with SandboxServer(Crm()) as crm:
        service = Running(tmp_path, crm.url, workers=2, module="tests.cramped")
        service.start()
        try:
            with ThreadPoolExecutor(1) as pool:
                sent = pool.submit(service.post, large_body())
                assert eventually(lambda: staged(service) == 1, every_s=0.005)
                for worker in service.pids()[1:]:  # whoever has it
                    os.kill(worker, signal.SIGKILL)
                with contextlib.suppress(requests.ConnectionError):
                    sent.result()
            assert staged(service) == 1
            assert eventually(lambda: staged(service) == 0)
            assert eventually(service.idle)
            assert len(crm.crm.state(id_property="acme_client_id")["partner_clients"]) == 9_999
            again = service.post(large_body()).json()
            assert (again["accepted"], again["duplicates"]) == (0, 9_999)
        finally:
            assert service.stop() == 0


@pytest.mark.heavy
@pytest.mark.alone
def test_more_connections_than_there_is_room_for_take_the_place_of_those_that_wait(tmp_path: Path) -> None:
    """1,100 clients that begin a request and stop: who sends a whole one is answered at once."""
    service = Running(tmp_path, f"http://127.0.0.1:{free_port()}")
    service.start()
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(1_100):
                stack.enter_context(connect(service)).sendall(b"POST /w")
            for number in range(5):
                watch = Stopwatch(service.pids())
                assert requests.get(f"{service.url}/livez", timeout=30).status_code == 200
                assert service.post({"id": f"e{number}", "client": "1", "name": "A"}).status_code == 202
                assert watch.seconds < 2.0
    finally:
        assert service.stop() == 0
