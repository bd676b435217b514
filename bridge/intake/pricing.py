"""What comparisons and functions cost, in steps (see `bridge.intake.interpreter.STEPS`), paid before they are done.

Prices follow how much is gone through and how much is made. A text that is read costs a step for 16 characters, one
that is made a step for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from bridge.intake.functions import MAX_HTML

Spend = Callable[[int], None]

#: Any call: the library checks its arguments, which takes microseconds.
_CALL = 30
#: Bits of the characters that one step reads.
_READ = 4
#: What begins with an "&" in HTML: it is looked up, if need be by each of its beginnings.
_REFERENCE = 50
_CONTAINERS = frozenset({list, dict})


def pay_comparison(one: Any, other: Any, spend: Spend) -> None:
    """Two texts, lists or objects: they are gone through only while they may be equal."""
    if len(one) == len(other) or type(one) is str:
        _pay_deep(one, spend)


def pay_call(name: str, arguments: Sequence[Any], spend: Spend) -> None:
    """One call of a function."""
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
    """All values in a value, as often as they stand in it, and the characters of its texts: its JSON text is made."""
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
