"""The table of what was measured: for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from tests.bench.results import Measured
from tests.bench.row import FULL

#: Other work that takes no more of the cores is no trouble.
QUIET = 0.1
HEADINGS = ("row", "figure", "median", "spread", "goal", "met")


def lines(rows: Sequence[Measured]) -> Iterator[tuple[str, ...]]:
    """A line for each figure; those with a goal first."""
    for row in rows:
        if row.missing is not None:
            yield row.name, _nothing(row), "", "", "", "no" if row.failed else "–"
            continue
        judged = _judged(row)
        figures = [*judged, *(figure for figure in row.figures if figure not in judged)]
        for place, figure in enumerate(figures):
            goals, samples = row.goals_of(figure), row.figures[figure]
            yield (
                row.name if place == 0 else "",
                figure,
                number(row.median(figure)),
                f"{number(min(samples))} – {number(max(samples))}" if len(samples) > 1 else "",
                ", ".join(map(str, goals)),
                "" if not goals else "yes" if all(goal.is_met(samples) for goal in goals) else "no",
            )


def number(value: float) -> str:
    """Three digits that count; whole numbers from a hundred on."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def show(rows: Sequence[Measured], console: Console) -> None:
    """Print the table, and on what it was measured."""
    table = Table(*HEADINGS)
    for line in lines(rows):
        table.add_row(*line, style="red" if line[5] == "no" else "")
    console.print(table)
    console.print(circumstances(rows), highlight=False)


def circumstances(rows: Sequence[Measured]) -> str:
    """On what the rows were measured, when, and what else went on there."""
    told = [f"{', '.join(dict.fromkeys(row.machine for row in rows))}."]
    commits = ", ".join(dict.fromkeys(row.commit or "unknown" for row in rows))
    dates = sorted(row.date[:16].replace("T", " ") for row in rows)
    loads = [row.load[0] for row in rows]
    told += [
        f"Commit {commits}; {dates[0]} to {dates[-1]} UTC.",
        f"Load average before the rows {min(loads):.1f} to {max(loads):.1f}, the benchmark's own included.",
    ]
    busy = max(row.busy for row in rows)
    if busy > QUIET:
        told.append(f"Other work took up to {busy:.0%} of the cores: these figures are preliminary.")
    if any(row.size != FULL for row in rows):
        told.append("Some rows were measured in less than the full size.")
    return " ".join(told)


def markdown(rows: Sequence[Measured], before: Mapping[str, Measured]) -> str:
    """A line for each row: what is measured, the figures that have a goal, and the others for orientation.

    `before`: an earlier run, whose medians stand beside those that have a goal.
    """
    told = [
        "| row | what, and against what | median (spread; median of the run before; goal) | for orientation |",
        "|---|---|---|---|",
    ]
    for row in rows:
        what = row.measures if row.against == "–" else f"{row.measures}. Against {row.against}"
        judged = _judged(row)
        results = [_verdict(row, figure, before.get(row.name)) for figure in judged]
        if row.missing is not None:
            results = [_nothing(row)]
        others = [f"{figure}: {number(row.median(figure))}" for figure in row.figures if figure not in judged]
        told.append(f"| `{row.name}` | {what} | {'<br>'.join(results)} | {'<br>'.join(others)} |")
    return "\n".join(told) + "\n"


def _nothing(row: Measured) -> str:
    """Why a row has no figures."""
    return row.missing or "" if row.failed else f"left out: {row.missing}"


def _judged(row: Measured) -> list[str]:
    """The figures that have a goal, in the order of the goals."""
    return list(dict.fromkeys(goal.figure for goal in row.goals if goal.figure in row.figures))


def _verdict(row: Measured, figure: str, before: Measured | None) -> str:
    samples, goals = row.figures[figure], row.goals_of(figure)
    spread = f"{number(min(samples))} – {number(max(samples))}; " if min(samples) != max(samples) else ""
    if before is not None and figure in before.figures:
        spread += f"before {number(before.median(figure))}; "
    verdict = "" if all(goal.is_met(samples) for goal in goals) else ", **not met**"
    return f"{figure}: **{number(row.median(figure))}** ({spread}{', '.join(map(str, goals))}{verdict})"
