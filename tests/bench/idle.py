"""`idle`: what a service with one worker takes of the processor, and holds in memory, while nothing comes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from bridge.sandbox import Crm, SandboxServer
from tests.bench.load import SOURCE, payload
from tests.bench.row import Row, Sample, Size, at_most
from tests.memory import pss_mb
from tests.running import eventually, running

#: Seconds until it has come to rest, and for which it is looked at, with 5 s of a load's time.
REST_S, LOOK_S = 30.0, 30.0


def rounds(size: Size) -> Iterator[Sample]:
    scale = min(1.0, size.seconds / 5)
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        SandboxServer(Crm()) as sandbox,
        running(Path(name), sandbox.url, sources=SOURCE, flush_interval="1s") as service,
    ):
        assert service.post(payload(time.time_ns(), record="c1")).status_code == 202
        assert eventually(service.idle)
        time.sleep(REST_S * scale)
        while True:
            before_s, began = processor_s(service.pids()), time.monotonic()
            time.sleep(LOOK_S * scale)
            used = (processor_s(service.pids()) - before_s) / (time.monotonic() - began)
            yield {"% of a core": 100 * used, "MiB (PSS)": pss_mb(service.pids())}


def processor_s(pids: Iterable[int]) -> float:
    """Seconds of processor time that these processes have taken."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


ROW = Row(
    name="idle",
    measures="an idle service with one worker: processor time, and memory of all its processes",
    against="nothing",
    goals=(at_most("% of a core", 1), at_most("MiB (PSS)", 100)),
    rounds=rounds,
)
