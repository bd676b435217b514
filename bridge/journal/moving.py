"""Moving up: the whole journal from SQLite to PostgreSQL, in steps that a crash can neither lose nor double.

One snapshot of the file is copied table by table. Each step notes how far it came in the transaction that copies, so
that a second run goes on there; if the file was changed in between, it begins anew. Until the last step has counted
all tables, the target's version is `MOVING`, which no program serves or migrates.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from sys import getsizeof
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import Table

from bridge.errors import JournalError, JournalLockedError, JournalUnavailableError, JournalVersionError
from bridge.journal import versions
from bridge.journal.database import save_meta
from bridge.journal.schema import HEAD, MOVING, metadata
from bridge.journal.sqlite import trouble
from bridge.journal.sqlite.database import SqliteDatabase
from bridge.journal.sqlite.files import LOCK, TransactionLock, beside, log_size, sqlite_path
from bridge.journal.sqlite.trouble import damaged, rewrite

if TYPE_CHECKING:
    from psycopg import Connection


# --- the PostgreSQL side of a move: whether a database is fit to be its target, and how far the move came there ---

#: Rows in `meta`: which journal a file is; how far a move came; what was moved here.
IDENTITY, PROGRESS, MOVED = "identity", "moving", "moved"
#: Of one place, and not of the journal.
LOCAL = frozenset({IDENTITY, PROGRESS, MOVED, "ballast", "probe"})


@dataclass(slots=True)
class Checkpoint:
    """How far a move came. `state` tells whether the file is still the one that was being copied."""

    identity: str
    state: str
    version: str
    done: dict[str, int] = field(default_factory=dict)  # rows by table
    table: str = ""  # in the middle of this one, after this key
    after: list[Any] = field(default_factory=list)


@contextmanager
def connected(target: str) -> Iterator[Connection[Any]]:
    """A connection for the whole move, in autocommit. Its trouble is told as ours."""
    import psycopg

    try:
        with psycopg.connect(target, autocommit=True, prepare_threshold=None) as connection:
            yield connection
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise JournalUnavailableError(
            f"PostgreSQL cannot be used ({_first_line(error)}); run the same command again, it goes on where it stopped"
        ) from error
    except psycopg.Error as error:
        raise JournalError(f"PostgreSQL does not take the journal: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """Without the details, which hold values."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def begin(connection: Connection[Any], target: str, identity: str, state: str) -> Checkpoint | None:
    """Where to go on; None when an earlier run came to the end. Raises JournalError for a target that is not ours."""
    while True:
        if _version(connection) != MOVING:
            versions.prepare(target)
        with connection.transaction():
            connection.execute("LOCK TABLE alembic_version IN EXCLUSIVE MODE")  # against another move
            moved, under_way = _meta(connection, MOVED), _meta(connection, PROGRESS)
            if moved is not None:
                _refuse_other(moved, identity)
                if moved["state"] == state:
                    return None
                raise JournalError(
                    "the target holds this journal as of an earlier move, and may have been served since, while the "
                    "file was changed too: serve the target, or name an empty database"
                )
            if under_way is None:
                _refuse_used(connection)
                return _begin_anew(connection, identity, state)
            _refuse_other(under_way, identity)
            if under_way["state"] == state:
                return Checkpoint(**under_way)
            _empty(connection)  # the file was changed since: these rows are out of date
            connection.execute("UPDATE alembic_version SET version_num = %s", (under_way["version"],))


def _version(connection: Connection[Any]) -> str | None:
    row = connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def _meta(connection: Connection[Any], name: str) -> dict[str, Any] | None:
    row = connection.execute("SELECT value FROM meta WHERE name = %s", (name,)).fetchone()
    found: dict[str, Any] | None = None if row is None else orjson.loads(row[0])
    return found


def _refuse_other(checkpoint: Mapping[str, Any], identity: str) -> None:
    if checkpoint["identity"] != identity:
        raise JournalError("the target holds another journal's data, or part of it: name an empty database")


def _refuse_used(connection: Connection[Any]) -> None:
    """Raise JournalError unless there is nothing in the target, and nobody at it."""
    row = connection.execute(
        "SELECT count(*) FROM dispatcher WHERE until_us > extract(epoch FROM clock_timestamp()) * 1000000"
    ).fetchone()
    if row is not None and row[0]:
        raise JournalLockedError("a service runs on the target: stop it first, or name an empty database")
    filled = [name for name, rows in rows_by_table(connection).items() if rows and name != "dispatcher"]
    if filled:
        raise JournalError(
            f"the target holds another journal's data (in {', '.join(sorted(filled))}): name an empty database"
        )


def _begin_anew(connection: Connection[Any], identity: str, state: str) -> Checkpoint:
    version = _version(connection)
    assert version is not None  # noqa: S101 (prepared before)
    checkpoint = Checkpoint(identity, state, version)
    _empty(connection)
    connection.execute("UPDATE alembic_version SET version_num = %s", (MOVING,))
    connection.execute("INSERT INTO meta (name, value) VALUES (%s, %s)", (PROGRESS, as_json(asdict(checkpoint))))
    return checkpoint


def _empty(connection: Connection[Any]) -> None:
    names = ", ".join(table.name for table in metadata.sorted_tables)
    connection.execute(f"TRUNCATE {names}".encode())


def as_json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()  # a table's name is more than a str


def rows_by_table(connection: Connection[Any]) -> dict[str, int]:
    """Rows by table, without what is the place's own."""
    counts = {}
    for table in metadata.sorted_tables:
        where = "WHERE name <> ALL(%s)" if table.name == "meta" else ""
        parameters = (sorted(LOCAL),) if where else None
        row = connection.execute(f"SELECT count(*) FROM {table.name} {where}".encode(), parameters).fetchone()
        counts[table.name] = 0 if row is None else int(row[0])
    return counts


#: One step's rows and bytes: about a second's work, and what a crash costs.
STEP_ROWS = 10_000
STEP_BYTES = 8 << 20

#: Told the rows that are copied, and all of them.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Moved:
    """What is in PostgreSQL now: rows by table. `before`: an earlier run had done it all."""

    rows: Mapping[str, int]
    before: bool


def move(url: str, target: str, *, progress: Progress = lambda _done, _all: None) -> Moved:
    """Carry the journal over; the file stays as it is. Returns when all of it is committed and counted.

    Raises JournalLockedError beside a running service, JournalDamagedError, JournalVersionError, JournalError for a
    target that holds something else, JournalUnavailableError when it was cut short: then a second run goes on.
    """
    path = sqlite_path(url)
    versions.check(url)
    service = versions.ServiceLock(url)
    if not (service.holder() is None and _free(service)):
        raise JournalLockedError(f"the journal {path} is in use by a running service: stop that first, then move it")
    try:
        if problems := trouble.verify(path):
            raise damaged(path, problems[0])
        identity = _identify(url, path)
        with trouble.reading(path) as origin:
            if trouble.version_of(path, origin) != HEAD:  # what this program does not know would stay behind
                raise JournalVersionError(f"the journal {path} is a newer version's: move it with the newer program")
            state = _state(path)
            with connected(target) as connection:
                checkpoint = begin(connection, target, identity, state)
                if checkpoint is None:
                    return Moved(rows_by_table(connection), before=True)
                _copy(origin, connection, checkpoint, progress)
                if _state(path) != state:
                    raise JournalError(
                        f"the journal {path} was changed while it was copied: run the same command again"
                    )
                return Moved(_finish(origin, connection, checkpoint), before=False)
    finally:
        service.release()


def _free(service: versions.ServiceLock) -> bool:
    try:
        service.acquire()
    except JournalLockedError:
        return False
    return True


# --- the file -----------------------------------------------------------------------------------


def _identify(url: str, path: Path) -> str:
    """The journal's lasting name, given to it at its first move; and everything in one file, for `_state`."""
    with trouble.reading(path) as connection:
        found = connection.execute("SELECT value FROM meta WHERE name = ?", (IDENTITY,)).fetchone()
    identity = secrets.token_hex(16) if found is None else str(found[0])
    if found is None:
        database = SqliteDatabase(url)
        try:
            with database.write() as written:
                save_meta(written, IDENTITY, identity)
        finally:
            database.close()
    if log_size(path):
        lock = TransactionLock(beside(path, LOCK))
        try:
            with lock.held():
                rewrite(path)
        finally:
            lock.close()
    return identity


def _state(path: Path) -> str:
    """What changes whenever the journal does: with an empty write-ahead log every change writes the file."""
    found = path.stat()
    return f"{found.st_mtime_ns}-{found.st_size}-{log_size(path)}"


def _keys(table: Table) -> list[str]:
    return [column.name for column in table.primary_key]


def _rows(origin: sqlite3.Connection, table: Table, after: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """The rows after this key, by key."""
    keys = ", ".join(_keys(table))
    where = f"WHERE ({keys}) > ({', '.join('?' * len(after))})" if after else ""
    for row in origin.execute(f"SELECT {_names(table)} FROM {table.name} {where} ORDER BY {keys}", tuple(after)):
        if table.name != "meta" or row[0] not in LOCAL:
            yield row


def _names(table: Table) -> str:
    return ", ".join(f'"{column.name}"' for column in table.columns)


def _rows_by_table(origin: sqlite3.Connection) -> dict[str, int]:
    local = ", ".join(f"'{name}'" for name in sorted(LOCAL))
    return {
        table.name: int(
            origin.execute(
                f"SELECT count(*) FROM {table.name}" + (f" WHERE name NOT IN ({local})" if table.name == "meta" else "")
            ).fetchone()[0]
        )
        for table in metadata.sorted_tables
    }


# --- copying ------------------------------------------------------------------------------------


def _copy(origin: sqlite3.Connection, connection: Connection[Any], checkpoint: Checkpoint, progress: Progress) -> None:
    """Copy what is left, step by step."""
    total = sum(_rows_by_table(origin).values())
    progress(sum(checkpoint.done.values()), total)
    for table in metadata.sorted_tables:
        if checkpoint.table != table.name and table.name in checkpoint.done:
            continue
        for step in _steps(_rows(origin, table, checkpoint.after if checkpoint.table == table.name else ())):
            keys = [[column.name for column in table.columns].index(name) for name in _keys(table)]
            checkpoint.table, checkpoint.after = table.name, [step[-1][at] for at in keys]
            checkpoint.done[table.name] = checkpoint.done.get(table.name, 0) + len(step)
            with connection.transaction():
                with connection.cursor().copy(f"COPY {table.name} ({_names(table)}) FROM STDIN".encode()) as copy:
                    for row in step:
                        copy.write_row(_here(table, row))
                connection.execute(
                    "UPDATE meta SET value = %s WHERE name = %s", (as_json(asdict(checkpoint)), PROGRESS)
                )
            progress(sum(checkpoint.done.values()), total)
        checkpoint.done.setdefault(table.name, 0)
        checkpoint.table, checkpoint.after = "", []


def _steps(rows: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    step: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        step.append(row)
        size += sum(getsizeof(value) for value in row if isinstance(value, str))
        if len(step) >= STEP_ROWS or size >= STEP_BYTES:
            yield step
            step, size = [], 0
    if step:
        yield step


def _here(table: Table, row: Sequence[Any]) -> Sequence[Any]:
    """The row as it stands in the target: nobody is on duty there yet."""
    if table.name != "dispatcher":
        return row
    fresh = {"holder": None, "epoch": 0, "until_us": None}
    return [fresh.get(column.name, value) for column, value in zip(table.columns, row, strict=True)]


def _numbers(origin: sqlite3.Connection) -> Iterator[tuple[str, str, int]]:
    """Table, key, and the last number that was given, also where its row is gone: `asks` and `desired` name it."""
    given: dict[str, int] = dict(origin.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
    for table in metadata.sorted_tables:
        column = table.autoincrement_column
        if column is not None:
            highest = origin.execute(f"SELECT coalesce(max({column.name}), 0) FROM {table.name}").fetchone()[0]
            if number := max(int(highest), given.get(table.name, 0)):
                yield table.name, column.name, number


def _finish(origin: sqlite3.Connection, connection: Connection[Any], checkpoint: Checkpoint) -> dict[str, int]:
    """Compare the counts, go on numbering where the file stopped, and let services in: all or nothing."""
    wanted = _rows_by_table(origin)
    with connection.transaction():
        connection.execute("SET LOCAL synchronous_commit = on")
        found = rows_by_table(connection)
        if found != wanted:
            differ = "; ".join(
                f"{name}: {found[name]} for {rows}" for name, rows in wanted.items() if rows != found[name]
            )
            raise JournalError(f"the target does not hold what was copied ({differ}): empty it and begin anew")
        for name, key, number in _numbers(origin):
            connection.execute("SELECT setval(pg_get_serial_sequence(%s, %s), %s)", (name, key, number))
        for table in metadata.sorted_tables:
            connection.execute(f"ANALYZE {table.name}".encode())
        connection.execute("DELETE FROM meta WHERE name = %s", (PROGRESS,))
        moved = {"identity": checkpoint.identity, "state": checkpoint.state}
        connection.execute("INSERT INTO meta (name, value) VALUES (%s, %s)", (MOVED, as_json(moved)))
        connection.execute("UPDATE alembic_version SET version_num = %s", (checkpoint.version,))
    return found
