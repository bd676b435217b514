"""`bulk-beside`: what source B's single webhooks wait while source A posts arrays of 5,000 events, against B alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.load import SOURCE, prepare, send
from tests.bench.row import Row, Sample, Size, at_most, never_over
from tests.bench.steady import Answered, percentile, send_steadily
from tests.running import Running, free_port, running

ARRAY = 5_000
#: More arrays a second than A gets rid of, so that none is a second delivery.
ARRAYS_PER_S = 5
#: B's requests a second.
RATE = 50

BULK = SOURCE.replace("  acme:\n", "  bulk:\n    max_body: 16MiB\n")


def rounds(size: Size) -> Iterator[Sample]:
    """B alone and beside A, on one running service."""
    seconds = 1.6 * size.seconds
    while True:
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as name,
            # A CRM that is away: intake alone is measured, as during an outage.
            running(Path(name), f"http://127.0.0.1:{free_port()}", sources=SOURCE + BULK) as service,
        ):
            singles(service, "warm", 1.0)  # what is built at the first requests is not measured
            alone = singles(service, "alone", seconds)
            number = int(ARRAYS_PER_S * (seconds + 2)) + 1
            prepared = prepare(service.folder, number=number, records=100_000, array=ARRAY)
            with ThreadPoolExecutor(1) as pool:
                bulk = pool.submit(send, prepared, f"{service.url}/webhooks/bulk", connections=1, seconds=seconds + 2)
                time.sleep(1.0)
                beside = singles(service, "beside", seconds)
                figures = bulk.result()
        p99_alone, p99_beside = (percentile([one.wait_ms for one in side], 99) for side in (alone, beside))
        yield {
            "p99 ÷ alone": p99_beside / p99_alone,
            "p99 ms": p99_beside,
            "p99 ms alone": p99_alone,
            "p50 ms": percentile([one.wait_ms for one in beside], 50),
            "p50 ms alone": percentile([one.wait_ms for one in alone], 50),
            "longest ms": max(one.wait_ms for one in beside),
            "A's events/s": figures.per_s * ARRAY,
            "failed": sum(one.status != 202 for one in alone + beside) + figures.failed,
        }


def singles(service: Running, name: str, seconds: float) -> list[Answered]:
    return send_steadily(service, name=name, per_s=RATE, seconds=seconds, record=lambda number: f"b{number}")


ROW = Row(
    name="bulk-beside",
    measures="B's single webhooks, 50 a second, while A posts arrays of 5,000 events; 1 worker",
    against="B alone",
    goals=(at_most("p99 ÷ alone", 2), never_over("p99 ms", 250), never_over("failed", 0)),
    rounds=rounds,
)
