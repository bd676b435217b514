"""Laws of the dispatcher under any sequence of answers, in any order of calls, and with real threads."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.crm.transport import Answer, Input, NoAnswer
from bridge.delivery.dispatcher import Dispatcher
from bridge.delivery.pauses import Backoff
from bridge.model import Lane, SystemClock
from bridge.settings import Crm, RateLimit, Retry
from tests.examples import examples
from tests.fakes_delivery import (
    BY_RECORD_ID,
    CLIENTS,
    FakeClock,
    FakeCrm,
    FakeJournal,
    FakeObserver,
    HeldPool,
    ok,
    refused_whole,
)

KINDS = [
    "ok", "ok", "ok", "500", "timeout", "connect", "reset", "garbage", "empty", "silent", "unknown", "invalid",
    "transient", "400", "400 named", "400 id", "duplicate", "401", "403", "404", "408", "413", "423", "429",
    "477", "302", "pending", "raise",
]  # fmt: skip


def answer(kind: str, sent: Sequence[Input]) -> Answer | NoAnswer:
    """An answer of this kind to these inputs; what it says about single inputs concerns the first."""
    first = sent[0]
    about = {"objectWriteTraceId": [first.trace_id], "ids": [first.record.key.id]}
    match kind:
        case "ok":
            return ok(sent)
        case "timeout" | "reset":
            return NoAnswer("timeout", doubtful=True, detail="")
        case "connect":
            return NoAnswer("connect", doubtful=False, detail="")
        case "garbage":
            return Answer(200, None, excerpt="<html>")
        case "empty":
            return Answer(200, {"results": [], "errors": []})
        case "silent":
            return ok(sent[1:])
        case "unknown":
            return ok(sent[1:], [{"category": "OBJECT_NOT_FOUND", "context": about}])
        case "invalid":
            return ok(sent[1:], [{"category": "VALIDATION_ERROR", "context": {**about, "propertyName": ["a"]}}])
        case "transient":
            return ok(sent[1:], [{"category": "RATE_LIMITS", "context": about}])
        case "400":
            return refused_whole()
        case "400 named":
            return refused_whole(errors=[{"code": "INVALID_X", "context": {"propertyName": ["a"]}}])
        case "400 id":
            return refused_whole("Unable to perform update by non-unique property acme_client_id")
        case "duplicate":
            return refused_whole("Duplicate IDs found in batch input", context={"ids": [first.record.key.id]})
        case "pending":
            return Answer(200, {"status": "PENDING", "results": []})
        case "raise":
            raise TypeError("unencodable")
        case status:
            return Answer(int(status), {"message": "no"}, headers={"retry-after": "3"})


class Rig:
    """A dispatcher whose calls the test lets go one at a time."""

    def __init__(self, kinds: list[str], seed: int) -> None:
        self.clock = FakeClock()
        self.journal = FakeJournal(self.clock)
        self.kinds = kinds
        self.chance = random.Random(seed)
        self.pool = HeldPool()
        self.crm = FakeCrm(lambda _, sent: answer(self.kinds.pop() if self.kinds else "ok", sent))
        self.dispatcher = Dispatcher(
            journal=self.journal,
            crm=self.crm,
            settings=Crm(batch_size=4, max_in_flight=3, rate_limit=RateLimit(1_000, 1e-12)),
            retry=Retry(base_s=0.5, max_s=4.0, give_up_after_s=3_600.0),
            on_unknown=lambda _: "park",
            clock=self.clock,
            observer=FakeObserver(),
            pool=self.pool,
            backoff=Backoff(base_s=0.5, max_s=4.0, chance=random.Random(seed)),
        )

    def step(self, seconds: float) -> None:
        self.clock.pass_(seconds)
        self.dispatcher.run_once()
        works = list(self.dispatcher._state.open)
        refs = [ref for work in works for ref in work.refs]
        assert len(refs) == len(set(refs)), "a record is in two open calls"
        while self.pool.jobs and self.chance.random() < 0.7:
            self.pool.release(self.chance.randrange(len(self.pool.jobs)))


@settings(max_examples=examples(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.lists(st.sampled_from(KINDS), max_size=40),
    count=st.integers(1, 14),
    fails=st.lists(st.integers(1, 60), max_size=4),
    seed=st.integers(0, 10_000),
)
def test_every_record_ends_delivered_parked_or_refused(
    kinds: list[str], count: int, fails: list[int], seed: int
) -> None:
    """Whatever the CRM answers and whenever the journal fails: once both are well, nothing is left."""
    rig = Rig(list(kinds), seed)
    for ref in range(count):
        rig.journal.put(ref, {"a": "1", "b": "2"}, lane=CLIENTS if ref % 3 else BY_RECORD_ID)
    for tick in range(1, 400):
        if tick in fails:
            rig.journal.fails = 2
        if tick % 30 == 0 and tick < 200:
            rig.journal.put(rig.chance.randrange(count), {"a": str(tick)})
        rig.step(0.25)
    rig.kinds.clear()
    for _ in range(2_000):
        rig.step(0.25)
        if not {"due", "retrying"} & rig.journal.states().keys() and not rig.pool.jobs:
            break
    assert not {"due", "retrying"} & rig.journal.states().keys()
    assert not rig.dispatcher._state.held()
    for ref, row in rig.journal.rows.items():
        if row.parked is None:
            held = rig.crm.state.get(ref, {})
            assert {name: held[name] for name in row.delivered} == row.delivered


def test_with_real_threads_no_record_is_in_two_calls_and_all_are_delivered() -> None:
    clock = SystemClock()
    fake_time = FakeClock(seconds=time.monotonic())
    journal = FakeJournal(fake_time)
    lock = threading.Lock()
    open_now: set[int] = set()
    clashes: list[int] = []
    chance = random.Random(3)

    def script(_: Lane, sent: Sequence[Input]) -> Answer:
        refs = [one.record.ref for one in sent]
        with lock:
            clashes.extend(ref for ref in refs if ref in open_now)
            open_now.update(refs)
            bad = chance.random() < 0.1 and len(sent) > 1
        time.sleep(0.003)
        with lock:
            open_now.difference_update(refs)
        return refused_whole() if bad else ok(sent)

    crm = FakeCrm(script)
    locked = _Locked(journal)
    for ref in range(2_000):
        journal.put(ref, {"a": "1"})
    dispatcher = Dispatcher(
        journal=locked,
        crm=crm,
        settings=Crm(batch_size=20, max_in_flight=4, rate_limit=RateLimit(1_000, 0.1), flush_interval_s=0.05),
        retry=Retry(base_s=0.01, max_s=0.05),
        on_unknown=lambda _: "park",
        clock=clock,
        observer=FakeObserver(),
    )
    dispatcher.start()
    assert dispatcher.is_running
    assert dispatcher.drain(timeout_s=20)
    assert clashes == []
    states = journal.states()
    assert states.pop("parked", 0) <= 20  # a single record may meet the 400 alone
    assert states.keys() == {"delivered"}
    assert crm.closed
    assert dispatcher.in_flight == 0
    assert clock.monotonic() - dispatcher.last_progress < 20


class _Locked(FakeJournal):
    """One transaction at a time."""

    def __init__(self, inner: FakeJournal) -> None:
        super().__init__(inner.clock)
        self.rows = inner.rows
        self._lock = threading.RLock()

    def __getattribute__(self, name: str) -> object:
        found = super().__getattribute__(name)
        if name not in {"due", "take", "settle"}:
            return found
        lock = super().__getattribute__("_lock")

        def locked(*args: object, **options: object) -> object:
            with lock:
                return found(*args, **options)

        return locked


def test_stop_ends_a_hanging_call_soon() -> None:
    released = threading.Event()

    class Hanging(FakeCrm):
        def close(self) -> None:
            super().close()
            released.set()

    def hang(_: Lane, __: Sequence[Input]) -> NoAnswer:
        released.wait(10)
        return NoAnswer("timeout", doubtful=True, detail="cut")

    journal = FakeJournal(FakeClock(seconds=time.monotonic()))
    journal.put(1, {"a": "1"})
    dispatcher = Dispatcher(
        journal=journal,
        crm=Hanging(hang),
        settings=Crm(flush_interval_s=0.01),
        retry=Retry(),
        on_unknown=lambda _: "park",
        clock=SystemClock(),
        observer=FakeObserver(),
    )
    dispatcher.start()
    deadline = time.monotonic() + 5
    while not dispatcher.in_flight and time.monotonic() < deadline:
        time.sleep(0.01)
    began = time.monotonic()
    assert not dispatcher.drain(timeout_s=0.3)
    assert time.monotonic() - began < 2
    assert dispatcher.in_flight == 0
    assert journal.rows[1].in_doubt
    assert journal.state(1) == "due"
