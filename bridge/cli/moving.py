"""`partner-bridge migrate`: carry the journal over to PostgreSQL."""

from __future__ import annotations

import re
from pathlib import Path

import click

from bridge.cli.common import config_option, load_for_journal
from bridge.cli.printing import print_table, progress
from bridge.config.service_schemas import journal_url_fault
from bridge.errors import BridgeError


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
    with progress("copying", None) as bar:
        moved = move(
            source, target, progress=lambda done, rows: bar.update(bar.task_ids[0], total=rows, completed=done)
        )
    shown = without_password(target)
    print_table(["table", "rows"], [[name, str(rows)] for name, rows in moved.rows.items()])
    if moved.before:
        click.echo(f"nothing to do: an earlier run carried all of it over to {shown}")
    else:
        click.echo(f"all of it is in {shown}, counted; the file is unchanged")
    click.echo("next: name that in journal.url, then `partner-bridge serve`; do not serve the file again", err=True)
    return 0


def without_password(url: str) -> str:
    """The URL for people's eyes: it may name several hosts, as only libpq understands it."""
    return re.sub(r"(?<=//)([^:/@]*):[^@/]*(?=@)|(?<=[?&])((?:ssl)?password)=[^&]*", hidden, url)


def hidden(found: re.Match[str]) -> str:
    return f"{found[1]}:***" if found[2] is None else f"{found[2]}=***"
