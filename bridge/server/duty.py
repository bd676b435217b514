"""Who is on duty: of all processes one delivers, counts the figures and prunes.

A claim decides (`journal.versions`). Within a pod the kernel frees it when its holder dies, so that another worker
takes over within `ASK_EVERY_S`; among replicas it lasts for some seconds. A dispatcher whose loop ended is replaced by
a new one; the journal knows all that it needs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from bridge.config.portal import client
from bridge.crm.oauth import OAuthTokens
from bridge.crm.properties import Portal
from bridge.crm.tokens import Tokens
from bridge.delivery.dispatcher import Dispatcher
from bridge.delivery.limiter import Limiter
from bridge.delivery.ports import OnUnknown
from bridge.errors import ConfigError, JournalError, Problem
from bridge.journal.store import Journal
from bridge.journal.versions import dispatch_claim
from bridge.model import Clock, PendingRecord, to_us
from bridge.operations.metrics import Observing
from bridge.settings import Settings

#: How often the journal's figures are counted anew, and a step of retention is made.
UPKEEP_EVERY_S = 1.0
#: How often a process that is not on duty claims it.
ASK_EVERY_S = 0.25
#: How long after it began to deliver, and then how often, a process unites records that an older program told apart:
#: during a rolling update one may run beside this one.
UNITE_AFTER_S, UNITE_EVERY_S = 600.0, 3_600.0
#: What open calls get when a new configuration replaces the dispatcher; then they are cut and sent again.
REPLACE_GRACE_S = 10.0
#: What a step of upkeep may still take when the service stops.
GRACE_S = 1.0


class UnknownRecordPolicy:
    """What the sources of a record say about one that the CRM does not know: the most careful of them counts."""

    CAREFUL: tuple[OnUnknown, ...] = ("park", "wait", "ignore")

    def __init__(self, settings: Settings) -> None:
        self.read(settings)

    def read(self, settings: Settings) -> None:
        """Go by what these sources say from now on."""
        policies: dict[tuple[str, str, str], OnUnknown] = {}
        for source in settings.sources.values():
            for block in source.mappings:
                address = (source.name, block.object_type, block.record.id_property)
                policies[address] = self._most_careful(policies.get(address), block.record.on_unknown)
        self._policies = policies

    def __call__(self, record: PendingRecord) -> OnUnknown:
        lane = record.key.lane
        addresses = [(source, lane.object_type, lane.id_property) for source in record.sources]
        return self._most_careful(*(self._policies.get(address, "park") for address in addresses))

    def _most_careful(self, *policies: OnUnknown | None) -> OnUnknown:
        return min(filter(None, policies), key=self.CAREFUL.index, default="park")


class Duty:
    """Runs the dispatcher while this process may deliver. Thread-safe.

    Threads: `duty` claims that, does the upkeep and watches; the dispatcher has threads of its own.
    """

    def __init__(self, *, settings: Settings, clock: Clock, journal: Journal, observing: Observing) -> None:
        self._settings = settings
        self._clock = clock
        self._journal = self._journal_of_term = journal
        self._observing = observing
        self._claim = dispatch_claim(settings.journal.url, clock=clock)
        self._log = structlog.get_logger("bridge")
        self._stopping = threading.Event()
        self._wake = threading.Event()  # there is something to do before the time
        self._outdated = False
        self._on_unknown = UnknownRecordPolicy(settings)
        #: Guards the settings and the hand-over of `_dispatcher` between the thread, `stop` and `reconfigure`.
        self._changing = threading.Lock()
        self._dispatcher: Dispatcher | None = None
        self._claimed_at: float | None = None  # monotonic: since when this process may deliver without a dispatcher
        self._unite_at = float("inf")  # monotonic
        self._thread = threading.Thread(target=self._run, name="duty", daemon=True)

    def start(self) -> None:
        """Claim to deliver from now on."""
        self._thread.start()

    def notify(self) -> None:
        """Something may be due."""
        dispatcher = self._dispatcher
        if dispatcher is not None:
            dispatcher.notify()

    def reconfigure(self, settings: Settings) -> None:
        """Go on with these settings; a dispatcher that has others is replaced, while intake goes on."""
        with self._changing:
            before, self._settings = self._settings, settings
            self._on_unknown.read(settings)
            self._outdated = self._outdated or (before.crm, before.retry) != (settings.crm, settings.retry)
        self._wake.set()

    def stuck_s(self) -> float:
        """For how long the dispatcher of this process has made no progress, or cannot be made although no other
        process may deliver; 0 when another process delivers, or while one gives way to the next.
        """
        dispatcher, claimed_at = self._dispatcher, self._claimed_at
        if not self._stopping.is_set() and self._thread.ident is not None and not self._thread.is_alive():
            return float("inf")  # nobody is left who would start a dispatcher
        since = claimed_at if dispatcher is None else dispatcher.last_progress
        return 0.0 if since is None else max(0.0, self._clock.monotonic() - since)

    def stop(self, *, deadline: float) -> None:
        """Flush what fits until `deadline` (monotonic), then end; what is left stays due."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(max(0.1, deadline - self._clock.monotonic()) + GRACE_S)
        with self._changing:
            if self._dispatcher is not None:
                self._dispatcher.drain(timeout_s=max(0.0, deadline - self._clock.monotonic()))
                self._dispatcher = None
        self._claim.release()

    # --- the thread ---

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                wait_s = self._step()
            except JournalError as error:
                self._log.warning("upkeep failed", error=str(error))
                wait_s = UPKEEP_EVERY_S
            except Exception as error:  # noqa: BLE001 (the outermost loop: whatever it is, delivery must go on)
                self._log.exception("duty stumbled", error=type(error).__name__)
                wait_s = UPKEEP_EVERY_S
            self._wake.wait(wait_s)
            if not self._stopping.is_set():
                self._wake.clear()

    def _step(self) -> float:
        """Claim to deliver or do what that brings with it; returns the seconds until the next step."""
        if self._dispatcher is None:
            if not self._claim.acquire():
                return ASK_EVERY_S
            if self._claimed_at is None:
                self._claimed_at = self._clock.monotonic()
            self._outdated = False  # it has what is configured now; what comes later outdates it again
            dispatcher = self._make_dispatcher()
            dispatcher.start()
            with self._changing:
                self._dispatcher = dispatcher
            self._claimed_at = None
            self._unite_at = self._clock.monotonic() + UNITE_AFTER_S
            self._log.info("this process delivers")
        elif not self._claim.held():
            self._log.warning("this process delivers no more")
            self._replace(grace_s=0)
            return ASK_EVERY_S
        elif self._outdated:
            self._log.info("delivery goes on with the new configuration")
            self._replace(grace_s=REPLACE_GRACE_S)
            return 0.0
        elif not self._dispatcher.is_running:
            self._log.error("the dispatcher ended; a new one takes over")
            self._replace(grace_s=0)
            return 0.0
        self._upkeep(self._dispatcher)
        return UPKEEP_EVERY_S

    def _replace(self, *, grace_s: float) -> None:
        with self._changing:
            assert self._dispatcher is not None  # noqa: S101 (only this thread sets it)
            old, self._dispatcher = self._dispatcher, None
            self._outdated = False
        old.stop(grace_s=grace_s)

    def _upkeep(self, dispatcher: Dispatcher) -> None:
        limit = self._settings.crm.rate_limit
        used = dispatcher.limiter.used(self._clock.monotonic())
        self._journal_of_term.refresh_figures(
            delivery={
                "in_flight": dispatcher.in_flight,
                "limiter": {"calls": limit.calls, "per_s": limit.per_s, "used": used},
                "daily_calls_left": dispatcher.daily_calls_left,
            },
            sources=self._settings.sources,
        )
        if (now := self._clock.monotonic()) >= self._unite_at:
            self._unite_at = now + UNITE_EVERY_S
            if united := self._journal.match_ids(self._settings.caseless()):
                self._log.warning("records that differ in spelling alone are one now", records=united)
        # Small steps, so that intake and delivery are never held up by more than one of them.
        deadline = self._clock.monotonic() + UPKEEP_EVERY_S / 2
        while (
            (self._journal.merge_staged() or self._journal.prune())
            and self._clock.monotonic() < deadline
            and not self._stopping.is_set()
        ):
            self._stopping.wait(0.02)

    def _tokens(self) -> Callable[[], str] | Tokens:
        crm = self._settings.crm
        if crm.token is not None:
            return crm.token.text
        if crm.oauth is None:
            raise ConfigError([Problem("crm.token", "is missing, and so is crm.oauth")])
        return OAuthTokens(
            settings=crm.oauth,
            base_url=crm.base_url,
            timeout_s=crm.timeout_s,
            store=self._journal,
            clock=self._clock,
            proxy=crm.proxy,
            ca_file=crm.ca_file,
        )

    def _make_dispatcher(self) -> Dispatcher:
        crm = self._settings.crm
        hubspot = client(crm, token=self._tokens())
        portal = Portal(crm=hubspot, path=crm.properties_path, name="the portal")
        # What people see is counted by whoever delivers, so that it is refused to one who does not any more.
        self._journal_of_term = self._journal.under(self._claim.epoch)
        return Dispatcher(
            journal=self._journal_of_term,
            crm=hubspot,
            settings=crm,
            retry=self._settings.retry,
            on_unknown=self._on_unknown,
            clock=self._clock,
            observer=self._observing,
            limiter=self._limiter(),
            may_call=self._claim.may_call,
            portal=portal if crm.validation == "portal" else None,
        )

    def _limiter(self) -> Limiter:
        """A limiter that knows the calls that this process or another one made just before."""
        rate, now = self._settings.crm.rate_limit, self._clock.now()
        limiter = Limiter(calls=rate.calls, per_s=rate.per_s)
        starts = self._journal.call_starts(to_us(now - 2 * rate.per_s))
        limiter.follow([now - us / 1e6 for us in starts], now=self._clock.monotonic())
        return limiter
