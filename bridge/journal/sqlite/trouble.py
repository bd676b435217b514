"""Trouble with the journal's file: looked for, told apart, mended.

* The disk is *full*: nothing is lost, the next write may fit.
* A write or an fsync *failed*: the kernel may have dropped what earlier commits wrote and calls the pages clean,
  so that a later fsync proves nothing about them. The file is trusted again only when `rewrite` went through.
* The file is *damaged*: only a person can help, and nothing is written any more.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from bridge.errors import JournalDamagedError, JournalDiskError, JournalError, JournalUnavailableError
from bridge.journal.schema import INVARIANTS, TOLD
from bridge.journal.sqlite.files import LOG, Mark, beside, log_size, size_of

#: How long the rewriting waits for readers, while all writers wait for it.
READERS_S = 0.2
WAY_OUT = (
    "it was left untouched: restore a backup (`partner-bridge journal restore`), or recover a copy with the sqlite3 "
    "shell's .recover"
)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn the driver's trouble with the file into our errors, with what to do about it.

    Raises JournalDiskError, JournalDamagedError or JournalUnavailableError; errors about data pass, the driver's and
    SQLAlchemy's.
    """
    try:
        yield
    except (sa.exc.IntegrityError, sa.exc.DataError):
        raise
    except DBAPIError as error:
        if isinstance(error.orig, sqlite3.Error) and (ours := explained(path, error.orig)) is not None:
            raise ours from error
        raise
    except sqlite3.Error as error:
        if (ours := explained(path, error)) is not None:
            raise ours from error
        raise


def explained(path: Path, error: sqlite3.Error) -> JournalError | None:
    """Our error for one of SQLite's; None for a mistake in a statement or its data."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest tells details
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return damaged(path, str(error))
    if code == sqlite3.SQLITE_FULL:
        return JournalDiskError(
            "full",
            f"the journal {path} cannot be written: its disk is full ({error}); free space or enlarge the volume, "
            "and intake goes on by itself",
        )
    if code == sqlite3.SQLITE_IOERR:
        return failing(path, str(error))
    if code == sqlite3.SQLITE_READONLY:
        return JournalDiskError(
            "read-only",
            f"the journal {path} cannot be written: it is read-only ({error}); mount its volume writable",
        )
    if isinstance(error, (sqlite3.OperationalError, sqlite3.InternalError)):
        return JournalUnavailableError(f"the journal {path} cannot be used: {error}")
    return None


def failing(path: Path, why: str) -> JournalDiskError:
    """The error for a file that must be rewritten before it is trusted again."""
    return JournalDiskError(
        "io",
        f"the journal {path} cannot be written safely: its disk fails ({why}); it is tried again until all of it could "
        "be rewritten: look into the kernel's log",
    )


def damaged(path: Path, why: str) -> JournalDamagedError:
    """The error for a damaged file: one line that names it and the way out."""
    return JournalDamagedError(f"the journal {path} is damaged ({why}); {WAY_OUT}")


def uri(path: Path, mode: str) -> str:
    """SQLite's name for a file that is there: `rw` or `ro`, so that none is made by opening it."""
    return f"file:{quote(str(path))}?mode={mode}"


def rewrite(path: Path) -> None:
    """Write all that the write-ahead log holds into the database file, fsync that, and empty the log.

    What SQLite could not fsync before is written anew, because it takes note of a checkpoint only at its end.
    Raises JournalError, also while someone reads an old state of the journal. The transaction lock must be held.
    """
    with translated(path), closing(sqlite3.connect(uri(path, "rw"), uri=True, timeout=READERS_S)) as connection:
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous=FULL")
        busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    if busy:
        raise JournalUnavailableError(
            f"the journal {path} could not be rewritten after a failed write, because it is being read; it is "
            "tried again"
        )


# --- looking at a journal's file without changing a byte of it: before it is used, and when somebody asks ---
#
# `inspect` is what every start does, `verify` all that can be checked. Both open the file read-only.

#: Files up to this many bytes are checked whole at every start; that takes a tenth of a second. Larger ones when
#: somebody asks.
CHECKED_AT_START = 64 << 20
SQLITE_INVARIANTS = (
    *INVARIANTS,
    ("unreadable rows of the dispatcher", "FROM dispatcher WHERE NOT json_valid(pauses) OR NOT json_valid(figures)"),
)


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """One consistent state of the journal, for reading only. Raises JournalError."""
    with translated(path), closing(sqlite3.connect(uri(path, "ro"), uri=True, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_master")  # the state begins with the first read
        yield connection


def inspect(path: Path, *, mark: Mark = Mark.NEW, thoroughly: bool = False) -> str | None:
    """The journal's version; None when there is nothing yet.

    Raises JournalDamagedError, and JournalError for a file that is not a journal.
    """
    refuse_lone_log(path)
    if not path.exists():
        return None
    if path.stat().st_size == 0:
        if mark is not Mark.NEW:
            raise damaged(path, "the file is empty, and there was a journal in it")
        return None
    with reading(path) as connection:
        version = version_of(path, connection)
        if thoroughly and path.stat().st_size <= CHECKED_AT_START and (problems := _structure(connection)):
            raise damaged(path, problems[0])
    return version


def version_of(path: Path, connection: sqlite3.Connection) -> str | None:
    """The version that stands in an open file. Raises JournalError when it is no journal at all."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "alembic_version" in tables:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return None if row is None else str(row[0])
    if tables:
        raise JournalError(
            f"{path} is the database of another program (tables {', '.join(sorted(tables)[:3])} …); it was left "
            "untouched: give journal.url a file of its own"
        )
    return None


def refuse_lone_log(path: Path) -> None:
    """Raise JournalDamagedError when only the write-ahead log is left: SQLite would delete it without a word."""
    if log_size(path) and not size_of(path):
        raise JournalDamagedError(
            f"the journal {path} is missing or empty, but {beside(path, LOG).name} beside it holds changes; {WAY_OUT}, "
            "or put the file back, or remove the log too to begin anew"
        )


def verify(path: Path) -> list[str]:
    """Everything that is wrong with a journal, at most `TOLD` lines; also beside a running service.

    Raises JournalError when the file cannot be read at all.
    """
    refuse_lone_log(path)
    with reading(path) as connection:
        if version_of(path, connection) is None:
            return ["there are no tables in it"]
        problems = _structure(connection, "integrity_check")
        if problems:
            return problems
        for what, query in SQLITE_INVARIANTS:
            number = connection.execute(f"SELECT count(*) {query}").fetchone()[0]
            if number:
                problems.append(f"{number} {what}")
    return problems[:TOLD]


def _structure(connection: sqlite3.Connection, check: str = "quick_check") -> list[str]:
    """What SQLite finds wrong with the file."""
    try:
        found = [str(line).replace("\n", " ") for (line,) in connection.execute(f"PRAGMA {check}({TOLD})")]
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            return [str(error)]
        raise
    return [] if found == ["ok"] else found
