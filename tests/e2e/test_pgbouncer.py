"""The service behind PgBouncer in transaction mode: nothing of ours lives in a session."""

from __future__ import annotations

import contextlib
from pathlib import Path

import orjson
import psycopg
import pytest
import requests

from bridge.sandbox import Crm, SandboxServer
from tests.bouncer import bouncing
from tests.postgres import fresh_database, shared
from tests.running import Running, eventually, running

EVENTS = 120


def events(name: str) -> list[dict[str, object]]:
    return [
        {"id": f"{name}{number}", "client": f"c{number % 40}", "at": 1_700_000_000 + number, "name": f"{name} {number}"}
        for number in range(EVENTS)
    ]


@pytest.mark.heavy
def test_everything_works_with_fewer_connections_than_users(tmp_path: Path) -> None:
    """Two workers, eight senders and the commands share two connections; when others take both, it is told and over
    with them.
    """
    crm = Crm(open_properties=False)
    database = fresh_database(migrated=False).rpartition("/")[2]
    with SandboxServer(crm) as sandbox, bouncing(shared(), pool=2, wait_s=2) as port:
        url = shared().url(database, port=port)
        with running(tmp_path, sandbox.url, journal_url=url, workers=2) as service:
            answers = service.post_all([*events("a"), *events("a")])
            assert {answer and answer.status_code for answer in answers} == {202}
            taken = [answer.json() for answer in answers if answer is not None]
            assert sum(one["accepted"] for one in taken) == sum(one["duplicates"] for one in taken) == EVENTS
            assert eventually(service.idle)
            held = crm.state(id_property="acme_client_id")["partner_clients"]
            assert {value["company_name"] for value in held.values()} == {f"a {number}" for number in range(80, 120)}
            acts(service)
            others_take_all(service, url)
        assert service.log_has("this process delivers", times=1)
        assert not service.log_has("Traceback")
        assert not service.log_has("prepared statement")


def acts(service: Running) -> None:
    """Commands, which open the journal beside the service."""
    assert service.run("pause").returncode == 0
    service.post(events("b"))
    assert service.run("resume").returncode == 0
    assert eventually(service.idle)
    assert service.run("resync", "--all", "--yes").returncode == 0
    assert eventually(service.idle)
    listed = service.run("events", "list", "--json")
    assert len(orjson.loads(listed.stdout)) == 2 * EVENTS


def others_take_all(service: Running, url: str) -> None:
    """Both connections stand in other programs' transactions; PgBouncer lets nobody wait for more than two seconds."""
    with contextlib.ExitStack() as others:
        for _ in range(2):
            other = others.enter_context(psycopg.connect(url, prepare_threshold=None))
            other.execute("SELECT 1")  # its transaction is open now

        def refused() -> bool:
            answer = service.post({"id": "late", "client": "late", "at": 1_700_000_000, "name": "late"})
            return answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0

        assert eventually(refused)
        assert requests.get(f"{service.admin_url}/readyz", timeout=5).status_code == 503
    assert eventually(service.is_ready)
    assert service.post({"id": "late", "client": "late", "at": 1_700_000_000, "name": "late"}).status_code == 202
    assert eventually(service.idle)
