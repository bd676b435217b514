"""The login form: the admin token for a session cookie."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
from flask import Blueprint, g, redirect, render_template, request
from werkzeug.wrappers import Response as AnyResponse

from bridge.operations import sessions
from bridge.operations.access import is_token, refuse_guesser
from bridge.operations.console.forms import first, own_form
from bridge.operations.guesses import Guesses
from bridge.settings import Settings

_log = structlog.get_logger("bridge.admin")


def add_sign_in(routes: Blueprint, settings: Callable[[], Settings], guesses: Guesses) -> None:
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
        refuse_guesser(guesses)
        if not is_token(first(fields, "token").strip().encode(), token):
            guesses.count(request.remote_addr, time.monotonic())
            _log.warning("operator refused", address=request.remote_addr)
            return render_template("console/login.html", page="", failed=True), 401
        _log.info("operator signed in", address=request.remote_addr)
        response = redirect("/", 303)
        sessions.begin(request, response, token)  # type: ignore[arg-type]  # Flask's own class
        return response

    @routes.post("/logout")
    def logout() -> AnyResponse:
        own_form()
        response = redirect("/login", 303)
        sessions.end(response)  # type: ignore[arg-type]  # Flask's own class
        return response
