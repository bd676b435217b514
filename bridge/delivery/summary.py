"""What is told of a call: a row for the journal, a value for the metrics, one line for the log."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from bridge.delivery.board import Work
from bridge.delivery.calls import Answer, NoAnswer
from bridge.delivery.meanings import Again, Broken, Judged, Locked, Meaning, Rejected, Stopped, TooLarge
from bridge.delivery.ports import Settled
from bridge.model import Call, Delivered, Ignored, Outcome, Parked, Pause, Refused, RetryLater


def summary(
    work: Work, outcomes: Sequence[Outcome], answer: Answer | NoAnswer, meaning: Meaning, *, records: int
) -> Settled:
    """What this call came to, in ids and counts."""
    counts = Counter(type(outcome) for outcome in outcomes)
    return Settled(
        lane=work.lane,
        code=str(answer.status) if isinstance(answer, Answer) else answer.kind,
        duration_s=answer.duration_s,
        records=records,
        delivered=counts[Delivered],
        refused=counts[Refused],
        retried=counts[RetryLater],
        parked=counts[Parked],
        ignored=counts[Ignored],
        correlation_id=answer.correlation_id if isinstance(answer, Answer) else None,
        error=_explained(meaning)[0],
        step=work.step.value,
        sources=tuple(sorted({source for outcome in outcomes for source in outcome.record.sources})),
    )


def call_of(settled: Settled, answer: Answer | NoAnswer, meaning: Meaning, *, began_at_us: int) -> Call:
    """The row that `trace` and the console show; unlike the log it may quote the CRM."""
    word, message = _explained(meaning)
    return Call(
        lane=settled.lane,
        started_at_us=began_at_us,
        duration_s=settled.duration_s,
        status=answer.status if isinstance(answer, Answer) else None,
        correlation_id=settled.correlation_id,
        records=settled.records,
        error=None if word is None else f"{word}: {message}"[:300],
    )


def log_call(log: FilteringBoundLogger, settled: Settled) -> None:
    """One line a call: never a value, nor a message of the CRM's, which quotes values."""
    write = log.info if settled.error is None else log.warning
    write(
        "crm call",
        object_type=settled.lane.object_type,
        id_property=settled.lane.id_property or None,
        sources=settled.sources,
        step=settled.step,
        code=settled.code,
        duration_ms=round(settled.duration_s * 1000),
        records=settled.records,
        delivered=settled.delivered,
        refused=settled.refused,
        retried=settled.retried,
        parked=settled.parked,
        ignored=settled.ignored,
        correlation_id=settled.correlation_id,
        error=settled.error,
    )


def log_pauses(log: FilteringBoundLogger, *, before: Collection[Pause], now: Collection[Pause]) -> None:
    """A line for each pause that began, was lengthened, or is over."""
    held = {(pause.scope, pause.target, pause.reason) for pause in now}
    for pause in now:
        if pause not in before:
            log.warning("delivery paused", scope=pause.scope.value, target=pause.target, reason=pause.reason)
    for pause in before:
        if (pause.scope, pause.target, pause.reason) not in held:
            log.info("delivery resumed", scope=pause.scope.value, target=pause.target, reason=pause.reason)


def _explained(meaning: Meaning) -> tuple[str | None, str]:
    """A bounded word for what went wrong with the call as a whole, and the CRM's message."""
    match meaning:
        case Judged():
            return None, ""
        case Rejected(complaint):
            return complaint.category or "REJECTED", complaint.words
        case TooLarge(reason) | Locked(reason) | Again(reason):
            return reason.category, reason.message
        case Stopped(stop) | Broken(stop):
            return stop.reason, stop.detail


def where(error: BaseException) -> str:
    """An unexpected error for the log: its type and the last places, no message and no variables, which
    may hold values.
    """
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__} at {places}"
