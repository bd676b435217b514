"""How long something took, less what a busy machine had to do with it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")
NS = 1_000_000_000
HERE = Path("/proc/thread-self")


class Stopwatch:
    """Runs from its making, for the thread that made it and what it waits for in these processes.

    Linux counts for each thread how long it was ready and no processor was free. That time does not count here: on an
    idle machine there is next to none, and waiting for anything but a processor is never among it.
    """

    def __init__(self, pids: Collection[int] = ()) -> None:
        self._pids = pids
        self._before = self._delays()
        self._began = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """All the time since, whatever took it."""
        return time.monotonic() - self._began

    @property
    def seconds(self) -> float:
        return max(0.0, self.elapsed_s - sum(ns - self._before.get(at, 0) for at, ns in self._delays().items()) / NS)

    def _delays(self) -> dict[Path, int]:
        return {thread: delay for thread, (_, delay) in _counted([HERE, *_threads(self._pids)]).items()}


def timed(act: Callable[[], Found], pids: Collection[int] = ()) -> tuple[Found, float]:
    """What `act` returns, and the seconds that it took."""
    watch = Stopwatch(pids)
    found = act()
    return found, watch.seconds


def processor_s(pids: Collection[int]) -> float:
    """Seconds for which the threads of these processes have run."""
    return sum(ran for ran, _ in _counted(_threads(pids)).values()) / NS


def _threads(pids: Collection[int]) -> list[Path]:
    found: list[Path] = []
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            found += Path(f"/proc/{pid}/task").iterdir()
    return found


def _counted(threads: list[Path]) -> dict[Path, tuple[int, int]]:
    """Nanoseconds in which each ran, and in which it was ready and did not."""
    found = {}
    for thread in threads:
        with contextlib.suppress(OSError):
            ran, delayed, _ = (thread / "schedstat").read_text(encoding="ascii").split()
            found[thread] = int(ran), int(delayed)
    return found
