"""Which places of an event an expression looks at."""

from __future__ import annotations

from collections.abc import Iterator

import jmespath

from bridge.intake.syntax import VARIABLES, Node, plain_path
from bridge.operations.openapi.algebra import Path

#: Nodes whose first child alone looks at the event: the others look at what that one found.
_CHAINS = frozenset(
    {
        "subexpression", "index_expression", "pipe", "projection", "value_projection", "filter_projection", "flatten",
    }
)  # fmt: skip


def places_read(expression: str) -> list[Path]:
    """The paths of the event with which the expression begins to look, each once; not `_root` and the like."""
    found = _read(jmespath.compile(expression).parsed)
    return list(dict.fromkeys(path for path in found if path and path[0] not in VARIABLES))


def _read(node: Node) -> Iterator[Path]:
    path = plain_path(node)
    kind = node["type"]
    if path is not None:
        yield path
    elif kind in _CHAINS:
        yield from _read(node["children"][0])
    elif kind not in {"expref", "literal", "slice"}:
        for child in node["children"]:
            yield from _read(child)
