"""How much of a long text people are shown: a page must not cost what it tells of (G8)."""

from __future__ import annotations

#: Characters of a value.
VALUE = 1_000
#: Characters of a payload, and payloads of one entry: as much as somebody reads.
PAYLOAD, PAYLOADS = 50_000, 20


def beginning(column: str, characters: int = VALUE) -> str:
    """A text column, as SQL: what is longer is cut, and says so."""
    return f"CASE WHEN length({column}) > {characters} THEN substr({column}, 1, {characters}) || '…' ELSE {column} END"


def cut(text: str, characters: int = VALUE) -> str:
    """The same of a text that is there already."""
    return text if len(text) <= characters else text[:characters] + "…"
