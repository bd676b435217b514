"""`partner-bridge journal` and `migrate`: look at the journal, check it, copy it, carry it over to PostgreSQL."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bridge.cli.common import config_option, load_for_journal, print_json, print_table, progress_bar, say, typed
from bridge.config.scalars import journal_url_fault
from bridge.errors import BridgeError, JournalDamagedError
from bridge.showing import iso

if TYPE_CHECKING:
    from bridge.journal.backup import Progress
    from bridge.settings import Journal


@click.group()
def journal() -> None:
    """The journal: look at it, check it; where it is a file, back it up while serving, restore it."""


def file_settings(config: Path) -> Journal:
    """The journal's settings. Raises BridgeError unless it is a file, which can be copied."""
    from bridge.journal.database import on_postgresql

    settings = load_for_journal(config).journal
    if on_postgresql(settings.url):
        raise BridgeError(
            "the journal is in PostgreSQL, whose own tools look after it: back it up with pg_dump, restore it with "
            "pg_restore while no service runs, and `partner-bridge pause` before you start one"
        )
    return settings


@journal.command()
@config_option
@click.option("--json", "json_", is_flag=True, help="One object.")
def info(config: Path, json_: bool) -> int:
    """Show what the journal holds, and who uses it."""
    settings = load_for_journal(config).journal
    found = _information(settings.url)
    document = {
        name.removesuffix("_us") + "_at" if name.endswith("_us") else name: str(value) if name == "path" else value
        for name, value in found.items()
    }
    document |= {
        "oldest_event_at": iso(found["oldest_event_us"]),
        "newest_event_at": iso(found["newest_event_us"]),
        "oldest_pending_at": iso(found["oldest_pending_us"]),
        "retention_s": settings.retention_s,
        "remember_s": settings.remember_s,
        "max_pending": settings.max_pending,
        "max_size": settings.max_size,
    }
    if json_:
        print_json(document)
        return 0
    document |= {name: _who(document[name]) for name in ("serving", "delivering") if name in document}
    print_table(["what", "value"], [[name, "-" if value is None else str(value)] for name, value in document.items()])
    return 0


def _information(url: str) -> dict[str, Any]:
    from bridge.journal.database import on_postgresql

    if on_postgresql(url):
        from bridge.journal.postgresql import versions

        return versions.information(url)
    from bridge.journal.backup import information

    return information(url)


def _who(process: int | str | None) -> str:
    return "nobody" if process is None else f"process {process}" if process else "a process elsewhere"


@journal.command()
@config_option
@click.option("--json", "json_", is_flag=True, help="An object with all problems.")
def verify(config: Path, json_: bool) -> int:
    """Check the whole journal, also while serving; ends with 1 when it is damaged."""
    from bridge.journal import versions
    from bridge.journal.database import on_postgresql
    from bridge.journal.sqlite import trouble
    from bridge.journal.sqlite.files import sqlite_path
    from bridge.journal.sqlite.trouble import damaged

    url = load_for_journal(config).journal.url
    if on_postgresql(url):
        return _verify_postgresql(url, json_=json_)
    path = sqlite_path(url)
    problems: list[str] = []
    error: JournalDamagedError | None = None
    try:
        versions.check(url)
        if problems := trouble.verify(path):
            error = damaged(path, problems[0])
    except JournalDamagedError as found:
        problems, error = [str(found)], found
    if json_:
        print_json({"path": str(path), "sound": not problems, "problems": problems})
    if error is not None:
        for problem in problems[1:]:
            say(f"also: {problem}", err=True)
        raise error
    if versions.trust_again(url):
        click.echo("it had been found damaged; from now on it is written again", err=True)
    if not json_:
        click.echo(f"the journal {path} is sound")
    return 0


def _verify_postgresql(url: str, *, json_: bool) -> int:
    from bridge.journal.postgresql import versions

    problems = versions.verify(url)
    if json_:
        print_json({"path": None, "sound": not problems, "problems": problems})
    elif not problems:
        click.echo("the journal in PostgreSQL is sound")
    for problem in problems:
        say(f"the journal in PostgreSQL: {problem}", err=True)
    return 1 if problems else 0


@journal.command()
@click.argument("file", type=click.Path(path_type=Path))
@config_option
@click.option("--json", "json_", is_flag=True, help="What was written, as an object.")
def backup(file: Path, config: Path, json_: bool) -> int:
    """Copy the journal to FILE, also while serving, and check the copy. It holds payloads and may hold secrets."""
    from bridge.journal.backup import backup as write

    settings = file_settings(config)
    with copying("backing up") as told:
        made = write(settings.url, file, progress=told)
    if json_:
        print_json({"path": str(made.path), "size": made.size, "sha256": made.sha256})
        return 0
    click.echo(f"{made.path}: {made.size} bytes, checked, sha256 {made.sha256}")
    click.echo(f"next: {typed(f'journal restore {shlex.quote(str(file))}', config)} puts it back, paused", err=True)
    return 0


@journal.command()
@click.argument("file", type=click.Path(path_type=Path))
@config_option
@click.option("--json", "json_", is_flag=True, help="What was restored and what it would send, as an object.")
def restore(file: Path, config: Path, json_: bool) -> int:
    """Put the backup FILE in the journal's place while no service runs; delivery starts paused.

    A journal that is there is set aside under another name, never overwritten.
    """
    from bridge.journal.backup import restore as put_back
    from bridge.model import SystemClock

    settings = file_settings(config)
    with copying("restoring") as told:
        done = put_back(settings.url, file, clock=SystemClock(), progress=told)
    newest = iso(done.newest_us)
    if json_:
        print_json(
            {
                "path": str(done.path),
                "set_aside": str(done.set_aside) if done.set_aside else None,
                "paused": True,
                "would_send": [asdict(part) for part in done.waiting],
                "parked": done.parked,
                "newest_event_at": newest,
            }
        )
        return 0
    click.echo(f"{done.path} is restored from {file}; delivery is paused, intake is not")
    if done.set_aside:
        click.echo(f"the journal that was there is now {done.set_aside}")
    if done.waiting:
        click.echo("`partner-bridge resume` would send:")
        print_table(
            ["object type", "source", "records", "values"],
            [[part.object_type, part.source or "-", str(part.records), str(part.values)] for part in done.waiting],
        )
        click.echo("values that the CRM got after the backup are overwritten by these where they differ", err=True)
    else:
        click.echo("nothing waits in it to be sent")
    if done.parked:
        click.echo(f"{done.parked} parked records stay in the retry log")
    click.echo(
        f"events after {newest} are not in it: have the senders send them again"
        if newest
        else "there are no events in it",
        err=True,
    )
    click.echo(f"next: {typed('serve', config)}, then {typed('resume', config)}", err=True)
    return 0


@contextmanager
def copying(text: str) -> Iterator[Progress]:
    """Shows how many pages are copied."""
    with progress_bar(text, None) as update:
        yield lambda left, pages: update(total=pages, completed=pages - left)


# --- `partner-bridge migrate`: carry the journal over to PostgreSQL ---


@click.command("migrate")
@click.option("--to", "target", required=True, metavar="URL", help="postgresql://user@host/database, an empty one.")
@config_option
def migrate(target: str, config: Path) -> int:
    """Carry the journal over to PostgreSQL while no service runs; cut short, a second run goes on.

    The password may be left to PGPASSWORD or ~/.pgpass. The file stays as it is.
    """
    from bridge.journal.moving import move

    source = load_for_journal(config).journal.url
    if not source.startswith("sqlite:"):
        raise BridgeError("journal.url names PostgreSQL already: there is nothing to carry over")
    fault = journal_url_fault(target) if target.startswith("postgresql://") else "must begin with postgresql://"
    if fault:
        raise click.UsageError(f"--to {fault}")
    with progress_bar("copying", None) as update:
        moved = move(source, target, progress=lambda done, rows: update(total=rows, completed=done))
    shown = without_password(target)
    print_table(["table", "rows"], [[name, str(rows)] for name, rows in moved.rows.items()])
    if moved.before:
        click.echo(f"nothing to do: an earlier run carried all of it over to {shown}")
    else:
        click.echo(f"all of it is in {shown}, counted; the file is unchanged")
    click.echo("next: name that in journal.url, then `partner-bridge serve`; do not serve the file again", err=True)
    return 0


def without_password(url: str) -> str:
    """The URL as it may be shown. It may name several hosts, which only libpq can parse."""
    return re.sub(r"(?<=//)([^:/@]*):[^@/]*(?=@)|(?<=[?&])((?:ssl)?password)=[^&]*", hidden, url)


def hidden(found: re.Match[str]) -> str:
    return f"{found[1]}:***" if found[2] is None else f"{found[2]}=***"
