"""Requests as files: whatever a partner sent comes back as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.tryout.payloads import SavedRequest, read_saved

NAMES = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12)


@given(st.binary(max_size=200), st.dictionaries(NAMES, st.text(max_size=20), max_size=4), st.text(max_size=20))
def test_any_request_survives_being_kept(body: bytes, headers: dict[str, str], query: str) -> None:
    """Bodies that are no UTF-8 too."""
    kept = SavedRequest(body, headers, "PUT", "/webhooks/acme", query, "2026-01-02T03:04:05Z", "acme")
    text = json.dumps(kept.as_json(), ensure_ascii=True)
    assert read_saved(text.encode()) == kept


def test_text_is_kept_as_text() -> None:
    """So that people can read and mend it."""
    assert SavedRequest("é".encode(), {}).as_json()["body"] == "é"
    assert SavedRequest(b"\xff", {}).as_json()["body_base64"] == "/w=="


def test_parameters_are_those_that_mappings_see() -> None:
    """Of those given twice the first, blank ones too, escapes undone."""
    assert SavedRequest(b"", {}, query="a=1&b=&a=2&c=%C3%A9").parameters == {"a": "1", "b": "", "c": "é"}


@pytest.mark.parametrize(
    "document",
    [
        {"body": "x"},
        {"headers": {}},
        {"headers": [], "body": "x"},
        {"headers": {}, "body": {"id": 1}},
        {"headers": {}, "body": "x", "body_base64": "eA=="},
        {"headers": {}, "body_base64": "not base64"},
        {"headers": {}, "body": "x", "customer": 1},
        ["headers", "body"],
        "body",
        7,
    ],
)
def test_anything_else_is_a_bare_payload(document: Any) -> None:
    """A partner may well send objects with a key `body`."""
    assert read_saved(json.dumps(document).encode()) is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"a=1&b=2"])
def test_what_is_no_json_is_a_bare_payload(content: bytes) -> None:
    assert read_saved(content) is None
