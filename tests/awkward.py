"""Payloads: good ones for every source of `tests.configurations`, and what becomes of them at partners' hands."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from tests.configurations import PARTNERS, configurations, sources

#: What partners might put anywhere: each kind of nothing, of scalar, of number and of text that reads as one.
AWKWARD: list[Any] = [
    None, "", " ", "\t\x1f\x85", "\ufeff", [], {}, [None], [[]], [""], ["a"], ["a", " b ", None], ["x;y"], {"a": 1},
    {"nul\0\n": 1},
    True, False, 0, 1, 1.0, 1.5, 7, -3, 2**70, 10**25, 1e300, 12.50, "0", "1", "1.5", " 1 ", "+1.", ".5", "1e3", "1,5",
    "NaN", "true", "YES", " No ", "on", "Gold", " Gold ", "gold", "a/b (c)", "a", "a,b", "a, b,,", "x;y", ";a",
    " ;a", "\n;a", "2026-12-31", "2026-12-31T10:00:00", "2026-12-31T10:00:00Z", "20261231", "31/12/2026", "2026-W01-5",
    20261231, 31122026, 1767323045, 1767323045000, "1767323045", 1e18, "ann@example.com", " ann@example.com ", "a@b",
    "ann@bücher.example", "+34 600", "²", "x" * 300, "y" * 70_000, " " * 70_000, "nul\0", "😀", "client.updated",
    "test", "customer.created", "invoice.paid", "company.propertyChange", "name", "annualrevenue", "seats", "7", 360001,
    "360003", [1, "2", True],
]  # fmt: skip
LEAVES = (
    st.sampled_from(AWKWARD)
    | st.text(max_size=8)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(st.sampled_from(AWKWARD), max_size=3)
)


def samples(key: str) -> Iterator[tuple[Any, dict[str, str], dict[str, str]]]:
    """Bodies as they were agreed with the partner, each with headers and query."""
    label, _, name = key.partition(":")
    for one in configurations()[label].sources[name].examples:
        if one.invalid is None:
            yield json.loads(one.body), dict(one.headers), {}
    if label == "partners":
        for path in sorted((PARTNERS / name).glob("*.expected.json")):
            files = [path.with_name(path.name.replace(".expected.", part)) for part in (".", ".headers.", ".query.")]
            body, headers, query = (json.loads(file.read_text()) if file.exists() else {} for file in files)
            yield body, headers, query


#: Bodies for the sources that have no examples of their own.
MADE: dict[str, list[Any]] = {
    "types": [
        {
            "id": "e1", "at": "2026-01-02T03:04:05Z", "sent_by": "x",
            "client": {
                "id": "7", "text": "a", "text_required": "b", "text_key": None, "email": "ann@example.com",
                "number": "1.5",
                "flag": "yes", "day": "2026-01-02", "day_written": "02/01/2026", "moment": "2026-01-02T03:04:05",
                "plan": 1, "option": "x", "phone": "+34 600", "other": "?", "flagged": "on", "many": ["a", " b "],
                "joined": "a,b", "list": [{}, {"name": "n"}], "a": "1", "b": "2",
            },
        }
    ],
    "several": [
        {
            "tenant": "t",
            "data": {
                "events": [
                    {"id": 1, "type": "client.paid", "version": 2, "client": "7", "name": "n", "total": 1.5},
                    {"id": 2, "type": "test", "version": 3},
                    {"id": 3, "type": "x", "version": 1, "paid": True},
                ]
            },
        }
    ],
    "pairs": [
        {"id": 1, "fields": [{"key": "name", "value": "n"}, {"key": 7, "value": "x"}, {"key": "7", "value": 3}]},
        {"id": 1, "fields": {"name": "n", "7": "3", "since": "2026-01-02"}},
    ],
    "single": [{"id": 1, "key": "seats", "new": {"value": "3"}}, {"id": 1, "name": "n", "seats": 4}],
    "made": [{"orders": [{"id": 1, "client": "c", "lines": [2**70, 1.5, -3]}, {"id": 2, "client": "d", "lines": [1]}]}],
    "form": [{"id": "1", "name": "n", "seats": "3"}],
    **{name: [{"id": 1, "name": "n"}] for name in ("zendesk", "typeform", "calendly", "hubspot-v2", "hubspot-v1")},
    "handshake": [{"id": 1, "name": "n"}],
    "hello": [{"id": 1, "name": "n"}],
    "own": [{"number": 7, "name": "n", "seats": "3", "revenue": 1, "active": "yes", "since": "2026-01-02",
             "tier": "gold", "address": {"city": "c", "lines": ["a"]}, "changed": 1, "code": "a1", "choice": 5}],
    "inside": [{"user": {"id": "U1", "name": "n"}}],
    "lines": [[{"id": 1, "name": "n"}, {"id": 2, "seats": "3"}]],
}  # fmt: skip
BODIES = {key: [*samples(key), *((body, {}, {}) for body in MADE.get(key.partition(":")[2], []))] for key in sources()}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place within a value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


@st.composite
def changed(draw: st.DrawFn, key: str) -> tuple[Any, dict[str, str], dict[str, str]]:
    """A sample with up to three places changed, taken out, or put in a list."""
    body, headers, query = draw(st.sampled_from(BODIES[key]))
    body = copy.deepcopy(body)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(body))))
        new = copy.deepcopy(draw(LEAVES))
        if not path:
            body = draw(st.sampled_from([body, [body], [body, copy.deepcopy(body)], new]))
            continue
        holder = functools.reduce(lambda value, step: value[step], path[:-1], body)
        match draw(st.sampled_from(["set", "set", "drop", "wrap"])):
            case "set":
                holder[path[-1]] = new
            case "drop":
                del holder[path[-1]]
            case _:
                holder[path[-1]] = [holder[path[-1]]]
    return body, headers, query
