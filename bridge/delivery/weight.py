"""How much is under way at once, in bytes: what a call sends, what it may be answered, what all open calls hold (G8).

Everything is counted in bytes of bodies. In memory a call is a small multiple of its body: the values (a text with one
emoji takes four bytes a character), the body, the answer, which repeats what was written, and what is parsed of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bridge.model import CALL_BYTES

#: Bytes of the bodies of all open calls: some 50 MB of memory at most. Eight calls of 100 ordinary records are 240 kB.
OPEN_BYTES = 4 * CALL_BYTES

#: Bytes of an answer that are read at most, beside those for what was sent: 100 results with all their usual
#: properties are some 2 MB.
ANSWER_BYTES = 4 << 20

#: Bytes of an answer that are read for each byte of the body. An echo takes three (an emoji's four as two escapes), a
#: refusal that quotes values in JSON within JSON, and twice, takes seven.
ECHO = 7

#: Seconds between two looks whether it is still worth waiting.
_LOOK_S = 0.05


def answer_limit(body: int) -> int:
    """How many bytes of the answer to a body of so many are read."""
    return ANSWER_BYTES + ECHO * body


class OpenBytes:
    """What the open calls hold together. Thread-safe: `_changed` guards all below it.

    How much a call holds is known when its records are taken. Until then it counts as the most that it may be.
    """

    def __init__(self, *, each: int = CALL_BYTES, limit: int = OPEN_BYTES) -> None:
        """`each`: the most that one call may hold, no more than half the limit."""
        self.each = each
        self._limit = limit
        self._changed = threading.Condition()
        self._taking = 0  # calls whose size is not known yet
        self._known = 0

    @property
    def full(self) -> bool:
        """Whether the calls whose size is known leave no room for one more."""
        with self._changed:
            return self._known + self.each > self._limit

    @contextmanager
    def place(self, *, wanted: Callable[[], bool]) -> Iterator[Callable[[int], None] | None]:
        """Room for one call, as soon as there is some; its size is to be told once it is known. None: it is not
        `wanted` any more.
        """
        if not self._enter(wanted):
            yield None
            return
        size: int | None = None

        def tell(known: int) -> None:
            nonlocal size
            with self._changed:
                size = known
                self._taking -= 1
                self._known += known
                self._changed.notify_all()

        try:
            yield tell
        finally:
            if size is None:
                tell(0)
            else:
                with self._changed:
                    self._known -= size
                    self._changed.notify_all()

    def _enter(self, wanted: Callable[[], bool]) -> bool:
        with self._changed:
            while self._known + (self._taking + 1) * self.each > self._limit:
                if not wanted():
                    return False
                self._changed.wait(_LOOK_S)
            self._taking += 1
            return True
