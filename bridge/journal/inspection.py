"""Looking at a journal's file without changing a byte of it: before it is used, and when somebody asks.

`inspect` is what every start does, `verify` all that can be checked. Both open the file read-only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bridge.errors import JournalDamagedError, JournalError
from bridge.journal.locks import Mark
from bridge.journal.trouble import WAY_OUT, damaged, translated, uri

#: Files up to this many bytes are checked whole at every start; that takes a tenth of a second. Larger ones when
#: somebody asks.
CHECKED_AT_START = 64 << 20
#: Problems told of one file.
TOLD = 20

#: Whether confirmed values of `records r` go once more after a doubt.
_AGAIN = """(r.doubt_us IS NOT NULL AND EXISTS (
               SELECT 1 FROM desired d WHERE d.record = r.id AND d.state = 1 AND d.revision > r.doubt_n))"""
#: What must hold between the tables (`schema`): what is wrong, and a query of how many rows are.
INVARIANTS = (
    ("pending values without a record", "FROM desired d LEFT JOIN records r ON r.id = d.record WHERE r.id IS NULL"),
    (
        "records with pending values that are not due",
        """FROM records r WHERE EXISTS (SELECT 1 FROM desired d WHERE d.record = r.id AND d.state = 0)
              AND NOT EXISTS (SELECT 1 FROM due WHERE due.record = r.id
                                 AND (due.due_us IS NOT NULL OR r.parked_us IS NOT NULL))""",
    ),
    (
        "pending values whose source is not due",
        """FROM desired d WHERE d.state = 0 AND EXISTS (SELECT 1 FROM due WHERE due.record = d.record)
              AND NOT EXISTS (SELECT 1 FROM due WHERE due.record = d.record AND due.source = coalesce(d.source, ''))""",
    ),
    (
        "due rows for which nothing waits",
        f"""FROM due JOIN records r ON r.id = due.record
             WHERE NOT EXISTS (SELECT 1 FROM desired d WHERE d.record = r.id AND d.state = 0
                                  AND coalesce(d.source, '') = due.source)
               AND NOT {_AGAIN}""",
    ),
    (
        "failures of records for which nothing waits",
        f"""FROM records r
             WHERE (coalesce(r.category, r.message) IS NOT NULL OR r.attempts > 0
                    OR coalesce(r.parked_us, r.retry_us, r.failing_since_us) IS NOT NULL)
               AND NOT EXISTS (SELECT 1 FROM desired d WHERE d.record = r.id AND d.state = 0)
               AND NOT {_AGAIN}""",
    ),
    (
        "due rows without a time of records that are not parked",
        "FROM due JOIN records r ON r.id = due.record WHERE due.due_us IS NULL AND r.parked_us IS NULL",
    ),
    ("due rows without a record", "FROM due LEFT JOIN records r ON r.id = due.record WHERE r.id IS NULL"),
    (
        "due rows of another lane than their record",
        "FROM due JOIN records r ON r.id = due.record AND r.lane <> due.lane",
    ),
    (
        "due rows of parked records",
        "FROM due JOIN records r ON r.id = due.record WHERE r.parked_us IS NOT NULL AND due.due_us IS NOT NULL",
    ),
    ("records of an unknown lane", "FROM records r LEFT JOIN lanes l ON l.id = r.lane WHERE l.id IS NULL"),
    (
        "values newer than their record",
        "FROM desired d JOIN records r ON r.id = d.record WHERE d.n > r.n OR d.revision > r.n",
    ),
    ("asks newer than their record", "FROM asks a JOIN records r ON r.id = a.record WHERE a.n > r.n"),
    ("asks of unknown events", "FROM asks a LEFT JOIN events e ON e.seq = a.event WHERE e.seq IS NULL"),
    ("values in an unknown state", "FROM desired WHERE state NOT BETWEEN 0 AND 4"),
    ("events that wait without a reason", "FROM events WHERE waits = 1 AND unmappable IS NULL"),
    ("rows of the dispatcher beside its own", "FROM dispatcher WHERE id <> 1"),
)
#: The same, in SQLite's words.
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
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size and not (path.exists() and path.stat().st_size):
        raise JournalDamagedError(
            f"the journal {path} is missing or empty, but {log.name} beside it holds changes; {WAY_OUT}, or put the "
            "file back, or remove the log too to begin anew"
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
