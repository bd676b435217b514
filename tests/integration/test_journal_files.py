"""The journal's files: locks, versions, damage, and folders that cannot be written."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.errors import JournalError, JournalLockedError, JournalUnavailableError, JournalVersionError
from bridge.journal import versions
from bridge.journal.schema import HEAD, metadata
from bridge.journal.store import Journal
from bridge.model import SystemClock
from bridge.settings import Journal as JournalSettings
from tests.builders import event


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder}/journal.db"


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
    assert HEAD in versions.KNOWN


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalUnavailableError, match=r"folder .*nowhere does not exist; create or mount it"):
        versions.prepare(url_of(tmp_path / "nowhere"))


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "journal.db").mkdir()
    with pytest.raises(JournalUnavailableError, match=r"is a folder; journal\.url must name a file"):
        versions.prepare(url_of(tmp_path))


def test_a_file_that_is_no_journal_is_refused_and_left_untouched(tmp_path: Path) -> None:
    content = b"precious notes " * 1000
    (tmp_path / "journal.db").write_bytes(content)
    with pytest.raises(JournalError, match=r"journal\.db is damaged .*left untouched"):
        versions.prepare(url_of(tmp_path))
    assert (tmp_path / "journal.db").read_bytes() == content


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
