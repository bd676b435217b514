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
from contextlib import contextmanager
from pathlib import Path

from bridge.errors import JournalUnavailableError


class FileLock:
    """One exclusive `flock` on a file of its own beside the journal. Not for use by several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

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
        return True

    def release(self) -> None:
        """Give the lock back; the file stays open."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file, which frees the lock unless another process inherited it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class TransactionLock:
    """Makes all writers of the pod take turns, instead of SQLite's busy handler that sleeps.

    Thread-safe: `_turn` orders the threads of this process, the file lock the processes. Measured: two
    processes on one file write 1.6 times as fast with it, and the 99th percentile falls from about a
    second to about 40 ms.
    """

    def __init__(self, path: Path) -> None:
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

    def close(self) -> None:
        with self._turn:
            self._file.close()
