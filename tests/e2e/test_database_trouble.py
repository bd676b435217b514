"""Trouble with PostgreSQL under a running service: intake says so and recovers by itself, nothing is lost or doubled.

Partners go on sending all the while, a new event every few milliseconds; what is refused 503 they send again.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
import requests

from bridge.journal.event_log import EventFilter
from bridge.journal.store import Journal
from bridge.model import SystemClock
from bridge.sandbox import Crm, SandboxServer
from bridge.settings import Journal as JournalSettings
from tests.postgres import ROLE, Server, serving
from tests.proxies import Cut, TcpProxy
from tests.running import Running, eventually

SENDERS = 4
#: Connections of the whole server, three of them reserved for superusers.
CONNECTIONS = 30


@dataclass
class Sent:
    """One event and the answers it got: status (None: no answer), Retry-After, seconds it took."""

    id: str
    answers: list[tuple[int | None, str | None, float]] = field(default_factory=list)


@dataclass
class World:
    """One service that reaches its database through a proxy, one CRM, and partners that send."""

    server: Server
    proxy: TcpProxy
    service: Running
    crm: Crm
    journal: Journal  # past the proxy
    numbers: Iterator[int] = field(default_factory=itertools.count)
    sent: list[Sent] = field(default_factory=list)

    def post(self, record: str | None = None) -> Sent:
        """One new event for a record of its own, sent until it is taken."""
        number = next(self.numbers)
        event = Sent(f"e{number}")
        self.sent.append(event)
        payload = {"id": event.id, "client": record or f"c{number}", "at": time.time(), "name": f"name {event.id}"}
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            began = time.monotonic()
            try:
                answer = self.service.post(payload, delivery_id=f"msg_{event.id}")
                event.answers.append((answer.status_code, answer.headers.get("Retry-After"), time.monotonic() - began))
            except requests.RequestException:
                event.answers.append((None, None, time.monotonic() - began))
            if event.answers[-1][0] == 202:
                break
            time.sleep(0.1)
        return event

    @contextlib.contextmanager
    def sending(self, *, pause_s: float = 0.02) -> Iterator[None]:
        """Partners send meanwhile."""
        stopping = threading.Event()

        def run() -> None:
            while not stopping.wait(pause_s):
                self.post()

        with ThreadPoolExecutor(SENDERS) as pool:
            runs = [pool.submit(run) for _ in range(SENDERS)]
            time.sleep(0.3)
            try:
                yield
            finally:
                time.sleep(0.3)
                stopping.set()
                for one in runs:
                    one.result(60)

    def ready(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.service.admin_url}/readyz", timeout=3).status_code == 200
        return False

    def unready(self) -> bool:
        """Whether the service says by itself that it takes nothing."""
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.service.admin_url}/readyz", timeout=3).status_code == 503
        return False

    def idle(self) -> bool:
        return not self.journal.due(limit=1, exclude=()) and self.count("desired WHERE state = 0") == 0

    def answers(self) -> Counter[int | None]:
        return Counter(status for event in self.sent for status, _, _ in event.answers)

    def check(self) -> None:
        """All is well again: everything was taken once and is in the CRM, sent once."""
        assert eventually(self.ready)
        assert eventually(self.idle, within_s=40)
        for event in self.sent:
            assert event.answers[-1][0] == 202, event
            for status, retry_after, took_s in event.answers:
                assert status in {202, 503}, event
                assert took_s < 25
                assert status != 503 or (retry_after is not None and int(retry_after) > 0), event
        known = {logged.event: logged.outcome for logged in self.journal.events(EventFilter())}
        assert {event.id for event in self.sent} <= known.keys()
        assert {known[event.id] for event in self.sent} == {"delivered"}
        times = Counter(one.value for one in self.crm.ledger.applied() if one.property == "company_name")
        assert [value for value, number in times.items() if number > 1] == [], "they were sent again"
        assert {f"name {event.id}" for event in self.sent} <= times.keys()
        assert self.crm.ledger.violations() == []
        assert self.count("records WHERE doubt_us IS NOT NULL") == 0, "they would be sent once more"

    def count(self, what: str) -> int:
        with self.server.connect(self.service.journal_url.rpartition("/")[2]) as connection:
            [(found,)] = connection.execute(f"SELECT count(*) FROM {what}".encode()).fetchall()
            return int(found)

    def admin(self, statement: str) -> None:
        self.server.run(statement)


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    crm = Crm(open_properties=False)
    crm.behaviour.latency_s = 0.02
    with serving({"max_connections": str(CONNECTIONS)}) as server, SandboxServer(crm) as sandbox:
        url = server.fresh_database()
        with TcpProxy(server.port) as proxy:
            through = server.url(url.rpartition("/")[2], port=proxy.port)
            service = Running(
                tmp_path_factory.mktemp("service"), sandbox.url, journal_url=through, flush_interval="20ms"
            )
            journal = Journal(settings=JournalSettings(url=url), clock=SystemClock())
            service.start()
            try:
                yield World(server, proxy, service, crm, journal)
                assert service.stop() == 0
            finally:
                journal.close()
                if service.process is not None and service.process.poll() is None:
                    service.kill_all()


@pytest.fixture
def world(standing: World) -> Iterator[World]:
    """The same service for every trouble: none may leave it worse than it was, or need its restart."""
    standing.sent.clear()
    pids = standing.service.pids()
    yield standing
    standing.proxy.stalled = standing.proxy.refusing = False
    standing.proxy.delay_s = 0.0
    assert standing.service.pids() == pids, "no process ended"


@pytest.mark.parametrize("mode", [pytest.param("fast", marks=pytest.mark.heavy), "immediate"])
def test_the_database_is_restarted(world: World, mode: Any) -> None:
    """As for maintenance, and as in a failover: the server is gone for a second and recovers."""
    with world.sending():
        world.server.stop(mode)
        assert eventually(world.unready, within_s=5)
        time.sleep(1.5)
        world.server.start()
        assert eventually(world.ready)
    assert world.answers()[503] > 0
    world.check()


@pytest.mark.parametrize("forwarded", [False, True], ids=["undone", "done"])
@pytest.mark.parametrize(
    "within",
    [b"INSERT INTO events", b"THEN doubt_n ELSE n END", b"INSERT INTO calls"],
    ids=["append", "take", "settle"],
)
def test_the_connection_is_lost_at_a_commit(world: World, within: bytes, forwarded: bool) -> None:
    """Whether the database had committed or not: what was asked is done once, and nobody is told of it."""
    world.proxy.cut_at(Cut(within, forwarded=forwarded), times=2)
    cuts = len(world.proxy.cut_short)
    with world.sending():
        assert eventually(lambda: len(world.proxy.cut_short) == cuts + 2)
    assert world.answers().keys() == {202}
    world.check()


@pytest.mark.heavy
def test_all_connections_are_reset_again_and_again(world: World) -> None:
    with world.sending():
        for _ in range(12):
            world.proxy.cut()
            time.sleep(0.15)
    world.check()


@pytest.mark.heavy
def test_all_backends_are_terminated_by_an_administrator(world: World) -> None:
    with world.sending():
        for _ in range(8):
            world.admin(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}' AND state IS NOT NULL"
            )
            time.sleep(0.2)
    world.check()


@pytest.mark.heavy
def test_the_database_refuses_connections(world: World) -> None:
    with world.sending():
        world.proxy.refusing = True
        world.proxy.cut()
        assert eventually(world.unready, within_s=5)
        time.sleep(3)  # longer than intake is patient
        world.proxy.refusing = False
        assert eventually(world.ready)
    assert world.answers()[503] > 0
    world.check()


@pytest.mark.heavy
def test_the_database_is_slow(world: World) -> None:
    """Every packet takes a tenth of a second: then fewer are taken, none is lost."""
    with world.sending():
        world.proxy.delay_s = 0.1
        time.sleep(3)
        world.proxy.delay_s = 0.0
    world.check()


@pytest.mark.heavy
def test_the_database_does_not_answer(world: World) -> None:
    """The connections stand, and nothing comes back: a probe does not wait for it."""
    with world.sending():
        world.proxy.stalled = True
        began = time.monotonic()
        assert eventually(world.unready, within_s=5)
        assert time.monotonic() - began < 3
        time.sleep(2)
        world.proxy.stalled = False
        assert eventually(world.ready)
    world.check()


@pytest.mark.heavy
def test_every_connection_waits_for_a_lock(world: World) -> None:
    """A lock on every table, and operators who ask all the while: a probe says so in time, and it is over with it."""
    with world.sending(), ThreadPoolExecutor(40) as pool:
        with world.server.connect(world.service.journal_url.rpartition("/")[2]) as holder:
            assert eventually(lambda: locks_everything(holder), every_s=0.001)
            asked = [pool.submit(look, f"{world.service.admin_url}/api/retries") for _ in range(40)]
            assert eventually(world.unready, within_s=5)
            time.sleep(6)
        assert {one.result(60) for one in asked} <= {200, 503}
    world.check()


def locks_everything(holder: psycopg.Connection[Any]) -> bool:
    """Whether this connection has got a lock on every table. It never waits for one while it holds others: then it, or
    the service, would end by a deadlock.
    """
    holder.execute("BEGIN")
    try:
        holder.execute("LOCK TABLE events, records, desired, due, dispatcher, meta IN ACCESS EXCLUSIVE MODE NOWAIT")
    except psycopg.errors.LockNotAvailable:
        holder.execute("ROLLBACK")
        return False
    return True


def look(url: str) -> int:
    return requests.get(url, timeout=60).status_code


@pytest.mark.heavy
def test_max_connections_are_reached(world: World) -> None:
    """Others took every connection there is; the service is let in again when they leave."""
    database = world.service.journal_url.rpartition("/")[2]
    with world.sending(), contextlib.ExitStack() as others:
        world.proxy.cut()

        def take_all() -> bool:
            try:
                others.enter_context(psycopg.connect(world.server.url(database)))
            except psycopg.OperationalError:
                return world.unready()
            return False

        def refused() -> bool:
            if not world.answers()[503]:
                world.proxy.cut()  # whatever the service had got hold of
            return take_all() and world.answers()[503] > 0

        assert eventually(refused, every_s=0.001)
        others.close()
        assert eventually(world.ready)
    assert world.answers()[503] > 0
    world.check()


def test_the_database_is_read_only(world: World) -> None:
    """As a standby is to which a failover's address led too early."""
    with world.sending():
        set_and_reload(world, "default_transaction_read_only", "on")
        assert eventually(world.unready, within_s=5)
        time.sleep(1)
        set_and_reload(world, "default_transaction_read_only", "off")
        assert eventually(world.ready)
    assert world.answers()[503] > 0
    world.check()


def set_and_reload(world: World, name: str, value: str) -> None:
    with world.server.connect(options="-c default_transaction_read_only=off") as connection:
        connection.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
        connection.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize(
    "state",
    [
        pytest.param("40001", id="serialization failures", marks=pytest.mark.heavy),
        pytest.param("40P01", id="deadlocks"),
    ],
)
def test_transactions_are_undone_in_favour_of_others(world: World, state: str) -> None:
    """They are repeated, not answered: a quarter of all changes to records meets one."""
    database = world.service.journal_url.rpartition("/")[2]
    world.server.run(
        f"""CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
              IF random() < 0.25 THEN RAISE EXCEPTION 'spoilt' USING ERRCODE = '{state}'; END IF;
              RETURN NULL; END $$""",
        database=database,
    )
    world.server.run(
        "CREATE TRIGGER spoil AFTER INSERT OR UPDATE ON records FOR EACH STATEMENT EXECUTE FUNCTION spoil()",
        database=database,
    )
    try:
        with world.sending():
            time.sleep(2)
    finally:
        world.server.run("DROP FUNCTION spoil CASCADE", database=database)
    assert world.answers().keys() == {202}
    assert not any(event.answers[1:] for event in world.sent)
    world.check()
