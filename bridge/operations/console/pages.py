"""The console's pages and forms; each reads what it shows from the journal and the figures of the service.

GET  /                     flow: figures, pauses, the last hour
POST /pause, /resume       object_type, reason
GET  /sources[/{name}]     the sources; one with its mapping
POST /sources/{name}/try   payload, headers → what it would become
GET  /retries[/{id}]       the retry log, and one entry
POST /retries/confirm      act, and ids or a filter → how many that is, and whether they are meant
POST /retries/act          the same, with what was counted → begun
GET  /retries/act/{id}     how far it is, and then what it did
GET  /trace                ?id= of an event or a record
GET, POST /login; POST /logout
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog
from flask import Blueprint, Response, g, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from bridge.errors import JournalError, JournalFullError
from bridge.http.limits import WrongTokens
from bridge.http.problems import PROBLEM, Refusal
from bridge.operations import access
from bridge.operations.access import CONSOLE, is_token, refuse_repeated_tries
from bridge.operations.acts import Acts
from bridge.operations.console import flow, retries, sources, texts
from bridge.operations.console.texts import first, own_form
from bridge.operations.desk import JournalDesk
from bridge.operations.health import Vitals
from bridge.operations.metrics import Metrics
from bridge.settings import Settings

# --- the login form: the admin token for a session cookie ---

_log = structlog.get_logger("bridge.admin")


def add_sign_in(routes: Blueprint, settings: Callable[[], Settings], wrong_tokens: WrongTokens) -> None:
    """`/login` and `/logout`."""

    @routes.get("/login")
    def login() -> AnyResponse | str:
        if settings().server.admin_token is None or g.get("who"):
            return redirect("/", 303)
        return render_template("console/login.html", page="", failed=False)

    @routes.post("/login")
    def sign_in() -> AnyResponse | tuple[str, int]:
        fields, token = own_form(), settings().server.admin_token
        if token is None:
            return redirect("/", 303)
        refuse_repeated_tries(wrong_tokens)
        if not is_token(first(fields, "token").strip().encode(), token):
            wrong_tokens.count(request.remote_addr, time.monotonic())
            _log.warning("operator refused", address=request.remote_addr)
            return render_template("console/login.html", page="", failed=True), 401
        _log.info("operator signed in", address=request.remote_addr)
        response = redirect("/", 303)
        access.begin_session(request, response, token)  # type: ignore[arg-type]  # Flask's own class
        return response

    @routes.post("/logout")
    def logout() -> AnyResponse:
        own_form()
        response = redirect("/login", 303)
        access.end_session(response)  # type: ignore[arg-type]  # Flask's own class
        return response


#: Nothing from elsewhere, nothing inline, in nobody's frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
#: Events that the trace shows before one is asked for.
RECENT = 20
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # "no-referrer" would take the Origin from our own forms
    "Cross-Origin-Opener-Policy": "same-origin",
}


def console_blueprint(
    *,
    desk: JournalDesk,
    acts: Acts,
    vitals: Vitals,
    metrics: Metrics,
    settings: Callable[[], Settings],
    wrong_tokens: WrongTokens,
) -> Blueprint:
    """All pages. Who may see them is `access.guard`'s business."""
    routes = Blueprint(
        CONSOLE, __name__, template_folder="templates", static_folder="static", static_url_path="/static"
    )
    for name, function in texts.FILTERS.items():
        routes.add_app_template_filter(function, name)
    routes.record_once(lambda state: setattr(state.app.jinja_env, "finalize", texts.visible))
    _add_frame(routes, vitals, settings)
    _add_errors(routes)
    add_sign_in(routes, settings, wrong_tokens)
    flow.add_pages(routes, desk, vitals)
    sources.add_pages(routes, desk, vitals, metrics, settings)
    retries.add_pages(routes, desk, acts, settings)

    @routes.get("/trace")
    def trace() -> str:
        wanted = request.args.get("id", "").strip()
        stories = desk.trace(wanted) if wanted else {"events": [], "records": []}
        recent = [] if wanted else desk.recent_events(RECENT)
        return render_template(
            "console/trace.html", page="trace", wanted=wanted, recent=recent, sources=settings().sources, **stories
        )

    return routes


def _add_frame(routes: Blueprint, vitals: Vitals, settings: Callable[[], Settings]) -> None:
    """What every page has: the form token, the state of the service, the headers."""

    @routes.before_request
    def know_browser() -> None:
        g.nonce = access.nonce_of(request) or access.new_nonce()

    @routes.context_processor
    def frame() -> dict[str, Any]:
        who = g.get("who")
        nonce = g.get("nonce", "")
        return {
            "form_token": access.form_token(nonce, access.session_of(request)),
            "who": who,
            "status": vitals.status() if who else None,
            "with_token": settings().server.admin_token is not None,
        }

    @routes.after_request
    def protect(response: Response) -> Response:
        response.headers.extend(HEADERS)
        if request.endpoint == "console.static":
            response.headers["Cache-Control"] = "no-cache"  # asked for again, answered 304
            return response
        response.headers["Cache-Control"] = "no-store"
        if g.get("nonce") and not access.nonce_of(request):
            access.remember_nonce(request, response, g.nonce)
        return response


def _add_errors(routes: Blueprint) -> None:
    """Refusals as pages; to somebody without a session, the login form."""

    def page(status: int, title: str, detail: str) -> tuple[str, int]:
        return render_template("console/error.html", page="", title=title, detail=detail), status

    @routes.errorhandler(Refusal)
    def refused(error: Refusal) -> AnyResponse | tuple[str, int] | tuple[str, int, dict[str, str]]:
        if request.accept_mimetypes.best_match([PROBLEM, "text/html"]) != "text/html":  # no browser
            return error.answer()
        if error.status == 401 and request.method == "GET" and "Authorization" not in request.headers:
            return redirect("/login", 303)
        headers = dict(error.headers)
        titles = {
            401: "Please sign in",
            403: "That is not allowed",
            404: "There is nothing here",
            409: "Not now",
            429: "Too many attempts",
        }
        return (*page(error.status, titles.get(error.status, "That did not work"), error.detail), headers)

    @routes.errorhandler(JournalError)
    def journal_trouble(error: JournalError) -> tuple[str, int]:
        full = isinstance(error, JournalFullError)
        return page(409 if full else 503, "Not now" if full else "The journal is in trouble", str(error))
