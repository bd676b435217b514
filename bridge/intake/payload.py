r"""Request bodies to JSON values and back: strict at the door, so that nothing fails behind it.

A body is UTF-8 (a byte order mark is skipped), one JSON text as RFC 8259 has it: no NaN, no Infinity,
no key twice, no lone surrogate. Numbers stay exact: `int` up to 18 digits, else `Decimal`, never
binary floating point. `\u0000` passes here and makes invalid only the value that contains it.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Any

import orjson

from bridge.errors import PayloadError

#: Levels of arrays and objects within each other.
MAX_DEPTH = 64
#: Keys of one object. The number of values in all is bounded by `max_body`.
MAX_KEYS = 10_000
#: Digits of a number, and how far its exponent may move the point.
MAX_DIGITS = 400

_ALL_BUT_BRACKETS = bytes(sorted(set(range(256)) - set(b'[]{}"')))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_STRING = re.compile(rb'"[^"]*"')
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_json(body: bytes) -> Any:
    """The JSON value of a body. Raises PayloadError, and nothing else."""
    if body.startswith(b"\xef\xbb\xbf"):
        body = body[3:]
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise PayloadError(f"the body is not UTF-8 (byte {error.start})") from error
    if not text or text.isspace():
        raise PayloadError("the body is empty")
    _refuse_depth(body)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise PayloadError(f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from error
    except RecursionError as error:
        raise PayloadError(f"the body is nested deeper than {MAX_DEPTH} levels") from error
    if "\\u" in text and ("\\ud" in text or "\\uD" in text):
        _refuse_surrogates(value)
    return value


def parse_json_text(text: str) -> Any:
    """The same for JSON that stands inside a text. Raises PayloadError, and nothing else."""
    try:
        return parse_json(text.encode())
    except UnicodeEncodeError as error:
        raise PayloadError("the text holds a lone surrogate") from error


def to_json(value: Any) -> str:
    """The JSON text of a parsed value, numbers exact, keys in their order."""
    return orjson.dumps(value, default=_exact).decode()


def to_canonical_json(value: Any) -> bytes:
    """The same with sorted keys, to compare contents by."""
    return orjson.dumps(value, default=_exact, option=orjson.OPT_SORT_KEYS)


def _exact(value: object) -> orjson.Fragment:
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value))
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _integer(text: str) -> int | Decimal:
    # orjson writes 64-bit integers only; Decimal keeps the longer ones to the digit
    if len(text) < 19:
        return int(text)
    if len(text) > MAX_DIGITS:
        raise PayloadError(f"the body holds a number of more than {MAX_DIGITS} digits")
    return Decimal(text)


def _decimal(text: str) -> Decimal:
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_DIGITS or len(exponent) > 9 or abs(int(exponent or 0)) > MAX_DIGITS:
        raise PayloadError(f"the body holds a number of more than {MAX_DIGITS} digits")
    return Decimal(text)


def _constant(text: str) -> None:
    raise PayloadError(f"the body is not JSON: {text} is not a number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(pairs) > MAX_KEYS:
        raise PayloadError(f"the body holds an object of more than {MAX_KEYS} keys")
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise PayloadError(f"the body holds the key {key[:60]!r} twice in one object")
            seen.add(key)
    return result


_DECODER = json.JSONDecoder(
    parse_int=_integer, parse_float=_decimal, parse_constant=_constant, object_pairs_hook=_object
)


def _refuse_depth(body: bytes) -> None:
    """Refuse what is nested too deep, before a recursive parser meets it.

    Strings are taken out, then innermost pairs layer by layer: every step is one pass in C.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    rest = _STRING.sub(b"", body.translate(_ONE_KIND, _ALL_BUT_BRACKETS))
    for _ in range(MAX_DEPTH):
        rest, before = rest.replace(b"[]", b""), rest
        if len(rest) == len(before):
            break
    if b"[]" in rest or rest.count(b"[") > MAX_DEPTH:
        raise PayloadError(f"the body is nested deeper than {MAX_DEPTH} levels, or not balanced")


def _refuse_surrogates(value: Any, path: str = "") -> None:
    if isinstance(value, str):
        if _SURROGATE.search(value):
            raise PayloadError(f"the text at {path or '/'} holds a lone surrogate")
    elif isinstance(value, dict):
        for key, item in value.items():
            if _SURROGATE.search(key):
                raise PayloadError(f"a key at {path or '/'} holds a lone surrogate")
            _refuse_surrogates(item, f"{path}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_surrogates(item, f"{path}/{index}")
