"""A PostgreSQL journal under `Database`: connections, transactions, trouble, and what is tried again.

Nothing is kept in a session, so that PgBouncer's transaction pooling works: no prepared statements, no session locks,
every setting is `SET LOCAL`. A transaction whose process froze is ended by the server after `IDLE_S`, so that its locks
do not hold up all others.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from bridge.errors import (
    JournalDamagedError,
    JournalDiskError,
    JournalError,
    JournalTermError,
    JournalUnavailableError,
)
from bridge.journal.database import Database, T, fetch, run
from bridge.journal.schema import metadata

try:
    import psycopg
except ImportError as missing:
    raise JournalError(
        "journal.url is a PostgreSQL database, for which the driver is missing: install the extra `postgres` "
        "(pip install 'partner-bridge[postgres]')"
    ) from missing

# --- trouble with a PostgreSQL journal, told apart by what cures it ---

__all__ = ["ConflictError", "OutOfReachError", "SlowError", "explained", "psycopg", "translated"]


class ConflictError(JournalUnavailableError):
    """Two transactions got in each other's way; this one was undone and may be tried at once."""


class SlowError(JournalUnavailableError):
    """A lock or a statement took too long; the transaction was undone."""


class OutOfReachError(JournalUnavailableError):
    """The connection was refused or lost. When that was at the commit, it may have been done."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's trouble with the database into our errors, with what to do about it.

    Raises JournalDiskError, JournalDamagedError or JournalUnavailableError; errors of a statement or its data pass.
    """
    try:
        yield
    except sa.exc.TimeoutError as error:
        raise JournalUnavailableError(
            "all of this process's connections to the journal's database are in use: it is slow, or does not answer"
        ) from error
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):
            ours = explained(error.orig, lost=error.connection_invalidated)
            if ours is not None:
                raise ours from error
        raise
    except psycopg.Error as error:
        if (ours := explained(error, lost=False)) is not None:
            raise ours from error
        raise


#: By SQLSTATE, or its class: what to say and to do.
_LOST = {"57P01", "57P02", "57P03", "57P05", "25P03"}
_CONFLICTS = {"40001", "40P01"}
_SLOW = {"55P03", "57014", "25P04"}
_READ_ONLY = {"25006"}
_DAMAGED = {"XX001", "XX002"}
_REFUSED = {"42501": "may not do that there", "42P01": "has no such table"}


def explained(error: psycopg.Error, *, lost: bool) -> JournalError | None:
    """Our error for one of the driver's; None for a mistake in a statement or its data."""
    state = error.sqlstate or ""
    why = " ".join(str(error).split()) or type(error).__name__
    if state in _CONFLICTS:
        return ConflictError(f"the journal's database undid a transaction in favour of others ({why}); try again")
    if state in _SLOW:
        return SlowError(
            f"the journal's database is too slow ({why}): look for long transactions, locks and an overloaded disk"
        )
    if state == "53300":
        return OutOfReachError(
            f"the journal's database takes no more connections ({why}): raise its max_connections, or put PgBouncer "
            "in between"
        )
    if state == "53100":
        return JournalDiskError(
            "full",
            f"the journal's database cannot be written: its disk is full ({why}); free space or enlarge the volume, "
            "and intake goes on by itself",
        )
    if state in _READ_ONLY:
        return JournalDiskError(
            "read-only",
            f"the journal's database is read-only ({why}): journal.url must lead to the primary, as with "
            "target_session_attrs=read-write",
        )
    if state == "58030":
        return JournalDiskError("io", f"the journal's database cannot write safely: its disk fails ({why})")
    if state in _DAMAGED:
        return JournalDamagedError(f"the journal's database is damaged ({why}): restore a backup of it")
    if state in _REFUSED:
        return JournalError(f"the journal's database {_REFUSED[state]} ({why}): look at journal.url and its role")
    if lost or state in _LOST or state[:2] == "08" or (isinstance(error, psycopg.OperationalError) and not state):
        return OutOfReachError(f"the journal's database is out of reach: {why}")
    if state[:2] in {"53", "57", "58"}:
        return JournalUnavailableError(f"the journal's database cannot be used just now: {why}")
    if state[:2] in {"28", "3D"}:
        return JournalUnavailableError(f"the journal's database lets nobody in ({why}): look at journal.url")
    return None


#: Connections that a process keeps, and how many more it may open: its call threads, intake, probes and operators.
POOL, OVERFLOW = 4, 16
#: Seconds for a connection, from the pool or the server.
POOL_TIMEOUT_S, CONNECT_TIMEOUT_S = 5.0, 5
#: What libpq is told where `journal.url` says nothing: a server that is gone without a word is noticed within 20 s.
DEFAULTS: dict[str, Any] = {
    "application_name": "partner-bridge",
    "connect_timeout": CONNECT_TIMEOUT_S,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
}
#: Seconds after which an idle connection is replaced: behind a failover's address there may be another server.
RECYCLE_S = 600
#: Seconds that a write may wait for a lock, that one of its statements may take, and that it may stand idle.
LOCK_S, STATEMENT_S, IDLE_S = 4, 10, 4
#: The same for reading: people's queries may look at everything.
READ_STATEMENT_S, READ_IDLE_S = 60, 30
#: Times that a transaction is done again which got in another's way, and the longest pause between, in seconds.
CONFLICT_TRIES, CONFLICT_PAUSE_S = 10, 0.05
#: Seconds between two tries of one that is out of reach, too slow or read-only.
REACH_EVERY_S = 0.2
#: Bytes from which on a table is analyzed by ourselves when nobody did.
ANALYZED_FROM = 1 << 20
#: Seconds for which the size is believed.
SIZED_S = 5.0

_WRITE = (
    "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = {commit}; "
    f"SET LOCAL lock_timeout = '{LOCK_S}s'; SET LOCAL statement_timeout = '{STATEMENT_S}s'; "
    f"SET LOCAL idle_in_transaction_session_timeout = '{IDLE_S}s'"
)
_DURABLE, _RELAXED = _WRITE.format(commit="on"), _WRITE.format(commit="off")
_READ = (
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; "
    f"SET LOCAL statement_timeout = '{READ_STATEMENT_S}s'; "
    f"SET LOCAL idle_in_transaction_session_timeout = '{READ_IDLE_S}s'"
)
_NEVER_ANALYZED = f"""
SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace
   AND relname IN ({", ".join(f"'{name}'" for name in metadata.tables)})
   AND reltuples < 0 AND pg_relation_size(oid) >= :least LIMIT 1"""
#: What the tables take, but not more than their rows would if they stood side by side: what retention leaves free
#: stays the tables' own and is filled again. By the server's statistics; rows of 32 bytes' overhead, and index entries
#: and pages as full as they usually are.
_SIZE = """
SELECT coalesce(sum(CASE WHEN rows > 0 AND width > 0 THEN least(taken, rows * (width + 32 + indexes * 50) * 1.25
                                                                      + outside * 2100)
                         ELSE taken END), 0)
  FROM (SELECT pg_total_relation_size(c.oid) AS taken, s.n_live_tup AS rows, coalesce(t.n_live_tup, 0) AS outside,
               (SELECT sum(avg_width) FROM pg_stats
                 WHERE schemaname = current_schema() AND tablename = c.relname) AS width,
               (SELECT count(*) FROM pg_index WHERE indrelid = c.oid) AS indexes
          FROM pg_class c JOIN pg_stat_all_tables s ON s.relid = c.oid
          LEFT JOIN pg_stat_all_tables t ON t.relid = c.reltoastrelid
         WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace) AS tables"""


def make_engine(url: str) -> Engine:
    """Connections to this database, each in autocommit: transactions are begun by name."""

    def connect() -> psycopg.Connection[Any]:
        # The URL goes to libpq as it is: several hosts, target_session_attrs, sslmode, passfile and so on work.
        options = {**DEFAULTS, **psycopg.conninfo.conninfo_to_dict(url), "client_encoding": "utf8"}
        return psycopg.connect(autocommit=True, prepare_threshold=None, **options)

    return sa.create_engine(
        "postgresql+psycopg://",
        creator=connect,
        isolation_level="AUTOCOMMIT",
        use_native_hstore=False,
        pool_size=POOL,
        max_overflow=OVERFLOW,
        pool_timeout=POOL_TIMEOUT_S,
        pool_recycle=RECYCLE_S,
        pool_use_lifo=True,
    )


class PostgresDatabase(Database):
    """A journal in PostgreSQL. Thread-safe; make it after `fork`, never before."""

    #: The server keeps what was not flushed in its own memory.
    relaxed_outlives_crash = False

    def __init__(self, url: str, *, troubled: Callable[[str], None] = lambda _kind: None) -> None:
        self._engine = make_engine(url)
        self._troubled = troubled
        self._closed = threading.Event()
        self._sized: tuple[float, int] | None = None

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        try:
            with self._begun(_DURABLE if durable else _RELAXED) as connection:
                yield connection
                with translated():
                    connection.exec_driver_sql("COMMIT")
        except JournalError as error:
            self._note(error)
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        try:
            with self._begun(_READ) as connection:
                yield connection
        except JournalDamagedError as error:
            self._note(error)
            raise

    @contextmanager
    def _begun(self, begin: str) -> Iterator[Connection]:
        """A connection with a transaction that is undone unless the block ended it."""
        with translated():
            connection = self._connect(begin)
            try:
                yield connection
            finally:
                if not connection.invalidated:
                    with suppress(Exception):  # a connection that is gone has forgotten it
                        raw: Any = connection.connection.dbapi_connection
                        raw.rollback()
                connection.close()

    def _connect(self, begin: str) -> Connection:
        """A connection on which a transaction has begun; one that was lost since its last use does not count."""
        for last in (False, True):
            connection = self._engine.connect()
            try:
                connection.exec_driver_sql(begin)
            except sa.exc.DBAPIError as error:
                connection.close()
                if last or not error.connection_invalidated:
                    raise
            else:
                return connection
        raise AssertionError("unreachable")

    def transact(self, work: Callable[[Connection], T], *, durable: bool = True, patience_s: float = 0.0) -> T:
        conflicts, deadline = 0, time.monotonic() + patience_s
        while True:
            try:
                with self.write(durable=durable) as connection:
                    return work(connection)
            except ConflictError:
                conflicts += 1
                if conflicts >= CONFLICT_TRIES:
                    raise
                time.sleep(random.uniform(0.2, 1.0) * CONFLICT_PAUSE_S)  # noqa: S311 (spreads the two apart)
            except JournalTermError:
                raise
            except JournalUnavailableError:
                if time.monotonic() + REACH_EVERY_S > deadline or self._closed.wait(REACH_EVERY_S):
                    raise

    def _note(self, error: JournalError) -> None:
        if isinstance(error, JournalDamagedError):
            self._troubled("damaged")
        elif isinstance(error, JournalDiskError):
            self._troubled(error.kind)
            if error.kind == "read-only":
                self._engine.dispose()  # after a failover the address may mean another server
        elif isinstance(error, OutOfReachError):
            self._troubled("gone")

    def check_writable(self) -> None:
        with self.write() as connection:
            run(
                connection,
                """INSERT INTO meta (name, value) VALUES ('probe', '')
                   ON CONFLICT (name) DO UPDATE SET value = excluded.value""",
            )

    def give_back(self, connection: Connection) -> int:
        """Autovacuum does that; but until it has looked at a table, which it does once a minute at most, statements
        for a hundred records are planned as if they meant most of it. So a first load is looked at here.
        """
        for (name,) in fetch(connection, _NEVER_ANALYZED, least=ANALYZED_FROM):
            run(connection, f"ANALYZE (SKIP_LOCKED) {name}")
        return 0

    def size(self) -> int:
        """Bytes on disk, without what is free again within the tables."""
        now = time.monotonic()
        sized = self._sized
        if sized is None or now - sized[0] >= SIZED_S:
            with self.read() as connection:
                sized = self._sized = (now, int(fetch(connection, _SIZE)[0][0]))
        return sized[1]

    def close(self) -> None:
        self._closed.set()
        self._engine.dispose()


@contextmanager
def opened(url: str) -> Iterator[PostgresDatabase]:
    """A database that is closed at the end."""
    database = PostgresDatabase(url)
    try:
        yield database
    finally:
        database.close()
