"""`partner-bridge retries`: the retry log on the command line, beside a running service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from bridge.cli.common import Command, config_option, load_for_journal
from bridge.cli.printing import Moment, iso, print_json, print_table, progress
from bridge.journal import versions
from bridge.journal.retry_log import Entry, Filter
from bridge.journal.store import Journal
from bridge.model import SystemClock
from bridge.settings import Settings

NOTHING = "nothing in the retry log matches"


def selection(command: Command) -> Command:
    """The filters of §1 of the interface, as options."""
    options: list[Callable[[Command], Command]] = [
        click.argument("ids", nargs=-1),
        click.option("--state", type=click.Choice(["retrying", "parked"]), help="Only entries in this state."),
        click.option("--source", help="Only entries of this source."),
        click.option("--category", help="Only this category, e.g. OBJECT_NOT_FOUND."),
        click.option("--record", help="Only this record id."),
        click.option("--since", type=Moment(), help="First failed at or after this time (ISO 8601, or 2h)."),
        click.option("--before", type=Moment(), help="First failed before this time."),
        config_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def chosen(options: dict[str, Any]) -> Filter:
    """The options as a filter."""
    return Filter(
        ids=tuple(options["ids"]),
        state=options["state"],
        source=options["source"],
        category=options["category"],
        record=options["record"],
        since_us=options["since"],
        before_us=options["before"],
    )


@contextmanager
def opened(settings: Settings) -> Iterator[Journal]:
    """The journal, also beside a running service."""
    versions.check(settings.journal.url)
    journal = Journal(settings=settings.journal, clock=SystemClock(), retry_max_s=settings.retry.max_s)
    try:
        yield journal
    finally:
        journal.close()


def as_json(entry: Entry) -> dict[str, Any]:
    """An entry as `retries list --json` prints it."""
    return {
        "id": entry.id,
        "state": entry.state,
        "source": entry.source,
        "object_type": entry.object_type,
        "id_property": entry.id_property,
        "record": entry.record,
        "category": entry.category,
        "message": entry.message,
        "properties": list(entry.properties),
        "event_ids": list(entry.event_ids),
        "attempts": entry.attempts,
        "first_failed_at": iso(entry.first_failed_us),
        "next_attempt_at": iso(entry.next_attempt_us),
    }


@click.group()
def retries() -> None:
    """The retry log: what is retried, parked or refused."""


@retries.command("list")
@selection
@click.option("--json", "json_", is_flag=True, help="An array of objects.")
def list_(config: Path, json_: bool, **options: Any) -> int:
    """List entries, oldest failure first."""
    with opened(load_for_journal(config)) as journal:
        entries = journal.entries(chosen(options))
    if json_:
        print_json([as_json(entry) for entry in entries])
    elif entries:
        print_table(
            ["id", "state", "source", "record", "category", "properties", "first failed", "message"],
            [
                [
                    entry.id,
                    entry.state,
                    entry.source,
                    entry.record or "-",
                    entry.category,
                    ",".join(entry.properties) or "-",
                    iso(entry.first_failed_us) or "-",
                    entry.message,
                ]
                for entry in entries
            ],
        )
    else:
        click.echo(NOTHING, err=True)
    return 0 if entries else 1


@retries.command()
@click.argument("entry_id", metavar="ID")
@config_option
@click.option("--json", "json_", is_flag=True, help="One object.")
def show(entry_id: str, config: Path, json_: bool) -> int:
    """Show one entry with the events behind it."""
    with opened(load_for_journal(config)) as journal:
        entries = journal.entries(Filter(ids=(entry_id,)))
        if not entries:
            click.echo(f"{NOTHING}: {entry_id}", err=True)
            return 1
        document = as_json(entries[0])
        document["events"] = [story for event_id in entries[0].event_ids for story in journal.trace_event(event_id)]
    if json_:
        print_json(document)
        return 0
    events = document.pop("events")
    for name, value in document.items():
        click.echo(f"{name:16} {', '.join(value) if isinstance(value, list) else '-' if value is None else value}")
    for story in events:
        click.echo(f"event {story['event']} of {story['source']}, received {iso(story['received_us'])}")
    click.echo(f"next: partner-bridge retries replay {entry_id}, or partner-bridge retries discard {entry_id}")
    return 0


def _select(journal: Journal, options: dict[str, Any], all_: bool) -> list[Entry]:
    """The entries to act on; acting on everything must be said."""
    wanted = chosen(options)
    if wanted == Filter() and not all_:
        raise click.UsageError("say which entries: IDs, a filter, or --all")
    return journal.entries(wanted)


@retries.command()
@selection
@click.option("--all", "all_", is_flag=True, help="Every entry.")
@click.option("--json", "json_", is_flag=True, help="What was done, as an object.")
def replay(config: Path, all_: bool, json_: bool, **options: Any) -> int:
    """Map the kept payloads with today's mapping and send them now; newer values are never overwritten."""
    from bridge.service import make_remap

    settings = load_for_journal(config)
    remap = make_remap(settings)
    with opened(settings) as journal:
        entries = _select(journal, options, all_)
        if not entries:
            click.echo(NOTHING, err=True)
            return 1
        click.echo(f"replaying {len(entries)} {'entry' if len(entries) == 1 else 'entries'}", err=True)
        with progress("replaying", len(entries)) as bar:
            done = journal.replay(entries, remap, progress=lambda n: bar.advance(bar.task_ids[0], n))
    if json_:
        print_json({"entries": done.entries, "events": done.events, "unmapped": done.unmapped})
    else:
        click.echo(f"{done.entries} replayed from {done.events} events; {done.unmapped} could not be mapped again")
    return 0


@retries.command()
@selection
@click.option("--all", "all_", is_flag=True, help="Every entry.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "json_", is_flag=True, help="What was done, as an object.")
def discard(config: Path, all_: bool, yes: bool, json_: bool, **options: Any) -> int:
    """Give entries up for good; what was delivered stays, older values stay unsent."""
    with opened(load_for_journal(config)) as journal:
        entries = _select(journal, options, all_)
        if not entries:
            click.echo(NOTHING, err=True)
            return 1
        if not yes:
            click.confirm(f"give up {len(entries)} entries for good?", abort=True, err=True)
        with progress("discarding", len(entries)) as bar:
            given_up = journal.discard(entries, progress=lambda n: bar.advance(bar.task_ids[0], n))
    if json_:
        print_json({"entries": len(entries), "given_up": given_up})
    else:
        click.echo(f"{len(entries)} entries discarded ({given_up} values and events)")
    return 0
