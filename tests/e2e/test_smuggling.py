"""F45: requests whose end two readers might see in two places, sent by the byte, also through proxies.

Each attack hides a webhook of its own behind or within a request. Whoever reads the framing in another way than
we do must not make us take it: it is never journalled, and after a refusal the connection is closed.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
import requests

from bridge.sandbox import Crm, SandboxServer
from tests.raw_http import chunked, exchange, exchange_bytes, request, statuses
from tests.running import ACME, SECRET, Running, eventually, free_port, running

SOURCES = (
    ACME
    + """\
  open:
    verify: {scheme: none}
    event_id: id
    record: {id: client, id_property: acme_client_id}
    properties: {company_name: name}
  door:
    verify: {scheme: bearer, secrets: [{file: acme.secret}]}
    event_id: id
    record: {id: client, id_property: acme_client_id}
    properties: {company_name: name}
"""
)
JSON = "Content-Type: application/json"
HIDDEN = "smuggled"
#: The event that is taken in the ordinary way before all attacks.
CONTROL = "control"

NGINX = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  ignore_invalid_headers off;
  underscores_in_headers on;
  upstream bridge {{ server 127.0.0.1:{upstream}; keepalive 1; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://bridge;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Authorization "Bearer {secret}";
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_request_buffering off;
    }}
  }}
}}
"""
HAPROXY = """\
global
  maxconn 64
defaults
  mode http
  timeout connect 5s
  timeout client 20s
  timeout server 20s
  http-reuse always
  option forwardfor
frontend front
  bind 127.0.0.1:{port}
  option accept-invalid-http-request
  http-request set-header Authorization "Bearer {secret}"
  default_backend bridge
backend bridge
  server bridge 127.0.0.1:{upstream}
"""


def hidden(name: str) -> bytes:
    """A whole webhook that must never be taken."""
    return request("POST", "/webhooks/open", JSON, body=orjson.dumps({"id": f"{HIDDEN} {name}", "client": "h"}))


@dataclass(frozen=True)
class Attack:
    """What is sent, and the statuses with which the service itself refuses it."""

    name: str
    data: bytes
    expected: frozenset[int] = frozenset({400, 501})


def framed_twice(name: str, *headers: str) -> Attack:
    """By its Content-Length the body holds the hidden webhook, as chunks it ends before it."""
    return Attack(name, request("POST", "/webhooks/open", JSON, *headers, body=b"0\r\n\r\n" + hidden(name)))


def in_chunks(name: str, body: bytes) -> Attack:
    return Attack(name, request("POST", "/webhooks/open", JSON, "Transfer-Encoding: chunked") + body)


def with_lengths(name: str, *lengths: str) -> Attack:
    lines = [f"Content-Length: {length}" for length in lengths]
    return Attack(name, request("POST", "/webhooks/open", JSON, *lines) + b"{}" + hidden(name))


EVENT = b'{"id": "e", "client": "c"}'
ATTACKS = [
    framed_twice("length and chunked", "Transfer-Encoding: chunked"),
    framed_twice("chunked in capitals", "TRANSFER-ENCODING: CHUNKED"),
    framed_twice("chunked after a tab", "Transfer-Encoding:\tchunked"),
    framed_twice("chunked after a vertical tab", "Transfer-Encoding: \x0bchunked"),
    framed_twice("chunked in quotes", 'Transfer-Encoding: "chunked"'),
    framed_twice("a space before the colon", "Transfer-Encoding : chunked"),
    framed_twice("a space before the name", " Transfer-Encoding: chunked"),
    framed_twice("folded value", "Transfer-Encoding:", " chunked"),
    framed_twice("folded into another header", "X-A: b", " Transfer-Encoding: chunked"),
    framed_twice("behind a bare carriage return", "X-A: b\rTransfer-Encoding: chunked"),
    framed_twice("behind a bare line feed", "X-A: b\nTransfer-Encoding: chunked"),
    framed_twice("behind a NUL", "X-A: b\0Transfer-Encoding: chunked"),
    framed_twice("unknown coding", "Transfer-Encoding: xchunked"),
    framed_twice("identity", "Transfer-Encoding: identity"),
    framed_twice("chunked, identity", "Transfer-Encoding: chunked, identity"),
    framed_twice("two codings, two lines", "Transfer-Encoding: chunked", "Transfer-Encoding: x"),
    framed_twice("chunked twice", "Transfer-Encoding: chunked, chunked"),
    framed_twice("empty coding", "Transfer-Encoding: "),
    framed_twice("name that is no token", "Transfer-Encoding\xa0: chunked"),
    with_lengths("two lengths", "2", str(2 + len(hidden("two lengths")))),
    with_lengths("two lengths, the same", "2", "2"),
    with_lengths("a list of lengths", "2, 2"),
    with_lengths("signed length", "+2"),
    with_lengths("negative length", "-1"),
    with_lengths("hexadecimal length", "0x2"),
    with_lengths("length with an underscore", "0_2"),
    with_lengths("length of another script", "\xb2"),
    with_lengths("empty length", ""),
    in_chunks("size with a sign", b"+2\r\n{}\r\n0\r\n\r\n" + hidden("size with a sign")),
    in_chunks("size with 0x", b"0x2\r\n{}\r\n0\r\n\r\n" + hidden("size with 0x")),
    in_chunks("size with an underscore", b"0_2\r\n{}\r\n0\r\n\r\n" + hidden("size with an underscore")),
    in_chunks("size after a space", b" 2\r\n{}\r\n0\r\n\r\n" + hidden("size after a space")),
    in_chunks("negative size", b"-2\r\n{}\r\n0\r\n\r\n" + hidden("negative size")),
    in_chunks("no size", b"\r\n{}\r\n0\r\n\r\n" + hidden("no size")),
    in_chunks("line feed after the size", b"2\n{}\r\n0\r\n\r\n" + hidden("line feed after the size")),
    in_chunks("line feed within an extension", b"2;a\nb\r\n{}\r\n0\r\n\r\n" + hidden("line feed within an extension")),
    in_chunks("chunk longer than it says", b"2\r\n{}xx\r\n0\r\n\r\n" + hidden("chunk longer than it says")),
    in_chunks("no end of the chunk", b"2\r\n{}0\r\n\r\n" + hidden("no end of the chunk")),
    in_chunks("trailer that frames", b"2\r\n{}\r\n0\r\nContent-Length: 9\r\n\r\n" + hidden("trailer that frames")),
    in_chunks("trailer with a line feed", b"2\r\n{}\r\n0\r\na: b\n\n" + hidden("trailer with a line feed")),
    Attack(
        "chunked in HTTP/1.0",
        request("POST", "/webhooks/open", JSON, "Transfer-Encoding: chunked", version="HTTP/1.0")
        + chunked(EVENT)
        + hidden("chunked in HTTP/1.0"),
    ),
    Attack(
        "compressed and chunked",
        request("POST", "/webhooks/open", JSON, "Transfer-Encoding: gzip, chunked")
        + chunked(EVENT)
        + hidden("compressed and chunked"),
    ),
    Attack("doubled Host", request("POST", "/webhooks/open", "Host: other", JSON, body=EVENT) + hidden("doubled Host")),
    Attack(
        "doubled Content-Type",
        request("POST", "/webhooks/open", JSON, "Content-Type: text/plain", body=EVENT)
        + hidden("doubled Content-Type"),
    ),
    Attack(
        "only line feeds",
        request("POST", "/webhooks/open", JSON, body=EVENT + hidden("only line feeds")).replace(b"\r\n", b"\n", 3),
    ),
    Attack("line feed after the request line", b"POST /webhooks/open HTTP/1.1\n" + hidden("line feed after the line")),
    Attack("no version", b"POST /webhooks/open\r\n\r\n" + hidden("no version")),
    Attack("two spaces", b"POST  /webhooks/open HTTP/1.1\r\n\r\n" + hidden("two spaces")),
    Attack("control character in the target", b"POST /webhooks/\x01 HTTP/1.1\r\n\r\n" + hidden("control character")),
    Attack("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + hidden("HTTP/2 preface")),
    Attack("PROXY protocol", b"PROXY TCP4 203.0.113.9 203.0.113.9 1 2\r\n" + hidden("PROXY protocol")),
    Attack(
        "a CONNECT and what follows it",
        request("CONNECT", "bridge.test:443", body=None) + hidden("a CONNECT and what follows it"),
        frozenset({400, 404, 405}),
    ),
]
#: Sound requests in whose body, unread as they are refused early, a webhook hides: it must be skipped.
UNREAD = {
    "unknown route": request("POST", "/nowhere", JSON, body=hidden("unknown route")),
    "unknown source": request("POST", "/webhooks/nobody", JSON, body=hidden("unknown source")),
    "wrong method": request("PUT", "/webhooks/open", JSON, body=hidden("wrong method")),
    "wrong media type": request("POST", "/webhooks/open", "Content-Type: text/plain", body=hidden("wrong media type")),
    "wrong coding": request("POST", "/webhooks/open", JSON, "Content-Encoding: br", body=hidden("wrong coding")),
    "body of a GET": request("GET", "/livez", body=hidden("body of a GET")),
    "underscores": request("POST", "/webhooks/open", JSON, "Transfer_Encoding: chunked", body=hidden("underscores")),
    "length with underscores": request("POST", "/webhooks/open", JSON, "Content_Length: 0", body=hidden("_length")),
    "chunks of a GET": request("GET", "/readyz", "Transfer-Encoding: chunked") + chunked(hidden("chunks of a GET")),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("smuggling")
    with SandboxServer(Crm()) as sandbox, running(folder, sandbox.url, sources=SOURCES) as started:
        assert started.post({"id": CONTROL, "client": "c"}, source="open").status_code == 202
        yield started


def taken(service: Running) -> list[str]:
    """The ids of all events in the journal."""
    events: list[dict[str, Any]] = requests.get(f"{service.admin_url}/api/events", timeout=10).json()
    ids = [event["id"] for event in events]
    assert CONTROL in ids, "events are not listed as this test believes"
    return ids


def assert_nothing_smuggled(service: Running) -> None:
    assert [event_id for event_id in taken(service) if event_id.startswith(HIDDEN)] == []


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_f45_a_request_of_doubtful_framing_is_refused_and_the_connection_closed(
    service: Running, attack: Attack
) -> None:
    """One answer, a problem that repeats nothing of the request, and the end."""
    found = exchange(service.port, attack.data)
    assert len(found.answers) == 1
    assert found.only.status in attack.expected
    assert found.closed
    assert HIDDEN not in str(found.only.problem())
    assert_nothing_smuggled(service)


@pytest.mark.parametrize("name", UNREAD)
def test_f45_a_body_that_nobody_read_is_no_request(service: Running, name: str) -> None:
    """What follows on the connection is answered for itself, or the connection is closed."""
    follower = request("GET", "/livez")
    found = exchange(service.port, UNREAD[name] + follower, answers=2)
    assert statuses(found.answers)[1:] in ([], [200])
    assert len(found.answers) == 2 or found.closed
    assert_nothing_smuggled(service)


def test_f45_pipelined_requests_are_answered_in_their_order(service: Running) -> None:
    """They are legal: each is taken once, and answers do not mix."""
    events = [orjson.dumps({"id": f"pipelined {number}", "client": "p"}) for number in range(5)]
    sent = b"".join(request("POST", "/webhooks/open", JSON, body=event) for event in events)
    found = exchange(service.port, sent, answers=5)
    assert [orjson.loads(answer.body)["ids"] for answer in found.answers] == [[f"pipelined {n}"] for n in range(5)]


def test_f45_underscores_never_stand_for_hyphens(service: Running) -> None:
    """A signature in such headers is none, and a false one there does not spoil the true one."""
    body = b'{"id": "underscored", "client": "c"}'
    signed = service.post(body).request.headers
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    true = [f"{name}: {signed[name]}" for name in names]
    aliased = [f"{name.replace('-', '_')}: {signed[name]}" for name in names]
    forged = [f"{name.replace('-', '_')}: forged" for name in names]
    for headers, status in ((aliased, 401), ([*forged, *true], 202), ([*true, *forged], 202)):
        found = exchange(service.port, request("POST", "/webhooks/acme", JSON, *headers, body=body))
        assert found.only.status == status


def test_f45_nobody_is_believed_about_who_and_where_they_are(service: Running) -> None:
    """Forwarding headers change neither the address in the log nor which port, path or scheme it is."""
    said = [
        "X-Forwarded-For: 203.0.113.9",
        "X-Real-IP: 203.0.113.9",
        "Forwarded: for=203.0.113.9;proto=https;host=evil.test",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Ssl: off",
        f"X-Forwarded-Port: {service.admin_port}",
        "X-Forwarded-Host: localhost",
        "SCRIPT_NAME: /webhooks",
        "PATH_INFO: /status",
        "SERVER_PORT: " + str(service.admin_port),
        "REMOTE_ADDR: 203.0.113.9",
    ]
    body = orjson.dumps({"reason": "who is it?"})
    acted = exchange(service.admin_port, request("POST", "/api/pause", *said, JSON, host="localhost", body=body))
    assert acted.only.status == 200
    requests.delete(f"{service.admin_url}/api/pause", timeout=5)
    assert exchange(service.port, request("GET", "/status", *said)).only.status == 404
    assert exchange(service.port, request("POST", "/webhooks/open", *said, JSON, body=EVENT)).only.status == 202
    exchange(service.port, request("GET", "/livez", *said, "X Y: z"))

    def lines() -> list[str]:
        text = service.log.read_text(encoding="utf-8")
        return [line for line in text.splitlines() if "operator acted" in line or "request unreadable" in line]

    assert eventually(lambda: any("operator acted" in line for line in lines()))
    assert {orjson.loads(line)["address"] for line in lines()} == {"127.0.0.1"}


# --- behind a proxy -----------------------------------------------------------------------------


def tool(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def proxy(name: str, folder: Path, upstream: int) -> Iterator[int]:
    """A running proxy before the port; yields its own port."""
    port, file = free_port(), folder / f"{name}.conf"
    file.write_text(
        (NGINX if name == "nginx" else HAPROXY).format(folder=folder, port=port, upstream=upstream, secret=SECRET),
        encoding="utf-8",
    )
    path = tool(name)
    assert path is not None
    command = [path, "-c", str(file), "-p", str(folder)] if name == "nginx" else [path, "-f", str(file), "-db"]
    with (folder / f"{name}.out").open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        assert eventually(lambda: answers(port)), (folder / f"{name}.out").read_text(encoding="utf-8")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def answers(port: int) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"http://127.0.0.1:{port}/livez", timeout=2).status_code == 200
    return False


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.skipif(tool(name) is None, reason=f"needs {name}"))
        for name in ("nginx", "haproxy")
    ],
)
def test_f45_behind_a_proxy_nothing_is_smuggled_and_answers_do_not_mix(
    service: Running, tmp_path: Path, name: str
) -> None:
    """Both ends share one connection: whatever an attack leaves on it, the next request gets its own answer.

    Where the proxy is more lenient than we are, it may see several requests, which it then passes on as such: that
    is no smuggling. It puts a credential into every request that it has seen; one without would be smuggled.
    """
    with proxy(name, tmp_path, service.port) as port:
        attacks = {attack.name: attack.data for attack in ATTACKS} | UNREAD
        for number, (attack, data) in enumerate(attacks.items()):
            came, _ = exchange_bytes(port, data.replace(b"/webhooks/open", b"/webhooks/door"), wait_s=2)
            assert b" 500 " not in came.partition(b"\r\n")[0], attack
            own = f"{name} {number}"
            event = orjson.dumps({"id": own, "client": "c"})
            answer = exchange(port, request("POST", "/webhooks/door", JSON, "Connection: close", body=event)).only
            assert answer.status == 202, attack
            assert orjson.loads(answer.body)["ids"] == [own], attack
    assert unseen(service) == 0
    exchange(service.port, hidden("not through the proxy").replace(b"/webhooks/open", b"/webhooks/door"))
    assert unseen(service) == 1
    service.stop()
    service.start()  # counts from zero again


def unseen(service: Running) -> int:
    """How many requests came to the door without the proxy's credential."""
    text = requests.get(f"{service.admin_url}/metrics", timeout=5).text
    lines = [line for line in text.splitlines() if line.startswith("bridge_verifications_total{")]
    return sum(int(float(line.split()[-1])) for line in lines if '"door"' in line and '"accepted"' not in line)
