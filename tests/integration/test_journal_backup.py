"""Backup while writing, restore paused, and what `partner-bridge journal` says about both."""

from __future__ import annotations

import json
import sqlite3
import stat
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from bridge.errors import JournalDamagedError, JournalError, JournalLockedError, JournalUnavailableError
from bridge.journal import backup as backups
from bridge.journal import versions
from bridge.journal.backup import Waiting, backup, information, restore
from bridge.journal.schema import HEAD
from bridge.journal.sqlite import trouble
from bridge.journal.sqlite.files import Mark, TransactionLock
from bridge.journal.store import Journal
from bridge.model import Lane, SystemClock
from bridge.settings import Journal as JournalSettings
from tests import forked
from tests.builders import event
from tests.empty_journal import prepare

CLOCK = SystemClock()
SERVICES = Lane("partner_services", "")


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder}/journal.db"


def opened(folder: Path) -> Journal:
    return Journal(settings=JournalSettings(url=url_of(folder)), clock=CLOCK)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a journal: three records of two sources wait, ten events were taken."""
    prepare(url_of(tmp_path))
    journal = opened(tmp_path)
    for n in range(8):
        journal.append([event(f"e{n}", str(n % 2), {"one": str(n), "two": str(n)})])
    journal.append([event("s1", "1", {"name": "one"}, source="other", lane=SERVICES)])
    journal.append([event("bad", updates=(), unmappable="no id")])
    journal.close()
    return tmp_path


def events_in(file: Path) -> list[str]:
    with trouble.reading(file) as connection:
        return [event_id for (event_id,) in connection.execute("SELECT event_id FROM events ORDER BY seq")]


# --- backup -------------------------------------------------------------------------------------


def test_a_backup_taken_while_writing_is_one_moment_of_the_journal(folder: Path) -> None:
    """Writers are not held up, and what they write meanwhile does not make it begin anew."""
    journal = opened(folder)
    for n in range(40):
        journal.append([event(f"bulk{n}-{i}", f"b{i}", {"notes": "n" * 900, "twin": str(n)}) for i in range(100)])
    before = len(events_in(folder / "journal.db"))
    written: list[int] = []
    slowest, done = 0.0, threading.Event()

    def write() -> None:
        nonlocal slowest
        while not done.is_set():
            began = time.monotonic()
            n = len(written)
            journal.append([event(f"w{n}", str(n % 7), {"one": str(n), "two": str(n)}, at=2_000_000 + n)])
            written.append(n)
            slowest = max(slowest, time.monotonic() - began)

    writer = threading.Thread(target=write)
    writer.start()
    steps: list[int] = []

    def told(left: int, pages: int) -> None:
        steps.append(left)
        time.sleep(0.02)  # a slow disk

    try:
        while not written:
            time.sleep(0.001)
        made = backup(url_of(folder), folder / "copy.db", progress=told)
    finally:
        done.set()
        writer.join()
        journal.close()
    assert steps == sorted(steps, reverse=True)  # never begun anew
    assert steps[-1] == 0
    assert len(written) > 5
    assert slowest < 1.0
    found = events_in(made.path)
    assert found[:before] == events_in(folder / "journal.db")[:before]
    assert found == events_in(folder / "journal.db")[: len(found)]
    assert trouble.verify(made.path) == []
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600  # it may hold a token
    assert {file.name for file in folder.iterdir() if "copy" in file.name} == {"copy.db"}  # one file, nothing beside it


def test_a_backup_overwrites_nothing_and_leaves_nothing_behind(folder: Path) -> None:
    (folder / "there.db").write_bytes(b"precious")
    with pytest.raises(JournalError, match=r"there\.db is there already and is not overwritten"):
        backup(url_of(folder), folder / "there.db")
    assert (folder / "there.db").read_bytes() == b"precious"
    with pytest.raises(JournalUnavailableError, match=r"nowhere/copy\.db cannot be written: No such file or directory"):
        backup(url_of(folder), folder / "nowhere" / "copy.db")
    with pytest.raises(JournalUnavailableError, match=r"/sys/copy\.db cannot be written"):
        backup(url_of(folder), Path("/sys/copy.db"))
    assert not [file for file in folder.iterdir() if "part" in file.name]


@pytest.mark.damages
def test_a_backup_of_a_damaged_journal_is_not_kept(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "journal.db")) as journal:
        journal.execute("DELETE FROM due")
        journal.commit()
    with pytest.raises(JournalDamagedError, match=r"3 records with pending values that are not due.* was not kept"):
        backup(url_of(folder), folder / "copy.db")
    assert not (folder / "copy.db").exists()


# --- verify -------------------------------------------------------------------------------------

BROKEN = {
    "DELETE FROM due": "3 records with pending values that are not due",
    "UPDATE due SET due_us = NULL": "3 records with pending values that are not due",
    "UPDATE desired SET source = 'nobody'": "5 pending values whose source is not due",
    "UPDATE desired SET state = 1": "3 due rows for which nothing waits",
    "UPDATE due SET due_us = NULL WHERE source = 'acme'": "2 due rows without a time of records that are not parked",
    "INSERT INTO records (lane, record, n, newest_us, attempts) VALUES (1, 'idle', 1, 1, 1)": (
        "1 failures of records for which nothing waits"
    ),
    "DELETE FROM records WHERE record = '0'": "2 pending values without a record",
    "UPDATE records SET n = 0": "5 values newer than their record",
    "UPDATE records SET lane = lane + 99": "3 due rows of another lane than their record",
    "UPDATE records SET parked_us = 1": "3 due rows of parked records",
    "DELETE FROM events WHERE event_id = 'e1'": "1 asks of unknown events",
    "UPDATE desired SET state = 9": "5 values in an unknown state",
    "UPDATE events SET unmappable = NULL": "1 events that wait without a reason",
    "UPDATE dispatcher SET pauses = '['": "1 unreadable rows of the dispatcher",
}


@pytest.mark.damages
@pytest.mark.parametrize("statement", BROKEN)
def test_verify_tells_what_does_not_fit_together(folder: Path, statement: str) -> None:
    assert trouble.verify(folder / "journal.db") == []
    with closing(sqlite3.connect(folder / "journal.db")) as journal:
        journal.execute(statement)
        journal.commit()
    assert BROKEN[statement] in trouble.verify(folder / "journal.db")


@pytest.mark.damages
def test_verify_finds_an_index_that_lacks_rows(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "journal.db")) as journal:
        [(root,)] = journal.execute("SELECT rootpage FROM sqlite_master WHERE name = 'asks_event'")
    pages = (folder / "journal.db").read_bytes()
    at = (root - 1) * 4096
    damaged = pages[: at + 3] + b"\x00\x00" + pages[at + 5 :]  # an index page without cells
    (folder / "journal.db").write_bytes(damaged)
    assert any("asks_event" in problem for problem in trouble.verify(folder / "journal.db"))


# --- restore ------------------------------------------------------------------------------------


def test_what_is_restored_is_paused_and_the_journal_that_was_there_is_kept(folder: Path) -> None:
    made = backup(url_of(folder), folder / "copy.db")
    journal = opened(folder)
    journal.append([event("later", "77")])
    journal.close()
    newer = events_in(folder / "journal.db")
    done = restore(url_of(folder), made.path, clock=CLOCK)
    assert done.waiting == (Waiting("partner_clients", "acme", 2, 4), Waiting("partner_services", "other", 1, 1))
    assert done.set_aside is not None
    assert events_in(done.set_aside) == newer
    assert events_in(folder / "journal.db") == newer[:-1]
    versions.check(url_of(folder))
    journal = opened(folder)
    [pause] = journal.load_pauses()
    assert (pause.reason, pause.until_us) == ("operator", None)
    assert "restored from the backup copy.db" in pause.detail
    journal.append([event("again", "1")])
    assert journal.resume() == [pause]
    journal.close()
    again = restore(url_of(folder), made.path, clock=CLOCK)
    assert again.set_aside is not None
    assert again.set_aside != done.set_aside
    assert events_in(made.path) == newer[:-1]


def test_a_restore_where_nothing_was_makes_the_journal(folder: Path, tmp_path: Path) -> None:
    made = backup(url_of(folder), folder / "copy.db")
    (tmp_path / "new").mkdir()
    assert restore(url_of(tmp_path / "new"), made.path, clock=CLOCK).set_aside is None
    versions.prepare(url_of(tmp_path / "new"))
    assert trouble.verify(tmp_path / "new" / "journal.db") == []


def test_a_restore_is_refused_beside_a_service_and_from_what_is_no_backup(folder: Path) -> None:
    made = backup(url_of(folder), folder / "copy.db")
    before = (folder / "journal.db").read_bytes()
    service = versions.ServiceLock(url_of(folder))
    service.acquire()
    with pytest.raises(JournalLockedError, match="in use by another partner-bridge service: stop that one first"):
        restore(url_of(folder), made.path, clock=CLOCK)
    service.release()
    pages = made.path.read_bytes()
    for name, content, message in (
        ("text", b"precious notes " * 1000, "text is damaged"),
        ("torn", pages[: len(pages) // 2], "damaged"),
        ("zeroed", pages[: 5 * 4096] + bytes(4096 * 12) + pages[17 * 4096 :], "damaged"),
        ("empty", b"", "is no backup that this program knows"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(JournalError, match=message):
            restore(url_of(folder), folder / name, clock=CLOCK)
    with pytest.raises(JournalError, match="there is no backup"):
        restore(url_of(folder), folder / "nowhere", clock=CLOCK)
    with pytest.raises(JournalError, match="is the journal itself"):
        restore(url_of(folder), folder / "journal.db", clock=CLOCK)
    with closing(sqlite3.connect(made.path)) as newer:
        newer.execute("UPDATE alembic_version SET version_num = '9999'")
        newer.commit()
    with pytest.raises(JournalError, match=r"no backup that this program knows \(version 9999"):
        restore(url_of(folder), made.path, clock=CLOCK)
    assert (folder / "journal.db").read_bytes() == before
    versions.prepare(url_of(folder))


def test_a_restore_lifts_damage(folder: Path) -> None:
    made = backup(url_of(folder), folder / "copy.db")
    (folder / "journal.db").write_bytes(b"")
    with pytest.raises(JournalDamagedError, match="the file is empty, and there was a journal in it"):
        versions.prepare(url_of(folder))
    restore(url_of(folder), made.path, clock=CLOCK)
    versions.prepare(url_of(folder))


def test_a_restore_that_was_killed_half_way_is_not_taken_for_a_journal(folder: Path) -> None:
    """Neither the old file without its log nor an empty one begins to serve."""
    made = backup(url_of(folder), folder / "copy.db")
    lock = TransactionLock(folder / "journal.db.lock")
    with lock.held():
        lock.mark = Mark.RESTORING  # as `_swap` does before it moves anything
    lock.close()
    (folder / "journal.db").rename(folder / "aside")
    with pytest.raises(JournalDamagedError, match="cut short: run `partner-bridge journal restore` again"):
        versions.prepare(url_of(folder))
    assert not (folder / "journal.db").exists()
    restore(url_of(folder), made.path, clock=CLOCK)
    versions.prepare(url_of(folder))


def test_a_journal_that_is_moved_under_a_writer_is_not_written_any_more(folder: Path) -> None:
    journal = opened(folder)
    journal.append([event("x1")])
    (folder / "journal.db").rename(folder / "elsewhere")
    for _ in range(2):
        with pytest.raises(JournalUnavailableError, match="moved, removed or replaced"):
            journal.append([event("x2")])
    assert not (folder / "journal.db").exists()
    (folder / "elsewhere").rename(folder / "journal.db")
    journal.append([event("x3")])
    journal.close()
    assert events_in(folder / "journal.db")[-2:] == ["x1", "x3"]


# --- the command line ---------------------------------------------------------------------------

CONFIG = """\
crm: {{token: {{env: NOT_NEEDED_HERE}}}}
journal: {{url: "{url}"}}
sources:
  acme:
    verify: {{scheme: none}}
    event_id: id
    record: {{id: client}}
    properties: {{name: name}}
"""


def command(folder: Path, *arguments: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
    (folder / "bridge.yaml").write_text(CONFIG.format(url=url or url_of(folder)), encoding="utf-8")
    return forked.run("journal", *arguments, cwd=folder)


def test_the_commands_tell_what_they_did(folder: Path) -> None:
    service = versions.ServiceLock(url_of(folder))
    service.acquire()
    info = json.loads(command(folder, "info", "--json").stdout)
    assert info["path"] == f"{folder}/journal.db"
    assert (info["events"], info["records"], info["values"], info["pending"], info["parked"]) == (10, 3, 5, 3, 0)
    assert (info["unmapped"], info["calls"], info["version"]) == (1, 0, HEAD)
    assert info["serving"] is not None
    assert info["delivering"] is None
    assert info["oldest_pending_at"].endswith("Z")
    assert "serving\tprocess" in command(folder, "info").stdout
    assert command(folder, "verify").stdout == f"the journal {folder}/journal.db is sound\n"
    made = json.loads(command(folder, "backup", "copy.db", "--json").stdout)
    assert made["path"] == f"{folder}/copy.db"
    assert len(made["sha256"]) == 64
    refused = command(folder, "restore", "copy.db")
    assert refused.returncode == 1
    assert "in use by another partner-bridge service" in refused.stderr
    service.release()
    restored = command(folder, "restore", "copy.db")
    assert restored.returncode == 0
    assert "delivery is paused, intake is not" in restored.stdout
    assert "`partner-bridge resume` would send:" in restored.stdout
    assert "partner_clients\tacme\t2\t4" in restored.stdout
    assert "the journal that was there is now" in restored.stdout
    assert "are not in it: have the senders send them again" in restored.stderr
    assert information(url_of(folder))["serving"] is None


@pytest.mark.damages
def test_a_damaged_journal_is_told_in_one_line(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "journal.db")) as journal:
        journal.execute("DELETE FROM due")
        journal.commit()
    done = command(folder, "verify")
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"partner-bridge: the journal {folder}/journal.db is damaged (3 records with pending values")
    told = command(folder, "verify", "--json")
    assert told.returncode == 1
    assert json.loads(told.stdout)["sound"] is False


def test_a_journal_in_postgresql_has_its_own_tools(folder: Path) -> None:
    for arguments in (("backup", "copy.db"), ("restore", "copy.db")):
        done = command(folder, *arguments, url="postgresql://user:hunter2@db.example/bridge")
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert "pg_dump" in line
        assert "hunter2" not in line


@pytest.mark.damages
def test_a_journal_in_postgresql_is_looked_at_and_checked(folder: Path, database_url: str) -> None:
    told = json.loads(command(folder, "info", "--json", url=database_url).stdout)
    assert (told["version"], told["events"], told["pending"], told["delivering"]) == (HEAD, 0, 0, None)
    assert command(folder, "verify", url=database_url).stdout == "the journal in PostgreSQL is sound\n"
    with psycopg.connect(database_url) as connection:
        connection.execute("INSERT INTO due (record, source, lane, due_us, since_us) VALUES (7, 'acme', 1, 1, 1)")
    done = command(folder, "verify", url=database_url)
    assert done.returncode == 1
    assert done.stderr == "the journal in PostgreSQL: 1 due rows without a record\n"
    for arguments in (("info",), ("verify",)):
        done = command(folder, *arguments, url="postgresql://user:hunter2@127.0.0.1:1/bridge")
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert "out of reach" in line
        assert "hunter2" not in line


def test_a_part_of_a_killed_backup_is_in_nobodys_way(folder: Path) -> None:
    import os

    (folder / f".copy.db.part-{os.getpid()}").write_bytes(b"half")
    made = backup(url_of(folder), folder / "copy.db")
    assert trouble.verify(made.path) == []
    assert backups._sha256(made.path) == made.sha256
