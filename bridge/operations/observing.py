"""Who watches the rooms at work: turns what they tell into metrics and one log line each."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from bridge.delivery.ports import Settled as CallSettled
from bridge.intake.webhooks import UNKNOWN_SOURCE, Counts
from bridge.journal.appending import Appended
from bridge.journal.delivering import Settled
from bridge.model import Intake, Pause
from bridge.operations.metrics import Metrics

#: A disk in trouble fails every write; one line in this time is enough.
TROUBLE_EVERY_S = 10.0


class Observing:
    """Observer of intake, journal and delivery. Thread-safe; never blocks or raises for what it is told."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log = structlog.get_logger("bridge")
        self._trouble_told: dict[str, float] = {}  # kind → monotonic

    # --- intake ---

    def webhook(self, source: str, code: int, duration_s: float, counts: Counts) -> None:
        """One line and the counts of one webhook request."""
        metrics = self._metrics
        metrics.webhook(source, str(code))
        metrics.webhook_duration.observe(duration_s)
        metrics.event(source, Intake.ACCEPTED, counts.accepted)
        metrics.event(source, Intake.DUPLICATE, counts.duplicates)
        metrics.event(source, Intake.IGNORED, counts.ignored)
        metrics.event(source, Intake.PARKED, counts.parked)
        metrics.event(source, "invalid", counts.invalid)
        metrics.event(source, "undated", counts.undated)
        metrics.event(source, "conflict", counts.conflicts)
        metrics.mapped(source, counts.found)
        self._log.info(
            "webhook",
            source=source,
            code=str(code),
            duration_ms=round(duration_s * 1000, 1),
            reason=counts.reason,
            accepted=counts.accepted,
            duplicates=counts.duplicates,
            ignored=counts.ignored,
            parked=counts.parked,
            invalid=counts.invalid,
            undated=counts.undated,
            conflicts=counts.conflicts,
            unlisted=counts.unlisted,
            records=counts.records,
            event_ids=counts.event_ids,
        )

    def verification(self, source: str, result: str, secret: int | None) -> None:
        """The verdict on one signature."""
        self._metrics.verification(source, result, "" if secret is None else str(secret))

    def unreadable(self, code: int, error: str, address: str) -> None:
        """A request that the HTTP parser refused, on either port: its content is not logged."""
        self._metrics.webhook(UNKNOWN_SOURCE, str(code))
        self._log.warning("request unreadable", code=str(code), error=error, address=address)

    # --- journal ---

    def committed(self, duration_s: float, appended: Appended) -> None:
        """One group commit."""
        self._metrics.commit_duration.observe(duration_s)
        self._metrics.settled("superseded", appended.merged.superseded)
        self._metrics.settled("unchanged", appended.merged.unchanged)
        self._metrics.settled("refused", appended.merged.refused)
        if appended.merged.future:
            self._log.warning("events dated ahead of their arrival", events=appended.merged.future)

    def settled(self, settled: Settled) -> None:
        """What one call settled, or a person."""
        self._metrics.settled("delivered", settled.delivered)
        self._metrics.settled("refused", settled.refused)
        self._metrics.settled("unknown", settled.unknown)
        self._metrics.settled("discarded", settled.discarded)
        for source, delay_s in settled.delays:
            self._metrics.delivery_delay.labels(source).observe(delay_s)

    def troubled(self, kind: str) -> None:
        """The journal's file made trouble: told at once, then every `TROUBLE_EVERY_S`."""
        self._metrics.journal_errors.labels(kind).inc()
        now = time.monotonic()
        if now - self._trouble_told.get(kind, float("-inf")) >= TROUBLE_EVERY_S:
            self._trouble_told[kind] = now
            self._log.error("journal in trouble", kind=kind)

    # --- delivery ---

    def called(self, settled: CallSettled) -> None:
        """One CRM call. Its log line is the dispatcher's."""
        self._metrics.crm_calls.labels(settled.code).inc()
        self._metrics.call_duration.observe(settled.duration_s)
        if settled.records:
            self._metrics.batch_records.observe(settled.records)

    def waited(self, seconds: float) -> None:
        """Delivery was ready and the rate limit held it back."""
        self._metrics.rate_limit_wait.inc(seconds)

    def paused(self, pauses: Sequence[Pause]) -> None:
        """The pauses changed: the dispatcher logs them, and the gauges read them from the journal."""

    def stumbled(self, error: str) -> None:
        """The dispatcher met an unexpected error, which it logs, and goes on."""
