"""`drain`: records per second from a backlog of distinct records to the sandbox; against calls in flight ÷ latency."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bridge.cli.serving import sandbox_process
from bridge.journal import versions
from bridge.model import PropertyUpdate
from tests.bench.load import SOURCE
from tests.builders import event, key
from tests.running import Running

ROUNDS = 3
IN_FLIGHT, LATENCY_S = 8, 0.05


def bench(
    *, records: int = 100_000, calls: int = 1_000_000, latency: str = "50ms", rounds: int = ROUNDS
) -> dict[str, object]:
    """Fill a journal, start the service on it, and time until nothing is due."""
    rates = []
    for _ in range(rounds):
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as name,
            sandbox_process("--latency", latency, "--limit", "0") as url,
        ):
            service = Running(Path(name), url, sources=SOURCE, calls=calls, flush_interval="500ms")
            versions.prepare(f"sqlite:///{name}/journal.db")
            fill(service, records)
            try:
                service.start(ready=False)
                rates.append(records / drained(service))
            finally:
                service.stop()
    bound = IN_FLIGHT / LATENCY_S * 100
    return {"name": "drain", "records": records, "records_per_s": [round(rate) for rate in rates],
            "ratio": round(median(rates) / bound, 3)}  # fmt: skip


def fill(service: Running, records: int) -> None:
    """A backlog of distinct records with 8 properties each."""
    with service.journal() as journal:
        for at in range(0, records, 1000):
            journal.append(
                [
                    event(
                        f"e{number}",
                        updates=(PropertyUpdate(key(f"c{number}"), {f"p{name}": f"v{number}" for name in range(8)}),),
                    )
                    for number in range(at, min(at + 1000, records))
                ]
            )


def drained(service: Running) -> float:
    """Seconds from the first call to the last."""
    with service.journal() as journal:
        while not journal.figures().delivery:
            time.sleep(0.01)
        began = time.monotonic()
        while journal.due(limit=1, exclude=()):
            time.sleep(0.05)
        return time.monotonic() - began


if __name__ == "__main__":
    print(bench(records=int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, rounds=1 if len(sys.argv) > 2 else ROUNDS))  # noqa: T201
