"""`map` and `send`: what a payload would become, and payloads sent as the partner sends them."""

from __future__ import annotations

import json
import shlex
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from bridge.cli.common import config_option, load_for_journal, typed
from bridge.cli.printing import print_json, progress
from bridge.errors import BridgeError, PayloadError

if TYPE_CHECKING:
    import requests

    from bridge.intake.mapping import CompiledSource, Mapped
    from bridge.settings import Settings, Source

_TIMEOUT_S = 60.0
#: Answers other than success that are printed one by one.
_MAX_FAILURES = 5


@click.command("map")
@config_option
@click.option("--header", "headers", multiple=True, metavar="'K: V'", help="A header the mapping looks at.")
@click.argument("source")
@click.argument("file", default="-")
def map_(config: Path, source: str, file: str, headers: tuple[str, ...]) -> int:
    """Show what a payload would become, and touch nothing.

    Prints the batch-update inputs, and what would be ignored, parked or refused, and why. FILE is "-"
    for standard input. Exit status 1 if anything is invalid.
    """
    from bridge.intake.mapping import compile_source
    from bridge.intake.payload import parse_json

    given = _headers(headers)
    settings = load_for_journal(config)
    compiled = compile_source(_source(settings, source), settings.server.public_url)
    try:
        body = parse_json(_read(file))
        mapped = compiled.map_body(body, headers=given, delivery_id="dry-run")
    except PayloadError as error:
        print_json({"inputs": [], "refused": {"status": 400, "detail": str(error)}})
        return 1
    print_json(report(mapped))
    return 1 if mapped.invalid or any(event.unmappable for event in mapped.events) else 0


@click.command()
@config_option
@click.option("--url", help="Where to post; default: the configured port of this machine.")
@click.option("--count", default=1, show_default=True, type=click.IntRange(min=1), help="How often.")
@click.option("--header", "headers", multiple=True, metavar="'K: V'", help="A header to send along.")
@click.argument("source")
@click.argument("file", required=False)
def send(config: Path, source: str, file: str | None, url: str | None, count: int, headers: tuple[str, ...]) -> int:
    """Sign a payload as the partner would and post it to a running service.

    FILE is "-" for standard input; an .ndjson file holds one payload a line. Without FILE the source's
    first example is sent, each time with an event id and a time of its own where these are plain paths.
    Exit status 0 if all were accepted.
    """
    from bridge.intake.mapping import compile_source

    extra = _headers(headers)
    settings = load_for_journal(config)
    found = _source(settings, source)
    target = url or f"http://127.0.0.1:{settings.server.bind[1]}/webhooks/{source}"
    if file is None:
        compiled = compile_source(found, settings.server.public_url)
        if not found.examples:
            raise BridgeError(f"the source {source} has no examples: name a FILE with a payload")
        extra = {**found.examples[0].headers, **extra}
        note, bodies = _examples(compiled, count)
        click.echo(note, err=True)
        total = count
    else:
        lines = _payloads(file)
        bodies, total = (line for _ in range(count) for line in lines), count * len(lines)
    answers = _post_all(settings, found, target, bodies, extra, total)
    status = _print_answers(answers, total)
    traceable = _first_id(answers[0][1]) if total == 1 else None
    if traceable is not None:
        click.echo(f"next: {typed(f'trace {shlex.quote(traceable)}', config)}", err=True)
    return status


def report(mapped: Mapped) -> dict[str, Any]:
    """What `map` prints: the inputs as HubSpot takes them, and everything that becomes none."""
    from bridge.intake.inputs import inputs_of
    from bridge.model import Intake

    inputs = inputs_of(mapped.events)
    types = sorted({one.record.lane.object_type for one in inputs})
    several = len(types) > 1
    shown = [{**({"objectType": one.record.lane.object_type} if several else {}), **one.as_json()} for one in inputs]
    result: dict[str, Any] = {
        "object_type": types if several else (types[0] if types else None),
        "inputs": [] if mapped.reject else shown,
        "ignored": [event.id for event in mapped.events if event.intake is Intake.IGNORED],
        "parked": [
            {"event": event.id, "reason": event.unmappable or "no property is valid"}
            for event in mapped.events
            if event.unmappable is not None or event.intake is Intake.PARKED
        ],
        "invalid": [{"index": index, "errors": errors} for index, errors in mapped.invalid],
    }
    if mapped.unlisted:
        result["unlisted_names"] = mapped.unlisted
    if mapped.reject:
        result["refused"] = {"status": 422, "detail": "on_invalid: reject: nothing of the request is taken"}
    return result


def _source(settings: Settings, name: str) -> Source:
    found = settings.sources.get(name)
    if found is None:
        known = ", ".join(settings.sources) or "none"
        raise BridgeError(f"there is no source {name!r} in {settings.file}; there are: {known}")
    return found


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise BridgeError(f"{file} cannot be read: {error.strerror}") from error


def _payloads(file: str) -> list[bytes]:
    content = _read(file)
    lines = [line for line in content.splitlines() if line.strip()] if file.endswith(".ndjson") else [content]
    if not lines:
        raise BridgeError(f"{file} holds no payload")
    return lines


def _headers(texts: Sequence[str]) -> dict[str, str]:
    headers = {}
    for text in texts:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise click.BadParameter(f"{text!r} is not 'Name: value'", param_hint="--header")
        headers[name.strip()] = value.strip()
    return headers


def _examples(compiled: CompiledSource, count: int) -> tuple[str, Iterator[bytes]]:
    """What is said of the first example, and its payloads: each an event of its own if it can be."""
    source = compiled.source
    payload = source.examples[0].payload.encode()
    paths = {name: steps for name, steps in compiled.identity_paths().items() if _fresh(payload, {name: steps})}
    told = " and ".join(f"a fresh {name} ({'.'.join(map(str, steps))})" for name, steps in paths.items())
    note = f"sending the first example of {source.name} with {told or 'its own event id and time'}"
    return note, (_fresh(payload, paths) or payload for _ in range(count))


def _fresh(payload: bytes, paths: dict[str, tuple[str | int, ...]]) -> bytes | None:
    """The payload with new values at these paths of each event, or None where one of them is not there."""
    from bridge.intake.payload import parse_json, to_json

    if not paths:
        return None
    try:
        body = parse_json(payload)
    except PayloadError:
        return None  # an example may show what is refused
    for event in body if isinstance(body, list) else [body]:
        for name, steps in paths.items():
            holder = event
            for step in steps[:-1]:
                holder = holder.get(step) if isinstance(holder, dict) else None
            if not steps or not isinstance(holder, dict) or steps[-1] not in holder:
                return None
            old = holder[steps[-1]]
            holder[steps[-1]] = _now_like(old) if name == "occurred_at" else _id_like(old)
    return to_json(body).encode()


def _id_like(old: object) -> object:
    return time.time_ns() if isinstance(old, (int, Decimal)) else f"send-{uuid.uuid4().hex}"


def _now_like(old: object) -> object:
    """Now, in the form of the time that stands there."""
    if isinstance(old, (int, Decimal)):
        return int(time.time() * 1000) if old >= 10**11 else int(time.time())
    if isinstance(old, str) and old.strip().isdigit():
        return str(_now_like(int(old)))
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _post_all(
    settings: Settings, source: Source, url: str, bodies: Iterator[bytes], headers: dict[str, str], total: int
) -> list[tuple[int, bytes]]:
    import requests

    answers: list[tuple[int, bytes]] = []
    with requests.Session() as session, progress(f"sending to {url}", total) as bar:
        for body in bodies:
            try:
                answer = _post(session, settings, source, url, body, headers)
            except requests.RequestException as error:
                raise BridgeError(
                    f"{url} cannot be reached ({type(error).__name__}) after {len(answers)} of {total}: is it running?"
                ) from error
            answers.append((answer.status_code, answer.content))
            bar.advance(bar.task_ids[0])
    return answers


def _post(
    session: requests.Session, settings: Settings, source: Source, url: str, body: bytes, headers: dict[str, str]
) -> requests.Response:
    from bridge.intake.signatures import sign

    parts = urlsplit(url)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    public_url = (settings.server.public_url or f"{parts.scheme}://{parts.netloc}").rstrip("/")
    signed = sign(
        source.verify, body=body, url=public_url + path, now=time.time(), delivery_id=f"send_{uuid.uuid4().hex}"
    )
    sent = {"Content-Type": "application/json", **signed, **headers}
    return session.post(url, data=body, headers=sent, timeout=_TIMEOUT_S, allow_redirects=False)


def _first_id(content: bytes) -> str | None:
    """The id of the first event that an answer tells."""
    try:
        ids = json.loads(content)["ids"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(ids[0]) if ids else None


def _print_answers(answers: list[tuple[int, bytes]], total: int) -> int:
    """One answer as it came; of many, how often each status came, what they sum to, and some failures."""
    accepted = all(200 <= status < 300 for status, _ in answers)
    if total == 1:
        status, content = answers[0]
        click.echo(f"{status} {content.decode('utf-8', 'replace')}".rstrip())
        return 0 if accepted else 1
    sums: Counter[str] = Counter()
    for status, content in answers:
        if 200 <= status < 300 and content:
            counts = json.loads(content)
            sums.update({key: counts[key] for key in ("accepted", "duplicates", "ignored", "parked")})
    statuses = Counter(status for status, _ in answers)
    print_json({"sent": total, "answers": {str(status): n for status, n in statuses.items()}, **sums})
    failures = [answer for answer in answers if not 200 <= answer[0] < 300]
    for status, content in failures[:_MAX_FAILURES]:
        click.echo(f"{status} {content.decode('utf-8', 'replace')}", err=True)
    return 0 if accepted else 1
