"""`partner-bridge trace` and `status`: what became of one event or record, and how the service is doing."""

from __future__ import annotations

from typing import Any

import click

from bridge.cli.common import load_for_journal
from bridge.cli.desk import Place, at_desk, desk_options, over_http
from bridge.cli.printing import STYLES, complain, iso, print_json, print_table, say
from bridge.errors import BridgeError
from bridge.operations.remedies import advised

#: `status` waits this long for an answer: it is asked by scripts and probes.
STATUS_PATIENCE_S = 10.0


@click.command()
@click.argument("wanted", metavar="ID")
@desk_options
@click.option("--json", "json_", is_flag=True, help="The stories as an object.")
def trace(wanted: str, place: Place, json_: bool) -> int:
    """The story of one event or one record, from webhook to CRM call."""
    with at_desk(place) as desk:
        stories = desk.trace(wanted)
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
@desk_options
@click.option("--json", "json_", is_flag=True, help="The answer of GET /status as it is.")
def status(place: Place, json_: bool) -> int:
    """How the service is doing: exit status 0 healthy, 1 degraded, 3 out of reach."""
    admin_url = place.admin_url
    if not admin_url:
        host, port = load_for_journal(place.config).server.admin_bind
        host = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 (compared, not bound)
        admin_url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    try:
        with over_http(admin_url, place.admin_token, patience_s=STATUS_PATIENCE_S) as desk:
            document = desk.status()
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
    """In one word first, then the figures, then the sources."""
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
