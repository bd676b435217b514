"""Structured logs on standard output: one line per webhook and per CRM call; JSON, or for people on a terminal.

A line has a constant `event`, and fields with ids and counts; never a payload, a token or a property's value.
JSON escapes control characters, so that nothing a sender chose can forge a line.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

import orjson
import structlog
from structlog.typing import Processor

from bridge.errors import ConfigError, Problem

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("json", "console")


def _to_json(document: object, **_options: Any) -> str:
    return orjson.dumps(document, default=str).decode()


def configure(environ: Mapping[str, str]) -> dict[str, Any]:
    """Set up structlog by `BRIDGE_LOG_LEVEL` and `BRIDGE_LOG_FORMAT`.

    Returns the `logging` configuration that brings the libraries' own lines (gunicorn's, say) into the same
    form. Raises ConfigError for a level or format that does not exist.
    """
    level = environ.get("BRIDGE_LOG_LEVEL", "info").lower()
    form = environ.get("BRIDGE_LOG_FORMAT", "console" if sys.stdout.isatty() else "json").lower()
    problems = []
    if level not in LEVELS:
        problems.append(Problem("BRIDGE_LOG_LEVEL", f"{level!r} is no level; use one of {', '.join(LEVELS)}"))
    if form not in FORMATS:
        problems.append(Problem("BRIDGE_LOG_FORMAT", f"{form!r} is no format; use one of {', '.join(FORMATS)}"))
    if problems:
        raise ConfigError(problems)
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer(serializer=_to_json)
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "ours": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": [*shared, structlog.stdlib.add_logger_name],
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.format_exc_info,
                    renderer,
                ],
            }
        },
        "handlers": {"stdout": {"class": "logging.StreamHandler", "stream": sys.stdout, "formatter": "ours"}},
        "root": {"level": "WARNING", "handlers": ["stdout"]},
        "loggers": {
            "gunicorn.error": {"level": level.upper(), "handlers": ["stdout"], "propagate": False},
            "gunicorn.access": {"level": "WARNING", "handlers": [], "propagate": False},
        },
    }
