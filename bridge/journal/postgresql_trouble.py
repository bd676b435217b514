"""Trouble with a PostgreSQL journal, told apart by what cures it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from bridge.errors import JournalDamagedError, JournalDiskError, JournalError, JournalUnavailableError

try:
    import psycopg
except ImportError as missing:
    raise JournalError(
        "journal.url is a PostgreSQL database, for which the driver is missing: install the extra `postgres` "
        "(pip install 'partner-bridge[postgres]')"
    ) from missing

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
