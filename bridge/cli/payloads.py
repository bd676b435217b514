"""`map`: what a payload would become; and what `map`, `send` and `listen` share about payloads."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bridge.cli.common import config_option, load_for_journal, source_names
from bridge.cli.printing import print_json
from bridge.errors import BridgeError, PayloadError

if TYPE_CHECKING:
    from bridge.settings import Settings, Source


@click.command("map")
@config_option
@click.option("--header", "headers", multiple=True, metavar="'K: V'", help="A header the mapping looks at.")
@click.option("--json", is_flag=True, expose_value=False, help="What is printed is JSON anyway.")
@click.argument("source", shell_complete=source_names)
@click.argument("file", default="-")
def map_(config: Path, source: str, file: str, headers: tuple[str, ...]) -> int:
    """Show what a payload would become, and touch nothing.

    Prints the batch-update inputs, what would be ignored, parked or refused, and why, what is left out, and hints. FILE
    is a payload, or a request that `listen --save` kept; "-" is standard input. Exit status 1 if anything is invalid.
    """
    from bridge.intake.capture import SavedRequest, read_saved
    from bridge.intake.dry_run import report
    from bridge.intake.mapping import compile_source
    from bridge.model import Intake

    given = headers_of(headers)
    settings = load_for_journal(config)
    compiled = compile_source(source_of(settings, source), settings.server.public_url)
    content = read(file)
    request = read_saved(content) or SavedRequest(content, {})
    try:
        mapped = compiled.map_body(
            compiled.decode(request.body),
            headers=_lower(request.headers) | _lower(given),
            query=request.parameters,
            delivery_id="dry-run",
            explain=True,
        )
    except PayloadError as error:
        print_json({"inputs": [], "refused": {"status": 400, "detail": str(error)}})
        return 1
    ignored = {event.id: compiled.why_ignored(event) for event in mapped.events if event.intake is Intake.IGNORED}
    print_json(report(mapped, compiled.hints(mapped)) | ({"ignored_because": ignored} if ignored else {}))
    return 1 if mapped.refused or any(event.unmappable for event in mapped.events) else 0


def source_of(settings: Settings, name: str) -> Source:
    """The source of that name. Raises BridgeError that names those there are."""
    found = settings.sources.get(name)
    if found is None:
        known = ", ".join(settings.sources) or "none"
        raise BridgeError(f"there is no source {name!r} in {settings.file}; there are: {known}")
    return found


def read(file: str) -> bytes:
    """A file's content, or that of standard input for "-". Raises BridgeError."""
    if file == "-" and sys.stdin.isatty():
        click.echo("reading a payload from this terminal; Ctrl-D ends it, or name a FILE", err=True)
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise BridgeError(f"{file} cannot be read: {error.strerror}") from error


def headers_of(texts: Sequence[str]) -> dict[str, str]:
    """`Name: value` texts as headers; the last of a name counts."""
    headers: dict[str, str] = {}
    for text in texts:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise click.BadParameter(f"{text!r} is not 'Name: value'", param_hint="--header")
        headers[name.strip()] = value.strip()
    return headers


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
