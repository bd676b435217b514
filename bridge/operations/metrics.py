"""The metrics of the service, right with any number of worker processes, and who fills them.

Counters and histograms are kept per process and added up at the scrape (prometheus-client's multiprocess
mode, on when `PROMETHEUS_MULTIPROC_DIR` is set before this module is imported); a worker in the place of one that died
goes on with its counts, so that nothing is seen to fall and files do not become more. Gauges come from the journal at
the scrape, so that every worker and replica gives the same answer and none lingers after its process: rules take their
maximum, never their sum.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from bridge import __version__
from bridge.delivery.ports import CallSummary
from bridge.errors import JournalError
from bridge.intake.signatures import Reason
from bridge.intake.values import Found
from bridge.intake.webhooks import UNKNOWN_SOURCE, Counts
from bridge.journal.appending import Appended
from bridge.journal.delivering import Settlement
from bridge.model import Intake, Pause

WEBHOOK_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
COMMIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
CALL_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 20, 30, 60)
DELAY_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600, 6 * 3600, 86400)
BATCH_BUCKETS = (1, 2, 5, 10, 20, 40, 60, 80, 99, 100)

#: What becomes of an event at the door: the label `outcome` of `bridge_events_total`.
EVENT_OUTCOMES = (*map(str, Intake), "invalid", "conflict", "undated")
#: Kinds of trouble that the journal's file makes.
TROUBLES = ("full", "io", "read-only", "damaged", "gone")
#: Answers that alerts count.
WATCHED_CODES = ("202", "401", "503")
#: Rows of the retry log that are told of also when there are none, so that its growth from nothing is seen.
USUAL_ENTRIES = (
    ("parked", "GAVE_UP"),
    ("parked", "OBJECT_NOT_FOUND"),
    ("parked", "UNMAPPABLE"),
    ("parked", "VALIDATION_ERROR"),
    ("retrying", "UNCONFIRMED"),
)
#: Outcomes of a property that begin at zero, of so many properties in all: a configuration may have a hundred thousand.
USUAL_FOUND, MAX_BEGUN = ("present", "absent"), 1_000
#: Categories are the CRM's words: of more than so many the rarer ones are told as `OTHER`.
MAX_CATEGORIES = 30
#: Seconds within which what events brought is counted.
FLUSH_S = 1.0
#: The file, among the counters of all processes, that stands for a configuration that was refused.
REFUSED_MARK = "configuration-refused"


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is true of the whole deployment now; times are seconds since the epoch."""

    pending: int
    pending_limit: int
    oldest_pending: float | None
    entries: tuple[tuple[str, str, int], ...]  # retry log: (state, category, number)
    last_event: dict[str, float]  # source → arrival of its newest event
    silent: dict[str, bool]  # sources with `expect_every`
    pauses: tuple[Pause, ...]
    daily_calls_left: int | None
    journal_bytes: int
    journal_limit: int


def bounded(entries: Sequence[tuple[str, str, int]]) -> dict[tuple[str, str], int]:
    """Rows of the retry log by state and category, of which there are at most `MAX_CATEGORIES` and `OTHER`."""
    found: Tally[tuple[str, str]] = Tally(dict.fromkeys(USUAL_ENTRIES, 0))
    by_category: Tally[str] = Tally({category: 0 for _, category in USUAL_ENTRIES})
    for _, category, number in entries:
        by_category[category] += number
    told = {category for category, _ in by_category.most_common(MAX_CATEGORIES)}
    for state, category, number in entries:
        found[state, category if category in told else "OTHER"] += number
    return dict(found)


Labelled = tuple[tuple[str, ...], float]  # the values of its labels, and its own


def gauge_families(gauges: Gauges) -> Iterator[Metric]:
    """The gauges as the library exposes them."""
    yield _gauge("bridge_records_pending", "Records with something to deliver that are not parked.", gauges.pending)
    yield _gauge("bridge_records_pending_limit", "journal.max_pending.", gauges.pending_limit)
    yield _gauge(
        "bridge_oldest_pending_timestamp_seconds",
        "Arrival of the oldest change that waits to be delivered; 0 when none waits.",
        gauges.oldest_pending or 0,
    )
    yield _gauge("bridge_journal_size_bytes", "Bytes of the journal on disk.", gauges.journal_bytes)
    yield _gauge("bridge_journal_limit_bytes", "journal.max_size.", gauges.journal_limit)
    if gauges.daily_calls_left is not None:
        yield _gauge(
            "bridge_crm_daily_calls_remaining", "CRM calls left until the portal's midnight.", gauges.daily_calls_left
        )
    yield _labelled(
        "bridge_retry_log_entries", "Rows of the retry log.", ["state", "category"], bounded(gauges.entries).items()
    )
    yield _labelled(
        "bridge_crm_paused",
        "1 while delivery is paused, by reason and scope.",
        ["reason", "scope"],
        {((pause.reason, str(pause.scope)), 1) for pause in gauges.pauses},
    )
    yield _labelled(
        "bridge_source_last_event_timestamp_seconds",
        "Arrival of the source's last event.",
        ["source"],
        [((source,), at) for source, at in gauges.last_event.items()],
    )
    yield _labelled(
        "bridge_source_silent",
        "1 if no event came for longer than expect_every.",
        ["source"],
        [((source,), int(is_silent)) for source, is_silent in gauges.silent.items()],
    )


def _own_families(*, reloaded: bool) -> Iterator[Metric]:
    """What is known without the journal."""
    yield _labelled("bridge_build_info", "1, labelled with the version.", ["version"], [((__version__,), 1)])
    yield _gauge(
        "bridge_config_last_reload_successful",
        "1 if the configuration was last read without problems.",
        int(reloaded),
    )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _labelled(name: str, text: str, labels: Sequence[str], numbers: Iterable[Labelled]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for of_labels, number in sorted(numbers):
        family.add_metric(of_labels, number)
    return family


class _Families(Collector):
    """Families that are there already, for a registry."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


class Metrics:
    """All counters and histograms of one process. Thread-safe, as prometheus-client's are."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._reloaded = True
        counter = functools.partial(Counter, registry=self._registry)
        histogram = functools.partial(Histogram, registry=self._registry)
        self.webhooks = counter("bridge_webhooks_total", "Webhook requests answered.", ["source", "code"])
        self.webhook_duration = histogram(
            "bridge_webhook_duration_seconds", "Time from request to answer.", buckets=WEBHOOK_BUCKETS
        )
        self.verifications = counter(
            "bridge_verifications_total",
            "Signature checks, with the position of the secret that matched.",
            ["source", "result", "secret"],
        )
        self.events = counter("bridge_events_total", "Events by what they were taken as.", ["source", "outcome"])
        self.mapped_properties = counter(
            "bridge_mapped_properties_total",
            "Events that a mapping read, by what they brought for each of its properties.",
            ["source", "property", "outcome"],
        )
        # By their labels, of which the library makes texts under a lock: that takes as long as to count.
        self._webhooks = functools.cache(self.webhooks.labels)
        self._verifications = functools.cache(self.verifications.labels)
        self._events = functools.cache(self.events.labels)
        #: Source and outcome → property → counter, for the same reason.
        self._mapped: dict[tuple[str, str], dict[str, Counter]] = {}
        self._flushing = threading.Lock()  # guards the next two
        self._found: dict[tuple[str, str], Tally[str]] = {}  # by source and outcome: properties
        self._flush_soon: threading.Timer | None = None
        self.delivery_delay = histogram(
            "bridge_delivery_delay_seconds", "Time from accepted to confirmed.", ["source"], buckets=DELAY_BUCKETS
        )
        self.values_settled = counter(
            "bridge_values_settled_total", "Property values by what became of them.", ["outcome"]
        )
        self.crm_calls = counter("bridge_crm_calls_total", "CRM calls by status code.", ["code"])
        self.call_duration = histogram("bridge_crm_call_duration_seconds", "Time of a CRM call.", buckets=CALL_BUCKETS)
        self.batch_records = histogram("bridge_batch_records", "Records in a CRM call.", buckets=BATCH_BUCKETS)
        self.rate_limit_wait = counter(
            "bridge_rate_limit_wait_seconds_total", "Time delivery waited for the rate limit."
        )
        self.commit_duration = histogram(
            "bridge_journal_commit_duration_seconds",
            "Time of a group commit of the journal.",
            buckets=COMMIT_BUCKETS,
        )
        self.journal_errors = counter(
            "bridge_journal_errors_total",
            f"Reads and writes that the journal's file failed, by kind: {', '.join(TROUBLES)}.",
            ["kind"],
        )
        for kind in TROUBLES:
            self.journal_errors.labels(kind)
        for outcome in ("delivered", "superseded", "unchanged", "refused", "unknown", "discarded"):
            self.values_settled.labels(outcome)

    def settled(self, outcome: str, number: int) -> None:
        """Count values that reached an end."""
        if number:
            self.values_settled.labels(outcome).inc(number)

    def webhook(self, source: str, code: str) -> None:
        """Count an answer."""
        self._webhooks(source, code).inc()

    def verification(self, source: str, result: str, secret: str) -> None:
        """Count the verdict on one signature."""
        self._verifications(source, result, secret).inc()

    def event(self, source: str, outcome: str, number: int) -> None:
        """Count events of one source."""
        if number:
            self._events(source, outcome).inc(number)

    def mapped(self, source: str, found: Found) -> None:
        """Count what events brought for the properties of one source, within `FLUSH_S`: there are many of them, and to
        raise a counter that processes share costs as much as to map a value.
        """
        with self._flushing:
            for outcome, properties in found.items():
                self._found.setdefault((source, outcome), Tally()).update(properties)
            if found and self._flush_soon is None:
                self._flush_soon = threading.Timer(FLUSH_S, self.flush)
                self._flush_soon.daemon = True
                self._flush_soon.start()

    def flush(self) -> None:
        """Count what `mapped` was told."""
        with self._flushing:
            found, self._found, self._flush_soon = self._found, {}, None
        for (source, outcome), properties in found.items():
            counters = self._mapped.setdefault((source, outcome), {})
            for name, number in properties.items():
                counter = counters.get(name)
                if counter is None:
                    counter = counters[name] = self.mapped_properties.labels(source, name, outcome)
                counter.inc(number)

    def expect(self, sources: Mapping[str, Collection[str]]) -> None:
        """Begin what these sources and their properties will be counted by: a rate does not see the step from nothing
        to one.
        """
        every = [(source, name) for source, properties in sources.items() for name in sorted(properties)]
        for source, name in every[:MAX_BEGUN]:
            for outcome in USUAL_FOUND:
                self.mapped_properties.labels(source, name, outcome)
        for source in sources:
            for code in WATCHED_CODES:
                self.webhooks.labels(source, code)
            for outcome in EVENT_OUTCOMES:
                self.events.labels(source, outcome)
            self.verifications.labels(source, "accepted", "0")
            for reason in get_args(Reason):
                self.verifications.labels(source, reason, "")
            self.delivery_delay.labels(source)

    def reloaded(self, *, succeeded: bool) -> None:
        """How the configuration was last read, by whichever process: all of them tell the same."""
        self._reloaded = succeeded
        if (folder := _shared_folder()) is None:
            return
        mark = folder / REFUSED_MARK
        if succeeded:
            mark.unlink(missing_ok=True)
        else:
            mark.touch()

    def counted(self, name: str) -> list[tuple[dict[str, str], float]]:
        """One counter of all processes: its labels and what it counts since the service began, unless it is none."""
        self.flush()
        return [
            (sample.labels, sample.value)
            for family in self._counters().collect()
            for sample in family.samples
            if sample.name == name and sample.value
        ]

    def exposition(self, gauges: Callable[[], Gauges]) -> bytes:
        """The text that `GET /metrics` answers: all processes' counters and the deployment's gauges."""
        self.flush()
        folder = _shared_folder()
        now = CollectorRegistry()
        reloaded = self._reloaded if folder is None else not (folder / REFUSED_MARK).exists()
        now.register(_Families(_own_families(reloaded=reloaded)))
        # A failed read is among the counters; what is known without the journal is told all the same.
        with contextlib.suppress(JournalError):
            now.register(_Families(gauge_families(gauges())))
        return generate_latest(self._counters()) + generate_latest(now)

    def _counters(self) -> CollectorRegistry:
        """The counters of all processes."""
        if _shared_folder() is None:
            return self._registry
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library types only a part of itself
        return registry


def count_as(slot: int) -> None:
    """Count in this slot of the shared folder from now on, beginning with what is there: a process that died left it.
    No two processes may have the same at a time. Called before any `Metrics` is made.
    """
    if _shared_folder() is not None:
        values.ValueClass = values.MultiProcessValue(lambda: slot)  # type: ignore[no-untyped-call]  # as elsewhere


def _shared_folder() -> Path | None:
    """Where all processes of the service count together, if they do."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None


# --- who watches the rooms at work: turns what they tell into metrics and one log line each ---

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

    def settled(self, settled: Settlement) -> None:
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

    def called(self, settled: CallSummary) -> None:
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
