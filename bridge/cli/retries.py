"""`partner-bridge retries`: the retry log on the command line, beside a running service or through its admin API."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import click

from bridge.cli.common import Command, source_names, typed
from bridge.cli.desk import Place, at_desk, desk_options
from bridge.cli.printing import STYLES, Moment, confirm, iso, print_json, print_json_rows, print_table, progress, say
from bridge.journal.retry_log import Filter
from bridge.operations.remedies import remedy

NOTHING = "nothing in the retry log matches"


def selection(command: Command) -> Command:
    """The filters of §1 of the interface, as options."""
    options: list[Callable[[Command], Command]] = [
        click.argument("ids", nargs=-1),
        click.option("--state", type=click.Choice(["retrying", "parked"]), help="Only entries in this state."),
        click.option("--source", shell_complete=source_names, help="Only entries of this source."),
        click.option("--category", help="Only this category, e.g. OBJECT_NOT_FOUND."),
        click.option("--record", help="Only this record id."),
        click.option("--since", type=Moment(), help="First failed at or after this time (ISO 8601, or 2h)."),
        click.option("--before", type=Moment(), help="First failed before this time."),
        desk_options,
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


@click.group()
def retries() -> None:
    """The retry log: what is retried, parked or refused."""


@retries.command("list")
@selection
@click.option("--all", is_flag=True, expose_value=False, help="Every entry, as without any filter.")
@click.option("--json", "json_", is_flag=True, help="An array of objects.")
def list_(place: Place, json_: bool, **options: Any) -> int:
    """List entries, oldest failure first."""
    with at_desk(place) as desk:
        entries = desk.retries(chosen(options))
        if json_:
            return 0 if print_json_rows(entries) else 1
        first = next(entries, None)
        if first is None:
            click.echo(NOTHING, err=True)
            return 1
        print_table(
            ["id", "state", "source", "record", "category", "properties", "first failed", "message"],
            [
                [
                    entry["id"],
                    entry["state"],
                    entry["source"],
                    entry["record"] or "-",
                    entry["category"],
                    ",".join(entry["properties"]) or "-",
                    entry["first_failed_at"] or "-",
                    entry["message"],
                ]
                for entry in chain([first], entries)
            ],
        )
    return 0


@retries.command()
@click.argument("entry_id", metavar="ID")
@desk_options
@click.option("--json", "json_", is_flag=True, help="One object.")
def show(entry_id: str, place: Place, json_: bool) -> int:
    """Show one entry with the events behind it."""
    with at_desk(place) as desk:
        document = desk.retry(entry_id)
    if document is None:
        say(f"{NOTHING}: {entry_id}", err=True)
        return 1
    if json_:
        print_json(document)
        return 0
    events = document.pop("events")
    for name, value in document.items():
        text = ", ".join(value) if isinstance(value, list) else "-" if value is None else str(value)
        say(f"{name:16} {text}", style=STYLES.get(text, ""))
    say(f"{'to do':16} {remedy(document['category'], document['state'])}")
    for story in events:
        say(f"event {story['event']} of {story['source']}, received {iso(story['received_us'])}")
    replay_, discard_ = (typed(f"retries {act} {shlex.quote(entry_id)}", place.config) for act in ("replay", "discard"))
    click.echo(f"next: {replay_}, or {discard_}")
    return 0


def _to_act_on(options: dict[str, Any], all_: bool) -> Filter:
    """What to act on; acting on everything must be said."""
    wanted = chosen(options)
    if wanted == Filter() and not all_:
        raise click.UsageError("say which entries: IDs, a filter, or --all")
    return wanted


@retries.command()
@selection
@click.option("--all", "all_", is_flag=True, help="Every entry.")
@click.option("--json", "json_", is_flag=True, help="What was done, as an object.")
def replay(place: Place, all_: bool, json_: bool, **options: Any) -> int:
    """Map the kept payloads with today's mapping and send them now; newer values are never overwritten."""
    wanted = _to_act_on(options, all_)
    with at_desk(place) as desk:
        entries = desk.count_retries(wanted)
        if not entries:
            click.echo(NOTHING, err=True)
            return 1
        click.echo(f"replaying {entries} {'entry' if entries == 1 else 'entries'}", err=True)
        with progress("replaying", entries) as bar:
            done = desk.replay_retries(wanted, progress=lambda n: bar.advance(bar.task_ids[0], n))
    if json_:
        print_json(done)
    else:
        click.echo(
            f"{done['entries']} replayed from {done['events']} events; {done['unmapped']} could not be mapped again"
        )
    return 0


@retries.command()
@selection
@click.option("--all", "all_", is_flag=True, help="Every entry.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "json_", is_flag=True, help="What was done, as an object.")
def discard(place: Place, all_: bool, yes: bool, json_: bool, **options: Any) -> int:
    """Give entries up for good; what was delivered stays, older values stay unsent.

    What changed since it was counted is left alone: a newer event for a record is never discarded with it.
    """
    wanted = _to_act_on(options, all_)
    with at_desk(place) as desk:
        seen_us = round(time.time() * 1_000_000)
        entries = desk.count_retries(wanted)
        if not entries:
            click.echo(NOTHING, err=True)
            return 1
        wanted = replace(wanted, seen_us=seen_us)  # what comes while a person makes up their mind is not meant
        if not yes:
            confirm(f"give up {entries} entries for good?")
        with progress("discarding", entries) as bar:
            done = desk.discard_retries(wanted, progress=lambda n: bar.advance(bar.task_ids[0], n))
    if json_:
        print_json(done)
    else:
        click.echo(f"{done['entries']} entries discarded ({done['given_up']} values and events)")
    if changed := entries - done["entries"]:
        click.echo(f"{changed} of the {entries} changed meanwhile and are left alone", err=True)
    return 0
