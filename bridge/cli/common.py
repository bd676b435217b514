"""What several commands share: the `--config` option, and how they print."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bridge.showing import printable, printable_json

if TYPE_CHECKING:
    from bridge.settings import Settings

Command = TypeVar("Command", bound=Callable[..., object])

DEFAULT_CONFIG = Path("bridge.yaml")


def config_option(command: Command) -> Command:
    """Add `--config FILE`: default `$BRIDGE_CONFIG`, then `./bridge.yaml`."""
    return click.option(
        "--config",
        "config",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="BRIDGE_CONFIG",
        default=DEFAULT_CONFIG,
        show_default="$BRIDGE_CONFIG, then ./bridge.yaml",
        help="The configuration file.",
    )(command)


def unused_config_option(command: Command) -> Command:
    """Take `--config` like every other command, for scripts that give it to all of them; nothing is read."""
    return click.option("--config", hidden=True, expose_value=False, metavar="FILE")(command)


def load(config: Path) -> Settings:
    """The settings that `config` holds. Raises ConfigError with all its problems."""
    from bridge.config import load_settings

    return load_settings(config)


def load_for_journal(config: Path) -> Settings:
    """The settings for a command that only opens the journal: the CRM's token is not needed for that."""
    from bridge.config import load_settings

    return load_settings(config, sandbox=True)


def source_names(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """The configured sources that begin so, for the shell; none where the configuration cannot be read."""
    config = ctx.params.get("config") or os.environ.get("BRIDGE_CONFIG") or DEFAULT_CONFIG
    try:
        names = load_for_journal(Path(config)).sources
    except Exception:  # noqa: BLE001 (whatever it is, a shell that asks for a completion wants no error)
        return []
    return [name for name in names if name.startswith(incomplete)]


def typed(words: str, config: Path) -> str:
    """A command to type, with the configuration named where it is not the usual one."""
    usual = config == DEFAULT_CONFIG or os.environ.get("BRIDGE_CONFIG") == str(config)
    return f"partner-bridge {words}" + ("" if usual else f" --config {shlex.quote(str(config))}")


def local_url(host: str, port: int) -> str:
    """Where this machine reaches what is bound there."""
    here = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared, not bound)
    return f"http://[{here}]:{port}" if ":" in here else f"http://{here}:{port}"


def log_accidents_only() -> None:
    """On stderr: standard output is for the answer."""
    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


# --- how commands print: tables and colours on a terminal, plain lines in a pipe, JSON when asked ---
#
# What partners and the CRM wrote is shown escaped, so that it can neither steer a terminal nor forge a line.

#: How words that tell what became of something look on a terminal.
STYLES = {
    "delivered": "green",
    "unchanged": "green",
    "pending": "cyan",
    "retrying": "yellow",
    "unknown": "yellow",
    "parked": "red",
    "refused": "red",
    "superseded": "dim",
    "ignored": "dim",
    "discarded": "dim",
}
_STYLED = frozenset({"state", "outcome"})
#: A column whose cells are no longer than this is not broken into lines while another can be: the narrowest first,
#: as long as every other one keeps so many characters.
SHORT_CELL = 24
LEAST_CELL = 12
_MILLISECONDS = re.compile(r"(T\d\d:\d\d:\d\d)\.\d+Z")


def console(*, err: bool = False) -> Console:
    """Standard output, or stderr; wide in a pipe, so that nothing is cut."""
    stream = sys.stderr if err else sys.stdout
    return Console(width=None if stream.isatty() else 240, highlight=False, stderr=err)


def say(text: str, *, style: str = "", err: bool = False) -> None:
    """One line, in this style on a terminal."""
    if (sys.stderr if err else sys.stdout).isatty():
        console(err=err).print(Text(printable(text), style), soft_wrap=True)
    else:
        click.echo(printable(text), err=err)


def complain(text: str) -> None:
    """An error on stderr, line by line: what is wrong and what to change."""
    for number, line in enumerate(text.splitlines() or [text]):
        say(line if number else f"partner-bridge: {line}", style="red", err=True)


class Declined(click.Abort):
    """A person did not confirm; the message says what that means."""


def confirm(question: str) -> None:
    """Go on if a person says so. Raises Declined."""
    try:
        confirmed = click.confirm(printable(question), err=True)
    except click.Abort:
        if sys.stdin.isatty():
            raise
        raise Declined("nobody is there to answer, and nothing was done; --yes goes on without asking") from None
    if not confirmed:
        raise Declined("nothing was done")


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    click.echo(printable_json(document, indented=True))


def print_json_rows(rows: Iterable[Any]) -> int:
    """A JSON array on standard output, row by row; returns how many there were."""
    number = 0
    for number, row in enumerate(rows, 1):
        click.echo(("[\n" if number == 1 else ",\n") + printable_json(row), nl=False)
    click.echo("\n]" if number else "[]")
    return number


def print_list(found: Iterable[Any], cells: Mapping[str, Callable[[Any], str]], *, as_json: bool, nothing: str) -> int:
    """A JSON array, or a table whose columns are `cells`; exit status 1, after `nothing`, where nothing was found."""
    if as_json:
        return 0 if print_json_rows(found) else 1
    rows = [[cell(each) for cell in cells.values()] for each in found]
    if not rows:
        click.echo(nothing, err=True)
        return 1
    print_table(list(cells), rows)
    return 0


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal, with words of `STYLES` coloured; tab-separated lines with a header in a pipe."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            click.echo("\t".join(printable(cell.replace("\t", " ").replace("\n", " ")) for cell in row))
        return
    out = console()
    shown = [[printable(_MILLISECONDS.sub(r"\1Z", cell)) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(columns, *shown, strict=True)]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column, width in zip(columns, _kept_whole(widths, out.width), strict=True):
        table.add_column(column, overflow="fold", min_width=width)
    for row in shown:
        styles = (STYLES.get(cell, "") if column in _STYLED else "" for column, cell in zip(columns, row, strict=True))
        table.add_row(*map(Text, row, styles))
    out.print(table)


def _kept_whole(widths: Sequence[int], screen: int) -> list[int | None]:
    """The width that a column must keep, or None where its cells may be broken into lines."""
    room = screen - sum(min(width, LEAST_CELL) + 2 for width in widths)
    kept: list[int | None] = [None] * len(widths)
    for column in sorted(range(len(widths)), key=widths.__getitem__):
        room -= max(0, widths[column] - LEAST_CELL)
        if room < 0 or widths[column] > SHORT_CELL:
            break
        kept[column] = widths[column]
    return kept


@contextmanager
def progress(text: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, nothing in a pipe; it is told how many more are done."""
    with progress_bar(text, total) as update:
        yield lambda done: update(advance=done)


@contextmanager
def progress_bar(text: str, total: int | None) -> Iterator[Callable[..., None]]:
    """The same, moved as `Progress.update` of the library does it."""
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        yield partial(bar.update, bar.add_task(text, total=total))


class Moment(click.ParamType[int]):
    """A point in time: ISO 8601 (UTC unless it names a zone), or an age such as 30m, 2h, 7d."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from bridge.operations.queries import moment_us  # takes the journal's modules, which few commands need

        if isinstance(value, int):
            return value
        try:
            return moment_us(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
