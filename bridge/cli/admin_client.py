"""How operators' commands use the admin API: that of a running service, or of this process on the journal.

Both are the same requests and the same code behind them (`bridge.operations.admin_api`); without a URL an application
of this process answers them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click
import requests
from marshmallow import fields, validate
from requests.adapters import BaseAdapter

from bridge.cli.common import Command, Moment, config_option, load_for_journal, source_names
from bridge.errors import BridgeError
from bridge.journal.control import ValueFilter
from bridge.journal.event_log import EventFilter
from bridge.journal.retry_log import Filter
from bridge.operations.queries import DIFFERENCES, MOST_ROWS, Query, as_query

if TYPE_CHECKING:
    from flask import Flask

    from bridge.journal.event_log import Remap
    from bridge.journal.store import Journal
    from bridge.settings import Settings

Document = dict[str, Any]
Progress = Callable[[int], None]

#: Rows fetched, and entries of the retry log acted on, by one request to a service: seconds at most.
ROWS = 1_000
#: Ids of one request, in characters as a URL has them: the service reads no longer request line, nor body.
URL_ROOM, BODY_ROOM = 3_000, 50_000
#: Seconds of other acts before people are told how far they are.
PORTION_S = 2
CONNECT_TIMEOUT_S = 3.0
#: For the answer: large acts are done in portions, but a journal may be slow.
ANSWER_TIMEOUT_S = 600.0


class AdminUnreachableError(BridgeError):
    """The admin port does not answer, or not as a service of ours does."""


# --- what is asked ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """Whose admin API it is. Without a URL it is that of this process, on the journal that the configuration names."""

    config: Path
    admin_url: str | None
    admin_token: str | None


def admin_options(command: Command) -> Command:
    """Add `--config`, `--admin-url` and `--admin-token`; the command gets them as `target`."""

    def gathered(
        *arguments: Any, config: Path, admin_url: str | None, admin_token: str | None, **options: Any
    ) -> object:
        return command(*arguments, target=Target(config, admin_url, admin_token), **options)

    return _in_place_of(
        command,
        gathered,
        config_option,
        click.option(
            "--admin-url",
            envvar="BRIDGE_ADMIN_URL",
            help="Ask the service whose admin port answers there, instead of opening the journal "
            "[env var: BRIDGE_ADMIN_URL].",
        ),
        click.option(
            "--admin-token", envvar="BRIDGE_ADMIN_TOKEN", help="The admin token [env var: BRIDGE_ADMIN_TOKEN]."
        ),
    )


def filters(query: type[Query]) -> Callable[[Command], Command]:
    """Add the filters that a query declares, as options; the command gets the filter that they mean as `chosen`."""
    declared = {name: field for name, field in query().fields.items() if name == "ids" or "help" in field.metadata}

    def decorate(command: Command) -> Command:
        def gathered(*arguments: Any, **options: Any) -> object:
            given = {name: options.pop(name) for name in declared}
            chosen = query.kind(**{field.attribute or name: given[name] for name, field in declared.items()})
            return command(*arguments, chosen=chosen, **options)

        return _in_place_of(command, gathered, *(_parameter(name, field) for name, field in declared.items()))

    return decorate


def _parameter(name: str, field: fields.Field[Any]) -> Callable[[Command], Command]:
    if name == "ids":
        return click.argument("ids", nargs=-1)
    choices = [each.choices for each in field.validators if isinstance(each, validate.OneOf)]
    kind: click.ParamType[Any] = (
        click.Choice(list(choices[0])) if choices else click.STRING if isinstance(field, fields.String) else Moment()
    )
    return click.option(
        f"--{name.replace('_', '-')}",
        name,
        type=kind,
        help=field.metadata["help"],
        shell_complete=source_names if name == "source" else None,
    )


def _in_place_of(
    command: Command, gathered: Callable[..., object], *options: Callable[[Any], Callable[..., object]]
) -> Command:
    """The same command to click, called through `gathered`, with further options."""

    @wraps(command)
    def checked(*arguments: Any, **given: Any) -> object:
        _refuse_half_characters((*arguments, *given.values()))
        return gathered(*arguments, **given)

    decorated: Callable[..., object] = checked
    for option in reversed(options):
        decorated = option(decorated)
    return decorated  # type: ignore[return-value]  # click calls it with other parameters than it was written for


def _refuse_half_characters(given: tuple[Any, ...]) -> None:
    """What is no UTF-8 on a command line comes as halves of characters, which no journal holds."""
    for value in given:
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and not text.isascii() and text != text.encode(errors="replace").decode():
                raise click.UsageError(f"{text!a} is not UTF-8")


# --- the two ways to it -------------------------------------------------------------------------


@contextmanager
def connect(target: Target) -> Iterator[AdminClient]:
    """The admin API; the journal may also be that of a running service. Raises BridgeError when it is out of reach."""
    if target.admin_url:
        with over_http(target.admin_url, target.admin_token) as admin:
            yield admin
        return
    from bridge.operations.admin_api import application

    settings = load_for_journal(target.config)

    def make_remap() -> Remap:
        from bridge.server import service  # takes the whole service, which only a replay needs

        return service.make_remap(settings)

    with opened(settings) as journal, in_process(application(journal, make_remap)) as admin:
        yield admin


@contextmanager
def in_process(app: Flask) -> Iterator[AdminClient]:
    """The admin API of an application of this process. What it raises comes through."""
    with requests.Session() as session:
        session.mount("http://", _InProcess(app))
        yield AdminClient(session, "http://localhost", rows=MOST_ROWS)


@contextmanager
def over_http(url: str, token: str | None, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Iterator[AdminClient]:
    """The admin API of the service whose admin port answers there."""
    if not re.match(r"https?://[^/\s]", url):
        raise AdminUnreachableError(f"--admin-url {url!r} is no URL; write http://host:port")
    with requests.Session() as session:
        session.trust_env = False  # no credentials of ~/.netrc in place of the token, no proxy on the way
        if token:
            session.headers["Authorization"] = f"Bearer {token}"
        url = url.rstrip("/")
        yield AdminClient(session, url, name=f"{url}: ", timeout_s=timeout_s)


@contextmanager
def opened(settings: Settings) -> Iterator[Journal]:
    """The journal, also beside a running service."""
    from bridge.journal import versions
    from bridge.journal.store import Journal
    from bridge.model import SystemClock

    versions.check(settings.journal.url)
    with closing(Journal(settings=settings.journal, clock=SystemClock(), retry_max_s=settings.retry.max_s)) as journal:
        yield journal


class _InProcess(BaseAdapter):
    """Has an application of this process answer."""

    def __init__(self, app: Flask) -> None:
        super().__init__()
        self._client = app.test_client()

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        """Answer one request."""
        with self._client.open(
            request.path_url, method=request.method, data=request.body, headers=list(request.headers.items())
        ) as told:
            answer = requests.Response()
            answer.status_code = told.status_code
            answer.headers.update(told.headers)
            answer.url = request.url or ""
            answer.raw = BytesIO(told.data)
        return answer

    def close(self) -> None:
        """Nothing is held open."""


class AdminClient:
    """What people look at and do, by requests of a session. Not thread-safe. Every method raises BridgeError with the
    service's own words; `progress` is told how many were done.
    """

    def __init__(
        self,
        session: requests.Session,
        url: str,
        *,
        name: str = "",
        rows: int = ROWS,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        """`name` begins what is told of errors; `rows` are fetched, and entries acted on, at a time."""
        self._session = session
        self._url = url
        self._name = name
        self._rows = rows
        self._timeouts = (CONNECT_TIMEOUT_S, timeout_s)

    # --- the retry log ---

    def retries(self, chosen: Filter) -> Iterator[Document]:
        """The entries, oldest failure first; of very many ids, so many at a time."""
        for part in _by_ids(chosen, URL_ROOM):
            query: dict[str, Any] | None = as_query(part) | {"limit": self._rows}
            while query is not None:
                answer = self._ask("GET", "/api/retries", params=query)
                rows = self._answer(answer)
                yield from rows
                query = self._following(answer, query, is_full=len(rows) == self._rows)

    def _following(self, answer: requests.Response, query: dict[str, Any], *, is_full: bool) -> dict[str, Any] | None:
        """What asks for the next page."""
        after = re.search(r"[?&]after=([^&]*)", answer.links.get("next", {}).get("url", ""))
        if after is None and is_full:
            raise BridgeError(f"{self._name}the service there is older than this command, use its own")
        return None if after is None else query | {"after": after[1]}

    def count_retries(self, chosen: Filter) -> int:
        """How many entries the filter means."""
        return sum(
            int(self._post("/api/retries/replay", as_query(part) | {"dry_run": True})["entries"])
            for part in _by_ids(chosen, BODY_ROOM)
        )

    def retry(self, entry_id: str) -> Document | None:
        """One entry with the stories of the events behind it."""
        entry: Document | None = self._get(f"/api/retries/{quote(entry_id, safe='')}", missing=None)
        return entry

    def act_on_retries(self, what: str, chosen: Filter, *, progress: Progress = lambda _done: None) -> Document:
        """`replay` them: map the kept payloads with today's mapping and send them now; or `discard` them for good. In
        portions: no request lasts long, and people see how far it is. What comes meanwhile is not meant.
        """
        total: Counter[str] = Counter()
        for done in self._portions(f"/api/retries/{what}", chosen, all=True, limit=self._rows):
            total.update(done)
            progress(done["entries"])
        return dict(total)

    def _portions(self, path: str, chosen: Filter | EventFilter | ValueFilter, **options: Any) -> Iterator[Document]:
        """The answers to an act that is done in portions."""
        bound: dict[str, Any] = {}  # what comes meanwhile is not meant, in no portion
        for part in _by_ids(chosen, BODY_ROOM):
            after: dict[str, Any] = {}
            while True:
                done = self._post(path, as_query(part) | options | bound | after)
                bound |= {name: done.pop(name) for name in ("seen", "until") if name in done}
                following = done.pop("next", None)
                yield done
                if following is None:
                    break
                after = {"after": following}

    # --- the event log ---

    def events(self, chosen: EventFilter) -> Iterator[Document]:
        """The events in the order of their arrival; of many ids, so many at a time."""
        for part in _by_ids(chosen, URL_ROOM):
            rows: list[Document] = [{"seq": 0}]
            while rows:
                rows = self._get("/api/events", as_query(part) | {"limit": self._rows, "after": rows[-1]["seq"]})
                yield from rows
                if len(rows) < self._rows:
                    break

    def replay_events(
        self, chosen: EventFilter, *, dry_run: bool, shown: int = DIFFERENCES, progress: Progress = lambda _done: None
    ) -> Document:
        """Map kept events again; a dry run only tells what would change."""
        asked = {"all": True, "dry_run": dry_run, "limit": shown, "seconds": PORTION_S}
        total: Counter[str] = Counter()
        changes: Counter[str] = Counter()
        found: list[Document] = []
        for done in self._portions("/api/events/replay", chosen, **asked):
            total.update({name: done[name] for name in ("events", "unmapped")})
            changes.update(done["changes"])
            found += done["differences"]
            progress(done["events"])
        differences = sorted(found, key=lambda one: one["what"] == "kept")[:shown]  # it must not hide what changes
        left_out = changes.total() - len(differences)
        return {
            "dry_run": dry_run, **total, "changes": dict(sorted(changes.items())), "differences": differences,
            "left_out": left_out,
        }  # fmt: skip

    def trace(self, wanted: str) -> Document:
        """The stories of an event or a record."""
        stories: Document = self._get(f"/api/trace/{quote(wanted, safe='')}", missing={"events": [], "records": []})
        return stories

    # --- steering ---

    def resync(self, chosen: ValueFilter, *, dry_run: bool, progress: Progress = lambda _done: None) -> Document:
        """Send known values once more; a dry run counts them."""
        total: Counter[str] = Counter()
        for done in self._portions("/api/resync", chosen, all=True, dry_run=dry_run, seconds=PORTION_S):
            total.update({name: done[name] for name in ("records", "values")})
            progress(done["records"])
        return {"dry_run": dry_run, **total}

    def pauses(self) -> list[Document]:
        """Every pause that holds, whoever made it."""
        found: list[Document] = self._get("/api/pause")
        return found

    def pause(self, object_type: str | None, reason: str) -> Document:
        """Stop delivery, or that of one object type."""
        made: Document = self._post("/api/pause", _named(object_type) | {"reason": reason})
        return made

    def resume(self, object_type: str | None) -> list[Document]:
        """End people's pauses; returns those that ended."""
        over: list[Document] = self._answer(self._ask("DELETE", "/api/pause", params=_named(object_type)))
        return over

    def status(self) -> Document:
        """The figures of `GET /status`."""
        document: Document = self._get("/status")
        return document

    # --- requests ---

    def _get(self, path: str, query: Mapping[str, Any] | None = None, **missing: Any) -> Any:
        answer = self._ask("GET", path, params=query)
        if "missing" in missing and answer.status_code == 404 and _is_problem(answer):
            return missing["missing"]
        return self._answer(answer)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._answer(self._ask("POST", path, json=body))

    def _ask(self, method: str, path: str, **what: Any) -> requests.Response:
        try:
            return self._session.request(
                method, f"{self._url}{path}", timeout=self._timeouts, allow_redirects=False, **what
            )
        except (requests.RequestException, ValueError) as error:
            raise AdminUnreachableError(
                f"{self._url} does not answer ({type(error).__name__}): start `partner-bridge serve`, or give its "
                "--admin-url"
            ) from error

    def _answer(self, answer: requests.Response) -> Any:
        if answer.ok and answer.status_code < 300:
            try:
                return answer.json()
            except ValueError:
                pass
        elif _is_problem(answer):
            problem = answer.json()
            errors = "; ".join(f"{name}: {', '.join(texts)}" for name, texts in problem.get("errors", {}).items())
            hint = " (--admin-token, or $BRIDGE_ADMIN_TOKEN)" if answer.status_code == 401 else ""
            raise BridgeError(f"{self._name}{problem.get('detail')}{hint}" + (f" {errors}" if errors else ""))
        raise AdminUnreachableError(
            f"{self._url} answers {answer.status_code}, not as the admin port of partner-bridge does: check --admin-url"
        )


def _named(object_type: str | None) -> dict[str, str]:
    return {} if object_type is None else {"object_type": object_type}


def _by_ids(chosen: Any, room: int) -> Iterator[Any]:
    """The filter, as several ones where it names more ids than one request holds."""
    ids: dict[str, None] = dict.fromkeys(getattr(chosen, "ids", ()))
    portion: list[str] = []
    taken = 0
    for id_ in ids:
        needed = len(f"&ids={quote(id_, safe='')}")
        if portion and taken + needed > room:
            yield replace(chosen, ids=tuple(portion))
            portion, taken = [], 0
        portion.append(id_)
        taken += needed
    yield replace(chosen, ids=tuple(portion)) if portion else chosen


def _is_problem(answer: requests.Response) -> bool:
    return answer.headers.get("Content-Type", "").startswith("application/problem+json")
