"""All rows, in the order of the table."""

from __future__ import annotations

from tests.bench import (
    backlog,
    bulk,
    bulk_beside,
    coalesce,
    disk,
    drain,
    errors,
    fairness,
    idle,
    intake,
    intake_peer,
    job,
    large,
    latency,
    mapping,
    poison,
    postgresql,
    recover,
    restart_gap,
    start,
)
from tests.bench.row import Row

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        intake.ROW,
        intake_peer.ROW,
        intake_peer.FLUENTD,
        bulk.ROW,
        bulk_beside.ROW,
        mapping.ROW,
        drain.ROW,
        drain.LIMITED,
        fairness.ROW,
        fairness.ROW,
        coalesce.ROW,
        job.ROW,
        latency.ROW,
        backlog.ROW,
        large.ROW,
        start.ROW,
        idle.ROW,
        poison.ROW,
        recover.ROW,
        errors.ROW,
        disk.ROW,
        restart_gap.ROW,
        postgresql.INTAKE,
        postgresql.LIMITED,
        postgresql.TAKE,
    )
}
