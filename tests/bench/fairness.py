"""`fairness`: from webhook to CRM, for single changes of one source while another has a long backlog at the limit.

Against the same without the backlog: the first value may come up to three calls' time later. A call's time is the
spacing of calls at the limit. Half of the changes are for records that both sources have pending.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles

from bridge.journal import versions
from bridge.sandbox import Crm, SandboxServer
from tests.builders import event
from tests.running import ACME, Running

SOURCES = ACME + ACME.replace("acme:", "beta:", 1)
ROUNDS = 3
CALLS, LATENCY_S = 190, 0.3
#: A call starts so often while there is a backlog.
SPACING_S = 10 / CALLS
CHANGES = 20


def bench(*, backlog: int = 100_000, rounds: int = ROUNDS, changes: int = CHANGES) -> dict[str, object]:
    """Seconds from webhook to CRM of B's changes, alone and beside A's backlog; for records of its own, and shared."""
    alone: list[float] = []
    own: list[float] = []
    shared: list[float] = []
    for _ in range(rounds):
        own_alone, shared_alone = _delays(0, changes)
        alone += own_alone + shared_alone
        beside = _delays(backlog, changes)
        own += beside[0]
        shared += beside[1]
    more = {"own": median(own) - median(alone), "shared": median(shared) - median(alone)}
    return {
        "name": "fairness",
        "backlog": backlog,
        "alone_s": _spread(alone),
        "own_s": _spread(own),
        "shared_s": _spread(shared),
        "calls_more": {kind: round(seconds / SPACING_S, 2) for kind, seconds in more.items()},
    }


def _spread(delays: list[float]) -> dict[str, float]:
    return {"p50": round(median(delays), 3), "p95": round(quantiles(delays, n=20)[18], 3), "max": round(max(delays), 3)}


def _delays(backlog: int, changes: int) -> tuple[list[float], list[float]]:
    """Of `changes` changes for B's own records, and of as many for records that A has pending too."""
    crm = Crm(limit=CALLS)
    crm.behaviour.latency_s = LATENCY_S
    with tempfile.TemporaryDirectory(prefix="bench-") as name, SandboxServer(crm) as server:
        service = Running(Path(name), server.url, sources=SOURCES, calls=CALLS, flush_interval="500ms")
        versions.prepare(f"sqlite:///{name}/journal.db")
        with service.journal() as journal:
            for at in range(0, backlog, 5000):
                numbers = range(at, min(at + 5000, backlog))
                journal.append([event(f"a{number}", f"c{number}", {"notes": "of A"}) for number in numbers])
        service.start()
        try:
            # The youngest records of the backlog: their turn with A would come at the very end.
            youngest = (backlog or changes) - 1
            own = [_delay(service, crm, f"own-{at}") for at in range(changes)]
            shared = [_delay(service, crm, f"c{youngest - at}") for at in range(changes)]
            if backlog:
                assert not service.idle()  # it lasted
        finally:
            service.stop()
    assert not any(call.status == 429 for call in crm.ledger.calls("update"))
    return own, shared


def _delay(service: Running, crm: Crm, record: str) -> float:
    """Seconds from the answer 202 until the CRM has applied it."""
    after = crm.ledger.last_applied
    payload = {"id": f"b {record}", "client": record, "at": time.time(), "name": "of B"}
    assert service.post(payload, source="beta").status_code == 202
    began = time.monotonic()
    while True:
        for found in crm.ledger.applied(after=after):
            after = found.seq
            if found.id == record and found.property == "company_name":
                return max(0.0, time.monotonic() - began)
        time.sleep(0.005)


if __name__ == "__main__":
    print(bench(backlog=int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, rounds=1 if len(sys.argv) > 2 else ROUNDS))  # noqa: T201
