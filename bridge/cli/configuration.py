"""`partner-bridge check`, `schema`, `explain` and `init`: the configuration before anything runs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bridge.cli.common import complain, config_option, say, typed, unused_config_option
from bridge.config.templates import DEFAULT, TEMPLATES, Template
from bridge.errors import BridgeError, ConfigError, CrmUnreachableError, Problem
from bridge.settings import Settings

if TYPE_CHECKING:
    from bridge.config.portal import Comparison

#: Exit status: the portal is out of reach or refuses.
OUT_OF_REACH = 3


@click.command()
@config_option
@click.option("--sandbox", is_flag=True, help="As for `serve --sandbox`: HubSpot's token is not needed.")
@click.option("--portal", is_flag=True, help="Compare with the portal's properties; exit status 3 out of reach.")
@click.option("--json", "as_json", is_flag=True, help="Print the problems as a JSON array.")
@click.pass_context
def check(ctx: click.Context, config: Path, *, sandbox: bool, portal: bool, as_json: bool) -> None:
    """Tell everything that is wrong with the configuration, and try its examples."""
    from bridge.config import examine
    from bridge.config.loading import try_examples, wanted
    from bridge.operations.logs import faults

    if portal and sandbox:
        raise click.UsageError("--portal asks HubSpot, which --sandbox does without; leave one of them out")
    findings = examine(config, sandbox=sandbox)
    problems, warnings = [*findings.problems, *faults(os.environ)], list(findings.warnings)
    try:
        wanted(os.environ)
    except ConfigError as error:
        problems += error.problems
    comparison: Comparison | None = None
    if findings.settings is not None and findings.document is not None:
        tried = try_examples(findings.settings, findings.document)
        problems += tried.problems
        warnings += tried.warnings
        if portal:
            from bridge.cli.portal import compared

            comparison = compared(findings.settings, findings.document)
            problems += comparison.problems
            warnings += comparison.warnings
    for warning in warnings:
        say(f"warning: {warning}", style="yellow", err=True)
    if as_json:
        click.echo(_as_json(problems))
    else:
        for problem in problems:
            say(str(problem), style="red", err=True)
    trouble = comparison.trouble if comparison is not None else ""
    if portal and comparison is None:
        trouble = "the portal was not asked; mend the file first"
    if trouble:
        complain(trouble)
    if problems:
        ctx.exit(1)
    if trouble:
        ctx.exit(OUT_OF_REACH)
    if findings.settings is not None and not as_json:
        say(f"{config}: sound ({_counts(findings.settings)})", style="green")
        if comparison is not None and comparison.compared:
            click.echo(f"the portal agrees about {', '.join(comparison.compared)}")
        if sandbox:
            click.echo(f"next: {typed('serve --sandbox', config)}")


@click.command()
@unused_config_option
def schema() -> None:
    """Print the JSON Schema of bridge.yaml, for editors."""
    from bridge.config import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@click.command()
@unused_config_option
@click.argument("key", required=False)
def explain(key: str | None) -> None:
    """Tell of a KEY of bridge.yaml, `*` for a name or an item (sources.*.record); without KEY, of all."""
    from bridge.config.explaining import all_keys, explained

    known, depth = all_keys(), 0
    if key is not None:
        found = explained(key)
        click.echo(f"{found}\n{found.about}")
        for what, text in found.facts():
            click.echo(f"  {what:8} {text}")
        depth = len(found.path)
        known = [each for each in known if each.path[:depth] == found.path and each is not found]
    for each in (each for each in known if len(each.path) > depth):
        click.echo(f"{'  ' * (len(each.path) - depth) + each.name:30} {each.about}")


@click.command()
@config_option
@click.option(
    "--from",
    "sender",
    type=click.Choice([name for name in TEMPLATES if name != DEFAULT]),
    help=f"The sender to write it for; {DEFAULT} unless told otherwise.",
)
@click.option("--portal", is_flag=True, help="List the portal's writable properties; needs $HUBSPOT_ACCESS_TOKEN.")
@click.option("--base-url", envvar="HUBSPOT_BASE_URL", hidden=True, help="The portal's address, unless HubSpot's own.")
@click.pass_context
def init(ctx: click.Context, config: Path, sender: str | None, *, portal: bool, base_url: str | None) -> None:
    """Write a commented bridge.yaml, and a fresh signing secret beside it. Never overwrites."""
    template = TEMPLATES[sender or DEFAULT]
    if config.exists() or config.is_symlink():
        raise BridgeError(f"{config} is there already; move it away, or name another file with --config")
    comments = ""
    if portal:
        from bridge.cli.portal import listed

        try:
            comments = listed(base_url)
        except CrmUnreachableError as error:
            complain(f"{error}; nothing was written")
            ctx.exit(OUT_OF_REACH)
    secret = config.parent / template.secret_file
    try:
        fresh = _write_secret(secret, template)
        with config.open("x", encoding="utf-8") as file:
            file.write(template.text + comments)
    except OSError as error:
        raise BridgeError(f"cannot write {error.filename}: {error.strerror}; change --config") from error
    click.echo(f"wrote {config}: one source, {template.source}, signed as {sender or DEFAULT} does")
    click.echo(_about_secret(secret, template, fresh=fresh))
    click.echo(f"next: {typed('check --sandbox', config)}")


def _write_secret(path: Path, template: Template) -> bool:
    """Write a new secret that only its owner can read; False if there is one already."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(template.new_secret() + "\n")
    return True


def _about_secret(path: Path, template: Template, *, fresh: bool) -> str:
    state = f"wrote {path}: a fresh signing secret" if fresh else f"kept {path}: the signing secret that was there"
    if not template.theirs:
        return f"{state}; give it to the partner, and keep it out of version control"
    return f"{state}, to try things out; put {template.theirs} in its place before you go live"


def _counts(settings: Settings) -> str:
    sources = settings.sources.values()
    return ", ".join(
        f"{number} {what}{'' if number == 1 else 's'}"
        for number, what in (
            (len(settings.sources), "source"),
            (sum(len(source.mappings) for source in sources), "mapping"),
            (sum(len(source.examples) for source in sources), "example"),
        )
    )


def _as_json(problems: Sequence[Problem]) -> str:
    found = [
        {"file": problem.file, "line": problem.line, "path": problem.path, "message": problem.message}
        for problem in problems
    ]
    return json.dumps(found, indent=2, ensure_ascii=False)
