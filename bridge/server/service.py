"""The one place that builds and wires everything: journal, intake, delivery, operations.

The rooms do not know each other; here they are introduced. Every worker process has one `Service`. All of them
take webhooks; the one that holds the dispatch lock also delivers, counts the figures and prunes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
from flask import Flask

from bridge import __version__
from bridge.errors import BridgeError, JournalError
from bridge.http.limits import Quotas, WrongTokens
from bridge.http.problems import stack_of
from bridge.http.waiting import Wait, wait_in_thread
from bridge.intake.mapping import CompiledSource, compile_source
from bridge.intake.own_schema import Schemas
from bridge.intake.signatures import Verifier
from bridge.intake.webhooks import WSGI, Endpoint, Turns, Webhooks, register_problem_handlers
from bridge.journal.event_log import KeptEvent, Remap, Remapped
from bridge.journal.group_commit import GroupCommit, Signals
from bridge.journal.schema import HEAD
from bridge.journal.store import Journal
from bridge.journal.upkeep import Figures
from bridge.model import Clock, SystemClock
from bridge.operations.access import guard
from bridge.operations.acts import Acts
from bridge.operations.admin_api import api_blueprint
from bridge.operations.console import console_blueprint
from bridge.operations.console.texts import span
from bridge.operations.desk import JournalDesk, pause_document, waiting_document
from bridge.operations.health import (
    OLD_PENDING_S,
    STUCK_AFTER_S,
    BoundedCheck,
    Health,
    admin_blueprint,
    health_blueprint,
)
from bridge.operations.metrics import Gauges, Metrics, Observing
from bridge.operations.openapi import openapi_blueprint
from bridge.server.duty import Duty
from bridge.settings import Settings
from bridge.showing import iso

#: What a clean stop keeps of `drain_timeout` for closing.
CLOSING_S = 0.5


def compile_sources(settings: Settings) -> dict[str, CompiledSource]:
    """All sources, ready for payloads."""
    public_url, schemas = settings.server.public_url, Schemas()
    return {name: compile_source(source, public_url, schemas) for name, source in settings.sources.items()}


def make_remap(settings: Settings) -> Remap:
    """Today's mapping for kept events: None for events of a source that is gone."""
    compiled = compile_sources(settings)

    def remap(kept: KeptEvent) -> Remapped | None:
        source = compiled.get(kept.source)
        if source is None:
            return None
        reading = source.remap(kept.payload, kept.context, kept.root)
        return Remapped(reading.updates, reading.unmappable)

    return remap


class Service:
    """One worker's service. `start` and `stop` are called once each, from the worker's main thread."""

    def __init__(
        self,
        *,
        settings: Settings,
        clock: Clock | None = None,
        signals: Signals[Any] | None = None,
        pause: Callable[[], None] | None = None,
        wait: Wait = wait_in_thread,
        turns: Turns | None = None,
    ) -> None:
        """`signals`, `wait` and `pause` tell how requests wait and let others go first; by default they are threads.
        `turns` bounds how many are worked on at once.
        """
        self._settings = settings
        self._clock = clock or SystemClock()
        self.metrics = Metrics()
        self._observing = Observing(self.metrics)
        self._log = structlog.get_logger("bridge")
        self._drain_by: float | None = None
        self._is_flushed = False
        self._reloading = threading.Lock()
        self.journal = Journal(
            settings=settings.journal,
            clock=self._clock,
            retry_max_s=settings.retry.max_s,
            watcher=self._observing,
        )
        self._journal_check = BoundedCheck(self._check_journal)
        self._duty = Duty(settings=settings, clock=self._clock, journal=self.journal, observing=self._observing)
        self._commits = GroupCommit(journal=self.journal, committed=self._duty.notify, signals=signals)
        self._pause = pause
        self._wait = wait
        self._turns = turns
        self._quotas = Quotas(counters_folder())
        self._endpoints = endpoints(settings, self._quotas)
        self._expect()
        self._desk = JournalDesk(journal=self.journal, make_remap=lambda: make_remap(self._settings))
        self._acts = Acts(desk=self._desk, journal=self.journal)
        self._wrong_tokens = WrongTokens(counters_folder())
        self.public = self._public_app()
        self.admin = self._admin_app()

    # --- life ---

    def start(self) -> None:
        """Begin to deliver, or to wait for the dispatch lock."""
        self.ready()  # starts the thread that probes need
        self._duty.start()

    def reload(self, load: Callable[[], Settings]) -> None:
        """Go on with the configuration as it is now, while requests are answered and delivered. One with problems
        is refused whole: then everything stays as it was, which the log and a metric tell.
        """
        with self._reloading:
            self._reload(load)

    def _reload(self, load: Callable[[], Settings]) -> None:
        try:
            settings, fixed = load().beside(self._settings)
            new_endpoints = endpoints(settings, self._quotas)
        except Exception as error:  # noqa: BLE001 (whatever it is, the old one stays and people are told)
            self.metrics.reloaded(succeeded=False)
            problems = str(error).splitlines() if isinstance(error, BridgeError) else stack_of(error)
            self._log.error("the configuration was not reloaded", error=type(error).__name__, problems=problems)
            return
        if fixed:
            self._log.warning("this takes effect at a restart", settings=fixed)
        try:
            self.journal.match_ids(settings.caseless())
        except JournalError as error:  # a restart does it too
            self._log.warning("record ids in the journal are compared as before", error=str(error))
        self._settings = settings
        self._endpoints = new_endpoints
        self.journal.reconfigure(settings.journal, retry_max_s=settings.retry.max_s)
        self._duty.reconfigure(settings)
        self.admin = self._admin_app()
        self._expect()
        self.metrics.reloaded(succeeded=True)
        self._log.info("the configuration was reloaded", sources=sorted(settings.sources))

    def _expect(self) -> None:
        self.metrics.expect({name: endpoint.source.looked_for() for name, endpoint in self._endpoints.items()})

    def begin_drain(self) -> None:
        """Not ready any more. Only the time is noted, as a signal handler calls this."""
        if self._drain_by is None:
            self._drain_by = self._clock.monotonic() + self._settings.server.drain_timeout_s

    def flush(self) -> None:
        """Deliver what fits into `drain_timeout` and deliver no more. What is left waits in the journal."""
        if self._is_flushed:
            return
        self._is_flushed = True
        self.begin_drain()
        assert self._drain_by is not None  # noqa: S101 (begin_drain has set it)
        self._commits.close()
        self.metrics.flush()
        self._acts.stop()
        self._duty.stop(deadline=self._drain_by - CLOSING_S)

    def stop(self) -> None:
        """Flush, unless that was done, and close."""
        self.flush()
        self.journal.close()

    def largest_body(self) -> int:
        """Bytes of the largest body that a source takes."""
        return max((endpoint.max_body for endpoint in self._endpoints.values()), default=0)

    def unreadable(self, code: int, error: str, address: str) -> None:
        """The server refused what it could not read as a request."""
        self._observing.unreadable(code, error, address)

    # --- vitals ---

    def alive(self) -> Health:
        """False when the dispatcher makes no progress or nothing can be written, which a restart cures."""
        if self._drain_by is not None:  # it ends anyway, within a time that the master keeps
            return Health(ok=True)
        if not self._commits.is_running:
            return Health(ok=False, why="the journal's writer has ended")
        stuck_s = self._duty.stuck_s()
        if stuck_s == float("inf"):
            return Health(ok=False, why="nobody is left who would start a dispatcher")
        if stuck_s > STUCK_AFTER_S:
            return Health(ok=False, why=f"the dispatcher has made no progress for {stuck_s:.0f} s")
        return Health(ok=True)

    def ready(self) -> Health:
        """Whether a webhook could be journalled now."""
        if self._drain_by is not None:
            return Health(ok=False, why="draining")
        return self._journal_check()

    def _check_journal(self) -> None:
        self.journal.refuse_if_full()
        self.journal.check_writable()

    def gauges(self) -> Gauges:
        """The deployment's gauges, from the journal."""
        figures = self.journal.figures()
        return Gauges(
            pending=figures.pending,
            pending_limit=self._settings.journal.max_pending,
            oldest_pending=None if figures.oldest_pending_us is None else figures.oldest_pending_us / 1e6,
            entries=figures.entries,
            last_event={source: at / 1e6 for source, at in figures.last_event_us.items()},
            silent=self._silent(figures),
            pauses=tuple(self.journal.load_pauses()),
            daily_calls_left=figures.delivery.get("daily_calls_left"),
            journal_bytes=self.journal.size(),
            journal_limit=self._settings.journal.max_size,
        )

    def _silent(self, figures: Figures) -> dict[str, bool]:
        """Sources with `expect_every`; one that never had an event is silent so long after it was configured."""
        now = self._clock.now()
        heard = figures.watched_since_us | figures.last_event_us
        return {
            name: now - heard.get(name, now * 1e6) / 1e6 > source.expect_every_s
            for name, source in self._settings.sources.items()
            if source.expect_every_s is not None
        }

    def status(self) -> dict[str, Any]:
        """The document of `GET /status`."""
        try:
            figures, pauses = self.journal.figures(), self.journal.load_pauses()
        except JournalError:  # why is told by `ready`
            figures, pauses = Figures(), ()
        silent = self._silent(figures)
        ready = self.ready()
        age_s = None
        if figures.oldest_pending_us is not None:
            age_s = round(max(0.0, self._clock.now() - figures.oldest_pending_us / 1e6), 1)
        degraded = [f"paused: {pause.reason} ({pause.scope} {pause.target})".replace(" )", ")") for pause in pauses]
        if age_s is not None and age_s > OLD_PENDING_S:
            degraded.append(f"the oldest change has waited for {span(age_s)}")
        if not ready.ok:
            degraded.append(ready.why)
        degraded.extend(f"source {name} is silent" for name, is_silent in silent.items() if is_silent)
        return {
            "degraded": degraded,
            "crm": "sandbox" if self._settings.crm.sandbox else urlsplit(self._settings.crm.base_url).hostname,
            "ready": ready.ok,
            "pending": figures.pending,
            "pending_limit": self._settings.journal.max_pending,
            "waiting": waiting_document(figures.waiting),
            "oldest_pending_at": iso(figures.oldest_pending_us),
            "oldest_pending_age_s": age_s,
            "in_flight": figures.delivery.get("in_flight", 0),
            "retrying": figures.retrying,
            "parked": figures.parked,
            "pauses": list(map(pause_document, pauses)),
            "limiter": figures.delivery.get("limiter", {}),
            "daily_calls_left": figures.delivery.get("daily_calls_left"),
            "journal": {
                "size_bytes": self.journal.size(),
                "limit_bytes": self._settings.journal.max_size,
                "counted_at": iso(figures.at_us),
            },
            "sources": {
                name: {
                    "last_event_at": iso(figures.last_event_us.get(name)),
                    "events_per_second": figures.rates.get(name, 0.0),
                    "silent": silent.get(name, False),
                }
                for name in self._settings.sources
            },
            "versions": {"partner_bridge": __version__, "journal": HEAD},
        }

    # --- apps ---

    def _public_app(self) -> WSGI:
        app = _flask("bridge.public")
        webhooks = Webhooks(
            sources=lambda: self._endpoints,
            journal=self._commits,
            observer=self._observing,
            draining=lambda: self._drain_by is not None,
            clock=self._clock,
            pause=self._pause,
            wait=self._wait,
            turns=self._turns,
        )
        app.register_blueprint(webhooks.blueprint())
        app.register_blueprint(health_blueprint(self, detail=False))
        register_problem_handlers(app)
        return webhooks.before(app)

    def _admin_app(self) -> Flask:
        app = _flask("bridge.admin")
        app.register_blueprint(health_blueprint(self, detail=True))
        app.register_blueprint(admin_blueprint(self, self.metrics))
        app.register_blueprint(api_blueprint(self._desk))
        app.register_blueprint(openapi_blueprint(lambda: self._settings))
        app.register_blueprint(
            console_blueprint(
                desk=self._desk,
                acts=self._acts,
                vitals=self,
                metrics=self.metrics,
                settings=lambda: self._settings,
                wrong_tokens=self._wrong_tokens,
            )
        )
        server = self._settings.server
        guard(app, host=server.admin_bind[0], token=server.admin_token, wrong_tokens=self._wrong_tokens)
        register_problem_handlers(app)
        return app


def _flask(name: str) -> Flask:
    app = Flask(name, static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False  # no redirects: senders do not follow them
    return app


def counters_folder() -> Path | None:
    """Where the processes of this service count together: the folder that the master has made for metrics."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None


def endpoints(settings: Settings, quotas: Quotas | None = None) -> Mapping[str, Endpoint]:
    """The webhook endpoints of all sources; without `quotas` no limit holds."""
    return {
        name: Endpoint(
            source=source,
            verifier=Verifier(source.source.verify, settings.server.public_url),
            max_body=source.source.max_body or settings.server.max_body,
            quota=quotas.quota(name, source.source.limit) if quotas is not None else None,
        )
        for name, source in compile_sources(settings).items()
    }
