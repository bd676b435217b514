"""`python -m tests.bench [NAME…]`: run the rows and print the table."""

from __future__ import annotations

import os
from pathlib import Path

import click
from rich.console import Console

from tests.bench.results import run, save
from tests.bench.row import FULL, QUICK, Size
from tests.bench.rows import ROWS
from tests.bench.table import show


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(ROWS)), metavar="[NAME]…")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write there; other rows in it are kept.")
@click.option("--quick", is_flag=True, help="A fiftieth of everything, one round: to see that it works.")
@click.option("--rounds", type=click.IntRange(1), help="How often each side is measured.")
@click.option("--list", "listing", is_flag=True, help="Only tell what the rows are.")
def main(names: tuple[str, ...], file: Path | None, quick: bool, rounds: int | None, listing: bool) -> None:
    """Measure the rows NAME…, or all of them."""
    console = Console()
    chosen = [ROWS[name] for name in names or ROWS]
    if listing:
        for row in chosen:
            console.print(f"[bold]{row.name}[/] {row.measures}; against: {row.against}", highlight=False)
        return
    base = QUICK if quick else FULL
    size = Size(rounds=rounds or base.rounds, seconds=base.seconds, share=base.share)
    measured = []
    for row in chosen:
        click.echo(f"{row.name} … (load {os.getloadavg()[0]:.1f})", err=True)
        measured.append(run(row, size))
        if file is not None:  # after each, so that an interruption costs one row
            save(file, measured, order=list(ROWS))
    show(measured, console)
    if any(row.failed for row in measured):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
