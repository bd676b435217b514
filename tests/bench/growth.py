"""How cost grows: `python -m tests.bench.growth` measures curves, keeps them and draws them.

What a journal full of records costs: intake, claims, retention, `/metrics`, `/status`, memory. And CRM calls against
events, records and skew, at the limit of a portal.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import click
import orjson

from bridge.settings import DAY_S
from tests.bench.backlog import LOOKS, costs, made, settled, timed
from tests.bench.backlogs import fill, opened
from tests.bench.coalesce import send_all, wait_for
from tests.bench.crm import CALLS, LATENCY_S, sandbox
from tests.bench.load import SOURCE
from tests.bench.pictures import draw
from tests.bench.results import KEPT, commit, machine
from tests.bench.row import FULL, QUICK, Size
from tests.rig import ShiftingClock
from tests.running import running

FILE = KEPT / "growth.json"
ROWS = (0, 100_000, 1_000_000, 5_000_000)
PICTURES = ("backlog", "calls")
#: Which of the costs of a backlog are drawn.
DRAWN = (
    "webhooks/s",
    "find due, ms",
    "take 100, ms",
    "settle 100, ms",
    "/metrics, ms",
    "/status, ms",
    "memory after the load, MB",
)
PRUNE = "a step of retention, ms"
#: Of the curves of CRM calls: what does not vary, and what does.
FIXED: Mapping[str, float] = {"events": 20_000, "records": 1_000, "skew": 1.0}
VARIED: Mapping[str, tuple[float, ...]] = {
    "events": (1_000, 5_000, 20_000, 50_000),
    "records": (100, 1_000, 5_000, 20_000),
    "skew": (0.0, 0.5, 1.0, 1.5),
}

#: {curve: [(x, y), …]}
Curves = dict[str, list[tuple[float, float]]]


def backlog_curves(rows: tuple[int, ...], size: Size) -> Curves:
    """Each cost at each number of records that wait; retention at as many settled events."""
    curves: Curves = {}
    for number in rows:
        tell(f"{number:,} rows")
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            found = costs(fill(made(Path(name) / "waiting"), number), seconds=size.seconds)
            for cost in DRAWN:
                curves.setdefault(cost, []).append((number, rounded(found[cost])))
            if number:
                step_ms = prune_ms(settled(made(Path(name) / "settled"), number))
                curves.setdefault(PRUNE, []).append((number, rounded(step_ms)))
    return curves


def prune_ms(folder: Path) -> float:
    """The median time of a step that prunes, when everything is old enough."""
    clock = ShiftingClock()
    clock.shift(8 * DAY_S)
    with opened(f"sqlite:///{folder}/journal.db", clock) as journal:
        steps = [timed(journal.prune) for _ in range(LOOKS)]
    assert steps[0][0] > 0, "nothing was pruned"
    return median(took_ms for pruned, took_ms in steps if pruned)


def call_curves(size: Size) -> Curves:
    """CRM calls, while one of events, records and skew varies."""
    curves: Curves = {}
    for name, values in VARIED.items():
        for value in values:
            chosen = {**FIXED, name: value}
            tell(", ".join(f"{what} {number:g}" for what, number in chosen.items()))
            curves.setdefault(f"calls by {name}", []).append((value, crm_calls(chosen, size)))
    return curves


def crm_calls(chosen: Mapping[str, float], size: Size) -> float:
    """Calls that deliver so many events, which come evenly over a time."""
    events, records = size.of(int(chosen["events"]), least=100), int(chosen["records"])
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        sandbox(limit=CALLS, latency_s=LATENCY_S) as crm,
        running(Path(name), crm.url, sources=SOURCE, calls=CALLS, flush_interval="500ms") as service,
    ):
        seconds = 2 * size.seconds
        sent = send_all(service, events, seconds, random.Random(3), records=records, skew=chosen["skew"])
        wait_for(crm, sent)
        return len(crm.calls())


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def tell(what: str) -> None:
    click.echo(f"{what} … (load {os.getloadavg()[0]:.1f})", err=True)


@click.command()
@click.argument("pictures", nargs=-1, type=click.Choice(PICTURES), metavar="[PICTURE]…")
@click.option("--rows", type=int, multiple=True, help=f"Instead of {', '.join(map(str, ROWS))}; repeatable.")
@click.option("--quick", is_flag=True, help="A fiftieth of everything: to see that it works. Nothing is kept.")
def main(pictures: tuple[str, ...], rows: tuple[int, ...], quick: bool) -> None:
    """Measure the curves of `backlog`, of `calls` or of both, keep them in .performance/growth.json and draw them."""
    size = QUICK if quick else FULL
    numbers = tuple(sorted(rows)) or tuple(size.of(number, least=min(number, 5_000)) for number in ROWS)
    measured: dict[str, Any] = {}
    for picture in pictures or PICTURES:
        circumstances = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "machine": machine(),
            "load": round(os.getloadavg()[0], 2),
        }
        curves = backlog_curves(numbers, size) if picture == "backlog" else call_curves(size)
        measured[picture] = circumstances | {"curves": curves}
    if quick:
        click.echo(orjson.dumps(measured, option=orjson.OPT_INDENT_2))
        return
    kept = (orjson.loads(FILE.read_bytes()) if FILE.exists() else {}) | measured
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_bytes(orjson.dumps(kept, option=orjson.OPT_INDENT_2) + b"\n")
    draw(kept, FILE.parent)


if __name__ == "__main__":
    main()
