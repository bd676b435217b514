"""Makes one call: have a token and room, take, check the grant's age, send, judge, settle. In a thread of the pool."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from bridge.delivery.answer_handler import AnswerHandler
from bridge.delivery.answers import doubtful, judge
from bridge.delivery.board import Board, Work
from bridge.delivery.calls import Answer, Input, NoAnswer
from bridge.delivery.cases import Moment
from bridge.delivery.daily import DailyBudget
from bridge.delivery.hubspot import inputs_of
from bridge.delivery.limiter import Grant, Limiter
from bridge.delivery.meanings import Rules, Stopped
from bridge.delivery.pauses import DAILY_LIMIT
from bridge.delivery.portal_rules import PortalRules
from bridge.delivery.ports import Crm, Journal, Observer, OnUnknown
from bridge.delivery.summary import call_of, log_call, summary, where
from bridge.delivery.weight import OpenBytes
from bridge.errors import JournalError
from bridge.model import Clock, Lane, Outcome, PendingRecord, Taken, to_us

#: Times that a call whose grant went stale asks to have it renewed before its records go back: some 2 s.
_REGRANTS = 40

#: Seconds between two such tries at least.
_SHORTEST_WAIT_S = 0.001

#: Seconds after which what was taken goes back unsent, as asking the portal took so long: a doubt is as old as the
#: taking, and must not end before the call can be applied no more. The next time nothing is asked (`portal_rules`).
_LONGEST_PREPARATION_S = 10.0

#: Seconds between two looks whether the service stops while a call waits for a grant.
_LOOK_S = 0.05

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Thread-safe: `lock` guards the board and the budget and is never held during I/O.

    `may_call` is asked just before a call is sent.
    """

    journal: Journal
    crm: Crm
    limiter: Limiter
    open_bytes: OpenBytes
    board: Board
    handler: AnswerHandler
    budget: DailyBudget
    lock: threading.Lock
    clock: Clock
    observer: Observer
    on_unknown: Callable[[PendingRecord], OnUnknown]
    may_call: Callable[[], bool]
    rules: PortalRules | None = None

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
        records, outcomes = self._prepare(work, taken.records)
        late = self.clock.monotonic() - began > _LONGEST_PREPARATION_S
        if not records or late or self._is_paused(work.lane) or not self._may_send(grant):
            if taken.records or outcomes:
                self.journal.settle(taken.records, outcomes, call=None, doubtful=False)
            return
        inputs = inputs_of(records)
        # Not when it was taken: a reading of the portal since may have put it off by a slot of the limit.
        sent_at_us = to_us(self.clock.now())
        answer = self._update(work.lane, inputs)
        with self.lock:
            at = Moment(self.clock.monotonic(), to_us(self.clock.now()))
            rules = Rules(self.on_unknown, self.board.policy, at.now_us)
            meaning = judge(inputs, answer, rules)
            work.sent = isinstance(answer, Answer) or answer.doubtful
            refused = isinstance(meaning, Stopped) and meaning.stop.reason == DAILY_LIMIT
            self.budget.answered(answer, refused=refused)
            decided, hold_s = self.handler.handle(work, inputs, meaning, at)
        if hold_s > 0:
            self.limiter.hold(at.now + hold_s)
        outcomes = [*outcomes, *decided]
        settled = summary(work, outcomes, answer, meaning, records=len(records))
        call = call_of(settled, answer, meaning, began_at_us=sent_at_us)
        self.journal.settle(taken.records, outcomes, call=call, doubtful=doubtful(answer))
        log_call(_log, settled)
        self.observer.called(settled)

    def _take(self, work: Work, began_at_us: int) -> Taken:
        """As many of the work's records as fit into one call; from then on it is about these."""
        max_bytes = self.open_bytes.each
        taken = self.journal.take(work.refs, began_at_us=began_at_us, max_bytes=max_bytes, only=work.only)
        if taken.left:
            with self.lock:
                self.board.leave(work, taken)
        return taken

    def _prepare(self, work: Work, taken: Sequence[PendingRecord]) -> tuple[list[PendingRecord], list[Outcome]]:
        """What of the taken records is to be sent, and what is refused without being sent."""
        records, ruled_out = list(taken), list[Outcome]()
        if self.rules is not None:
            records, ruled_out = self.rules.rule_out(work.lane.object_type, records)
        with self.lock:
            now = self.clock.monotonic()
            left, refused = self.board.retired.strip(work.lane.object_type, records, now)
            work.partly = work.only is not None and any(work.only != record.values.keys() for record in left)
            gone = set(work.refs).difference(record.ref for record in left)
            decided = self.handler.vanished(work, sorted(gone)) if gone else ()
        return left, [*ruled_out, *refused, *decided]

    def _is_paused(self, lane: Lane) -> bool:
        """Whether a person has paused this lane. Asked after the records were read: nothing that is accepted once the
        pause was acknowledged is sent. While the journal does not tell, what was taken goes back, so that no doubt is
        left about a call that was never made.
        """
        try:
            stored = self.journal.load_pauses()
        except JournalError:
            return True
        with self.lock:
            self.board.pauses.operators(stored)
            return self.board.pauses.is_ordered(lane)

    def _may_send(self, grant: Grant) -> bool:
        """Whether the call may be sent now: a process can freeze between grant and call."""
        pause = threading.Event()
        for _ in range(_REGRANTS):
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
        except Exception as error:  # noqa: BLE001 (a record that cannot be encoded, say: see below)
            # It is found like any other record whose calls come to nothing.
            _log.error("the CRM client failed", error=where(error), records=len(inputs))
            self.observer.stumbled(type(error).__name__)
            return NoAnswer("internal", doubtful=True, detail=type(error).__name__)
