"""`map` and `send`: payloads tried, or signed and posted as the partner does it."""

from __future__ import annotations

import json
import shlex
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from bridge.cli.common import config_option, load_for_journal, local_url, print_json, progress, source_names, typed
from bridge.errors import BridgeError, PayloadError
from bridge.intake.decoding import media_type
from bridge.intake.schemes import layouts_of
from bridge.intake.signatures import sign
from bridge.model import Intake
from bridge.settings import Settings, Source, is_loopback
from bridge.tryout.diagnosis import is_credential, of_signature
from bridge.tryout.payloads import SavedRequest, examples, read_saved, wire

if TYPE_CHECKING:
    import requests


# --- `map`: what a payload would become; and what `map`, `send` and `listen` share about payloads ---


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
    from bridge.intake.mapping import compile_source
    from bridge.tryout.dry_run import report

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


# --- what `send` tells of the answers it gets, and why one may not be what one hoped for ---

#: What `listen` calls itself in its answers.
LISTENING = "partner-bridge-listen"
#: Answers other than success that are printed one by one.
_MAX_FAILURES = 5
#: Clocks that differ by fewer seconds are not worth a word.
_CLOCK_S = 60


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `clock_off_s`: how far the other side's clock is ahead of ours, if it says so. `listening`:
    nothing is kept.
    """

    status: int
    content: bytes
    listening: bool = False
    ours: bool = False
    clock_off_s: float | None = None
    location: str = ""

    @property
    def accepted(self) -> bool:
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        return f"{self.status} {self.content.decode('utf-8', 'replace')}".rstrip()

    @property
    def document(self) -> dict[str, Any]:
        """The answer's JSON object; empty if it is none."""
        try:
            document = json.loads(self.content)
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}


def explain(answer: Reply, sender: Sender) -> list[str]:
    """What may be wrong, where the answer does not say it."""
    if answer.accepted:
        return []
    if answer.location:
        return [f"{answer.status}: it sends elsewhere, to {answer.location}; post there with --url"]
    if not answer.ours:
        return [
            f"{answer.status}: this is no answer of Partner Bridge's; a proxy refuses, or --url names something else"
        ]
    if answer.status == 401:
        return ["401 tells nobody why; it is one of these:", *(f"- {line}" for line in _doubts(answer, sender))]
    if answer.status == 404:
        return [f"404: the service there has no source {sender.source.name}: was it started with another file?"]
    return []


def _doubts(answer: Reply, sender: Sender) -> list[str]:
    verify, file = sender.source.verify, sender.settings.file
    doubts = [
        f"--header {name} stands in place of the signature's"
        for name in sender.extra
        if of_signature(verify, name) or is_credential(verify, name)
    ]
    off = answer.clock_off_s
    if off is not None and abs(off) > min(verify.tolerance_s, _CLOCK_S):
        doubts.append(f"the service's clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} this one's")
    doubts.append(f"the service checks with another secret or scheme than {file} says: was it started before a change?")
    if any("{url}" in layout.signed for layout in layouts_of(verify)):
        doubts.append(
            f"the scheme signs the URL, here {sender.public_url}/…: the service's `public_url` must be the same"
        )
    doubts.append(f"the service's log has the reason; `listen {sender.source.name}` in its place shows it")
    return doubts


def first_id(answer: Reply) -> str | None:
    """The id of the first event that an answer tells, if there is anything to trace."""
    ids = answer.document.get("ids")
    return str(ids[0]) if isinstance(ids, list) and ids and not answer.listening else None


def print_answers(answers: list[Reply]) -> int:
    """One answer as it came; of many, how often each status came, what they sum to, and some failures."""
    failures = [answer for answer in answers if not answer.accepted]
    if len(answers) == 1:
        click.echo(answers[0].text)
        return 1 if failures else 0
    sums: Counter[str] = Counter()
    for answer in answers:
        if answer.accepted:
            sums.update({key: answer.document.get(key, 0) for key in ("accepted", "duplicates", "ignored", "parked")})
    statuses = Counter(str(answer.status) for answer in answers)
    print_json({"sent": len(answers), "answers": statuses, **sums})
    for answer in failures[:_MAX_FAILURES]:
        click.echo(answer.text, err=True)
    return 1 if failures else 0


# --- `send` ---

_TIMEOUT_S = 60.0
#: Headers of a kept request that belong to its way here: they are made anew.
_OF_THE_WAY = frozenset(
    {"host", "content-length", "content-encoding", "transfer-encoding", "connection", "accept", "accept-encoding"}
)


@click.command()
@config_option
@click.option("--url", help="Where to post; default: the configured port of this machine.")
@click.option("--count", default=1, show_default=True, type=click.IntRange(min=1), help="How often.")
@click.option("--header", "headers", multiple=True, metavar="'K: V'", help="A header to send along; repeatable.")
@click.argument("source", shell_complete=source_names)
@click.argument("file", required=False)
def send(config: Path, source: str, file: str | None, url: str | None, count: int, headers: tuple[str, ...]) -> int:
    """Sign a payload as the partner would and post it to a running service.

    FILE is a payload, or a request that `listen --save` kept, which is signed anew; "-" is standard input; an
    .ndjson file holds one payload a line. Without FILE the source's first example is sent, each time with an
    event id and a time of its own where these are plain paths. Exit status 0 if all were accepted.
    """
    from bridge.intake.mapping import compile_source

    extra = headers_of(headers)
    settings = load_for_journal(config)
    found = source_of(settings, source)
    requests_: Iterable[SavedRequest]
    if file is None:
        if not found.examples:
            raise BridgeError(f"the source {source} has no examples: name a FILE with a payload")
        example = found.examples[0]
        note, bodies = examples(compile_source(found, settings.server.public_url), count)
        click.echo(note, err=True)
        requests_, total = (SavedRequest(body, example.headers) for body in bodies), count
    else:
        given = _given(found, file)
        requests_, total = (one for _ in range(count) for one in given), count * len(given)
    sender = Sender(settings, found, target_of(settings, source, url), extra)
    answers = sender.post_all(requests_, total)
    status = print_answers(answers)
    for line in dict.fromkeys(line for one in answers for line in explain(one, sender)):
        click.echo(line, err=True)
    traceable = first_id(answers[0]) if total == 1 else None
    if traceable is not None:
        click.echo(f"next: {typed(f'trace {shlex.quote(traceable)}', config)}", err=True)
    return status


def target_of(settings: Settings, name: str, url: str | None) -> str:
    """Where to post; a URL without a path is the service's address."""
    if url is None:
        return f"{local_url(*settings.server.bind)}/webhooks/{name}"
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise click.BadParameter(f"{url!r} is not http://… or https://…", param_hint="--url")
    return url if parts.path.strip("/") else f"{url.rstrip('/')}/webhooks/{name}"


def _given(source: Source, file: str) -> list[SavedRequest]:
    """The requests in a file: one, or one a line."""
    content = read(file)
    if file.endswith(".ndjson"):
        found = [SavedRequest(wire(source, line), {}) for line in content.splitlines() if line.strip()]
    elif (saved := read_saved(content)) is not None:
        found = [saved]
    else:
        found = [SavedRequest(wire(source, content), {})] if content.strip() else []
    if not found:
        raise BridgeError(f"{file} holds no payload")
    return found


@dataclass(frozen=True, slots=True)
class Sender:
    """Posts the requests of one source to one URL; `extra` are the headers that --header set."""

    settings: Settings
    source: Source
    url: str
    extra: Mapping[str, str]

    def post_all(self, requests_: Iterable[SavedRequest], total: int) -> list[Reply]:
        """The answers, in order. Raises BridgeError when nobody answers."""
        import requests

        answers: list[Reply] = []
        with requests.Session() as session, progress(f"sending to {self.url}", total) as advance:
            session.auth = lambda request: request  # or a .netrc of this machine would authenticate us
            # No proxy leads back to this machine.
            session.trust_env = not is_loopback(urlsplit(self.url).hostname or "")
            for one in requests_:
                try:
                    answers.append(self._post(session, one))
                except requests.RequestException as error:
                    done = f" after {len(answers)} of {total}" if total > 1 else ""
                    raise BridgeError(
                        f"{self.url} {_trouble(error)}{done}; is it running? (`serve`, or `listen`)"
                    ) from error
                advance(1)
        return answers

    def _post(self, session: requests.Session, one: SavedRequest) -> Reply:
        import requests

        url = f"{self.url}{'&' if '?' in self.url else '?'}{one.query}" if one.query else self.url
        prepared = session.prepare_request(requests.Request(one.method, url, data=one.body))
        signed = sign(
            self.source.verify,
            body=one.body,
            url=self.public_url + prepared.path_url,
            method=one.method,
            now=time.time(),
            delivery_id=f"send_{uuid.uuid4().hex}",
        )
        for name, value in {**self._kept(one), **signed, **self.extra}.items():
            prepared.headers[name] = value.encode()  # type: ignore[assignment]  # else Latin-1, which lacks most letters
        answer = session.send(prepared, timeout=_TIMEOUT_S, allow_redirects=False)
        return Reply(
            answer.status_code,
            answer.content,
            listening=answer.headers.get("Server") == LISTENING,
            ours=answer.ok or "urn:partner-bridge:" in answer.text,
            clock_off_s=_clock_off(answer.headers.get("Date")),
            location=answer.headers.get("Location", ""),
        )

    @property
    def public_url(self) -> str:
        """What the partner takes the service's address for, which some schemes sign."""
        parts = urlsplit(self.url)
        return (self.settings.server.public_url or f"{parts.scheme}://{parts.netloc}").rstrip("/")

    def _kept(self, one: SavedRequest) -> dict[str, str]:
        """The request's own headers but those that are made anew."""
        verify = self.source.verify
        headers = {
            name: value
            for name, value in one.headers.items()
            if name.lower() not in _OF_THE_WAY and not is_credential(verify, name) and not of_signature(verify, name)
        }
        if not any(name.lower() == "content-type" for name in headers):
            headers["Content-Type"] = media_type(self.source.body)
        return headers


def _trouble(error: requests.RequestException) -> str:
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        return "cannot be trusted (TLS)"
    if isinstance(error, requests.Timeout):
        return f"does not answer within {_TIMEOUT_S:.0f} s"
    return f"cannot be reached ({'connection refused' if 'refused' in str(error) else type(error).__name__})"


def _clock_off(date: str | None) -> float | None:
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return None
