"""`when:` as JSON Schema, as far as it looks at plain paths of the event and compares them with literals.

A condition becomes a pair: `wide` fits every event for which it holds, `narrow` only such events. Where
both are the same schema the condition is said exactly; one that cannot be said at all is (True, False).
"""

from __future__ import annotations

from typing import NamedTuple

import jmespath

from bridge.intake.syntax import VARIABLES, Node, calls, plain_path
from bridge.operations.openapi.algebra import Path, all_of, any_of, at, negated
from bridge.operations.openapi.shapes import JsonSchema, escaped

_BOUNDS = {"lt": "exclusiveMaximum", "lte": "maximum", "gt": "exclusiveMinimum", "gte": "minimum"}
_TURNED = {"lt": "gt", "lte": "gte", "gt": "lt", "gte": "lte", "eq": "eq", "ne": "ne"}
_FALSE: tuple[object, ...] = (None, False, "", [], {})


class Bounds(NamedTuple):
    """See the module."""

    wide: JsonSchema = True
    narrow: JsonSchema = False


ALWAYS = Bounds(True, True)


def bounds_of(condition: str | None) -> Bounds:
    """The bounds of a `when:` that compiles; None holds always."""
    return ALWAYS if condition is None else _bounds(jmespath.compile(condition).parsed)


def both(left: Bounds, right: Bounds) -> Bounds:
    """Where both hold."""
    return Bounds(all_of([left.wide, right.wide]), all_of([left.narrow, right.narrow]))


def either(*bounds: Bounds) -> Bounds:
    """Where at least one holds."""
    return Bounds(any_of(one.wide for one in bounds), any_of(one.narrow for one in bounds))


def _bounds(node: Node) -> Bounds:
    """An expression that raises does not hold as a whole, so what may raise is exact only where false would do."""
    children = node["children"]
    match node["type"]:
        case "and_expression":
            return both(_bounds(children[0]), _bounds(children[1]))
        case "or_expression":
            found = either(_bounds(children[0]), _bounds(children[1]))
            return found._replace(narrow=False) if _may_raise(children[0]) else found
        case "not_expression":
            inner = _bounds(children[0])
            found = Bounds(negated(inner.narrow), negated(inner.wide))
            return found._replace(narrow=False) if _may_raise(children[0]) else found
        case "comparator":
            return _comparison(node["value"], *children)
        case "function_expression":
            return _call(node["value"], children)
        case _:
            path = _event_path(node)
            return Bounds() if path is None else _exactly(at(path, {"not": {"enum": list(_FALSE)}}))


def _comparison(operator: str, left: Node, right: Node) -> Bounds:
    if left["type"] == "literal":
        left, right, operator = right, left, _TURNED[operator]
    path = _event_path(left)
    value = right.get("value")
    if path is None or right["type"] != "literal":
        return Bounds()
    if operator in {"eq", "ne"}:
        if not isinstance(value, (str, bool, int)):
            return Bounds()
        equal = at(path, {"const": value})
        return _exactly(equal if operator == "eq" else negated(equal))
    if isinstance(value, bool) or not isinstance(value, int):
        return Bounds()
    return _exactly(at(path, {"type": "number", _BOUNDS[operator]: value}))


def _call(name: str, arguments: list[Node]) -> Bounds:
    if name not in {"starts_with", "ends_with", "contains"}:
        return Bounds()
    path, text = _event_path(arguments[0]), arguments[1].get("value")
    if path is None or arguments[1]["type"] != "literal" or not isinstance(text, str):
        return Bounds()
    pattern = {"starts_with": f"^{escaped(text)}", "ends_with": rf"{escaped(text)}$"}.get(name, escaped(text))
    fits: JsonSchema = {"type": "string", "pattern": pattern}
    if name == "contains":
        fits = any_of([fits, {"type": "array", "contains": {"const": text}}])
    found = at(path, fits)
    # `$` is the very end to ECMA, and also before a line's end to others: exact for no one
    return Bounds(found, False) if name == "ends_with" else _exactly(found)


def _event_path(node: Node) -> Path | None:
    """The path of a node that reads the event and nothing beside it."""
    path = plain_path(node)
    return None if path is None or (path and path[0] in VARIABLES) else path


def _may_raise(node: Node) -> bool:
    return any(True for _ in calls(node))


def _exactly(schema: JsonSchema) -> Bounds:
    return Bounds(schema, schema)
