"""The language of expressions: its functions, what they cost, and questions about its syntax trees.

The functions that expressions may call: JMESPath's own, at home with exact numbers, and ours.

Ours are `lower(text)`, `upper(text)`, `trim(text)`, `split(text, separator)`,
`replace(text, old, new)`, `unescape_html(text)`, `parse_json(text)` and `items(object)` (a list of [key, value]).
A null as first argument gives null.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Context, Decimal, InvalidOperation
from typing import Any

from jmespath import functions
from jmespath.functions import signature

from bridge.intake.payload import MAX_DIGITS, exact_integer, parse_json_text, to_json

#: Enough digits for sums and products of any two numbers that a body may hold.
EXACT = Context(prec=4 * MAX_DIGITS)

#: The longest text that `replace` may make.
_MAX_TEXT = 1_000_000
#: The longest text that `unescape_html` reads, in one go of up to 30 ms: no value of a property is longer.
MAX_HTML = 65_536

_TEXT: Any = {"types": ["string", "null"]}


class Functions(functions.Functions):
    """JMESPath's functions with Decimal as a number. `pause` is called now and then while they do something long."""

    def __init__(self, pause: Callable[[], None] | None = None) -> None:
        self._pause = pause

    @classmethod
    def arity(cls, name: str) -> tuple[int, bool] | None:
        """How many arguments the function takes and whether more are fine; None: no such function."""
        entry = cls.FUNCTION_TABLE.get(name)
        if entry is None:
            return None
        parameters: Sequence[Any] = entry["signature"]
        return len(parameters), bool(parameters and parameters[-1].get("variadic"))

    def _get_allowed_pytypes(self, types: Any) -> tuple[list[str], list[tuple[str, ...]]]:
        allowed, inner = super()._get_allowed_pytypes(types)  # type: ignore[misc]  # private to the library, left out of its stubs
        numbers = [*allowed, "Decimal"] if "int" in allowed else allowed
        return list(numbers), [(*names, "Decimal") if "int" in names else names for names in inner]

    def _convert_to_jmespath_type(self, pyobject: str) -> str:
        if pyobject == "Decimal":
            return "number"
        return str(super()._convert_to_jmespath_type(pyobject))  # type: ignore[misc]  # the same

    @signature({"types": ["number"]})
    def _func_abs(self, arg: Decimal | int) -> Decimal | int:
        return arg.copy_abs() if isinstance(arg, Decimal) else abs(arg)

    @signature({"types": ["number"]})
    def _func_ceil(self, arg: Decimal | int) -> Decimal | int:
        return _as_in_a_body(math.ceil(arg))

    @signature({"types": ["number"]})
    def _func_floor(self, arg: Decimal | int) -> Decimal | int:
        return _as_in_a_body(math.floor(arg))

    @signature({"types": ["array-number"]})
    def _func_sum(self, arg: list[Decimal | int]) -> Decimal | int:
        return _as_in_a_body(_total(arg))

    @signature({"types": ["array-number"]})
    def _func_avg(self, arg: list[Decimal | int]) -> Decimal | int | None:
        return _as_in_a_body(Context(prec=34).divide(Decimal(_total(arg)), len(arg))) if arg else None

    @signature({"types": []})
    def _func_to_number(self, arg: Any) -> Decimal | int | None:
        if isinstance(arg, str):
            try:
                number = Decimal(arg.strip()) if len(arg) <= MAX_DIGITS else None
            except InvalidOperation:
                return None
            fits = number is not None and number.is_finite() and abs(number.adjusted()) <= MAX_DIGITS
            return number if fits and abs(int(number.as_tuple().exponent)) <= MAX_DIGITS else None  # type: ignore[union-attr]  # fits: it is there
        return arg if isinstance(arg, (int, Decimal)) and not isinstance(arg, bool) else None

    @signature({"types": []})
    def _func_to_string(self, arg: Any) -> str:
        if isinstance(arg, str):
            return arg
        return format(arg, "f") if isinstance(arg, Decimal) else to_json(arg)

    @signature({"types": []})
    def _func_type(self, arg: Any) -> str:
        return self._convert_to_jmespath_type(type(arg).__name__)

    @signature(_TEXT)
    def _func_lower(self, text: str | None) -> str | None:
        return None if text is None else text.lower()

    @signature(_TEXT)
    def _func_upper(self, text: str | None) -> str | None:
        return None if text is None else text.upper()

    @signature(_TEXT)
    def _func_trim(self, text: str | None) -> str | None:
        return None if text is None else text.strip()

    @signature(_TEXT, {"types": ["string"]})
    def _func_split(self, text: str | None, separator: str) -> list[str] | None:
        return None if text is None else text.split(separator)

    @signature(_TEXT, {"types": ["string"]}, {"types": ["string"]})
    def _func_replace(self, text: str | None, old: str, new: str) -> str | None:
        if text is None:
            return None
        if not old:
            raise ValueError("replace() needs something to look for")
        if len(text) + text.count(old) * len(new) > _MAX_TEXT:
            raise ValueError("replace() would make too long a text")
        return text.replace(old, new)

    @signature(_TEXT)
    def _func_unescape_html(self, text: str | None) -> str | None:
        if text is None:
            return None
        if len(text) > MAX_HTML:
            raise ValueError(f"unescape_html() takes at most {MAX_HTML} characters")
        return html.unescape(text)

    @signature(_TEXT)
    def _func_parse_json(self, text: str | None) -> Any:
        return None if text is None else parse_json_text(text, pause=self._pause)

    @signature({"types": ["object", "null"]})
    def _func_items(self, entries: dict[str, Any] | None) -> list[list[Any]] | None:
        return None if entries is None else [[key, value] for key, value in entries.items()]


def _total(numbers: Sequence[Decimal | int]) -> Decimal | int:
    total: Decimal | int = 0
    for number in numbers:
        both = isinstance(total, int) and isinstance(number, int)
        total = total + number if both else EXACT.add(total, number)
    return total


def _as_in_a_body(number: Decimal | int) -> Decimal | int:
    """A result in the form that a body would bring, so that an event made of it can be kept and read again.

    Raises ValueError for one that no body may hold.
    """
    exact = Decimal(number)
    if len(exact.as_tuple().digits) > MAX_DIGITS or abs(exact.adjusted()) > MAX_DIGITS:
        raise ValueError(f"the result has more than {MAX_DIGITS} digits")
    return exact_integer(number) if isinstance(number, int) else number


# --- What comparisons and functions cost, in steps (see `bridge.intake.interpreter.STEPS`), paid before they are
# done.
#
# Prices follow how much is gone through and how much is made. A text that is read costs a step for 16 characters, one
# that is made a step for each.

Spend = Callable[[int], None]

#: Any call: the library checks its arguments, which takes microseconds.
_CALL = 30
#: Bits of the characters that one step reads.
_READ = 4
#: What begins with an "&" in HTML: it is looked up, if need be by each of its beginnings.
_REFERENCE = 50
_CONTAINERS = frozenset({list, dict})


def pay_comparison(one: Any, other: Any, spend: Spend) -> None:
    """Pay for comparing two texts, lists or objects. The comparison ends where they differ."""
    if len(one) == len(other) or type(one) is str:
        _pay_deep(one, spend)


def pay_call(name: str, arguments: Sequence[Any], spend: Spend) -> None:
    """Pay for one call of a function."""
    spend(_CALL)
    price = _PRICES.get(name)
    if price is not None:
        price(arguments, spend)
        return
    for argument in arguments:
        if type(argument) is str:
            spend(len(argument) >> _READ)
        elif type(argument) in _CONTAINERS:
            spend(2 * len(argument))


def pay_made(value: Any, spend: Spend) -> None:
    """Pay for the JSON text of a value: each value in it, as often as it occurs, and the characters of its texts."""
    _pay_deep(value, spend, read=0)


def _pay_deep(value: Any, spend: Spend, read: int = _READ) -> None:
    if type(value) is str:
        spend(len(value) >> read)
    elif type(value) in _CONTAINERS:
        spend(2 * len(value))
        if type(value) is dict:
            spend(sum(map(len, value)) >> read)
        for item in value.values() if type(value) is dict else value:
            if type(item) is str or type(item) in _CONTAINERS:
                _pay_deep(item, spend, read)
            elif type(item) is Decimal:
                spend(len(str(item)) >> read)


def _text(arguments: Sequence[Any], spend: Spend, *, each: int = 1) -> None:
    if type(arguments[0]) is str:
        spend(len(arguments[0]) * each)


def _replace(arguments: Sequence[Any], spend: Spend) -> None:
    text, old, new = arguments
    if type(text) is type(old) is type(new) is str and old:
        spend(len(text) >> _READ)
        spend(len(text) + text.count(old) * len(new))


def _unescape(arguments: Sequence[Any], spend: Spend) -> None:
    if type(text := arguments[0]) is str:
        spend(min(len(text), MAX_HTML) + _REFERENCE * text.count("&", 0, MAX_HTML))  # a longer one is refused


def _contains(arguments: Sequence[Any], spend: Spend) -> None:
    whole, part = arguments
    if type(whole) is str:
        spend(len(whole) >> _READ)
    elif type(whole) is list:
        spent = [0]

        def note(steps: int) -> None:
            spend(steps)
            spent[0] += steps

        _pay_deep(part, note)
        spend(len(whole) * (1 + spent[0]))


def _ordered(arguments: Sequence[Any], spend: Spend) -> None:
    if type(items := arguments[0]) is list:
        spend(2 * len(items))
        texts = sum(len(item) for item in items if type(item) is str) >> _READ
        spend((2 * len(items) + texts) * len(items).bit_length())


def _join(arguments: Sequence[Any], spend: Spend) -> None:
    glue, items = arguments
    if type(glue) is str and type(items) is list:
        spend(len(items) * (2 + len(glue)))
        spend(sum(len(item) for item in items if type(item) is str))


def _numbers(arguments: Sequence[Any], spend: Spend) -> None:
    if type(items := arguments[0]) is list:
        spend(8 * len(items))


def _entries(arguments: Sequence[Any], spend: Spend, *, each: int = 1) -> None:
    for entries in arguments:
        if type(entries) is dict:
            spend(len(entries) * each)


#: What is not here goes through its arguments once.
_PRICES: Mapping[str, Callable[[Sequence[Any], Spend], None]] = {
    "lower": _text,
    "upper": _text,
    "trim": _text,
    "reverse": lambda arguments, spend: spend(len(arguments[0]) if type(arguments[0]) in {str, list} else 0),
    "split": lambda arguments, spend: _text(arguments, spend, each=2),
    "unescape_html": _unescape,
    "parse_json": lambda arguments, spend: _text(arguments, spend, each=4),
    "replace": _replace,
    "to_string": lambda arguments, spend: pay_made(arguments[0], spend),
    "contains": _contains,
    "sort": _ordered,
    "max": _ordered,
    "min": _ordered,
    "join": _join,
    "sum": _numbers,
    "avg": _numbers,
    "items": lambda arguments, spend: _entries(arguments, spend, each=12),
    "merge": lambda arguments, spend: _entries(arguments, spend, each=8),
    "to_array": lambda _arguments, _spend: None,
    "not_null": lambda _arguments, _spend: None,
    "type": lambda _arguments, _spend: None,
    "length": lambda _arguments, _spend: None,
}


# --- questions about JMESPath's syntax trees: which variables they read, what they call and make, plain paths ---

Node = Mapping[str, Any]
#: Keys of objects and indices of lists, one within the other.
Path = tuple[str | int, ...]

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
    """The literals in a tree."""
    if node["type"] == "literal":
        yield node["value"]
    if node["type"] != "slice":
        for child in node["children"]:
            yield from literals(child)


def has_loose_reference(node: Node, *, taken: bool = False) -> bool:
    """Whether an `&expression` stands where a value is wanted. `taken`: as the argument of a function that calls it."""
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


def plain_path(node: Node) -> Path | None:
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
