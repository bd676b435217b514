"""What a body may become in memory, told from its bytes before anything is made of them.

An upper bound, at the price of a few counts: each mark of JSON (a bracket, a comma, a quote) makes at most so many
bytes, whatever stands around it. A test looks for bodies that become more.
"""

from __future__ import annotations

from collections.abc import Mapping

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
