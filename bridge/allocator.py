"""The C library's memory, so that what is freed goes back to the system.

glibc gives every thread a heap of its own, and after one large text is freed it takes the next ones from there too
instead of mapping them, so that a dozen threads which each handle some megabytes keep several times as much for ever.
"""

from __future__ import annotations

import ctypes

#: glibc's names for `mallopt` (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
#: Bytes from which on a text is mapped by itself, and free ones at a heap's end that go back: glibc's own numbers,
#: which it raises by itself unless they are set.
THRESHOLD = 128 * 1024


def give_back_freed() -> None:
    """Set it for this process and those that it forks, before any thread; nothing where there is no glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_ARENA_MAX, 1)  # the interpreter's lock lets one thread at a time allocate, but for SQLite
    mallopt(M_MMAP_THRESHOLD, THRESHOLD)
    mallopt(M_TRIM_THRESHOLD, THRESHOLD)
