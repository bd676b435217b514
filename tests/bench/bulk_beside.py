"""`bulk-beside`: what source B's single webhooks wait while source A posts arrays of 5,000 events, against B alone.

B comes at a steady rate whatever the service does, and its latency counts from the moment at which a request was
to be sent: a service that stands still for a second makes all of that second's requests late, not only one.
"""

from __future__ import annotations

import http.client
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import orjson

from bridge.intake.signatures import sign
from bridge.settings import Secret, Verify
from tests.bench.load import SOURCE, event, prepare, run_wrk
from tests.running import Running, free_port, running

ROUNDS = 3
SECONDS = 8.0
ARRAY = 5_000
#: Arrays that are made before: more than A gets rid of in a round, so that none is a second delivery.
ARRAYS = 48
#: B's requests a second, and how many of them may be on their way at once: enough for answers that take 2 s.
RATE, SENDERS = 50, 100

BULK = SOURCE.replace("  acme:\n", "  bulk:\n    max_body: 16MiB\n")


@dataclass(frozen=True, slots=True)
class Waits:
    """B's latencies in milliseconds; `bulk_per_s` are A's events."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    failed: int
    bulk_per_s: int = 0


def bench(*, workers: int = 1) -> dict[str, object]:
    """B alone and beside A, in turn on one running service; figures of each round and medians."""
    alone: list[Waits] = []
    beside: list[Waits] = []
    for turn in range(ROUNDS):
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as name,
            # A CRM that is away: intake alone is measured, as during an outage.
            running(Path(name), f"http://127.0.0.1:{free_port()}", sources=SOURCE + BULK, workers=workers) as service,
        ):
            _singles(service, turn, 1.0)  # what is built at the first requests is not measured
            alone.append(_singles(service, turn, SECONDS))
            beside.append(_beside(service, turn))
    p99_alone, p99_beside = median(one.p99_ms for one in alone), median(one.p99_ms for one in beside)
    return {
        "name": "bulk-beside",
        "workers": workers,
        "b_per_s": RATE,
        "alone_p50_ms": [one.p50_ms for one in alone],
        "alone_p99_ms": [one.p99_ms for one in alone],
        "beside_p50_ms": [one.p50_ms for one in beside],
        "beside_p99_ms": [one.p99_ms for one in beside],
        "beside_max_ms": [one.max_ms for one in beside],
        "bulk_events_per_s": [one.bulk_per_s for one in beside],
        "p99_ms": p99_beside,
        "spread_ms": round(max(one.p99_ms for one in beside) - min(one.p99_ms for one in beside), 1),
        "ratio": round(p99_beside / p99_alone, 2),
        "failed": sum(one.failed for one in alone + beside),
    }


def _beside(service: Running, turn: int) -> Waits:
    verify = Verify("standard-webhooks", (Secret(file=service.folder / "acme.secret"),))
    first = 10_000_000 * (turn + 1)
    prepare(service.folder, verify, url="", number=ARRAYS, threads=1, records=100_000, array=ARRAY, first=first)
    with ThreadPoolExecutor(1) as pool:
        bulk = pool.submit(run_wrk, service.folder, service.url, "/webhooks/bulk", connections=1, seconds=SECONDS + 2.0)
        time.sleep(1.0)
        singles = _singles(service, turn, SECONDS)
        figures = bulk.result()
    return Waits(
        singles.p50_ms,
        singles.p99_ms,
        singles.max_ms,
        singles.failed + figures.failed,
        round(figures.per_s * ARRAY),
    )


def _singles(service: Running, turn: int, seconds: float) -> Waits:
    """Send B's requests at `RATE`, each when its time has come."""
    verify = Verify("standard-webhooks", (Secret(file=service.folder / "acme.secret"),))
    made = [_request(verify, f"{turn}-{time.time_ns()}-{number}") for number in range(int(RATE * seconds))]
    waits_ms: list[float] = []
    failed = 0
    lock = threading.Lock()
    start = time.monotonic() + 0.1
    numbers = iter(range(len(made)))

    def send() -> None:
        nonlocal failed
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                break
            due = start + number / RATE
            time.sleep(max(0.0, due - time.monotonic()))
            body, headers = made[number]
            connection.request("POST", "/webhooks/acme", body, headers)
            answer = connection.getresponse()
            answer.read()
            with lock:
                waits_ms.append((time.monotonic() - due) * 1000)
                failed += answer.status != 202
        connection.close()

    threads = [threading.Thread(target=send, name=f"sender {number}") for number in range(SENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cuts = quantiles(waits_ms, n=100)
    return Waits(round(cuts[49], 1), round(cuts[98], 1), round(max(waits_ms), 1), failed)


def _request(verify: Verify, name: str) -> tuple[bytes, dict[str, str]]:
    body = orjson.dumps({**event(0, records=1), "id": f"single-{name}", "client": f"b-{name}"})
    return body, {"Content-Type": "application/json", **sign(verify, body=body, now=time.time(), delivery_id=name)}


if __name__ == "__main__":
    print(bench(workers=int(sys.argv[1]) if len(sys.argv) > 1 else 1))  # noqa: T201
