"""Users' own schemas in processes of their own: whatever one does concerns one event, and nobody waits for long."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
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

from bridge.http.waiting import Permits, wait_in_thread
from bridge.intake.expressions import Frame
from bridge.intake.mapping import CompiledSource, compile_source
from bridge.intake.own_schema import EVENT_S, Process, Schemas
from bridge.intake.values import UnmappableError
from bridge.model import Intake
from bridge.server.loop import wait_for
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
        with contextlib.suppress(OSError):  # a thread, or a process, that has just ended
            for pid in (task / "children").read_text(encoding="ascii").split():
                if b"schema_process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(int(pid))
    return found


def pid_of(schemas: Schemas) -> int:
    """Of the one process that is there and has nothing to do."""
    (process,) = schemas._pool._idle
    assert isinstance(process, Process)
    return process._process.pid


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
        pid = pid_of(schemas)
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
    gc.collect()
    before = children()
    acme = compiled()
    assert len(children() - before) == 1
    acme.map_body([GOOD, {**GOOD, "act": "end"}])
    assert eventually(lambda: len(children() - before) == 1, within_s=5)
    del acme
    gc.collect()
    assert eventually(lambda: not children() - before, within_s=5)
    block = MappingBlock(Record("id", "acme_id"), properties={})
    Schemas()
    assert block.schema is None
    assert not children() - before


@pytest.mark.parametrize("act", ["", pytest.param("compute", marks=pytest.mark.heavy)])
def test_a_process_ends_when_whoever_started_it_was_killed(act: str, tmp_path: Path) -> None:
    """It finds its socket closed; the kernel ends one that computes."""
    code = textwrap.dedent(
        f"""
        import os, sys
        from bridge.intake import own_schema, schema_process
        from bridge.intake.expressions import Frame
        own_schema.EVENT_S = 60.0
        schemas = own_schema.Schemas()
        schemas.fault("tests.own_schemas:Unruly")
        print(schemas._pool._idle[0]._process.pid, flush=True)
        if {act!r}:
            frame = Frame()
            frame.schema_s = 60.0
            schemas.load("tests.own_schemas:Unruly", None, {{"name": "A", "act": {act!r}}}, frame)
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
    one, other, third = (compiled(schemas=schemas).queue for _ in range(3))
    assert one is not None
    assert other is not None
    assert third is not None
    assert one.enter(wait_in_thread, 0)
    assert not one.enter(wait_in_thread, 0)
    assert other.enter(wait_in_thread, 0)
    assert not third.enter(wait_in_thread, 0)
    one.leave()
    assert third.enter(wait_in_thread, 0)


def test_a_frame_has_the_time_of_one_request() -> None:
    assert Frame().schema_s > EVENT_S


def load_all(names: list[str]) -> list[Any]:
    schemas = Schemas()
    return [schemas.fault(name) for name in names]


def test_what_is_wrong_at_import_is_told() -> None:
    """As it was where the module was imported in place."""
    missing, attribute, kind = load_all(["no_such:Thing", "json:Nothing", "json:dumps"])
    assert missing == "No module named 'no_such'; it must stand beside this file, or where PYTHONPATH says"
    assert attribute == "module 'json' has no attribute 'Nothing'"
    assert kind == "it is not a marshmallow Schema class"


NAME = "tests.own_schemas:Unruly"


def loaded(schemas: Schemas, act: str = "", name: str = NAME, frame: Frame | None = None) -> str:
    """What becomes of an event: its name, or why it is parked."""
    event = {"name": "A", "act": act} if act else {"name": "A"}
    try:
        return schemas.load(name, None, event, frame or Frame()).valid["name"]
    except UnmappableError as error:
        return str(error)


@pytest.fixture
def schemas() -> Schemas:
    made = Schemas()
    assert made.fault(NAME) is None
    return made


def test_what_a_schema_keeps_of_many_events_parks_none(schemas: Schemas) -> None:
    """A process that is full is replaced, and the event that found it so is asked once more."""
    assert [loaded(schemas, "keep") for _ in range(10)] == ["A"] * 10
    assert loaded(schemas) == "A"


def test_no_event_is_parked_for_a_process_that_had_died_before_it(schemas: Schemas) -> None:
    """Whoever ended it: it is found dead before it is asked, and while it is."""
    assert loaded(schemas, "end later") == "A"
    assert loaded(schemas, "rest") == "A"
    assert loaded(schemas) == "A"
    pid = pid_of(schemas)
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not Path(f"/proc/{pid}/exe").exists(), within_s=5)
    assert loaded(schemas) == "A"


def test_a_process_that_is_killed_by_others_parks_no_event(schemas: Schemas) -> None:
    """Not even the first one that it is asked."""
    threading.Timer(0.2, os.kill, [pid_of(schemas), signal.SIGKILL]).start()
    assert loaded(schemas, "rest") == "A"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_to_all_processes_ends_no_schema(schemas: Schemas, number: signal.Signals) -> None:
    """The service still works on what it has taken."""
    pid = pid_of(schemas)
    os.kill(pid, number)
    time.sleep(0.1)
    assert loaded(schemas) == "A"
    assert pid_of(schemas) == pid


SLOW = """
import time
from marshmallow import Schema, fields
time.sleep(1)
class Slow(Schema):
    name = fields.Str()
    act = fields.Function(deserialize=lambda _: time.sleep(9))
"""


def test_a_schema_that_is_imported_slowly_comes_back_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the time of an import for that, not what is left of a request's; meanwhile the source is busy."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "slow_import.py").write_text(SLOW, encoding="utf-8")
    monkeypatch.setattr("bridge.intake.own_schema.EVENT_S", 0.2)
    name, schemas = "slow_import:Slow", Schemas()
    assert schemas.fault(name) is None
    queue = schemas.queue()
    assert queue.enter(wait_in_thread, 0)
    assert loaded(schemas, "late", name) == "the schema took more than 0.2 s"
    queue.leave()
    assert not queue.enter(wait_in_thread, 0.1)
    short = Frame()
    short.schema_s = 0.1
    assert loaded(schemas, "", name, short) == "the schema is being started"
    assert queue.enter(wait_in_thread, 10)
    assert loaded(schemas, "", name) == "A"


def too_late(_descriptor: int, _writing: bool, _timeout_s: float) -> bool:
    """How one waits in a loop that others hold up until the time is over."""
    time.sleep(0.3)
    return False


def test_who_is_late_looks_once_more_before_it_blames_the_schema(schemas: Schemas) -> None:
    pid = pid_of(schemas)
    assert loaded(schemas, frame=Frame(wait=too_late)) == "A"
    assert pid_of(schemas) == pid
    permits = Permits(0)
    threading.Timer(0.1, permits.give_back).start()
    assert permits.take(too_late, 0.1)


def test_a_request_is_charged_for_what_its_schema_takes_alone(schemas: Schemas) -> None:
    """Not for how long we take to ask and to hear."""
    frame = Frame(wait=too_late)
    before = frame.schema_s
    assert loaded(schemas, frame=frame) == "A"
    assert 0 < before - frame.schema_s < 0.2
    assert loaded(schemas, "rest", frame=Frame()) == "A"
    rested = Frame()
    assert loaded(schemas, "rest", frame=rested) == "A"
    assert before - rested.schema_s >= 0.5


def test_a_process_that_cannot_be_started_is_tried_again(schemas: Schemas, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event says so, and the next one is taken as soon as the system grants it."""
    queue = schemas.queue()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/nonexistent")
        assert loaded(schemas, "end") == "no process for schemas can be started: No such file or directory"
        assert not queue.enter(wait_in_thread, 1)
        assert Schemas().fault(NAME) == "no process for schemas can be started: No such file or directory"
    assert queue.enter(wait_in_thread, 5)
    assert loaded(schemas) == "A"


def test_a_process_that_is_asked_ends_with_what_it_was_made_for(schemas: Schemas) -> None:
    """As at a stop: nothing of it is left."""
    pid = pid_of(schemas)
    asked = threading.Thread(target=loaded, args=[schemas, "sleep"])
    asked.start()
    time.sleep(0.2)
    schemas._pool.close()
    assert not Path(f"/proc/{pid}/exe").exists()
    asked.join(5)
    assert not asked.is_alive()
