"""`send`: payloads signed and posted as the partner does it."""

from __future__ import annotations

import shlex
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from bridge.cli.answered import LISTENING, Answer, Asked, explain, first_id, print_answers
from bridge.cli.common import config_option, load_for_journal, source_names, typed
from bridge.cli.payloads import headers_of, read, source_of
from bridge.cli.printing import progress
from bridge.errors import BridgeError
from bridge.intake.capture import SavedRequest, read_saved
from bridge.settings import Settings, Source, is_loopback

if TYPE_CHECKING:
    import requests

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
    from bridge.cli.freshening import examples
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
    asked = Asked(settings, found, sender.url, sender.public_url, tuple(extra))
    for line in dict.fromkeys(line for one in answers for line in explain(one, asked)):
        click.echo(line, err=True)
    traceable = first_id(answers[0]) if total == 1 else None
    if traceable is not None:
        click.echo(f"next: {typed(f'trace {shlex.quote(traceable)}', config)}", err=True)
    return status


def target_of(settings: Settings, name: str, url: str | None) -> str:
    """Where to post; a URL without a path is the service's address."""
    if url is None:
        host, port = settings.server.bind
        here = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared)
        return f"http://{f'[{here}]' if ':' in here else here}:{port}/webhooks/{name}"
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise click.BadParameter(f"{url!r} is not http://… or https://…", param_hint="--url")
    return url if parts.path.strip("/") else f"{url.rstrip('/')}/webhooks/{name}"


def _given(source: Source, file: str) -> list[SavedRequest]:
    """The requests in a file: one, or one a line."""
    from bridge.cli.freshening import wire

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
    """Posts the requests of one source to one URL."""

    settings: Settings
    source: Source
    url: str
    extra: Mapping[str, str]

    def post_all(self, requests_: Iterable[SavedRequest], total: int) -> list[Answer]:
        """The answers, in order. Raises BridgeError when nobody answers."""
        import requests

        answers: list[Answer] = []
        with requests.Session() as session, progress(f"sending to {self.url}", total) as bar:
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
                bar.advance(bar.task_ids[0])
        return answers

    def _post(self, session: requests.Session, one: SavedRequest) -> Answer:
        import requests

        from bridge.intake.signatures import sign

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
        return Answer(
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
        from bridge.intake.decoding import media_type
        from bridge.intake.diagnosis import is_credential, of_signature

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
    from email.utils import parsedate_to_datetime

    try:
        return None if date is None else parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return None
