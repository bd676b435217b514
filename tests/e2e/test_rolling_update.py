"""A rolling update on PostgreSQL under load: the next version migrates and serves beside today's."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psycopg

from bridge.sandbox import Crm, SandboxServer
from tests.history import TIMEOUT_S, History, Partner, check
from tests.next_version import NEXT
from tests.postgres import fresh_database
from tests.running import Running, eventually

SENDERS = 4


def version(url: str) -> str:
    with psycopg.connect(url) as connection:
        [(found,)] = connection.execute("SELECT version_num FROM alembic_version").fetchall()
        return str(found)


def test_the_next_version_migrates_and_serves_beside_this_one_under_load(tmp_path: Path) -> None:
    """Both take webhooks; whichever delivers, nothing is lost, refused or doubled. Then the update is taken back."""
    url = fresh_database(migrated=False)
    crm = Crm(open_properties=False)
    services = []
    with SandboxServer(crm) as sandbox:
        for name, module in (("old", "bridge"), ("new", "tests.next_version")):
            (tmp_path / name).mkdir()
            services.append(
                Running(
                    tmp_path / name,
                    sandbox.url,
                    journal_url=url,
                    module=module,
                    timeout=f"{TIMEOUT_S}s",
                    drain_timeout="5s",
                )
            )
        old, new = services
        history = History()
        both: list[Running] = [old]
        partner = Partner(both, history, seed=1)
        partner._services = both  # grows
        senders = [threading.Thread(target=partner.run, args=(number,)) for number in range(SENDERS)]
        try:
            old.start()
            assert version(url) != NEXT
            for sender in senders:
                sender.start()
            time.sleep(0.5)
            new.start()
            assert version(url) == NEXT
            both.append(new)
            time.sleep(1)  # the old one delivers on the new one's schema
            stop(old, both, history)
            time.sleep(1)  # now the new one does
            old.start()  # and its pod may be moved meanwhile, or the update be taken back
            assert version(url) == NEXT
            both.append(old)
            stop(new, both, history)
            time.sleep(1)
            partner.stopping.set()
            for sender in senders:
                sender.join(30)
            assert eventually(old.idle)
            assert old.run("events", "list").returncode == 0
            assert check(history, crm, old) == []
            assert old.stop() == 0
        finally:
            partner.stopping.set()
            for service in services:
                if service.process is not None and service.process.poll() is None:
                    service.kill_all()
    assert len(history.of("acknowledged")) > 50
    assert {"Traceback", "UndefinedColumn", "journal failed"} & words(old, new) == set()


def stop(service: Running, serving: list[Running], history: History) -> None:
    """End one of two; a call that does not end in time is cut."""
    serving.remove(service)
    began = time.monotonic()
    assert service.stop() == 0
    history.kills.append((began, time.monotonic(), "stop"))


def words(*services: Running) -> set[str]:
    found = ("Traceback", "UndefinedColumn", "journal failed")
    return {word for word in found for service in services if service.log_has(word)}
