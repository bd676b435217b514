"""The operators' desk of a service elsewhere, over its admin API; see `bridge.operations.admin_api`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import requests

from bridge.errors import BridgeError
from bridge.journal.event_log import EventFilter
from bridge.journal.retry_log import Filter
from bridge.journal.steering import Known
from bridge.operations.desk import DIFFERENCES, Document, Progress
from bridge.operations.queries import as_query

#: Rows fetched at a time.
ROWS = 1_000
#: Entries of the retry log that one request acts on: seconds at most.
ACTED_ON = 1_000
#: Ids of one request, in characters as a URL has them: the service reads no longer request line, nor body.
URL_ROOM, BODY_ROOM = 3_000, 50_000
#: Seconds of other acts before people are told how far they are.
PORTION_S = 2
CONNECT_TIMEOUT_S = 3.0
#: For the answer: large acts are done in portions, but a journal may be slow.
PATIENCE_S = 600.0


class AdminUnreachableError(BridgeError):
    """The admin port does not answer, or not as a service of ours does."""


def _quiet(_done: int) -> None:
    """Tell nobody."""


class RemoteDesk:
    """The desk behind a URL. Not thread-safe. Every method raises BridgeError with the service's own words."""

    def __init__(self, url: str, token: str | None, *, patience_s: float = PATIENCE_S) -> None:
        if not re.match(r"https?://[^/\s]", url):
            raise AdminUnreachableError(f"--admin-url {url!r} is no URL; write http://host:port")
        self._url = url.rstrip("/")
        self._timeout_s = (CONNECT_TIMEOUT_S, patience_s)
        self._session = requests.Session()
        self._session.trust_env = False  # no credentials of ~/.netrc in place of the token, no proxy on the way
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    # --- the retry log ---

    def retries(self, chosen: Filter) -> Iterator[Document]:
        """The entries, oldest failure first; of very many ids, so many at a time."""
        for part in _by_ids(chosen, URL_ROOM):
            offset = 0
            rows: list[Document] = [{}] * ROWS
            while len(rows) == ROWS:
                rows = self._get("/api/retries", as_query(part) | {"limit": ROWS, "offset": offset})
                yield from rows
                offset += len(rows)

    def count_retries(self, chosen: Filter) -> int:
        """How many entries the filter means."""
        return sum(
            int(self._post("/api/retries/replay", as_query(part) | {"dry_run": True})["entries"])
            for part in _by_ids(chosen, BODY_ROOM)
        )

    def retry(self, entry_id: str) -> Document | None:
        """One entry with the stories of the events behind it."""
        entry: Document | None = self._get(f"/api/retries/{quote(entry_id, safe='')}", {}, missing=None)
        return entry

    def replay_retries(self, chosen: Filter, *, progress: Progress = _quiet) -> Document:
        """Map the kept payloads with the service's mapping and send them now."""
        return self._act_on_retries("replay", chosen, progress)

    def discard_retries(self, chosen: Filter, *, progress: Progress = _quiet) -> Document:
        """Give entries up for good."""
        return self._act_on_retries("discard", chosen, progress)

    def _act_on_retries(self, what: str, chosen: Filter, progress: Progress) -> Document:
        """In portions: no request lasts long, and people see how far it is. What comes meanwhile is not meant."""
        total: Counter[str] = Counter()
        for done in self._portions(f"/api/retries/{what}", chosen, all=True, limit=ACTED_ON):
            total.update(done)
            progress(done["entries"])
        return dict(total)

    def _portions(self, path: str, chosen: Filter | EventFilter | Known, **options: Any) -> Iterator[Document]:
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

    def events(self, chosen: EventFilter, *, after: int = 0) -> Iterator[Document]:
        """The events after the one of this `seq`, in the order of their arrival; of many ids, so many at a time."""
        for part in _by_ids(chosen, URL_ROOM):
            seen = after
            rows: list[Document] = [{}] * ROWS
            while len(rows) == ROWS:
                rows = self._get("/api/events", as_query(part) | {"limit": ROWS, "after": seen})
                yield from rows
                seen = rows[-1]["seq"] if rows else seen

    def count_events(self, chosen: EventFilter) -> int | None:  # noqa: ARG002 (the desk's signature)
        """Unknown from here."""
        return None

    def replay_events(
        self, chosen: EventFilter, *, dry_run: bool, shown: int = DIFFERENCES, progress: Progress = _quiet
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
        stories: Document = self._get(f"/api/trace/{quote(wanted, safe='')}", {}, missing={"events": [], "records": []})
        return stories

    # --- steering ---

    def resync(self, chosen: Known, *, dry_run: bool, progress: Progress = _quiet) -> Document:
        """Send known values once more; a dry run counts them."""
        total: Counter[str] = Counter()
        for done in self._portions("/api/resync", chosen, all=True, dry_run=dry_run, seconds=PORTION_S):
            total.update({name: done[name] for name in ("records", "values")})
            progress(done["records"])
        return {"dry_run": dry_run, **total}

    def pauses(self) -> list[Document]:
        """Every pause that holds, whoever made it."""
        found: list[Document] = self._get("/api/pause", {})
        return found

    def pause(self, object_type: str | None, reason: str) -> Document:
        """Stop delivery, or that of one object type."""
        named = {} if object_type is None else {"object_type": object_type}
        made: Document = self._post("/api/pause", named | {"reason": reason})
        return made

    def resume(self, object_type: str | None) -> list[Document]:
        """End people's pauses; returns those that ended."""
        named = {} if object_type is None else {"object_type": object_type}
        over: list[Document] = self._answer(self._ask("DELETE", "/api/pause", params=named))
        return over

    def status(self) -> Document:
        """The figures of `GET /status`."""
        document: Document = self._get("/status", {})
        return document

    # --- HTTP ---

    def _get(self, path: str, query: dict[str, Any], **missing: Any) -> Any:
        answer = self._ask("GET", path, params=query)
        if "missing" in missing and answer.status_code == 404 and _is_problem(answer):
            return missing["missing"]
        return self._answer(answer)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._answer(self._ask("POST", path, json=body))

    def _ask(self, method: str, path: str, **what: Any) -> requests.Response:
        try:
            return self._session.request(
                method, f"{self._url}{path}", timeout=self._timeout_s, allow_redirects=False, **what
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
            raise BridgeError(f"{self._url}: {problem.get('detail')}{hint}" + (f" {errors}" if errors else ""))
        raise AdminUnreachableError(
            f"{self._url} answers {answer.status_code}, not as the admin port of partner-bridge does: check --admin-url"
        )


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
