"""What people do with the file: look at it, copy it while it is served, put a copy in its place. Copies are whole, and
checked before anyone relies on them.

A backup reads one snapshot to its end: writers go on, only the write-ahead log cannot be emptied meanwhile. What is
restored starts paused, because it knows nothing of what was delivered since.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bridge.errors import JournalDamagedError, JournalDiskError, JournalError, JournalUnavailableError
from bridge.journal import control, versions
from bridge.journal.schema import FIGURES, HEAD, KNOWN
from bridge.journal.sqlite import trouble
from bridge.journal.sqlite.files import (
    INDEX,
    LOCK,
    LOG,
    Mark,
    TransactionLock,
    beside,
    check_folder,
    log_size,
    sqlite_path,
)
from bridge.journal.sqlite.trouble import translated
from bridge.model import Clock, to_us
from bridge.showing import iso


def information(url: str) -> dict[str, Any]:
    """What `journal info` tells: sizes in bytes, times in microseconds since the epoch. `serving` and `delivering` are
    the processes that hold the locks; None when none does, 0 where it cannot be named. Raises JournalError.
    """
    path = sqlite_path(url)
    versions.check(url)
    with trouble.reading(path) as connection:

        def one(sql: str) -> Any:
            return connection.execute(sql).fetchone()[0]

        return {
            "path": path,
            "version": trouble.version_of(path, connection),
            "size": path.stat().st_size,
            "log_size": log_size(path),
            "page_size": one("PRAGMA page_size"),
            "pages": one("PRAGMA page_count"),
            "free_pages": one("PRAGMA freelist_count"),
            **{name: one(sql) for name, sql in FIGURES.items()},
            "serving": versions.ServiceLock(url).holder(),
            "delivering": versions.DispatchLock(url).holder(),
        }


#: Pages copied between two looks at the progress: 4 MiB.
STEP_PAGES = 1_024

#: Told the pages that are left, and all of them.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Copy:
    """A backup that was written and checked."""

    path: Path
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a journal would send: values of records that are not parked."""

    object_type: str
    source: str
    records: int
    values: int


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did. `newest_us` is the arrival of the last event that the backup knows."""

    path: Path
    set_aside: Path | None
    waiting: tuple[Waiting, ...]
    parked: int
    newest_us: int | None


def backup(url: str, target: Path, *, progress: Progress = lambda _left, _all: None) -> Copy:
    """Copy the journal to a file that is not there yet, also while a service runs; returns when it is on disk.

    Raises JournalError: no journal, target there or not writable, or the copy is damaged; then no file is left.
    """
    path = sqlite_path(url)
    versions.check(url)
    target = target.absolute()
    _refuse_existing(target)
    with _part(target) as part:
        _copy(path, part, progress)
        if problems := trouble.verify(part):
            raise JournalDamagedError(
                f"the backup of {path} would be damaged ({problems[0]}) and was not kept; see "
                "`partner-bridge journal verify`"
            )
        copied = Copy(target, part.stat().st_size, _sha256(part))
        _sync(part)
        try:
            os.link(part, target)  # unlike a rename it never replaces a file
        except FileExistsError:
            _refuse_existing(target)
        except OSError:  # a file system without links
            _refuse_existing(target)
            part.rename(target)
        _sync(target.parent)
    return copied


def restore(url: str, source: Path, *, clock: Clock, progress: Progress = lambda _left, _all: None) -> Restored:
    """Put a backup in the journal's place, paused; a journal that is there is set aside under another name.

    Raises JournalLockedError beside a running service, JournalError for a backup that cannot be used, both before
    anything was changed.
    """
    path = sqlite_path(url)
    check_folder(path)
    if source.absolute() == path:
        raise JournalError(f"{source} is the journal itself: name a backup of it")
    service = versions.ServiceLock(url)
    service.acquire()
    try:
        _refuse_unfit(source)
        with _part(path) as part:
            _copy(source, part, progress)
            _pause(part, f"restored from the backup {source.name}; `resume` sends what waits in it", clock)
            waiting, parked, newest_us = outlook(part)
            _sync(part)
            set_aside = _swap(path, part, clock)
    finally:
        service.release()
    return Restored(path, set_aside, waiting, parked, newest_us)


def outlook(path: Path) -> tuple[tuple[Waiting, ...], int, int | None]:
    """What a journal would send, how many records are parked, and when its last event arrived (µs)."""
    with trouble.reading(path) as connection:
        waiting = connection.execute(
            """SELECT l.object_type, coalesce(d.source, ''), count(DISTINCT d.record), count(*)
                 FROM desired d JOIN records r ON r.id = d.record JOIN lanes l ON l.id = r.lane
                WHERE d.state = 0 AND r.parked_us IS NULL GROUP BY 1, 2 ORDER BY 1, 2"""
        ).fetchall()
        parked = connection.execute("SELECT count(*) FROM records WHERE parked_us IS NOT NULL").fetchone()[0]
        newest_us = connection.execute("SELECT max(received_us) FROM events").fetchone()[0]
    return tuple(Waiting(*row) for row in waiting), parked, newest_us


# --- parts --------------------------------------------------------------------------------------


@contextmanager
def _part(target: Path) -> Iterator[Path]:
    """A new file beside `target`, readable by its owner only: a journal holds secrets. Gone at the end."""
    part = target.with_name(f".{target.name}.part-{os.getpid()}")
    try:
        with suppress(FileNotFoundError):
            part.unlink()  # of a process of the same number that was killed
        part.touch(0o600, exist_ok=False)
        yield part
    except JournalDiskError as error:
        if error.kind != "full":
            raise
        raise JournalUnavailableError(f"{target} cannot be written: its disk is full; free space there") from error
    except OSError as error:
        raise JournalUnavailableError(
            f"{target} cannot be written: {error.strerror}; name a file in a folder that is writable and has room"
        ) from error
    finally:
        for suffix in ("", LOG, INDEX, "-journal"):
            with suppress(OSError):
                beside(part, suffix).unlink()


def _copy(path: Path, part: Path, progress: Progress) -> None:
    """Copy one snapshot of a journal into one file that needs no others beside it."""
    with trouble.reading(path) as origin, translated(part), closing(sqlite3.connect(part)) as copy:
        # The origin stands in a read transaction: other processes' commits do not make the copying begin anew.
        origin.backup(copy, pages=STEP_PAGES, progress=lambda _status, left, pages: progress(left, pages))
        copy.execute("PRAGMA journal_mode=DELETE")


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise JournalError(f"{target} is there already and is not overwritten: name another file")


def _refuse_unfit(source: Path) -> None:
    """Raise JournalError unless this is a sound journal that this program can use."""
    if not source.is_file():
        raise JournalError(f"there is no backup {source}")
    with trouble.reading(source) as connection:
        version = trouble.version_of(source, connection)
    if version not in KNOWN:
        raise JournalError(f"{source} is no backup that this program knows (version {version or 'none'}, needs {HEAD})")
    if problems := trouble.verify(source):
        raise JournalDamagedError(f"the backup {source} is damaged ({problems[0]}): take an older one")


def _pause(part: Path, reason: str, clock: Clock) -> None:
    engine = sa.create_engine(f"sqlite:///{part}", poolclass=sa.NullPool)
    with translated(part), engine.begin() as connection:
        control.pause(connection, None, reason, now_us=to_us(clock.now()))


def _swap(path: Path, part: Path, clock: Clock) -> Path | None:
    """Set the journal that is there aside, put `part` in its place; returns the former's new name.

    The mark tells a start that was killed in between not to take half of it for a journal.
    """
    lock = TransactionLock(beside(path, LOCK))
    set_aside = None
    try:
        with lock.held():
            lock.mark = Mark.RESTORING
            if path.exists() or beside(path, LOG).exists():
                moment = (iso(to_us(clock.now())) or "")[:19].replace("-", "").replace(":", "")
                set_aside = _free_name(path.with_name(f"{path.name}.before-restore-{moment}Z"))
                for suffix in ("", LOG):
                    with suppress(FileNotFoundError):
                        beside(path, suffix).rename(beside(set_aside, suffix))
            beside(path, INDEX).unlink(missing_ok=True)
            part.rename(path)
            _sync(path.parent)
            lock.mark = Mark.IN_USE
    finally:
        lock.close()
    return set_aside


def _free_name(wanted: Path) -> Path:
    found, number = wanted, 1
    while found.exists() or beside(found, LOG).exists():
        number += 1
        found = wanted.with_name(f"{wanted.name}-{number}")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have a file on disk, or a folder's entries."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
