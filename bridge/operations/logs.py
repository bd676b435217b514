"""Structured logs on standard output: one line per webhook and per CRM call; JSON, or for people on a terminal.

A line has a constant `event`, and fields with ids and counts; never a payload, a token or a property's value.
What cannot be seen is escaped wherever it comes from, at the end of the chain: in fields, their names, messages of
libraries and texts of exceptions. So nothing that a sender chose can forge a line or steer what shows it.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor

from bridge.errors import ConfigError, Problem
from bridge.showing import printable, printable_json

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("json", "console")
#: How long a line may wait to be written.
WRITE_EVERY_S = 0.05
#: Lines kept while nobody reads; some ten megabytes.
MAX_LINES = 20_000


class Lines:
    """Where structlog's lines go: kept in memory for a moment and written by a thread of its own.

    A request must not wait for the log: a write is a system call and a turn of the interpreter's lock, and a
    reader that is stuck would hold it for ever. What does not fit, or cannot be written (a full disk, a reader that
    went away), is dropped and counted; the count is logged once that works again. Thread-safe; each process of a
    fork has a thread of its own.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._failed = False  # the last write: it may have ended within a line
        self._start = threading.Lock()
        self._pid: int | None = None
        self._is_writing = False
        atexit.register(self.flush)
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """What waits at a fork, and what is being written, is the parent's."""
        self._lines.clear()
        self._is_writing = False

    def __call__(self, *_names: object) -> Lines:
        return self

    def msg(self, line: str) -> None:
        """Take one line."""
        if len(self._lines) >= MAX_LINES:
            self._dropped += 1
            return
        self._lines.append(line)
        if self._pid != os.getpid():
            self._start_thread()

    log = debug = info = warn = warning = error = err = critical = fatal = exception = failure = msg

    def flush(self, timeout_s: float = 2.0) -> None:
        """Wait until what there is was written, unless the reader is stuck: only the thread may wait for that one."""
        if self._pid != os.getpid():  # there is no thread: nothing was logged, or none could be started
            self._write()
        ends = time.monotonic() + timeout_s
        while (self._lines or self._is_writing) and time.monotonic() < ends:
            time.sleep(WRITE_EVERY_S / 10)

    def _start_thread(self) -> None:
        with self._start:
            if self._pid == os.getpid():
                return
            with suppress(RuntimeError):  # a limit of threads: the next line tries again
                threading.Thread(target=self._run, name="log-writer", daemon=True).start()
                self._pid = os.getpid()

    def _run(self) -> None:
        while True:
            time.sleep(WRITE_EVERY_S)
            if self._lines:
                self._is_writing = True
                self._write()
                self._is_writing = False

    def _write(self) -> None:
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        if not lines and not self._dropped:
            return
        dropped, self._dropped = self._dropped, 0
        told = [_dropped(dropped)] if dropped else []
        try:
            self._out.write("\n" * self._failed + "\n".join([*lines, *told]) + "\n")
            self._out.flush()
        except Exception:  # noqa: BLE001 (a full disk, most likely; whatever it is, there must be a next time)
            self._failed = True
            self._dropped += dropped + len(lines)
        else:
            self._failed = False


class LinesHandler(logging.Handler):
    """The libraries' lines (gunicorn's, say) take the same way: a master that waited for a stuck reader would
    start no worker in the place of one that died.
    """

    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.msg(self.format(record))
        except Exception:  # noqa: BLE001 (as every handler does: logging must not raise)
            self.handleError(record)


def _dropped(lines: int) -> str:
    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return _to_json({"lines": lines, "event": "log lines dropped", "level": "warning", "timestamp": at})


def _to_json(document: object, **_options: Any) -> str:
    return printable_json(document)


def _escaped(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """For people: the renderer escapes texts with blanks, and leaves others as a sender wrote them."""
    return {printable(str(name)): _shown(name, value) for name, value in event.items()}


def _shown(name: str, value: Any) -> Any:
    if name in {"exception", "stack"}:  # of several lines, of which none must look like one of ours
        return "\n".join(f"  {printable(line)}" for line in str(value).split("\n"))
    if isinstance(value, str):
        return printable(value)
    return value if repr(value).isprintable() else printable(repr(value))


def rendering(form: str, *, coloured: bool = False) -> list[Processor]:
    """The end of the chain: from the fields of a line to its text."""
    structured: list[Processor] = [structlog.processors.format_exc_info]
    if form == "json":
        return [*structured, structlog.processors.JSONRenderer(serializer=_to_json)]
    plain = structlog.dev.plain_traceback  # it is one already
    return [*structured, _escaped, structlog.dev.ConsoleRenderer(colors=coloured, exception_formatter=plain)]


def _chosen(environ: Mapping[str, str]) -> tuple[str, str]:
    """The level and the format."""
    level = environ.get("BRIDGE_LOG_LEVEL", "info").lower()
    return level, environ.get("BRIDGE_LOG_FORMAT", "console" if sys.stdout.isatty() else "json").lower()


def faults(environ: Mapping[str, str]) -> list[Problem]:
    """What `configure` would refuse."""
    level, form = _chosen(environ)
    problems = []
    if level not in LEVELS:
        problems.append(Problem("BRIDGE_LOG_LEVEL", f"{level!r} is no level; use one of {', '.join(LEVELS)}"))
    if form not in FORMATS:
        problems.append(Problem("BRIDGE_LOG_FORMAT", f"{form!r} is no format; use one of {', '.join(FORMATS)}"))
    return problems


def configure(environ: Mapping[str, str]) -> dict[str, Any]:
    """Set up structlog by `BRIDGE_LOG_LEVEL` and `BRIDGE_LOG_FORMAT`.

    Returns the `logging` configuration that brings the libraries' own lines (gunicorn's, say) into the same
    form. Raises ConfigError for a level or format that does not exist.
    """
    if problems := faults(environ):
        raise ConfigError(problems)
    level, form = _chosen(environ)
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    ending = rendering(form, coloured=sys.stdout.isatty() and not environ.get("NO_COLOR"))
    lines = Lines(sys.stdout)
    structlog.configure(
        processors=[*shared, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=lines,
        cache_logger_on_first_use=True,
    )
    quieter = max(level, "info", key=LEVELS.index)
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "ours": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": [*shared, structlog.stdlib.add_logger_name],
                "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
            }
        },
        "handlers": {"stdout": {"()": LinesHandler, "lines": lines, "formatter": "ours"}},
        "root": {"level": "WARNING", "handlers": ["stdout"]},
        "loggers": {
            # its debug lines show every path that is asked for, and some senders put their token there
            "gunicorn.error": {"level": quieter.upper(), "handlers": ["stdout"], "propagate": False},
            "gunicorn.access": {"level": "WARNING", "handlers": [], "propagate": False},
        },
    }
