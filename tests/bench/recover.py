"""`recover`: after an outage, the time to the first value, and the rate of the drain against the limit."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.bench.backlogs import PROPERTIES, copied, expected, filled
from tests.bench.crm import CALLS, LATENCY_S, PER_S, check, refusals, sandbox, starts_per_s
from tests.bench.load import SOURCE
from tests.bench.row import Row, Sample, Size, at_least, at_most, never_over
from tests.running import Running, eventually

RECORDS = 40_000
#: Long enough for the pauses between probes to have grown to the second that `retry.max` is here: an hour and the
#: default of ten minutes, 600 times as fast.
OUTAGE_S = 6.0


def rounds(size: Size) -> Iterator[Sample]:
    records = size.of(RECORDS, least=2_000)
    while True:
        yield recovered(filled(records), records)


def recovered(template: Path, records: int) -> Sample:
    """A service with a backlog and a CRM that fails; then it is back."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, sandbox(limit=CALLS, latency_s=LATENCY_S) as crm:
        crm.fail("503")
        service = Running(copied(template, Path(name)), crm.url, sources=SOURCE, calls=CALLS)
        try:
            service.start()
            assert eventually(lambda: bool(service.status()["pauses"]))
            time.sleep(OUTAGE_S)
            crm.fail(None)
            back = time.monotonic()
            crm.wait_written(records * PROPERTIES)
        finally:
            service.stop()
        check(expected(records), crm.state())
        calls = crm.calls()
    taken = [call for call in calls if call["status"] == 200]
    first = min(call["ended"] for call in taken)
    return {
        # Without the probe, after which the others begin.
        "÷ the limit": starts_per_s([call for call in calls if call["started"] >= first]) / (CALLS / PER_S),
        "first value after s": first - back,
        "429s": refusals(calls),
    }


ROW = Row(
    name="recover",
    measures="an hour's outage, 600 times as fast, with 40,000 records due: first value after the CRM's return, drain",
    against="190 calls per 10 s",
    goals=(at_least("÷ the limit", 0.97), at_most("first value after s", 5), never_over("429s", 0)),
    rounds=rounds,
)
