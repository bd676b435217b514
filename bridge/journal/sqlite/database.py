"""The SQLite journal's file under `Database`: opening it safely, one writer at a time, trouble with the disk."""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from bridge.errors import JournalDamagedError, JournalDiskError, JournalError, JournalUnavailableError
from bridge.journal.database import Database, fetch, run
from bridge.journal.sqlite.files import (
    LOCK,
    Mark,
    TransactionLock,
    beside,
    file_id,
    log_size,
    refuse_network_file_system,
    size_of,
    sqlite_path,
)
from bridge.journal.sqlite.trouble import failing, rewrite, translated, uri

#: Pages of 4 KiB in the write-ahead log before a checkpoint. SQLite's default of 1,000 costs 30–45 % of the
#: write rate at groups of 100 events; 8,000 keep the log at about 32 MiB.
WAL_AUTOCHECKPOINT_PAGES = 8_000
#: Negative: KiB. Hot pages of records and desired values.
CACHE_KIB = 16_000
#: `auto_vacuum`: space is given back when asked for.
INCREMENTAL = 2
#: Only foreign tools can make us wait here: our own writers take turns on the transaction lock.
BUSY_TIMEOUT_MS = 5_000
#: What could not be tidied up is tried again at most this often: every writer waits meanwhile.
TIDY_EVERY_S = 0.5
#: Bytes that must fit before a disk that was full counts as writable again.
BALLAST = 64 * 1024
#: Pages given back to the file system in one step, and how long that may take: beside a busy thread sqlite3 waits
#: for the interpreter's lock after each.
VACUUM_PAGES, VACUUM_S = 256, 0.005
#: Free pages that are kept for what comes next.
SPARE_PAGES = 256


class SqliteDatabase(Database):
    """An open SQLite journal. Thread-safe; make it after `fork`, never before.

    After a failed write or fsync nothing is written before the file could be rewritten (`trouble`); after damage
    nothing is written at all. All processes of the pod know by the transaction lock's mark.
    """

    def __init__(self, url: str, *, troubled: Callable[[str], None] = lambda _kind: None) -> None:
        """`troubled` is told the kind of trouble, each time: `full`, `io`, `read-only`, `damaged`, `gone`."""
        self.path = sqlite_path(url)
        refuse_network_file_system(self.path)
        self.lock = TransactionLock(beside(self.path, LOCK))
        self._troubled = troubled
        self._file = file_id(self.path)  # the one that is meant, whatever takes its name later
        self._was_full = False  # since the last time that there was plenty of room
        self._tidied_at = float("-inf")  # monotonic: when the log could not be emptied, or the file was rewritten
        self._free_then = 0  # bytes of room on the disk when the log could not be emptied
        self._durable = self._engine("FULL")
        # What a call's end leaves behind may be lost in a power cut (the values are sent again), but not
        # in a crash of the process: no fsync is waited for.
        self._relaxed = self._engine("NORMAL")

    def _engine(self, synchronous: str) -> Engine:
        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(
                uri(self.path, "rw"),  # never makes a file: a journal that went missing is not begun anew
                uri=True,
                timeout=BUSY_TIMEOUT_MS / 1000,
                check_same_thread=False,
                isolation_level=None,  # transactions are begun below, by name
            )
            cursor = connection.cursor()
            if cursor.execute("PRAGMA auto_vacuum").fetchone() != (INCREMENTAL,):  # setting it is a write, each time
                cursor.execute(f"PRAGMA auto_vacuum={INCREMENTAL}")  # counts only before the first table
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute(f"PRAGMA synchronous={synchronous}")
            cursor.execute(f"PRAGMA wal_autocheckpoint={WAL_AUTOCHECKPOINT_PAGES}")
            cursor.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
            cursor.execute("PRAGMA temp_store=MEMORY")
            cursor.close()
            if self._file is None:
                self._file = file_id(self.path)
            return connection

        return sa.create_engine(f"sqlite:///{self.path}", creator=connect, pool_size=4, max_overflow=32)

    relaxed_outlives_crash = True

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        engine = self._durable if durable else self._relaxed
        self._refuse_gone()  # else a lock file would be made where the journal is not
        with self.lock.held():
            self._refuse_untrusted()
            self._keep_room()
            try:
                with translated(self.path), engine.connect() as connection:
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                    try:
                        yield connection
                    except BaseException:
                        rollback(connection)
                        raise
                    try:
                        connection.exec_driver_sql("COMMIT")
                    except BaseException:
                        rollback(connection)
                        raise
            except JournalError as error:
                self._note(error)
                raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        self._refuse_gone()
        try:
            with translated(self.path), self._relaxed.connect() as connection:
                connection.exec_driver_sql("BEGIN")
                try:
                    yield connection
                finally:
                    rollback(connection)
        except JournalDamagedError:
            self._troubled("damaged")
            self.lock.warn(Mark.DAMAGED)
            raise

    # --- trouble ---

    def check_writable(self) -> None:
        with self.write() as connection:
            run(connection, "UPDATE dispatcher SET id = 1 WHERE id = 1")
        self._check_room()

    def _check_room(self) -> None:
        """After the disk was full: raise JournalDiskError unless a good deal can be written again.

        A small change may still fit where a webhook's events do not; then the service is not ready.
        """
        if not self._was_full:
            return
        with self.write() as connection:
            connection.exec_driver_sql(
                "INSERT OR REPLACE INTO meta (name, value) VALUES ('ballast', hex(zeroblob(?)))", (BALLAST // 2,)
            )
        with self.write() as connection:
            connection.exec_driver_sql("DELETE FROM meta WHERE name = 'ballast'")
        self._was_full = False
        with self.lock.held():
            self._give_back()

    def _refuse_untrusted(self) -> None:
        """Raise JournalError unless the file may be written; rewrites it first where that is due."""
        self._refuse_gone()
        refuse_mark(self.path, self.lock.mark)
        if self.lock.mark is not Mark.SUSPECT:
            return
        if time.monotonic() - self._tidied_at < TIDY_EVERY_S:
            raise failing(self.path, "a write failed a moment ago")
        self._tidied_at = time.monotonic()
        # Connections that saw the failure are not used again; those that read now are closed by their readers.
        self._durable.dispose()
        self._relaxed.dispose()
        try:
            rewrite(self.path)
        except JournalError as error:
            self._note(error)
            raise
        self.lock.mark = Mark.IN_USE

    def _refuse_gone(self) -> None:
        """Raise JournalUnavailableError when the file is not the one that was opened: its end would be ours too."""
        if self._file is not None and file_id(self.path) != self._file:
            self._troubled("gone")
            raise JournalUnavailableError(
                f"the journal {self.path} was moved, removed or replaced while it was in use; put it back, or restart"
            )

    def _note(self, error: JournalError) -> None:
        """Remember what a failed write means for the next one; the lock is held."""
        if isinstance(error, JournalDamagedError):
            self._troubled("damaged")
            self.lock.mark = Mark.DAMAGED
        elif isinstance(error, JournalDiskError):
            self._troubled(error.kind)
            if error.kind == "full":
                self._was_full = True
                self._give_back()
            elif error.kind == "io":
                self.lock.mark = Mark.SUSPECT

    def _keep_room(self) -> None:
        """Empty the write-ahead log while the disk has as much room as it takes: the database file may have to grow by
        all of it. A log that took the last room could not be emptied any more. The lock is held.
        """
        if self._free() < log_size(self.path):
            self._give_back()

    def _free(self) -> int:
        """Bytes that may still be written to the disk; plenty where the file system does not tell."""
        try:
            disk = os.statvfs(self.path.parent)
        except OSError:  # what is written next tells of it
            return sys.maxsize
        return disk.f_bavail * disk.f_frsize if disk.f_blocks else sys.maxsize

    def _give_back(self) -> None:
        """Empty the write-ahead log, unless that failed a moment ago and there is no more room since; the lock is held.

        On a full disk its room is what the journal can help itself with.
        """
        free = self._free()
        if time.monotonic() - self._tidied_at < TIDY_EVERY_S and free <= self._free_then:
            return
        try:
            rewrite(self.path)
        except JournalError:
            self._tidied_at, self._free_then = time.monotonic(), free

    # --- the rest ---

    def size(self) -> int:
        """Bytes of the pages in use and of the write-ahead log: what is free within the file is there for what comes
        next, and is cut off it at a checkpoint.
        """
        return self._used() + log_size(self.path)

    def _used(self) -> int:
        try:
            with self.read() as connection:
                pages, free, page = (
                    int(fetch(connection, f"PRAGMA {name}")[0][0])
                    for name in ("page_count", "freelist_count", "page_size")
                )
        except JournalError:  # it is told elsewhere; the file is still there to be seen
            return size_of(self.path)
        return (pages - free) * page

    def give_back(self, connection: Connection) -> int:
        free = int(fetch(connection, "PRAGMA freelist_count")[0][0])
        raw: Any = connection.connection.dbapi_connection
        given, until = 0, time.monotonic() + VACUUM_S
        while given < min(free - SPARE_PAGES, VACUUM_PAGES) and time.monotonic() < until:
            # One page at a time: the pragma yields a row without columns for each, after which sqlite3 ends it.
            raw.execute("PRAGMA incremental_vacuum(1)")
            given += 1
        return given

    def close(self) -> None:
        self._durable.dispose()
        self._relaxed.dispose()
        self.lock.close()


def refuse_mark(path: Path, mark: Mark) -> None:
    """Raise JournalDamagedError when the journal must not be written, whoever found that out."""
    if mark is Mark.DAMAGED:
        raise JournalDamagedError(
            f"the journal {path} was found damaged and is not written any more: restore a backup (`partner-bridge "
            "journal restore`), or recover a copy with the sqlite3 shell's .recover; `partner-bridge journal verify` "
            "lifts this when all is well"
        )
    if mark is Mark.RESTORING:
        raise JournalDamagedError(
            f"a restore of the journal {path} was cut short: run `partner-bridge journal restore` again"
        )


def rollback(connection: Connection) -> None:
    """End the transaction if one is open. SQLite has ended it itself after some errors."""
    raw: Any = connection.connection.dbapi_connection
    if raw is not None and raw.in_transaction:
        raw.rollback()
