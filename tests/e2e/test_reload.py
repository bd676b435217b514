"""SIGHUP: the configuration is read anew while webhooks are answered and delivered, or refused whole."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from bridge.sandbox import Crm, SandboxServer
from tests.running import ACME, Running, eventually, running


def reload(service: Running) -> None:
    assert service.process is not None
    service.process.send_signal(signal.SIGHUP)


def metric(service: Running, name: str) -> float:
    text = requests.get(f"{service.admin_url}/metrics", timeout=5).text
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


def held(crm: Crm, record: str) -> dict[str, str]:
    return crm.state(id_property="acme_client_id").get("partner_clients", {}).get(record, {})


def event(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"e{number}", "at": time.time(), "client": f"c{number}", "name": "A", "notes": "n", **more}


@pytest.fixture
def crm() -> Iterator[SandboxServer]:
    with SandboxServer(Crm()) as server:
        yield server


@pytest.mark.parametrize("workers", [1, 2])
def test_a_reload_under_load_refuses_nothing_and_takes_effect(tmp_path: Path, crm: SandboxServer, workers: int) -> None:
    service = Running(tmp_path, crm.url, workers=workers)
    service.start()
    try:
        stop = threading.Event()
        codes: list[int] = []
        numbers = iter(range(1_000_000))

        def load() -> None:
            with requests.Session() as session:
                while not stop.is_set():
                    codes.append(service.post(event(next(numbers)), session=session).status_code)

        senders = [threading.Thread(target=load) for _ in range(4)]
        with socket.create_connection(("127.0.0.1", service.port)) as kept:
            for sender in senders:
                sender.start()
            time.sleep(0.5)
            service.sources = ACME.replace("notes: notes", "notes: {constant: from the new mapping}")
            service.batch_size = 50
            service.configure()
            reload(service)
            assert eventually(lambda: service.log_has("the configuration was reloaded", times=workers))
            time.sleep(0.5)
            stop.set()
            for sender in senders:
                sender.join()
            kept.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")  # a connection from before
            assert kept.recv(100).startswith(b"HTTP/1.1 200")
        assert set(codes) == {202}
        assert len(codes) > 50
        late = event(2_000_000)
        assert service.post(late).status_code == 202
        assert eventually(service.idle)
        assert held(crm.crm, late["client"])["notes"] == "from the new mapping"
        assert held(crm.crm, "c0")["notes"] == "n"
        assert len(crm.crm.state(id_property="acme_client_id")["partner_clients"]) == len(codes) + 1
        assert metric(service, "bridge_config_last_reload_successful") == 1
        assert service.log_has("delivery goes on with the new configuration")
    finally:
        assert service.stop() == 0


def test_a_configuration_with_problems_is_refused_whole_and_the_old_one_stays(
    tmp_path: Path, crm: SandboxServer
) -> None:
    service = Running(tmp_path, crm.url)
    service.start()
    try:
        service.sources = ACME.replace("notes: notes", "notes: '[[['").replace("tier: {from", "tier: {form")
        service.configure()
        reload(service)
        assert eventually(lambda: service.log_has("the configuration was not reloaded"))
        text = service.log.read_text(encoding="utf-8")
        assert "sources.acme.properties.notes" in text  # all of its problems, not the first
        assert "sources.acme.properties.tier" in text
        assert metric(service, "bridge_config_last_reload_successful") == 0
        assert service.post(event(1)).status_code == 202
        assert eventually(lambda: held(crm.crm, "c1").get("notes") == "n")
        service.sources = ACME
        service.configure()
        reload(service)
        assert eventually(lambda: metric(service, "bridge_config_last_reload_successful") == 1)
    finally:
        assert service.stop() == 0


def test_delivery_moves_to_another_crm_and_what_needs_a_restart_is_told(tmp_path: Path, crm: SandboxServer) -> None:
    with SandboxServer(Crm()) as other:
        service = Running(tmp_path, crm.url)
        service.start()
        try:
            assert service.post(event(1)).status_code == 202
            assert eventually(lambda: held(crm.crm, "c1") != {})
            service.crm_url = other.url
            service.drain_timeout = "11s"
            service.configure()
            reload(service)
            assert eventually(lambda: service.log_has("this takes effect at a restart"))
            assert "server.drain_timeout" in service.log.read_text(encoding="utf-8")
            assert service.post(event(2)).status_code == 202
            assert eventually(lambda: held(other.crm, "c2") != {})
            assert held(crm.crm, "c2") == {}
        finally:
            assert service.stop() == 0


def test_f14_a_storm_of_sighups_delays_neither_requests_nor_the_end(tmp_path: Path, crm: SandboxServer) -> None:
    service = Running(tmp_path, crm.url)
    service.start()
    for _ in range(100):
        reload(service)
        time.sleep(0.002)
    worker = service.pids()[1]
    assert len(list(Path(f"/proc/{worker}/task").iterdir())) < 30  # one thread reloads
    assert service.post(event(1)).status_code == 202
    reload(service)
    assert service.stop(within_s=15) == 0
    assert not service.log_has("Traceback")


OWN = """
import time
from marshmallow import Schema, fields
time.sleep({})
class Client(Schema):
    company_name = fields.Str(data_key="name")
"""


def descendants(pid: int) -> set[int]:
    """The processes that it started, and those that these did."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text(encoding="ascii").split():
            found |= {int(child)} | descendants(int(child))
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_does_not_wait_for_a_schema_that_a_reload_imports(tmp_path: Path, number: signal.Signals) -> None:
    """However long that takes, nothing of it is left, and the workers read the change meanwhile."""
    module = tmp_path / "own_beside.py"
    module.write_text(OWN.format(0), encoding="utf-8")
    source = ACME[: ACME.index("    properties:")] + "    schema: own_beside:Client\n"
    with running(tmp_path, "http://127.0.0.1:9", sources=source) as service:
        assert service.process is not None
        before = descendants(service.process.pid)
        module.write_text(OWN.format(25), encoding="utf-8")
        reload(service)
        both = 2  # the master and the worker import it
        assert eventually(lambda: len(descendants(service.pids()[0]) - before) == both)
        started = descendants(service.process.pid)
        service.process.send_signal(number)
        assert service.process.wait(8) == 0
        assert eventually(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in started), within_s=2)
        assert not service.log_has("Traceback")
