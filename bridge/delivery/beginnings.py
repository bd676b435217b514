"""What can be read of a JSON text of which only the beginning is there: the members that are complete."""

from __future__ import annotations

import json
import re
from typing import Any

#: Levels that are looked into: an answer's `results`, one of them, its `properties`; each costs another pass.
_LEVELS = 4

_DECODER = json.JSONDecoder(strict=False)
_SPACE = re.compile(r"[ \t\r\n]*")


def beginning(raw: bytes | bytearray) -> Any:
    """The value with what is complete of it; None when that is nothing."""
    value, _ = _value(raw.decode("utf-8", "ignore"), 0, _LEVELS)
    return value


def _value(text: str, at: int, levels: int) -> tuple[Any, int | None]:
    """The value that begins here, and where it ends; None: not within the text."""
    at = _after_space(text, at)
    if (opening := text[at : at + 1]) and levels and opening in "{[":
        whole = _whole(text, at) if levels < _LEVELS else None  # of the outermost it is known that it has no end
        if whole is None:
            return (_members if opening == "{" else _items)(text, at + 1, levels - 1), None
        return whole
    return _whole(text, at) or (None, None)


def _whole(text: str, at: int) -> tuple[Any, int] | None:
    try:
        value, end = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return None
    # A number at the end of the text may go on.
    return (value, end) if end < len(text) else None


def _members(text: str, at: int, levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    end: int | None = at
    while end is not None:
        name, colon = _whole(text, _after_space(text, end)) or (None, len(text))
        colon = _after_space(text, colon)
        if not isinstance(name, str) or text[colon : colon + 1] != ":":
            break
        value, end = _value(text, colon + 1, levels)
        if end is not None or isinstance(value, (dict, list)):
            found[name] = value
        end = None if end is None else _after_comma(text, end)
    return found


def _items(text: str, at: int, levels: int) -> list[Any]:
    found: list[Any] = []
    end: int | None = at
    while end is not None:
        value, end = _value(text, end, levels)
        if end is not None or isinstance(value, (dict, list)):
            found.append(value)
        end = None if end is None else _after_comma(text, end)
    return found


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()


def _after_comma(text: str, at: int) -> int | None:
    at = _after_space(text, at)
    return at + 1 if text[at : at + 1] == "," else None
