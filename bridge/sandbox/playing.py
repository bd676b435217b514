"""Update calls as they happen: after the latency, with whatever fault befalls them."""

from __future__ import annotations

import threading
import time
from collections.abc import Set as AbstractSet

from bridge.sandbox import mishaps
from bridge.sandbox.answers import Answer
from bridge.sandbox.batch import NOTHING, BatchUpdate, Behaviour
from bridge.sandbox.faults import Fault, FaultPlan
from bridge.sandbox.inputs import Parsed
from bridge.sandbox.ledger import Call

#: When an apply-late takes effect if the fault does not say, in seconds after arrival.
APPLY_AFTER_S = 2.0


class Player:
    """Plays update calls. Thread-safe: `_lock` guards `_late`, `_closing` ends latencies early."""

    def __init__(self, *, update: BatchUpdate, faults: FaultPlan, behaviour: Behaviour) -> None:
        self._update = update
        self._faults = faults
        self._behaviour = behaviour
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._late: set[threading.Timer] = set()

    def play(self, call: Call, parsed: Parsed, fault: Fault | None, *, scope: str) -> Answer:
        """The answer to an update call. It takes effect after the latency, also when its client has left."""
        if self._behaviour.latency_s > 0:
            self._closing.wait(self._behaviour.latency_s)
        if fault is None:
            return parsed.refusal or self._update.run(call)
        if parsed.refusal is not None:
            return parsed.refusal if fault.applies else mishaps.answer(fault, None, scope=scope)
        match fault.kind:
            case "silent-drop":
                return self._update.run(call, dropped=self._chosen(call, fault))
            case "unknown":
                return self._update.run(call, unknown=self._chosen(call, fault))
            case "pending" | "processing" | "canceled":
                return self._unfinished(call, fault)
        served: Answer | None = None
        if fault.kind == "apply-late" or fault.apply_after_s is not None:
            self._apply_late(call, fault)
        elif fault.applies:
            served = self._update.run(call)
        return mishaps.answer(fault, served, scope=scope)

    def settle(self, timeout_s: float) -> bool:
        """Wait until everything that is to be applied late has been; False when the time was not enough."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                waiting = next(iter(self._late), None)
            if waiting is None:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            waiting.join(left)

    def cancel(self) -> None:
        """Drop what was to be applied late."""
        with self._lock:
            for timer in self._late:
                timer.cancel()
            self._late.clear()

    def close(self) -> None:
        """As `cancel`, and end every latency."""
        self._closing.set()
        self.cancel()

    def reopen(self) -> None:
        """Undo `close`."""
        self._closing.clear()

    def _chosen(self, call: Call, fault: Fault) -> AbstractSet[int]:
        return self._faults.choose(fault, [item.id for item in call.inputs])

    def _unfinished(self, call: Call, fault: Fault) -> Answer:
        rest = frozenset(range(fault.count, len(call.inputs)))
        written_now = fault.applies and fault.apply_after_s is None
        served = self._update.run(
            call, dropped=NOTHING if written_now else rest, hidden=rest if written_now else NOTHING
        )
        if fault.apply_after_s is not None:
            self._apply_late(call, fault)
        return mishaps.unfinished(fault, served)

    def _apply_late(self, call: Call, fault: Fault) -> None:
        def apply() -> None:
            try:
                self._update.run(call)
            finally:
                with self._lock:
                    self._late.discard(timer)

        delay_s = APPLY_AFTER_S if fault.apply_after_s is None else fault.apply_after_s
        timer = threading.Timer(delay_s, apply)
        timer.name = f"sandbox-apply-late-{call.seq}"
        timer.daemon = True
        with self._lock:
            self._late.add(timer)
        timer.start()
