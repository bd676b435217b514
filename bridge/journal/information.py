"""What `journal info` tells of a journal: a look at its file, beside whoever uses it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bridge.journal import inspection, versions
from bridge.journal.place import sqlite_path


@dataclass(frozen=True, slots=True)
class Information:
    """A journal in figures; sizes in bytes, times in microseconds since the epoch.

    `serving`, `delivering` are the processes that hold the locks; None when none does, 0 where it cannot be named.
    """

    path: Path
    version: str | None
    size: int
    log_size: int  # of the write-ahead log
    page_size: int
    pages: int
    free_pages: int
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
    serving: int | None
    delivering: int | None


def information(url: str) -> Information:
    """Look at the journal. Raises JournalError."""
    path = sqlite_path(url)
    versions.check(url)
    log = path.with_name(path.name + "-wal")
    with inspection.reading(path) as connection:

        def one(sql: str) -> int:
            return int(connection.execute(sql).fetchone()[0])

        oldest_us, newest_us = connection.execute("SELECT min(received_us), max(received_us) FROM events").fetchone()
        pending, oldest_pending_us = connection.execute(
            "SELECT count(DISTINCT record), min(since_us) FROM due WHERE due_us IS NOT NULL"
        ).fetchone()
        return Information(
            path=path,
            version=inspection.version_of(path, connection),
            size=path.stat().st_size,
            log_size=log.stat().st_size if log.exists() else 0,
            page_size=one("PRAGMA page_size"),
            pages=one("PRAGMA page_count"),
            free_pages=one("PRAGMA freelist_count"),
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
            serving=versions.ServiceLock(url).holder(),
            delivering=versions.DispatchLock(url).holder(),
        )
