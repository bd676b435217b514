"""Durations (`500ms 30s 5m 24h 7d`) and sizes (`1MiB 20GiB 10MB`, or plain bytes) in text."""

from __future__ import annotations

import re
from decimal import Decimal

MS_PER = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
BYTES_PER = {
    "B": 1,
    "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4,
    "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4,
}  # fmt: skip

DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$"
SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)?(B|[kKMGT]B|[KMGT]iB)?$"

#: beyond this a duration is a slip of the finger, and time arithmetic would overflow
LONGEST_D = 36_500
LARGEST_BYTES = 1024**5

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)", re.ASCII)


def parse_duration(value: object) -> float:
    """Seconds. Raises ValueError with a message that says how to write it."""
    how = "write a number with its unit, such as 500ms, 30s, 5m, 24h or 7d"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f"{value} has no unit: {how}")  # noqa: TRY004 (one kind of error for callers)
    match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"is not a duration: {how}")
    number, unit = match.groups()
    if unit not in MS_PER:
        raise ValueError(f"the unit {unit!r} is not known: {how}" if unit else f"{number} has no unit: {how}")
    ms = Decimal(number) * MS_PER[unit]
    if ms > LONGEST_D * MS_PER["d"]:
        raise ValueError(f"is longer than {LONGEST_D} days")
    return float(ms / 1000)


def parse_size(value: object) -> int:
    """Bytes. Raises ValueError with a message that says how to write it."""
    how = "write bytes, or a number with its unit, such as 512KiB, 1MiB, 20GiB or 10MB"
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    match = _QUANTITY.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"is not a size: {how}")
    number, unit = match.groups()
    if unit and unit not in BYTES_PER:
        raise ValueError(f"the unit {unit!r} is not known: {how}")
    size = Decimal(number) * BYTES_PER[unit or "B"]
    if size != size.to_integral_value():
        raise ValueError("is not a whole number of bytes")
    if size > LARGEST_BYTES:
        raise ValueError("is more than 1024TiB")
    return int(size)


def format_duration(seconds: float) -> str:
    """The shortest text in one unit that `parse_duration` turns back into whole milliseconds."""
    ms = round(seconds * 1000)
    for unit in ("d", "h", "m", "s"):
        if ms and ms % MS_PER[unit] == 0:
            return f"{ms // MS_PER[unit]}{unit}"
    return f"{ms}ms" if ms else "0s"


def format_size(size: int) -> str:
    """The shortest binary text that `parse_size` turns back."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % BYTES_PER[unit] == 0:
            return f"{size // BYTES_PER[unit]}{unit}"
    return str(size)
