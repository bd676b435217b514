"""`intake-peer` and `intake-fluentd`: the same webhooks, taken by what people use today."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.intake import bridge
from tests.bench.load import MOST_PER_S, Figures, prepare, send
from tests.bench.peers import Peer, celery, fluentd
from tests.bench.row import Row, Sample, Size, at_least, never_over

CONNECTIONS = 32


def rounds(size: Size) -> Iterator[Sample]:
    while True:
        with celery(workers=False) as peer:
            theirs = load_on(peer, size)
        ours = bridge(size, CONNECTIONS)
        yield {
            "÷ Celery": ours.per_s / theirs.per_s,
            "webhooks/s": ours.per_s,
            "Celery's webhooks/s": theirs.per_s,
            "p99 ms": ours.p99_ms,
            "Celery's p99 ms": theirs.p99_ms,
            "failed": ours.failed + theirs.failed,
        }


def fluentd_rounds(size: Size) -> Iterator[Sample]:
    while True:
        with fluentd() as peer:
            theirs = load_on(peer, size)
        ours = bridge(size, CONNECTIONS)
        yield {
            "÷ Fluentd": ours.per_s / theirs.per_s,
            "webhooks/s": ours.per_s,
            "Fluentd's webhooks/s": theirs.per_s,
            "p99 ms": ours.p99_ms,
            "Fluentd's p99 ms": theirs.p99_ms,
        }


def load_on(peer: Peer, size: Size) -> Figures:
    prepared = prepare(peer.folder, number=int(max(1.0, size.seconds) * MOST_PER_S))
    return send(prepared, peer.url, connections=CONNECTIONS, seconds=size.seconds)


ROW = Row(
    name="intake-peer",
    measures="signed single-event webhooks, fsynced, 202; 2 workers, 32 connections",
    against="Flask handing each to Celery on Redis with `appendfsync always`",
    goals=(at_least("÷ Celery", 3), never_over("failed", 0)),
    rounds=rounds,
)
FLUENTD = Row(
    name="intake-fluentd",
    measures="the same",
    against="Fluentd: http to a file buffer, which neither verifies nor maps nor waits for fsync",
    goals=(),
    rounds=fluentd_rounds,
)
