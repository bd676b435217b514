"""A refusal gives back all that its request held, whatever kind it is of: measured without the garbage collector."""

from __future__ import annotations

import gc
import gzip
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
from flask import Flask
from werkzeug.test import Client

from bridge.errors import JournalFullError, JournalUnavailableError
from bridge.intake.mapping import compile_source
from bridge.intake.signatures import Verifier
from bridge.intake.webhooks import Counts, Endpoint, Webhooks, register_problem_handlers
from bridge.settings import MIB, MappingBlock, Property, Record, Source, Verify
from tests.fakes import FakeClock
from tests.integration.test_webhooks import FakeJournal

OPEN = Verify("none")
BLOCK = MappingBlock(Record("id", "acme_id"), properties={"name": Property("name")})
STRICT = MappingBlock(Record("id"), properties={"n": Property("n", type="number")}, on_invalid="reject")
SOURCES = {
    source.name: source
    for source in (
        Source("open", verify=OPEN, mappings=(BLOCK,)),
        Source("strict", verify=OPEN, mappings=(STRICT,)),
        Source("found", verify=OPEN, mappings=(BLOCK,), events="items[?no].x"),
        Source("broken", verify=OPEN, mappings=(BLOCK,), events="lower(@)"),
        Source("made", verify=OPEN, mappings=(BLOCK,), events="items[].{all: _root, id: @}"),
        Source("lines", verify=OPEN, mappings=(BLOCK,), body="ndjson"),
        Source("form", verify=OPEN, mappings=(BLOCK,), body="form"),
        Source("field", verify=OPEN, mappings=(BLOCK,), body="form", payload_field="payload"),
    )
}


def fill(start: bytes, part: bytes, end: bytes, size: int) -> bytes:
    """A body of nearly `size` bytes."""
    return start + b",".join([part] * ((size - len(start) - len(end)) // (len(part) + 1))) + end


def keys(count: int) -> bytes:
    return b"{" + b",".join(b'"%05d":1' % number for number in range(count)) + b"}"


def repeated(size: int) -> bytes:
    """Many small events, each of which takes the whole body along."""
    return b'{"items":[' + b",".join([b"{}"] * 400) + b'],"pad":"' + b"x" * (size - 2_000) + b'"}'


def form(text: bytes) -> bytes:
    return urlencode({"payload": text}).encode()


Kind = tuple[str, int, Callable[[int], bytes]]
KINDS: Mapping[str, Kind] = {
    "syntax": ("open", 400, lambda size: fill(b"[", b"{}", b"", size)),
    "not UTF-8": ("open", 400, lambda size: fill(b"[", b'"text"', b"\xff]", size)),
    "a key twice": ("open", 400, lambda size: fill(b'{"a":[', b'"a text %d"', b'],"b":1,"b":2}', size)),
    "NaN": ("open", 400, lambda size: fill(b"[", b"{}", b",NaN]", size)),
    "digits": ("open", 400, lambda size: fill(b"[", b'{"a":1.5}', b",1" + b"0" * 500 + b"]", size)),
    "many keys": ("open", 400, lambda size: keys(max(size // 16, 10_001))),
    "depth": ("open", 400, lambda size: b"[" * (size // 2) + b"]" * (size // 2)),
    "half a surrogate pair": ("open", 400, lambda size: fill(b"[", b'{"a":"\\ud800"}', b",NaN]", size)),
    "too many events": ("open", 400, lambda size: fill(b"[", b"{}", b"]", size)),
    "no objects": ("open", 400, lambda size: fill(b"[", b"[]", b"]", size)),
    "rejected": ("strict", 422, lambda size: fill(b'[{"id":1,"n":"x","a":[', b"{}", b"]}]", size)),
    "events finds nothing": ("found", 400, lambda size: fill(b'{"no":[', b"{}", b"]}", size)),
    "events fails": ("broken", 400, lambda size: fill(b"[", b"{}", b"]", size)),
    "events makes too much": ("made", 400, repeated),
    "a line": ("lines", 400, lambda size: fill(b"[", b"{}", b"]\n{", size)),
    "form fields": ("form", 400, lambda size: b"a=b&" * (size // 4)),
    "form without the field": ("field", 400, lambda size: b"a=" + b"x" * (size - 2)),
    "form with a flaw": ("field", 400, lambda size: form(fill(b"[", b"{}", b",NaN]", size // 4))),
    "not gzip": ("open", 400, lambda size: b"x" * size),
    "gzip bomb": ("open", 413, lambda size: gzip.compress(b" " * (20 * size), mtime=0)),
    "gzip cut off": ("open", 400, lambda size: gzip.compress(b"{}" * (size // 3), 0, mtime=0)[:-9]),
    "over max_body": ("open", 413, lambda size: b" " * (size + 1)),
    "journal full": ("open", 503, lambda size: fill(b'{"id":"1","name":"A","a":[', b"{}", b"]}", size)),
    "journal gone": ("open", 503, lambda size: fill(b'{"id":"1","name":"A","a":[', b"{}", b"]}", size)),
    "an accident": ("open", 500, lambda size: fill(b'{"id":"1","name":"A","a":[', b"{}", b"]}", size)),
}
FAILURES = {
    "journal full": JournalFullError("full"),
    "journal gone": JournalUnavailableError("gone"),
    "an accident": ZeroDivisionError("secret"),
}


class Unobserved:
    """Nobody counts, so that nothing is kept."""

    def webhook(self, source: str, code: int, duration_s: float, counts: Counts) -> None: ...

    def verification(self, source: str, result: str, secret: int | None) -> None: ...


class House:
    """The endpoints, with and without Flask's routes."""

    def __init__(self, max_body: int) -> None:
        self.journal = FakeJournal()
        receiver = Webhooks(
            sources=lambda: endpoints,
            journal=self.journal,
            observer=Unobserved(),
            clock=FakeClock(),
            pause=lambda: None,
        )
        endpoints = {
            name: Endpoint(compile_source(source), Verifier(source.verify), max_body)
            for name, source in SOURCES.items()
        }
        app = Flask("test")
        register_problem_handlers(app)
        app.register_blueprint(receiver.blueprint())
        self.clients = {"routed": Client(app), "direct": Client(receiver.before(app))}

    def refuse(self, kind: str, body: bytes, *, by: str = "direct") -> None:
        source, status, _ = KINDS[kind]
        packed = {"Content-Encoding": "gzip"} if "gzip" in kind else {}
        media_type = "application/x-www-form-urlencoded" if source in {"form", "field"} else "application/json"
        self.journal.failure = FAILURES.get(kind)
        answer = self.clients[by].post(f"/webhooks/{source}", data=body, headers={"Content-Type": media_type, **packed})
        assert answer.status_code == status, answer.data


@contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "kind, by", [*((kind, "direct") for kind in KINDS), ("NaN", "routed"), ("an accident", "routed")]
)
def test_a_refused_body_is_given_back_at_once(kind: str, by: str) -> None:
    """Not when the collector is due, which counts objects and not how large they are: nothing of it is left."""
    size = 110_000
    house, body = House(size), KINDS[kind][2](size)
    house.refuse(kind, body, by=by)
    with no_collector():
        before = sys.getallocatedblocks()
        for _ in range(3):
            house.refuse(kind, body, by=by)
        assert sys.getallocatedblocks() - before < 3_000  # free lists; a tree has ten times as many


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_refused_bodies_leave_memory_where_it_was(kind: str) -> None:
    """At the largest size that is taken: of the finding's bodies half a megabyte each stayed."""
    house, body = House(MIB), KINDS[kind][2](MIB)
    with no_collector():
        for _ in range(15):  # until the allocator has the pages that it keeps
            house.refuse(kind, body)
        before = resident_mb()
        for _ in range(20):
            house.refuse(kind, body)
        assert resident_mb() - before < 10  # half a body each


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096 / MIB
