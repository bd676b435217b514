"""The journal's files: locks, versions, damage, and folders that cannot be written."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from bridge.errors import (
    JournalDamagedError,
    JournalDiskError,
    JournalError,
    JournalLockedError,
    JournalUnavailableError,
    JournalVersionError,
)
from bridge.journal import versions
from bridge.journal.schema import HEAD, KNOWN, metadata
from bridge.journal.sqlite import trouble
from bridge.journal.sqlite.database import TIDY_EVERY_S, SqliteDatabase
from bridge.journal.sqlite.files import Mark, TransactionLock
from bridge.journal.store import Journal
from bridge.model import SystemClock
from bridge.settings import Journal as JournalSettings
from tests.builders import event


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder}/journal.db"


def lock_of(journal: Journal) -> TransactionLock:
    assert isinstance(journal._database, SqliteDatabase)
    return journal._database.lock


def opened(folder: Path) -> Journal:
    return Journal(settings=JournalSettings(url=url_of(folder)), clock=SystemClock())


def test_migrations_make_what_the_schema_says(tmp_path: Path) -> None:
    """The tables that the migrations make and those that the statements rely on are the same."""
    import sqlalchemy as sa
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    versions.prepare(url_of(tmp_path))
    with sa.create_engine(url_of(tmp_path)).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_the_journal_syncs_every_acknowledged_commit(tmp_path: Path) -> None:
    """G1 rests on these: write-ahead log, synchronous=FULL for intake, space given back by steps."""
    versions.prepare(url_of(tmp_path))
    journal = opened(tmp_path)
    with journal._database.write() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA auto_vacuum").scalar() == 2
    journal.close()


def test_preparing_twice_changes_nothing(tmp_path: Path) -> None:
    versions.prepare(url_of(tmp_path))
    journal = opened(tmp_path)
    journal.append([event()])
    journal.close()
    versions.prepare(url_of(tmp_path))
    journal = opened(tmp_path)
    assert len(journal.trace_event("e1")) == 1
    journal.close()


def test_a_command_needs_a_journal_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(JournalVersionError, match=r"there is no journal at .*start `partner-bridge serve` once"):
        versions.check(url_of(tmp_path))


def test_a_newer_journal_is_refused_and_left_untouched(tmp_path: Path) -> None:
    versions.prepare(url_of(tmp_path))
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for act in (versions.prepare, versions.check):
        with pytest.raises(JournalVersionError, match="written by a newer Partner Bridge"):
            act(url_of(tmp_path))
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]
    assert HEAD in KNOWN


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalUnavailableError, match=r"folder .*nowhere does not exist; create or mount it"):
        versions.prepare(url_of(tmp_path / "nowhere"))


@pytest.mark.damages
def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "journal.db").mkdir()
    with pytest.raises(JournalUnavailableError, match=r"is a folder; journal\.url must name a file"):
        versions.prepare(url_of(tmp_path))


@pytest.mark.damages
def test_a_file_that_is_no_journal_is_refused_and_left_untouched(tmp_path: Path) -> None:
    content = b"precious notes " * 1000
    (tmp_path / "journal.db").write_bytes(content)
    with pytest.raises(JournalError, match=r"journal\.db is damaged .*left untouched"):
        versions.prepare(url_of(tmp_path))
    assert (tmp_path / "journal.db").read_bytes() == content


@pytest.mark.damages
def test_the_database_of_another_program_is_refused_and_left_untouched(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "journal.db")) as other:
        other.execute("CREATE TABLE customers (name TEXT)")
    before = (tmp_path / "journal.db").read_bytes()
    for act in (versions.prepare, versions.check):
        with pytest.raises(JournalError, match=r"is the database of another program \(tables customers …\)"):
            act(url_of(tmp_path))
    assert (tmp_path / "journal.db").read_bytes() == before


def test_f10_an_empty_file_is_migrated(tmp_path: Path) -> None:
    """The oldest journal that there is."""
    (tmp_path / "journal.db").touch()
    versions.prepare(url_of(tmp_path))
    versions.check(url_of(tmp_path))


def commits(folder: Path, number: int) -> list[int]:
    """An open journal's commits of one event each, two properties of the same value; sizes of the log after each."""
    versions.prepare(url_of(folder))
    journal = opened(folder)
    log = folder / "journal.db-wal"
    sizes = []
    for n in range(number):
        journal.append([event(f"e{n}", str(n % 5), {"one": str(n), "two": str(n)}, at=1_000_000 + n)])
        sizes.append(log.stat().st_size)
    for name in ("journal.db", "journal.db-wal"):
        shutil.copy(folder / name, folder / f"copy-of-{name}")
    journal.close()
    return sizes


@pytest.mark.parametrize("anywhere", [False, pytest.param(True, marks=pytest.mark.heavy)])
def test_f05_a_torn_log_loses_what_lay_behind_the_cut_and_nothing_else(tmp_path: Path, anywhere: bool) -> None:
    """Cut around each commit in the write-ahead log and within its header; or at every frame and at random bytes."""
    sizes = commits(tmp_path, 25)
    whole = (tmp_path / "copy-of-journal.db-wal").read_bytes()
    frame = 24 + 4096
    cuts = {0, 1, 31, 32, len(whole), *(size + by for size in sizes[::4] for by in (-1, 0, 1))}
    if anywhere:
        chosen = random.Random(5)
        cuts = {*range(32, len(whole), frame), *(size + by for size in sizes for by in (-1, 1))}
        cuts |= {chosen.randrange(len(whole)) for _ in range(40)}
    torn = tmp_path / "torn"
    for cut in sorted(cuts):
        torn.mkdir()
        shutil.copy(tmp_path / "copy-of-journal.db", torn / "journal.db")
        (torn / "journal.db-wal").write_bytes(whole[:cut])
        versions.prepare(url_of(torn))
        assert trouble.verify(torn / "journal.db") == []
        with trouble.reading(torn / "journal.db") as connection:
            found = connection.execute("SELECT event_id FROM events ORDER BY seq").fetchall()
            values = connection.execute("SELECT record, value FROM desired ORDER BY record, property").fetchall()
        kept = sum(size <= cut for size in sizes)
        assert found == [(f"e{n}",) for n in range(kept)], cut
        assert values[0::2] == values[1::2]  # never half an update
        assert len(values) == 2 * min(kept, 5)
        journal = opened(torn)
        assert journal.append([event("next", "9")]).receipts[0].intake == "accepted"
        journal.close()
        shutil.rmtree(torn)


def test_f05_flipped_bytes_in_the_log_end_it_there(tmp_path: Path) -> None:
    """Frames carry checksums: what a disk garbled is never taken for a commit."""
    sizes = commits(tmp_path, 10)
    whole = (tmp_path / "copy-of-journal.db-wal").read_bytes()
    for at in (100, sizes[3] + 500, sizes[8] + 24 + 4095):
        folder = tmp_path / str(at)
        folder.mkdir()
        shutil.copy(tmp_path / "copy-of-journal.db", folder / "journal.db")
        (folder / "journal.db-wal").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        versions.prepare(url_of(folder))
        with trouble.reading(folder / "journal.db") as connection:
            assert connection.execute("SELECT count(*) FROM events").fetchone() == (sum(size <= at for size in sizes),)


@pytest.mark.parametrize("left", [None, b""], ids=["missing", "empty"])
def test_f06_a_log_without_its_file_is_not_thrown_away(tmp_path: Path, left: bytes | None) -> None:
    """SQLite would delete it, and what was accepted with it."""
    commits(tmp_path, 3)
    file, log = tmp_path / "lone.db", tmp_path / "lone.db-wal"
    shutil.copy(tmp_path / "copy-of-journal.db-wal", log)
    if left is not None:
        file.write_bytes(left)
    before = log.read_bytes()
    for act in (versions.prepare, versions.check) if left is not None else (versions.prepare,):
        with pytest.raises(
            JournalDamagedError, match=r"lone\.db is missing or empty, but lone\.db-wal beside it holds"
        ):
            act(f"sqlite:///{file}")
    assert log.read_bytes() == before
    assert file.exists() == (left is not None)


def test_f06_damage_met_while_running_ends_all_writing_until_a_person_has_seen_to_it(tmp_path: Path) -> None:
    commits(tmp_path, 25)
    file = tmp_path / "journal.db"
    whole = file.read_bytes()
    journal, other = opened(tmp_path), opened(tmp_path)
    file.write_bytes(whole[:8192] + b"\xee" * (len(whole) - 8192))
    with pytest.raises(JournalDamagedError, match=r"journal\.db is damaged .*restore a backup.*\.recover"):
        journal.append([event("e1")])
    for each in (journal, other):  # as in another process: by the mark
        with pytest.raises(JournalDamagedError, match=r"was found damaged and is not written any more"):
            each.check_writable()
        each.close()
    with pytest.raises(JournalDamagedError, match="was found damaged"):
        versions.prepare(url_of(tmp_path))
    file.write_bytes(whole)
    with pytest.raises(JournalDamagedError, match="`partner-bridge journal verify` lifts this"):
        versions.prepare(url_of(tmp_path))
    assert trouble.verify(file) == []
    assert versions.trust_again(url_of(tmp_path))
    assert not versions.trust_again(url_of(tmp_path))
    versions.prepare(url_of(tmp_path))


def test_f08_a_suspect_file_is_rewritten_by_whoever_writes_next(tmp_path: Path) -> None:
    """The mark is the pod's: the process that writes next need not be the one whose fsync failed."""
    commits(tmp_path, 5)
    log = tmp_path / "journal.db-wal"
    first, second = opened(tmp_path), opened(tmp_path)
    first.append([event("e100")])
    before = log.stat().st_size
    assert before > 0
    with lock_of(first).held():
        lock_of(first).mark = Mark.SUSPECT
    with second._database.read() as reading:
        reading.exec_driver_sql("SELECT count(*) FROM events").fetchall()
        with pytest.raises(JournalUnavailableError, match="because it is being read; it is tried again"):
            second.append([event("e101")])
    with pytest.raises(JournalDiskError, match="its disk fails"):
        second.append([event("e101")])  # tried at most twice a second
    assert log.stat().st_size == before
    time.sleep(TIDY_EVERY_S)
    second.append([event("e101")])
    assert 0 < log.stat().st_size < before
    with lock_of(second).held():
        assert lock_of(second).mark is Mark.IN_USE
    first.append([event("e102")])
    for journal in (first, second):
        assert len(journal.trace_event("e101")) == 1
        journal.close()
    assert trouble.verify(tmp_path / "journal.db") == []


def test_f07_a_journal_at_its_page_limit_says_that_the_disk_is_full(tmp_path: Path) -> None:
    """SQLite's own limit stands in for the disk's: the same error, and the same way back."""
    commits(tmp_path, 1)
    journal = opened(tmp_path)
    with journal._database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    notes = {"notes": "n" * 60_000}
    with pytest.raises(JournalDiskError, match=r"its disk is full .*intake goes on by itself") as caught:
        journal.append([event("big", "1", notes)])
    assert caught.value.kind == "full"
    with pytest.raises(JournalDiskError, match="its disk is full"):
        journal.check_writable()  # what is small still fits, but that is not enough
    with journal._database.write() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=1073741823")
    journal.check_writable()
    assert journal.append([event("big", "1", notes)]).receipts[0].intake == "accepted"
    journal.close()
    assert trouble.verify(tmp_path / "journal.db") == []


def test_other_databases_are_named_as_unsuitable() -> None:
    with pytest.raises(JournalError, match="is not a SQLite file"):
        versions.prepare("sqlite://")


HOLD = """
import sys
from bridge.journal.versions import ServiceLock
lock = ServiceLock(sys.argv[1]); lock.acquire(); print("held", flush=True); sys.stdin.read()
"""


def test_a_second_service_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    """The lock ends with its holder, also when that is killed without warning."""
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, url_of(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout is not None
    assert first.stdin is not None
    assert first.stdout.readline() == b"held\n"
    second = versions.ServiceLock(url_of(tmp_path))
    with pytest.raises(JournalLockedError, match="in use by another partner-bridge service"):
        second.acquire()
    first.kill()
    first.wait()
    second.acquire()
    second.release()
    first.stdin.close()
    first.stdout.close()


def test_only_one_process_is_the_dispatcher(tmp_path: Path) -> None:
    first, second = versions.DispatchLock(url_of(tmp_path)), versions.DispatchLock(url_of(tmp_path))
    assert not first.acquire()  # of no journal
    assert list(tmp_path.iterdir()) == []
    versions.prepare(url_of(tmp_path))
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()


def test_a_folder_that_cannot_be_written_is_named() -> None:
    """/sys takes no files from anyone, root included."""
    with pytest.raises(
        JournalUnavailableError, match=r"/sys/journal\.db cannot be written: .*mount its volume writable"
    ):
        versions.prepare("sqlite:////sys/journal.db")
