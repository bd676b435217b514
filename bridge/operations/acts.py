"""Acts of people: on many entries in the background, and the log line of each.

Thread-safe. One act at a time in the whole deployment; what it did is told through the journal, so that every
worker tells the same, also after the one that worked at it is gone.
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import replace
from typing import Any

import structlog
from flask import g, has_request_context, request

from bridge.errors import BridgeError
from bridge.http.problems import Refusal, stack_of
from bridge.journal.control import Act
from bridge.journal.retry_log import Filter
from bridge.journal.store import Journal
from bridge.model import to_us
from bridge.operations.desk import JournalDesk
from bridge.operations.queries import as_query

# --- the log line of what people do: who did what to how much ---

_log = structlog.get_logger("bridge.admin")


def log_act(
    act: str,
    chosen: dict[str, Any],
    result: Any,
    *,
    who: str | None = None,
    address: str | None = None,
    problem: str = "",
) -> None:
    """Who did what to how much. Texts that look like an address, and HubSpot's, are not logged.

    `who` and `address` are the request's unless they are given; `problem` tells why an act ended early.
    """
    if has_request_context():
        who, address = who or g.get("who", "?"), address or request.remote_addr
    shown = {
        name: len(value) if isinstance(value, list) else "(hidden)" if _is_private(name, value) else value
        for name, value in chosen.items()
    }
    counts = {"pauses": len(result)} if isinstance(result, list) else result
    figures = {name: count for name, count in counts.items() if isinstance(count, int)}
    ended = {"error": problem} if problem else {}
    _log.info("operator acted", act=act, who=who, address=address, filter=shown, **figures, **ended)


def _is_private(name: str, value: object) -> bool:
    return name in {"message", "search"} or "@" in str(value)


# --- acts in the background ---------------------------------------------------------------------

#: Seconds between two notes of how far an act came: each is a write of the journal.
TOLD_EVERY_S = 0.5
#: Seconds that the end of the service waits for the transaction at hand.
ENDS_WITHIN_S = 5.0


class _Stopped(Exception):  # noqa: N818 (a wish, not an accident)
    """The service ends."""


class Acts:
    """The acts of the console."""

    def __init__(self, *, desk: JournalDesk, journal: Journal) -> None:
        self._desk = desk
        self._journal = journal
        self._stopping = threading.Event()
        #: Guards `_thread`.
        self._mutex = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, what: str, chosen: Filter, *, counted: int, who: str, address: str | None) -> Act:
        """Begin to `replay` or `discard` what the filter means. Raises Refusal while another act goes on."""
        now_us = to_us(time.time())
        act = Act(secrets.token_hex(8), what, who, as_query(chosen), counted, began_us=now_us, told_us=now_us)
        with self._mutex:
            if self._stopping.is_set():
                raise Refusal(503, "The service is about to end. Nothing was done; try again when it is back.")
            if not self._journal.begin_act(act):
                raise Refusal(409, "Another act on the retry log goes on. Wait until it has ended.")
            thread = threading.Thread(target=self._run, args=(act, chosen, address), name="act", daemon=True)
            self._thread = thread
            thread.start()
        return act

    def wait(self, timeout_s: float) -> None:
        """Let an act of this process end, if it does so soon."""
        with self._mutex:
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def latest(self) -> Act | None:
        """The act that began last, whichever process works at it; one whose process died has ended."""
        act = self._journal.latest_act()
        if act is not None and act.stalled(to_us(time.time())):
            problem = "The process that worked at it ended. What it did stays done."
            return replace(act, ended=True, result={"entries": act.done}, problem=problem)
        return act

    def stop(self) -> None:
        """End between two transactions; what was done stays done."""
        self._stopping.set()
        self.wait(ENDS_WITHIN_S)

    def _run(self, act: Act, chosen: Filter, address: str | None) -> None:
        told, done = time.monotonic(), 0

        def progress(number: int) -> None:
            nonlocal told, done
            done += number
            if self._stopping.is_set():
                raise _Stopped
            if time.monotonic() - told >= TOLD_EVERY_S:
                told = time.monotonic()
                self._journal.tell_act(replace(act, told_us=to_us(time.time()), done=done))

        result, problem = {"entries": 0}, ""
        try:
            result = self._desk.act_on_retries(act.what, chosen, progress=progress)
        except _Stopped:
            problem = "The service was stopped. What was done stays done."
        except BridgeError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 (the thread ends; people are told, the stack is in the log)
            problem = f"An accident ended it ({type(error).__name__}); the log tells where."
            _log.error("an act failed", error=type(error).__name__, problems=stack_of(error))
        if problem:
            result = {"entries": done}
        log_act(f"retries {act.what}", act.chosen, result, who=act.who, address=address, problem=problem)
        ended = replace(act, told_us=to_us(time.time()), done=done, ended=True, result=result, problem=problem)
        try:
            self._journal.tell_act(ended)
        except BridgeError as error:  # then it looks stalled, which it is
            _log.warning("the end of an act is not told", error=str(error))
