"""A primary and its synchronous standby under two running replicas: what is lost with either, and for how long.

Partners go on sending all the while. `journal.url` names both servers, as libpq has it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from bridge.sandbox import Crm, SandboxServer
from tests.history import TIMEOUT_S, History, Partner, check
from tests.postgres import PASSWORD, ROLE, Server, serving
from tests.running import Running, eventually

SENDERS = 4


@dataclass
class Pair:
    """Two servers, of which the second follows the first, and two replicas of the service."""

    primary: Server
    standby: Server
    services: list[Running]
    crm: Crm
    history: History

    def unready(self) -> bool:
        return all(status(service) == 503 for service in self.services)

    def refusing(self) -> bool:
        """Whether a webhook is answered 503, long before its sender gives up."""
        with contextlib.suppress(requests.Timeout):
            answer = self.services[0].post({"id": "late", "client": "late", "name": "late"}, timeout_s=1.0)
            return answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
        return False

    def ready(self) -> bool:
        return all(service.is_ready() for service in self.services)

    def synchronous(self) -> bool:
        """Whether commits wait for the standby, and it is there."""
        with self.primary.connect() as connection:
            found = connection.execute("SELECT sync_state FROM pg_stat_replication").fetchall()
        return found == [("sync",)]

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        partner = Partner(self.services, self.history, seed=1)
        senders = [threading.Thread(target=partner.run, args=(number,)) for number in range(SENDERS)]
        try:
            for sender in senders:
                sender.start()
            time.sleep(1)
            yield
            time.sleep(1)
        finally:
            partner.stopping.set()
            for sender in senders:
                sender.join(40)

    @contextlib.contextmanager
    def noted(self, what: str) -> Iterator[None]:
        """The outcome of calls meanwhile is unknown."""
        began = time.monotonic()
        yield
        self.history.kills.append((began, time.monotonic(), what))


def status(service: Running) -> int | None:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"{service.admin_url}/readyz", timeout=3).status_code
    return None


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    crm = Crm(open_properties=False)
    crm.behaviour.latency_s = 0.02
    with serving() as primary, serving(primary=primary) as standby, SandboxServer(crm) as sandbox:
        primary.run("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        primary.run("SELECT pg_reload_conf()")
        database = primary.fresh_database(migrated=False).rpartition("/")[2]
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        url = f"postgresql://{ROLE}:{PASSWORD}@{hosts}/{database}?target_session_attrs=read-write"
        services = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            services.append(
                Running(tmp_path / name, sandbox.url, journal_url=url, timeout=f"{TIMEOUT_S}s", drain_timeout="4s")
            )
        made = Pair(primary, standby, services, crm, History())
        assert eventually(made.synchronous)
        try:
            for service in services:
                service.start()
            yield made
        finally:
            for service in services:
                if service.process is not None and service.process.poll() is None:
                    service.kill_all()


@pytest.mark.heavy
def test_a_synchronous_standby_is_lost_and_then_takes_over(pair: Pair) -> None:
    """While no standby confirms, nothing is acknowledged; what was acknowledged is there when the primary is lost."""
    with pair.sending():
        with pair.noted("standby"):
            pair.standby.stop("immediate")
            assert eventually(pair.unready, within_s=5)
            assert eventually(pair.refusing)
            pair.standby.start()
            assert eventually(pair.ready)
        assert eventually(pair.synchronous)
        with pair.noted("primary"):
            pair.primary.stop("kill")
            assert eventually(pair.unready, within_s=5)
            pair.standby.run("SELECT pg_promote()")
            assert eventually(pair.ready)
            calls = len(pair.crm.ledger.calls("update"))
            assert eventually(lambda: len(pair.crm.ledger.calls("update")) > calls)
    assert eventually(pair.services[0].idle, within_s=40)
    assert check(pair.history, pair.crm, pair.services[0]) == []
    assert len(pair.history.of("acknowledged")) > 50
    for service in pair.services:
        assert service.stop() == 0
        assert not service.log_has("Traceback")
