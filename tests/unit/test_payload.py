"""Request bodies: what is taken, what is refused, and that nothing else ever happens."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from decimal import Decimal
from functools import partial

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import PayloadError
from bridge.intake.payload import MAX_DEPTH, MAX_KEYS, Breath, parse_json, parse_json_text, to_canonical_json, to_json
from bridge.intake.texts import text_of

#: As parsers give them: a half of a surrogate pair stands alone, never before the other half.
TEXTS = st.text() | st.text(st.sampled_from(["\ud800", "\udbff", "😀", "\0", '"', "\\", "d", "u"]), max_size=6)
TEXTS |= st.text(st.sampled_from(["\udc00", "\udfff", "é", "\ufdd0", "\n", "\x7f"]), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  \n",
        b"\xff\xfe{\x00}\x00",  # UTF-16
        b'{"a": "\xe9"}',  # Latin-1
        b"{",
        b"{} {}",
        b"{'a': 1}",
        b"[NaN]",
        b"[Infinity]",
        b"[-Infinity]",
        b"[1e999999999]",
        b"[0e999999999]",
        b"[1e-401]",
        b"[1e99999999999999999999]",
        b"[" + b"9" * 401 + b"]",
        b"[" + b"9" * 100_000 + b"]",
        b"[0." + b"9" * 401 + b"]",
        b'{"a": 1, "a": 2}',
        b'{"x": [{"a": 1, "b": 2, "a": 1}]}',
        b'["raw \x01 control"]',
        b"[" * 100_000,
        b"[" * 65 + b"]" * 65,
        b'{"a":' * 65 + b"1" + b"}" * 65,
    ],
)
def test_what_is_not_sound_json_is_refused(body: bytes) -> None:
    """Every malformed body ends as PayloadError with one line of text."""
    with pytest.raises(PayloadError) as caught:
        parse_json(body)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "body, place",
    [
        (b"[1e999]", "the number at /0 has more than 400 digits"),
        (b'{"a": {"b": [0, ' + b"7" * 5_000 + b"]}}", "the number at /a/b/1 has more than 400 digits"),
        (b'{"a": [{}, {"b": NaN}]}', "the value at /a/1/b is NaN, which is not JSON"),
        (b"-Infinity", "the value at / is -Infinity, which is not JSON"),
        (b'{"x": [{"k": 1, "k": 2}]}', "the object at /x/0 has the key 'k' twice"),
        (b'{"' + b"k" * 500 + b'": NaN}', "the value at /" + "k" * 199 + " is NaN, which is not JSON"),
        (b'{"\\ud800": [{"b/c": NaN}]}', r"the value at /\ud800/0/b~1c is NaN"),
        (b'{"\\ud800": 1, "\\ud800": 2}', r"the object at / has the key '\ud800' twice"),
        (b'{"a": NaN, ', "line 1, column 12"),  # what is not JSON at all is said first
        (b'{"a":\n 1 2}', "line 2, column 4"),
        (b'{"a": "\xff"}', "byte 7"),
    ],
)
def test_f41_the_refusal_says_where(body: bytes, place: str) -> None:
    """As a JSON pointer, cut where it is long, or by line and column."""
    with pytest.raises(PayloadError) as caught:
        parse_json(body)
    assert place in str(caught.value)


def test_f41_a_long_key_above_many_texts_takes_no_time() -> None:
    """The way to a value is put together only where there is something to tell."""
    body = b'{"%s": ["\\ud83d\\ude00"%s]}' % (b"k" * 500_000, b",1" * 200_000)
    began = time.process_time()
    assert len(parse_json(body)["k" * 500_000]) == 200_001
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    "body, value",
    [
        (b"\xef\xbb\xbf{}", {}),  # a byte order mark is skipped
        (b'"\\ud83d\\ude00"', "😀"),
        (b'"\\u0000"', "\0"),
        (b'{"\\uDC00": "\\ud83d\\ud83d\\ude00"}', {"\udc00": "\ud83d😀"}),
        (b'{"__proto__": {"__class__": 1}}', {"__proto__": {"__class__": 1}}),
        (b"[0.1, 1e2, -0]", [Decimal("0.1"), Decimal("1E+2"), 0]),
        (b"12345678901234567890", Decimal(12345678901234567890)),
        (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, None),
        (b'["' + b"[{" * 200 + b'"]', ["[{" * 200]),
        (b'["\\"' + b"[" * 200 + b'\\\\"]', ['"' + "[" * 200 + "\\"]),
    ],
)
def test_sound_json_is_taken(body: bytes, value: object) -> None:
    """Brackets within strings are not depth, and numbers stay exact."""
    parsed = parse_json(body)
    if value is not None:
        assert parsed == value


@pytest.mark.parametrize("text", ["1.1753772046192432e+16", "1e0", "-0e0", "-0.0", "10e-1", "12e+30", "1.5e20", "0e5"])
def test_a_number_that_was_kept_is_read_again_as_the_same(text: str) -> None:
    """Also of the same type: messages and mappings tell `int` and `Decimal` apart."""
    first = parse_json(text.encode())
    again = parse_json(to_json(first).encode())
    assert (again, type(again), str(again)) == (first, type(first), str(first))


def test_wide_arrays_are_taken_and_wide_objects_are_not() -> None:
    """Arrays are bounded by max_body, objects by their number of keys."""
    assert len(parse_json(b"[" + b"{}," * 4_999 + b"{}]")) == 5_000
    wide = json.dumps({str(key): key for key in range(MAX_KEYS + 1)})
    with pytest.raises(PayloadError, match="keys"):
        parse_json(wide.encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    """Nothing but PayloadError leaves the parser."""
    with contextlib.suppress(PayloadError):
        parse_json(body)


@given(JSON)
def test_values_survive_the_way_out_and_in(value: object) -> None:
    """What was parsed is written as the same value, digit by digit."""
    try:
        parsed = parse_json(json.dumps(value).encode())
    except PayloadError:
        return  # a float with a wide exponent
    for written in (to_json(parsed), to_json(parsed, indented=True), to_canonical_json(parsed).decode()):
        assert parse_json(written.encode()) == parsed
        assert "\0" not in written


@given(JSON)
def test_half_a_surrogate_pair_changes_nothing_of_how_the_rest_is_written(value: object) -> None:
    """Each text, number and blank is the same beside it, and the half stands as it came."""
    try:
        parsed = parse_json(re.sub(r"\\ud[89a-f]..", "x", json.dumps(value)).encode())
    except PayloadError:
        return  # a float with a wide exponent, or two keys that have become one
    writers: list[Callable[[object], str]] = [
        to_json,
        partial(to_json, indented=True),
        lambda it: to_canonical_json(it).decode(),
    ]
    for write in writers:
        assert write({"b": [parsed, "\ud800"], "a": 1}) == write({"b": [parsed, "<half>"], "a": 1}).replace(
            "<half>", r"\ud800"
        )
        assert write({"a\udfff": parsed}) == write({"a<half>": parsed}).replace("<half>", r"\udfff")


def test_a_text_of_json_may_hold_half_a_pair_as_it_is() -> None:
    """Where JSON stands inside a text that was escaped as a whole: only that value of it is affected."""
    assert parse_json_text(parse_json(rb'"{\"a\": \"\ud800\", \"b\": 1}"')) == {"a": "\ud800", "b": 1}


def test_canonical_text_ignores_the_order_of_keys() -> None:
    """Two texts of one value compare equal."""
    one, other = parse_json(b'{"a": 1.50, "b": [2]}'), parse_json(b'{"b":[2],"a":1.50}')
    assert to_canonical_json(one) == to_canonical_json(other) == b'{"a":1.50,"b":[2]}'


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize(
    "number",
    [
        "71e399", "71e400", "71e-401", "0.01e-398", "1" * 400, "1" * 399 + "e1", "1" * 400 + "e0", "1" * 400 + "e1",
        "1." + "1" * 399, "1." + "0" * 398 + "e400", "12e-5", "0e0", "0e400", "0.0e-399", "0." + "0" * 398 + "1",
    ],
)  # fmt: skip
def test_a_number_that_is_taken_can_be_read_again_from_what_is_kept(sign: str, number: str) -> None:
    """A replay reads it as it was: found by fuzzing, where 71e400 was kept as 7.1E+401."""
    try:
        value = parse_json(f"[{sign}{number}]".encode())
    except PayloadError:
        return
    again = parse_json(to_json(value).encode())
    assert (again, to_json(again)) == (value, to_json(value))
    assert text_of(again[0]) == text_of(value[0])


SLOW = {
    "objects": b"{}",
    "lists": b"[[1]]",
    "numbers": b"257",
    "decimals": b"1.5",
    "deep": b"[" * 60 + b"]" * 60,
}


@pytest.mark.parametrize("slow", SLOW)
def test_no_long_body_is_parsed_or_written_without_a_breath(slow: str) -> None:
    """So many that none of them is long; the value is the same, and so is what is wrong with it."""
    body = b"[" + b",".join([SLOW[slow]] * (200_000 // len(SLOW[slow]))) + b"]"
    breaths: list[int] = []
    value = parse_json(body, pause=lambda: breaths.append(1))
    assert value == parse_json(body)
    assert len(breaths) > 20
    with pytest.raises(PayloadError, match="the value at /0 is NaN, which is not JSON"):
        parse_json(b"[NaN," + body[1:], pause=lambda: breaths.append(1))
    breaths.clear()
    breath = Breath(lambda: breaths.append(1))
    assert to_json(value, breath=breath) == to_json(value)
    assert to_canonical_json(value, breath=breath) == to_canonical_json(value)
    assert len(breaths) > 100 or slow != "decimals"


def test_greenlets_that_write_at_the_same_time_do_not_meet() -> None:
    """They leave each other their turn in the middle of a text."""
    values = [parse_json(b"[" + b",".join([b"%d.%d" % (n, n)] * 5_000) + b"]") for n in range(8)]
    breath = Breath(lambda: gevent.sleep(0))
    written = [gevent.spawn(to_json, value, breath=breath) for value in values]
    gevent.joinall(written, timeout=30, raise_error=True)
    assert [one.value for one in written] == [to_json(value) for value in values]
