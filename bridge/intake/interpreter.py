"""JMESPath's syntax trees as closures: JMESPath's meaning, several times faster, plus our variables.

The library parses; its interpreter looks every node up by name for every element. A tree compiled
once makes filters over custom fields affordable. The library stays the judge: a test compares the
two on random documents. Differences: numbers are exact, comparing a number with a text gives null
instead of an error, and at the head of a path `_root`, `_index`, `_query` and `_headers` are what
comes with the event (`@._root` is the event's own key of that name).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from bridge.intake.functions import Functions
from bridge.intake.payload import exact_integer
from bridge.intake.syntax import VARIABLES, Node, heads


class Scope:
    """What expressions see beside the event. One per request; `index` moves with the events."""

    __slots__ = ("_headers", "_index", "_query", "_root")

    def __init__(
        self,
        *,
        root: Any = None,
        index: int = 0,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._root = root
        self._index = index
        self._query = dict(query or {})
        self._headers = dict(headers or {})

    def move_to(self, index: int) -> None:
        self._index = index


Run = Callable[[Any, Scope], Any]

_FUNCTIONS = Functions()


def build(node: Node, *, head: bool = True) -> Run:
    """The closure of a syntax tree. `head`: the node begins a path, so variables have their meaning."""
    return _BUILDERS[node["type"]](node, head)


def arity(name: str) -> tuple[int, bool] | None:
    """See `Functions.arity`."""
    return _FUNCTIONS.arity(name)


def is_false(value: Any) -> bool:
    """JMESPath's idea of false: null, false, and empty texts, lists and objects; 0 is true."""
    return value is None or value is False or (not value and type(value) in {str, list, dict})


def _equal(left: Any, right: Any) -> bool:
    if type(left) is bool or type(right) is bool:  # to Python, 1 == True
        return left is right
    return bool(left == right)


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool | None]:
    def run(left: Any, right: Any) -> bool | None:
        numbers = isinstance(left, (int, Decimal)) and isinstance(right, (int, Decimal))
        if isinstance(left, bool) or isinstance(right, bool):
            return None
        return compare(left, right) if numbers or (type(left) is type(right) is str) else None

    return run


_COMPARE: dict[str, Callable[[Any, Any], bool | None]] = {
    "eq": _equal,
    "ne": lambda left, right: not _equal(left, right),
    "lt": _ordered(operator.lt),
    "gt": _ordered(operator.gt),
    "lte": _ordered(operator.le),
    "gte": _ordered(operator.ge),
}


class _Expression:
    """An `&expression` argument; the library's functions know it by this class name and `visit`."""

    __slots__ = ("_run", "_scope", "expression")

    def __init__(self, run: Run, scope: Scope) -> None:
        self.expression = None
        self._run = run
        self._scope = scope

    def visit(self, _node: None, value: Any) -> Any:
        return self._run(value, self._scope)


def _field(node: Node, head: bool) -> Run:
    name: str = node["value"]
    if head and name in VARIABLES:
        variable = operator.attrgetter(name)
        return lambda _value, scope: variable(scope)
    return lambda value, _scope: value.get(name) if type(value) is dict else None


def _chain(node: Node, head: bool) -> Run:
    children = node["children"]
    steps = [build(child, head=h) for child, h in zip(children, heads(node, head), strict=True)]
    if len(steps) == 2:
        first, second = steps
        return lambda value, scope: second(first(value, scope), scope)

    def run(value: Any, scope: Scope) -> Any:
        for step in steps:
            value = step(value, scope)
        return value

    return run


def _index(node: Node, _head: bool) -> Run:
    position: int = node["value"]

    def run(value: Any, _scope: Scope) -> Any:
        if type(value) is not list or not -len(value) <= position < len(value):
            return None
        return value[position]

    return run


def _slice(node: Node, _head: bool) -> Run:
    part = slice(*node["children"])
    return lambda value, _scope: value[part] if type(value) is list else None


def _literal(node: Node, _head: bool) -> Run:
    value = _exact(node["value"])
    return lambda _value, _scope: value


def _exact(value: Any) -> Any:
    """A literal's numbers as the text had them."""
    if isinstance(value, float):
        return Decimal(repr(value))
    if type(value) is int:
        return exact_integer(value)
    if isinstance(value, list):
        return [_exact(item) for item in value]
    return {key: _exact(item) for key, item in value.items()} if isinstance(value, dict) else value


def _comparator(node: Node, _head: bool) -> Run:
    compare = _COMPARE[node["value"]]
    left, right = (build(child) for child in node["children"])
    return lambda value, scope: compare(left(value, scope), right(value, scope))


def _and(node: Node, _head: bool) -> Run:
    left, right = (build(child) for child in node["children"])

    def run(value: Any, scope: Scope) -> Any:
        matched = left(value, scope)
        return matched if is_false(matched) else right(value, scope)

    return run


def _or(node: Node, _head: bool) -> Run:
    left, right = (build(child) for child in node["children"])

    def run(value: Any, scope: Scope) -> Any:
        matched = left(value, scope)
        return right(value, scope) if is_false(matched) else matched

    return run


def _not(node: Node, _head: bool) -> Run:
    inner = build(node["children"][0])
    return lambda value, scope: is_false(inner(value, scope))


def _function(node: Node, _head: bool) -> Run:
    name = node["value"]
    arguments = [build(child) for child in node["children"]]
    return lambda value, scope: _FUNCTIONS.call_function(name, [a(value, scope) for a in arguments])


def _expref(node: Node, _head: bool) -> Run:
    inner = build(node["children"][0])
    return lambda _value, scope: _Expression(inner, scope)


def _select_list(node: Node, _head: bool) -> Run:
    parts = [build(child) for child in node["children"]]
    return lambda value, scope: None if value is None else [part(value, scope) for part in parts]


def _select_dict(node: Node, _head: bool) -> Run:
    parts = [(child["value"], build(child["children"][0])) for child in node["children"]]

    def run(value: Any, scope: Scope) -> Any:
        return None if value is None else {key: part(value, scope) for key, part in parts}

    return run


def _flatten(node: Node, head: bool) -> Run:
    inner = build(node["children"][0], head=head)

    def run(value: Any, scope: Scope) -> Any:
        base = inner(value, scope)
        if type(base) is not list:
            return None
        flat: list[Any] = []
        for element in base:
            flat.extend(element if type(element) is list else (element,))
        return flat

    return run


def _projection(node: Node, head: bool) -> Run:
    left, right = build(node["children"][0], head=head), build(node["children"][1], head=False)

    def run(value: Any, scope: Scope) -> Any:
        base = left(value, scope)
        if type(base) is not list:
            return None
        return [found for element in base if (found := right(element, scope)) is not None]

    return run


def _value_projection(node: Node, head: bool) -> Run:
    left, right = build(node["children"][0], head=head), build(node["children"][1], head=False)

    def run(value: Any, scope: Scope) -> Any:
        base = left(value, scope)
        if type(base) is not dict:
            return None
        return [found for element in base.values() if (found := right(element, scope)) is not None]

    return run


def _filter(node: Node, head: bool) -> Run:
    left, right = build(node["children"][0], head=head), build(node["children"][1], head=False)
    pick = _picker(node["children"][2])

    def run(value: Any, scope: Scope) -> Any:
        base = left(value, scope)
        if type(base) is not list:
            return None
        return [found for element in pick(base, scope) if (found := right(element, scope)) is not None]

    return run


def _picker(condition: Node) -> Callable[[list[Any], Scope], list[Any]]:
    """What a filter lets through; `[?name == 'text']`, the common one, without a call per element."""
    if condition["type"] == "comparator" and condition["value"] == "eq":
        key, wanted = condition["children"]
        if wanted["type"] == "literal" and type(wanted["value"]) is str and key["type"] == "field":
            name, text = key["value"], wanted["value"]
            if name not in VARIABLES:
                return lambda base, _scope: [
                    element for element in base if type(element) is dict and element.get(name) == text
                ]
    test = build(condition)
    return lambda base, scope: [element for element in base if not is_false(test(element, scope))]


_BUILDERS: dict[str, Callable[[Node, bool], Run]] = {
    "field": _field,
    "subexpression": _chain,
    "index_expression": _chain,
    "pipe": lambda node, _head: _chain_pipe(node),
    "index": _index,
    "slice": _slice,
    "literal": _literal,
    "current": lambda _node, _head: lambda value, _scope: value,
    "identity": lambda _node, _head: lambda value, _scope: value,
    "comparator": _comparator,
    "and_expression": _and,
    "or_expression": _or,
    "not_expression": _not,
    "function_expression": _function,
    "expref": _expref,
    "multi_select_list": _select_list,
    "multi_select_dict": _select_dict,
    "flatten": _flatten,
    "projection": _projection,
    "value_projection": _value_projection,
    "filter_projection": _filter,
}


def _chain_pipe(node: Node) -> Run:
    first, second = (build(child) for child in node["children"])
    return lambda value, scope: second(first(value, scope), scope)
