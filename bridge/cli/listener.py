"""What `listen` makes of each request: one document, shown, counted and kept if asked to."""

from __future__ import annotations

import base64
import json
import os
import shlex
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bridge.cli.common import typed
from bridge.cli.endpoint import Seen, would_map
from bridge.errors import PayloadError
from bridge.intake.mapping import CompiledSource, Mapped, compile_source
from bridge.intake.payload import parse_json, to_json
from bridge.intake.signatures import Verified
from bridge.model import Intake, to_us
from bridge.settings import Settings, Source
from bridge.showing import iso, printable
from bridge.tryout.diagnosis import Examiner, is_credential, recognised
from bridge.tryout.dry_run import report, told
from bridge.tryout.payloads import MASK, SavedRequest

# --- how `listen` shows a request: one document, printed as a readable block or as a line of JSON ---

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


# --- one request after another ------------------------------------------------------------------

#: Schemes for which `init` has a template of another name, or the default one.
_TEMPLATES = {
    "standard-webhooks": "",
    "github": " --from github",
    "stripe": " --from stripe",
    "shopify": " --from shopify",
    "hubspot-v3": " --from hubspot",
}
#: What a media type contains, and which `body:` that is.
_FORMS = {"ndjson": "ndjson", "jsonl": "ndjson", "x-www-form-urlencoded": "form", "json": "json"}
_PROBES = frozenset({"/livez", "/readyz", "/favicon.ico"})


@dataclass
class Listener:
    """Shows requests one after another. Thread-safe: `_lock` guards the number, the counts and the screen."""

    name: str
    settings: Settings
    source: Source | None
    config: Path
    folder: Path | None
    credentials: bool = False
    url: str = ""
    kept: Path | None = None
    answers: Counter[int] = field(default_factory=Counter)
    _schemes: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        public_url = self.settings.server.public_url
        self._compiled: CompiledSource | None = None
        self._examiner: Examiner | None = None
        if self.source is not None:
            others = {name: one.verify for name, one in self.settings.sources.items() if name != self.name}
            self._examiner = Examiner(self.source.verify, others, public_url)
            self._compiled = compile_source(self.source, public_url)

    def greet(self) -> None:
        """Say where to post, and that this is not the service."""
        public = self.settings.server.public_url
        more = f", from outside {public.rstrip('/')}/webhooks/{self.name}" if public else ""
        lines = [
            f"listening for {self.name} on {self.url}{more}",
            "nothing is sent to the CRM, nothing is kept in the journal",
        ]
        if self.source is None:
            known = ", ".join(self.settings.sources)
            where = f"{self.config} has no source {self.name} (it has {known})" if known else "there is no bridge.yaml"
            lines.append(f"{where}: requests are answered 202 and shown as they come")
        lines.append("in a second terminal (Ctrl-C here ends it)" if self._has_example else "Ctrl-C ends it")
        if self._has_example:
            elsewhere = "" if urlsplit(self.url).port == self.settings.server.bind[1] else f" --url {self.url}"
            lines.append(f"next: {typed(f'send {self.name}{elsewhere}', self.config)}")
        click.echo("\n".join(lines), err=True)

    @property
    def _has_example(self) -> bool:
        return self.source is not None and bool(self.source.examples)

    def look(self, seen: Seen, show: Callable[[dict[str, Any]], None]) -> None:
        """Show one request, and keep it if asked to."""
        if seen.path in _PROBES:
            return
        with self._lock:
            self.answers[seen.status] += 1
            document = self._document(seen, self.answers.total())
            show(document)

    def sum_up(self) -> None:
        """What came, and what to do with it."""
        told = ", ".join(f"{number} answered {status}" for status, number in sorted(self.answers.items()))
        total = self.answers.total()
        click.echo(f"\n{total} request{'' if total == 1 else 's'}{': ' if told else ''}{told}", err=True)
        if self.source is None and self._schemes:
            self._advise(self._schemes.most_common(1)[0][0])
        elif self.source is not None and self.kept is not None:
            last = shlex.quote(str(self.kept))
            click.echo(f"next: {typed(f'map {self.name} {last}', self.config)}", err=True)

    def _advise(self, scheme: str) -> None:
        if self.settings.sources:
            variable = self.name.upper().replace("-", "_") + "_SECRET"
            click.echo(f"add to {self.config}, under `sources`, a block that begins with", err=True)
            click.echo(f"  {self.name}:\n    verify: {{scheme: {scheme}, secrets: [{{env: {variable}}}]}}", err=True)
        else:
            template = _TEMPLATES.get(scheme, " --from hmac")
            click.echo(f"next: {typed(f'init{template}', self.config)}", err=True)

    # --- one request ---

    def _document(self, seen: Seen, number: int) -> dict[str, Any]:
        ours = seen.path == f"/webhooks/{self.name}"
        document: dict[str, Any] = {
            "number": number,
            "received_at": iso(to_us(seen.received_at)),
            "source": self.name,
            "method": seen.method,
            "path": seen.path,
            "query": seen.query,
            "headers": self._headers(seen),
            **body_of(seen.content),
            "verdict": self._verdict(seen),
            **(self._mapping(seen) if ours and seen.body and not self._was_handshake(seen) else {}),
            "taken": 200 <= seen.status < 300,
            "answer": {"status": seen.status, "body": seen.answer.decode("utf-8", "replace")},
            "notes": self._notes(seen, ours=ours),
            "saved": None,
        }
        if self.folder is not None and ours:
            document["saved"] = self._keep(self.folder, document, seen)
        return document

    def _headers(self, seen: Seen) -> dict[str, str]:
        """By name; of those given twice, the values joined as servers do. Credentials are masked."""
        verify = self.source.verify if self.source is not None else None
        headers: dict[str, str] = {}
        for name, raw in seen.headers:
            value = raw
            if not self.credentials and is_credential(verify, name):
                value = f"{raw.partition(' ')[0]} {MASK}" if name.lower() == "authorization" and " " in raw else MASK
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return headers

    def _verdict(self, seen: Seen) -> dict[str, Any] | None:
        if self._examiner is None or seen.verdict is None or seen.signed is None:
            return None
        finding = self._examiner.examine(seen.signed, seen.verdict, seen.received_at)
        verdict = finding.verdict
        reason, secret = ("accepted", verdict.secret) if isinstance(verdict, Verified) else (verdict.reason, None)
        return {
            "accepted": isinstance(verdict, Verified),
            "reason": reason,
            "detail": finding.text,
            "hints": list(finding.hints),
            "secret": secret,
            "clock_off_s": None if finding.clock_off_s is None else round(finding.clock_off_s, 1),
        }

    def _mapping(self, seen: Seen) -> dict[str, Any]:
        if self._compiled is None:
            return {}
        mapped = seen.mapped or would_map(self._compiled, seen)
        if isinstance(mapped, str):
            return {"unreadable": mapped}
        return {"events": events_of(self._compiled, mapped), **report(mapped, self._compiled.hints(mapped))}

    def _notes(self, seen: Seen, *, ours: bool) -> list[str]:
        if not ours:
            return [f"this listens at /webhooks/{self.name} only"]
        if self._was_handshake(seen):
            return ["a handshake, answered as `challenge:` says"]
        notes = []
        if (self.source is None or self.source.challenge is None) and _is_handshake(seen):
            notes.append("this looks like a handshake, which `challenge:` of the source answers")
        if self.source is not None and seen.status == 415 and (form := _form(seen)) not in {"", self.source.body}:
            notes.append(f"the source reads `body: {self.source.body}`; this is `body: {form}`")
        if seen.status == 413:
            notes.append("its body was not read: raise `max_body` of the source or of `server`")
        if self.source is None and seen.method == "POST":
            schemes = recognised({name.lower(): value for name, value in seen.headers})
            self._schemes.update(schemes or ["hmac"])
            notes += [f"authenticated as {scheme} does: `verify: {{scheme: {scheme}, …}}`" for scheme in schemes]
            if not schemes:
                notes.append("no header of a scheme that we know; `hmac` describes others, `none` checks nothing")
        return notes

    def _was_handshake(self, seen: Seen) -> bool:
        return self.source is not None and self.source.challenge is not None and seen.status == 200 and not seen.mapped

    def _keep(self, folder: Path, document: dict[str, Any], seen: Seen) -> str | None:
        left_out = {"content-length", "transfer-encoding", "connection"}
        if seen.content is not seen.body:
            left_out.add("content-encoding")  # the body is kept inflated
        saved = SavedRequest(
            body=seen.content,
            headers={name: value for name, value in document["headers"].items() if name.lower() not in left_out},
            verdict=document["verdict"] or {},
            **{key: document[key] for key in ("method", "path", "query", "received_at", "source")},
        )
        moment = document["received_at"][:19].replace("-", "").replace(":", "")
        path = folder / f"{self.name}-{moment}-{document['number']:03}.json"
        try:
            _write(path, json.dumps(saved.as_json(), ensure_ascii=False, indent=2) + "\n")
        except OSError as error:
            click.echo(f"partner-bridge: {path} cannot be written: {error.strerror}; change --save", err=True)
            return None
        if self.kept is None or document["taken"]:
            self.kept = path
        return str(path)


def _form(seen: Seen) -> str:
    """Which `body:` a request's media type means; "" for any other."""
    given = seen.header("content-type").lower()
    return next((form for word, form in _FORMS.items() if word in given), "")


def _is_handshake(seen: Seen) -> bool:
    if seen.method == "GET":
        return any(word in seen.query.lower() for word in ("challenge", "validationtoken", "crc_token"))
    return b'"challenge"' in seen.content[:2000]


def _write(path: Path, text: str) -> None:
    """A new file that only its owner can read: payloads are other people's data."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
