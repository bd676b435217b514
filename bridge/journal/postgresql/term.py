"""The dispatcher's term on PostgreSQL: one process of all replicas delivers, as the row `dispatcher` says.

The holder renews its term every `RENEW_S`; by the database's clock it is valid for `VALID_S`, after which any other
may take over and raises the epoch. Whatever the former holder still wants to write is refused by its epoch (`fence`).
By its own monotonic clock it starts no call later than `CALLS_S` after it asked for the last renewal, which leaves
some seconds between its last call and a successor's first.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading

import structlog
from sqlalchemy.engine import Connection

from bridge.errors import JournalError
from bridge.journal.database import fetch
from bridge.journal.postgresql.database import PostgresDatabase
from bridge.model import Clock

#: Seconds between two renewals, and after one that failed.
RENEW_S, RENEW_AGAIN_S = 3.0, 0.5
#: Seconds for which a renewal holds, by the database's clock: a successor is there within ten.
VALID_S = 9.0
#: Seconds after a renewal was asked for in which calls may start.
CALLS_S = 5.0
#: Seconds that a clean stop waits for the end of the term to be noted.
END_S = 1.0

#: The database's clock, in microseconds.
NOW = "cast(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)"


class Term:
    """This process's claim to deliver. Thread-safe; a thread of its own renews it."""

    def __init__(self, url: str, *, clock: Clock) -> None:
        self._database = PostgresDatabase(url)  # of its own: a busy pool must not end the term
        self._clock = clock
        self._name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._log = structlog.get_logger("bridge")
        self._mutex = threading.Lock()  # guards what follows
        self._epoch = 0
        self._asked_at = float("-inf")  # monotonic: when the last renewal that was granted was asked for
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def epoch(self) -> int:
        """Of the term; 0, which no dispatcher ever had, when this process has none."""
        with self._mutex:
            return self._epoch

    def acquire(self) -> bool:
        """Whether the term is this process's now; waits for nobody's term to end. Raises JournalError, or RuntimeError
        when the system grants no thread.
        """
        if self.epoch:
            return True
        asked_at = self._clock.monotonic()
        epoch = self._database.transact(self._take_over)
        if epoch is None:
            return False
        with self._mutex:
            self._epoch, self._asked_at = epoch, asked_at
        self._ended = threading.Event()
        thread = threading.Thread(target=self._renew, args=(epoch, self._ended), name="term", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # a limit of threads: a term that nobody renews would hold up delivery unnoticed
            self._forget(epoch)
            raise
        self._thread = thread
        return True

    def may_call(self) -> bool:
        """Whether a call may start now: the term was renewed a moment ago."""
        with self._mutex:
            return self._epoch != 0 and self._clock.monotonic() - self._asked_at < CALLS_S

    def held(self) -> bool:
        """False when another process has taken over; while the database is out of reach nobody can."""
        return self.epoch != 0

    def holder(self) -> str | None:
        """The process that delivers, as host:process:number; None when none does. Raises JournalError."""
        with self._database.read() as connection:
            rows = fetch(connection, f"SELECT holder FROM dispatcher WHERE id = 1 AND until_us > {NOW}")
        return str(rows[0][0]) if rows and rows[0][0] else None

    def release(self) -> None:
        """End the term, so that another process takes over at once."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(1.0)
        epoch = self.epoch
        if epoch:
            self._forget(epoch)
            ending = threading.Thread(target=self._end, args=(epoch,), name="term-end", daemon=True)
            ending.start()
            ending.join(END_S)  # a database that does not answer must not hold up the process
        self._database.close()

    # --- the row ---

    def _take_over(self, connection: Connection) -> int | None:
        # FOR UPDATE waits for what is being settled under the epoch before (`database.fence`); a mere UPDATE would not.
        rows = fetch(
            connection,
            f"""UPDATE dispatcher SET holder = :name, epoch = epoch + 1, until_us = {NOW} + :valid
                 WHERE id = (SELECT id FROM dispatcher
                              WHERE id = 1 AND (until_us IS NULL OR until_us < {NOW} OR holder = :name) FOR UPDATE)
                RETURNING epoch""",
            name=self._name,
            valid=round(VALID_S * 1e6),
        )
        return int(rows[0][0]) if rows else None

    def _prolong(self, connection: Connection, epoch: int) -> bool:
        return bool(
            fetch(
                connection,
                f"UPDATE dispatcher SET until_us = {NOW} + :valid WHERE id = 1 AND epoch = :epoch RETURNING epoch",
                epoch=epoch,
                valid=round(VALID_S * 1e6),
            )
        )

    def _end(self, epoch: int) -> None:
        ended = "UPDATE dispatcher SET holder = NULL, until_us = NULL WHERE id = 1 AND epoch = :epoch RETURNING epoch"
        try:
            self._database.transact(lambda connection: fetch(connection, ended, epoch=epoch))
        except JournalError as error:
            self._log.warning("the term could not be ended; another process waits for its end", error=str(error))

    # --- the thread ---

    def _renew(self, epoch: int, ended: threading.Event) -> None:
        wait_s = RENEW_S
        while not ended.wait(wait_s):
            asked_at = self._clock.monotonic()
            try:
                mine = self._database.transact(lambda connection: self._prolong(connection, epoch))
            except Exception as error:  # noqa: BLE001 (whatever it is, it is asked for again)
                self._log.warning("the term was not renewed; no call starts meanwhile", error=str(error))
                wait_s = RENEW_AGAIN_S
                continue
            if not mine:
                self._log.warning("another process delivers now")
                self._forget(epoch)
                return
            with self._mutex:
                self._asked_at = asked_at
            wait_s = RENEW_S

    def _forget(self, epoch: int) -> None:
        with self._mutex:
            if self._epoch == epoch:
                self._epoch = 0
