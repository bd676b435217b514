"""Journal, dispatcher and HubSpot client as they are, in this process, against the sandbox over HTTP."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import structlog

from bridge.crm.hubspot import HubSpot
from bridge.crm.properties import Portal
from bridge.delivery.dispatcher import Dispatcher
from bridge.delivery.ports import OnUnknown
from bridge.journal.retry_log import Entry, Filter
from bridge.journal.store import Journal
from bridge.model import Event, Lane, Pause, PendingRecord
from bridge.operations.metrics import Metrics, Observing
from bridge.sandbox import Crm, Response, SandboxServer
from bridge.sandbox.records import Call
from bridge.settings import Crm as CrmSettings
from bridge.settings import Journal as JournalSettings
from bridge.settings import RateLimit, Retry
from tests.builders import LANE, event
from tests.empty_journal import prepare
from tests.running import eventually

#: Times of events without one of their own: the past, so that later ones are newer and none is in the future.
LONG_AGO = 1_700_000_000.0


#: Delays that a test can wait for.
SOON = Retry(base_s=0.05, max_s=0.4, give_up_after_s=3600)


class ShiftingClock:
    """The machine's clocks, ahead by what a test says: waits of minutes and days pass at once."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> float:
        return time.time() + self.ahead_s

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s

    def shift(self, seconds: float) -> None:
        self.ahead_s += seconds


@dataclass
class Rig:
    """One journal, one dispatcher, one CRM. Change `crm` and the settings before `start`, `crm` also later."""

    folder: Path
    crm: Crm
    url: str = ""  # the sandbox's, unless something stands between
    on_unknown: Callable[[PendingRecord], OnUnknown] = lambda record: "park"
    retry: Retry = SOON
    batch_size: int = 100
    in_flight: int = 4
    flush_interval_s: float = 0.03
    timeout_s: float = 5.0
    token: str = "token"
    validates: bool = False  # what the portal's definitions rule out is not sent
    clock: ShiftingClock = field(default_factory=ShiftingClock)
    metrics: Metrics = field(default_factory=Metrics)
    events: int = 0

    def open(self) -> None:
        """Open the journal, which may be there already."""
        prepare(self.journal_url)
        observing = Observing(self.metrics)
        self.journal = Journal(
            settings=JournalSettings(url=self.journal_url),
            clock=self.clock,
            retry_max_s=self.retry.max_s,
            watcher=observing,
        )
        client = HubSpot(
            base_url=self.url, api_path="/crm/v3/objects", token=lambda: self.token, timeout_s=self.timeout_s
        )
        self.dispatcher = Dispatcher(
            journal=self.journal,
            crm=client,
            settings=CrmSettings(
                batch_size=self.batch_size,
                flush_interval_s=self.flush_interval_s,
                max_in_flight=self.in_flight,
                rate_limit=RateLimit(100_000, 10.0),
            ),
            retry=self.retry,
            on_unknown=self.on_unknown,
            clock=self.clock,
            observer=observing,
            portal=Portal(crm=client, path="/crm/v3/properties", name="the sandbox") if self.validates else None,
        )

    def start(self) -> None:
        """Begin to deliver."""
        self.dispatcher.start()

    def close(self) -> None:
        """Stop delivering and close the journal, as a service does at its end."""
        self.dispatcher.stop(grace_s=0.2)
        self.journal.close()

    def restart(self) -> None:
        self.close()
        self.open()
        self.start()

    @property
    def journal_url(self) -> str:
        return f"sqlite:///{self.folder}/journal.db"

    # --- what partners ask ---

    def ask(
        self,
        record: str,
        properties: Mapping[str, str] | None = None,
        *,
        lane: Lane = LANE,
        at: float | None = None,
        source: str = "acme",
    ) -> None:
        """One event for one record."""
        wanted = {record: properties or {"company_name": f"name of {record}"}}
        self.ask_all(wanted, lane=lane, at=at, source=source)

    def ask_all(
        self,
        wanted: Mapping[str, Mapping[str, str]] | Sequence[str],
        *,
        lane: Lane = LANE,
        at: float | None = None,
        source: str = "acme",
    ) -> None:
        """An event for each of these records, all at once."""
        if not isinstance(wanted, Mapping):
            wanted = {record: {"company_name": f"name of {record}"} for record in wanted}
        made: list[Event] = []
        for record, properties in wanted.items():
            self.events += 1
            when = LONG_AGO + self.events if at is None else at
            made.append(event(f"e{self.events}", record, properties, lane=lane, at=when, source=source))
        self.journal.append(made)
        self.dispatcher.notify()

    # --- looking in ---

    def held(self, lane: Lane = LANE) -> dict[str, dict[str, str]]:
        """What the CRM holds, by id."""
        return self.crm.state(id_property=lane.id_property).get(lane.object_type, {})

    def calls(self, object_type: str | None = None) -> list[Call]:
        return [call for call in self.crm.ledger.calls("update") if object_type in {None, call.object_type}]

    def entries(self) -> dict[str, Entry]:
        """The retry log by record; refused properties under the record's name too."""
        return {entry.record or entry.id: entry for entry in self.journal.entries(Filter())}

    def parked(self) -> dict[str, Entry]:
        return {record: entry for record, entry in self.entries().items() if entry.state == "parked"}

    def idle(self) -> bool:
        """Whether nothing is to be delivered any more, now or later."""
        waiting = self.journal.refresh_figures().pending
        return waiting == 0 and self.dispatcher.in_flight == 0

    def pauses(self) -> list[Pause]:
        return self.dispatcher.pauses

    def reasons(self) -> list[str]:
        return [pause.reason for pause in self.pauses()]

    def settled(self, outcome: str) -> float:
        """`bridge_values_settled_total` of this outcome."""
        found = self.metrics._registry.get_sample_value("bridge_values_settled_total", {"outcome": outcome})
        return found or 0.0

    # --- waiting ---

    def until(self, check: Callable[[], bool], *, within_s: float = 60.0, passing_s: float = 0.0) -> None:
        """Wait for `check`, while `passing_s` go by at every look; show what there is when it does not come true."""

        def look() -> bool:
            self.clock.shift(passing_s)
            return check()

        if not eventually(look, within_s=within_s, every_s=0.01):
            raise AssertionError(
                f"pauses {self.pauses()}, entries {list(self.entries().values())}, calls "
                f"{[(call.status, call.fault, len(call.inputs)) for call in self.calls()][-30:]}"
            )

    def check_contract(self) -> None:
        violations = self.crm.ledger.violations()
        assert violations == [], violations[:5]
        assert all(1 <= len(call.inputs) <= 100 for call in self.calls())


@contextlib.contextmanager
def rigged(folder: Path, crm: Crm | None = None, **options: Any) -> Iterator[Rig]:
    """A rig that delivers; at its end nothing may have broken HubSpot's contract."""
    crm = crm if crm is not None else Crm(open_properties=False)
    crm.define("partner_services", "company_name")
    with SandboxServer(crm) as server:
        rig = Rig(folder, crm, **{"url": server.url, **options})
        rig.open()
        rig.start()
        try:
            yield rig
        finally:
            rig.close()
        rig.check_contract()


def quiet() -> None:
    """No log lines: benchmarks print their figures only."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def says(status: int, body: Any = None, *, headers: Mapping[str, str] | None = None) -> Response:
    """An answer of the sandbox with this body: JSON, or text as it is."""
    if isinstance(body, str):
        return Response(status, body.encode(), {"Content-Type": "text/plain", **(headers or {})})
    return Response(status, orjson.dumps(body or {}), {"Content-Type": "application/json", **(headers or {})})
