"""`partner-bridge resync`, `pause` and `resume`: send known values once more, stop delivery, let it go on."""

from __future__ import annotations

import click

from bridge.cli.desk import Place, at_desk, desk_options, filters
from bridge.cli.printing import confirm, print_json, progress, say
from bridge.journal.steering import Known
from bridge.operations.queries import ResyncQuery


@click.command()
@filters(ResyncQuery)
@click.option("--all", "all_", is_flag=True, help="Everything that the journal knows.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "json_", is_flag=True, help="What was done, as an object.")
@desk_options
def resync(chosen: Known, place: Place, all_: bool, yes: bool, json_: bool) -> int:
    """Send the values that the journal knows once more, e.g. after someone overwrote them in the CRM."""
    if chosen == Known() and not all_:
        raise click.UsageError("say which values: --source, --object-type, --record, or --all")
    with at_desk(place) as desk:
        known = desk.resync(chosen, dry_run=True)
        if not known["records"]:
            click.echo("the journal knows no delivered value that matches", err=True)
            return 1
        text = f"{known['values']} values of {known['records']} records"
        if yes:
            click.echo(f"sending {text} once more", err=True)
        else:
            confirm(f"send {text} once more?")
        with progress("making due", known["records"]) as bar:
            done = desk.resync(chosen, dry_run=False, progress=lambda n: bar.advance(bar.task_ids[0], n))
    if json_:
        print_json(done)
    else:
        click.echo(f"{done['values']} values of {done['records']} records are due")
    return 0


@click.command()
@click.option("--object-type", help="Only the delivery to this object type.")
@click.option("--reason", default="", help="Why, for those who see it in status, metrics and log.")
@click.option("--json", "json_", is_flag=True, help="The pause, as an object.")
@desk_options
def pause(place: Place, object_type: str | None, reason: str, json_: bool) -> int:
    """Stop delivery, not intake, until `resume`; survives restarts. Calls that are open end first."""
    with at_desk(place) as desk:
        made = desk.pause(object_type, reason)
    if json_:
        print_json(made)
    else:
        what = f"delivery to {made['target']}" if made["target"] else "all delivery"
        say(f"{what} is paused; `partner-bridge resume` ends it")
    return 0


@click.command()
@click.option("--object-type", help="Only the pause of this object type.")
@click.option("--json", "json_", is_flag=True, help="The pauses that ended, as an array.")
@desk_options
def resume(place: Place, object_type: str | None, json_: bool) -> int:
    """End the pauses that people made; those of the service's own end by themselves."""
    with at_desk(place) as desk:
        over = desk.resume(object_type)
        left = desk.pauses()
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
