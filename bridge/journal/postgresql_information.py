"""What `journal info` and `journal verify` tell of a journal in PostgreSQL, beside whoever uses it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.engine import Connection

from bridge.journal import postgresql_versions, versions
from bridge.journal.database import fetch
from bridge.journal.inspection import INVARIANTS, TOLD
from bridge.journal.postgresql import opened
from bridge.journal.postgresql_versions import setting, version_of
from bridge.journal.term import NOW


@dataclass(frozen=True, slots=True)
class PostgresInformation:
    """A journal in figures; sizes in bytes, times in microseconds since the epoch. `delivering` is a process, as
    host:process:number.
    """

    database: str
    server: str
    version: str | None
    size: int
    dead_rows: int  # that wait to be vacuumed
    events: int
    records: int
    values: int
    pending: int  # records with something to deliver that are not parked
    parked: int  # records
    refused: int  # values
    unmapped: int  # events that could not be mapped
    calls: int
    oldest_event_us: int | None
    newest_event_us: int | None
    oldest_pending_us: int | None
    delivering: str | None
    epoch: int


def information(url: str) -> PostgresInformation:
    """Look at the journal. Raises JournalError."""
    versions.check(url)
    with opened(url) as database:
        size = database.size()
        with database.read() as connection:
            return _information(connection, size)


def _information(connection: Connection, size: int) -> PostgresInformation:
    def one(sql: str) -> int:
        return int(fetch(connection, sql)[0][0])

    [(oldest_us, newest_us)] = fetch(connection, "SELECT min(received_us), max(received_us) FROM events")
    [(pending, oldest_pending_us)] = fetch(
        connection, "SELECT count(DISTINCT record), min(since_us) FROM due WHERE due_us IS NOT NULL"
    )
    [(holder, epoch, holds)] = fetch(connection, f"SELECT holder, epoch, until_us > {NOW} FROM dispatcher WHERE id = 1")
    [(database, host)] = fetch(connection, "SELECT current_database(), inet_server_addr()::text")
    return PostgresInformation(
        database=f"{database} on {host or 'this host'}",
        server=setting(connection, "server_version"),
        version=version_of(connection),
        size=size,
        dead_rows=one(
            "SELECT coalesce(sum(n_dead_tup), 0) FROM pg_stat_user_tables WHERE schemaname = current_schema()"
        ),
        events=one("SELECT count(*) FROM events"),
        records=one("SELECT count(*) FROM records"),
        values=one("SELECT count(*) FROM desired"),
        pending=pending,
        parked=one("SELECT count(*) FROM records WHERE parked_us IS NOT NULL"),
        refused=one("SELECT count(*) FROM desired WHERE state = 2"),
        unmapped=one("SELECT count(*) FROM events WHERE waits = 1"),
        calls=one("SELECT count(*) FROM calls"),
        oldest_event_us=oldest_us,
        newest_event_us=newest_us,
        oldest_pending_us=oldest_pending_us,
        delivering=holder if holds else None,
        epoch=epoch,
    )


def verify(url: str) -> list[str]:
    """Everything that does not hold between the tables, and what makes the database unsafe; at most `TOLD` lines.

    Whether its files are sound is for the server's own tools (data checksums, pg_amcheck) to tell. Raises JournalError.
    """
    versions.check(url)
    with opened(url) as database, database.read() as connection:
        postgresql_versions.refuse_unsafe(connection)
        problems = []
        for what, query in INVARIANTS:
            number = fetch(connection, f"SELECT count(*) {query}")[0][0]
            if number:
                problems.append(f"{number} {what}")
    return problems[:TOLD]
