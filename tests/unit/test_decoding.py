"""Bodies in each form to values: `json`, `ndjson` and `form`."""

from __future__ import annotations

import contextlib
import json
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import PayloadError
from bridge.http.problems import Refusal
from bridge.intake.decoding import Form, check_media_type, decode, media_type
from bridge.intake.payload import MAX_DEPTH, MAX_KEYS


def test_lines_become_a_list() -> None:
    """Blank lines, carriage returns, a byte order mark and a missing last line end are fine."""
    body = b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 1.50}\n{"a": "\xc3\xa9"}'
    assert decode("ndjson", body) == [{"a": 1}, {"a": Decimal("1.50")}, {"a": "é"}]


@pytest.mark.parametrize("body", [b"", b"\n", b" \r\n\n"])
def test_no_lines_are_an_empty_list(body: bytes) -> None:
    assert decode("ndjson", body) == []


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"a" 1}', "line 3: the body is not JSON: Expecting ':' delimiter (line 3, column 6)"),
        (b'{"a": 1} {"b": 2}', "line 3: the body is not JSON: Extra data (line 3, column 10)"),
        (b'{"a": 1, "a": 2}', "line 3: the object at / has the key 'a' twice"),
        (b'{"a": NaN}', "line 3: the value at /a is NaN"),
        (b'"\xff"', "line 3: the body is not UTF-8 (byte 1)"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), f"line 3: the body is nested deeper than {MAX_DEPTH} levels"),
        (
            json.dumps(dict.fromkeys(map(str, range(MAX_KEYS + 1)))).encode(),
            f"line 3: the object at / has more than {MAX_KEYS} keys",
        ),
    ],
)
def test_a_faulty_line_is_named(line: bytes, message: str) -> None:
    """With the limits of any JSON, and counting the blank lines."""
    with pytest.raises(PayloadError) as caught:
        decode("ndjson", b'{"a": 1}\n\n' + line + b"\n{}")
    assert str(caught.value).startswith(message)


def test_half_a_surrogate_pair_passes_in_every_form() -> None:
    """Escaped, as JSON may have it; the bytes of one are not UTF-8."""
    half = {"a": "\ud800"}
    assert decode("ndjson", b'{"a": "\\ud800"}\n{}') == [half, {}]
    assert decode("form", b"payload=%7B%22a%22%3A%22%5Cud800%22%7D", payload_field="payload") == half
    for form, body in (("json", b'{"a": "\xed\xa0\x80"}'), ("form", b"a=%ED%A0%80"), ("ndjson", b'"\xed\xa0\x80"')):
        with pytest.raises(PayloadError, match="not UTF-8"):
            decode(form, body)  # type: ignore[arg-type]  # one of the three


def test_a_form_becomes_an_object_of_texts() -> None:
    """Repeated fields are lists, blank ones stay, names are taken as they are."""
    body = b"id=7&name=Caf%C3%A9+Uno&tag=a&tag=&tag=c&data[mail]=a%40b.c&blank=&flag&raw=\xc3\xa9"
    assert decode("form", body) == {
        "id": "7",
        "name": "Café Uno",
        "tag": ["a", "", "c"],
        "data[mail]": "a@b.c",
        "blank": "",
        "flag": "",
        "raw": "é",
    }


def test_json_inside_a_form_is_the_body() -> None:
    """With JSON's own strictness: numbers stay exact."""
    body = urlencode({"token": "x", "payload": '{"a": 1.50}'}).encode()
    assert decode("form", body, payload_field="payload") == {"a": Decimal("1.50")}


@pytest.mark.parametrize(
    "body, field, message",
    [
        (b"", None, "the body is empty"),
        (b" \n", None, "the body is empty"),
        (b"a=\xff", None, "the body is not UTF-8 (byte 2)"),
        (b"a=%ff", None, "a field of the form is not UTF-8"),
        (b"&".join([b"a=1"] * (MAX_KEYS + 1)), None, f"the form has more than {MAX_KEYS} fields"),
        (b"a=1", "payload", "the form has no field payload"),
        (b"payload={}&payload={}", "payload", "the form has the field payload 2 times"),
        (b"payload={", "payload", "the field payload: the body is not JSON"),
        (b"payload=", "payload", "the field payload: the body is empty"),
    ],
)
def test_what_is_wrong_with_a_form_is_said(body: bytes, field: str | None, message: str) -> None:
    with pytest.raises(PayloadError) as caught:
        decode("form", body, payload_field=field)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "form, content_type",
    [
        ("json", "application/json"),
        ("json", "application/cloudevents+json; charset=UTF-8"),
        ("ndjson", "application/x-ndjson"),
        ("ndjson", "Application/NDJSON;charset=utf-8"),
        ("ndjson", "application/jsonl"),
        ("ndjson", "application/json"),
        ("form", "application/x-www-form-urlencoded"),
        ("form", "application/x-www-form-urlencoded; charset=utf-8"),
    ],
)
def test_each_form_has_its_media_types(form: Form, content_type: str) -> None:
    check_media_type(form, content_type)


@pytest.mark.parametrize(
    "form, content_type",
    [
        ("json", "application/x-ndjson"),
        ("json", ""),
        ("ndjson", "text/plain"),
        ("ndjson", "application/cloudevents+json"),
        ("ndjson", "application/x-ndjson; charset=latin-1"),
        ("form", "application/json"),
        ("form", "multipart/form-data; boundary=x"),
        ("form", "application/x-www-form-urlencoded; charset=iso-8859-1"),
    ],
)
def test_other_media_types_are_refused(form: Form, content_type: str) -> None:
    """And the answer names the one to send."""
    with pytest.raises(Refusal, match=media_type(form)) as caught:
        check_media_type(form, content_type)
    assert caught.value.status == 415


@pytest.mark.parametrize("form, joined", [("json", b","), ("ndjson", b"\n")])
def test_a_long_body_leaves_room_for_others(form: Form, joined: bytes) -> None:
    """While it is parsed, not only while it is mapped."""
    breaths: list[int] = []
    body = joined.join(b'{"id": %d, "name": "somebody"}' % n for n in range(5000))
    values = decode(form, b"[" + body + b"]" if form == "json" else body, pause=lambda: breaths.append(1))
    assert len(values) == 5000
    assert values[4999] == {"id": 4999, "name": "somebody"}
    assert 50 <= len(breaths) <= 200  # at least every hundredth event: a fraction of a millisecond


@pytest.mark.parametrize(
    "form, body, least",
    [
        ("ndjson", b"[" + b"1.5," * 20_000 + b"1]", 90),
        ("ndjson", b"\n".join([b"[" + b"1.5," * 2_000 + b"1]"] * 20), 20),
        ("form", b"a=" + b"%41" * 100_000, 30),
        ("form", b"%41" * 100_000, 30),
        ("form", b"&".join([b"a=" + b"%41" * 1_000] * 100), 30),
        ("form", b"&".join([b"a"] * 9_000), 100),
    ],
    ids=["a long line", "lines", "a long value", "a long name", "values", "fields"],
)
def test_long_lines_and_fields_leave_room_for_others(form: Form, body: bytes, least: int) -> None:
    breaths: list[int] = []
    assert decode(form, body, pause=lambda: breaths.append(1)) == decode(form, body)
    assert least <= len(breaths) <= 2 * least


PIECES = ["%41", "%", "%%", "%4", "%C3%A9", "%c3", "+", "%2B", "=", "&", "a", "\u00e9", "%F0%9F%98%80", ";"]


@given(written=st.lists(st.sampled_from(PIECES), max_size=30), filling=st.integers(7_980, 8_020))
def test_a_form_is_read_as_the_library_reads_it(written: list[str], filling: int) -> None:
    """Wherever it is cut to breathe."""
    text = "x" * filling + "".join(written)
    expected: dict[str, Any] = {}
    try:
        for name, value in parse_qsl(text, keep_blank_values=True, errors="strict"):
            expected.setdefault(name, []).append(value)
    except UnicodeDecodeError:
        with pytest.raises(PayloadError, match="is not UTF-8"):
            decode("form", text.encode())
        return
    found = decode("form", text.encode())
    assert {name: value if isinstance(value, list) else [value] for name, value in found.items()} == expected


@given(form=st.sampled_from(["json", "ndjson", "form"]), body=st.binary(max_size=200), field=st.none() | st.just("p"))
def test_no_bytes_whatever_raise_anything_else(form: Form, body: bytes, field: str | None) -> None:
    """A value or a PayloadError."""
    with contextlib.suppress(PayloadError):
        decode(form, body, payload_field=field)


@given(st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3), max_size=5))
def test_lines_mean_what_the_list_means(events: list[dict[str, object]]) -> None:
    """Whichever way a partner sends them."""
    lines = "\n".join(json.dumps(event) for event in events).encode()
    assert decode("ndjson", lines) == decode("json", json.dumps(events).encode())
