"""Health as values, and its HTTP: alive, ready, and the figures of `GET /status`.

Alive depends only on what a restart cures: a dispatcher that makes no progress, a writer that ended. Ready means
that a webhook could be journalled now; a CRM outage changes neither.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

from flask import Blueprint, Response, g

from bridge.errors import JournalError
from bridge.operations.access import STATUS
from bridge.operations.metrics import Gauges, Metrics
from bridge.showing import printable_json

#: A dispatcher that has not finished a step for this long is stuck: its longest wait is a second.
STUCK_AFTER_S = 60.0
#: `status` calls the service degraded when the oldest change has waited longer than this.
OLD_PENDING_S = 300.0
#: How long a probe waits for the journal: Kubernetes gives a probe one second unless told otherwise.
PROBE_TIMEOUT_S = 0.5
#: How long its answer counts for those who ask next: a check is a write transaction.
PROBE_FRESH_S = 0.25


@dataclass(frozen=True, slots=True)
class Health:
    """Whether all is well, and if not, why, in one sentence."""

    ok: bool
    why: str = ""


class Probed(Protocol):
    """What answers `/livez` and `/readyz`."""

    def alive(self) -> Health: ...

    def ready(self) -> Health: ...


class Vitals(Probed, Protocol):
    """What the service tells about itself."""

    def gauges(self) -> Gauges: ...

    def status(self) -> dict[str, Any]: ...


class BoundedCheck:
    """A check that may hang, answered in time whatever it does. Thread-safe.

    It runs in a thread of its own, one at a time, and what it found counts for `fresh_s`: a disk that hangs costs one
    thread, and anybody who can reach the public port may ask as often as they like. The thread is kept, because a
    limit of processes that is reached later must not look like a journal in trouble.
    """

    def __init__(
        self, check: Callable[[], None], *, timeout_s: float = PROBE_TIMEOUT_S, fresh_s: float = PROBE_FRESH_S
    ) -> None:
        """`check` raises JournalError when something is wrong."""
        self._check = check
        self._timeout_s = timeout_s
        self._fresh_s = fresh_s
        #: Guards `_latest` and `_thread`.
        self._mutex = threading.Lock()
        self._latest: _Run | None = None
        self._asked: SimpleQueue[_Run] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def __call__(self) -> Health:
        with self._mutex:
            now = time.monotonic()
            latest = self._latest
            if latest is None or self._is_stale(latest, now) or not self._is_answering():
                try:
                    self._start_thread()
                except RuntimeError as error:
                    return Health(ok=False, why=f"the journal cannot be checked ({error})")
                self._latest = latest = _Run(now)
                self._asked.put(latest)
        if not latest.ended.wait(latest.began + self._timeout_s - now):
            return Health(ok=False, why="the journal does not answer")
        return latest.health

    def _is_stale(self, run: _Run, now: float) -> bool:
        return run.ended.is_set() and now - run.began >= self._fresh_s

    def _is_answering(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start_thread(self) -> None:
        """Raises RuntimeError when the system grants no thread; the next question tries again."""
        if not self._is_answering():
            thread = threading.Thread(target=self._answer, name="readiness", daemon=True)
            thread.start()
            self._thread = thread

    def _answer(self) -> None:
        while True:
            self._run(self._asked.get())

    def _run(self, run: _Run) -> None:
        try:
            self._check()
            run.health = Health(ok=True)
        except JournalError as error:
            run.health = Health(ok=False, why=str(error))
        except Exception as error:  # noqa: BLE001 (a probe must answer, whatever happened)
            run.health = Health(ok=False, why=f"the journal cannot be checked ({type(error).__name__})")
        finally:
            run.ended.set()


class _Run:
    """One run of a check, begun at a monotonic time; `health` counts once `ended` is set."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.ended = threading.Event()
        self.health = Health(ok=False)


# --- the HTTP of health, metrics and status: two paths on the public port, all of them on the admin port ---

TEXT = "text/plain; charset=utf-8"
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


def health_blueprint(vitals: Probed, *, detail: bool) -> Blueprint:
    """`/livez` and `/readyz`; without `detail` the reason is not told (public port)."""
    routes = Blueprint("health", __name__)

    def answer(health: Health) -> Response:
        text = "ok" if health.ok else health.why if detail else "not ok"
        return Response(
            text + "\n", 200 if health.ok else 503, content_type=TEXT, headers={"Cache-Control": "no-store"}
        )

    @routes.get("/livez")
    def livez() -> Response:
        return answer(vitals.alive())

    @routes.get("/readyz")
    def readyz() -> Response:
        return answer(vitals.ready())

    return routes


def admin_blueprint(vitals: Vitals, metrics: Metrics) -> Blueprint:
    """`/metrics` and `/status`: what answers without the admin token."""
    routes = Blueprint("admin", __name__)

    @routes.get("/metrics")
    def exposition() -> Response:
        return Response(metrics.exposition(vitals.gauges), content_type=EXPOSITION)

    @routes.get(STATUS)
    def status() -> Response:
        document = vitals.status() if g.get("who") else for_anybody(vitals.status())
        return Response(printable_json(document, indented=True), content_type="application/json")

    return routes


def for_anybody(status: dict[str, Any]) -> dict[str, Any]:
    """The figures without what quotes a partner, the CRM or a person: reasons, counts and configured names are left."""
    return status | {"pauses": [pause | {"detail": None} for pause in status["pauses"]]}
