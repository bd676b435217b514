"""Stand-ins for what delivery talks to: a journal, a CRM, clocks and threads, all in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bridge.crm.transport import Answer, Input, NoAnswer
from bridge.delivery.ports import CallSummary
from bridge.errors import JournalUnavailableError
from bridge.model import (
    MICROSECONDS,
    Call,
    Delivered,
    Due,
    Ignored,
    Lane,
    Outcome,
    Parked,
    Pause,
    PendingRecord,
    Reason,
    RecordKey,
    Refused,
    RetryLater,
    Taken,
    Value,
)

CLIENTS = Lane("partner_clients", "acme_client_id")
BY_RECORD_ID = Lane("partner_clients")


@dataclass
class FakeClock:
    """Time that passes when told."""

    seconds: float = 1_000.0
    epoch: float = 1_700_000_000.0

    def now(self) -> float:
        return self.epoch + self.seconds

    def monotonic(self) -> float:
        return self.seconds

    def pass_(self, seconds: float) -> None:
        self.seconds += seconds


def record(
    ref: int,
    values: Mapping[str, str] | None = None,
    *,
    lane: Lane = CLIENTS,
    n: int = 1,
    attempts: int = 0,
    failing_since_us: int | None = None,
) -> PendingRecord:
    """A pending record whose id is its reference."""
    told = {"name": f"Client {ref}"} if values is None else values
    return PendingRecord(
        ref,
        RecordKey(lane, str(ref)),
        n,
        {name: Value(value, n) for name, value in told.items()},
        attempts=attempts,
        failing_since_us=failing_since_us,
    )


def inputs(*records: PendingRecord) -> list[Input]:
    return [Input(one, f"t{one.ref}") for one in records]


def confirmed(sent: Iterable[Input]) -> list[dict[str, Any]]:
    """The `results` that confirm these inputs, with HubSpot's own record ids."""
    results = []
    for one in sent:
        key = one.record.key
        own = {key.lane.id_property: key.id} if key.lane.id_property else {}
        results.append({"id": f"9{key.id}" if own else key.id, "properties": own, "objectWriteTraceId": one.trace_id})
    return results


def ok(sent: Iterable[Input], errors: Sequence[Any] = ()) -> Answer:
    """A 200 or 207."""
    body = {"status": "COMPLETE", "results": confirmed(sent), "errors": list(errors)}
    return Answer(207 if errors else 200, body)


def refused_whole(message: str = "nope", **more: Any) -> Answer:
    return Answer(400, {"status": "error", "category": "VALIDATION_ERROR", "message": message, **more})


@dataclass
class _Row:
    key: RecordKey
    n: int = 0
    pending: dict[str, Value] = field(default_factory=dict)
    delivered: dict[str, str] = field(default_factory=dict)
    refused: dict[str, Reason] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)  # source → due at (µs)
    parked: Reason | None = None
    attempts: int = 0
    failing_since_us: int | None = None
    in_doubt: bool = False


class FakeJournal:
    """The desired state in memory, with the journal's guards."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.rows: dict[int, _Row] = {}
        self.calls: list[Call] = []
        self.stored_pauses: list[Pause] = []
        self.fails = 0  # so many of the next transactions fail
        self.ignored: list[int] = []
        self.readings: list[int] = []
        self.looks = 0  # how often it was asked what is due

    def put(self, ref: int, values: Mapping[str, str], *, source: str = "acme", lane: Lane = CLIENTS) -> None:
        """An event asks for these values."""
        row = self.rows.setdefault(ref, _Row(RecordKey(lane, str(ref))))
        row.n += 1
        row.pending.update({name: Value(value, row.n) for name, value in values.items()})
        for name in values:
            row.refused.pop(name, None)
        row.parked = None
        row.sources.setdefault(source, self._now_us())

    def state(self, ref: int) -> str:
        row = self.rows[ref]
        if row.parked is not None:
            return "parked"
        if row.pending:
            return "retrying" if row.attempts else "due"
        return "refused" if row.refused else "delivered"

    def states(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for ref in self.rows:
            counts[self.state(ref)] = counts.get(self.state(ref), 0) + 1
        return counts

    # --- the protocol -------------------------------------------------------------------------

    def note_reading(self, at_us: int) -> None:
        self._maybe_fail()
        self.readings.append(at_us)

    def calls_since(self, since_us: int) -> int:
        self._maybe_fail()
        return sum(call.started_at_us >= since_us for call in self.calls)

    def due(self, *, limit: int, exclude: Collection[int]) -> Sequence[Due]:
        self._maybe_fail()
        self.looks += 1
        now_us = self._now_us()
        queues: dict[tuple[Lane, str], list[Due]] = {}
        for ref, row in self.rows.items():
            if row.parked is not None or ref in exclude or not row.pending:
                continue
            for source, due_at_us in row.sources.items():
                if due_at_us <= now_us:
                    queue = queues.setdefault((row.key.lane, source), [])
                    queue.append(Due(ref, row.key.lane, source, due_at_us))
        found: list[Due] = []
        for queue in queues.values():
            found.extend(sorted(queue, key=lambda due: due.due_at_us)[:limit])
        return found

    def take(
        self, refs: Sequence[int], *, began_at_us: int, max_bytes: int, only: Collection[str] | None = None
    ) -> Taken:
        self._maybe_fail()
        taken: list[PendingRecord] = []
        left = {}
        size = 0
        for ref in refs:
            row = self.rows[ref]
            values = {name: value for name, value in row.pending.items() if only is None or name in only}
            if not values or row.parked is not None:
                continue
            while only is None and size + _bytes(values) > max_bytes and len(values) > (1 if not taken else 0):
                values.popitem()
            if not values or (taken and len(values) < len(row.pending)):
                left[ref] = _bytes(row.pending)
                continue
            size += _bytes(values)
            row.in_doubt = True
            taken.append(
                PendingRecord(ref, row.key, row.n, values, tuple(row.sources), row.attempts, row.failing_since_us)
            )
        return Taken(taken, left, min(size, max_bytes))

    def settle(
        self,
        taken: Sequence[PendingRecord],
        outcomes: Sequence[Outcome],
        *,
        call: Call | None,
        doubtful: bool,
    ) -> None:
        self._maybe_fail()
        for one in taken:
            self.rows[one.ref].in_doubt = doubtful
        for outcome in outcomes:
            self._apply(self.rows[outcome.record.ref], outcome)
        if call is not None:
            self.calls.append(call)

    def clock_was_set(self, by_us: int) -> None:
        self._maybe_fail()

    def save_pauses(self, pauses: Sequence[Pause]) -> None:
        self._maybe_fail()
        operators = [pause for pause in self.stored_pauses if pause.reason == "operator"]
        self.stored_pauses = [*operators, *pauses]

    def load_pauses(self) -> Sequence[Pause]:
        self._maybe_fail()
        return list(self.stored_pauses)

    # --- below --------------------------------------------------------------------------------

    def _apply(self, row: _Row, outcome: Outcome) -> None:
        judged = outcome.record
        match outcome:
            case Delivered():
                self._settled(row, judged, row.delivered)
            case Ignored():
                self._settled(row, judged, {})
                self.ignored.append(judged.ref)
            case Refused(properties=properties):
                for name, reason in properties.items():
                    if row.pending.get(name) == judged.values[name]:
                        del row.pending[name]
                        row.refused[name] = reason
            case RetryLater() if row.n == judged.n:
                due_at_us = self._now_us() + math.ceil(outcome.delay_s * MICROSECONDS)
                row.sources = dict.fromkeys(row.sources, due_at_us)
                row.attempts += outcome.own_failure
                row.failing_since_us = row.failing_since_us or self._now_us()
            case Parked(reason=reason) if row.n == judged.n:
                row.parked = reason
            case _:
                pass

    def _settled(self, row: _Row, judged: PendingRecord, into: dict[str, str]) -> None:
        for name, value in judged.values.items():
            if row.pending.get(name) == value:
                del row.pending[name]
                into[name] = value.value
        if not row.pending:
            row.attempts, row.failing_since_us = 0, None

    def _maybe_fail(self) -> None:
        if self.fails > 0:
            self.fails -= 1
            raise JournalUnavailableError("the disk is full")

    def _now_us(self) -> int:
        return round(self.clock.now() * MICROSECONDS)


def _bytes(values: Mapping[str, Value]) -> int:
    return sum(len(name) + len(value.value.encode()) for name, value in values.items())


Script = Callable[[Lane, Sequence[Input]], Answer | NoAnswer]


class FakeCrm:
    """Answers as its script says, keeps what it was asked, and what a 2xx made it hold."""

    def __init__(self, script: Script | None = None) -> None:
        self.script = script if script is not None else (lambda _, sent: ok(sent))
        self.calls: list[tuple[Lane, tuple[Input, ...]]] = []
        self.state: dict[int, dict[str, str]] = {}
        self.token = "one"
        self.closed = False
        self.open: set[int] = set()

    def update(self, lane: Lane, inputs: Sequence[Input]) -> Answer | NoAnswer:
        self.calls.append((lane, tuple(inputs)))
        answer = self.script(lane, inputs)
        if isinstance(answer, Answer):
            answer = replace(answer, credential=self.token)
            if answer.status < 300 and isinstance(answer.body, dict):
                told = {result.get("objectWriteTraceId") for result in answer.body.get("results", [])}
                for one in inputs:
                    if one.trace_id in told:
                        values = {name: value.value for name, value in one.record.values.items()}
                        self.state.setdefault(one.record.ref, {}).update(values)
        return answer

    def prepare(self) -> None:
        pass

    def credential(self) -> str:
        return self.token

    def close(self) -> None:
        self.closed = True

    @property
    def sizes(self) -> list[int]:
        return [len(sent) for _, sent in self.calls]


class FakeObserver:
    def __init__(self) -> None:
        self.settled: list[CallSummary] = []
        self.pauses: list[list[str]] = []
        self.errors: list[str] = []
        self.waited_s = 0.0

    def called(self, settled: CallSummary) -> None:
        self.settled.append(settled)

    def waited(self, seconds: float) -> None:
        self.waited_s += seconds

    def paused(self, pauses: Sequence[Pause]) -> None:
        self.pauses.append([pause.reason for pause in pauses])

    def stumbled(self, error: str) -> None:
        self.errors.append(error)


class InlinePool:
    """Runs a call within the step that began it."""

    def submit(self, job: Callable[[], None]) -> None:
        job()

    def close(self) -> None:
        pass


class HeldPool:
    """Keeps calls until the test lets them go, in any order."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def submit(self, job: Callable[[], None]) -> None:
        self.jobs.append(job)

    def close(self) -> None:
        pass

    def release(self, place: int = 0) -> None:
        self.jobs.pop(place)()
