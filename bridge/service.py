"""The one place that builds and wires everything: journal, intake, delivery, operations.

The rooms do not know each other; here they are introduced. Every worker process has one `Service`. All of them
take webhooks; the one that holds the dispatch lock also delivers, counts the figures and prunes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flask import Flask

from bridge import __version__
from bridge.duty import Duty
from bridge.errors import JournalError
from bridge.intake.mapping import CompiledSource, compile_source
from bridge.intake.signatures import Verifier
from bridge.intake.webhooks import Endpoint, Webhooks, register_problem_handlers
from bridge.journal.group_commit import GroupCommit
from bridge.journal.kept import KeptEvent, Remap, Remapped
from bridge.journal.schema import HEAD
from bridge.journal.store import Journal
from bridge.journal.upkeep import Figures
from bridge.model import Clock, SystemClock, iso
from bridge.operations.access import guard
from bridge.operations.admin_api import api_blueprint
from bridge.operations.api import admin_blueprint, health_blueprint
from bridge.operations.desk import JournalDesk, pause_document
from bridge.operations.health import OLD_PENDING_S, STUCK_AFTER_S, Verdict
from bridge.operations.metrics import Gauges, Metrics
from bridge.operations.observing import Observing
from bridge.settings import Settings

#: What a clean stop keeps of `drain_timeout` for closing.
CLOSING_S = 0.5

WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def compile_sources(settings: Settings) -> dict[str, CompiledSource]:
    """All sources, ready for payloads."""
    public_url = settings.server.public_url
    return {name: compile_source(source, public_url) for name, source in settings.sources.items()}


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

    def __init__(self, *, settings: Settings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self.metrics = Metrics()
        self._observing = Observing(self.metrics)
        self._drain_by: float | None = None
        self.journal = Journal(
            settings=settings.journal,
            clock=self._clock,
            retry_max_s=settings.retry.max_s,
            watcher=self._observing,
        )
        self._duty = Duty(settings=settings, clock=self._clock, journal=self.journal, observing=self._observing)
        self._commits = GroupCommit(journal=self.journal, committed=self._duty.notify)
        self._endpoints = endpoints(settings)
        self.public = self._public_app()
        self.admin = self._admin_app()
        self.wsgi = self._by_port(self.public, self.admin)

    # --- life ---

    def start(self) -> None:
        """Begin to deliver, or to wait for the dispatch lock."""
        self._duty.start()

    def begin_drain(self) -> None:
        """Not ready any more; called from a signal handler, hence only a note of the time."""
        if self._drain_by is None:
            self._drain_by = self._clock.monotonic() + self._settings.server.drain_timeout_s

    def stop(self) -> None:
        """Flush what fits into `drain_timeout`, then close. What is left waits in the journal."""
        self.begin_drain()
        assert self._drain_by is not None  # noqa: S101 (begin_drain has set it)
        self._commits.close()
        self._duty.stop(deadline=self._drain_by - CLOSING_S)
        self.journal.close()

    # --- vitals ---

    def alive(self) -> Verdict:
        """False when the dispatcher makes no progress, which a restart cures."""
        stuck_s = self._duty.stuck_s()
        if stuck_s > STUCK_AFTER_S:
            return Verdict(ok=False, why=f"the dispatcher has made no progress for {stuck_s:.0f} s")
        return Verdict(ok=True)

    def ready(self) -> Verdict:
        """Whether a webhook could be journalled now."""
        if self._drain_by is not None:
            return Verdict(ok=False, why="draining")
        try:
            self.journal.refuse_if_full()
            self.journal.check_writable()
        except JournalError as error:
            return Verdict(ok=False, why=str(error))
        return Verdict(ok=True)

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
        now = self._clock.now()
        return {
            name: now - figures.last_event_us.get(name, 0) / 1e6 > source.expect_every_s
            for name, source in self._settings.sources.items()
            if source.expect_every_s is not None
        }

    def status(self) -> dict[str, Any]:
        """The document of `GET /status`."""
        figures = self.journal.figures()
        pauses = self.journal.load_pauses()
        silent = self._silent(figures)
        ready = self.ready()
        age_s = None
        if figures.oldest_pending_us is not None:
            age_s = round(max(0.0, self._clock.now() - figures.oldest_pending_us / 1e6), 1)
        degraded = [f"paused: {pause.reason} ({pause.scope} {pause.target})".replace(" )", ")") for pause in pauses]
        if age_s is not None and age_s > OLD_PENDING_S:
            degraded.append(f"the oldest change has waited for {age_s:.0f} s")
        if not ready.ok:
            degraded.append(ready.why)
        degraded.extend(f"source {name} is silent" for name, is_silent in silent.items() if is_silent)
        return {
            "degraded": degraded,
            "ready": ready.ok,
            "pending": figures.pending,
            "pending_limit": self._settings.journal.max_pending,
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

    def _public_app(self) -> Flask:
        app = Flask("bridge.public", static_folder=None)
        webhooks = Webhooks(
            sources=lambda: self._endpoints,
            journal=self._commits,
            observer=self._observing,
            draining=lambda: self._drain_by is not None,
            clock=self._clock,
        )
        app.register_blueprint(webhooks.blueprint())
        app.register_blueprint(health_blueprint(self, detail=False))
        register_problem_handlers(app)
        return app

    def _admin_app(self) -> Flask:
        app = Flask("bridge.admin", static_folder=None)
        app.register_blueprint(health_blueprint(self, detail=True))
        app.register_blueprint(admin_blueprint(self, self.metrics))
        desk = JournalDesk(journal=self.journal, make_remap=lambda: make_remap(self._settings))
        app.register_blueprint(api_blueprint(desk))
        guard(app, host=self._settings.server.admin_bind[0], token=self._settings.server.admin_token)
        register_problem_handlers(app)
        return app

    def _by_port(self, public: Flask, admin: Flask) -> WSGI:
        """Which app answers is decided by the port of the socket, which no request can choose."""
        admin_port = str(self._settings.server.admin_bind[1])

        def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            return (admin if environ["SERVER_PORT"] == admin_port else public)(environ, start_response)

        return wsgi


def endpoints(settings: Settings) -> Mapping[str, Endpoint]:
    """The webhook endpoints of all sources."""
    return {
        name: Endpoint(
            source=source,
            verifier=Verifier(source.source.verify, settings.server.public_url),
            max_body=source.source.max_body or settings.server.max_body,
        )
        for name, source in compile_sources(settings).items()
    }
