"""Trouble with the journal's file, told apart by what cures it, and the rewriting after a failed write.

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
