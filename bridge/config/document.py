"""What was read from YAML: plain values, and the place of each of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bridge.errors import Problem

#: the way to a value, such as ("sources", "acme", "verify", "secrets", 0)
Keys = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands; lines count from 1."""

    file: str
    line: int


@dataclass(slots=True)
class Document:
    """One file's values, the place of each, and what is wrong with its form."""

    file: str
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Keys, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, keys: Keys) -> Place:
        """Where `keys` stands, or else the innermost thing around it that is in the file."""
        for length in range(len(keys), -1, -1):
            if keys[:length] in self.places:
                return self.places[keys[:length]]
        return Place(self.file, 1)

    def known(self, keys: Keys) -> Keys:
        """As much of `keys` as is in the file."""
        for length in range(len(keys), 0, -1):
            if keys[:length] in self.places:
                return keys[:length]
        return ()

    def problem(self, keys: Keys, message: str) -> Problem:
        place = self.place(keys)
        return Problem(dotted(keys), message, place.line, place.file)


def dotted(keys: Keys) -> str:
    """`sources.acme.verify.secrets[0]`, as problems name it."""
    return "".join(
        f"[{key}]" if isinstance(key, int) else f".{key}" if index else key for index, key in enumerate(keys)
    )
