"""`partner-bridge retries`: the retry log on the command line, beside a running service or through its admin API."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter

import click

from bridge.cli.admin_client import Document, Target, admin_options, connect, filters
from bridge.cli.common import STYLES, confirm, print_json, print_list, progress, say, typed
from bridge.journal.retry_log import Filter
from bridge.model import to_us
from bridge.operations.queries import RetriesQuery
from bridge.showing import iso, what_to_do

NOTHING = "nothing in the retry log matches"
#: What `list` shows of an entry, by columns.
CELLS: dict[str, Callable[[Document], str]] = {
    "id": itemgetter("id"),
    "state": itemgetter("state"),
    "source": itemgetter("source"),
    "record": lambda entry: entry["record"] or "-",
    "category": itemgetter("category"),
    "properties": lambda entry: ",".join(entry["properties"]) or "-",
    "first failed": lambda entry: entry["first_failed_at"] or "-",
    "message": itemgetter("message"),
}


@click.group()
def retries() -> None:
    """The retry log: what is retried, parked or refused."""


@retries.command("list")
@filters(RetriesQuery)
@admin_options
@click.option("--all", is_flag=True, expose_value=False, help="Every entry, as without any filter.")
@click.option("--json", "json_", is_flag=True, help="An array of objects.")
def list_(chosen: Filter, target: Target, json_: bool) -> int:
    """List entries, oldest failure first."""
    with connect(target) as admin:
        return print_list(admin.retries(chosen), CELLS, as_json=json_, nothing=NOTHING)


@retries.command()
@click.argument("entry_id", metavar="ID")
@admin_options
@click.option("--json", "json_", is_flag=True, help="One object.")
def show(entry_id: str, target: Target, json_: bool) -> int:
    """Show one entry with the events behind it."""
    with connect(target) as admin:
        document = admin.retry(entry_id)
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
    say(f"{'to do':16} {what_to_do(document['category'], document['state'])}")
    for story in events:
        say(f"event {story['event']} of {story['source']}, received {iso(story['received_us'])}")
    replay_, discard_ = (
        typed(f"retries {act} {shlex.quote(entry_id)}", target.config) for act in ("replay", "discard")
    )
    click.echo(f"next: {replay_}, or {discard_}")
    return 0


def _must_be_said(chosen: Filter, all_: bool) -> None:
    """Acting on everything must be said."""
    if chosen == Filter() and not all_:
        raise click.UsageError("say which entries: IDs, a filter, or --all")


@retries.command()
@filters(RetriesQuery)
@admin_options
@click.option("--all", "all_", is_flag=True, help="Every entry.")
@click.option("--json", "json_", is_flag=True, help="What was done, as an object.")
def replay(chosen: Filter, target: Target, all_: bool, json_: bool) -> int:
    """Map the kept payloads with today's mapping and send them now; newer values are never overwritten."""
    _must_be_said(chosen, all_)
    with connect(target) as admin:
        entries = admin.count_retries(chosen)
        if not entries:
            click.echo(NOTHING, err=True)
            return 1
        click.echo(f"replaying {entries} {'entry' if entries == 1 else 'entries'}", err=True)
        with progress("replaying", entries) as advance:
            done = admin.act_on_retries("replay", chosen, progress=advance)
    if json_:
        print_json(done)
    else:
        click.echo(
            f"{done['entries']} replayed from {done['events']} events; {done['unmapped']} could not be mapped again"
        )
    return 0


@retries.command()
@filters(RetriesQuery)
@admin_options
@click.option("--all", "all_", is_flag=True, help="Every entry.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "json_", is_flag=True, help="What was done, as an object.")
def discard(chosen: Filter, target: Target, all_: bool, yes: bool, json_: bool) -> int:
    """Give entries up for good; what was delivered stays, older values stay unsent.

    What changed since it was counted is left alone: a newer event for a record is never discarded with it.
    """
    _must_be_said(chosen, all_)
    with connect(target) as admin:
        seen_us = to_us(time.time())
        entries = admin.count_retries(chosen)
        if not entries:
            click.echo(NOTHING, err=True)
            return 1
        chosen = replace(chosen, seen_us=seen_us)  # what comes while a person makes up their mind is not meant
        if not yes:
            confirm(f"give up {entries} entries for good?")
        with progress("discarding", entries) as advance:
            done = admin.act_on_retries("discard", chosen, progress=advance)
    if json_:
        print_json(done)
    else:
        click.echo(f"{done['entries']} entries discarded ({done['given_up']} values and events)")
    if changed := entries - done["entries"]:
        click.echo(f"{changed} of the {entries} changed meanwhile and are left alone", err=True)
    return 0
