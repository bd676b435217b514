"""`intake-bulk`: webhooks of 100 events each; against the writer alone: the same rows by the same statements."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import orjson

from bridge.config import load
from bridge.intake.mapping import compile_source
from bridge.journal import versions
from bridge.journal.group_commit import GROUP_EVENTS
from tests.bench.load import SOURCE, payload, prepare, send
from tests.bench.row import Row, Sample, Size, at_least, never_over
from tests.running import Running, free_port, running

ARRAY, CONNECTIONS = 100, 32
RECORDS = 10_000
#: More events a second than are taken here.
MOST_PER_S = 30_000


def rounds(size: Size) -> Iterator[Sample]:
    while True:
        writer = writer_alone(size)
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as name,
            running(Path(name), f"http://127.0.0.1:{free_port()}", sources=SOURCE, workers=2) as service,
        ):
            number = int(max(1.0, size.seconds) * MOST_PER_S / ARRAY)
            prepared = prepare(service.folder, number=number, array=ARRAY, records=RECORDS)
            figures = send(prepared, f"{service.url}/webhooks/acme", connections=CONNECTIONS, seconds=size.seconds)
            assert figures.answered < number, "the prepared requests ran out"
        yield {
            "÷ the writer alone": figures.per_s * ARRAY / writer,
            "events/s": figures.per_s * ARRAY,
            "the writer's events/s": writer,
            "p99 ms": figures.p99_ms,
            "failed": figures.failed,
        }


def writer_alone(size: Size) -> float:
    """Events a second by the journal's own append, in groups as large as group commit makes them."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        service = Running(Path(name), "http://127.0.0.1:9", sources=SOURCE)
        source = compile_source(load(service.config).settings.sources["acme"])
        versions.prepare(f"sqlite:///{name}/journal.db")
        written, took_s = 0, 0.0
        with service.journal() as journal:
            while took_s < size.seconds:
                bodies = [payload(written + place, record=f"c{(written + place) % RECORDS}")
                          for place in range(GROUP_EVENTS)]  # fmt: skip
                events = source.map_body(source.decode(orjson.dumps(bodies))).events
                began = time.monotonic()
                journal.append(events)
                took_s += time.monotonic() - began
                written += len(events)
    return written / took_s


ROW = Row(
    name="intake-bulk",
    measures="the same in webhooks of 100 events; 2 workers, 32 connections",
    against="the writer alone: the same rows by the same statements, without HTTP and mapping",
    goals=(at_least("÷ the writer alone", 0.6), never_over("failed", 0)),
    rounds=rounds,
)
