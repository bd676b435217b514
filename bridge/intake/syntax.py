"""Questions about JMESPath's syntax trees: which variables they read, what they call and make, plain paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Node = Mapping[str, Any]

#: What expressions see beside the event; a name has this meaning at the head of a path only.
VARIABLES = ("_root", "_index", "_query", "_headers")

#: Functions that give (parts of) what they got, and those that call an `&expression`.
_PASS_ON = frozenset({"to_array", "not_null", "values", "reverse", "sort_by", "max_by", "min_by"})
_CALLING = frozenset({"map", "sort_by", "max_by", "min_by"})

_BEGIN_WITH_A_PATH = frozenset({"index_expression", "projection", "value_projection", "filter_projection", "flatten"})


def uses(node: Node, *, head: bool = True) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The variables that a tree reads, each with the keys that follow it as far as they are plain."""
    children = node["children"]
    if node["type"] == "field":
        if head and node["value"] in VARIABLES:
            yield node["value"], ()
    elif node["type"] == "subexpression" and head and _is_variable(children[0]):
        yield children[0]["value"], tuple(_leading_keys(children[1:]))
        for child in children[1:]:
            yield from uses(child, head=False)
    elif node["type"] != "slice":
        for child, child_head in zip(children, heads(node, head), strict=True):
            yield from uses(child, head=child_head)


def calls(node: Node) -> Iterator[tuple[str, int]]:
    """The functions that a tree calls, each with the number of its arguments."""
    if node["type"] == "function_expression":
        yield node["value"], len(node["children"])
    if node["type"] != "slice":
        for child in node["children"]:
            yield from calls(child)


def makes(node: Node) -> bool:
    """Whether a tree may give objects or lists that it put together itself, in place of what the document holds."""
    kind, children = node["type"], node["children"]
    match kind:
        case "multi_select_dict" | "multi_select_list" | "literal":
            return True
        case "function_expression":
            passes_on = node["value"] in _PASS_ON and next(uses(node), None) is None  # `_root` for each of many
            return not passes_on or any(makes(child) for child in children)
        case "filter_projection":
            return any(makes(child) for child in children[:2])  # the third is the condition
        case "comparator" | "not_expression" | "slice":
            return False
        case _:
            return any(makes(child) for child in children)


def size_of(node: Node) -> int:
    """How many parts a tree has."""
    return 1 if node["type"] == "slice" else 1 + sum(map(size_of, node["children"]))


def literals(node: Node) -> Iterator[Any]:
    """The values that a tree has written in it."""
    if node["type"] == "literal":
        yield node["value"]
    if node["type"] != "slice":
        for child in node["children"]:
            yield from literals(child)


def has_loose_reference(node: Node, *, taken: bool = False) -> bool:
    """Whether an `&expression` stands where it would be a value. `taken`: a function is there that calls it."""
    if node["type"] == "slice":
        return False
    if node["type"] == "expref" and not taken:
        return True
    calling = node["type"] == "function_expression" and node["value"] in _CALLING
    return any(has_loose_reference(child, taken=calling) for child in node["children"])


def negates_first_step(node: Node) -> bool:
    """Whether a tree negates the first step of a path only, as `!a.b` does: to JMESPath that is `(!a).b`, and nothing
    is found within true or false.
    """
    if node["type"] == "slice":
        return False
    children = node["children"]
    wrong = node["type"] == "subexpression" and children[0]["type"] == "not_expression"
    return wrong or any(negates_first_step(child) for child in children)


def plain_path(node: Node) -> tuple[str | int, ...] | None:
    """The keys and indices of a tree that is nothing but a path (`a.b[0].c`, `@`), else None."""
    kind = node["type"]
    if kind in {"current", "identity"}:
        return ()
    if kind == "field" or (kind == "index" and node["value"] >= 0):
        return (node["value"],)
    if kind in {"subexpression", "index_expression"}:
        parts = [plain_path(child) for child in node["children"]]
        if all(part is not None for part in parts):
            return tuple(step for part in parts if part is not None for step in part)
    return None


def heads(node: Node, head: bool) -> list[bool]:
    """Which children of a node begin a path of their own, and do not go on with their neighbour's."""
    match node["type"]:
        case "subexpression" | "index_expression":
            return [head] + [False] * (len(node["children"]) - 1)
        case "projection" | "value_projection":
            return [head, False]
        case "filter_projection":
            return [head, False, True]
        case "flatten":
            return [head]
        case _:
            return [True] * len(node["children"])


def _leading_keys(steps: Sequence[Node]) -> Iterator[str]:
    """The keys with which a path goes on, up to its first index, projection or the like."""
    for step in steps:
        first = step
        while first["type"] in _BEGIN_WITH_A_PATH:
            first = first["children"][0]
        if first["type"] == "field":
            yield first["value"]
        if first is not step or first["type"] != "field":
            return


def _is_variable(node: Node) -> bool:
    return node["type"] == "field" and node["value"] in VARIABLES
