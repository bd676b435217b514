"""What the journal asks of PostgreSQL, and what it does where that is not given."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time

import psycopg
import pytest

from bridge.errors import JournalError, JournalUnavailableError
from bridge.journal import store, versions
from bridge.journal.database import fence
from bridge.journal.postgresql.database import OVERFLOW, POOL, POOL_TIMEOUT_S, PostgresDatabase
from bridge.journal.postgresql.term import Term
from bridge.journal.schema import metadata
from bridge.journal.store import Journal
from bridge.model import Delivered, Intake, SystemClock, to_us
from bridge.settings import Journal as JournalSettings
from tests.builders import call, event
from tests.fakes import FakeClock
from tests.postgres import PASSWORD, SUPERUSER, Server, fresh_database, serving, shared
from tests.proxies import Cut, TcpProxy
from tests.running import eventually

REPLICAS = 3
PREPARE = "import sys; from bridge.journal.versions import prepare; prepare(sys.argv[1])"


def test_many_replicas_migrate_at_once() -> None:
    """All of them find the journal as if they had made it alone, and none fails for another."""
    url = fresh_database(migrated=False)
    starts = [subprocess.Popen([sys.executable, "-c", PREPARE, url], stderr=subprocess.PIPE) for _ in range(REPLICAS)]
    errors = [start.communicate(timeout=60)[1].decode() for start in starts]
    assert [start.returncode for start in starts] == [0] * REPLICAS, errors
    versions.check(url)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM dispatcher").fetchall() == [(1,)]
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchall() == [(1,)]


def test_a_server_that_does_not_fsync_is_refused() -> None:
    """What was accepted would be lost with the power, or all of it damaged."""
    with serving({"fsync": "off"}) as server:
        url = server.fresh_database(migrated=False)
        with pytest.raises(JournalError, match="fsync=off") as caught:
            versions.prepare(url)
        assert PASSWORD not in str(caught.value)
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT to_regclass('events')").fetchall() == [(None,)], "nothing was made"


def test_a_server_that_promises_less_is_warned_of(own_server: Server) -> None:
    """Commits that do not wait for the disk; and standbys that may lack what was accepted last."""
    url = own_server.fresh_database()
    assert versions.weaknesses(url) == []
    own_server.run("ALTER SYSTEM SET synchronous_commit = 'off'")
    own_server.run("SELECT pg_reload_conf()")
    assert eventually(lambda: any("synchronous_commit=off" in told for told in versions.weaknesses(url)))

    received = own_server.folder / "received"
    received.mkdir()
    receiver = subprocess.Popen(
        [
            own_server.binary("pg_receivewal"),
            "-h",
            "127.0.0.1",
            "-p",
            str(own_server.port),
            "-U",
            SUPERUSER,
            "-D",
            received,
        ],
        env=os.environ | {"PGPASSWORD": PASSWORD},
        stderr=subprocess.DEVNULL,
    )
    try:
        assert eventually(lambda: any("without a synchronous standby" in told for told in versions.weaknesses(url)))
    finally:
        receiver.terminate()
        receiver.wait(10)


def test_an_exhausted_pool_is_told_in_time_and_over_with_those_who_hold_it() -> None:
    url = fresh_database()
    journal = Journal(settings=JournalSettings(url=url), clock=SystemClock())
    try:
        journal.append([event("e1")])
        with contextlib.ExitStack() as holders:
            for _ in range(POOL + OVERFLOW):
                holders.enter_context(journal._database.read())
            began = time.monotonic()
            with pytest.raises(JournalUnavailableError, match="connections"):
                journal.append([event("e2")], admitted=True)
            assert time.monotonic() - began < 2 * POOL_TIMEOUT_S
        assert [receipt.intake for receipt in journal.append([event("e2")]).receipts] == [Intake.ACCEPTED]
    finally:
        journal.close()


@pytest.mark.parametrize("forwarded", [False, True], ids=["undone", "done"])
def test_a_take_of_which_nobody_heard_leaves_no_doubt(monkeypatch: pytest.MonkeyPatch, forwarded: bool) -> None:
    """The database is away for longer than a call may wait, so none begins: nothing is sent once more for it."""
    monkeypatch.setattr(store, "TAKE_PATIENCE_S", 0.0)
    url, clock = fresh_database(), FakeClock()
    with TcpProxy(shared().port) as proxy:
        journal = Journal(
            settings=JournalSettings(url=shared().url(url.rpartition("/")[2], port=proxy.port)), clock=clock
        )
        try:
            journal.append([event("e1")])
            [due] = journal.due(limit=10, exclude=())
            for _ in range(3):
                proxy.cut_at(Cut(b"THEN doubt_n ELSE n END", forwarded=forwarded))
                with pytest.raises(JournalUnavailableError):
                    journal.take([due.ref], began_at_us=to_us(clock.now()))
                clock.advance(1)
            [taken] = journal.take([due.ref], began_at_us=to_us(clock.now())).records
            assert taken.doubt_at_us is None
            journal.settle([taken], [Delivered(taken)], call=call([taken], began=clock.now()), doubtful=False)
            clock.advance(200)
            assert not journal.due(limit=10, exclude=())
        finally:
            journal.close()


def test_settling_never_holds_up_the_renewal_of_the_term() -> None:
    """However many calls are settled at once, one after the other without a gap; a take-over does wait for them."""
    url = fresh_database()
    claims = [Term(url, clock=SystemClock()) for _ in range(2)]
    try:
        assert claims[0].acquire()
        database = PostgresDatabase(url)
        with database.write() as settling:
            fence(settling, claims[0].epoch)
            began = time.monotonic()
            assert database.transact(lambda connection: claims[0]._prolong(connection, claims[0].epoch))
            database.transact(lambda connection: fence(connection, claims[0].epoch, alone=True))
            assert time.monotonic() - began < 1.0
            with psycopg.connect(url) as other:
                other.execute("UPDATE dispatcher SET until_us = 1")
            taking_over = threading.Thread(target=claims[1].acquire)
            taking_over.start()
            taking_over.join(0.5)
            assert taking_over.is_alive()
        taking_over.join(5)
        assert claims[1].held()
        database.close()
    finally:
        for claim in claims:
            claim.release()


def test_a_first_load_is_analyzed_without_waiting_for_autovacuum() -> None:
    """Until then statements for a hundred records are planned as if they meant most of them."""
    url = fresh_database()
    journal = Journal(settings=JournalSettings(url=url), clock=SystemClock())
    try:
        with psycopg.connect(url) as connection:
            connection.execute("ALTER TABLE desired SET (autovacuum_enabled = off)")
        for step in range(8):
            wanted = {f"p{number}": "a value" for number in range(8)}
            journal.append([event(f"e{step}-{number}", f"c{step}-{number}", wanted) for number in range(250)])
        with psycopg.connect(url) as connection:
            assert connection.execute(NEVER).fetchall() == [(-1,)]
        while journal.prune():
            pass
        for _ in metadata.tables:  # one a step
            journal.prune()
        with psycopg.connect(url) as connection:
            [(rows,)] = connection.execute(NEVER).fetchall()
        assert rows == pytest.approx(8 * 250 * 8, rel=0.2)
    finally:
        journal.close()


NEVER = "SELECT reltuples FROM pg_class WHERE relname = 'desired'"
