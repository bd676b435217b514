"""`drain` and `drain-limited`: a backlog of distinct records goes to the CRM, at full speed and at the rate limit.

Against what so many calls in flight can carry at most, against the official SDK that sends batches which were made
before, and against the limit. Times are the CRM's: from the start of the first call to the end of the last.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.backlogs import PROPERTIES, copied, expected, filled
from tests.bench.crm import CALLS, LATENCY_S, PER_S, Crm, check, refusals, sandbox, span_s, starts_per_s
from tests.bench.load import SOURCE
from tests.bench.peers import peer_python, script
from tests.bench.row import Row, Sample, Size, at_least, never_over
from tests.running import Running

RECORDS = 100_000
IN_FLIGHT, FAST_S = 8, 0.05
BATCH = 100


def rounds(size: Size) -> Iterator[Sample]:
    records = size.of(RECORDS, least=1_000)
    python = peer_python()
    bound = IN_FLIGHT / FAST_S * BATCH
    while True:
        with sandbox(latency_s=FAST_S) as crm:
            ours = records / span_s(drained(filled(records), crm, records, calls=1_000_000))
        with sandbox(latency_s=FAST_S) as crm:
            command = [python, script("sdk_batches.py"), crm.url, records, IN_FLIGHT, PROPERTIES]
            subprocess.run([str(part) for part in command], check=True, timeout=900)
            check(expected(records), crm.state())
            sdk = records / span_s(crm.calls())
        yield {
            "÷ the bound": ours / bound,
            "÷ the SDK": ours / sdk,
            "records/s": ours,
            "the SDK's records/s": sdk,
        }


def limited_rounds(size: Size) -> Iterator[Sample]:
    records = size.of(RECORDS, least=1_000)
    while True:
        with sandbox(limit=CALLS, latency_s=LATENCY_S) as crm:
            calls = drained(filled(records), crm, records, calls=CALLS)
        yield {
            "÷ the limit": starts_per_s(calls) / (CALLS / PER_S),
            "429s": refusals(calls),
            "records/s": records / span_s(calls),
        }


def drained(template: Path, crm: Crm, records: int, *, calls: int) -> list[dict[str, Any]]:
    """Start a service on a copy of the backlog and wait until the CRM holds it; returns the calls that it took."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        service = Running(copied(template, Path(name)), crm.url, sources=SOURCE, calls=calls, flush_interval="500ms")
        try:
            service.start(ready=False)
            crm.wait_written(records * PROPERTIES)
        finally:
            service.stop()
    check(expected(records), crm.state())
    return crm.calls()


ROW = Row(
    name="drain",
    measures="a backlog of 100,000 records to the CRM: 8 calls in flight, 50 ms each, no limit",
    against="calls in flight ÷ latency × 100; and the official SDK with batches made before",
    goals=(at_least("÷ the bound", 0.5), at_least("÷ the SDK", 1)),
    rounds=rounds,
)
LIMITED = Row(
    name="drain-limited",
    measures="the same at 190 calls per 10 s, 300 ms each",
    against="the limit",
    goals=(at_least("÷ the limit", 0.97), never_over("429s", 0)),
    rounds=limited_rounds,
)
