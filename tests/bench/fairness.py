"""`fairness`: from webhook to CRM, for single changes of one source while another has a long backlog at the limit.

Against the same without the backlog: the first value may come up to three calls' time later. A call's time is the
spacing of calls at the limit. Half of the changes are for records that both sources have pending.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from bridge.journal import versions
from bridge.sandbox import Crm, SandboxServer
from tests.bench.crm import CALLS, LATENCY_S, PER_S
from tests.bench.row import Row, Sample, Size, at_most, never_over
from tests.bench.steady import percentile
from tests.builders import event
from tests.running import ACME, Running

SOURCES = ACME + ACME.replace("acme:", "beta:", 1)
BACKLOG, CHANGES, STEP = 100_000, 20, 5_000
#: A call starts so often while there is a backlog.
SPACING_S = PER_S / CALLS


def rounds(size: Size) -> Iterator[Sample]:
    backlog, changes = size.of(BACKLOG, least=20_000), size.of(CHANGES, least=4)
    while True:
        own_alone, shared_alone, refused_alone = delays(0, changes)
        own, shared, refused = delays(backlog, changes)
        alone = median(own_alone + shared_alone)
        yield {
            "calls' time more, own records": (median(own) - alone) / SPACING_S,
            "calls' time more, shared records": (median(shared) - alone) / SPACING_S,
            "s alone, p50": alone,
            "s beside, p50": median(own + shared),
            "s beside, p95": percentile(own + shared, 95),
            "s beside, longest": max(own + shared),
            "429s": refused + refused_alone,
        }


def delays(backlog: int, changes: int) -> tuple[list[float], list[float], int]:
    """Of `changes` changes for B's own records, and of as many for records that A has pending too; and the 429s."""
    crm = Crm(limit=CALLS)
    crm.behaviour.latency_s = LATENCY_S
    with tempfile.TemporaryDirectory(prefix="bench-") as name, SandboxServer(crm) as server:
        service = Running(Path(name), server.url, sources=SOURCES, calls=CALLS, flush_interval="500ms")
        versions.prepare(f"sqlite:///{name}/journal.db")
        with service.journal() as journal:
            for at in range(0, backlog, STEP):
                numbers = range(at, min(at + STEP, backlog))
                journal.append([event(f"a{number}", f"c{number}", {"notes": "of A"}) for number in numbers])
        service.start()
        try:
            # The youngest records of the backlog: their turn with A would come at the very end.
            youngest = (backlog or changes) - 1
            own = [delay(service, crm, f"own-{at}") for at in range(changes)]
            shared = [delay(service, crm, f"c{youngest - at}") for at in range(changes)]
            if backlog:
                assert not service.idle()  # it lasted
        finally:
            service.stop()
    return own, shared, sum(call.status == 429 for call in crm.ledger.calls("update"))


def delay(service: Running, crm: Crm, record: str) -> float:
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


ROW = Row(
    name="fairness",
    measures="webhook → CRM for single changes of B while A has 100,000 records waiting at 190 calls per 10 s",
    against="B alone; a call's time is the spacing of calls at the limit",
    goals=(
        at_most("calls' time more, own records", 3),
        at_most("calls' time more, shared records", 3),
        never_over("429s", 0),
    ),
    rounds=rounds,
)
