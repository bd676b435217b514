"""F58: who has proved nothing gives way. Whatever strangers leave open, genuine webhooks and probes do not notice.

`tests.cramped` is a service that may open 64 files, so that a few dozen connections fill it.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest
import requests

from bridge.intake.signatures import sign
from bridge.sandbox import Crm, SandboxServer
from bridge.settings import Secret, Verify
from tests.raw_http import request, split
from tests.running import ACME, Running, eventually, running
from tests.strangers import HEAD, JSON, LARGE, ONE_BYTE, Strangers

#: Seconds within which every genuine webhook, and every probe, is answered.
WEBHOOK_S, PROBE_S = 3.0, 1.0
#: Bytes a second that strangers spend on coming back where there is room for a dozen.
FEW = 1_000


@dataclass
class Seen:
    """What became of the genuine requests, and how long they took."""

    webhooks: list[tuple[int, float]] = field(default_factory=list)
    probes: list[tuple[int, float]] = field(default_factory=list)

    def check(self) -> None:
        print(  # noqa: T201
            f"{len(self.webhooks)} webhooks, slowest {max(s for _, s in self.webhooks):.2f} s, "
            f"{len(self.probes)} probes, slowest {max(s for _, s in self.probes):.2f} s"
        )
        assert {status for status, _ in self.webhooks} == {202}
        assert max(took_s for _, took_s in self.webhooks) < WEBHOOK_S
        assert {status for status, _ in self.probes} == {200}
        assert max(took_s for _, took_s in self.probes) < PROBE_S


def watch(service: Running, seconds: float, *, senders: int = 4) -> Seen:
    """Partners that post, each on a connection of its own, and probes of both ports, for so long."""
    seen, until = Seen(), time.monotonic() + seconds

    def send(number: int) -> None:
        turn = 0
        while time.monotonic() < until:
            turn += 1
            name = f"{number}-{turn}-{time.time_ns()}"
            began = time.monotonic()
            status = 0
            with contextlib.suppress(requests.RequestException):
                status = service.post({"id": name, "client": name, "at": time.time(), "name": "A"}).status_code
            seen.webhooks.append((status, time.monotonic() - began))
            time.sleep(0.1)

    def probe(url: str) -> None:
        while time.monotonic() < until:
            began = time.monotonic()
            status = 0
            with contextlib.suppress(requests.RequestException):
                status = requests.get(url, timeout=10).status_code
            seen.probes.append((status, time.monotonic() - began))
            time.sleep(0.1)

    urls = [f"{base}/{path}" for base in (service.url, service.admin_url) for path in ("livez", "readyz")]
    with ThreadPoolExecutor(senders + len(urls)) as pool:
        for work in [pool.submit(send, number) for number in range(senders)] + [pool.submit(probe, u) for u in urls]:
            work.result()
    return seen


@pytest.fixture
def cramped(tmp_path: Path) -> Iterator[Running]:
    with SandboxServer(Crm()) as sandbox, running(tmp_path, sandbox.url, module="tests.cramped") as service:
        yield service
        assert not service.log_has("Traceback")
        assert not service.log_has("Too many open files")


def signed(service: Running, name: str, *, size: int = 0) -> bytes:
    """A whole webhook as a partner sends it, of so many bytes at least."""
    body = orjson.dumps({"id": name, "client": name, "at": time.time(), "name": "A"}).ljust(size)
    verify = Verify("standard-webhooks", (Secret(file=service.folder / "acme.secret"),))
    headers = sign(verify, body=body, url=f"{service.url}/webhooks/acme", now=time.time(), delivery_id=name)
    return request("POST", "/webhooks/acme", JSON, *[f"{key}: {text}" for key, text in headers.items()], body=body)


def connect(port: int, data: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.sendall(data)
    return client


def test_f58_two_ports_full_of_strangers_still_take_webhooks_and_probes(cramped: Running) -> None:
    """In the head and in the body, more than there may be files, at both ports at once."""
    with (
        Strangers(cramped.port, ONE_BYTE, 40, bytes_per_s=FEW),
        Strangers(cramped.port, HEAD, 40, bytes_per_s=FEW),
        Strangers(cramped.admin_port, HEAD, 20, bytes_per_s=FEW),
    ):
        watch(cramped, 3.0, senders=2).check()


def test_f58_partners_that_are_idle_or_fetch_no_answer_make_room_too(cramped: Running) -> None:
    """A valid request on each of many connections that are kept; and answers, many on each, that nobody reads."""
    with contextlib.ExitStack() as stack:
        for number in range(30):
            client = stack.enter_context(connect(cramped.port, signed(cramped, f"idle {number}")))
            if number < 5:
                assert client.recv(65_536).startswith(b"HTTP/1.1 202 ")
        for number in range(10):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.connect(("127.0.0.1", cramped.port))
            client.setblocking(False)
            with contextlib.suppress(OSError):
                for _ in range(20):
                    client.send((signed(cramped, f"deaf {number}") if number % 2 else request("GET", "/no")) * 20)
        watch(cramped, 2.0, senders=2).check()


def test_f58_whoever_has_to_give_way_is_told_to_come_back_and_let_go_at_once(cramped: Running) -> None:
    """Within its body it hears 503; the log tells how many there were, in one line."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(cramped.port, ONE_BYTE)) for _ in range(6)]
        time.sleep(1.2)  # no longer young
        for number in range(12):
            stack.enter_context(connect(cramped.port, ONE_BYTE if number % 2 else HEAD))
            time.sleep(0.02)
        (answer,), rest = split(slow[0].recv(65_536))
        assert rest == b""
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert int(answer.headers["retry-after"]) > 0
        assert answer.problem()
        assert slow[0].recv(1) == b""
    assert eventually(lambda: cramped.log_has("closed to make room"), within_s=5)


def test_f58_a_stop_among_strangers_is_clean_and_in_time(tmp_path: Path) -> None:
    """What was taken by then is there afterwards."""
    crm = Crm()
    with SandboxServer(crm) as sandbox:
        service = Running(tmp_path, sandbox.url, module="tests.cramped", drain_timeout="3s")
        service.start()
        with (
            Strangers(service.port, ONE_BYTE, 40, bytes_per_s=FEW),
            Strangers(service.admin_port, HEAD, 20, bytes_per_s=FEW),
        ):
            assert service.post({"id": "e", "client": "taken", "at": 1, "name": "A"}).status_code == 202
            began = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() - began < 3 + 3
    assert "taken" in crm.state(id_property="acme_client_id")["partner_clients"]
    assert not service.log_has("Traceback")


def test_f58_a_large_genuine_body_passes_beside_large_ones_that_never_end(tmp_path: Path) -> None:
    """At ordinary speed, while strangers hold as much as they may, and come back."""
    with SandboxServer(Crm()) as sandbox, running(tmp_path, sandbox.url) as service:
        with Strangers(service.port, LARGE, 75, bytes_per_s=2 << 20) as strangers:
            for number in range(3):
                data = signed(service, f"large {number}", size=1_000_000)
                with connect(service.port) as partner:
                    for at in range(0, len(data), 65_536):
                        partner.sendall(data[at : at + 65_536])
                        time.sleep(0.04)
                    assert partner.recv(65_536).startswith(b"HTTP/1.1 202 ")
            watch(service, 1.0).check()
            assert strangers.hung_up_on > 40
        assert not service.log_has("Traceback")


JOIN = """\
  joins:
    verify: {scheme: none}
    events: items
    event_id: id
    record: {id: client, id_property: acme_client_id}
    properties: {company_name: "_root.catalog[?contains(_root.selected, id)] | [0].name"}
"""


def test_the_admin_port_answers_while_a_mapping_holds_the_loop(tmp_path: Path) -> None:
    """Probes and metrics, each within a second: they are accepted by another thread's loop."""
    numbers = [{"id": f"{number:08}"} for number in range(5_000)]
    slow = {"items": [{"id": "j", "client": "j"}], "catalog": numbers, "selected": [f"x{n:08}" for n in range(5_000)]}
    with (
        SandboxServer(Crm()) as sandbox,
        running(tmp_path, sandbox.url, sources=ACME + JOIN) as service,
        ThreadPoolExecutor(2) as pool,
    ):
        joins = [pool.submit(service.post, slow, source="joins") for _ in range(2)]
        while not all(join.done() for join in joins):
            for path in ("livez", "readyz", "metrics"):
                began = time.monotonic()
                assert requests.get(f"{service.admin_url}/{path}", timeout=30).status_code == 200
                assert time.monotonic() - began < PROBE_S
            time.sleep(0.05)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "beginning, number, bytes_per_s",
    [(ONE_BYTE, 2_200, 50_000), (HEAD, 2_200, 50_000), (LARGE, 75, 10 << 20)],
    ids=["one byte of the body", "unfinished heads", "large bodies"],
)
def test_f58_strangers_cost_no_genuine_webhook_and_no_probe(
    tmp_path: Path, beginning: bytes, number: int, bytes_per_s: int
) -> None:
    """They come back as soon as they are hung up on."""
    with SandboxServer(Crm()) as sandbox, running(tmp_path, sandbox.url) as service:
        with Strangers(service.port, beginning, number, bytes_per_s=bytes_per_s) as strangers:
            seen = watch(service, 10.0)
            print(f"{strangers.came} came, {strangers.hung_up_on} hung up on; {service.rss_mb():.0f} MB")  # noqa: T201
        seen.check()
        assert eventually(lambda: service.fds() < 100, within_s=10)
        assert not service.log_has("Traceback")
        assert not service.log_has("Too many open files")
