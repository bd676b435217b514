"""`partner-bridge migrate` as an operator types it: killed in the middle, run again, and served from then on."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from bridge import cli
from bridge.cli.journaling import without_password
from bridge.sandbox import Crm, SandboxServer
from tests.forked import Forked
from tests.postgres import PASSWORD, fresh_database, shared
from tests.proxies import TcpProxy
from tests.running import Running, eventually, free_port

STARTED = time.time() - 60


def event(number: int, *, name: str = "name") -> dict[str, Any]:
    return {"id": f"e{number}", "client": f"c{number}", "at": STARTED, "name": f"{name} {number}"}


def copied(url: str) -> int:
    """Events that a move has copied so far."""
    # One table at a time: a transaction that looks at several could deadlock with the move's beginning.
    with contextlib.suppress(psycopg.errors.UndefinedTable), psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM meta WHERE name = 'moving'").fetchall():
            [(events,)] = connection.execute("SELECT count(*) FROM events").fetchall()
            return int(events)
    return 0


def kill_in_the_middle(service: Running, target: str) -> None:
    """`kill -9` of a move that has copied events and not come to its end."""
    with TcpProxy(shared().port) as proxy:
        proxy.delay_s = 0.02
        slow = shared().url(target.rpartition("/")[2], port=proxy.port)
        command = ["migrate", "--to", slow, "--config", str(service.config)]
        process = Forked(command, stdout=subprocess.DEVNULL)
        assert eventually(lambda: copied(target) > 0, every_s=0.005)
        proxy.stalled = True
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL


def test_a_move_killed_in_the_middle_is_finished_by_the_next_and_served(tmp_path: Path) -> None:
    """What was pending is delivered from PostgreSQL, what was delivered is not sent again, duplicates are known."""
    target = fresh_database(migrated=False)
    crm = Crm(open_properties=False)
    with SandboxServer(crm) as sandbox:
        service = Running(tmp_path, sandbox.url)
        moved_to = Running(tmp_path, sandbox.url, journal_url=target)
        service.configure()  # both have one folder
        try:
            service.start()
            service.post([event(number) for number in range(20)])
            assert eventually(service.idle)
            assert service.run("pause").returncode == 0
            time.sleep(1.5)  # the dispatcher looks once a second
            service.post([event(number) for number in range(20, 60)])
            busy = service.run("migrate", "--to", target)
            assert (busy.returncode, busy.stdout) == (1, "")
            assert "in use by a running service" in busy.stderr
            assert service.stop() == 0

            kill_in_the_middle(service, target)
            moved_to.configure()
            moved_to.start(ready=False)
            assert moved_to.process is not None
            assert moved_to.process.wait(30) == 1
            assert moved_to.log_has("partner-bridge migrate --to")

            service.configure()
            done = service.run("migrate", "--to", target)
            assert done.returncode == 0, done.stderr
            assert "events\t60" in done.stdout
            assert PASSWORD not in done.stdout + done.stderr
            again = service.run("migrate", "--to", target)
            assert again.returncode == 0
            assert "nothing to do" in again.stdout

            moved_to.configure()
            moved_to.start()
            assert moved_to.post([event(number) for number in range(60)]).json()["duplicates"] == 60
            assert len(crm.ledger.applied()) == 20
            assert moved_to.run("resume").returncode == 0
            assert eventually(moved_to.idle)
            moved_to.post(event(100))
            assert eventually(moved_to.idle)
            held = crm.state(id_property="acme_client_id")["partner_clients"]
            assert {record: value["company_name"] for record, value in held.items()} == {
                f"c{number}": f"name {number}" for number in (*range(60), 100)
            }
            assert len(crm.ledger.applied()) == 61, "nothing is sent twice"
            assert moved_to.stop() == 0
        finally:
            for one in (service, moved_to):
                if one.process is not None and one.process.poll() is None:
                    one.kill_all()


def test_progress_shows_on_a_terminal(tmp_path: Path) -> None:
    """And in a pipe there is none."""
    service = Running(tmp_path, f"http://127.0.0.1:{free_port()}")
    service.start()
    service.post([event(number) for number in range(50)])
    assert service.stop() == 0
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "bridge", "migrate", "--to", fresh_database(migrated=False)]
    with subprocess.Popen(
        [*command, "--config", str(service.config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the terminal is gone with the process
            while part := os.read(ours, 65_536):
                shown += part
        assert process.wait(30) == 0
    os.close(ours)
    assert b"copying" in shown
    assert b"\xe2\x94\x81" in shown, "a bar"


@pytest.mark.parametrize(
    "target, shown",
    [
        ("postgresql://u:secret@one:1,two/journal?connect_timeout=1", "postgresql://u:***@one:1,two/journal?connect_"),
        ("postgresql://u@/journal?host=/run&password=secret", "postgresql://u@/journal?host=/run&password=***"),
        ("postgresql://u@one/journal?sslpassword=secret", "postgresql://u@one/journal?sslpassword=***"),
        ("postgresql://u@one/journal", "postgresql://u@one/journal"),
    ],
)
def test_a_target_is_told_of_without_its_password(target: str, shown: str) -> None:
    """Also where it has several hosts, which is how a failover is followed."""
    assert without_password(target).startswith(shown)
    assert "secret" not in without_password(target)


@pytest.mark.parametrize(
    "target, says",
    [
        ("mysql://u@127.0.0.1/journal", "postgresql://"),
        ("sqlite:///other.db", "postgresql://"),
        ("postgresql://u@127.0.0.1", "names no database"),
    ],
)
def test_a_target_that_is_none_is_wrong_usage(
    tmp_path: Path, target: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service = Running(tmp_path, "http://127.0.0.1:9")
    assert cli.run(["migrate", "--to", target, "--config", str(service.config)]) == 2
    assert says in capsys.readouterr().err
