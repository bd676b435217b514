"""F58: who has proved nothing gives way. Whatever strangers leave open, genuine webhooks and probes do not notice.

`tests.cramped` is a service that may open 64 files, so that a few dozen connections fill it.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
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
from tests.stopwatch import Stopwatch
from tests.strangers import HEAD, JSON, LARGE, ONE_BYTE, Strangers

#: Seconds within which whatever is genuine is answered at the public port, and every probe at the admin port: there
#: Kubernetes waits for so long.
PUBLIC_S, PROBE_S = 3.0, 1.0
#: Bytes a second that strangers spend on coming back where there is room for a dozen.
FEW = 1_000


@dataclass
class Seen:
    """What became of the genuine requests at each port: the statuses, and how long they took."""

    public: list[tuple[int, float]] = field(default_factory=list)
    admin: list[tuple[int, float]] = field(default_factory=list)

    def check(self) -> None:
        slowest = [max(took_s for _, took_s in seen) for seen in (self.public, self.admin)]
        counts = [len(self.public), len(self.admin)]
        print(f"{counts} at the public and the admin port, slowest {slowest[0]:.2f} and {slowest[1]:.2f} s")  # noqa: T201
        assert {status for status, _ in self.public} == {200, 202}
        assert {status for status, _ in self.admin} == {200}
        assert slowest[0] < PUBLIC_S
        assert slowest[1] < PROBE_S


def watch(service: Running, seconds: float, *, senders: int = 4) -> Seen:
    """Partners that post, each on a connection of its own, and probes of both ports, for so long."""
    seen, until = Seen(), time.monotonic() + seconds

    def keep_asking(ask: Callable[[], requests.Response], into: list[tuple[int, float]]) -> None:
        while time.monotonic() < until:
            watch, status = Stopwatch(service.pids()), 0
            with contextlib.suppress(requests.RequestException):
                status = ask().status_code
            into.append((status, watch.seconds))
            time.sleep(0.1)

    def post() -> requests.Response:
        name = f"genuine {time.time_ns()}"
        return service.post({"id": name, "client": name, "at": time.time(), "name": "A"})

    def probe(url: str) -> Callable[[], requests.Response]:
        return lambda: requests.get(url, timeout=10)

    asking = [(post, seen.public)] * senders
    for path in ("livez", "readyz"):
        asking += [(probe(f"{service.url}/{path}"), seen.public), (probe(f"{service.admin_url}/{path}"), seen.admin)]
    with ThreadPoolExecutor(len(asking)) as pool:
        for work in [pool.submit(keep_asking, *each) for each in asking]:
            work.result()
    return seen


@pytest.fixture(scope="module")
def cramped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("cramped")
    with SandboxServer(Crm()) as sandbox, running(folder, sandbox.url, module="tests.cramped") as service:
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
        watch(cramped, 2.0, senders=2).check()


@pytest.mark.heavy
@pytest.mark.alone
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
    assert eventually(lambda: cramped.log_has("closed to make room"))


@pytest.mark.heavy
@pytest.mark.alone
def test_f58_a_stop_among_strangers_is_clean_and_in_time(tmp_path: Path) -> None:
    """What was taken by then is there afterwards."""
    crm = Crm()
    with SandboxServer(crm) as sandbox:
        service = Running(tmp_path, sandbox.url, module="tests.cramped", drain_timeout="1s")
        service.start()
        with (
            Strangers(service.port, ONE_BYTE, 40, bytes_per_s=FEW),
            Strangers(service.admin_port, HEAD, 20, bytes_per_s=FEW),
        ):
            assert service.post({"id": "e", "client": "taken", "at": 1, "name": "A"}).status_code == 202
            began = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() - began < 1 + 3
    assert "taken" in crm.state(id_property="acme_client_id")["partner_clients"]
    assert not service.log_has("Traceback")


@pytest.mark.heavy
@pytest.mark.alone
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


@pytest.mark.heavy
@pytest.mark.alone
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
                watch = Stopwatch(service.pids())
                assert requests.get(f"{service.admin_url}/{path}", timeout=30).status_code == 200
                assert watch.seconds < PROBE_S
            time.sleep(0.05)


@pytest.mark.heavy
@pytest.mark.alone
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
        assert eventually(lambda: service.fds() < 100)
        assert not service.log_has("Traceback")
        assert not service.log_has("Too many open files")
