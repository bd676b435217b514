"""`/api/…` on the admin port: what the command line and the console use.

GET  /api/retries            the filters of `retries list`, search, limit, offset → [entry, …]
GET  /api/retries/{id}       one entry with the stories of its events
POST /api/retries/replay     filters, or all: true → what was done; dry_run only counts; seen: when they were counted,
                             so that what came since is spared; limit: so many now, then `next` and `seen` are what
                             to give as `after` and `seen` in the request that goes on
POST /api/retries/discard    likewise
GET  /api/events             the filters of `events list`, limit, after → [event, …]
POST /api/events/replay      filters, or all: true; dry_run, limit → differences and what was done; seconds: so long
                             now, then `next` and `until` are what to give as `after` and `until` to go on
GET  /api/trace/{id}         the stories of an event or a record
POST /api/resync             filters, or all: true; dry_run → how much; seconds, after likewise
GET, POST, DELETE /api/pause the pauses; object_type, reason → a pause; ?object_type= → the pauses that ended

Bodies must be JSON and say so: a form of another site cannot. Every act is logged: who, what, how many.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import orjson
import structlog
from flask import Blueprint, Response, g, request
from marshmallow import Schema, ValidationError

from bridge.errors import JournalError, JournalFullError
from bridge.intake.bodies import read_body
from bridge.intake.problems import Refusal, problem
from bridge.journal.retry_log import Filter, Reference
from bridge.operations import queries
from bridge.operations.desk import DIFFERENCES, Document, JournalDesk
from bridge.operations.logged import log_act
from bridge.showing import exact_iso, printable_json

#: Rows of one answer unless the request says otherwise.
ROWS = 1_000
#: The longest body of an act.
MAX_BODY = 1_000_000

_log = structlog.get_logger("bridge.admin")


def api_blueprint(desk: JournalDesk) -> Blueprint:
    """All routes. Who may use them is `access.guard`'s business."""
    routes = Blueprint("api", __name__, url_prefix="/api")

    @routes.errorhandler(JournalError)
    def journal_trouble(error: JournalError) -> Response:
        if isinstance(error, JournalFullError):  # maybe half-way: what was done stays done
            _log.warning("operator's act ended", path=request.path, who=g.get("who", "?"), error=str(error))
        return problem(409 if isinstance(error, JournalFullError) else 503, str(error))

    @routes.get("/retries")
    def retries() -> Response:
        chosen, options = _arguments(queries.RetriesPage())
        return _answer(desk.retries_page(chosen, limit=options.get("limit", ROWS), offset=options.get("offset", 0)))

    @routes.get("/retries/<entry_id>")
    def retry(entry_id: str) -> Response:
        entry = desk.retry(entry_id)
        if entry is None:
            raise Refusal(404, "No such entry in the retry log.")
        return _answer(entry)

    @routes.post("/retries/replay")
    def replay_retries() -> Response:
        return act_on_retries("replay", lambda _chosen, found: desk.replay_found(found))

    @routes.post("/retries/discard")
    def discard_retries() -> Response:
        return act_on_retries("discard", desk.discard_found)

    def act_on_retries(what: str, do: Callable[[Filter, Sequence[Reference]], Document]) -> Response:
        chosen, options = _act(queries.RetriesAct(), may_say_nothing=lambda asked: bool(asked.get("dry_run")))
        if options.get("dry_run"):
            return _answer({"dry_run": True, "entries": desk.count_retries(chosen)})
        limit = options.get("limit")
        if limit is not None and chosen.seen_us is None:  # what fails anew meanwhile must not be met again
            chosen = replace(chosen, seen_us=round(time.time() * 1_000_000))
        found = desk.found_retries(chosen, after=options.get("after"), limit=limit)
        done = do(chosen, found)
        if limit is not None and chosen.seen_us is not None:
            done["next"] = found[-1].place if len(found) == limit else None
            done["seen"] = exact_iso(chosen.seen_us)
        return _done(f"retries {what}", queries.as_query(chosen), done)

    @routes.get("/events")
    def events() -> Response:
        chosen, options = _arguments(queries.EventsPage())
        found = desk.events(chosen, after=options.get("after", 0))
        return _answer(islice(found, options.get("limit", ROWS)))

    @routes.post("/events/replay")
    def replay_events() -> Response:
        chosen, options = _act(queries.EventsAct(), may_say_nothing=lambda asked: bool(asked.get("dry_run")))
        dry_run = options.get("dry_run", False)
        if "seconds" in options and chosen.until_us is None:  # what comes meanwhile must not be chased
            chosen = replace(chosen, until_us=round(time.time() * 1_000_000))
        done = desk.replay_events(
            chosen,
            dry_run=dry_run,
            shown=options.get("limit", DIFFERENCES),
            after=options.get("after", 0),
            enough=_deadline(options),
        )
        if "seconds" in options and chosen.until_us is not None:
            done["until"] = exact_iso(chosen.until_us)
        return _answer(done) if dry_run else _done("events replay", queries.as_query(chosen), done)

    @routes.get("/trace/<path:wanted>")
    def trace(wanted: str) -> Response:
        stories = desk.trace(wanted)
        if not stories["events"] and not stories["records"]:
            raise Refusal(404, "No event and no record of this id in the journal.")
        return _answer(stories)

    @routes.post("/resync")
    def resync() -> Response:
        chosen, options = _act(queries.ResyncAct(), may_say_nothing=lambda asked: bool(asked.get("dry_run")))
        dry_run = options.get("dry_run", False)
        done = desk.resync(chosen, dry_run=dry_run, after=options.get("after", 0), enough=_deadline(options))
        return _answer(done) if dry_run else _done("resync", queries.as_query(chosen), done)

    @routes.get("/pause")
    def pauses() -> Response:
        return _answer(desk.pauses())

    @routes.post("/pause")
    def pause() -> Response:
        asked = _loaded(queries.PauseAct(), _body())
        made = desk.pause(asked.get("object_type"), asked.get("reason", ""))
        return _done("pause", {"object_type": asked.get("object_type")}, made)

    @routes.delete("/pause")
    def resume() -> Response:
        asked = _loaded(queries.PauseAct(only=["object_type"]), queries.of_arguments(request.args.to_dict(flat=False)))
        return _done("resume", asked, desk.resume(asked.get("object_type")))

    return routes


# --- reading and answering ----------------------------------------------------------------------


def _arguments(schema: Schema) -> tuple[Any, dict[str, Any]]:
    chosen, options = _loaded(schema, queries.of_arguments(request.args.to_dict(flat=False)))
    return chosen, options


def _act(
    schema: Schema, *, may_say_nothing: Callable[[dict[str, Any]], bool] = lambda _asked: False
) -> tuple[Any, dict[str, Any]]:
    """The filter and the options of an act; acting on everything must be said."""
    body = _body()
    chosen, options = _loaded(schema, body)
    if chosen == type(chosen)() and not options.get("all") and not may_say_nothing(options):
        raise Refusal(422, 'Say which: a filter, or "all": true.')
    return chosen, options


def _deadline(options: dict[str, Any]) -> Callable[[], bool] | None:
    """Whether the seconds that were asked for are over; None if none were."""
    if "seconds" not in options:
        return None
    ends = time.monotonic() + options["seconds"]
    return lambda: time.monotonic() >= ends


def _body() -> Any:
    if request.mimetype != "application/json":
        raise Refusal(415, "Send the body as application/json.")
    try:
        return orjson.loads(read_body(request.environ, MAX_BODY) or b"{}")
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"The body is not JSON: {error}.") from error


def _loaded(schema: Schema, data: Any) -> Any:
    if not isinstance(data, dict):
        raise Refusal(400, "The body is not a JSON object.")
    try:
        return schema.load(data)
    except ValidationError as error:
        raise Refusal(422, "The request is not understood.", extra={"errors": error.messages}) from error


def _answer(document: Any) -> Response:
    rows = list(document) if isinstance(document, Iterable) and not isinstance(document, dict) else document
    return Response(printable_json(rows), content_type="application/json", headers={"Cache-Control": "no-store"})


def _done(act: str, chosen: dict[str, Any], result: Any) -> Response:
    """Log an act and answer what it did."""
    log_act(act, chosen, result)
    return _answer(result)
