"""Who may use the admin port (G10).

On a bind that is not loopback only health, metrics and status answer without the admin token, and status then without
the texts of others (`api.for_anybody`); without a token configured everything else is off there. On loopback without
a token it is open to this machine: then the request must also name this machine as its host, lest a web page reach
it through a name that it controls. A token that is configured is always asked for: as a bearer, or, on the console's
pages only, once at its login form, which gives a session cookie.
"""

from __future__ import annotations

import hmac
import math
import time

from flask import Flask, g, request

from bridge.intake.problems import Refusal
from bridge.operations import sessions
from bridge.operations.guesses import Guesses
from bridge.settings import Secret, SecretUnavailableError, is_loopback

#: The console's blueprint, and what of it is there to be let in.
CONSOLE = "console"
SIGN_IN = frozenset({"console.login", "console.sign_in", "console.static"})
#: What answers without the token, on any bind; `STATUS` tells more to those who may know it.
STATUS = "/status"
OPEN = frozenset({"/livez", "/readyz", "/metrics", STATUS})


def guard(app: Flask, *, host: str, token: Secret | None, guesses: Guesses | None = None) -> None:
    """Let the app ask every request for what it needs; `g.who` tells afterwards who is there, if that was asked."""
    loopback = is_loopback(host)
    guesses = guesses or Guesses()

    def check() -> None:
        if request.path in OPEN - {STATUS}:
            return
        g.who = _who(token, loopback=loopback)
        if g.who is not None or request.path in OPEN:
            return
        if token is not None:
            if request.endpoint in SIGN_IN:
                return
            if "Authorization" in request.headers:
                refuse_guesser(guesses)
                guesses.count(request.remote_addr, time.monotonic())
            raise Refusal(
                401,
                "Send the admin token as `Authorization: Bearer TOKEN`.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if not loopback:
            raise Refusal(
                403,
                "This is off here: set server.admin_token, or bind server.admin_bind to 127.0.0.1.",
            )
        raise Refusal(
            403,
            "Without server.admin_token only requests to localhost or 127.0.0.1 are answered here.",
        )

    app.before_request(check)


def _who(token: Secret | None, *, loopback: bool) -> str | None:
    """Who is there, if they may know and do all; None for anybody else."""
    if token is None:
        return "loopback" if loopback and is_loopback(_name(request.host)) else None
    if (request.blueprint == CONSOLE or request.path == STATUS) and sessions.holds(sessions.of(request), token):
        return "session"
    return "token" if _knows(token) else None


def refuse_guesser(guesses: Guesses) -> None:
    """Raise Refusal while too many wrong tokens came from where the request comes from."""
    wait_s = guesses.wait_s(request.remote_addr, time.monotonic())
    if wait_s:
        raise Refusal(
            429,
            f"Too many wrong tokens came from your address. Try again in {math.ceil(wait_s)} s; the right token as a "
            "bearer is answered at once.",
            headers={"Retry-After": str(math.ceil(wait_s))},
        )


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _knows(token: Secret) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    matches = is_token(given.strip().encode("latin-1", "replace"), token)  # as WSGI decoded it
    return scheme.lower() == "bearer" and matches


def is_token(sent: bytes, token: Secret) -> bool:
    """Whether it is (one of) the admin token(s); False while those cannot be read."""
    try:
        known = token.texts()
    except SecretUnavailableError:
        return False
    matches = [hmac.compare_digest(sent, text.encode()) for text in known]
    return any(matches)
