"""Messages to begin with: every good payload of every source, in each mode."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from bridge.settings import Source
from tests.awkward import BODIES
from tests.configurations import sources
from tests.fuzzing.target import MODES, Message


def seeds() -> Iterator[tuple[str, Message]]:
    """Each with a name for its file."""
    for key, bodies in BODIES.items():
        for number, (body, headers, query) in enumerate(bodies):
            for mode in MODES:
                name = f"{key.replace(':', '-')}-{number}-{mode}"
                written = encoded(sources()[key][1], body)
                yield name, Message(key, written, mode, number % 2 == 1, urlencode(query), headers)


def encoded(source: Source, value: Any) -> bytes:
    """A value as the body that the source takes."""
    match source.body:
        case "json":
            return json.dumps(value).encode()
        case "ndjson":
            lines = value if isinstance(value, list) else [value]
            return b"\n".join(json.dumps(line).encode() for line in lines)
        case _ if source.payload_field is not None:
            return urlencode({source.payload_field: json.dumps(value)}).encode()
        case _:
            fields = value if isinstance(value, dict) else {"id": value}
            return urlencode(fields, doseq=True, errors="replace").encode()
