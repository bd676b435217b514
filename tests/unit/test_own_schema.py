"""Users' own schemas in processes of their own: whatever one does concerns one event, and nobody waits for long."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gevent
import pytest

from bridge.intake.expressions import Scope
from bridge.intake.mapping import CompiledSource, compile_source
from bridge.intake.own_schema import EVENT_S, Schemas
from bridge.intake.waiting import Permits, wait_in_thread
from bridge.loop import wait_for
from bridge.model import Intake
from bridge.settings import MappingBlock, Record, Source, Verify
from tests.running import eventually

GOOD = {"id": "7", "name": "A"}


def compiled(name: str = "tests.own_schemas:Unruly", schemas: Schemas | None = None) -> CompiledSource:
    block = MappingBlock(Record("id", "acme_id"), schema=name)
    return compile_source(Source("acme", verify=Verify("none"), mappings=(block,)), schemas=schemas)


@pytest.fixture(scope="module")
def unruly() -> CompiledSource:
    return compiled()


def children() -> set[int]:
    """Processes of ours that run schemas."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text(encoding="ascii").split():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"schema_process" in command:
                found.add(int(pid))
    return found


ENDED, LATE = "the schema ended its process", f"the schema took more than {EVENT_S:.2g} s"
#: What an event says, and why it is parked, or how its values are.
PARKED = {
    "sleep": LATE,
    "compute": LATE,
    "a regular expression": LATE,
    "exit": "the schema raised SystemExit",
    "end": ENDED,
    "interrupt": "the schema raised KeyboardInterrupt",
    "recursion": "the schema raised RecursionError",
    "memory": "the schema raised MemoryError",
    "odd error": "the schema raised KeyError",
    "close": ENDED,
    "much": "the schema returned more than 8388608 bytes",
}
TAKEN = {"itself": {"x": "holds itself"}, "odd": {"x": "raised KeyError where its text was asked for"}, "print": {}}


@pytest.mark.parametrize("act", PARKED)
def test_what_a_schema_does_concerns_one_event(unruly: CompiledSource, act: str) -> None:
    """That one is parked and says why; those before and behind it are taken."""
    began = time.monotonic()
    mapped = unruly.map_body([GOOD, {**GOOD, "act": act}, GOOD])
    assert time.monotonic() - began < 8  # 4 s on a machine that has nothing else to do
    assert [event.intake for event in mapped.events] == [Intake.ACCEPTED, Intake.PARKED, Intake.ACCEPTED]
    assert mapped.events[1].unmappable == PARKED[act]


@pytest.mark.parametrize("act", TAKEN)
def test_what_a_schema_returns_concerns_one_property(unruly: CompiledSource, act: str) -> None:
    mapped = unruly.map_body([GOOD, {**GOOD, "act": act}])
    update = mapped.events[1].updates[0]
    assert update.properties == {"name": "A"}
    assert update.invalid == TAKEN[act]


def test_the_process_gets_nothing_that_it_does_not_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """No secrets in variables, and no descriptor of ours."""
    monkeypatch.setenv("BRIDGE_TOKEN", "a secret")
    with Path("/dev/null").open(encoding="ascii") as kept:
        os.set_inheritable(kept.fileno(), True)
        schemas = Schemas()
        acme = compiled(schemas=schemas)
        update = acme.map_body({**GOOD, "act": "environment"}).events[0].updates[0]
        assert "BRIDGE_TOKEN" not in update.properties["x"]
        assert "PATH" in update.properties["x"]
        (pid,) = [process._process.pid for process in schemas._idle]
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) == 4  # the three that all have, and the socket


@pytest.mark.heavy
def test_all_events_of_a_request_have_some_seconds_together() -> None:
    """The rest of them is parked at once, and what was mapped before is taken."""
    acme = compiled()
    began = time.monotonic()
    mapped = acme.map_body([GOOD] + [{**GOOD, "act": "sleep"}] * 50)
    assert time.monotonic() - began < 9
    assert mapped.events[0].intake is Intake.ACCEPTED
    assert mapped.events[-1].unmappable == "the schema took more than 4 s for the events of one request"


def test_processes_end_with_what_they_were_made_for() -> None:
    """Nothing is left when the last reference is gone, and nothing starts where no source has a schema."""
    before = children()
    acme = compiled()
    assert len(children() - before) == 1
    acme.map_body([GOOD, {**GOOD, "act": "end"}])
    assert len(children() - before) == 1
    del acme
    gc.collect()
    assert children() == before
    block = MappingBlock(Record("id", "acme_id"), properties={})
    Schemas()
    assert block.schema is None
    assert children() == before


@pytest.mark.parametrize("act", ["", pytest.param("compute", marks=pytest.mark.heavy)])
def test_a_process_ends_when_whoever_started_it_was_killed(act: str, tmp_path: Path) -> None:
    """It finds its socket closed; the kernel ends one that computes."""
    code = textwrap.dedent(
        f"""
        import os, sys
        from bridge.intake import own_schema, schema_process
        from bridge.intake.expressions import Scope
        own_schema.EVENT_S = 60.0
        schemas = own_schema.Schemas()
        schemas.fault("tests.own_schemas:Unruly")
        print(schemas._idle[0]._process.pid, flush=True)
        if {act!r}:
            scope = Scope()
            scope.schema_s = 60.0
            schemas.load("tests.own_schemas:Unruly", None, {{"name": "A", "act": {act!r}}}, scope)
        sys.stdin.read()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=short_lived()
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()
        parent.wait(10)
        assert eventually(lambda: not Path(f"/proc/{pid}/exe").exists(), within_s=15)


def short_lived() -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def test_a_changed_module_is_taken_by_what_is_made_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and a broken one is found, as a restart would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "changing.py"
    text = "from marshmallow import Schema, fields\nclass C(Schema):\n    {} = fields.Str()\n"
    module.write_text(text.format("a"), encoding="utf-8")
    first = compiled("changing:C")
    module.write_text(text.format("b"), encoding="utf-8")
    second = compiled("changing:C")
    body = {"id": "7", "a": "1", "b": "2"}
    assert [one.map_body(body).events[0].updates[0].properties for one in (first, second, first)] == [
        {"a": "1"},
        {"b": "2"},
        {"a": "1"},
    ]
    module.write_text("raise SystemExit(3)", encoding="utf-8")
    with pytest.raises(ExceptionGroup) as caught:
        compiled("changing:C")
    assert str(caught.value.exceptions[0]).endswith("'changing:C' cannot be used: 3")


def test_greenlets_go_on_while_a_schema_sleeps() -> None:
    """And each request has its own time."""
    acme = compiled()
    slow = gevent.spawn(acme.map_body, {**GOOD, "act": "sleep"}, wait=wait_for)
    ticks = 0
    while not slow.ready():
        gevent.sleep(0.01)
        ticks += 1
    assert slow.get().events[0].unmappable == LATE
    assert ticks > 20


def test_permits_are_waited_for_by_threads_and_greenlets() -> None:
    permits = Permits(1)
    assert permits.take(wait_in_thread, 0)
    assert not permits.take(wait_in_thread, 0.01)
    greenlet = gevent.spawn(permits.take, wait_for, 5.0)
    gevent.sleep(0.01)
    threading.Timer(0.05, permits.give_back).start()
    assert greenlet.get(timeout=5)
    assert not permits.take(wait_in_thread, 0.0)


def test_one_source_has_one_process_at_a_time_and_all_have_two() -> None:
    schemas = Schemas()
    one, other, third = (compiled(schemas=schemas).lane for _ in range(3))
    assert one is not None
    assert other is not None
    assert third is not None
    assert one.enter(wait_in_thread, 0)
    assert not one.enter(wait_in_thread, 0)
    assert other.enter(wait_in_thread, 0)
    assert not third.enter(wait_in_thread, 0)
    one.leave()
    assert third.enter(wait_in_thread, 0)


def test_a_scope_has_the_time_of_one_request() -> None:
    assert Scope().schema_s > EVENT_S


def load_all(names: list[str]) -> list[Any]:
    schemas = Schemas()
    return [schemas.fault(name) for name in names]


def test_what_is_wrong_at_import_is_told() -> None:
    """As it was where the module was imported in place."""
    missing, attribute, kind = load_all(["no_such:Thing", "json:Nothing", "json:dumps"])
    assert missing == "No module named 'no_such'; it must stand beside this file, or where PYTHONPATH says"
    assert attribute == "module 'json' has no attribute 'Nothing'"
    assert kind == "it is not a marshmallow Schema class"
