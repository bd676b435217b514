"""The log line of what people do: who did what to how much."""

from __future__ import annotations

from typing import Any

import structlog
from flask import g, has_request_context, request

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
