"""`/api/…` on the admin port: what the command line and the console use.

GET  /api/retries            the filters of `retries list`, search, limit, offset → [entry, …]; a header Link with
                             rel="next" where more may follow
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
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol
from urllib.parse import urlencode

import orjson
from flask import Blueprint, Flask, Response, request
from marshmallow import Schema, ValidationError

from bridge.errors import JournalError, JournalFullError
from bridge.http.bodies import read_body
from bridge.http.problems import Refusal, problem, register_problem_handlers
from bridge.journal.event_log import Remap
from bridge.journal.store import Journal
from bridge.model import to_us
from bridge.operations import queries
from bridge.operations.acts import log_act
from bridge.operations.desk import JournalDesk
from bridge.showing import exact_iso, printable_json

#: Rows of one answer unless the request says otherwise.
ROWS = 1_000
#: The longest body of an act.
MAX_BODY = 1_000_000


class Log(Protocol):
    """How acts are logged."""

    def __call__(self, act: str, chosen: dict[str, Any], result: Any, *, problem: str = "") -> None: ...


#: Logs an act, and answers what it did.
Done = Callable[[str, dict[str, Any], Any], Response]


def application(journal: Journal, make_remap: Callable[[], Remap]) -> Flask:
    """The API alone, for those who may open the journal themselves: it asks nobody who they are, and logs nothing. What
    it does not expect, it raises.
    """
    app = Flask("bridge.admin", static_folder=None)
    desk = JournalDesk(journal=journal, make_remap=make_remap)
    app.register_blueprint(api_blueprint(desk, log=_unlogged))
    register_problem_handlers(app, accidents=False)
    app.config["PROPAGATE_EXCEPTIONS"] = True
    return app


def _unlogged(act: str, chosen: dict[str, Any], result: Any, *, problem: str = "") -> None:
    """Log nothing."""


def api_blueprint(desk: JournalDesk, *, log: Log = log_act) -> Blueprint:
    """All routes. Who may use them is `access.guard`'s business."""
    routes = Blueprint("api", __name__, url_prefix="/api")

    @routes.errorhandler(JournalError)
    def journal_trouble(error: JournalError) -> Response:
        if isinstance(error, JournalFullError):  # maybe half-way: what was done stays done
            log(request.path.removeprefix("/api/"), {}, {}, problem=str(error))
        return problem(409 if isinstance(error, JournalFullError) else 503, str(error))

    def done(act: str, chosen: dict[str, Any], result: Any) -> Response:
        log(act, chosen, result)
        return _answer(result)

    _add_retry_log(routes, desk, done)
    _add_event_log(routes, desk, done)
    _add_steering(routes, desk, done)
    return routes


def _add_retry_log(routes: Blueprint, desk: JournalDesk, done: Done) -> None:
    @routes.get("/retries")
    def retries() -> Response:
        chosen, options = _arguments(queries.RetriesPage())
        rows, last = desk.retries_page(chosen, **{"limit": ROWS} | options)
        answer = _answer(rows)
        if last is not None:
            asked = request.args.to_dict(flat=False) | {"after": [last.place]}
            asked.pop("offset", None)
            answer.headers["Link"] = f'<{request.path}?{urlencode(asked, doseq=True)}>; rel="next"'
        return answer

    @routes.get("/retries/<entry_id>")
    def retry(entry_id: str) -> Response:
        entry = desk.retry(entry_id)
        if entry is None:
            raise Refusal(404, "No such entry in the retry log.")
        return _answer(entry)

    @routes.post("/retries/<any(replay, discard):act>")
    def act_on_retries(act: str) -> Response:
        chosen, options = _act(queries.RetriesAct())
        if options.get("dry_run"):
            return _answer({"dry_run": True, "entries": desk.count_retries(chosen)})
        limit = options.get("limit")
        if limit is not None and chosen.seen_us is None:  # what fails anew meanwhile must not be met again
            chosen = replace(chosen, seen_us=to_us(time.time()))
        result = desk.act_on_retries(act, chosen, after=options.get("after"), limit=limit)
        if limit is not None and chosen.seen_us is not None:
            result["seen"] = exact_iso(chosen.seen_us)
        return done(f"retries {act}", queries.as_query(chosen), result)


def _add_event_log(routes: Blueprint, desk: JournalDesk, done: Done) -> None:
    @routes.get("/events")
    def events() -> Response:
        chosen, options = _arguments(queries.EventsPage())
        found = desk.events(chosen, after=options.get("after", 0))
        return _answer(islice(found, options.get("limit", ROWS)))

    @routes.post("/events/replay")
    def replay_events() -> Response:
        chosen, options = _act(queries.EventsAct())
        dry_run = options.get("dry_run", False)
        if "seconds" in options and chosen.until_us is None:  # what comes meanwhile must not be chased
            chosen = replace(chosen, until_us=to_us(time.time()))
        result = desk.replay_events(
            chosen,
            dry_run=dry_run,
            shown=options.get("limit", queries.DIFFERENCES),
            after=options.get("after", 0),
            enough=_deadline(options),
        )
        if "seconds" in options and chosen.until_us is not None:
            result["until"] = exact_iso(chosen.until_us)
        return _answer(result) if dry_run else done("events replay", queries.as_query(chosen), result)

    @routes.get("/trace/<path:wanted>")
    def trace(wanted: str) -> Response:
        stories = desk.trace(wanted)
        if not stories["events"] and not stories["records"]:
            raise Refusal(404, "No event and no record of this id in the journal.")
        return _answer(stories)


def _add_steering(routes: Blueprint, desk: JournalDesk, done: Done) -> None:
    @routes.post("/resync")
    def resync() -> Response:
        chosen, options = _act(queries.ResyncAct())
        dry_run = options.get("dry_run", False)
        result = desk.resync(chosen, dry_run=dry_run, after=options.get("after", 0), enough=_deadline(options))
        return _answer(result) if dry_run else done("resync", queries.as_query(chosen), result)

    @routes.get("/pause")
    def pauses() -> Response:
        return _answer(desk.pauses())

    @routes.post("/pause")
    def pause() -> Response:
        asked = _loaded(queries.PauseAct(), _body())
        made = desk.pause(asked.get("object_type"), asked.get("reason", ""))
        return done("pause", {"object_type": asked.get("object_type")}, made)

    @routes.delete("/pause")
    def resume() -> Response:
        asked = _loaded(queries.PauseAct(only=["object_type"]), queries.of_arguments(request.args.to_dict(flat=False)))
        return done("resume", asked, desk.resume(asked.get("object_type")))


# --- reading and answering ----------------------------------------------------------------------


def _arguments(schema: Schema) -> tuple[Any, dict[str, Any]]:
    chosen, options = _loaded(schema, queries.of_arguments(request.args.to_dict(flat=False)))
    return chosen, options


def _act(schema: Schema) -> tuple[Any, dict[str, Any]]:
    """The filter and the options of an act; acting on everything must be said, looking at it need not."""
    chosen, options = _loaded(schema, _body())
    if chosen == type(chosen)() and not options.get("all") and not options.get("dry_run"):
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
