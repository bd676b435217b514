"""Two transactions of the real journal, stepped through statement by statement on two connections of PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import sqlalchemy as sa

from bridge.journal.store import Journal

#: Nothing that is stepped through takes longer.
LONGEST_S = 30.0
LOOK_S = 0.0005


class Stepper:
    """Runs one act on a journal, halting before each statement that goes beyond `allowed`.

    Threads: the act's, and the test's; `_changed` guards all that follows it.
    """

    def __init__(self, journal: Journal, admin: psycopg.Connection[Any]) -> None:
        self._journal = journal
        self._admin = admin  # sees who waits for a lock
        self._changed = threading.Condition()
        self._allowed = 0
        self._pid = 0
        self.at = 0  # statements that began or are about to
        self.result: Any = None
        self.error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._engine: sa.Engine = journal._database._engine  # type: ignore[attr-defined]  # PostgreSQL's

    def start(self, act: Callable[[Journal], Any]) -> None:
        """Begin, and halt before the first statement."""

        def run() -> None:
            sa.event.listen(self._engine, "before_cursor_execute", self._gate)
            try:
                self.result = act(self._journal)
            except BaseException as error:  # noqa: BLE001 (the test looks at it)
                self.error = error
            finally:
                sa.event.remove(self._engine, "before_cursor_execute", self._gate)

        self._thread = threading.Thread(target=run, name="act", daemon=True)
        self._thread.start()
        self.advance(0)

    def advance(self, statements: int) -> None:
        """Let so many statements in all be executed; returns when they are, or wait for a lock, or the act ended."""
        with self._changed:
            self._allowed = max(self._allowed, statements)
            self._changed.notify_all()
        deadline = time.monotonic() + LONGEST_S
        while not (self._halted() or self.ended or self._blocked()):
            assert time.monotonic() < deadline, "neither halted nor blocked nor ended"
            time.sleep(LOOK_S)

    def finish(self) -> None:
        """Let it run to its end, or until it waits for a lock."""
        self.advance(1_000_000)

    def join(self) -> None:
        self.finish()
        assert self._thread is not None
        self._thread.join(LONGEST_S)
        assert self.ended
        if self.error is not None:
            raise self.error

    @property
    def ended(self) -> bool:
        return self._thread is not None and not self._thread.is_alive()

    def _halted(self) -> bool:
        with self._changed:
            return self.at > self._allowed

    def _blocked(self) -> bool:
        """Whether it waits for a lock of another transaction."""
        return bool(
            self._admin.execute(
                "SELECT 1 FROM pg_locks WHERE pid = %s AND NOT granted LIMIT 1", (self._pid,)
            ).fetchall()
        )

    def _gate(self, connection: sa.Connection, *_: Any) -> None:
        if threading.current_thread() is not self._thread:
            return
        raw: Any = connection.connection.dbapi_connection
        with self._changed:
            self._pid = raw.info.backend_pid
            self.at += 1
            while self.at > self._allowed:
                assert self._changed.wait(LONGEST_S), "nobody lets it go on"


def interleaved(
    first: Stepper,
    act: Callable[[Journal], Any],
    second: Stepper,
    other: Callable[[Journal], Any],
    *,
    after: int,
    then: int,
) -> tuple[Any, Any]:
    """What both acts return: the first runs `after` statements, the second `then`, and so on to their ends.

    Where one waits for the other, the other goes on.
    """
    first.start(act)
    first.advance(after)
    second.start(other)
    second.advance(then)
    first.finish()
    second.finish()
    for stepper in (first, second):
        stepper.join()
    return first.result, second.result
