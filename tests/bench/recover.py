"""`recover`: after an outage, the time to the first value, and the rate of the drain against the limit."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

from bridge.journal import versions
from bridge.sandbox import Crm, SandboxServer
from tests.bench.drain import fill
from tests.bench.load import SOURCE
from tests.running import Running, eventually, free_port

ROUNDS = 3
RECORDS = 40_000
CALLS, PER_S, LATENCY_S = 190, 10.0, 0.3
#: Long enough for the pauses between probes to have grown to the second that `retry.max` is here: an hour and the
#: default of ten minutes, 600 times as fast.
OUTAGE_S = 6.0


def bench() -> dict[str, object]:
    """A service with a backlog and no CRM; then the CRM comes back."""
    rounds = [recovered() for _ in range(ROUNDS)]
    return {
        "name": "recover",
        "records": RECORDS,
        "first_value_s": [first for first, _, _ in rounds],
        "of_the_limit": [share for _, share, _ in rounds],
        "ratio": median(share for _, share, _ in rounds),
        "429": sum(refused for _, _, refused in rounds),
    }


def recovered() -> tuple[float, float, int]:
    """Seconds to the first value after the return, the share of the limit used from then on, and the 429s."""
    crm = Crm(limit=CALLS)
    crm.behaviour.latency_s = LATENCY_S
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        service = Running(Path(name), f"http://127.0.0.1:{port}", sources=SOURCE, calls=CALLS)
        versions.prepare(f"sqlite:///{name}/journal.db")
        fill(service, RECORDS)
        try:
            service.start(ready=False)
            assert eventually(lambda: service.is_ready() and bool(service.status()["pauses"]))
            time.sleep(OUTAGE_S)
            with SandboxServer(crm, port=port):
                back = time.monotonic()
                assert eventually(service.idle, within_s=120)
        finally:
            service.stop()
    calls = crm.ledger.calls("update")
    assert sum(len(call.inputs) for call in calls if call.status == 200) >= RECORDS
    answered = min(call.ended for call in calls if call.ended and call.status == 200)
    starts = [call.started for call in calls if call.started >= answered]  # without the probe
    per_s = (len(starts) - 1) / (starts[-1] - starts[0])
    refused = sum(call.status == 429 for call in calls)
    return round(answered - back, 2), round(per_s / (CALLS / PER_S), 3), refused


if __name__ == "__main__":
    print(bench())  # noqa: T201
