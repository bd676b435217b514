"""Who is on duty: of all worker processes one delivers, counts the figures and prunes.

The lock decides, and the kernel frees it when its holder dies, so that another worker takes over within
`ASK_EVERY_S`. A dispatcher whose loop ended is replaced by a new one; the journal knows all that it needs.
"""

from __future__ import annotations

import threading
from typing import Any

import structlog

from bridge.delivery.dispatcher import Dispatcher
from bridge.delivery.hubspot import HubSpot
from bridge.journal.store import Journal
from bridge.journal.versions import DispatchLock
from bridge.model import Clock, PendingRecord
from bridge.operations.observing import Observing
from bridge.settings import Settings

#: How often the journal's figures are counted anew, and a step of retention is made.
UPKEEP_EVERY_S = 1.0
#: How often a worker that is not on duty asks for the lock.
ASK_EVERY_S = 0.25


class OnUnknown:
    """What the sources of a record say about one that the CRM does not know: the most careful word counts."""

    CAREFUL = ("park", "wait", "ignore")

    def __init__(self, settings: Settings) -> None:
        self._words: dict[tuple[str, str, str], Any] = {}
        for source in settings.sources.values():
            for block in source.mappings:
                address = (source.name, block.object_type, block.record.id_property)
                self._words[address] = self._more_careful(self._words.get(address), block.record.on_unknown)

    def __call__(self, record: PendingRecord) -> Any:
        lane = record.key.lane
        word = None
        for source in record.sources:
            word = self._more_careful(word, self._words.get((source, lane.object_type, lane.id_property), "park"))
        return word or "park"

    def _more_careful(self, one: str | None, other: str) -> str:
        return other if one is None else min(one, other, key=self.CAREFUL.index)


class Duty:
    """Runs the dispatcher while this process holds the lock. Thread-safe.

    Threads: `duty` asks for the lock, does the upkeep and watches; the dispatcher has threads of its own.
    """

    def __init__(self, *, settings: Settings, clock: Clock, journal: Journal, observing: Observing) -> None:
        self._settings = settings
        self._clock = clock
        self._journal = journal
        self._observing = observing
        self._lock = DispatchLock(settings.journal.url)
        self._log = structlog.get_logger("bridge")
        self._stopping = threading.Event()
        self._dispatcher: Dispatcher | None = None
        self._crm: HubSpot | None = None
        self._thread = threading.Thread(target=self._run, name="duty", daemon=True)

    def start(self) -> None:
        """Ask for the lock from now on."""
        self._thread.start()

    def notify(self) -> None:
        """Something may be due."""
        dispatcher = self._dispatcher
        if dispatcher is not None:
            dispatcher.notify()

    def stuck_s(self) -> float:
        """For how long the dispatcher of this process has made no progress; 0 when another process delivers."""
        dispatcher = self._dispatcher
        return 0.0 if dispatcher is None else max(0.0, self._clock.monotonic() - dispatcher.last_progress)

    def stop(self, *, deadline: float) -> None:
        """Flush what fits until `deadline` (monotonic), then end; what is left stays due."""
        self._stopping.set()
        dispatcher = self._dispatcher
        if dispatcher is not None:
            dispatcher.drain(deadline)
        if self._thread.is_alive():
            self._thread.join(max(0.1, deadline - self._clock.monotonic()))
        self._lock.release()
