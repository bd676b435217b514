"""A body's bytes to the value that expressions see: `body: json`, `ndjson` or `form`.

Every JSON text is parsed with the same strictness and limits, be it a body, a line or a form's field.
`ndjson` becomes the list of its lines' values, blank lines left out. `form` becomes an object of texts in
which a field that is there several times is a list, or with `payload_field` the JSON value in that field.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

from bridge.errors import PayloadError
from bridge.http.problems import Refusal
from bridge.intake.payload import MAX_KEYS, Breath, parse_json, parse_json_text

# --- what a body may become in memory, told from its bytes before anything is made of them ---
#
# An upper bound, at the price of a few counts: each mark of JSON (a bracket, a comma, a quote) makes at most so many
# bytes, whatever stands around it. A test looks for bodies that become more.

#: Bytes of memory for each byte of a body: itself, its text, the texts in it, and what mapping keeps of an event (its
#: JSON text, the canonical copy, the whole body for `_root`). Python keeps a text at the width of its widest
#: character: one emoji makes all of it four bytes wide.
_NARROW, _WIDE = 9, 24
#: Bytes of memory for each mark: what begins with it, and its place in what it stands in.
_PRICES: Mapping[bytes, int] = {
    b"{": 208,  # an object with room for five keys
    b"{}": -128,  # but this one has none
    b"[": 96,  # a list with room for four
    b",": 44,  # a place in a list, and a whole number of 18 digits
    b":": 128,  # a key's place, and the pair as long as its object is open
    b'"': 40,  # half a text
    b"\n": 96,  # a line of `ndjson`
    b"&": 256,  # a field of a form
    b"%": 160,  # any of these, in a form
}
#: A decimal. It needs one of these characters, and there are no more of them than values.
_DECIMAL, _POINTS = 120, (b".", b"e", b"E")
_BEFORE_VALUES = (b",", b"[", b":", b"\n", b"%")
#: Bodies up to so many bytes, as nearly all are, need no counts: each byte is one of these at most.
_SHORT, _MOST = 4_096, _WIDE + max(_DECIMAL, *_PRICES.values())
#: An event without its texts, from mapping until it is journalled.
_EVENT = 2_500


def weigh(body: bytes, *, events: int) -> int:
    """Bytes of memory that a body, no longer packed, takes at most while it is worked on. It brings at most so many
    `events`.
    """
    if len(body) <= _SHORT:
        return len(body) * _MOST + events * _EVENT
    marks = {mark: body.count(mark) for mark in (*_PRICES, *_POINTS)}
    values = 1 + sum(marks[mark] for mark in _BEFORE_VALUES)
    narrow = body.isascii() and b"\\u" not in body and not marks[b"%"]
    return (
        len(body) * (_NARROW if narrow else _WIDE)
        + sum(marks[mark] * price for mark, price in _PRICES.items())
        + min(values, sum(marks[point] for point in _POINTS)) * _DECIMAL
        + events * _EVENT
    )


# --- the value of a body ---

Form = Literal["json", "ndjson", "form"]

#: What each form is sent as, and what else says the same. `+json` types count as JSON too; some senders of
#: lines (log streams) call them plain JSON.
_MEDIA_TYPES: Mapping[Form, tuple[str, ...]] = {
    "json": ("application/json",),
    "ndjson": (
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/jsonlines",
        "application/x-jsonlines",
        "application/json",
    ),
    "form": ("application/x-www-form-urlencoded",),
}
#: Bytes between two breaths, of lines and of forms: some milliseconds at most.
_SLICE = 8_000
#: What a line or field counts as at least.
_PART = 160


def media_type(form: Form) -> str:
    """The media type to send such a body with."""
    return _MEDIA_TYPES[form][0]


@functools.lru_cache(maxsize=64)  # senders write one or two
def check_media_type(form: Form, content_type: str) -> None:
    """Raise Refusal (415) for anything but the form's media types in UTF-8."""
    given, *parameters = (part.strip().lower() for part in content_type.split(";"))
    known = given in _MEDIA_TYPES[form]
    if form == "json":
        known = known or (given.startswith("application/") and given.endswith("+json"))
    charsets = [value.strip("\"' ") for key, _, value in (p.partition("=") for p in parameters) if key == "charset"]
    if not known or any(charset not in {"utf-8", "utf8"} for charset in charsets):
        more = " (or +json)" if form == "json" else ""
        raise Refusal(415, f"The body must be {media_type(form)}{more} in UTF-8.")


def decode(
    form: Form, body: bytes, *, payload_field: str | None = None, pause: Callable[[], None] | None = None
) -> Any:
    """The value of a body. Raises PayloadError, and nothing else.

    `pause` is called now and then, so that a long body leaves room for other requests.
    """
    match form:
        case "json":
            return parse_json(body, pause=pause)
        case "ndjson":
            return _lines(body, pause)
        case "form":
            fields = _fields(body, pause)
            return fields if payload_field is None else _payload(fields, payload_field, pause)


def _breath(pause: Callable[[], None] | None) -> Breath:
    return Breath(pause or (lambda: None), _SLICE)


def _lines(body: bytes, pause: Callable[[], None] | None) -> list[Any]:
    values, breath = [], _breath(pause)
    for number, line in enumerate(body.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        breath.take(max(len(line), _PART))
        if not line.strip():
            continue
        try:
            values.append(parse_json(line, line=number, pause=pause))
        except PayloadError as error:
            raise PayloadError(f"line {number}: {error}") from error
    return values


def _fields(body: bytes, pause: Callable[[], None] | None) -> dict[str, str | list[str]]:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise PayloadError(f"the body is not UTF-8 (byte {error.start})") from error
    if not text or text.isspace():
        raise PayloadError("the body is empty")
    if text.count("&") >= MAX_KEYS:
        raise PayloadError(f"the form has more than {MAX_KEYS} fields")
    fields: dict[str, str | list[str]] = {}
    breath = _breath(pause)
    for pair in filter(None, body.replace(b"+", b" ").split(b"&")):
        written_name, _, written_value = pair.partition(b"=")
        name, value = _unquoted(written_name, breath), _unquoted(written_value, breath)
        held = fields.get(name)
        if held is None:
            fields[name] = value
        elif isinstance(held, list):
            held.append(value)
        else:
            fields[name] = [held, value]
    return fields


def _unquoted(written: bytes, breath: Breath) -> str:
    """A name or value, its escapes read."""
    parts, at = [], 0
    while at < len(written):
        end = written.find(b"%", at + _SLICE)  # not within an escape
        part = written[at : end if end >= 0 else len(written)]
        breath.take(max(len(part), _PART))
        parts.append(unquote_to_bytes(part))
        at += len(part)
    try:
        return b"".join(parts).decode()
    except UnicodeDecodeError as error:
        raise PayloadError("a field of the form is not UTF-8") from error


def _payload(fields: Mapping[str, str | list[str]], name: str, pause: Callable[[], None] | None) -> Any:
    value = fields.get(name)
    if value is None:
        raise PayloadError(f"the form has no field {name}")
    if isinstance(value, list):
        raise PayloadError(f"the form has the field {name} {len(value)} times")
    try:
        return parse_json_text(value, pause=pause)
    except PayloadError as error:
        raise PayloadError(f"the field {name}: {error}") from error
