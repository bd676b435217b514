"""How a request waits, without knowing whether it is a thread or a greenlet: for a descriptor, by what it was given."""

from __future__ import annotations

import os
import select
import time
import weakref
from collections.abc import Callable

#: Waits until a descriptor can be read, or written to if the second argument says so, and tells whether it can; at most
#: so many seconds.
Wait = Callable[[int, bool, float], bool]


def wait_in_thread(descriptor: int, writing: bool, timeout_s: float) -> bool:
    """Wait in a thread, which may block."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT if writing else select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1000))


class Permits:
    """At most `count` holders at a time; the others wait."""

    def __init__(self, count: int) -> None:
        self._descriptor = os.eventfd(count, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def take(self, wait: Wait, timeout_s: float) -> bool:
        """Whether there was one within the time. It is looked for once more after that: who waits may be late."""
        deadline, late = time.monotonic() + timeout_s, False
        while True:
            try:
                os.eventfd_read(self._descriptor)
            except BlockingIOError:
                if late:
                    return False
                late = not wait(self._descriptor, False, deadline - time.monotonic())
            else:
                return True

    def give_back(self) -> None:
        os.eventfd_write(self._descriptor, 1)
