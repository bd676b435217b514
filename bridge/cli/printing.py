"""How commands print: tables and colours on a terminal, plain lines in a pipe, JSON when asked."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bridge.model import iso
from bridge.operations.queries import moment_us

__all__ = ["Moment", "console", "iso", "print_json", "print_json_rows", "print_table", "progress"]


def console() -> Console:
    """Standard output; wide in a pipe, so that nothing is cut."""
    return Console(width=None if sys.stdout.isatty() else 240, highlight=False)


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())


def print_json_rows(rows: Iterable[Any]) -> int:
    """A JSON array on standard output, row by row; returns how many there were."""
    number = 0
    for number, row in enumerate(rows, 1):
        click.echo(("[\n" if number == 1 else ",\n") + orjson.dumps(row).decode(), nl=False)
    click.echo("\n]" if number else "[]")
    return number


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; tab-separated lines with a header in a pipe."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            click.echo("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table, markup=False)


@contextmanager
def progress(text: str, total: int | None) -> Iterator[Progress]:
    """A progress bar on a terminal, nothing in a pipe."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        bar.add_task(text, total=total)
        yield bar


class Moment(click.ParamType[int]):
    """A point in time: ISO 8601 (UTC unless it names a zone), or an age such as 30m, 2h, 7d."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return moment_us(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
