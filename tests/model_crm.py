"""The CRM of the model-based tests: few words, in memory, with every way to fail that HubSpot has."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.crm.transport import Answer, Input, NoAnswer
from bridge.model import Lane
from tests.builders import LANE
from tests.fakes import FakeClock

#: The CRM refuses this value, and knows no record whose id begins with one of these letters: the source of such a
#: record says to park it, to wait for it, or to ignore it.
BAD = "bad"
PARK, WAIT, IGNORE = "u", "w", "i"

SERVICES = Lane("partner_services", "acme_service_id")

MOODS = (
    "ok", "rejects-whole", "429", "500", "garbage", "empty", "lost", "lost-applied", "lost-late", "refused-connection",
    "crash", "crash-applied", "401", "403",
)  # fmt: skip

Values = dict[tuple[str, str], str]


def lane_of(record: str) -> Lane:
    """The lane that a record of these tests belongs to."""
    return SERVICES if record.startswith("s") else LANE


class Died(BaseException):
    """The process is killed in the middle of a call."""


@dataclass
class ModelCrm:
    """Applies values, refuses `BAD`, and fails as its moods say, one a call. `paused` are the object types that
    people have paused, and the dispatcher knows it.
    """

    clock: FakeClock
    chance: random.Random
    moods: list[str] = field(default_factory=list)
    created: set[str] = field(default_factory=set)
    paused: set[str] = field(default_factory=set)
    state: Values = field(default_factory=dict)
    late: list[tuple[float, Values]] = field(default_factory=list)
    before_answer: list[Callable[[], object]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    open_records: set[str] = field(default_factory=set)
    calls: int = 0

    def update(self, lane: Lane, inputs: Sequence[Input]) -> Answer | NoAnswer:
        """One call; what is to happen meanwhile happens before the answer."""
        self.calls += 1
        ids = [one.record.key.id for one in inputs]
        self._check(lane, ids, inputs)
        self.open_records.update(ids)
        mood = self.moods.pop(0) if self.moods else "ok"
        try:
            happening, self.before_answer = self.before_answer, []
            for happen in happening:
                happen()
            return self._answer(lane, inputs, mood)
        finally:
            self.open_records.difference_update(ids)

    def prepare(self) -> None:
        pass

    def credential(self) -> str:
        return "token"

    def close(self) -> None:
        pass

    def knows(self, record: str) -> bool:
        return not record.startswith((PARK, WAIT, IGNORE)) or record in self.created

    def let_time_pass(self) -> None:
        """Apply what lands late by now."""
        for at, applied in list(self.late):
            if at <= self.clock.monotonic():
                self.state |= applied
                self.late.remove((at, applied))

    def _check(self, lane: Lane, ids: list[str], inputs: Sequence[Input]) -> None:
        if len(ids) != len(set(ids)):
            self.violations.append(f"a record twice in one call: {ids}")
        if self.open_records & set(ids):
            self.violations.append(f"a record in two open calls: {self.open_records & set(ids)}")
        if not 1 <= len(ids) <= 100 or any(lane != lane_of(record) for record in ids):
            self.violations.append(f"{len(ids)} inputs for {lane}")
        if any(not isinstance(value.value, str) for one in inputs for value in one.record.values.values()):
            self.violations.append("a value that is no string")
        if lane.object_type in self.paused or "" in self.paused:
            self.violations.append(f"a call for {lane} while {self.paused} is paused")

    def _answer(self, lane: Lane, inputs: Sequence[Input], mood: str) -> Answer | NoAnswer:
        if mood == "refused-connection":
            return NoAnswer("connect", doubtful=False, detail="refused")
        if mood == "429":
            return Answer(429, {"status": "error", "errorType": "RATE_LIMIT", "policyName": "TEN_SECONDLY_ROLLING"})
        if mood == "401":
            return Answer(401, {"category": "EXPIRED_AUTHENTICATION"}, credential="token")
        if mood == "403":
            return Answer(403, {"category": "MISSING_SCOPES"})
        if mood == "500":
            return Answer(500, {"status": "error", "message": "internal error"})
        if mood == "lost":
            return NoAnswer("timeout", doubtful=True, detail="no answer")
        if mood == "crash":
            raise Died
        results, errors, applied = self._judge(lane, inputs)
        if mood == "lost-late":
            self.late.append((self.clock.monotonic() + self.chance.uniform(1, 99), applied))
            return NoAnswer("timeout", doubtful=True, detail="no answer")
        if mood == "rejects-whole" and any(BAD in _values(one) for one in inputs):
            return _whole_400(inputs)
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

    def _judge(self, lane: Lane, inputs: Sequence[Input]) -> tuple[list[Any], list[Any], Values]:
        results: list[Any] = []
        errors: list[Any] = []
        applied: Values = {}
        for one in inputs:
            record = one.record
            wrong = sorted(name for name, value in record.values.items() if value.value == BAD)
            if not self.knows(record.key.id):
                errors.append(
                    {"category": "OBJECT_NOT_FOUND", "message": "not there", "context": {"ids": [record.key.id]}}
                )
            elif wrong:
                context = {"objectWriteTraceId": [one.trace_id], "propertyName": wrong}
                errors.append({"category": "VALIDATION_ERROR", "message": "not valid", "context": context})
            else:
                applied |= {(record.key.id, name): value.value for name, value in record.values.items()}
                results.append({"id": f"9{record.key.id}", "properties": {lane.id_property: record.key.id}})
        return results, errors, applied


def _values(one: Input) -> set[str]:
    return {value.value for value in one.record.values.values()}


def _whole_400(inputs: Sequence[Input]) -> Answer:
    """Names the property and the value, not the input, as HubSpot does without trace ids."""
    names = {name for one in inputs for name, value in one.record.values.items() if value.value == BAD}
    errors = [
        {"message": f"{BAD} was not valid", "code": "INVALID_OPTION", "context": {"propertyName": [name]}}
        for name in sorted(names)
    ]
    message = f"Property values were not valid: {BAD}"
    return Answer(400, {"status": "error", "category": "VALIDATION_ERROR", "message": message, "errors": errors})
