"""The version and the safety of a PostgreSQL journal, and what people are told of it.

Several replicas may start at once: they take turns on a lock that lasts as long as the transaction.
"""

from __future__ import annotations

import random
import time
from typing import Any

from sqlalchemy.engine import Connection

from bridge.errors import JournalError, JournalVersionError
from bridge.journal.database import fetch, run
from bridge.journal.postgresql.database import SlowError, opened
from bridge.journal.postgresql.term import NOW
from bridge.journal.schema import FIGURES, HEAD, INVARIANTS, TOLD, migrate, refuse_unknown, suffices

#: The oldest PostgreSQL that is supported.
OLDEST_SERVER = 140_000
#: Of `pg_advisory_xact_lock`, within the database.
MIGRATING = 0x50617274
#: Seconds that a start waits for another one's migration and for those who use a table that it changes.
WAIT_S = 120
#: Seconds that it waits in one go: meanwhile nobody else gets at that table, so that intake would stand still.
LOCK_S = 1


def prepare(url: str) -> None:
    """Make the journal's tables if they are not there, bring them up to `HEAD` otherwise.

    Raises JournalUnavailableError (out of reach), JournalVersionError (written by a newer version), JournalError (not
    safe: `fsync=off`), each with what to change; then the database was not touched.
    """
    deadline = time.monotonic() + WAIT_S
    with opened(url) as database:
        while True:
            try:
                return database.transact(_prepare)
            except SlowError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(0.2, 1.0))  # noqa: S311 (lets others go first)


def _prepare(connection: Connection) -> None:
    fetch(
        connection,
        """SELECT set_config('lock_timeout', :lock, true), set_config('statement_timeout', :wait, true),
                  set_config('idle_in_transaction_session_timeout', :wait, true)""",
        lock=f"{LOCK_S}s",
        wait=f"{WAIT_S}s",
    )
    refuse_unsafe(connection)
    fetch(connection, "SELECT count(*) FROM (SELECT pg_advisory_xact_lock(:key)) AS locked", key=MIGRATING)
    version = version_of(connection)
    refuse_unknown(version, "in PostgreSQL")
    if not suffices(version):
        migrate(connection)
    run(connection, "INSERT INTO dispatcher (id) VALUES (1) ON CONFLICT (id) DO NOTHING")


def check(url: str) -> None:
    """Raise JournalVersionError unless the journal is there and of this version: commands never migrate."""
    with opened(url) as database, database.read() as connection:
        version = version_of(connection)
    refuse_unknown(version, "in PostgreSQL")
    if version is None:
        raise JournalVersionError(
            "there is no journal in this PostgreSQL database: start `partner-bridge serve` once, or change journal.url"
        )
    if not suffices(version):
        raise JournalVersionError(
            f"the journal in PostgreSQL has version {version}, this program needs {HEAD}: start `partner-bridge serve` "
            "of this version once, it migrates the journal"
        )


def version_of(connection: Connection) -> str | None:
    """The version that stands in the database; None when there is no journal yet."""
    if fetch(connection, "SELECT to_regclass('alembic_version')")[0][0] is None:
        return None
    rows = fetch(connection, "SELECT version_num FROM alembic_version")
    return str(rows[0][0]) if rows else None


def refuse_unsafe(connection: Connection) -> None:
    """Raise JournalError where nothing that is promised could be kept."""
    if setting(connection, "fsync") == "off":
        raise JournalError(
            "the journal's PostgreSQL runs with fsync=off: a power cut would lose what was accepted, or damage all of "
            "it; set fsync=on there"
        )
    if int(setting(connection, "server_version_num")) < OLDEST_SERVER:
        raise JournalError(
            f"the journal's PostgreSQL is too old ({setting(connection, 'server_version')}): "
            f"{OLDEST_SERVER // 10_000} or newer is needed"
        )
    if setting(connection, "server_encoding") != "UTF8":
        raise JournalError(
            f"the journal's database is encoded in {setting(connection, 'server_encoding')}, which cannot keep all "
            "that partners send: create it with ENCODING 'UTF8'"
        )


def weaknesses(url: str) -> list[str]:
    """What makes this database promise less than a commit on disk, one sentence each: G1 is no stronger."""
    with opened(url) as database, database.read() as connection:
        found = []
        commit = setting(connection, "synchronous_commit")
        standbys = setting(connection, "synchronous_standby_names")
        if commit in {"off", "local"}:
            found.append(
                f"the journal's PostgreSQL has synchronous_commit={commit}: what is accepted is committed with `on` "
                "all the same, but other programs' writes there may be lost when it crashes"
            )
        if setting(connection, "full_page_writes") == "off":
            found.append("the journal's PostgreSQL has full_page_writes=off: a power cut may damage it")
        if not standbys and _replicated(connection):
            found.append(
                "the journal's PostgreSQL is replicated without a synchronous standby: a failover may lose what was "
                "accepted last; set synchronous_standby_names"
            )
    return found


def _replicated(connection: Connection) -> bool:
    """Whether standbys follow; replicas of other kinds count too, where this role may not see which they are."""
    [(streams,)] = fetch(connection, "SELECT count(*) FROM pg_stat_replication")
    [(slots,)] = fetch(connection, "SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical' AND active")
    return bool(streams or slots)


def setting(connection: Connection, name: str) -> str:
    """One of the server's settings."""
    return str(fetch(connection, "SELECT current_setting(:name)", name=name)[0][0])


# --- what `journal info` and `journal verify` tell of a journal in PostgreSQL, beside whoever uses it ---


def information(url: str) -> dict[str, Any]:
    """A journal in figures; sizes in bytes, times in microseconds since the epoch. `delivering` is a process, as
    host:process:number; `dead_rows` wait to be vacuumed. Raises JournalError.
    """
    check(url)
    with opened(url) as database:
        size = database.size()
        with database.read() as connection:

            def one(sql: str) -> Any:
                return fetch(connection, sql)[0][0]

            dead = "SELECT coalesce(sum(n_dead_tup), 0) FROM pg_stat_user_tables WHERE schemaname = current_schema()"
            return {
                "database": f"{one('SELECT current_database()')} on "
                f"{one('SELECT inet_server_addr()::text') or 'this host'}",
                "server": setting(connection, "server_version"),
                "version": version_of(connection),
                "size": size,
                "dead_rows": int(one(dead)),
                **{name: one(sql) for name, sql in FIGURES.items()},
                "delivering": one(f"SELECT CASE WHEN until_us > {NOW} THEN holder END FROM dispatcher WHERE id = 1"),
                "epoch": one("SELECT epoch FROM dispatcher WHERE id = 1"),
            }


def verify(url: str) -> list[str]:
    """Everything that does not hold between the tables, and what makes the database unsafe; at most `TOLD` lines.

    Whether its files are sound is for the server's own tools (data checksums, pg_amcheck) to tell. Raises JournalError.
    """
    check(url)
    with opened(url) as database, database.read() as connection:
        refuse_unsafe(connection)
        problems = []
        for what, query in INVARIANTS:
            number = fetch(connection, f"SELECT count(*) {query}")[0][0]
            if number:
                problems.append(f"{number} {what}")
    return problems[:TOLD]
