"""One call: made, judged, settled, and reported. In a thread of the pool."""

from __future__ import annotations

import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
from structlog.typing import FilteringBoundLogger

from bridge.crm.hubspot import OpenBytes, inputs_of
from bridge.crm.transport import Answer, Input, NoAnswer
from bridge.delivery.answer_handler import AnswerHandler
from bridge.delivery.answers import (
    Again,
    Broken,
    Criteria,
    Judged,
    Locked,
    Meaning,
    Rejected,
    Stopped,
    TooLarge,
    doubtful,
    judge,
)
from bridge.delivery.cases import Moment
from bridge.delivery.limiter import DailyBudget, Grant, Limiter
from bridge.delivery.pauses import DAILY_LIMIT
from bridge.delivery.portal_rules import PortalRules
from bridge.delivery.ports import CallSummary, CrmClient, DueJournal, Observer, OnUnknown
from bridge.delivery.state import DeliveryState, Work
from bridge.errors import JournalError
from bridge.model import (
    Call,
    Clock,
    Delivered,
    Ignored,
    Lane,
    Outcome,
    Parked,
    Pause,
    PendingRecord,
    Refused,
    RetryLater,
    Taken,
    to_us,
)

# --- the threads that make the calls: few, named, and never a reason for the process to end later ---

#: Seconds that an idle thread waits for work before it looks whether it is to end.
_WAIT_S = 1.0


class Pool(Protocol):
    """Runs calls beside the loop. Tests pass one that runs them at once, or when told."""

    def submit(self, job: Callable[[], None]) -> None: ...

    def close(self) -> None: ...


class CallThreads:
    """A fixed number of daemon threads: a call that hangs in a name look-up cannot delay the end of the process, and
    its records stay due in the journal. A thread that died is replaced; no job is lost that it had not begun. For one
    caller of `submit`.
    """

    def __init__(self, *, count: int) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._there = threading.Semaphore(0)
        self._closed = threading.Event()
        self._count = count
        #: Guards `_threads`.
        self._mutex = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._started = 0

    def submit(self, job: Callable[[], None]) -> None:
        """Run the job in one of the threads; jobs must not raise. Raises RuntimeError, and does not run it, when
        there is no thread and none can be started.
        """
        self._fill()
        self._jobs.append(job)
        self._there.release()

    def close(self) -> None:
        """Let the threads end when their job is done."""
        self._closed.set()

    def _fill(self, *, dying: threading.Thread | None = None) -> None:
        with self._mutex:
            self._threads = [one for one in self._threads if one.is_alive() and one is not dying]
            if len(self._threads) < self._count:
                try:
                    self._threads.append(self._start())
                except (RuntimeError, MemoryError):  # the system's limit: the threads that are there do the work
                    if not self._threads:
                        raise

    def _start(self) -> threading.Thread:
        self._started += 1
        thread = threading.Thread(target=self._run, name=f"crm-call-{self._started}", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                self._there.acquire(timeout=_WAIT_S)  # whoever dies here leaves the job to another
                while (job := self._next()) is not None:
                    job()
        finally:
            if self._jobs and not self._closed.is_set():
                self._fill(dying=threading.current_thread())

    def _next(self) -> Callable[[], None] | None:
        try:
            return self._jobs.popleft()
        except IndexError:
            return None


# --- reports of a call: a row for the journal, a value for the metrics, one line for the log ---


def summary_of(
    work: Work, outcomes: Sequence[Outcome], answer: Answer | NoAnswer, meaning: Meaning, *, records: int
) -> CallSummary:
    """The result of a call, in ids and counts."""
    counts = Counter(type(outcome) for outcome in outcomes)
    return CallSummary(
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


def call_row(summary: CallSummary, answer: Answer | NoAnswer, meaning: Meaning, *, began_at_us: int) -> Call:
    """The row that `trace` and the console show. Unlike the log it may quote the CRM."""
    word, message = _explained(meaning)
    return Call(
        lane=summary.lane,
        started_at_us=began_at_us,
        duration_s=summary.duration_s,
        status=answer.status if isinstance(answer, Answer) else None,
        correlation_id=summary.correlation_id,
        records=summary.records,
        error=None if word is None else f"{word}: {message}"[:300],
    )


def log_call(log: FilteringBoundLogger, summary: CallSummary) -> None:
    """One line a call: never a value, nor a message of the CRM's, which quotes values."""
    write = log.info if summary.error is None else log.warning
    write(
        "crm call",
        object_type=summary.lane.object_type,
        id_property=summary.lane.id_property or None,
        sources=summary.sources,
        step=summary.step,
        code=summary.code,
        duration_ms=round(summary.duration_s * 1000),
        records=summary.records,
        delivered=summary.delivered,
        refused=summary.refused,
        retried=summary.retried,
        parked=summary.parked,
        ignored=summary.ignored,
        correlation_id=summary.correlation_id,
        error=summary.error,
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
    """What went wrong with the call as a whole: a word of bounded vocabulary, and the CRM's message."""
    match meaning:
        case Judged():
            return None, ""
        case Rejected(complaint):
            return complaint.category or "REJECTED", complaint.words
        case TooLarge(reason) | Locked(reason) | Again(reason):
            return reason.category, reason.message
        case Stopped(stop) | Broken(stop):
            return stop.reason, stop.detail


def located(error: BaseException) -> str:
    """An unexpected error for the log: its type and the last places; no message and no variables, which may hold
    values.
    """
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__} at {places}"


# --- one call ---

#: Times that a call asks to have a stale grant renewed before its records go back: some 2 s.
_RENEWALS = 40

#: Seconds between two such tries at least.
_SHORTEST_WAIT_S = 0.001

#: Seconds for asking the portal, after which what was taken goes back unsent: a doubt is as old as the taking, and must
#: not end while the call may still be applied. The next time the portal is not asked (`portal_rules`).
_LONGEST_PREPARATION_S = 10.0

#: Seconds between two looks whether the service stops while a call waits for a grant.
_LOOK_S = 0.05

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Thread-safe: `lock` guards the state and the budget and is never held during I/O.

    `may_call` is asked just before a call is sent.
    """

    journal: DueJournal
    crm: CrmClient
    limiter: Limiter
    open_bytes: OpenBytes
    state: DeliveryState
    handler: AnswerHandler
    budget: DailyBudget
    lock: threading.Lock
    clock: Clock
    observer: Observer
    on_unknown: Callable[[PendingRecord], OnUnknown]
    may_call: Callable[[], bool]
    portal_rules: PortalRules | None = None

    def make(self, work: Work, grant: Grant) -> None:
        """Make the call and settle it. Raises JournalError; what was not settled stays due."""
        self.crm.prepare()  # may take a while: before doubt begins, and before the grant's age is looked at
        with self.open_bytes.place(wanted=self.may_call) as tell_size:
            if tell_size is not None:
                self._make(work, grant, tell_size)

    def _make(self, work: Work, grant: Grant, tell_size: Callable[[int], None]) -> None:
        began, began_at_us = self.clock.monotonic(), to_us(self.clock.now())
        taken = self._take(work, began_at_us)
        tell_size(taken.size)
        try:
            records, outcomes = self._prepare(work, taken.records)
        except JournalError:  # a reading of the portal could not be noted
            self._not_sent(taken, ())
            raise
        late = self.clock.monotonic() - began > _LONGEST_PREPARATION_S
        if not records or late or self._is_paused(work.lane) or not self._may_send(grant):
            if taken.records or outcomes:
                self._not_sent(taken, outcomes)
            return
        inputs = inputs_of(records)
        # Not the time of the taking: a reading of the portal may have used a slot of the limit since.
        sent_at_us = to_us(self.clock.now())
        answer = self._update(work.lane, inputs)
        with self.lock:
            at = Moment(self.clock.monotonic(), to_us(self.clock.now()))
            criteria = Criteria(self.on_unknown, self.state.policy, at.now_us)
            meaning = judge(inputs, answer, criteria)
            work.sent = isinstance(answer, Answer) or answer.doubtful
            refused = isinstance(meaning, Stopped) and meaning.stop.reason == DAILY_LIMIT
            self.budget.answered(answer, refused=refused)
            decided, hold_s = self.handler.handle(work, inputs, meaning, at)
        if hold_s > 0:
            self.limiter.hold(at.now + hold_s)
        outcomes = [*outcomes, *decided]
        summary = summary_of(work, outcomes, answer, meaning, records=len(records))
        call = call_row(summary, answer, meaning, began_at_us=sent_at_us)
        self.journal.settle(taken.records, outcomes, call=call, doubtful=doubtful(answer))
        log_call(_log, summary)
        self.observer.called(summary)

    def _not_sent(self, taken: Taken, outcomes: Sequence[Outcome]) -> None:
        """What was taken goes back, so that no doubt is left about a call that was never made."""
        self.journal.settle(taken.records, outcomes, call=None, doubtful=False)

    def _take(self, work: Work, began_at_us: int) -> Taken:
        """As many of the work's records as fit into one call; from then on the work is about these."""
        max_bytes = self.open_bytes.each
        taken = self.journal.take(work.refs, began_at_us=began_at_us, max_bytes=max_bytes, only=work.only)
        if taken.left:
            with self.lock:
                self.state.did_not_fit(work, taken)
        return taken

    def _prepare(self, work: Work, taken: Sequence[PendingRecord]) -> tuple[list[PendingRecord], list[Outcome]]:
        """The taken records with the values that are to be sent, and the outcomes of those that are not."""
        records, ruled_out = list(taken), list[Outcome]()
        if self.portal_rules is not None:
            records, ruled_out = self.portal_rules.rule_out(work.lane.object_type, records)
        with self.lock:
            now = self.clock.monotonic()
            left, refused = self.state.retired.strip(work.lane.object_type, records, now)
            work.partly = work.only is not None and any(work.only != record.values.keys() for record in left)
            gone = set(work.refs).difference(record.ref for record in left)
            decided = self.handler.vanished(work, sorted(gone)) if gone else ()
        return left, [*ruled_out, *refused, *decided]

    def _is_paused(self, lane: Lane) -> bool:
        """Whether a person has paused this lane. Asked after the records were read, so that nothing that comes in after
        the pause was acknowledged is sent. If the journal cannot tell, nothing is.
        """
        try:
            stored = self.journal.load_pauses()
        except JournalError:
            return True
        with self.lock:
            self.state.pauses.operators(stored)
            return self.state.pauses.is_ordered(lane)

    def _may_send(self, grant: Grant) -> bool:
        """Whether the call may be sent now: a process can freeze between grant and call."""
        pause = threading.Event()
        for _ in range(_RENEWALS):
            now = self.clock.monotonic()
            if not self.may_call():
                return False
            if self.limiter.fresh(grant, now):
                return True
            renewed = self.limiter.renew(grant, now)
            if renewed is not None:
                grant = renewed
                continue
            pause.wait(min(max(self.limiter.wait_s(now), _SHORTEST_WAIT_S), _LOOK_S))
        return False

    def _update(self, lane: Lane, inputs: Sequence[Input]) -> Answer | NoAnswer:
        try:
            return self.crm.update(lane, inputs)
        except Exception as error:  # noqa: BLE001 (see below)
            # A record that cannot be encoded, say: it is found like any other record whose calls come to nothing.
            _log.error("the CRM client failed", error=located(error), records=len(inputs))
            self.observer.stumbled(type(error).__name__)
            return NoAnswer("internal", doubtful=True, detail=type(error).__name__)
