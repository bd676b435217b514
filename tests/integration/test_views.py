"""F59: whatever intake takes, every command, path of the API, page and metric shows; nothing of it steers anything."""

from __future__ import annotations

import io
import itertools
import json
import re
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import structlog
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from structlog import PrintLogger
from structlog.typing import EventDict
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.test import Client

from bridge.cli import run
from bridge.config import load_settings
from bridge.crm.complaints import text
from bridge.journal.retry_log import Filter
from bridge.model import Outcome, Parked, Pause, Reason, Refused, RetryLater, Scope, to_us
from bridge.operations import logs
from bridge.server.service import Service
from tests.builders import LANE, call
from tests.empty_journal import prepare
from tests.examples import examples as times_the_day

CONFIG = """\
crm: {base_url: "http://127.0.0.1:1", token: {env: CRM_TOKEN}}
journal: {url: "sqlite:///FOLDER/journal.db"}
sources:
  acme:
    verify: {scheme: bearer, secrets: [{env: ACME_SECRET}]}
    event_id: id
    occurred_at: at
    record: {id: client, id_property: acme_client_id}
    properties:
      company_name: name
      tier: {from: plan, type: enumeration, values: {Gold: gold}}
      seen: {from: seen, type: datetime}
      since: {from: since, type: date}
      revenue: {from: revenue, type: number}
"""
SECRET = "a-secret-of-the-partner-acme"
#: Colours and the like, which our own tables have on a terminal.
SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

SURROGATE = re.compile("[\ud800-\udfff]")

TIMES: list[Any] = [
    "9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.9999999Z", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00", "1970-01-01T00:00:00Z", "1969-12-31T23:59:59.9999995Z", "2026-02-29T00:00:00Z",
    "2000-01-01T00:00:00.0004999Z", 0, -1, -62135596800, 253402300799, 253402300799.9999996, 253402300799999,
    2**63, -(2**63), 10**25, "31/12/9999", "99991231", "10000-01-01T00:00:00Z", None, "", "soon",
]  # fmt: skip
STEERING = [
    "\x1b[2J\x1b]0;owned\x07", "\u202eevil\u2066", "a\u2028b\u2029c\u0085d", "\x9b31m", "\x00nul", "\x7f",
    "\u200b\ufeff", "\u061c\u200e\u200f", "\ud800", "\U000e0041", "<script>alert(1)</script>", "<b", "]]>", "&#27;",
    "{{ 7 * 7 }}",
    "{% raw %}", "[bold red]x[/]", "[/]", "%s %n", "a\r\nb\tc", "-x", "--", "'\"`", "=1+1", "\\x1b", "\\u202e",
    "é\u0301", "x" * 300, "😀" * 50, "y" * 70_000,
]  # fmt: skip
SEARCHES = ("/api/trace/", "/trace?id=", "/retries?search=")
TEXTS = st.sampled_from(STEERING) | st.text(max_size=12)
PAYLOADS = st.fixed_dictionaries(
    {
        "id": TEXTS | st.integers(),
        "at": st.sampled_from(TIMES),
        "client": TEXTS,
        "name": TEXTS | st.sampled_from(TIMES),
        "plan": st.just("Gold") | TEXTS,
        "seen": st.sampled_from(TIMES),
        "since": st.sampled_from(TIMES),
        "revenue": st.sampled_from([2**70, 1e300, -0.0, "1e400", "NaN"])
        | st.floats(allow_nan=False, allow_infinity=False),
    }
)


class Quiet(WSGIRequestHandler):
    """No line for each request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing."""


class Terminal(io.StringIO):
    """A stream that says it is a terminal, or a pipe."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@dataclass
class Place:
    """A service over one journal, its admin port, and its log in both forms."""

    service: Service
    log: io.StringIO
    config: Path
    url: str
    numbers: Iterator[int]

    def take(self, payload: dict[str, Any]) -> None:
        """Post it as the partner would: it is taken, or refused for a reason."""
        answer = Client(self.service.public).post(
            "/webhooks/acme",
            data=json.dumps(payload).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {SECRET}"},
        )
        assert answer.status_code in {202, 400, 422}, answer.text

    def fail(self, words: str) -> None:
        """Let the CRM say these words of all that is due: of one record each, in every way there is."""
        journal = self.service.journal
        refs = [one.ref for one in journal.due(limit=100, exclude=())]
        taken = journal.take(refs, began_at_us=to_us(time.time())).records
        outcomes: list[Outcome] = []
        for record, number in zip(taken, self.numbers, strict=False):
            reason = Reason("VALIDATION_ERROR", words or "no words")
            refused: Outcome = Refused(record, dict.fromkeys(record.values, reason))
            outcomes.append((refused, Parked(record, reason), RetryLater(record, reason, 1e9))[number % 3])
        journal.settle(taken, outcomes, call=call(taken, began=time.time(), lane=LANE), doubtful=False)
        journal.save_pauses([Pause(Scope.ALL, "", "outage", words, since_us=0, until_us=2**62)])
        journal.pause(words[:50] or "x", detail=words)
        journal.refresh_figures(sources=self.service._settings.sources, delivery={})

    def command(self, *words: str, on_terminal: bool = False) -> str:
        """What a command prints; it ends as documented, and steers nothing."""
        out, err = Terminal(is_terminal=on_terminal), Terminal(is_terminal=False)
        with redirect_stdout(out), redirect_stderr(err):
            status = run(words)
        unreadable = any(map(SURROGATE.search, words))
        assert status in ({2} if unreadable else {0, 1}), f"{shlex.join(words)}: {status}: {err.getvalue()}"
        assert harmless(SEQUENCE.sub("", out.getvalue()) + err.getvalue(), "\n\t"), words
        return out.getvalue()


def harmless(text: str, keep: str) -> bool:
    return all(char.isprintable() or char in keep for char in text)


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("BRIDGE_CONFIG", "BRIDGE_ADMIN_URL", "BRIDGE_ADMIN_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("CRM_TOKEN", "a-token-for-the-sandbox")
        patch.setenv("ACME_SECRET", SECRET)
        patch.setenv("COLUMNS", "100")
        config = folder / "bridge.yaml"
        config.write_text(CONFIG.replace("FOLDER", str(folder)), encoding="utf-8")
        patch.setenv("BRIDGE_CONFIG", str(config))
        loaded = load_settings(config)
        prepare(loaded.journal.url)
        service = Service(settings=loaded)
        log = io.StringIO()
        log_to(log)
        server = make_server("127.0.0.1", 0, service.admin, threaded=True, request_handler=Quiet)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield Place(service, log, config, f"http://127.0.0.1:{server.server_port}", itertools.count())
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
            service._commits.close()
            service.journal.close()
            structlog.reset_defaults()


def log_to(log: io.StringIO) -> None:
    """Write every line as JSON and as people read it."""
    as_json, for_people = (structlog.wrap_logger(PrintLogger(log), logs.rendering(form)) for form in logs.FORMATS)

    def both(_logger: Any, method: str, event: EventDict) -> str:
        getattr(as_json, method)(**event)
        getattr(for_people, method)(**event)
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.processors.add_log_level, both])


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place(tmp_path_factory.mktemp("views")) as made:
        yield made


def examples() -> list[tuple[list[dict[str, Any]], str]]:
    """Every text and every time above, once everywhere."""
    bad = itertools.zip_longest(STEERING, TIMES, fillvalue="9999-12-31T23:59:59.999999Z")
    made = [{"id": text, "at": at, "client": text, "name": text, "seen": at, "since": at} for text, at in bad]
    return [(made[at : at + 20], "".join(STEERING[:20])) for at in range(0, len(made), 20)]


def all_of(test: Any) -> Any:
    """The test with these examples beside the drawn ones."""
    for payloads, words in examples():
        test = example(payloads=payloads, words=words)(test)
    return test


@all_of
@settings(
    max_examples=times_the_day(2),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
@given(payloads=st.lists(PAYLOADS, min_size=1, max_size=3), words=TEXTS)
def test_f59_whatever_is_taken_every_view_shows(here: Place, payloads: list[dict[str, Any]], words: str) -> None:
    """Commands beside the service and through its port, in text, on a terminal and as JSON; the API; the console."""
    before = len(json.loads(here.command("events", "list", "--json")))
    for payload in payloads:
        here.take(payload)
    here.fail(text(words))
    events = json.loads(here.command("events", "list", "--json"))[before:]
    entries = [entry.id for entry in here.service.journal.entries(Filter())][-len(payloads) :]
    ids = list(dict.fromkeys(id_ for event in events for id_ in (event["id"], *event["records"])))
    for number, id_ in enumerate([*ids, words]):
        look(here, ["trace", id_], number=number)
    for number, id_ in enumerate([*ids[:2], words]):
        look(here, ["events", "replay", id_], "--dry-run", number=number)
        look(here, ["events", "list", id_], number=number)
    for number, id_ in enumerate(entries[:3]):
        look(here, ["retries", "show", id_], number=number)
        look(here, ["retries", "replay", id_], number=number)
    for number, command in enumerate((["events", "list"], ["retries", "list"], ["resync"])):
        look(here, command, *(["--all", "--yes"] if command == ["resync"] else []), number=number)
    look(here, ["events", "replay"], "--all", number=len(payloads))
    for as_json in ([], ["--json"]):
        here.command("status", "--admin-url", here.url, *as_json, on_terminal=not as_json)
        here.command("journal", "info", *as_json)
    browse(here, ids, entries)
    assert harmless(here.log.getvalue(), "\n")


def look(here: Place, command: list[str], *options: str, number: int) -> None:
    """A command that shows something, as text and as JSON, here or there by turns."""
    elsewhere = [["--admin-url", here.url], []]
    name, ids = (command[:1], command[1:]) if command[0] == "trace" else (command[:2], command[2:])
    ids = ["--", *ids] if ids else []
    here.command(*name, *options, *elsewhere[number % 2], *ids, on_terminal=number % 4 < 2)
    shown = here.command(*name, *options, *elsewhere[number % 2 - 1], "--json", *ids)
    assert shown == "" or json.loads(shown) is not None


def browse(here: Place, ids: list[str], entries: list[str]) -> None:
    """Every path of the admin port."""
    client = Client(here.service.admin)
    paths = [
        "/api/retries", "/api/events", "/api/pause", "/metrics", "/status", "/openapi.json", "/livez", "/readyz",
        "/", "/sources", "/sources/acme", "/retries", "/trace",
        *(f"{path}/{each}" for path in ("/api/retries", "/retries") for each in entries),
        *(f"{path}{quote(each, safe='')}" for each in ids for path in SEARCHES),
    ]  # fmt: skip
    for path in paths:
        answer = client.get(path, headers={"Accept": "text/html,*/*"})
        assert answer.status_code < 500, f"{path}: {answer.text}"
        assert harmless(answer.text, "\n\t\r\u202f"), path
