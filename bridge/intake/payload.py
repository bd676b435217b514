r"""Request bodies to JSON values and back: strict here, so that nothing fails later.

A body is UTF-8 (a byte order mark is skipped), one JSON text as RFC 8259 has it: no NaN, no Infinity,
no key twice. Numbers stay exact: `int` up to 18 digits, else `Decimal`, never binary floating point.
`\u0000` and half a surrogate pair (`\ud800`) pass here and make invalid only the value that contains
them; they are written as they came, escaped, so that every database takes the text and a replay reads the same.

A refusal names the place, as a JSON pointer or by line and column. The decoder's hooks do not know where they
are, so a body with a flaw is decoded once more, with the flaw kept in its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from json.decoder import JSONArray  # type: ignore[attr-defined]  # in the library, not in its stubs
from json.encoder import _make_iterencode, c_make_encoder, encode_basestring  # type: ignore[attr-defined]  # the same
from json.scanner import py_make_scanner  # type: ignore[attr-defined]  # the same
from typing import Any

import orjson

from bridge.errors import PayloadError

#: Levels of arrays and objects within each other.
MAX_DEPTH = 64
#: Keys of one object. The number of values in all is bounded by `max_body`.
MAX_KEYS = 10_000
#: Digits of a number, and how far its first one may stand from the point.
MAX_DIGITS = 400

#: Bodies longer than this, in bytes, are parsed with a breath after so many objects and numbers: a millisecond at most.
_LONG = 32_768
_SLICE = 200
#: With more lists than this, some milliseconds of them, the library's scanner in Python is taken: that in C has no hook
#: for a list.
_MANY_LISTS = 10_000

_ALL_BUT_BRACKETS = bytes(sorted(set(range(256)) - set(b'[]{}"')))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_STRING = re.compile(rb'"[^"]*"')
Hook = Callable[[Any], Any]
SURROGATE = re.compile("[\ud800-\udfff]")

#: How much of a pointer and of a key a message quotes.
_SHOWN_POINTER = 200
_SHOWN_KEY = 60


class _FlawError(Exception):
    """Something cannot be taken; `flaw` says what."""

    def __init__(self, what: str, wrong: str) -> None:
        super().__init__()
        self.flaw = _Flaw(what, wrong)


@dataclass(frozen=True, slots=True)
class _Flaw:
    """What cannot be taken, and what is wrong with it. It stands in the place of what it is about, as a plain
    value: an exception would keep its frames, and with them all that was parsed, in a circle.
    """

    what: str
    wrong: str


def parse_json(body: bytes, *, line: int = 1, pause: Callable[[], None] | None = None) -> Any:
    """The JSON value of a body. Raises PayloadError, and nothing else.

    `line` is the number of its first line, for messages. `pause` is called now and then while a long body is
    parsed, so that it leaves room for other requests.
    """
    if body.startswith(b"\xef\xbb\xbf"):
        body = body[3:]
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise PayloadError(f"the body is not UTF-8 (byte {error.start})") from error
    return _parsed(text, body, line, pause)


def parse_json_text(text: str, *, pause: Callable[[], None] | None = None) -> Any:
    """The same for JSON that stands inside a text. Raises PayloadError, and nothing else."""
    text = text.removeprefix("\ufeff")
    return _parsed(text, text.encode("utf-8", "surrogatepass"), 1, pause)


def _parsed(text: str, body: bytes, line: int, pause: Callable[[], None] | None) -> Any:
    """The JSON value of a text, which `body` is the bytes of."""
    if not text or text.isspace():
        raise PayloadError("the body is empty")
    breath = None if pause is None or len(body) < _LONG else Breath(pause)
    _refuse_depth(body, breath)
    try:
        value = _sound_value(text, breath)
    except json.JSONDecodeError as error:
        at = f"line {line + error.lineno - 1}, column {error.colno}"
        raise PayloadError(f"the body is not JSON: {error.msg} ({at})") from error
    except RecursionError as error:
        raise PayloadError(f"the body is nested deeper than {MAX_DEPTH} levels") from error
    return value


def to_json(value: Any, *, indented: bool = False, breath: Breath | None = None) -> str:
    """The JSON text of a parsed value, numbers exact, keys in their order, halves of surrogate pairs escaped."""
    return _written(value, orjson.OPT_INDENT_2 if indented else 0, breath).decode()


def to_canonical_json(value: Any, *, breath: Breath | None = None) -> bytes:
    """The same with sorted keys, to compare contents by."""
    return _written(value, orjson.OPT_SORT_KEYS, breath)


def exact_integer(number: int) -> int | Decimal:
    """A whole number as a body brings it: `int` while its text is shorter than 19 characters, as orjson needs."""
    return number if -(10**17) < number < 10**18 else Decimal(number)


def printable(text: str) -> str:
    """A text in which NUL, line breaks and the like are escaped: for messages, which are kept and shown."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _written(value: Any, option: int, breath: Breath | None) -> bytes:
    try:
        return orjson.dumps(value, default=_exact if breath is None else breath.exact, option=option)
    except orjson.JSONEncodeError as error:
        if "surrogates" not in str(error):
            raise
    return _with_halves(value, option, breath)


class _Verbatim(str):
    """JSON that stands for itself."""

    __slots__ = ()


def _with_halves(value: Any, option: int, breath: Breath | None) -> bytes:
    """What orjson would write, were there no half of a surrogate pair, and each of these as JSON escapes it: that is
    how Python does. Ten times as slow.
    """

    def text(given: str) -> str:
        if breath is not None:
            breath.take()
        if type(given) is _Verbatim:
            return given
        written: str = encode_basestring(given)
        return written if given.isascii() else written.encode("utf-8", "backslashreplace").decode()

    def exact(given: object) -> _Verbatim:
        return _Verbatim(_exact_text(given))

    sort = bool(option & orjson.OPT_SORT_KEYS)
    if option & orjson.OPT_INDENT_2:
        write = _make_iterencode(None, exact, text, "  ", float.__repr__, ": ", ",", sort, False, True)
    else:
        write = c_make_encoder(None, exact, text, None, ":", ",", sort, False, False)
    return "".join(write(value, 0)).encode()


def _exact(value: object) -> orjson.Fragment:
    return orjson.Fragment(_exact_text(value))


def _exact_text(value: object) -> str:
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _integer(text: str) -> int | Decimal:
    # orjson writes 64-bit integers only; Decimal keeps the longer ones to the digit
    if len(text) < 19:
        return int(text)
    if len(text) - text.startswith("-") > MAX_DIGITS:
        raise _FlawError("the number", f"has more than {MAX_DIGITS} digits")
    return Decimal(text)


def _decimal(text: str) -> int | Decimal:
    # judged by its value, not by how it is written: what is taken is kept as `str` writes it, and read again
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) <= 2 * MAX_DIGITS and len(exponent) <= 9:
        number = Decimal(text)
        short = len(mantissa) <= MAX_DIGITS or len(number.as_tuple().digits) <= MAX_DIGITS
        if short and abs(number.adjusted()) <= MAX_DIGITS:
            # 1e+0 is kept as 1, and read again as the int; -0e0 as 0
            if exponent and number.as_tuple().exponent == 0:
                return _integer(str(number.copy_abs() if number == 0 else number))
            return number or number.copy_abs()
    raise _FlawError("the number", f"has more than {MAX_DIGITS} digits")


def _constant(text: str) -> Any:
    raise _FlawError("the value", f"is {text}, which is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(pairs) > MAX_KEYS:
        raise _FlawError("the object", f"has more than {MAX_KEYS} keys")
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _FlawError("the object", f"has the key {key[:_SHOWN_KEY]!r} twice")
            seen.add(key)
    return result


class Breath:
    """Calls `pause` after `every` small steps of a long piece of work."""

    __slots__ = ("_every", "_left", "pause")

    def __init__(self, pause: Callable[[], None], every: int = _SLICE) -> None:
        self.pause = pause
        self._every = self._left = every

    def take(self, steps: int = 1) -> None:
        """So many steps come next."""
        self._left -= steps
        if self._left <= 0:
            self._left = self._every
            self.pause()

    def exact(self, value: object) -> orjson.Fragment:
        """What orjson calls for a decimal, by far the slowest part of its work."""
        self.take()
        return _exact(value)

    def before(self, hook: Hook) -> Hook:
        """A hook of the decoder that breathes."""

        def breathing(given: Any) -> Any:
            self.take()
            return hook(given)

        return breathing


def _decoder(change: Callable[[Hook], Hook] = lambda hook: hook) -> json.JSONDecoder:
    """A decoder with the hooks as they are changed."""
    return json.JSONDecoder(
        parse_int=change(_integer),
        parse_float=change(_decimal),
        parse_constant=change(_constant),
        object_pairs_hook=change(_object),
    )


_DECODER = _decoder()


def _breathing_decoder(text: str, breath: Breath, change: Callable[[Hook], Hook] = lambda hook: hook) -> Any:
    """A decoder that gives others their turn within this text."""
    decoder: Any = _decoder(lambda hook: breath.before(change(hook)))
    if text.count("[") > _MANY_LISTS:

        def parse_array(*given: Any) -> Any:
            breath.take()
            return JSONArray(*given)

        decoder.parse_array = parse_array
        decoder.scan_once = py_make_scanner(decoder)
    return decoder


def _refuse_depth(body: bytes, breath: Breath | None) -> None:
    """Refuse what is nested too deep, before a recursive parser meets it.

    Strings are taken out, then innermost pairs layer by layer: every step is one pass in C.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    rest = _STRING.sub(b"", body.translate(_ONE_KIND, _ALL_BUT_BRACKETS))
    for _ in range(MAX_DEPTH):
        if breath is not None:
            breath.pause()
        rest, before = rest.replace(b"[]", b""), rest
        if len(rest) == len(before):
            break
    if b"[]" in rest or rest.count(b"[") > MAX_DEPTH:
        raise PayloadError(f"the body is nested deeper than {MAX_DEPTH} levels, or not balanced")


def _sound_value(text: str, breath: Breath | None) -> Any:
    """The value of a text. Raises PayloadError for a flaw, JSONDecodeError, RecursionError."""
    try:
        return (_DECODER if breath is None else _breathing_decoder(text, breath)).decode(text)
    except _FlawError:
        value = _keeping_flaws(text, breath)
    found = _first_flaw(value, breath)
    if found is None:
        return value
    flaw, way = found[0], reversed(found[1])
    pointer = "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in way) or "/"
    raise PayloadError(f"{flaw.what} at {printable(pointer[:_SHOWN_POINTER])} {flaw.wrong}")


def _keeping_flaws(text: str, breath: Breath | None) -> Any:
    """The value of a text with every flaw in its place."""

    def keeping(hook: Hook) -> Hook:
        def keep(given: Any) -> Any:
            try:
                return hook(given)
            except _FlawError as error:
                return error.flaw

        return keep

    return (_decoder(keeping) if breath is None else _breathing_decoder(text, breath, keeping)).decode(text)


def _first_flaw(value: Any, breath: Breath | None) -> tuple[_Flaw, list[str | int]] | None:
    """What is wrong with a value or within it, and the way there, innermost step first.

    The way is put together only where there is something to tell: the keys on it may be long.
    """
    if breath is not None:
        breath.take()
    if isinstance(value, _Flaw):
        return value, []
    if isinstance(value, dict):
        for key, item in value.items():
            if (found := _first_flaw(item, breath)) is not None:
                found[1].append(key)
                return found
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if (found := _first_flaw(item, breath)) is not None:
                found[1].append(index)
                return found
    return None
