"""F64: a connection on which a body was not read to its end says so and is closed, and the answer arrives.

Behind a proxy that shares connections among strangers and partners, nobody else's webhook pays for it.
"""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import requests

from bridge.sandbox import Crm, SandboxServer
from tests.e2e.test_smuggling import answers, tool
from tests.raw_http import chunked, exchange, request, statuses
from tests.running import ACME, Running, eventually, free_port, running

SOURCES = (
    ACME
    + """\
  open:
    verify: {scheme: none}
    event_id: id
    max_body: 1000
    record: {id: client, id_property: acme_client_id}
    properties: {company_name: name}
  greets:
    verify: {scheme: none}
    event_id: id
    record: {id: client, id_property: acme_client_id}
    properties: {company_name: name}
    challenge: {method: GET, reply: _query.challenge, as: text}
"""
)
JSON = "Content-Type: application/json"
CHUNKED = "Transfer-Encoding: chunked"
EXPECT = "Expect: 100-continue"
FOLLOWER = request("POST", "/webhooks/open", JSON, body=b'{"id": "hidden", "client": "h"}')
LONG, SHORT = b" " * 3_000_000, b'{"id": "e", "client": "c"}'.ljust(2_000)

#: What is refused, or answered, before its body is read: the status, method, target and headers.
UNREAD = {
    "over max_body": (413, "POST", "/webhooks/open", JSON),
    "unknown source": (404, "POST", "/webhooks/nobody", JSON),
    "unknown route": (404, "POST", "/nowhere", JSON),
    "wrong method": (405, "PUT", "/webhooks/open", JSON),
    "wrong media type": (415, "POST", "/webhooks/open", "Content-Type: text/plain"),
    "wrong coding": (415, "POST", "/webhooks/open", f"{JSON}\r\nContent-Encoding: br"),
    "no handshake": (400, "GET", "/webhooks/greets", JSON),
    "a handshake": (200, "GET", "/webhooks/greets?challenge=hello", JSON),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("refused")
    with SandboxServer(Crm()) as sandbox, running(folder, sandbox.url, sources=SOURCES) as started:
        yield started


@pytest.fixture(autouse=True)
def nothing_hidden_was_taken(service: Running) -> Iterator[None]:
    yield
    assert requests.get(f"{service.admin_url}/api/trace/hidden", timeout=5).status_code == 404


@pytest.mark.parametrize("framing", ["announced", "chunked"])
@pytest.mark.parametrize("name", UNREAD)
def test_f64_a_long_body_that_nobody_reads_ends_the_connection_and_the_answer_arrives(
    service: Running, name: str, framing: str
) -> None:
    """Though the sender sends all of it before it reads; what follows on the connection is no request."""
    status, method, target, header = UNREAD[name]
    if framing == "announced":
        data = request(method, target, header, body=LONG)
    else:
        data = request(method, target, header, CHUNKED) + chunked(LONG[:100_000], LONG)
    for _ in range(3):
        found = exchange(service.port, data, FOLLOWER)
        assert statuses(found.answers) == [status]
        assert found.only.headers["connection"] == "close"
        assert found.closed


@pytest.mark.parametrize("name", UNREAD)
def test_f64_a_short_body_that_is_there_costs_no_connection(service: Running, name: str) -> None:
    """It is skipped, and the next request is answered for itself."""
    status, method, target, header = UNREAD[name]
    follower = request("GET", "/livez")
    for data in (
        request(method, target, header, body=SHORT),
        request(method, target, header, CHUNKED) + chunked(SHORT[:500], SHORT[500:]),
    ):
        found = exchange(service.port, data, follower, answers=2)
        assert statuses(found.answers) == [status, 200]
        assert not found.closed


@pytest.mark.parametrize("name", UNREAD)
def test_f64_a_short_body_that_does_not_come_ends_the_connection(service: Running, name: str) -> None:
    """The answer does not wait for it, and what comes later is not taken for a request."""
    status, method, target, header = UNREAD[name]
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as client:
        client.sendall(request(method, target, header, "Content-Length: 2000") + b"{")
        came = client.recv(65_536)
        assert came.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"\r\nConnection: close\r\n" in came
        client.sendall(b"}" * 1_999 + FOLLOWER)
        while more := client.recv(65_536):
            came += more
        assert came.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("name", UNREAD)
def test_a_body_that_is_refused_at_the_head_is_not_asked_for(service: Running, name: str) -> None:
    """`Expect: 100-continue` is answered with the final status, which is the only answer."""
    status, method, target, header = UNREAD[name]
    found = exchange(service.port, request(method, target, header, EXPECT, "Content-Length: 2000"))
    assert [answer.status for answer in found.answers] == [status]
    assert found.closed


@pytest.mark.parametrize(
    "data, status",
    [
        (request("POST", "/webhooks/open", JSON, body=b'{"id": "one packet", "client": "c"}'), 202),
        (request("POST", "/webhooks/nobody", JSON, body=b"{}"), 404),
        (request("GET", "/livez"), 200),
        (request("HEAD", "/livez"), 200),
        (request("HEAD", "/webhooks/open", "Connection: close"), 405),
    ],
)
def test_an_answer_comes_in_one_packet(service: Running, data: bytes, status: int) -> None:
    """Also one that has no body."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as client:
        client.sendall(data)
        head, _, body = client.recv(65_536).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    assert len(body) == (0 if data.startswith(b"HEAD") else length)


def test_a_body_that_is_read_is_asked_for_first(service: Running) -> None:
    """Also in chunks, and on both ports; an empty one is not, nor is an old client's."""
    body = b'{"id": "expected", "client": "c"}'
    announced = request("POST", "/webhooks/open", JSON, EXPECT, body=body)
    in_chunks = request("POST", "/webhooks/open", JSON, EXPECT, CHUNKED) + chunked(body)
    for data in (announced, in_chunks):
        found = exchange(service.port, data, request("GET", "/livez"), answers=2)
        assert [answer.status for answer in found.answers] == [100, 202, 200]
    act = request("POST", "/api/events/replay", JSON, EXPECT, host="localhost", body=b'{"all": true, "dry_run": true}')
    assert [answer.status for answer in exchange(service.admin_port, act).answers] == [100, 200]
    too_long = request("POST", "/api/resync", JSON, EXPECT, f"Content-Length: {2 << 20}", host="localhost")
    assert [answer.status for answer in exchange(service.admin_port, too_long).answers] == [413]
    empty = request("GET", "/livez", EXPECT, body=b"")
    assert [answer.status for answer in exchange(service.port, empty).answers] == [200]
    old = request("POST", "/webhooks/open", JSON, EXPECT, body=body, version="HTTP/1.0")
    assert [answer.status for answer in exchange(service.port, old).answers] == [202]


@pytest.mark.parametrize(
    "chunks", [b"zz\r\n{}\r\n0\r\n\r\n", b"2\r\n{}xx\r\n0\r\n\r\n", b"2\r\n{}\r\n0\r\nHost: a\r\n\r\n"]
)
def test_a_refusal_before_a_broken_chunk_is_the_only_answer(service: Running, chunks: bytes) -> None:
    """Where the next request would begin is unknown, so that there is none."""
    data = request("POST", "/webhooks/open", "Content-Type: text/plain", CHUNKED) + chunks
    found = exchange(service.port, data + FOLLOWER)
    assert statuses(found.answers) == [415]
    assert found.closed


def test_a_body_that_its_sender_cuts_off_is_refused_and_the_connection_closed(service: Running) -> None:
    """The sending side is closed within it; the answer still comes, and says so."""
    found = exchange(service.port, request("POST", "/webhooks/open", JSON, "Content-Length: 99") + b"{", ends=True)
    assert found.only.status == 400
    assert found.only.headers["connection"] == "close"


# --- behind nginx -------------------------------------------------------------------------------

NGINX = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_max_body_size 8m;
  upstream bridge {{ server 127.0.0.1:{upstream}; server localhost:{upstream}; {upstream_options} }}
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://bridge; {options} }} }}
}}
"""
#: As nginx is without further ado, and with connections that are kept and bodies that are passed on as they come.
FRONTS = {
    "defaults": ("", ""),
    "kept connections": ("keepalive 4;", 'proxy_http_version 1.1; proxy_set_header Connection "";'),
    "unbuffered": (
        "keepalive 4;",
        'proxy_http_version 1.1; proxy_set_header Connection ""; proxy_request_buffering off;',
    ),
}


@pytest.fixture
def front(service: Running, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """nginx before the service; its port."""
    upstream_options, options = FRONTS[request.param]
    port, file = free_port(), tmp_path / "nginx.conf"
    text = NGINX.format(
        folder=tmp_path, port=port, upstream=service.port, upstream_options=upstream_options, options=options
    )
    file.write_text(text, encoding="utf-8")
    path = tool("nginx")
    assert path is not None
    with (tmp_path / "nginx.out").open("wb") as output:
        process = subprocess.Popen(
            [path, "-c", str(file), "-p", str(tmp_path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        assert eventually(lambda: answers(port)), (tmp_path / "nginx.out").read_text(encoding="utf-8")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def stray(port: int, stop: threading.Event, seen: list[int]) -> None:
    """Two unsigned bodies a second that are larger than is taken, of 1.2 and 3 MB."""
    number = 0
    while not stop.wait(0.5):
        number += 1
        body = b" " * (1_200_000 if number % 2 else 3_000_000)
        seen.append(exchange(port, request("POST", "/webhooks/acme", JSON, "Connection: close", body=body)).only.status)


@pytest.mark.skipif(tool("nginx") is None, reason="needs nginx")
@pytest.mark.parametrize("front", FRONTS, indirect=True)
def test_f64_behind_nginx_a_stranger_costs_no_genuine_webhook(service: Running, front: int) -> None:
    """The stranger hears 413; every webhook is taken, on whichever connection it comes."""
    stop, seen = threading.Event(), list[int]()
    stranger = threading.Thread(target=stray, args=(front, stop, seen))
    stranger.start()
    codes: list[int] = []
    try:
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            name = f"n{time.time_ns()}"
            body = orjson.dumps({"id": name, "client": name, "at": time.time(), "name": "A"})
            signed = service.post(body).request  # as a partner signs it; what counts is its way through nginx
            url = f"http://127.0.0.1:{front}/webhooks/acme"
            codes.append(requests.post(url, data=signed.body, headers=dict(signed.headers), timeout=10).status_code)
    finally:
        stop.set()
        stranger.join(30)
    assert set(codes) == {202}, codes
    assert len(codes) > 20
    assert set(seen) == {413}
