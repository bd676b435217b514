"""`partner-bridge events`, `trace`, `status`, `resync`, `pause` and `resume`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import click

from bridge.cli.admin_client import Document, Target, admin_options, connect, filters, over_http
from bridge.cli.common import (
    STYLES,
    complain,
    confirm,
    load_for_journal,
    local_url,
    print_json,
    print_list,
    print_table,
    progress,
    say,
)
from bridge.errors import BridgeError
from bridge.journal.control import ValueFilter
from bridge.journal.event_log import EventFilter
from bridge.operations.queries import DIFFERENCES, EventsQuery, ResyncQuery
from bridge.showing import advised, iso

NOTHING = "no event matches"
#: What `list` shows of an event, by columns.
CELLS: dict[str, Callable[[Document], str]] = {
    "id": itemgetter("id"),
    "source": itemgetter("source"),
    "received": lambda event: event["received_at"] or "-",
    "outcome": itemgetter("outcome"),
    "records": lambda event: ",".join(event["records"]) or "-",
    "properties": lambda event: ",".join(event["properties"]) or "-",
    "why": lambda event: event["unmappable"] or "-",
}
#: Differences that a terminal shows; a pipe gets all that were asked for.
LINES = 40


@click.group()
def events() -> None:
    """The event log: what came, what became of it, and mapping it again."""


@events.command("list")
@filters(EventsQuery)
@admin_options
@click.option("--json", "json_", is_flag=True, help="An array of objects.")
def list_(chosen: EventFilter, target: Target, json_: bool) -> int:
    """List events in the order of their arrival. IDs are the partner's.

    An event that newer ones overtook in every property is superseded; `partner-bridge trace ID` tells whether it
    was delivered before.
    """
    with connect(target) as admin:
        return print_list(admin.events(chosen), CELLS, as_json=json_, nothing=NOTHING)


@events.command()
@filters(EventsQuery)
@admin_options
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
def replay(chosen: EventFilter, target: Target, all_: bool, dry_run: bool, limit: int, json_: bool) -> int:
    """Map kept events again with today's mapping: shows the differences first, then makes them.

    Values which the same event set are replaced or withdrawn, newer ones never. What was delivered and differs is
    sent with its new value; what was delivered and is withdrawn stays in the CRM.
    """
    if chosen == EventFilter() and not all_ and not dry_run:
        raise click.UsageError("say which events: IDs, a filter, or --all")
    with connect(target) as admin:
        if next(admin.events(chosen), None) is None:
            click.echo(NOTHING, err=True)
            return 1
        with progress("comparing", None) as advance:
            foreseen = admin.replay_events(chosen, dry_run=True, shown=limit, progress=advance)
        if not json_:
            _print_differences(foreseen)
        done = foreseen
        if not dry_run:
            with progress("replaying", foreseen["events"]) as advance:
                done = admin.replay_events(chosen, dry_run=False, shown=limit, progress=advance)
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


# --- `partner-bridge trace` and `status`: what became of one event or record, and how the service is doing ---

#: `status` waits this long for an answer: it is asked by scripts and probes.
STATUS_TIMEOUT_S = 10.0


@click.command()
@click.argument("wanted", metavar="ID")
@admin_options
@click.option("--json", "json_", is_flag=True, help="The stories as an object.")
def trace(wanted: str, target: Target, json_: bool) -> int:
    """The story of one event or one record, from webhook to CRM call."""
    with connect(target) as admin:
        stories = admin.trace(wanted)
    events, records = stories["events"], stories["records"]
    if json_:
        print_json({"events": events, "records": records})
    else:
        for story in events:
            _print_event(story)
        for story in records:
            _print_record(story)
        if not events and not records:
            say(f"no event and no record {wanted} in the journal", err=True)
    return 0 if events or records else 1


def _print_event(story: dict[str, Any]) -> None:
    say(f"event {story['event']} of {story['source']}")
    say(f"  received {iso(story['received_us'])}, taken as {story['taken_as']}")
    if story["occurred_us"] is not None:
        say(f"  occurred {iso(story['occurred_us'])}")
    if story["unmappable"]:
        waits = ", waits in the retry log" if story["waits"] else ""
        say(f"  could not be mapped: {story['unmappable']}{waits}")
    for asked in story["records"]:
        say(f"  asked {asked['object_type']} {asked['record']} ({asked['id_property'] or 'record id'}):")
        if not asked["properties"]:
            say("    nothing any more, since it was replayed")
        for fate in asked["properties"]:
            say(f"    {fate['property']}: {_fate(fate)}", style=STYLES.get(fate["fate"], ""))


def _fate(fate: dict[str, Any]) -> str:
    if fate["fate"] == "superseded":
        before = fate["delivered_before"]
        text = f"superseded by event {fate['by_event'] or '(pruned)'} of {fate['by_source'] or 'an unknown source'}"
        return text + (f", delivered before in {_call(before)}" if before else ", not delivered before")
    text = {
        "unchanged": "unchanged: the CRM had confirmed the same value",
        "unknown": "ignored: the CRM knows no such record",
    }.get(fate["fate"], str(fate["fate"]))
    if fate.get("call"):
        text += f" in {_call(fate['call'])}" if fate["fate"] != "unchanged" else f", in {_call(fate['call'])}"
    if fate.get("message"):
        text += f": {fate['category']}: {fate['message']}"
    return text


def _call(call: dict[str, Any]) -> str:
    return f"call {call['call']} at {iso(call['started_us'])} (HubSpot's correlation id {call['correlation_id']})"


def _print_record(story: dict[str, Any]) -> None:
    say(f"record {story['record']} of {story['object_type']} ({story['id_property'] or 'record id'})")
    if story["category"]:
        following = f", next attempt {iso(story['next_attempt_us'])}" if story["next_attempt_us"] else ""
        say(f"  {story['state']}: {story['category']}: {story['message']}{following}")
    for value in story["values"]:
        text = (
            f"  {value['property']} = {value['value']!r}, {value['state']}, set by event {value['event'] or '(pruned)'}"
        )
        say(text + (f": {value['category']}: {value['message']}" if value["message"] else ""))
    for asked in story["events"]:
        names = ", ".join(asked["properties"])
        say(f"  event {asked['event']} of {asked['source']} at {iso(asked['time_us'])}: {names}")


@click.command()
@admin_options
@click.option("--json", "json_", is_flag=True, help="The answer of GET /status as it is.")
def status(target: Target, json_: bool) -> int:
    """How the service is doing: exit status 0 healthy, 1 degraded, 3 out of reach."""
    admin_url = target.admin_url or local_url(*load_for_journal(target.config).server.admin_bind)
    try:
        with over_http(admin_url, target.admin_token, timeout_s=STATUS_TIMEOUT_S) as admin:
            document = admin.status()
    except BridgeError as error:
        complain(str(error))
        return 3
    degraded = list(document.get("degraded", []))
    if json_:
        print_json(document)
    else:
        print_status(document)
    return 1 if degraded else 0


def print_status(document: dict[str, Any]) -> None:
    """Print the state in one word, then the figures, then the sources."""
    degraded = document.get("degraded", [])
    say("degraded" if degraded else "healthy", style="bold red" if degraded else "bold green")
    for why in degraded:
        say(f"  {why}", style="red")
    for what_to_do in dict.fromkeys(advised(each)["todo"] for each in document.get("pauses", [])):
        say(f"  {what_to_do}")
    left_out = {"degraded", "sources", "pauses"}
    rows = [[name, _plain(value)] for name, value in document.items() if name not in left_out]
    print_table(["figure", "value"], rows)
    if pauses := document.get("pauses"):
        print_table(
            ["paused", "target", "since", "until", "detail"],
            [[str(each[name] or "-") for name in ("reason", "target", "since", "until", "detail")] for each in pauses],
        )
    print_table(
        ["source", "last event", "events per second", "silent"],
        [
            [name, str(of["last_event_at"] or "never"), str(of["events_per_second"]), _plain(of.get("silent", False))]
            for name, of in document.get("sources", {}).items()
        ],
    )


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "; ".join(_plain(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items()) or "none"
    return "-" if value is None else str(value)


# --- `partner-bridge resync`, `pause` and `resume`: send known values once more, stop delivery, let it go on ---


@click.command()
@filters(ResyncQuery)
@click.option("--all", "all_", is_flag=True, help="Everything that the journal knows.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "json_", is_flag=True, help="What was done, as an object.")
@admin_options
def resync(chosen: ValueFilter, target: Target, all_: bool, yes: bool, json_: bool) -> int:
    """Send the values that the journal knows once more, e.g. after someone overwrote them in the CRM."""
    if chosen == ValueFilter() and not all_:
        raise click.UsageError("say which values: --source, --object-type, --record, or --all")
    with connect(target) as admin:
        known = admin.resync(chosen, dry_run=True)
        if not known["records"]:
            click.echo("the journal knows no delivered value that matches", err=True)
            return 1
        text = f"{known['values']} values of {known['records']} records"
        if yes:
            click.echo(f"sending {text} once more", err=True)
        else:
            confirm(f"send {text} once more?")
        with progress("making due", known["records"]) as advance:
            done = admin.resync(chosen, dry_run=False, progress=advance)
    if json_:
        print_json(done)
    else:
        click.echo(f"{done['values']} values of {done['records']} records are due")
    return 0


@click.command()
@click.option("--object-type", help="Only the delivery to this object type.")
@click.option("--reason", default="", help="Why, for those who see it in status, metrics and log.")
@click.option("--json", "json_", is_flag=True, help="The pause, as an object.")
@admin_options
def pause(target: Target, object_type: str | None, reason: str, json_: bool) -> int:
    """Stop delivery, not intake, until `resume`; survives restarts. Calls that are open end first."""
    with connect(target) as admin:
        made = admin.pause(object_type, reason)
    if json_:
        print_json(made)
    else:
        what = f"delivery to {made['target']}" if made["target"] else "all delivery"
        say(f"{what} is paused; `partner-bridge resume` ends it")
    return 0


@click.command()
@click.option("--object-type", help="Only the pause of this object type.")
@click.option("--json", "json_", is_flag=True, help="The pauses that ended, as an array.")
@admin_options
def resume(target: Target, object_type: str | None, json_: bool) -> int:
    """End the pauses that people made; those of the service's own end by themselves."""
    with connect(target) as admin:
        over = admin.resume(object_type)
        left = admin.pauses()
    if json_:
        print_json(over)
        return 0
    for ended in over:
        say(f"resumed: {ended['target'] or 'all delivery'}")
    if not over:
        click.echo("no operator's pause holds" + (f" for {object_type}" if object_type else ""))
    for pause_ in left:
        say(
            f"still paused: {pause_['reason']} ({pause_['target'] or 'all'}) {pause_['detail']}",
            style="yellow",
            err=True,
        )
    return 0
