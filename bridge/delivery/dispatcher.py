"""The dispatcher: takes what is due, calls the CRM, settles what was confirmed. One process at a time.

A loop chooses calls and starts them; a few threads make them. The order of one call is fixed: the limiter grants, the
records are taken with their present values (what arrived while delivery waited is merged in), the grant's age is
checked, the call is made, its outcomes are settled, and only then are its records free for another call (G4). Nothing
is lost when one of these steps fails: what was not settled is still due in the journal, and updates are absolute, so
they may be sent again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from bridge.crm.hubspot import OpenBytes
from bridge.delivery.answer_handler import AnswerHandler
from bridge.delivery.buffer import Buffer
from bridge.delivery.caller import Caller, CallThreads, Pool, located, log_pauses
from bridge.delivery.cases import Moment
from bridge.delivery.limiter import SPENT, DailyBudget, Grant, Limiter, day_began_us
from bridge.delivery.pauses import DAILY_LIMIT, UNAUTHORIZED, Backoff, Pauses, RetryPolicy
from bridge.delivery.portal_rules import Portal, PortalRules
from bridge.delivery.ports import CrmClient, DueJournal, Observer, OnUnknown
from bridge.delivery.state import Chooser, DeliveryState, Work
from bridge.errors import JournalError
from bridge.model import MICROSECONDS, Clock, Lane, Pause, PendingRecord, to_us
from bridge.settings import Crm as CrmSettings
from bridge.settings import Retry

# --- a wall clock that was set: what is dated by it is dated anew ---
#
# Waits are measured on the monotonic clock and need none of this. Doubt outlives the process, so it is dated by the
# wall clock: set forward, a doubtful call would seem to be over while it may still be applied. A clock that is set
# while the process is down cannot be noticed.

#: Smaller differences are a clock that is corrected little by little. Much less than the reserve of a doubt's end.
TOLERANCE_US = 5 * MICROSECONDS


class ClockWatch:
    """Not thread-safe: the dispatcher's loop looks."""

    def __init__(self) -> None:
        self._ahead_us: int | None = None  # of the wall clock over the monotonic one

    def set_by_us(self, now: float, now_us: int) -> int:
        """By how much the wall clock was set since it was last believed; 0 when it was not."""
        if self._ahead_us is None:
            self.believe(now, now_us)
            return 0
        by_us = now_us - to_us(now) - self._ahead_us
        return by_us if abs(by_us) >= TOLERANCE_US else 0

    def believe(self, now: float, now_us: int) -> None:
        """From here on the clocks are taken to go together."""
        self._ahead_us = now_us - to_us(now)


# --- the dispatcher ---

#: Seconds between two looks at what is due, for what other processes took in.
POLL_S = 0.05

#: The same while full batches wait: what arrives then waits for `flush_interval` anyway.
_BACKLOG_POLL_S = 0.1

#: The most while nothing is due, retried or paused: for what other processes take in, or people do. `notify` tells at
#: once of what this process takes in.
_IDLE_POLL_S = 0.25

#: Seconds between two looks at least, however often `notify` is called.
_SHORTEST_POLL_S = 0.01

#: Seconds between two looks at the operators' pauses and at the token.
_HOUSEKEEPING_S = 1.0

#: Stands for the lane of a pause of everything, which concerns none more than another.
_ANY_LANE = Lane("")

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _LoopState:
    """What the loop and the call threads share beside the state of delivery; guarded by the same lock."""

    stopping: bool = False
    draining: bool = False
    drain_until: float = float("inf")
    filled_at: float = float("-inf")
    housekept_at: float = float("-inf")
    resume_at: float = float("-inf")  # after journal trouble
    journal_failures: int = 0
    notified: bool = False  # `notify` was called since the last look at what is due
    reported_pauses: frozenset[Pause] = frozenset()
    reported_wait_s: float = 0.0


class Dispatcher:
    """Thread-safe: `_lock` guards the state and `_loop`; it is never held during I/O."""

    def __init__(
        self,
        *,
        journal: DueJournal,
        crm: CrmClient,
        settings: CrmSettings,
        retry: Retry,
        on_unknown: Callable[[PendingRecord], OnUnknown],
        clock: Clock,
        observer: Observer,
        pool: Pool | None = None,
        limiter: Limiter | None = None,
        backoff: Backoff | None = None,
        may_call: Callable[[], bool] = lambda: True,
        portal: Portal | None = None,
        open_bytes: OpenBytes | None = None,
    ) -> None:
        """`may_call` is asked just before each call is sent: whether this process still is the one that delivers.
        Values that the definitions of `portal` rule out are not sent.
        """

        def may_send() -> bool:
            return not self._loop.stopping and may_call()

        self._journal = journal
        self._crm = crm
        self._clock = clock
        self._observer = observer
        self._max_in_flight = settings.max_in_flight
        # What comes meanwhile has waited since its arrival, so it is sent no later.
        self._idle_poll_s = max(POLL_S, min(settings.flush_interval_s, _IDLE_POLL_S))
        self._pool = pool if pool is not None else CallThreads(count=settings.max_in_flight)
        rate = settings.rate_limit
        self.limiter = limiter if limiter is not None else Limiter(calls=rate.calls, per_s=rate.per_s)
        self._open_bytes = open_bytes if open_bytes is not None else OpenBytes()
        self._budget = DailyBudget(rate.daily)
        backoff = backoff if backoff is not None else Backoff(base_s=retry.base_s, max_s=retry.max_s)
        self._journal_backoff = Backoff(base_s=0.1, max_s=5.0)
        self._state = DeliveryState(
            buffer=Buffer(
                batch_size=settings.batch_size,
                flush_interval_s=settings.flush_interval_s,
                depth=settings.batch_size * (settings.max_in_flight + 1),
                max_bytes=self._open_bytes.each,
            ),
            pauses=Pauses(backoff=backoff),
            policy=RetryPolicy(backoff, retry.give_up_after_s),
        )
        self._chooser = Chooser(self._state)
        self._handler = AnswerHandler(self._state)
        self._clock_watch = ClockWatch()
        self._lock = threading.Lock()
        self._loop = _LoopState()
        self._caller = Caller(
            journal=journal,
            crm=crm,
            limiter=self.limiter,
            open_bytes=self._open_bytes,
            state=self._state,
            handler=self._handler,
            budget=self._budget,
            lock=self._lock,
            clock=clock,
            observer=observer,
            on_unknown=on_unknown,
            may_call=may_send,
            portal_rules=None
            if portal is None
            else PortalRules(
                portal=portal,
                limiter=self.limiter,
                clock=clock,
                may_call=may_send,
                note_reading=journal.note_reading,
            ),
        )
        self._closed = threading.Condition(self._lock)  # a call was settled, or given up
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._thread: threading.Thread | None = None
        #: Monotonic time of the loop's last sound step, for liveness.
        self.last_progress = clock.monotonic()

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Take up the pauses of the last run and begin to deliver."""
        self.restore_pauses()
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._thread.start()

    def restore_pauses(self) -> None:
        """Take up the stored pauses, and the count of the day's calls. Raises JournalError."""
        stored = self._journal.load_pauses()
        began_us = day_began_us(to_us(self._clock.now()))
        used = self._journal.calls_since(began_us) if self._budget.daily is not None else 0
        with self._lock:
            at = self._moment()
            self._clock_watch.believe(at.now, at.now_us)
            self._budget.begin(used, at.now_us)
            valid = [pause for pause in stored if pause.detail != SPENT]
            self._state.pauses.restore(valid, now=at.now, now_us=at.now_us)
            self._state.pauses.operators(stored)
            self._state.pauses.changed = self._state.pauses.changed or valid != list(stored)

    def notify(self) -> None:
        """Something became due in this process."""
        self._loop.notified = True
        self._wake.set()

    def drain(self, *, timeout_s: float) -> bool:
        """Send what is due as far as there is time, then stop; True when nothing was left that may be sent now."""
        with self._lock:
            self._loop.draining = True
            self._loop.drain_until = self._clock.monotonic() + timeout_s
        self._idle.clear()
        self._wake.set()
        done = self.is_running and self._idle.wait(timeout_s)
        self.stop(grace_s=1.0 if done else 0.0)
        return done

    def stop(self, *, grace_s: float = 1.0) -> None:
        """Begin no more calls, give open ones the grace, then cut them: their records stay due."""
        with self._lock:
            self._loop.stopping = True
        self._wake.set()
        self._all_closed(within_s=grace_s)
        self._crm.close()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
        self._all_closed(within_s=1.0)  # calls that were cut settle as doubtful
        self._pool.close()

    def _all_closed(self, *, within_s: float) -> bool:
        with self._closed:
            return self._closed.wait_for(lambda: not self._state.open, timeout=within_s)

    @property
    def is_running(self) -> bool:
        """Whether the loop runs; only `stop` ends it, or the death of its thread."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def in_flight(self) -> int:
        """Calls that are open or not settled yet."""
        with self._lock:
            return len(self._state.open)

    @property
    def daily_calls_left(self) -> int | None:
        """Calls that may still begin today; None without a budget and where HubSpot does not say."""
        with self._lock:
            return self._budget.left(to_us(self._clock.now()))

    @property
    def pauses(self) -> list[Pause]:
        """What delivery is stopped for now."""
        with self._lock:
            return self._state.pauses.all()

    def _run(self) -> None:
        failures = 0
        while not self._loop.stopping:
            try:
                wait_s = self.run_once()
                failures = 0
            except Exception as error:  # noqa: BLE001 (the loop's outermost frame)
                failures += 1
                wait_s = self._journal_backoff.delay_s(failures)
                _log.error("dispatcher stumbled", error=located(error))
                self._observer.stumbled(type(error).__name__)
            self._wake.wait(wait_s)
            self._wake.clear()

    # --- one step -----------------------------------------------------------------------------

    def run_once(self) -> float:
        """Start every call that may start now; returns the seconds until it is worth looking again."""
        wait_s = self._step()
        self.last_progress = self._clock.monotonic()
        return wait_s

    def _step(self) -> float:
        now = self._clock.monotonic()
        if now < self._loop.resume_at:
            return min(self._loop.resume_at - now, POLL_S)
        try:
            self._housekeep(now)
            while True:
                wait_s = self._begin_call()
                if wait_s is not None:
                    return wait_s
        except JournalError as error:
            self._journal_failed(error)
            return POLL_S

    def _begin_call(self) -> float | None:
        """Start one call; else the seconds to wait."""
        now = self._clock.monotonic()
        with self._lock:
            if self._loop.stopping or len(self._state.open) >= self._max_in_flight or self._open_bytes.full:
                return POLL_S
        if (early_s := self.limiter.wait_s(now)) > 0:
            self.limiter.acquire(now)  # notes that we wait for it
            if now + early_s > self._loop.drain_until and not self.in_flight:
                self._idle.set()  # a 429 holds everything for longer than there is time
            return min(early_s, POLL_S)
        filled = self._fill(now)
        with self._lock:
            at = self._moment()
            draining = self._loop.draining
            if not self._within_budget(at):
                return POLL_S
            work = self._chooser.next_work(now=at.now, now_us=at.now_us, draining=draining)
            if work is None:
                return self._nothing_to_do(at, just_filled=filled)
        grant = self.limiter.acquire(at.now)
        if grant is None:
            self._put_back(work)
            return _SHORTEST_POLL_S
        self._report_wait()
        with self._lock:
            self._budget.started(at.now_us)
        try:
            self._pool.submit(lambda: self._call(work, grant))
        except BaseException:
            with self._lock:
                self._budget.closed(sent=False)
            self._put_back(work)
            raise
        return None

    def _within_budget(self, at: Moment) -> bool:
        """Whether the day's budget, or a pause for it, lets another call begin; begins that pause when it is spent."""
        pauses = self._state.pauses
        if pauses.holds(DAILY_LIMIT):
            return True
        if (stop := self._budget.stop(at.now_us)) is not None:
            pauses.stop(_ANY_LANE, stop, now=at.now, now_us=at.now_us, began=at.now)
            return True
        return self._budget.left(at.now_us) != 0

    def _nothing_to_do(self, at: Moment, *, just_filled: bool) -> float:
        self.limiter.not_wanted()
        if self._loop.draining and just_filled and not self._state.open:
            self._idle.set()
        flush_in = self._chooser.flush_in(now=at.now, now_us=at.now_us)
        poll_s = self._idle_poll_s if self._state.is_idle else POLL_S
        return max(poll_s if flush_in is None else min(flush_in, poll_s), 0.001)

    def _fill(self, now: float) -> bool:
        """Ask the journal what is due, unless that was just done."""
        with self._lock:
            if now - self._loop.filled_at < self._poll_s(now):
                return False
            self._loop.notified = False
            limit = self._state.buffer.limit
            exclude = self._state.held()
        rows = self._journal.due(limit=limit, exclude=exclude)
        with self._lock:
            self._state.buffer.fill(rows, limit=limit, now=now)
            if not self._state.pauses.none:
                self._state.pauses.lapse(now, self._state.waiting())
            self._loop.filled_at = now
            self._loop.journal_failures = 0
        return True

    def _poll_s(self, now: float) -> float:
        state, loop = self._state, self._loop
        if state.buffer.short or loop.draining or (loop.notified and state.buffer.empty):
            return _SHORTEST_POLL_S
        if state.pauses.stops_all(now):
            return _HOUSEKEEPING_S
        if state.is_idle:
            return self._idle_poll_s
        return _BACKLOG_POLL_S if state.buffer.full else POLL_S

    def _housekeep(self, now: float) -> None:
        """Each second: the operators' pauses, and the token. Each time: a clock that was set, pauses that changed."""
        pauses, loop = self._state.pauses, self._loop
        now_us = to_us(self._clock.now())
        if by_us := self._clock_watch.set_by_us(now, now_us):
            _log.warning("the clock was set", seconds=round(by_us / MICROSECONDS))
            self._journal.clock_was_set(by_us)
            self._clock_watch.believe(now, now_us)
        with self._lock:
            due = now - loop.housekept_at >= _HOUSEKEEPING_S
            waits_for_token = due and pauses.holds(UNAUTHORIZED)
        if due:
            stored = self._journal.load_pauses()
            credential = self._crm.credential() if waits_for_token else ""
            with self._lock:
                loop.housekept_at = now
                pauses.operators(stored)
                pauses.token_is(credential, now=now)
        with self._lock:
            pauses.expire(now)
            changed = pauses.changed
        if changed:
            self._save_pauses()

    # --- one call -----------------------------------------------------------------------------

    def _call(self, work: Work, grant: Grant) -> None:
        """Make a call and settle it; in a thread of the pool."""
        try:
            self._caller.make(work, grant)
        except JournalError as error:
            self._journal_failed(error)
        except Exception as error:  # noqa: BLE001 (a thread's outermost frame)
            _log.error("call stumbled", error=located(error), records=len(work.refs))
            self._observer.stumbled(type(error).__name__)
            with self._lock:
                now = self._clock.monotonic()
                self._handler.stumbled(work, now)
                self._loop.resume_at = now + POLL_S
        finally:
            try:
                with self._lock:
                    self._budget.closed(sent=work.sent)
            finally:
                self._put_back(work)
                self._wake.set()

    def _put_back(self, work: Work) -> None:
        with self._lock:
            self._state.close(work)
            self._closed.notify_all()

    # --- pauses, trouble, clocks --------------------------------------------------------------

    def _save_pauses(self) -> None:
        with self._lock:
            self._state.pauses.changed = False
            own, every = self._state.pauses.own(), self._state.pauses.all()
        if self._loop.reported_pauses != frozenset(every):
            log_pauses(_log, before=self._loop.reported_pauses, now=every)
            self._loop.reported_pauses = frozenset(every)
            self._observer.paused(every)
        try:
            self._journal.save_pauses(own)
        except JournalError:
            with self._lock:
                self._state.pauses.changed = True
            raise

    def _journal_failed(self, error: JournalError) -> None:
        with self._lock:
            self._loop.journal_failures += 1
            delay_s = self._journal_backoff.delay_s(self._loop.journal_failures)
            self._loop.resume_at = self._clock.monotonic() + delay_s
        _log.error("the journal failed, delivery waits", error=str(error), seconds=round(delay_s, 2))
        self._observer.stumbled(type(error).__name__)

    def _report_wait(self) -> None:
        waited_s = self.limiter.waited_s
        if waited_s > self._loop.reported_wait_s:
            self._observer.waited(waited_s - self._loop.reported_wait_s)
            self._loop.reported_wait_s = waited_s

    def _moment(self) -> Moment:
        return Moment(self._clock.monotonic(), to_us(self._clock.now()))
