"""Rows are run, and what they measured is kept: samples, medians, spread, and on which machine at which load."""

from __future__ import annotations

import os
import platform
import subprocess
import time
import traceback
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, cast

import orjson

from tests.bench.row import Goal, Missing, Row, Sample, Size

REPOSITORY = Path(__file__).parents[2]
#: How long other work is looked at before a row.
BUSY_LOOK_S = 0.5
#: What the README shows.
KEPT = REPOSITORY / ".performance"


@dataclass(frozen=True, slots=True)
class Measured:
    """One row's outcome. `figures` are samples by name, one for each round; `load` is the machine's load average
    of the last minute before and after, which counts the benchmark itself; `busy` the share of the cores that other
    work took just before. `missing`: why there is nothing; `failed`: because something went wrong.
    """

    name: str
    measures: str
    against: str
    goals: tuple[Goal, ...]
    figures: dict[str, list[float]] = field(default_factory=dict)
    missing: str | None = None
    failed: bool = False
    size: Size = field(default_factory=Size)
    date: str = ""
    commit: str = ""
    machine: str = ""
    took_s: float = 0.0
    load: tuple[float, float] = (0.0, 0.0)
    busy: float = 0.0

    def median(self, figure: str) -> float:
        return median(self.figures[figure])

    def goals_of(self, figure: str) -> list[Goal]:
        return [goal for goal in self.goals if goal.figure == figure]


def run(row: Row, size: Size) -> Measured:
    """Measure one row."""
    load, busy = os.getloadavg()[0], busy_share()
    began = time.monotonic()
    samples: list[Sample] = []
    missing, failed = None, False
    try:
        # A generator, so that what it opened is closed when the last round is through.
        with closing(cast("Any", row.rounds(size))) as rounds:
            samples = list(islice(cast("Iterator[Sample]", rounds), size.rounds))
    except Missing as lacking:
        missing = str(lacking)
    except Exception as error:  # noqa: BLE001 (whatever it is, the other rows must get their turn)
        traceback.print_exc()
        samples, missing, failed = [], f"failed with {type(error).__name__}", True
    figures = {name: [float(f"{sample[name]:.5g}") for sample in samples] for name in (samples[0] if samples else {})}
    unknown = {goal.figure for goal in row.goals} - figures.keys()
    if missing is None and unknown:
        raise ValueError(f"{row.name}: there is no figure {', '.join(sorted(unknown))}")
    return Measured(
        name=row.name,
        measures=row.measures,
        against=row.against,
        goals=row.goals,
        figures=figures,
        missing=missing,
        failed=failed,
        size=size,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit(),
        machine=machine(),
        took_s=round(time.monotonic() - began, 1),
        load=(round(load, 2), round(os.getloadavg()[0], 2)),
        busy=round(busy, 2),
    )


def machine() -> str:
    """The processor, how many of it, memory, system and interpreter."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, "
        f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"
    )


def busy_share() -> float:
    """The share of the cores that is in use while the benchmark does nothing."""
    total, idle = _ticks()
    time.sleep(BUSY_LOOK_S)
    total_then, idle_then = _ticks()
    return 1 - (idle_then - idle) / max(1, total_then - total)


def _ticks() -> tuple[int, int]:
    """All time of all cores, and what of it was idle or waited for a disk."""
    ticks = [int(text) for text in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]]
    return sum(ticks), ticks[3] + ticks[4]


def commit() -> str:
    """The commit that is measured, with a plus sign when the tree differs from it; "" outside of git."""
    try:
        found = _git("rev-parse", "--short", "HEAD")
        return found + "+" if _git("status", "--porcelain") else found
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "--no-optional-locks", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.strip()


def as_json(measured: Measured) -> dict[str, Any]:
    """With medians, spread and verdicts spelled out, for whoever reads the file."""
    shown = asdict(measured)
    shown["figures"] = {
        name: {"samples": samples, "median": median(samples), "min": min(samples), "max": max(samples)}
        for name, samples in measured.figures.items()
    }
    for goal, one in zip(measured.goals, shown["goals"], strict=True):
        one["met"] = goal.is_met(measured.figures[goal.figure]) if measured.missing is None else None
    return shown


def from_json(shown: dict[str, Any]) -> Measured:
    """What `as_json` wrote."""
    goals = tuple(Goal(**{name: value for name, value in one.items() if name != "met"}) for one in shown["goals"])
    figures = {name: found["samples"] for name, found in shown["figures"].items()}
    kept = Measured(**{**shown, "goals": goals, "figures": figures, "load": tuple(shown["load"])})
    return replace(kept, size=Size(**shown["size"]))


def load(file: Path) -> list[Measured]:
    """The rows that a file holds; none when it is not there."""
    return [from_json(shown) for shown in orjson.loads(file.read_bytes())] if file.exists() else []


def save(file: Path, rows: list[Measured], *, order: list[str]) -> None:
    """Write these rows; what else the file holds of `order` stays as it is."""
    found = {row.name: row for row in [*load(file), *rows]}
    kept = [as_json(found[name]) for name in order if name in found]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(orjson.dumps(kept, option=orjson.OPT_INDENT_2) + b"\n")
