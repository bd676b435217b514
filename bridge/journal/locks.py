"""File locks of the SQLite journal: who serves, who delivers, who writes.

`flock` belongs to the open file, so the kernel frees it when the last process holding it dies: a
stale lock cannot survive a `kill -9`. Locks are per open file; threads of one process share one file
and take turns by a `threading.Lock`.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

from bridge.errors import JournalUnavailableError


class Mark(Enum):
    """What the pod's processes know of the journal's file: one byte in the transaction lock's file.

    It needs no room on the disk once it is there, outlives every process, and all of them read it in each write.
    """

    NEW = b"n"  # as an empty file: nothing was ever kept here
    KEPT = b"k"
    SUSPECT = b"s"  # a write or an fsync failed: see `Database`
    DAMAGED = b"d"
    RESTORING = b"r"  # between two files


class FileLock:
    """One exclusive `flock` on a file of its own beside the journal. Not for use by several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._unwritten: Mark | None = None

    def acquire(self, *, wait: bool) -> bool:
        """Take the lock; without `wait` False says that another process holds it.

        The file is opened on first use and stays open, inherited over `fork`: then parent and child
        hold the lock together until both are gone.
        """
        if self._fd is None:
            try:
                self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise JournalUnavailableError(
                    f"the journal's lock file {self.path} cannot be opened: {error.strerror}; "
                    "make its folder writable for the user that runs partner-bridge"
                ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._fails(error) from error
        return True

    def release(self) -> None:
        """Give the lock back; the file stays open."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    @property
    def mark(self) -> Mark:
        """The mark; the lock must have been acquired once."""
        assert self._fd is not None  # noqa: S101 (acquired before)
        try:
            written = os.pread(self._fd, 1, 0)
        except OSError as error:
            raise self._fails(error) from error
        return self._unwritten or (Mark(written) if written in _MARKS else Mark.NEW)

    @mark.setter
    def mark(self, mark: Mark) -> None:
        assert self._fd is not None  # noqa: S101 (acquired before)
        self._unwritten = None
        try:
            os.pwrite(self._fd, mark.value, 0)
        except OSError:
            self._unwritten = mark  # then at least this process knows it
        with suppress(OSError):  # for a power cut; other processes see it without
            os.fsync(self._fd)

    def _fails(self, error: OSError) -> JournalUnavailableError:
        return JournalUnavailableError(
            f"the journal's lock file {self.path} cannot be used: {error.strerror}; look into the kernel's log"
        )

    def close(self) -> None:
        """Close the file, which frees the lock unless another process inherited it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


_MARKS = {mark.value for mark in Mark}


def holder(path: Path) -> int | None:
    """The process that took the `flock` on this file, None when nobody holds it; 0 where it cannot be named.

    Asked of the kernel: a probe that took the lock for a moment could turn a starting service away.
    """
    try:
        inode = path.stat().st_ino
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        # 4: FLOCK  ADVISORY  WRITE 3317 fe:00:1179778 0 EOF; "->" stands before one that waits
        parts = line.split()
        if parts[1] == "FLOCK" and parts[5].endswith(f":{inode}"):
            return max(0, int(parts[4]))
    return None


class TransactionLock:
    """Makes all writers of the pod take turns, instead of SQLite's busy handler that sleeps.

    Thread-safe: `_turn` orders the threads of this process, the file lock the processes. Measured: two
    processes on one file write 1.6 times as fast with it, and the 99th percentile falls from about a
    second to about 40 ms.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = threading.Lock()
        self._file = FileLock(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock for one short transaction."""
        with self._turn:
            self._file.acquire(wait=True)
            try:
                yield
            finally:
                self._file.release()

    @property
    def mark(self) -> Mark:
        """The journal's mark; the lock must be held."""
        return self._file.mark

    @mark.setter
    def mark(self, mark: Mark) -> None:
        self._file.mark = mark

    def warn(self, mark: Mark) -> None:
        """Set the mark, where there is one, without waiting for the lock: who reads may hold it already."""
        with suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(fd, mark.value, 0)
            finally:
                os.close(fd)

    def close(self) -> None:
        with self._turn:
            self._file.close()
