"""What is complete in the beginning of a JSON text."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.crm.transport import beginning

ANSWER = {
    "status": "COMPLETE",
    "results": [
        {"id": "91", "objectWriteTraceId": "t1", "properties": {"name": "one \N{GRINNING FACE}", "n": "1"}},
        {"id": "92", "properties": {"name": 'a "quoted" {name}, ]', "tags": ["a", "b"]}, "objectWriteTraceId": "t2"},
    ],
    "numErrors": 12,
}


def parts(found: Any, whole: Any) -> bool:
    """Whether all that was found stands there in the whole text, and no text or number was cut."""
    if isinstance(found, dict):
        return isinstance(whole, dict) and all(name in whole and parts(found[name], whole[name]) for name in found)
    if isinstance(found, list):
        return isinstance(whole, list) and all(map(parts, found, whole)) and len(found) <= len(whole)
    return bool(found == whole)


@pytest.mark.parametrize("escaped", [True, False], ids=["escaped", "raw"])
def test_wherever_an_answer_ends_only_what_is_complete_is_told(escaped: bool) -> None:
    text = json.dumps(ANSWER, ensure_ascii=escaped, indent=1).encode()
    for end in range(1, len(text)):
        assert parts(beginning(text[:end]), ANSWER), text[:end]
    assert beginning(text[:-3]) == {name: ANSWER[name] for name in ("status", "results")}


def test_a_result_is_told_as_far_as_it_goes() -> None:
    text = orjson.dumps(ANSWER)
    found = beginning(text[: text.index(b"t2")])
    assert found["results"][1] == {"id": "92", "properties": ANSWER["results"][1]["properties"]}  # type: ignore[index]


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\tru1e ', max_size=60).map(str.encode))
def test_whatever_an_answer_begins_with_nothing_is_raised(raw: bytes) -> None:
    beginning(raw)


@pytest.mark.parametrize("raw", [b"", b"   ", b"<html>", b"xxxx", b'"a text', b"12"])
def test_what_is_no_object_or_list_is_nothing(raw: bytes) -> None:
    assert beginning(raw) is None


def test_deep_nesting_is_no_loop() -> None:
    assert beginning(b'{"a":' * 100_000) is not None
