"""`backlog`: what a journal full of records costs. `python -m tests.bench.backlog` tells more, of any size.

Records that wait, and events that are settled but still kept: neither may slow down intake, claims, counts or the
admin port, nor cost memory. And how a full journal refuses and opens again, what a record costs that changes all the
time, and what retention costs beside intake.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from statistics import median, quantiles
from typing import TypeVar

import click
import orjson
import requests
from rich.console import Console
from rich.table import Table

from bridge.journal import versions
from bridge.journal.event_log import EventFilter
from bridge.journal.store import Journal
from bridge.model import Delivered, to_us
from bridge.settings import Journal as JournalSettings
from tests.bench.backlogs import copied, fill, values
from tests.bench.crm import sandbox
from tests.bench.intake import load_on
from tests.bench.load import SOURCE, payload
from tests.bench.results import machine
from tests.bench.row import Row, Sample, Size, at_least, at_most
from tests.builders import call, event
from tests.rig import ShiftingClock, quiet
from tests.running import Running, eventually, free_port

#: The row's backlog, and events appended or settled at a time.
PENDING, STEP = 1_000_000, 1_000
#: Delivered records behind settled events at most, calls whose claim is timed, looks at the admin port.
RECORDS, CALLS_TIMED, LOOKS = 250_000, 50, 20
#: Records that are there to be claimed where nothing else is due.
FRESH = range(10_000_000, 10_000_000 + CALLS_TIMED * 100)
#: Seconds of a day, and those for which webhooks are sent one by one beside something else.
DAY_S, BESIDE_S = 86_400.0, 20.0

T = TypeVar("T")

#: {figure with its unit: value}
Found = dict[str, float]


# --- journals -----------------------------------------------------------------------------------


def opened(folder: Path, clock: ShiftingClock) -> Journal:
    return Journal(settings=JournalSettings(url=f"sqlite:///{folder}/journal.db", max_pending=10**9), clock=clock)


def settled(folder: Path, events: int) -> Path:
    """So many events, two days old and settled: `RECORDS` of them delivered, and older ones that those superseded."""
    versions.prepare(f"sqlite:///{folder}/journal.db")
    clock = ShiftingClock()
    clock.shift(-2 * DAY_S)
    journal = opened(folder, clock)
    delivered = min(events, RECORDS)
    try:
        for first in range(0, delivered, STEP):
            numbers = range(first, min(first + STEP, delivered))
            journal.append([event(f"e{number}", f"c{number}", values(number)) for number in numbers])
            while claim(journal, clock, records=STEP):
                pass
    finally:
        journal.close()
    with closing(sqlite3.connect(folder / "journal.db")) as raw:
        for turn in range(1, events // max(1, delivered)):
            _copy(raw, turn)
    return folder


def _copy(raw: sqlite3.Connection, turn: int) -> None:
    """The delivered events once more, each as the last but `turn` of its record."""
    columns = [row[1] for row in raw.execute("PRAGMA table_info(events)")]
    far, shift = 10**8, turn * 10**8
    changed = {"seq": f"seq + {shift}", "event_id": f"event_id || '-{turn}'"}
    chosen = ", ".join(changed.get(name, name) for name in columns)
    with raw:
        raw.execute(f"INSERT INTO events ({', '.join(columns)}) SELECT {chosen} FROM events WHERE seq < {far}")
        raw.execute(
            f"""INSERT INTO asks (record, n, event, time_us, properties)
                SELECT record, n - {turn}, event + {shift}, time_us, properties FROM asks WHERE event < {far}"""
        )


def claim(journal: Journal, clock: ShiftingClock, *, records: int = 100) -> Mapping[str, float]:
    """Deliver one call's records; the milliseconds of each step, nothing when no record is due."""
    refs, due_ms = timed(lambda: list(dict.fromkeys(due.ref for due in journal.due(limit=records, exclude=()))))
    if not refs:
        return {}
    began = clock.now()
    taken, take_ms = timed(lambda: journal.take(refs, began_at_us=to_us(began)).records)
    outcomes, done = [Delivered(record) for record in taken], call(taken, began=began)
    _, settle_ms = timed(lambda: journal.settle(taken, outcomes, call=done, doubtful=False))
    return {"find due, ms": due_ms, "take 100, ms": take_ms, "settle 100, ms": settle_ms}


def timed(act: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and the milliseconds that it took."""
    began = time.perf_counter()
    return act(), (time.perf_counter() - began) * 1000


# --- what a full journal costs ------------------------------------------------------------------


def costs(template: Path, *, seconds: float) -> Found:
    """Of intake and the admin port in a service whose CRM is away, then of claims, counts and upkeep."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = copied(template, Path(name))
        service = Running(folder, f"http://127.0.0.1:{free_port()}", sources=SOURCE, max_pending=10**9)
        service.start()
        try:
            looks = {f"{path}, ms": look_ms(service, path) for path in ("/metrics", "/status")}
            before_mb = service.rss_mb()
            figures = load_on(service, connections=32, seconds=seconds, first=100_000_000)
            found = {
                "webhooks/s": figures.per_s,
                "p99 of a webhook, ms": figures.p99_ms,
                **looks,
                "memory of the worker, MB": before_mb,
                "memory after the load, MB": service.rss_mb(),
            }
        finally:
            service.stop()
        return found | claims(folder)


def claims(folder: Path) -> Found:
    """Medians of what delivery and upkeep ask of the journal."""
    clock = ShiftingClock()
    journal = opened(folder, clock)
    try:
        journal.append([event(f"e{number}", f"c{number}", values(number)) for number in FRESH])
        steps = [claim(journal, clock) for _ in range(CALLS_TIMED)]
        upkeep = {
            "count, ms": [timed(journal.refresh_figures)[1] for _ in range(LOOKS)],
            "look for what to prune, ms": [timed(journal.prune)[1] for _ in range(LOOKS)],
        }
        return {name: median(step[name] for step in steps) for name in steps[0]} | {
            name: median(taken) for name, taken in upkeep.items()
        }
    finally:
        journal.close()


def look_ms(service: Running, path: str) -> float:
    """The median time of an answer of the admin port."""
    url = service.admin_url + path
    return median(timed(lambda: requests.get(url, timeout=60).raise_for_status())[1] for _ in range(LOOKS))


# --- a full journal -----------------------------------------------------------------------------


def full(template: Path, pending: int) -> Found:
    """How it refuses at `max_pending`, and at how much of it webhooks are taken again while it drains."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, sandbox() as crm:
        crm.fail("503")
        service = Running(copied(template, Path(name)), crm.url, sources=SOURCE, max_pending=pending)
        service.start()
        try:
            assert eventually(lambda: send_ms(service, 0)[0] == 503)
            before_mb = service.rss_mb()
            refusals = [send_ms(service, number) for number in range(1, 501)]
            assert {code for code, _ in refusals} == {503}
            took = [took_ms for _, took_ms in refusals]
            after_mb = service.rss_mb()
            crm.fail(None)
            waiting = 0
            while send_ms(service, 501)[0] == 503:
                waiting = service.status()["pending"]
                time.sleep(0.2)
            return {
                "p50 of a 503, ms": median(took),
                "p99 of a 503, ms": percentile_99(took),
                "memory gained by 500 refusals, MB": after_mb - before_mb,
                "last seen pending before it took again, share": waiting / pending,
                "pending when it had, share": service.status()["pending"] / pending,
            }
        finally:
            service.stop()


def send_ms(service: Running, number: int, *, session: requests.Session | None = None) -> tuple[int, float]:
    """The status of a single webhook, and its milliseconds."""
    body = payload(200_000_000 + number, record=f"single-{number % 1000}")
    answer, took_ms = timed(lambda: service.post(body, session=session))
    return answer.status_code, took_ms


def percentile_99(taken: list[float]) -> float:
    return quantiles(taken, n=100)[98]


# --- one record that changes all the time -------------------------------------------------------


def restless(changes: int) -> Found:
    """One record gets so many changes while it is delivered."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, sandbox(latency_s=0.05) as crm:
        service = Running(Path(name), crm.url, sources=SOURCE)
        service.start()
        try:
            assert send_ms(service, 0)[0] == 202
            assert eventually(service.idle)
            before_mb = service.rss_mb()
            began = time.monotonic()
            with service.journal() as journal:
                for first in range(0, changes, STEP):
                    numbers = range(first, min(first + STEP, changes))
                    journal.append([event(f"e{number}", "restless", values(number)) for number in numbers])
                due_ms = median(timed(lambda: journal.due(limit=500, exclude=()))[1] for _ in range(LOOKS))
            took_s = time.monotonic() - began
            assert eventually(service.idle)
            assert crm.state()["restless"] == values(changes - 1)
            return {
                "changes/s": changes / took_s,
                "CRM calls": len(crm.calls()),
                "find due, ms": due_ms,
                "memory gained, MB": service.rss_mb() - before_mb,
            }
        finally:
            service.stop()


# --- retention beside intake --------------------------------------------------------------------


def retention(template: Path, events: int) -> Found:
    """Single webhooks one after the other while everything is young, then while the old events are pruned."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        service = Running(copied(template, Path(name)), f"http://127.0.0.1:{free_port()}", sources=SOURCE)
        service.start()
        try:
            alone = singles(service, BESIDE_S / 2, first=0)
            service.retention = "1d"
            service.configure()
            assert service.process is not None
            service.process.send_signal(1)
            assert eventually(lambda: service.log_has("the configuration was reloaded"))
            before, before_mb = stored(service), service.rss_mb()
            began = time.monotonic()
            beside = singles(service, BESIDE_S, first=len(alone))
            pruned = before + len(beside) - stored(service)
            rate = pruned / (time.monotonic() - began)
            assert 0 < pruned <= events
            return {
                "pruned events/s": rate,
                "for all of them, s": events / rate,
                "p50 of a webhook alone, ms": median(alone),
                "p50 beside, ms": median(beside),
                "p99 alone, ms": percentile_99(alone),
                "p99 beside, ms": percentile_99(beside),
                "memory gained, MB": service.rss_mb() - before_mb,
            }
        finally:
            service.stop()


def singles(service: Running, seconds: float, *, first: int) -> list[float]:
    """Milliseconds of webhooks sent one after the other."""
    taken: list[float] = []
    until = time.monotonic() + seconds
    with requests.Session() as session:
        while time.monotonic() < until:
            code, took_ms = send_ms(service, 1_000 + first + len(taken), session=session)
            assert code == 202
            taken.append(took_ms)
    return taken


def stored(service: Running) -> int:
    """How many events the journal keeps."""
    with service.journal() as journal:
        return journal.count_events(EventFilter())


# --- the row, and the whole report --------------------------------------------------------------


def rounds(size: Size) -> Iterator[Sample]:
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        templates = {
            number: fill(made(Path(name) / str(number)), number)
            for number in (0, size.of(PENDING // 10), size.of(PENDING))
        }
        while True:
            none, some, many = (costs(template, seconds=size.seconds) for template in templates.values())
            yield {
                "intake ÷ empty, 100,000": some["webhooks/s"] / none["webhooks/s"],
                "intake ÷ empty, a million": many["webhooks/s"] / none["webhooks/s"],
                "claims ÷ few due, a million": claim_ms(none) / claim_ms(many),
                "MB of a worker, a million": many["memory after the load, MB"],
                "MB more than empty": many["memory after the load, MB"] - none["memory after the load, MB"],
                "webhooks/s, a million": many["webhooks/s"],
                "claim ms, a million": claim_ms(many),
            }


def claim_ms(found: Found) -> float:
    """Of one call's records, from looking for them to their end."""
    return found["find due, ms"] + found["take 100, ms"] + found["settle 100, ms"]


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


ROW = Row(
    name="backlog",
    measures="intake, claims and memory with 100,000 and 1,000,000 records waiting",
    against="a journal where few wait",
    goals=(
        at_least("intake ÷ empty, a million", 0.9),
        at_least("claims ÷ few due, a million", 0.9),
        at_most("MB of a worker, a million", 150),
    ),
    rounds=rounds,
)


@click.command()
@click.option("--pending", type=click.IntRange(0), default=PENDING, show_default=True, help="Records that wait.")
@click.option("--settled", "kept", type=click.IntRange(0), multiple=True, default=(1_000_000,), show_default=True,
              help="Settled events that are kept; repeatable.")  # fmt: skip
@click.option("--changes", type=click.IntRange(1), default=100_000, show_default=True, help="Of one record.")
@click.option("--seconds", type=float, default=5.0, show_default=True, help="Of load on each journal.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures there.")
def main(pending: int, kept: tuple[int, ...], changes: int, seconds: float, file: Path | None) -> None:
    """Measure everything once and print it."""
    quiet()
    found: dict[str, Found] = {}

    def note(name: str, figures: Found) -> None:
        found[name] = {figure: float(f"{value:.3g}") for figure, value in figures.items()}
        click.echo(f"{name}: {found[name]}", err=True)
        if file is not None:
            file.write_bytes(orjson.dumps({"machine": machine(), "found": found}, option=orjson.OPT_INDENT_2) + b"\n")

    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        root = Path(name)
        note("empty", costs(fill(made(root / "empty"), 0), seconds=seconds))
        waiting = fill(made(root / "pending"), pending)
        note(f"{pending:,} pending", costs(waiting, seconds=seconds))
        note(f"full at {pending:,}", full(waiting, pending))
        note(f"{changes:,} changes of one record", restless(changes))
        for events in kept:
            old = settled(made(root / f"settled-{events}"), events)
            note(f"{events:,} settled", costs(old, seconds=seconds))
            note(f"retention of {events:,}", retention(old, events))
    table = Table("journal", "figure", "value")
    for name, figures in found.items():
        for place, (figure, value) in enumerate(figures.items()):
            table.add_row(name if place == 0 else "", figure, f"{value:g}", end_section=place == len(figures) - 1)
    Console().print(table)


if __name__ == "__main__":
    main()
