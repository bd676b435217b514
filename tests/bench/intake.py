"""`intake`: signed single-event webhooks, verified, mapped, fsynced; against a bare Flask view."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bridge.settings import Secret, Verify
from tests.bench.load import SOURCE, Figures, prepare, run_wrk
from tests.running import free_port, running

ROUNDS = 3
SECONDS = 5.0
WORKERS = 2


def bench(*, connections: int = 32, array: int = 1) -> dict[str, object]:
    """Both sides in turn; medians."""
    ours: list[Figures] = []
    bare: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        for turn in range(ROUNDS):
            bare.append(_bare(folder, connections))
            ours.append(_ours(folder / f"round-{turn}", connections, array))
    ratio = median(figures.per_s for figures in ours) / median(figures.per_s for figures in bare)
    return {
        "name": "intake" if array == 1 else "intake-bulk",
        "connections": connections,
        "events_per_s": [round(figures.per_s * array) for figures in ours],
        "p50_ms": [figures.p50_ms for figures in ours],
        "p99_ms": [figures.p99_ms for figures in ours],
        "bare_per_s": [round(figures.per_s) for figures in bare],
        "bare_p99_ms": [figures.p99_ms for figures in bare],
        "ratio": round(ratio, 3),
        "failed": sum(figures.failed for figures in ours),
    }


def _bare(folder: Path, connections: int) -> Figures:
    port = free_port()
    child = subprocess.Popen([sys.executable, "-m", "tests.bench.bare", str(port), str(WORKERS)])
    try:
        secret = folder / "bare.secret"
        secret.write_text("whsec_" + "A" * 32 + "\n", encoding="utf-8")
        verify = Verify("standard-webhooks", (Secret(file=secret),))
        prepare(folder, verify, url="http://127.0.0.1/", number=2000, threads=1, records=1000)
        time.sleep(1.5)
        return run_wrk(folder, f"http://127.0.0.1:{port}", "/webhooks/acme", connections=connections, seconds=SECONDS)
    finally:
        child.terminate()
        child.wait(10)


def _ours(folder: Path, connections: int, array: int) -> Figures:
    folder.mkdir()
    # A CRM that is away: intake alone is measured, as during an outage.
    with running(folder, f"http://127.0.0.1:{free_port()}", sources=SOURCE, workers=WORKERS) as service:
        verify = Verify("standard-webhooks", (Secret(file=folder / "acme.secret"),))
        number = int(60_000 / array)
        prepare(folder, verify, url=service.url, number=number, threads=1, records=10_000, array=array)
        return run_wrk(folder, service.url, "/webhooks/acme", connections=connections, seconds=SECONDS)


if __name__ == "__main__":
    print(bench(connections=int(sys.argv[1]) if len(sys.argv) > 1 else 32))  # noqa: T201
