"""What processes hold in memory, sampled while something goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

#: Seconds between two looks.
EVERY_S = 0.05


def pss_mb(pids: Iterable[int]) -> float:
    """Mebibytes that these processes hold together: what they share counts once."""
    kib = 0
    for pid in pids:
        with suppress(OSError):  # it has ended meanwhile
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
            kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


@dataclass
class Watched:
    """The most that was seen so far, in mebibytes."""

    peak_mb: float = 0.0


@contextmanager
def watched(pids: Callable[[], Iterable[int]]) -> Iterator[Watched]:
    """Look at what these processes hold all the time."""
    seen, ended = Watched(), threading.Event()

    def look() -> None:
        while not ended.is_set():
            seen.peak_mb = max(seen.peak_mb, pss_mb(pids()))
            ended.wait(EVERY_S)

    thread = threading.Thread(target=look, name="memory-watch")
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
