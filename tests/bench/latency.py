"""`latency`: from the answer to a webhook until its value is in the CRM, at 200 webhooks a second."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench.crm import sandbox
from tests.bench.load import SOURCE
from tests.bench.row import Row, Sample, Size, at_most, never_over
from tests.bench.steady import percentile, send_steadily
from tests.running import eventually, running

RATE, FLUSH_S, CALL_S = 200, 0.2, 0.05
BOUND_MS = (FLUSH_S + CALL_S) * 1000


def rounds(size: Size) -> Iterator[Sample]:
    while True:
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as name,
            sandbox(latency_s=CALL_S) as crm,
            running(Path(name), crm.url, sources=SOURCE, flush_interval=f"{FLUSH_S * 1000:.0f}ms") as service,
        ):
            send_steadily(service, name="warm", per_s=RATE, seconds=1.0, record=lambda number: f"w{number}")
            answers = send_steadily(
                service, name="timed", per_s=RATE, seconds=2 * size.seconds, record=lambda number: f"c{number}"
            )
            assert eventually(service.idle)
            written = {one["id"]: one["at"] for one in crm.applied() if one["property"] == "company_name"}
        taken = [one for one in answers if one.status == 202]
        delays = [max(0.0, written[one.record] - one.at) * 1000 for one in taken]
        yield {
            "p50 ms": percentile(delays, 50),
            "p99 ms": percentile(delays, 99),
            "longest ms": max(delays),
            "failed": len(answers) - len(taken),
        }


ROW = Row(
    name="latency",
    measures="webhook answered → value in the CRM, at 200 webhooks/s, `flush_interval` 200 ms, CRM 50 ms",
    against=f"flush interval + CRM latency = {BOUND_MS:.0f} ms",
    goals=(at_most("p50 ms", BOUND_MS), at_most("p99 ms", BOUND_MS + 150), never_over("failed", 0)),
    rounds=rounds,
)
