"""One database under the journal: opening it safely, transactions, and the few words of SQL that differ.

Statements of the journal are written once, with `:name` parameters and three kinds of macros that
`render` fills in: `{rows:a int, b text}` (a JSON array of arrays as a table), `{ids}` (a JSON array of
integers as a table) and `{greatest}`. One statement serves a whole group: `executemany` would take the
interpreter's lock once per row.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError

from bridge.errors import JournalError, JournalUnavailableError
from bridge.journal.locks import TransactionLock

#: Pages of 4 KiB in the write-ahead log before a checkpoint. SQLite's default of 1,000 costs 30–45 % of the
#: write rate at groups of 100 events; 8,000 keep the log at about 32 MiB.
WAL_AUTOCHECKPOINT_PAGES = 8_000
#: Negative: KiB. Hot pages of records and desired values.
CACHE_KIB = 32_000
#: Only foreign tools can make us wait here: our own writers take turns on the transaction lock.
BUSY_TIMEOUT_MS = 5_000

NETWORK_FILE_SYSTEMS = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "9p",
    "fuse.sshfs",
    "glusterfs",
    "ceph",
    "lustre",
}

Row = Sequence[Any]


class Database:
    """An open SQLite journal. Thread-safe; make it after `fork`, never before."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.path = sqlite_path(url)
        refuse_network_file_system(self.path)
        self.lock = TransactionLock(self.path.with_name(self.path.name + ".lock"))
        self._durable = self._engine("FULL")
        # What a call's end leaves behind may be lost in a power cut (the values are sent again), but not
        # in a crash of the process: no fsync is waited for.
        self._relaxed = self._engine("NORMAL")
        self._local = threading.local()

    def _engine(self, synchronous: str) -> Engine:
        engine = sa.create_engine(
            f"sqlite:///{self.path}",
            pool_size=4,
            max_overflow=32,
            connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False},
        )

        @event.listens_for(engine, "connect")
        def _connect(connection: sqlite3.Connection, _record: object) -> None:
            connection.isolation_level = None  # transactions are begun below, by name
            cursor = connection.cursor()
            cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")  # counts only before the first table
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute(f"PRAGMA synchronous={synchronous}")
            cursor.execute(f"PRAGMA wal_autocheckpoint={WAL_AUTOCHECKPOINT_PAGES}")
            cursor.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
            cursor.execute("PRAGMA temp_store=MEMORY")
            cursor.close()

        return engine

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """One write transaction, committed at the end of the block, rolled back by an exception.

        Raises JournalUnavailableError when the database cannot be written, JournalError when it is
        damaged; data errors (sqlalchemy.exc.DataError, IntegrityError) pass.
        """
        engine = self._durable if durable else self._relaxed
        with translated(self.path), self.lock.held(), engine.connect() as connection:
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

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One read transaction: a consistent view, never waiting for writers."""
        with translated(self.path), self._relaxed.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            try:
                yield connection
            finally:
                rollback(connection)

    def size(self) -> int:
        """Bytes on disk, with the write-ahead log."""
        total = 0
        for suffix in ("", "-wal"):
            try:
                total += self.path.with_name(self.path.name + suffix).stat().st_size
            except FileNotFoundError:
                continue
        return total

    def close(self) -> None:
        """Close all connections; the object cannot be used afterwards."""
        self._durable.dispose()
        self._relaxed.dispose()
        self.lock.close()


def rollback(connection: Connection) -> None:
    """End the transaction if one is open. SQLite has ended it itself after some errors."""
    raw: Any = connection.connection.dbapi_connection
    if raw is not None and raw.in_transaction:
        raw.rollback()


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn the driver's trouble with the file into our errors, with what to do about it."""
    try:
        yield
    except (sa.exc.IntegrityError, sa.exc.DataError):
        raise
    except DBAPIError as error:
        message = str(error.orig)
        if any(sign in message for sign in ("malformed", "not a database", "disk image")):
            raise JournalError(
                f"the journal {path} is damaged ({message}); it was left untouched: restore a backup, or "
                "recover a copy with the sqlite3 shell's .recover"
            ) from error
        if isinstance(error, (sa.exc.OperationalError, sa.exc.InternalError)):
            raise JournalUnavailableError(f"the journal {path} cannot be used: {message}") from error
        raise


def sqlite_path(url: str) -> Path:
    """The file that a `sqlite:///…` URL names. Raises JournalError for other URLs."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise JournalError(f"journal.url {url!r} is not a SQLite file; write sqlite:////absolute/path/journal.db")
    return Path(parsed.database).absolute()


def refuse_network_file_system(path: Path) -> None:
    """Refuse file systems on which SQLite's locks and shared memory are not to be trusted."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    best: tuple[int, str] = (0, "")
    for line in mounts:
        parts = line.split()
        point = parts[1].encode().decode("unicode_escape") if len(parts) > 2 else "/"
        if path.is_relative_to(point) and len(point) >= best[0]:
            best = (len(point), parts[2])
    if best[1] in NETWORK_FILE_SYSTEMS:
        raise JournalError(
            f"the journal {path} lies on a network file system ({best[1]}), where file locks cannot be trusted; "
            "use a local volume, or PostgreSQL"
        )


def check_folder(path: Path) -> None:
    """Raise JournalUnavailableError, with what to change, unless a journal can be made and written here."""
    folder = path.parent
    probe = folder / f".{path.name}.probe"
    try:
        if not folder.is_dir():
            raise JournalUnavailableError(
                f"the journal's folder {folder} does not exist; create or mount it, or change journal.url"
            )
        if path.is_dir():
            raise JournalUnavailableError(f"the journal {path} is a folder; journal.url must name a file")
        probe.write_bytes(b"x")
        probe.unlink()
        if path.exists():
            path.open("r+b").close()
    except OSError as error:
        raise JournalUnavailableError(
            f"the journal {path} cannot be written: {error.strerror}; mount its volume writable for the user "
            "that runs partner-bridge, or change journal.url"
        ) from error


# --- statements ---------------------------------------------------------------------------------

_MACRO = re.compile(r"\{(rows|ids|greatest)(?::([^}]*))?\}")
_CAST = {"int": "bigint", "text": "text"}


@cache
def render(sql: str, dialect: str = "sqlite") -> str:
    """A statement's text for one dialect."""

    def macro(match: re.Match[str]) -> str:
        kind, columns = match.group(1), match.group(2)
        if kind == "greatest":
            return "max" if dialect == "sqlite" else "greatest"
        if kind == "ids":
            if dialect == "sqlite":
                return "(SELECT value AS id FROM json_each(:ids))"
            return "(SELECT value::bigint AS id FROM jsonb_array_elements_text(cast(:ids AS jsonb)))"
        names = [column.split() for column in columns.split(",")]
        if dialect == "sqlite":
            picked = ", ".join(f"value ->> {at} AS {name}" for at, (name, _) in enumerate(names))
            return f"(SELECT {picked} FROM json_each(:rows))"
        picked = ", ".join(f"(value ->> {at})::{_CAST[kind]} AS {name}" for at, (name, kind) in enumerate(names))
        return f"(SELECT {picked} FROM jsonb_array_elements(cast(:rows AS jsonb)))"

    return _MACRO.sub(macro, sql)


def run(connection: Connection, sql: str, **parameters: Any) -> sa.CursorResult[Any]:
    """Execute one statement; `rows` and `ids` are turned into JSON here."""
    bound: dict[str, Any] = {
        name: orjson.dumps(value).decode() if name in {"rows", "ids"} else value for name, value in parameters.items()
    }
    return connection.exec_driver_sql(render(sql), bound)


def fetch(connection: Connection, sql: str, **parameters: Any) -> Sequence[Row]:
    """Execute one statement and return its rows as plain tuples: for a few rows."""
    return run(connection, sql, **parameters).fetchall()


def select(connection: Connection, columns: str, sql: str, **parameters: Any) -> Sequence[Row]:
    """The rows of a SELECT that yields these columns: for many rows.

    They come as one JSON text, because sqlite3 gives up the interpreter's lock at every row that it hands over,
    and gets it back only after a busy thread's whole turn.
    """
    text = run(connection, f"SELECT json_group_array(json_array({columns})) FROM ({sql})", **parameters).scalar_one()
    rows: Sequence[Row] = orjson.loads(text)
    return rows


def one(connection: Connection, sql: str, **parameters: Any) -> Mapping[str, Any] | None:
    """The first row as a mapping, or None."""
    row = run(connection, sql, **parameters).mappings().first()
    return dict(row) if row is not None else None
