"""What the body of a batch update asks, and what of the contract its shape breaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from bridge.sandbox.answers import Answer, validation_error
from bridge.sandbox.ledger import Input, ViolationKind

MAX_INPUTS = 100  #: [docs GUIDE]


@dataclass(frozen=True, slots=True)
class Parsed:
    """A body: the inputs that could be read, why the call is refused if it is, and what it broke."""

    inputs: tuple[Input, ...] = ()
    refusal: Answer | None = None
    breaches: tuple[tuple[ViolationKind, str], ...] = ()


def parse(body: bytes) -> Parsed:
    """Read the body of a batch update. Values must be strings; all else is refused [spec PC-v3].

    A body without inputs is a success that changes nothing [issue/forum HubSpot/hubspot-api-nodejs#26].
    """
    try:
        parsed = orjson.loads(body)
        listed = parsed.get("inputs", []) if isinstance(parsed, dict) else None
    except orjson.JSONDecodeError as error:
        return _malformed(error.lineno, error.colno, error.msg)
    if not isinstance(listed, list):
        return _malformed(1, 1, "inputs: not a list")
    if not listed:
        return Parsed(breaches=((ViolationKind.EMPTY, ""),))
    inputs: list[Input] = []
    breaches: list[tuple[ViolationKind, str]] = []
    for place, item in enumerate(listed):
        fault = _shape(item)
        if fault is None:
            traced = item.get("objectWriteTraceId") or ""
            inputs.append(Input(item["id"], item.get("idProperty") or "", traced, item["properties"]))
        else:
            breaches.append((fault[0], f"inputs[{place}]: {fault[1]}"))
    refusal = _malformed(1, 1, breaches[0][1]).refusal if breaches else None
    if len(listed) > MAX_INPUTS:
        breaches.append((ViolationKind.TOO_MANY, str(len(listed))))
    return Parsed(tuple(inputs), refusal, tuple(breaches))


def _malformed(line: int, column: int, message: str) -> Parsed:
    refusal = validation_error(f"Invalid input JSON on line {line}, column {column}: {message}")
    return Parsed((), refusal, ((ViolationKind.MALFORMED, message),))


def _shape(item: Any) -> tuple[ViolationKind, str] | None:
    if not isinstance(item, dict) or not isinstance(item.get("properties"), dict):
        return ViolationKind.MALFORMED, "Some required fields were not set: [properties]"
    if not item.get("id"):
        return ViolationKind.MISSING_ID, "Some required fields were not set: [id]"
    for name in ("id", "idProperty", "objectWriteTraceId"):
        if not isinstance(item.get(name, ""), str):
            return ViolationKind.NOT_A_STRING, f"{name} is not a string"
    for name, value in item["properties"].items():
        if type(value) is not str:
            return ViolationKind.NOT_A_STRING, f"properties.{name} is not a string"
    return None
