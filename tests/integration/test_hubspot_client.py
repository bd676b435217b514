"""The CRM client against small servers that misbehave in every way a server can."""

from __future__ import annotations

import gzip
import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson
import pytest

from bridge import __version__
from bridge.crm.hubspot import HubSpot, answer_limit, inputs_of
from bridge.crm.transport import MAX_ANSWER, Answer, NoAnswer
from bridge.delivery.answers import doubtful
from bridge.errors import BridgeError
from bridge.model import Lane
from tests.fakes_delivery import BY_RECORD_ID, CLIENTS, record

Play = Callable[[socket.socket], None]

TOKEN = "secret-token"

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\nX-HubSpot-Correlation-Id: c-1\r\n\r\n" + b'{"results": []}'


@dataclass
class Server:
    """Accepts connections one at a time and answers each request as the test says."""

    play: Play
    context: ssl.SSLContext | None = None
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raw-server", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        self._listener.close()

    @property
    def url(self) -> str:
        scheme = "https" if self.context else "http"
        return f"{scheme}://localhost:{self._listener.getsockname()[1]}"

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                plain, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            try:
                self._serve(plain)
            except OSError:
                pass
            finally:
                plain.close()

    def _serve(self, plain: socket.socket) -> None:
        plain.settimeout(1)
        peer = self.context.wrap_socket(plain, server_side=True) if self.context else plain
        with peer:
            while (request := read_request(peer)) and not self._stop.is_set():
                self.requests.append(request)
                self.play(peer)


def read_request(peer: socket.socket) -> bytes:
    got = b""
    while b"\r\n\r\n" not in got:
        part = peer.recv(65_536)
        if not part:
            return b""
        got += part
    head, _, body = got.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    while lengths and len(body) < int(lengths[0]):
        body += peer.recv(65_536)
    return head + b"\r\n\r\n" + body


def says(answer: bytes) -> Play:
    return lambda peer: peer.sendall(answer)


def drips(answer: bytes, *, at_once: int = 0) -> Play:
    """A byte every 50 ms: each one resets a socket's own timeout."""

    def play(peer: socket.socket) -> None:
        peer.sendall(answer[:at_once])
        for byte in answer[at_once:]:
            time.sleep(0.05)
            peer.sendall(bytes([byte]))

    return play


def closes(answer: bytes) -> Play:
    def play(peer: socket.socket) -> None:
        peer.sendall(answer)
        peer.shutdown(socket.SHUT_RDWR)

    return play


def resets(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def hangs(peer: socket.socket) -> None:
    peer.recv(1)


def pours(peer: socket.socket) -> None:
    """A body that never ends."""
    peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    while True:
        peer.sendall(chunk)


def client(url: str, *, timeout_s: float = 5.0, token: str = TOKEN, **more: Any) -> HubSpot:
    return HubSpot(base_url=url, api_path="/crm/v3/objects", token=lambda: token, timeout_s=timeout_s, **more)


def call(crm: HubSpot, lane: Lane = CLIENTS) -> Answer | NoAnswer:
    return crm.update(lane, inputs_of([record(1, lane=lane), record(2, lane=lane)]))


def ask(play: Play, **more: Any) -> tuple[Answer | NoAnswer, float]:
    began = time.monotonic()
    with Server(play) as server:
        answer = call(client(server.url, **more))
        return answer, time.monotonic() - began


def no_answer(play: Play, **more: Any) -> NoAnswer:
    answer, _ = ask(play, **more)
    assert isinstance(answer, NoAnswer)
    return answer


# --- the request --------------------------------------------------------------------------------


def test_the_request_is_what_hubspot_documents() -> None:
    with Server(says(OK)) as server:
        answer = call(client(server.url + "/"))
    assert isinstance(answer, Answer)
    assert (answer.status, answer.body, answer.correlation_id) == (200, {"results": []}, "c-1")
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /crm/v3/objects/partner_clients/batch/update HTTP/1.1"
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
    assert headers["authorization"] == "Bearer secret-token"
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"] == f"partner-bridge/{__version__}"
    first, second = orjson.loads(body)["inputs"]
    assert first["id"] == "1"
    assert first["idProperty"] == "acme_client_id"
    assert first["properties"] == {"name": "Client 1"}
    assert first["objectWriteTraceId"] != second["objectWriteTraceId"]


def test_record_ids_go_without_an_id_property_and_odd_types_are_quoted() -> None:
    lane = Lane("p/../x y")
    with Server(says(OK)) as server:
        call(client(server.url), lane)
    assert server.requests[0].startswith(b"POST /crm/v3/objects/p%2F..%2Fx%20y/batch/update ")
    assert b"idProperty" not in server.requests[0]


def test_trace_ids_are_fresh_for_every_call() -> None:
    seen = {one.trace_id for _ in range(50) for one in inputs_of([record(1), record(2)])}
    assert len(seen) == 100


def test_a_connection_is_used_again() -> None:
    with Server(says(OK)) as server:
        crm = client(server.url)
        for _ in range(3):
            assert isinstance(call(crm), Answer)
        crm.close()
    assert server.connections == 1
    assert len(server.requests) == 3


def test_the_token_is_read_for_each_call_and_shown_nowhere() -> None:
    tokens = iter(["one", "two", "three"])
    with Server(says(OK)) as server:
        crm = HubSpot(base_url=server.url, api_path="x", token=lambda: next(tokens), timeout_s=5)
        first, second = call(crm), call(crm)
    assert b"Bearer one" in server.requests[0]
    assert b"Bearer two" in server.requests[1]
    assert first.credential != second.credential
    assert "one" not in repr(crm) + repr(first)


@pytest.mark.parametrize("token", ["", "two\nlines", "sp ace", "ünï", "a\r\nX-Evil: 1"])
def test_a_token_that_is_unfit_for_a_header_is_not_sent_and_not_quoted(token: str) -> None:
    answer = call(client("http://127.0.0.1:9", token=token))
    assert isinstance(answer, NoAnswer)
    assert (answer.kind, answer.doubtful) == ("token", False)
    assert not token or token not in answer.detail


def test_a_missing_token_is_an_answer_not_an_error() -> None:
    def token() -> str:
        raise BridgeError("the secret file is empty")

    crm = HubSpot(base_url="http://127.0.0.1:9", api_path="x", token=token, timeout_s=5)
    answer = call(crm)
    assert isinstance(answer, NoAnswer)
    assert answer.kind == "token"
    assert crm.credential() == ""


def test_neither_proxies_nor_netrc_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login evil password evil\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with Server(says(OK)) as server:
        answer = call(client(server.url))
    assert isinstance(answer, Answer)
    assert b"Bearer secret-token" in server.requests[0]


def test_the_configured_proxy_is_used() -> None:
    with Server(says(OK)) as proxy:
        answer = call(client("http://crm.example", proxy=proxy.url))
    assert isinstance(answer, Answer)
    assert proxy.requests[0].startswith(b"POST http://crm.example/crm/v3/objects/")


def test_redirects_are_not_followed() -> None:
    with Server(says(OK)) as elsewhere:
        redirect = f"HTTP/1.1 307 Moved\r\nLocation: {elsewhere.url}/\r\nContent-Length: 0\r\n\r\n".encode()
        answer, _ = ask(says(redirect))
        assert isinstance(answer, Answer)
        assert answer.status == 307
    assert elsewhere.requests == []


# --- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"<html>error code: 1015</html>", b'{"results": [', b"\xff\xfe", b"[" * 9_999])
def test_a_body_that_is_no_json_is_told_as_such(body: bytes) -> None:
    answer, _ = ask(says(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body))
    assert isinstance(answer, Answer)
    assert answer.body is None
    assert len(answer.excerpt) <= 300


def test_a_compressed_answer_is_read() -> None:
    body = gzip.compress(b'{"results": [1]}')
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer, _ = ask(says(head + body))
    assert isinstance(answer, Answer)
    assert answer.body == {"results": [1]}


def test_a_compressed_bomb_is_cut_at_the_cap() -> None:
    body = gzip.compress(b" " * (MAX_ANSWER * 4))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert no_answer(says(head + body)).kind == "oversize"


def test_a_body_without_end_is_cut_at_the_cap() -> None:
    answer = no_answer(pours)
    assert (answer.kind, answer.doubtful) == ("oversize", True)


def test_how_much_of_an_answer_is_read_goes_by_what_was_sent_and_its_beginning_is_kept() -> None:
    """The cap of a small call is far below that of any other request."""
    whole = answer_limit(0) + 20_000
    body = b'{"status":"COMPLETE","results":[{"id":"1","properties":{"name":"' + b"x" * whole + b'"}}]}'
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = no_answer(says(head + body))
    assert (answer.kind, answer.status) == ("oversize", 200)
    assert answer.body == {"status": "COMPLETE", "results": [{"id": "1", "properties": {}}]}
    assert answer_limit(0) < MAX_ANSWER < answer_limit(1 << 21)
    with Server(says(head + body)) as server:
        crm = client(server.url)
        large = inputs_of([record(1, {"name": "x" * 20_000})])
        found = crm.update(CLIENTS, large)
        assert isinstance(found, Answer)
        crm.close()


def test_a_truncated_answer_is_doubtful() -> None:
    answer = no_answer(closes(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{}"))
    assert (answer.kind, answer.doubtful) == ("truncated", True)


def test_the_status_of_a_truncated_error_is_kept() -> None:
    answer, _ = ask(closes(b"HTTP/1.1 429 Slow\r\nRetry-After: 7\r\nContent-Length: 500\r\n\r\n{}"))
    assert isinstance(answer, Answer)
    assert (answer.status, answer.body, answer.headers["retry-after"]) == (429, None, "7")


@pytest.mark.parametrize("play", [resets, closes(b""), closes(b"garbage\r\n\r\n")])
def test_an_ending_without_a_status_is_doubtful(play: Play) -> None:
    answer = no_answer(play)
    assert answer.kind in {"reset", "truncated"}
    assert answer.doubtful


def test_a_status_line_that_is_cut_off_confirms_nothing() -> None:
    answer, _ = ask(closes(b"HTTP/1.1 200"))
    assert isinstance(answer, Answer)
    assert doubtful(answer)


def test_a_refused_connection_is_not_doubtful() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    answer = call(client(f"http://127.0.0.1:{port}"))
    assert isinstance(answer, NoAnswer)
    assert (answer.kind, answer.doubtful) == ("connect", False)


# --- the deadline -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "play",
    [
        hangs,
        drips(OK),
        drips(OK, at_once=20),
        drips(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + b" " * 99, at_once=40),
        drips(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 50, at_once=50),
        drips(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 200, at_once=22),
        drips(b"HTTP/1.1 100 Continue\r\n\r\n" * 20),
    ],
    ids=["silence", "status", "headers", "body", "chunks", "body without length", "continue"],
)
def test_no_server_can_beat_the_deadline(play: Play) -> None:
    """Not by a byte every 50 ms, be it of headers or of the body."""
    answer, took_s = ask(play, timeout_s=0.4)
    assert isinstance(answer, NoAnswer)
    assert (answer.kind, answer.doubtful) == ("timeout", True)
    assert took_s < 2.5  # the raw server itself ends within a second
    assert answer.duration_s < 0.9


def test_a_proxy_that_hangs_while_it_connects_is_cut_and_leaves_no_doubt() -> None:
    with Server(drips(b"HTTP/1.1 200 Connection established\r\n\r\n")) as proxy:
        answer = call(client("https://crm.example", proxy=proxy.url, timeout_s=0.4))
    assert isinstance(answer, NoAnswer)
    assert not answer.doubtful
    assert answer.duration_s < 0.9
    assert proxy.requests[0].startswith(b"CONNECT crm.example:443")


def test_close_cuts_an_open_call_at_once() -> None:
    with Server(hangs) as server:
        crm = client(server.url, timeout_s=30)
        threading.Timer(0.3, crm.close).start()
        began = time.monotonic()
        answer = call(crm)
        assert time.monotonic() - began < 1.5
    assert isinstance(answer, NoAnswer)
    assert answer.doubtful


def test_a_deadline_of_one_call_leaves_the_next_alone() -> None:
    plays = iter([hangs, says(OK), says(OK)])

    def play_next(peer: socket.socket) -> None:
        next(plays)(peer)

    with Server(play_next) as server:
        crm = client(server.url, timeout_s=0.3)
        assert isinstance(call(crm), NoAnswer)
        for _ in range(2):
            assert isinstance(call(crm), Answer)
            time.sleep(0.2)


def test_threads_do_not_share_connections() -> None:
    answers: list[Answer | NoAnswer] = []
    with Server(says(OK)) as server:
        crm = client(server.url)
        threads = [threading.Thread(target=lambda: answers.append(call(crm))) for _ in range(4)]
        for thread in threads:
            thread.start()
            thread.join(5)
            crm._transport._sessions[-1].close()  # the raw server serves one connection at a time
    assert [type(answer) for answer in answers] == [Answer] * 4
    assert server.connections == 4


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost and its key, in one file each."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    place = tmp_path_factory.mktemp("tls")
    request = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(place / "key.pem"), "-out", str(place / "cert.pem")]
    subprocess.run([*request, *names, *files], check=True, capture_output=True, env={"PATH": os.defpath})
    return place


def serving(authority: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "cert.pem", authority / "key.pem")
    return context


def test_a_server_that_the_authorities_vouch_for_is_called(authority: Path) -> None:
    with Server(says(OK), context=serving(authority)) as server:
        answer = call(client(server.url, ca_file=authority / "cert.pem"))
    assert isinstance(answer, Answer)


def test_a_server_that_nobody_vouches_for_never_sees_the_token(authority: Path) -> None:
    with Server(says(OK), context=serving(authority)) as server:
        answer = call(client(server.url))
    assert isinstance(answer, NoAnswer)
    assert (answer.kind, answer.doubtful) == ("tls", False)
    assert server.requests == []


def test_a_certificate_for_another_host_is_refused(authority: Path) -> None:
    with Server(says(OK), context=serving(authority)) as server:
        url = server.url.replace("localhost", "127.0.0.1")
        answer = call(client(url, ca_file=authority / "cert.pem"))
    assert isinstance(answer, NoAnswer)
    assert answer.kind == "tls"
    assert server.requests == []


def test_the_deadline_holds_over_tls(authority: Path) -> None:
    with Server(drips(OK), context=serving(authority)) as server:
        answer = call(client(server.url, ca_file=authority / "cert.pem", timeout_s=0.5), BY_RECORD_ID)
    assert isinstance(answer, NoAnswer)
    assert (answer.kind, answer.doubtful) == ("timeout", True)
    assert answer.duration_s < 1.0
