"""How `listen` shows a request: one document, printed as a readable block or as a line of JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.cli.printing import printable
from bridge.errors import PayloadError
from bridge.intake.dry_run import report, told
from bridge.intake.mapping import CompiledSource, Mapped
from bridge.intake.payload import parse_json, to_json
from bridge.model import Intake
from bridge.showing import iso

#: On a terminal: lines of a body, and events, that are shown; a pipe gets everything.
MAX_LINES = 60
MAX_EVENTS = 20

#: Headers that every HTTP client sends, and that say nothing of a partner.
_USUAL = frozenset({"host", "content-length", "connection", "accept", "accept-encoding", "transfer-encoding"})
_STYLES = {"accepted": "green", "parked": "red"}

Row = tuple[str, str, str]  # label, text, style


def events_of(compiled: CompiledSource, mapped: Mapped) -> list[dict[str, Any]]:
    """What became of each event, and why."""
    errors = dict(mapped.invalid)
    return [
        {
            "id": event.id,
            "occurred_at": iso(event.occurred_at_us),
            "taken_as": event.intake.value,
            "why": _why(compiled, event),
            "records": [
                {
                    "object_type": update.record.lane.object_type,
                    "id_property": update.record.lane.id_property or None,
                    "id": update.record.sent,
                }
                for update in event.updates
            ],
            "invalid": errors.get(index, {}),
        }
        for index, event in enumerate(mapped.events)
    ]


def mapping_of(compiled: CompiledSource, mapped: Mapped) -> dict[str, Any]:
    """What `map` prints of a payload, and the story of each event."""
    return {"events": events_of(compiled, mapped), **report(mapped, compiled.hints(mapped))}


def _why(compiled: CompiledSource, event: Any) -> str | None:
    if event.intake is Intake.IGNORED:
        return compiled.why_ignored(event)
    if event.intake is Intake.PARKED:
        return event.unmappable or "none of its values is valid"
    return None


def body_of(content: bytes) -> dict[str, str]:
    """A body as a field of a JSON document."""
    try:
        return {"body": content.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(content).decode()}


# --- as a block ---------------------------------------------------------------------------------


def title_of(document: Mapping[str, Any]) -> str:
    """`#1 12:04:05 POST /webhooks/acme → 202`."""
    query = f"?{document['query']}" if document["query"] else ""
    moment = document["received_at"][11:19]
    return (
        f"#{document['number']}  {moment}Z  {document['method']} {document['path']}{query}  →  "
        f"{document['answer']['status']}"
    )


def rows_of(document: Mapping[str, Any], *, cut: bool) -> Iterator[Row]:
    """The block's lines; with `cut` long bodies and many events are shortened."""
    yield from _verdict_rows(document["verdict"])
    for name, value in document["headers"].items():
        if name.lower() not in _USUAL:
            yield "headers", f"{name}: {value}", ""
    for line in _cut(_body_lines(document), MAX_LINES if cut else None):
        yield "body", line, ""
    yield from _mapping_rows(document, cut=cut)
    yield "answer", _answer_line(document["answer"]), ""
    for note in document["notes"]:
        yield "note", note, "yellow"
    if document["saved"]:
        yield "saved", document["saved"], ""


def _verdict_rows(verdict: Mapping[str, Any] | None) -> Iterator[Row]:
    if verdict is None:
        return
    if verdict["accepted"]:
        yield "signature", f"accepted: {verdict['detail']}", "green"
    else:
        yield "signature", f"refused: {verdict['detail']}", "bold red"
    for hint in verdict["hints"]:
        yield "", hint, "yellow"
    off = verdict["clock_off_s"]
    if off is not None:
        told = "agrees with ours" if abs(off) < 2 else f"off by {abs(off):.0f} s ({'behind' if off > 0 else 'ahead'})"
        yield "clock", told, ""


def _body_lines(document: Mapping[str, Any]) -> list[str]:
    if "body_base64" in document:
        content = base64.b64decode(document["body_base64"])
        return [f"{len(content)} bytes that are not UTF-8: {content[:40]!r}{'…' if len(content) > 40 else ''}"]
    text: str = document["body"]
    if not text.strip():
        unread = document["method"] == "GET" or document["answer"]["status"] == 413
        return [] if unread else ["empty"]
    if "\n" not in text.strip():
        with suppress(PayloadError):  # then it is shown as it is
            text = to_json(parse_json(text.encode()), indented=True)
    return text.splitlines()


def _mapping_rows(document: Mapping[str, Any], *, cut: bool) -> Iterator[Row]:
    if "events" not in document:
        if document.get("unreadable"):
            yield "events", document["unreadable"], "red"
        return
    events = document["events"]
    if not events:
        yield "events", "none", ""
    left_out = {one["index"]: one for one in document["left_out"]}
    for index, event in enumerate(events[: MAX_EVENTS if cut else None]):
        style = _STYLES.get(event["taken_as"], "yellow") if document["taken"] else ""
        yield "events", _event_line(event, taken=document["taken"]), style
        for name, message in event["invalid"].items():
            yield "", f"  invalid: {name} {message}", "red"
        for name, why in told(left_out.get(index, {})):
            yield "", f"  left out: {name} ({why})", "yellow"
    if cut and len(events) > MAX_EVENTS:
        yield "", f"… and {len(events) - MAX_EVENTS} more", "dim"
    if document.get("unlisted_names"):
        yield "", f"{document['unlisted_names']} names of `pairs:` are not listed", "yellow"
    for hint in document.get("hints", ()):
        yield "look at", hint, "yellow"
    lines = [line for one in document["inputs"] for line in json.dumps(one, ensure_ascii=False, indent=2).splitlines()]
    label = "inputs" if document["taken"] else "would be"
    if not lines:
        yield label, "nothing would be sent to the CRM", "dim"
    for line in _cut(lines, MAX_LINES if cut else None):
        yield label, line, ""


def _answer_line(answer: Mapping[str, Any]) -> str:
    """An answer in one line; of a problem its detail, which is all that its sender learns."""
    text: str = answer["body"]
    with suppress(PayloadError):
        document = parse_json(text.encode())
        if isinstance(document, dict):
            text = document.get("detail") or json.dumps(document, ensure_ascii=False)  # blanks, to break lines at
    return f"{answer['status']} {text}".rstrip()


def _event_line(event: Mapping[str, Any], *, taken: bool) -> str:
    at = f" of {event['occurred_at']}" if event["occurred_at"] else ""
    targets = [
        f"{record['object_type']} {record['id']}" + (f" ({record['id_property']})" if record["id_property"] else "")
        for record in event["records"]
    ]
    became = event["why"] or (f"→ {', '.join(targets)}" if targets else "")
    return f"{event['id']}{at}: {'' if taken else 'would be '}{event['taken_as']} {became}".rstrip()


def _cut(lines: list[str], most: int | None) -> list[str]:
    if most is None or len(lines) <= most:
        return lines
    return [*lines[:most], f"… {len(lines) - most} more lines; --save keeps them"]


def print_block(document: Mapping[str, Any], out: Console) -> None:
    """A ruled block on a terminal, plain lines in a pipe."""
    rows = list(rows_of(document, cut=out.is_terminal))
    if not out.is_terminal:
        print(printable(title_of(document)))
        for label, text in _labelled(rows):
            print(f"  {label:<10} {printable(text)}".rstrip())
        print(flush=True)
        return
    status = document["answer"]["status"]
    style = "green" if status < 300 else "red"
    out.rule(Text(printable(title_of(document)), style=f"bold {style}"), align="left", style=style)
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for (label, text), (_, _, style) in zip(_labelled(rows), rows, strict=True):
        grid.add_row(label, Text(printable(text), style=style))
    out.print(grid)
    out.print()


def _labelled(rows: list[Row]) -> Iterator[tuple[str, str]]:
    """Each label once, at its first line."""
    last = ""
    for label, text, _ in rows:
        yield ("" if label == last else label), text
        last = label or last
