"""What a CRM and the network to it can do wrong, one row of the fault list at a time, with a real service.

The service calls the sandbox through a proxy that misbehaves on demand. F16 and F25 are in `test_access`;
F20 to F23, F26 and F27, which answers decide, in `tests/integration/test_answers_over_http.py`.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import requests

from bridge.journal.retry_log import Entry
from bridge.sandbox import Crm, Fault, SandboxServer
from tests import fault_proxy as plays
from tests.fault_proxy import FaultProxy, Play, blackhole
from tests.running import Running, eventually, free_port, running

SOURCES = """\
  acme:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    event_id: id
    occurred_at: at
    mappings:
      - when: "!service"
        record: {id: client, id_property: acme_client_id}
        properties:
          company_name: name
          annual_revenue: {from: revenue, type: number}
          tier: {from: tier, type: enumeration}
          notes: notes
      - when: "service"
        object_type: partner_services
        record: {id: service}
        properties: {company_name: name}
  waiting:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    event_id: id
    record: {id: client, id_property: acme_client_id, on_unknown: wait}
    properties: {company_name: name}
  careless:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    event_id: id
    record: {id: client, id_property: external_id, on_unknown: ignore}
    properties: {company_name: name}
  own:
    verify: {scheme: standard-webhooks, secrets: [{file: acme.secret}]}
    event_id: id
    record: {id: client, id_property: acme_client_id}
    schema: touchy:Touchy
"""

#: A mapping of the operator's own that raises what no validation raises.
TOUCHY = """\
from marshmallow import Schema, fields, post_load


class Touchy(Schema):
    client = fields.Raw()
    id = fields.Raw()
    name = fields.Raw()

    @post_load
    def mapped(self, data, **_):
        return {"company_name": "name " * (10 // (10 - data["name"]))}
"""


@dataclass
class Bridge:
    """The service, the sandbox behind it and the proxy between them."""

    service: Running
    crm: Crm
    server: SandboxServer
    proxy: FaultProxy
    posted: int = 0

    def post(self, record: str, *, source: str = "acme", at: Any = None, **values: Any) -> None:
        """One event for one record; later ones are newer."""
        self.posted += 1
        event = {"id": f"e{self.posted}", "client": record, "at": at or 1_700_000_000 + self.posted, **values}
        answer = self.service.post(event, source=source)
        assert answer.status_code == 202, answer.text

    def post_all(self, records: list[str], **values: Any) -> None:
        events = []
        for record in records:
            self.posted += 1
            event = {"id": f"e{self.posted}", "client": record, "at": 1_700_000_000 + self.posted}
            events.append({**event, "name": f"name of {record}", **values})
        assert self.service.post(events).json()["accepted"] == len(events)

    def held(self) -> dict[str, dict[str, str]]:
        return self.crm.state(id_property="acme_client_id").get("partner_clients", {})

    def has(self, *records: str) -> bool:
        return set(records) <= self.held().keys()

    def pauses(self) -> list[tuple[str, str, str]]:
        return [(pause["reason"], pause["scope"], pause["target"]) for pause in self.service.status()["pauses"]]

    def entries(self) -> dict[str | None, Entry]:
        return {entry.record: entry for entry in self.service.entries()}

    def calls(self) -> int:
        return len(self.crm.ledger.calls("update"))

    def settled(self, outcome: str) -> float:
        text = requests.get(f"{self.service.admin_url}/metrics", timeout=5).text
        line = f'bridge_values_settled_total{{outcome="{outcome}"}} '
        return float(text.partition(line)[2].partition("\n")[0] or 0)

    def is_clean(self) -> bool:
        """Whether nothing waits, is paused or was ever wrong: fit for another test."""
        alive = self.service.process is not None and self.service.process.poll() is None
        return alive and self.service.idle() and self.pauses() == [] and self.service.entries() == []

    def assert_flows(self, *records: str) -> None:
        """These are delivered, nothing is parked, no pause stays, the contract was kept, no thread is lost."""
        assert eventually(lambda: self.has(*records)), (self.pauses(), self.service.entries())
        assert eventually(self.service.idle)
        assert self.service.entries() == []
        assert eventually(lambda: self.pauses() == [])
        assert eventually(lambda: self.service.status()["in_flight"] == 0)
        self.assert_sound()

    def assert_sound(self) -> None:
        violations = self.crm.ledger.violations()
        assert violations == []
        for probe in ("livez", "readyz"):
            assert requests.get(f"{self.service.admin_url}/{probe}", timeout=5).status_code == 200
        assert "Traceback" not in self.service.log.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Bridge]]:
    """A service for many tests, replaced when one leaves it unclean: starting one for each takes too long."""
    current: list[tuple[Any, Bridge]] = []

    def end() -> None:
        for context, _ in current:
            context.close()
        current.clear()

    def bridge() -> Bridge:
        if current and current[0][1].is_clean():
            return current[0][1]
        end()
        context = made(tmp_path_factory.mktemp("bridge"))
        current.append((context, next(context)))
        return current[0][1]

    yield bridge
    end()


def made(folder: Path) -> Iterator[Bridge]:
    (folder / "touchy.py").write_text(TOUCHY, encoding="utf-8")
    crm = Crm(open_properties=False)
    crm.define("partner_services", "company_name")
    options = {"sources": SOURCES, "timeout": "1s", "environ": {"PYTHONPATH": str(folder)}}
    with (
        SandboxServer(crm) as server,
        FaultProxy(server.url) as proxy,
        running(folder, proxy.url, **options) as service,
    ):
        yield Bridge(service, crm, server, proxy)


@pytest.fixture
def bridge(kept: Callable[[], Bridge]) -> Iterator[Bridge]:
    found = kept()
    found.crm.reset()
    yield found
    found.proxy.play = None
    found.crm.on_call = None
    found.crm.behaviour.multi_status = True
    found.crm.behaviour.echo_trace_ids = False
    found.crm.faults.clear()


def ids(count: int, prefix: str) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def comes_through(bridge: Bridge, play: Play, prefix: str) -> None:
    """While the network plays this, delivery pauses and intake goes on; afterwards everything arrives."""
    bridge.proxy.play = play
    bridge.post_all(ids(30, prefix))
    assert eventually(lambda: bridge.pauses() == [("outage", "all", "")]), bridge.service.log.read_text()[-2000:]
    bridge.post(f"{prefix}-meanwhile", name="taken in")
    assert bridge.service.entries() == []
    bridge.proxy.play = None
    bridge.assert_flows(*ids(30, prefix), f"{prefix}-meanwhile")


# --- 429, outages, the network --------------------------------------------------------------------


def test_f15_429_with_retry_after_in_every_form(bridge: Bridge) -> None:
    """It waits as told, within a cap, all objects together; then all is sent without a storm of retries."""
    for number, form in enumerate(["1", "date", "0"]):
        told = formatdate(time.time() + 2, usegmt=True) if form == "date" else form
        calls = bridge.calls()
        bridge.crm.faults.next(Fault("429", retry_after=told))
        bridge.post_all(ids(5, f"f15-{number}-"))
        began = time.monotonic()
        bridge.assert_flows(*ids(5, f"f15-{number}-"))
        assert told == "0" or time.monotonic() - began > 0.5
        assert bridge.calls() - calls == 2


@pytest.mark.parametrize("kind", ["502-html", "503"])
def test_f17_5xx_burst(bridge: Bridge, kind: str) -> None:
    """It pauses with backoff and probes with one record; alive and ready all the time; then all catches up in order."""
    bridge.crm.faults.always(kind)
    prefix = f"f17-{kind}-"
    bridge.post_all(ids(150, prefix))
    assert eventually(lambda: bridge.pauses() == [("outage", "all", "")])
    began, calls = time.monotonic(), bridge.calls()
    bridge.post_all(ids(50, prefix), name="newer")
    time.sleep(0.5)
    # Between 100 ms and 1 s apart.
    assert bridge.calls() - calls <= 2 + (time.monotonic() - began) / 0.1
    assert all(len(call.inputs) == 1 for call in bridge.crm.ledger.calls("update")[3:])
    bridge.crm.faults.clear()
    bridge.assert_flows(*ids(150, prefix))
    assert all(bridge.held()[record]["company_name"] == "newer" for record in ids(50, prefix))


@pytest.mark.heavy
def test_f17_outage_of_a_minute_with_traffic(tmp_path: Path) -> None:
    """Nothing is lost, parked or sent in a storm."""
    for bridge in made(tmp_path):
        bridge.crm.faults.always("503")
        until = time.monotonic() + 60
        while time.monotonic() < until:
            bridge.post_all(ids(200, "f17-"), name=f"at {bridge.posted}")
            time.sleep(0.2)
        assert bridge.calls() <= 2 + 60 / 0.1
        last = bridge.posted
        bridge.crm.faults.clear()
        bridge.assert_flows(*ids(200, "f17-"))
        assert {values["company_name"] for values in bridge.held().values()} == {f"at {last - 200}"}


def test_f18_connection_refused(tmp_path: Path) -> None:
    """Nothing was sent, nothing is in doubt, and all goes as soon as somebody listens."""
    port = free_port()
    crm = Crm(open_properties=False)
    with running(tmp_path, f"http://127.0.0.1:{port}", timeout="1s") as service:
        service.post({"id": "e1", "client": "c1", "at": 1, "name": "a"})
        assert eventually(lambda: "connect" in str(service.status()["pauses"]))
        with SandboxServer(crm, port=port):
            assert eventually(service.idle)
            assert crm.records.state()["partner_clients"] == {"c1": {"company_name": "a"}}
            assert service.entries() == []


def test_f18_connections_that_never_come_up(tmp_path: Path) -> None:
    options = {"timeout": "1s", "drain_timeout": "1s"}
    with blackhole() as port, running(tmp_path, f"http://127.0.0.1:{port}", **options) as service:
        service.post({"id": "e1", "client": "c1", "at": 1, "name": "a"})
        assert eventually(lambda: "connect" in str(service.status()["pauses"]))
        assert service.is_ready()
        assert service.entries() == []


@pytest.mark.parametrize(
    "play",
    [
        plays.hangs,
        plays.resets,
        plays.resets_within(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"),
        plays.resets_within(b"HTTP/1.1 2"),
    ],
    ids=["silence", "reset", "reset in the body", "reset in the status line"],
)
def test_f18_connection_lost(bridge: Bridge, play: Play, request: pytest.FixtureRequest) -> None:
    """The outcome is unknown, and what was sent is sent again."""
    comes_through(bridge, play, f"f18-{request.node.callspec.id}".replace(" ", "-"))


@pytest.mark.parametrize(
    "play",
    [
        plays.drips(b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n" + b'{"results": []}'),
        plays.half_closes,
        plays.pours,
        plays.pours_two_gigabytes,
    ],
    ids=["a byte a second", "half-closed", "endless", "2 GB"],
)
def test_f19_answers_that_do_not_end(bridge: Bridge, play: Play, request: pytest.FixtureRequest) -> None:
    """The total deadline and the byte cap hold, memory stays, and the thread is free again."""
    before = memory_mb(bridge.service)
    comes_through(bridge, play, f"f19-{request.node.callspec.id}".replace(" ", "-"))
    assert memory_mb(bridge.service) - before < 120


def memory_mb(service: Running) -> int:
    """The most that any worker ever held."""
    most = 0
    for pid in service.pids():
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        most = max(most, int(status.partition("VmHWM:")[2].split()[0]) // 1024)
    return most


# --- answers ----------------------------------------------------------------------------------------


def test_f20_a_record_that_alone_provokes_nonsense_stops_nobody(tmp_path: Path) -> None:
    """It shows as retrying, is tried alone at growing intervals, and nobody else pays for it; a person discards it."""
    for bridge in made(tmp_path):
        bridge.crm.faults.poison("f20-poison", kind="html")
        bridge.post_all([*ids(20, "f20-"), "f20-poison"])
        number = 0

        def is_retried() -> bool:
            nonlocal number
            number += 1
            bridge.post(f"f20-other{number}", name="x")  # noqa: B023 (run at once)
            return "f20-poison" in bridge.entries()  # noqa: B023

        assert eventually(is_retried, every_s=0.1)
        assert eventually(lambda: bridge.has(*ids(20, "f20-"), f"f20-other{number}"))  # noqa: B023
        assert bridge.entries()["f20-poison"].state == "retrying"
        assert eventually(lambda: bridge.pauses() == [])  # noqa: B023
        assert len([c for c in bridge.crm.ledger.calls("update") if c.fault == "html"]) <= 20
        bridge.assert_sound()


def test_f24_unknown_archived_and_merged_records(bridge: Bridge) -> None:
    """Each goes the way its source says: parked, waited for, ignored; a second name of a record is delivered."""
    records = bridge.crm.records
    records.archive("partner_clients", "f24-archived", id_property="acme_client_id")
    records.add("partner_clients", "f24-survivor", id_property="acme_client_id")
    records.merge("partner_clients", "f24-second", "f24-survivor", id_property="acme_client_id", silent=False)
    unknown = bridge.settled("unknown")
    bridge.post_all([*ids(5, "f24-"), "f24-archived", "unknown-f24", "f24-survivor", "f24-second"])
    bridge.post("unknown-waited", source="waiting", name="w")
    bridge.post("unknown-ignored", source="careless", name="i")
    assert eventually(lambda: set(bridge.entries()) == {"f24-archived", "unknown-f24", "unknown-waited"})
    assert eventually(lambda: bridge.settled("unknown") == unknown + 1)
    states = {record: (entry.state, entry.category) for record, entry in bridge.entries().items()}
    assert states == {
        "f24-archived": ("parked", "OBJECT_NOT_FOUND"),
        "unknown-f24": ("parked", "OBJECT_NOT_FOUND"),
        "unknown-waited": ("retrying", "OBJECT_NOT_FOUND"),
    }
    assert bridge.has(*ids(5, "f24-"), "f24-survivor", "f24-second")
    # What is waited for is delivered once it exists, what is parked comes back with a new event, merged.
    records.add("partner_clients", "unknown-waited", "unknown-f24", id_property="acme_client_id")
    records.add("partner_clients", "f24-archived", id_property="acme_client_id")
    bridge.post("unknown-f24", notes="came later")
    bridge.post("f24-archived", name="restored")
    bridge.assert_flows("unknown-waited", "unknown-f24", "f24-archived")
    assert bridge.held()["unknown-f24"] == {"company_name": "name of unknown-f24", "notes": "came later"}
    assert bridge.held()["f24-archived"] == {"company_name": "restored"}
    assert bridge.calls() <= 25


def test_f28_one_record_twice_in_a_batch_window(bridge: Bridge) -> None:
    """Its changes are merged into one input; HubSpot refuses a call that names a record twice."""
    events = [
        {"id": "f28-1", "client": "f28", "at": 1, "name": "first", "notes": "n"},
        {"id": "f28-2", "client": "f28", "at": 2, "name": "second"},
        {"id": "f28-3", "client": "f28", "at": 3, "tier": "gold"},
    ]
    assert bridge.service.post(events).json()["accepted"] == 3
    bridge.assert_flows("f28")
    assert bridge.held()["f28"] == {"company_name": "second", "notes": "n", "tier": "gold"}
    assert [len(call.inputs) for call in bridge.crm.ledger.calls("update")] == [1]


# --- names, certificates, other ways out --------------------------------------------------------------

#: Answers look-ups of crm.test as the file beside it says; everything else goes the usual way.
RESOLVER = """\
import pathlib, socket

usual = socket.getaddrinfo
told = pathlib.Path(__file__).with_name("resolver.txt")


def getaddrinfo(host, port, *more, **options):
    if host != "crm.test":
        return usual(host, port, *more, **options)
    mood = told.read_text()
    if mood == "failure":
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    if mood == "IPv6 dead":
        found.insert(0, (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)))
    return found


socket.getaddrinfo = getaddrinfo
"""


def test_f29_names_that_do_not_resolve_flap_or_lead_to_a_dead_ipv6(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(RESOLVER, encoding="utf-8")
    told = tmp_path / "resolver.txt"
    told.write_text("failure", encoding="utf-8")
    crm = Crm(open_properties=False)
    with (
        SandboxServer(crm) as server,
        running(
            tmp_path, f"http://crm.test:{server.port}", timeout="2s", environ={"PYTHONPATH": str(tmp_path)}
        ) as service,
    ):
        for number, mood in enumerate(["IPv6 dead", "well"]):
            told.write_text("failure", encoding="utf-8")
            record = f"c{number}"
            if number:  # a connection that is open needs no look-up
                service.stop()
                service.start()
            service.post({"id": f"e{number}", "client": record, "at": 1, "name": "a"})
            assert eventually(lambda: "Temporary failure in name resolution" in str(service.status()["pauses"]))
            assert crm.ledger.calls() == crm.ledger.calls()[:number]
            told.write_text(mood, encoding="utf-8")
            assert eventually(service.idle)
            assert record in crm.records.state()["partner_clients"]
        assert service.entries() == []


@dataclass(frozen=True)
class Certificates:
    """Files of an authority of our own, and what it signed."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Certificates:
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("the openssl binary is not installed")
        made = cls(folder)
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        run = [openssl, "req", "-x509", *key, "-days", "2", "-subj", "/CN=Own CA"]
        cls._run([*run, "-keyout", f"{folder}/ca.key", "-out", f"{folder}/ca.pem"])
        for name, host, days in (
            ("good", "IP:127.0.0.1", 2),
            ("wrong", "DNS:elsewhere", 2),
            ("expired", "IP:127.0.0.1", -1),
        ):
            (folder / f"{name}.ext").write_text(f"subjectAltName={host}\n", encoding="utf-8")
            cls._run(
                [
                    openssl,
                    "req",
                    *key,
                    "-subj",
                    f"/CN={name}",
                    "-keyout",
                    f"{folder}/{name}.key",
                    "-out",
                    f"{folder}/csr",
                ]
            )
            signed_by = ["-CA", f"{folder}/ca.pem", "-CAkey", f"{folder}/ca.key", "-CAcreateserial", "-days", str(days)]
            extra = ["-extfile", f"{folder}/{name}.ext", "-out", f"{folder}/{name}.pem"]
            cls._run([openssl, "x509", "-req", "-in", f"{folder}/csr", *signed_by, *extra])
        return made

    @staticmethod
    def _run(command: list[str]) -> None:
        subprocess.run(command, check=True, capture_output=True)

    def context(self, name: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return context


@pytest.mark.parametrize("wrong", ["wrong", "expired", "unknown authority"])
def test_f29_tls_that_is_not_in_order_is_never_put_up_with(tmp_path: Path, wrong: str) -> None:
    """The token is not sent, delivery pauses and says why; when it is in order, everything arrives."""
    certificates = Certificates.make(tmp_path)
    good = certificates.context("good")
    bad = good if wrong == "unknown authority" else certificates.context(wrong)
    ca_file = "" if wrong == "unknown authority" else f"\n  ca_file: {tmp_path}/ca.pem"
    crm = Crm(open_properties=False)
    with (
        SandboxServer(crm) as server,
        FaultProxy(server.url, context=bad) as proxy,
        running(tmp_path, proxy.url, timeout="2s", credential="token: {file: crm.token}" + ca_file) as service,
    ):
        service.post({"id": "e1", "client": "c1", "at": 1, "name": "a"})
        assert eventually(lambda: "tls: " in str(service.status()["pauses"]))
        said = {"wrong": "mismatch", "expired": "expired", "unknown authority": "certificate verify failed"}
        [pause] = service.status()["pauses"]
        assert said[wrong] in pause["detail"]
        assert proxy.heads == []
        assert service.is_ready()
        if ca_file:
            proxy.context = good
            assert eventually(service.idle)
            assert crm.records.state()["partner_clients"] == {"c1": {"company_name": "a"}}
        assert service.entries() == []


def test_f30_redirects_to_another_host_are_refused_and_never_get_the_token(bridge: Bridge) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0.2)
        url = f"http://localhost:{elsewhere.getsockname()[1]}/crm/v3/objects/partner_clients/batch/update"
        for status in (302, 308):
            redirect = f"HTTP/1.1 {status} Moved\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n".encode()
            bridge.proxy.play = plays.sends(redirect)
            bridge.post_all(ids(3, f"f30-{status}-"))
            assert eventually(lambda: bridge.pauses() == [("misconfigured", "object_type", "partner_clients")])
            assert f"HTTP {status}" in bridge.service.status()["pauses"][0]["detail"]
            bridge.proxy.play = None
            bridge.assert_flows(*ids(3, f"f30-{status}-"))
        with pytest.raises(TimeoutError):
            elsewhere.accept()


def test_f30_proxies_and_netrc_of_the_environment_are_not_used(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login evil password evil\n", encoding="utf-8")
    (tmp_path / "netrc").chmod(0o600)
    crm = Crm(open_properties=False)
    with socket.create_server(("127.0.0.1", 0)) as elsewhere, SandboxServer(crm) as server:
        elsewhere.settimeout(0.2)
        proxy = f"http://127.0.0.1:{elsewhere.getsockname()[1]}"
        names = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
        environ = {"NETRC": str(tmp_path / "netrc"), "NO_PROXY": "", "no_proxy": "", **dict.fromkeys(names, proxy)}
        with FaultProxy(server.url) as between, running(tmp_path, between.url, environ=environ) as service:
            service.post({"id": "e1", "client": "c1", "at": 1, "name": "a"})
            assert eventually(service.idle)
            assert crm.records.state()["partner_clients"] == {"c1": {"company_name": "a"}}
            assert between.heads
            assert all("Authorization: Bearer a-token-for-the-sandbox" in head for head in between.heads)
        with pytest.raises(TimeoutError):
            elsewhere.accept()


# --- the order of events --------------------------------------------------------------------------------


def test_f34_an_older_event_after_a_newer_one_changes_nothing(bridge: Bridge) -> None:
    """Within a batch, after the newer value was delivered, and while the newer one is retried; it is counted."""
    before = bridge.settled("superseded")
    start = 1_700_000_000
    bridge.post("f34", at=start + 2_000, name="newer", tier="gold")
    bridge.post("f34", at=start + 1_000, name="older", notes="only here")
    bridge.assert_flows("f34")
    assert eventually(lambda: "notes" in bridge.held()["f34"])
    assert bridge.held()["f34"] == {"company_name": "newer", "tier": "gold", "notes": "only here"}
    bridge.post("f34", at=start + 1_500, name="older too")
    bridge.assert_flows("f34")
    assert bridge.held()["f34"]["company_name"] == "newer"
    bridge.crm.faults.next("503")
    bridge.post("f34", at=start + 4_000, name="newest")
    assert eventually(lambda: any(call.status == 503 for call in bridge.crm.ledger.calls("update")))
    bridge.post("f34", at=start + 3_000, name="in between")
    bridge.assert_flows("f34")
    assert bridge.held()["f34"]["company_name"] == "newest"
    assert bridge.settled("superseded") - before == 3
    values = [applied.value for applied in bridge.crm.ledger.applied() if applied.property == "company_name"]
    assert "older too" not in values
    assert "in between" not in values


def test_f35_time_stamps_that_are_equal_missing_zoned_or_absurd(bridge: Bridge) -> None:
    """Equal: the later arrival wins. Missing, ahead of arrival or before 2000: newest at its arrival. Zones are
    honoured.
    """
    moment = "2026-03-01T12:00:00Z"
    orders: dict[str, list[Any]] = {
        "equal": [moment, moment],
        "missing": [moment, None],
        "zones": ["2026-03-01T13:30:00+02:00", moment],  # 11:30 UTC, then 12:00 UTC
        "zones-late": [moment, "2026-03-01T13:30:00+02:00"],
        "year-9999": ["9999-12-31T23:59:59Z", None],
        "year-9999-last": [moment, "9999-12-31T23:59:59Z"],
        "negative": [-86_400, moment],
        "negative-late": [moment, -86_400],
        "epoch-units": [1_772_366_400, 1_772_366_401_000],
    }
    for record, times in orders.items():
        for place, at in enumerate(times):
            event = {"id": f"f35-{record}-{place}", "client": f"f35-{record}", "name": f"{place}"}
            answer = bridge.service.post(event | ({} if at is None else {"at": at}))
            assert answer.json()["accepted"] == 1, answer.text
    bridge.assert_flows(*(f"f35-{record}" for record in orders))
    first_wins = {"zones-late", "negative"}
    for record in orders:
        assert bridge.held()[f"f35-{record}"]["company_name"] == ("0" if record in first_wins else "1"), record
    # A date in the year 9999 has frozen nothing.
    bridge.post("f35-year-9999-last", at=time.time(), name="now")
    bridge.assert_flows()
    assert bridge.held()["f35-year-9999-last"]["company_name"] == "now"


# --- poison --------------------------------------------------------------------------------------------


def test_f47_an_event_that_makes_the_mapping_raise_costs_only_itself(bridge: Bridge) -> None:
    """It is parked with the error, the others of its webhook go on, and nothing restarts."""
    pids = bridge.service.pids()
    odd: list[Any] = [10, "text", None, [], {}, 1e308, True, "\u0000", "\ud83d", 10**400]
    events = [{"id": f"f47-{at}", "client": f"f47-{at}", "name": value} for at, value in enumerate(odd)]
    events += [{"id": f"f47-good{at}", "client": f"f47-good{at}", "name": at} for at in range(1, 9)]
    body = b"[" + b",".join(poisonous(event) for event in events) + b"]"
    answer = bridge.service.post(body, source="own")
    if answer.status_code == 400:  # a number of so many digits is not taken: the sender is told
        events = [event for event in events if event["name"] != 10**400]
        body = b"[" + b",".join(poisonous(event) for event in events) + b"]"
        answer = bridge.service.post(body, source="own")
    assert answer.status_code == 202, answer.text
    counts = answer.json()
    assert counts["accepted"] >= 8
    assert counts["parked"] >= 5
    assert eventually(lambda: bridge.has(*(f"f47-good{at}" for at in range(1, 9))))
    assert eventually(bridge.service.idle)
    parked = bridge.service.entries()
    # The one more is an event that is accepted but for values that are not valid.
    assert len(parked) == counts["parked"] + 1
    assert all(entry.message for entry in parked)
    assert bridge.service.post(body, source="own").json()["duplicates"] == len(events)
    assert bridge.service.pids() == pids
    bridge.assert_sound()


def poisonous(event: dict[str, Any]) -> bytes:
    import json

    return json.dumps(event).encode()


def test_f47_unusual_payloads_never_end_in_an_error_of_ours(bridge: Bridge) -> None:
    """Whatever stands where a value is expected: it is taken, parked or refused, never a 500."""
    deep: Any = "x"
    for _ in range(40):
        deep = [deep]
    odd: list[Any] = [deep, {"a": deep}, 1e400, -0.0, 2**70, "x" * 70_000, "\u0000", "\u202e", "", " ", [1, [2]], {}]
    statuses = set()
    for at, value in enumerate(odd):
        for name in ("name", "revenue", "tier", "at", "client"):
            event = {"id": f"f47-{at}-{name}", "client": f"f47u-{at}-{name}", "name": "a"} | {name: value}
            statuses.add(bridge.service.post(poisonous(event)).status_code)
    assert statuses <= {202, 400}
    assert eventually(bridge.service.idle)
    bridge.post("f47-after", name="well")
    assert eventually(lambda: bridge.has("f47-after"))
    bridge.assert_sound()
