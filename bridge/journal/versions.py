"""The journal's version: made or migrated once by the master before it forks; commands only check it.

The schema only grows, so that version N's journal works with N-1's code: a rollback of the service needs no
rollback of the journal, and during a rolling update both serve. Such a migration is additive, and says so by keeping
the first two digits of the version. A journal of any other version that this code has never heard of is refused and
left untouched.
"""

from __future__ import annotations

from typing import Protocol

from sqlalchemy.engine import Connection

from bridge.errors import JournalLockedError, JournalVersionError
from bridge.journal.database import fetch, on_postgresql, run
from bridge.journal.schema import HEAD, migrate, refuse_unknown, suffices
from bridge.journal.sqlite import trouble
from bridge.journal.sqlite.database import SqliteDatabase, refuse_mark
from bridge.journal.sqlite.files import LOCK, FileLock, Mark, TransactionLock, beside, check_folder, holder, sqlite_path
from bridge.model import Clock


def check_place(url: str) -> None:
    """Raise JournalUnavailableError, with what to change, unless a journal can be kept there."""
    if on_postgresql(url):
        return  # `prepare` asks the database
    check_folder(sqlite_path(url))


def prepare(url: str) -> None:
    """Make the journal if it is not there, bring it up to `HEAD` otherwise.

    Raises JournalUnavailableError (folder missing, read-only …), JournalVersionError (written by a newer
    version), JournalError (damaged, not a journal), each with what to change; then the file was not touched.
    """
    if on_postgresql(url):
        from bridge.journal.postgresql import versions

        versions.prepare(url)
        return
    check_place(url)
    database = SqliteDatabase(url)
    try:
        with database.lock.held():
            mark = database.lock.mark
            refuse_mark(database.path, mark)
            refuse_unknown(trouble.inspect(database.path, mark=mark, thoroughly=True), database.path)
            if not database.path.exists():
                database.lock.mark = Mark.NEW
                database.path.touch(0o600)
        with database.write() as connection:
            if not suffices(_version(connection)):
                migrate(connection)
                run(connection, "INSERT INTO dispatcher (id) VALUES (1) ON CONFLICT (id) DO NOTHING")
        with database.lock.held():
            database.lock.mark = Mark.IN_USE
    finally:
        database.close()


def check(url: str) -> None:
    """Raise JournalVersionError unless the journal is there and of this version: commands never migrate."""
    if on_postgresql(url):
        from bridge.journal.postgresql import versions

        versions.check(url)
        return
    path = sqlite_path(url)
    if not path.exists():
        raise JournalVersionError(
            f"there is no journal at {path}: start `partner-bridge serve` once, or change journal.url"
        )
    version = trouble.inspect(path)
    refuse_unknown(version, path)
    if not suffices(version):
        raise JournalVersionError(
            f"the journal {path} has version {version or 'none'}, this program needs {HEAD}: "
            "start `partner-bridge serve` of this version once, it migrates the journal"
        )


def weaknesses(url: str) -> list[str]:
    """Why less than a commit on disk is promised there, one sentence each."""
    if on_postgresql(url):
        from bridge.journal.postgresql import versions

        return versions.weaknesses(url)
    return []


def trust_again(url: str) -> bool:
    """A person has checked the journal: it is written again. Returns whether it was not, for damage met before."""
    path = sqlite_path(url)
    lock = TransactionLock(beside(path, LOCK))
    try:
        with lock.held():
            if lock.mark is not Mark.DAMAGED:
                return False
            lock.mark = Mark.IN_USE
            return True
    finally:
        lock.close()


def _version(connection: Connection) -> str | None:
    if not fetch(connection, "SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'"):
        return None
    rows = fetch(connection, "SELECT version_num FROM alembic_version")
    return str(rows[0][0]) if rows else None


class ServiceLock:
    """Held by a service for life: a second one on the same journal is refused with one clear line.

    Taken by the master before it forks; every process of the service inherits it, so it is free only when all
    of them are gone. Commands beside a running service do not need it.
    """

    def __init__(self, url: str) -> None:
        path = sqlite_path(url)
        self._path = path
        self._lock = FileLock(beside(path, ".service"))

    def acquire(self) -> None:
        """Raises JournalLockedError when another service holds the journal."""
        if not self._lock.acquire(wait=False):
            raise JournalLockedError(
                f"the journal {self._path} is in use by another partner-bridge service: stop that one first, or "
                "give this one a journal.url of its own"
            )

    def holder(self) -> int | None:
        """The process that took it, None when no service runs; 0 where it cannot be named."""
        return holder(self._lock.path)

    def release(self) -> None:
        self._lock.close()


class NoServiceLock:
    """On PostgreSQL any number of services share the journal."""

    def acquire(self) -> None: ...

    def release(self) -> None: ...


def service_lock(url: str) -> ServiceLock | NoServiceLock:
    """What keeps a second service away from the journal, where there may be only one."""
    return NoServiceLock() if on_postgresql(url) else ServiceLock(url)


class DispatchClaim(Protocol):
    """A process's claim to be the one that delivers. Made after `fork`."""

    @property
    def epoch(self) -> int | None:
        """What `Journal.under` is told; None: no other process can take over while this one lives."""
        ...

    def acquire(self) -> bool:
        """Whether this process is the dispatcher now; never waits for another. May raise JournalError."""
        ...

    def held(self) -> bool:
        """False when it was acquired and another process has taken over since."""
        ...

    def may_call(self) -> bool:
        """Whether a call may be sent now: asked just before each."""
        ...

    def release(self) -> None:
        """Let another process take over at once."""
        ...


def dispatch_claim(url: str, *, clock: Clock) -> DispatchClaim:
    """A claim to deliver from this journal."""
    if on_postgresql(url):
        from bridge.journal.postgresql.term import Term

        return Term(url, clock=clock)
    return DispatchLock(url)


class DispatchLock:
    """Held by the one process that delivers; freed by the kernel when it dies."""

    def __init__(self, url: str) -> None:
        self._path = sqlite_path(url)
        self._lock = FileLock(beside(self._path, ".dispatch"))

    def acquire(self) -> bool:
        """Whether this process is the dispatcher now; never waits.

        Nobody is while the journal is not there: a lock beside nothing would make a second dispatcher once it is back.
        """
        return self._path.exists() and self._lock.acquire(wait=False)

    @property
    def epoch(self) -> None:
        return None

    def held(self) -> bool:
        return True

    def may_call(self) -> bool:
        return True

    def holder(self) -> int | None:
        """The process that delivers, None when none does; 0 where it cannot be named."""
        return holder(self._lock.path)

    def release(self) -> None:
        self._lock.close()
