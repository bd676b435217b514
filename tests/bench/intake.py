"""`intake`: signed single-event webhooks, verified, mapped and fsynced; against a bare Flask view."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from bridge.journal.event_log import EventFilter
from tests.bench.load import MOST_PER_S, SOURCE, Figures, prepare, send
from tests.bench.processes import module, process
from tests.bench.row import Row, Sample, Size, at_least, at_most, never_over
from tests.running import SECRET, Running, free_port, running

WORKERS = 2
CONNECTIONS = (32, 64)


def rounds(size: Size) -> Iterator[Sample]:
    while True:
        sample: dict[str, float] = {}
        for connections in CONNECTIONS:
            bare, ours = ceiling(size, connections), bridge(size, connections)
            sample |= {
                f"÷ ceiling, {connections} connections": ours.per_s / bare.per_s,
                f"p99 ÷ its p99, {connections} connections": ours.p99_ms / bare.p99_ms,
                f"webhooks/s, {connections} connections": ours.per_s,
                f"ceiling/s, {connections} connections": bare.per_s,
                f"p50 ms, {connections} connections": ours.p50_ms,
                f"p99 ms, {connections} connections": ours.p99_ms,
                "failed": ours.failed + bare.failed + sample.get("failed", 0),
            }
        yield sample


def ceiling(size: Size, connections: int) -> Figures:
    """What a bare view answers in the same gunicorn worker, as many of them."""
    port = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        process(module("tests.bench.bare", port, WORKERS), port=port),
    ):
        (Path(name) / "acme.secret").write_text(SECRET + "\n", encoding="utf-8")
        prepared = prepare(Path(name), number=2000)
        return send(prepared, f"http://127.0.0.1:{port}/webhooks/acme", connections=connections, seconds=size.seconds)


def bridge(size: Size, connections: int) -> Figures:
    """What the bridge takes while the CRM is away: intake alone, as during an outage."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        running(Path(name), f"http://127.0.0.1:{free_port()}", sources=SOURCE, workers=WORKERS) as service,
    ):
        return load_on(service, connections=connections, seconds=size.seconds)


def load_on(service: Running, *, connections: int, seconds: float, first: int = 0) -> Figures:
    """Load a service; every webhook that it answered must be in its journal, as an event of its own."""
    before = count_events(service)
    prepared = prepare(service.folder, number=int(max(1.0, seconds) * MOST_PER_S), first=first)
    figures = send(prepared, f"{service.url}/webhooks/acme", connections=connections, seconds=seconds)
    assert figures.answered - figures.failed < prepared.requests, "the prepared requests ran out"
    kept = count_events(service) - before
    assert figures.answered - figures.failed <= kept, f"{figures.answered} answered, {kept} kept"
    return figures


def count_events(service: Running) -> int:
    with service.journal() as journal:
        return journal.count_events(EventFilter())


ROW = Row(
    name="intake",
    measures="signed single-event webhooks: verified, 8 properties mapped, fsynced, 202; 2 workers",
    against="a bare Flask view under the same gunicorn worker, as many of them",
    goals=(
        *(at_least(f"÷ ceiling, {connections} connections", 0.65) for connections in CONNECTIONS),
        *(at_most(f"p99 ÷ its p99, {connections} connections", 4) for connections in CONNECTIONS),
        never_over("failed", 0),
    ),
    rounds=rounds,
)
