"""The functions that expressions may call: JMESPath's own, at home with exact numbers, and ours.

Ours are `lower(text)`, `upper(text)`, `trim(text)`, `split(text, separator)`,
`replace(text, old, new)`, `unescape_html(text)`, `parse_json(text)` and `items(object)` (a list of [key, value]).
A null as first argument gives null.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
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
    """A result as a body would bring it, so that an event made of it can be kept and read again.

    Raises ValueError for one that no body may hold.
    """
    exact = Decimal(number)
    if len(exact.as_tuple().digits) > MAX_DIGITS or abs(exact.adjusted()) > MAX_DIGITS:
        raise ValueError(f"the result has more than {MAX_DIGITS} digits")
    return exact_integer(number) if isinstance(number, int) else number
