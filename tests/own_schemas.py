"""Users' own schemas, as they may be written: imported by processes of their own, so it takes little with it."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from marshmallow import INCLUDE, RAISE, Schema, ValidationError, fields, post_load, pre_load, validates_schema

#: Not a schema.
MANY = 50_000_000


class Own(Schema):
    """A partner's schema as a user may write it."""

    name = fields.Str(data_key="clientName", required=True)
    arr = fields.Decimal()
    mail = fields.Email(load_default=None)

    @pre_load
    def rename(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        data.pop("noise", None)
        if data.get("boom"):
            raise ZeroDivisionError("a partner's secret")
        return data

    @validates_schema
    def together(self, data: dict[str, Any], **_: Any) -> None:
        if data.get("arr", 0) < 0:
            raise ValidationError("sums do not add up")

    @post_load
    def finish(self, data: dict[str, Any], **_: Any) -> Any:
        return data if "arr" not in data else {**data, "tags": ["a", "b"]}


class Open(Schema):
    """Takes whatever names the payload has."""

    class Meta:
        unknown = INCLUDE

    id = fields.Raw(load_only=True)
    factor = fields.Integer()

    @post_load
    def grow(self, data: dict[str, Any], **_: Any) -> Any:
        return {**data, "grown": 10 ** data.pop("factor")} if "factor" in data else data

    @post_load
    def decode(self, data: dict[str, Any], **_: Any) -> Any:
        return {**data, "broken": json.loads(f'"{data["broken"]}"')} if "broken" in data else data


class Closed(Schema):
    """Complains of names that it does not know."""

    class Meta:
        unknown = RAISE

    id = fields.Raw()
    address = fields.Nested(Schema.from_dict({"city": fields.Str()}, name="Address"))


class Unruly(Schema):
    """Does to its process whatever the event says."""

    class Meta:
        unknown = INCLUDE

    @post_load
    def act(self, data: dict[str, Any], **_: Any) -> Any:
        return {"name": data["name"], **ACTS[data["act"]]()} if "act" in data else data


class Odd:
    """A value whose text cannot be had."""

    def __str__(self) -> str:
        raise KeyError("a secret")


def itself() -> dict[str, Any]:
    found: list[Any] = []
    found.append(found)
    return {"x": found}


def raises(error: BaseException) -> Any:
    raise error


def forever() -> Any:
    while True:
        pass


def deep(levels: int = 0) -> Any:
    return deep(levels + 1)


def endless() -> Iterator[Any]:
    while True:
        yield "x" * 1_000_000


def chatter() -> dict[str, Any]:
    os.write(1, b"{" * 100_000)
    sys.stdout.write("{" * 100_000)
    return {}


def close_all() -> dict[str, Any]:
    os.closerange(3, 256)
    return {}


#: What a schema remembers, as caches do.
KEPT: list[bytearray] = []


def keep() -> dict[str, Any]:
    KEPT.append(bytearray(30 << 20))
    return {}


def end_later() -> dict[str, Any]:
    threading.Timer(0.2, os._exit, [3]).start()
    return {}


def rest() -> dict[str, Any]:
    time.sleep(0.5)
    return {}


ACTS: dict[str, Any] = {
    "sleep": lambda: time.sleep(10),
    "compute": forever,
    "a regular expression": lambda: re.match(r"(a+)+$", "a" * 40 + "b"),
    "exit": lambda: sys.exit(3),
    "end": lambda: os._exit(3),
    "interrupt": lambda: raises(KeyboardInterrupt()),
    "recursion": deep,
    "memory": lambda: {"x": list(endless())},
    "itself": itself,
    "odd": lambda: {"x": Odd()},
    "odd error": lambda: raises(ValidationError([Odd()])),
    "print": chatter,
    "close": close_all,
    "much": lambda: {f"p{number}": "x" * 60_000 for number in range(200)},
    "keep": keep,
    "end later": end_later,
    "rest": rest,
    "environment": lambda: {"x": ",".join(sorted(os.environ))},
}


class Declared(Schema):
    """Makes what its fields say, and nothing else."""

    name = fields.Str(data_key="clientName", allow_none=True)
    arr = fields.Decimal(allow_none=True)
    first = fields.Str(attribute="contact_first", required=True)


class Loose(Schema):
    """Declares one property and takes the payload's others."""

    class Meta:
        unknown = INCLUDE

    name = fields.Str()
