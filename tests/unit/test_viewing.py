"""How a request is shown: nothing of it steers the terminal, and what is long is cut where a person reads."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bridge.cli.listener import MAX_EVENTS, MAX_LINES, rows_of
from bridge.showing import printable


def document(**changes: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "number": 1,
        "received_at": "2026-01-02T03:04:05.000Z",
        "method": "POST",
        "path": "/webhooks/acme",
        "query": "",
        "headers": {},
        "body": "{}",
        "verdict": None,
        "taken": True,
        "answer": {"status": 202, "body": ""},
        "notes": [],
        "saved": None,
    }
    return shown | changes


def lines(shown: dict[str, Any], label: str, *, cut: bool = True) -> list[str]:
    return [text for name, text, _ in rows_of(shown, cut=cut) if name == label]


@given(st.text())
def test_what_is_printed_steers_nothing(text: str) -> None:
    """Neither escape sequences nor marks that turn the direction of writing."""
    assert printable(text).isprintable()


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_what_is_harmless_is_printed_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_numbers_of_a_body_are_shown_as_they_came() -> None:
    """To the digit."""
    assert lines(document(body='{"a":1.10,"b":12345678901234567890.5}'), "body") == [
        "{",
        '  "a": 1.10,',
        '  "b": 12345678901234567890.5',
        "}",
    ]


def test_half_a_surrogate_pair_in_a_body_is_shown_as_it_came() -> None:
    """Escaped, with all else indented."""
    assert lines(document(body=r'{"a":"é\ud800"}'), "body") == ["{", r'  "a": "é\ud800"', "}"]


def test_hints_are_shown_with_the_events() -> None:
    """See `CompiledSource.hints`."""
    assert lines(document(events=[], inputs=[], taken=True, left_out=[], hints=["day is odd"]), "look at") == [
        "day is odd"
    ]


def test_a_body_with_lines_of_its_own_is_shown_as_it_is() -> None:
    assert lines(document(body='{"a":\n1}'), "body") == ['{"a":', "1}"]


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    shown = document(body_base64="/wA=")
    del shown["body"]
    assert lines(shown, "body") == [r"2 bytes that are not UTF-8: b'\xff\x00'"]


def test_what_is_left_out_stands_with_its_event() -> None:
    """With the path that found nothing; what is null or blank is told apart."""
    event: dict[str, Any] = {
        "id": "e",
        "occurred_at": None,
        "taken_as": "accepted",
        "why": None,
        "records": [],
        "invalid": {},
    }
    left_out = [{"index": 1, "absent": {"deal_title": "data.titel"}, "null": {"city": "data.city"}}]
    shown = document(events=[event] * 3, inputs=[], left_out=left_out)
    told = [text for name, text, _ in rows_of(shown, cut=True) if name in {"", "events"}]
    assert told == [
        "e: accepted",
        "e: accepted",
        "  left out: deal_title (nothing at data.titel)",
        "  left out: city (null or blank at data.city)",
        "e: accepted",
    ]


def test_what_is_long_is_cut_on_a_terminal_only() -> None:
    event: dict[str, Any] = {
        "id": "e",
        "occurred_at": None,
        "taken_as": "ignored",
        "why": "so",
        "records": [],
        "invalid": {},
    }
    shown = document(body="x\n" * 200, events=[event] * 50, inputs=[], left_out=[])
    assert len(lines(shown, "body")) == MAX_LINES + 1
    assert lines(shown, "body")[-1] == "… 140 more lines; --save keeps them"
    assert len(lines(shown, "body", cut=False)) == 200
    assert len(lines(shown, "events")) == MAX_EVENTS
    assert lines(shown, "") == ["… and 30 more"]
    assert len(lines(shown, "events", cut=False)) == 50
