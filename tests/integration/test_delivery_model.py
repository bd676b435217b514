"""Journal and delivery against a model: whatever happens on the way, every accepted value has a known end.

A state machine of hypothesis drives the real journal (a SQLite file) and the real dispatcher. Events come in any
order, doubled, late, without a time; the CRM refuses, does not know, answers 400, 429, 500, nonsense or nothing,
applies calls whose answer is lost, also up to 100 s later; the process dies at any call; people replay and discard.
In the end the CRM is well, time passes, and the CRM's state must equal the model's.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bridge.delivery.dispatcher import Dispatcher
from bridge.delivery.limiter import Limiter
from bridge.delivery.pauses import Backoff
from bridge.delivery.ports import Answer, Input, NoAnswer, Settled
from bridge.journal import versions
from bridge.journal.retry_log import Filter, KeptEvent, Remapped
from bridge.journal.store import Journal
from bridge.model import Event, Intake, Lane, Pause, PropertyUpdate, to_us
from bridge.settings import Crm as CrmSettings
from bridge.settings import Journal as JournalSettings
from bridge.settings import RateLimit, Retry
from tests.builders import LANE, event, key
from tests.fakes import FakeClock

#: The CRM refuses this value, and knows no record whose id begins with this letter.
BAD, UNKNOWN = "bad", "u"

MOODS = (
    "ok", "rejects-whole", "429", "500", "garbage", "empty", "lost", "lost-applied", "lost-late", "refused-connection",
    "crash", "crash-applied", "401",
)  # fmt: skip


class Died(BaseException):
    """The process is killed in the middle of a call."""


@dataclass
class ModelCrm:
    """A CRM of few words, in memory: applies values, refuses `BAD`, and fails as its mood says."""

    clock: FakeClock
    chance: random.Random
    moods: list[str] = field(default_factory=list)
    state: dict[tuple[str, str], str] = field(default_factory=dict)
    late: list[tuple[float, dict[tuple[str, str], str]]] = field(default_factory=list)
    before_answer: list[Callable[[], None]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    open_records: set[str] = field(default_factory=set)
    calls: int = 0

    def update(self, lane: Lane, inputs: Sequence[Input]) -> Answer | NoAnswer:
        self.calls += 1
        ids = [one.record.key.id for one in inputs]
        self._check(lane, ids, inputs)
        self.open_records.update(ids)
        try:
            while self.before_answer:
                self.before_answer.pop()()
            return self._answer(inputs, self.moods.pop(0) if self.moods else "ok")
        finally:
            self.open_records.difference_update(ids)

    def prepare(self) -> None:
        pass

    def credential(self) -> str:
        return "token"

    def close(self) -> None:
        pass

    def _check(self, lane: Lane, ids: list[str], inputs: Sequence[Input]) -> None:
        if len(ids) != len(set(ids)):
            self.violations.append(f"a record twice in one call: {ids}")
        if self.open_records & set(ids):
            self.violations.append(f"a record in two open calls: {self.open_records & set(ids)}")
        if not 1 <= len(ids) <= 100 or lane != LANE:
            self.violations.append(f"{len(ids)} inputs for {lane}")
        if any(not isinstance(value.value, str) for one in inputs for value in one.record.values.values()):
            self.violations.append("a value that is no string")

    def _answer(self, inputs: Sequence[Input], mood: str) -> Answer | NoAnswer:
        if mood == "refused-connection":
            return NoAnswer("connect", doubtful=False, detail="refused")
        if mood == "429":
            return Answer(429, {"status": "error", "errorType": "RATE_LIMIT", "policyName": "TEN_SECONDLY_ROLLING"})
        if mood == "401":
            return Answer(401, {"category": "EXPIRED_AUTHENTICATION"}, credential="token")
        if mood == "500":
            return Answer(500, {"status": "error", "message": "internal error"})
        if mood == "lost":
            return NoAnswer("timeout", doubtful=True, detail="no answer")
        if mood == "crash":
            raise Died
        results, errors, applied = self._judge(inputs)
        if mood == "lost-late":
            self.late.append((self.clock.monotonic() + self.chance.uniform(1, 99), applied))
            return NoAnswer("timeout", doubtful=True, detail="no answer")
        if mood == "rejects-whole" and any(BAD in self._values(one) for one in inputs):
            return self._whole_400(inputs)
        if mood == "empty":
            return Answer(200, {"status": "COMPLETE", "results": []})
        self.state |= applied
        if mood == "crash-applied":
            raise Died
        if mood == "lost-applied":
            return NoAnswer("reset", doubtful=True, detail="reset")
        if mood == "garbage":
            return Answer(200, None, "<html>")
        self.chance.shuffle(results)
        return Answer(207 if errors else 200, {"status": "COMPLETE", "results": results, "errors": errors})

    def _values(self, one: Input) -> set[str]:
        return {value.value for value in one.record.values.values()}

    def _judge(self, inputs: Sequence[Input]) -> tuple[list[Any], list[Any], dict[tuple[str, str], str]]:
        results: list[Any] = []
        errors: list[Any] = []
        applied: dict[tuple[str, str], str] = {}
        for one in inputs:
            record = one.record
            wrong = sorted(name for name, value in record.values.items() if value.value == BAD)
            if record.key.id.startswith(UNKNOWN):
                errors.append(
                    {"category": "OBJECT_NOT_FOUND", "message": "not there", "context": {"ids": [record.key.id]}}
                )
            elif wrong:
                context = {"objectWriteTraceId": [one.trace_id], "propertyName": wrong}
                errors.append({"category": "VALIDATION_ERROR", "message": "not valid", "context": context})
            else:
                applied |= {(record.key.id, name): value.value for name, value in record.values.items()}
                results.append({"id": f"9{record.key.id}", "properties": {LANE.id_property: record.key.id}})
        return results, errors, applied

    def _whole_400(self, inputs: Sequence[Input]) -> Answer:
        """Names the property and the value, not the input, as HubSpot does without trace ids."""
        names = {name for one in inputs for name, value in one.record.values.items() if value.value == BAD}
        errors = [
            {"message": f"{BAD} was not valid", "code": "INVALID_OPTION", "context": {"propertyName": [name]}}
            for name in sorted(names)
        ]
        message = f"Property values were not valid: {BAD}"
        return Answer(400, {"status": "error", "category": "VALIDATION_ERROR", "message": message, "errors": errors})

    def let_time_pass(self) -> None:
        """Apply what lands late by now."""
        for at, applied in list(self.late):
            if at <= self.clock.monotonic():
                self.state |= applied
                self.late.remove((at, applied))


class AtOnce:
    """Runs each call where it is submitted: every run is repeatable."""

    def submit(self, job: Callable[[], None]) -> None:
        job()

    def close(self) -> None:
        pass


class Deaf:
    """Watches nothing."""

    def called(self, settled: Settled) -> None: ...

    def waited(self, seconds: float) -> None: ...

    def paused(self, pauses: Sequence[Pause]) -> None: ...

    def stumbled(self, error: str) -> None:
        raise AssertionError(f"delivery stumbled: {error}")


VALUES = st.sampled_from(["a", "b", "c", "", BAD])
ASKS = st.tuples(
    st.sampled_from(["1", "2", "3", "4", "u1"]),
    st.dictionaries(st.sampled_from(["p", "q", "r"]), VALUES, min_size=1, max_size=3),
    st.sampled_from([None, -400, -60, -60, -1, 0, 30, 100_000]),
)


class DeliveryMachine(RuleBasedStateMachine):
    """The rules; `model` holds the newest value of each property by (time, arrival)."""

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="model-"))
        self.url = f"sqlite:///{self.folder}/journal.db"
        versions.prepare(self.url)
        self.chance = random.Random(seed)
        self.clock = FakeClock()
        self.crm = ModelCrm(self.clock, self.chance)
        self.model: dict[tuple[str, str], tuple[int, int, str]] = {}
        self.newest: dict[str, int] = {}
        self.sent: list[Event] = []
        self.asked: dict[str, tuple[str, dict[str, str]]] = {}
        self.open()

    def open(self) -> None:
        self.journal = Journal(settings=JournalSettings(url=self.url), clock=self.clock, retry_max_s=8.0)
        self.dispatcher = Dispatcher(
            journal=self.journal,
            crm=self.crm,
            settings=CrmSettings(batch_size=3, flush_interval_s=0.1, rate_limit=RateLimit(10_000, 1.0)),
            retry=Retry(base_s=0.5, max_s=8.0, give_up_after_s=10_000),
            on_unknown=lambda record: "park",
            clock=self.clock,
            observer=Deaf(),
            pool=AtOnce(),
            limiter=Limiter(calls=10_000, per_s=1.0),
            backoff=Backoff(base_s=0.5, max_s=8.0, chance=self.chance),
        )
        self.dispatcher.restore_pauses()

    # --- what can happen ---

    @rule(asks=st.lists(ASKS, min_size=1, max_size=4))
    def events_arrive(self, asks: list[tuple[str, dict[str, str], int | None]]) -> None:
        self.append([self.make(record, properties, offset) for record, properties, offset in asks])

    @rule(ask=ASKS)
    def an_event_arrives_during_the_next_call(self, ask: tuple[str, dict[str, str], int | None]) -> None:
        self.crm.before_answer.append(lambda: self.append([self.make(*ask)]))

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 10_000))
    def an_event_is_delivered_again(self, which: int) -> None:
        again = self.sent[which % len(self.sent)]
        [receipt] = self.journal.append([again]).receipts
        assert (receipt.intake, receipt.conflict) == (Intake.DUPLICATE, False)

    @rule(moods=st.lists(st.sampled_from(MOODS), min_size=1, max_size=4))
    def the_crm_is_moody(self, moods: list[str]) -> None:
        self.crm.moods = moods

    @rule(steps=st.integers(1, 6))
    def delivery_works(self, steps: int) -> None:
        for _ in range(steps):
            self.step(0.2)

    @rule(seconds=st.sampled_from([0.05, 1.0, 10.0, 130.0]))
    def time_passes(self, seconds: float) -> None:
        self.step(seconds)

    @rule()
    def the_process_is_restarted(self) -> None:
        self.journal.close()
        self.open()

    @rule()
    def a_person_replays_everything(self) -> None:
        self.journal.replay(self.journal.entries(Filter()), self.remap)

    # --- how ---

    def make(self, record: str, properties: dict[str, str], offset: int | None) -> Event:
        at = None if offset is None else self.clock.now() + offset
        made = event(f"e{len(self.asked)}", record, properties, at=at)
        self.asked[made.id] = (record, properties)
        return made

    def append(self, events: list[Event]) -> None:
        now_us = to_us(self.clock.now())
        # As the journal dates them: missing or too far ahead is the newest at its arrival.
        claims: dict[str, int] = {}
        dated: list[tuple[Event, int | None]] = []
        for one in events:
            time_us = one.occurred_at_us
            if time_us is not None and time_us > now_us + 300 * 1_000_000:
                time_us = None
            record = one.updates[0].record.id
            claims[record] = max(claims.get(record, self.newest.get(record, 0)), now_us if time_us is None else time_us)
            dated.append((one, time_us))
        self.newest |= claims
        for one, time_us in dated:
            record, properties = self.asked[one.id]
            when = claims[record] if time_us is None else time_us
            for name, value in properties.items():
                newer = (when, len(self.sent), value)
                self.model[record, name] = max(self.model.get((record, name), newer), newer)
            self.sent.append(one)
        receipts = self.journal.append(events).receipts
        assert [receipt.intake for receipt in receipts] == [Intake.ACCEPTED] * len(events)

    def remap(self, kept: KeptEvent) -> Remapped:
        record, properties = self.asked[kept.event_id]
        return Remapped((PropertyUpdate(key(record), properties),))

    def step(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.crm.let_time_pass()
        try:
            self.dispatcher.run_once()
        except Died:
            self.journal.close()
            self.open()

    # --- what must hold ---

    @invariant()
    def the_contract_is_never_broken(self) -> None:
        if hasattr(self, "crm"):
            assert self.crm.violations == []

    def teardown(self) -> None:
        if not hasattr(self, "crm"):
            return
        try:
            self.crm.moods = []
            for _ in range(600):
                self.step(1.0)
            self.check_the_end()
        finally:
            self.journal.close()
            shutil.rmtree(self.folder)

    def check_the_end(self) -> None:
        assert self.crm.violations == []
        # Nothing waits any more, and nothing was parked but what the CRM does not know or take.
        assert self.journal.due(limit=100, exclude=()) == []
        entries = self.journal.entries(Filter())
        assert [entry for entry in entries if entry.state == "retrying"] == []
        parked = {entry.record for entry in entries if entry.id.startswith("record-")}
        refused = {
            (entry.record, name) for entry in entries if entry.id.startswith("refused-") for name in entry.properties
        }
        bad = {(record, name) for (record, name), (_, _, value) in self.model.items() if value == BAD}
        # A bad value of an unknown record is found out only where a whole call was refused for it.
        assert {one for one in bad if not one[0].startswith(UNKNOWN)} <= refused <= bad
        assert parked == {
            record for record, name in self.model if record.startswith(UNKNOWN) and (record, name) not in refused
        }
        for (record, name), (_, _, value) in self.model.items():
            if not record.startswith(UNKNOWN) and value != BAD:
                assert self.crm.state.get((record, name)) == value, (record, name)
        # Every event's fate is known.
        for one in self.sent:
            [story] = self.journal.trace_event(one.id)
            fates = {fate["fate"] for asked in story["records"] for fate in asked["properties"]}
            assert fates <= {"delivered", "superseded", "refused", "parked"}, (one.id, fates)


DeliveryMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("MODEL_EXAMPLES", "40")),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestDelivery = DeliveryMachine.TestCase
