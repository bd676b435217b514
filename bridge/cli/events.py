"""`partner-bridge events`: the event log, and mapping kept events again after a mapping was mended."""

from __future__ import annotations

import sys
from itertools import chain

import click

from bridge.cli.desk import Document, Place, at_desk, desk_options, filters
from bridge.cli.printing import print_json, print_json_rows, print_table, progress
from bridge.journal.event_log import EventFilter
from bridge.operations.queries import DIFFERENCES, EventsQuery

NOTHING = "no event matches"
#: Differences that a terminal shows; a pipe gets all that were asked for.
LINES = 40


@click.group()
def events() -> None:
    """The event log: what came, what became of it, and mapping it again."""


@events.command("list")
@filters(EventsQuery)
@desk_options
@click.option("--json", "json_", is_flag=True, help="An array of objects.")
def list_(chosen: EventFilter, place: Place, json_: bool) -> int:
    """List events in the order of their arrival. IDs are the partner's.

    An event that newer ones overtook in every property is superseded; `partner-bridge trace ID` tells whether it
    was delivered before.
    """
    with at_desk(place) as desk:
        found = desk.events(chosen)
        if json_:
            return 0 if print_json_rows(found) else 1
        first = next(found, None)
        if first is None:
            click.echo(NOTHING, err=True)
            return 1
        print_table(
            ["id", "source", "received", "outcome", "records", "properties", "why"],
            [
                [
                    event["id"],
                    event["source"],
                    event["received_at"] or "-",
                    event["outcome"],
                    ",".join(event["records"]) or "-",
                    ",".join(event["properties"]) or "-",
                    event["unmappable"] or "-",
                ]
                for event in chain([first], found)
            ],
        )
    return 0


@events.command()
@filters(EventsQuery)
@desk_options
@click.option("--all", "all_", is_flag=True, help="Every event that is kept.")
@click.option("--dry-run", is_flag=True, help="Only show the differences.")
@click.option(
    "--limit",
    type=click.IntRange(0, 100_000),
    default=DIFFERENCES,
    show_default=True,
    help="Differences shown at most.",
)
@click.option("--json", "json_", is_flag=True, help="The differences and what was done, as an object.")
def replay(chosen: EventFilter, place: Place, all_: bool, dry_run: bool, limit: int, json_: bool) -> int:
    """Map kept events again with today's mapping: shows the differences first, then makes them.

    Values which the same event set are replaced or withdrawn, newer ones never. What was delivered and differs is
    sent with its new value; what was delivered and is withdrawn stays in the CRM.
    """
    if chosen == EventFilter() and not all_ and not dry_run:
        raise click.UsageError("say which events: IDs, a filter, or --all")
    with at_desk(place) as desk:
        if next(desk.events(chosen), None) is None:
            click.echo(NOTHING, err=True)
            return 1
        with progress("comparing", None) as bar:
            foreseen = desk.replay_events(
                chosen, dry_run=True, shown=limit, progress=lambda n: bar.advance(bar.task_ids[0], n)
            )
        if not json_:
            _print_differences(foreseen)
        done = foreseen
        if not dry_run:
            with progress("replaying", foreseen["events"]) as bar:
                done = desk.replay_events(
                    chosen, dry_run=False, shown=limit, progress=lambda n: bar.advance(bar.task_ids[0], n)
                )
    if json_:
        print_json(done)
    else:
        click.echo(_summary(done))
    return 0


def _print_differences(foreseen: Document) -> None:
    differences = foreseen["differences"]
    shown = differences[:LINES] if sys.stdout.isatty() else differences
    if not differences:
        click.echo("no difference", err=True)
        return
    print_table(
        ["event", "record", "property", "what", "old", "new", "note"],
        [
            [
                one["event"],
                one["record"] or "-",
                one["property"] or "-",
                {"kept": "kept because newer"}.get(one["what"], one["what"]),
                _value(one["old"]),
                _value(one["new"]),
                "; ".join(filter(None, (one["note"], f"event {one['by']}" if one["by"] else ""))) or "-",
            ]
            for one in shown
        ],
    )
    left_out = foreseen["left_out"] + len(differences) - len(shown)
    if left_out:
        click.echo(f"… and {left_out} more (--limit, --json)", err=True)


def _value(value: str | None) -> str:
    return "-" if value is None else value or "(cleared)"


def _summary(done: Document) -> str:
    changes = ", ".join(f"{number} {what}" for what, number in done["changes"].items()) or "nothing differs"
    verb = "would be replayed" if done["dry_run"] else "replayed"
    return f"{done['events']} events {verb}: {changes}; {done['unmapped']} could not be mapped"
