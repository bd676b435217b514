"""Who may use the admin port (G10): tokens, sessions of the console, and the tokens of its forms.

On a bind that is not loopback only health, metrics and status answer without the admin token, and status then without
the texts of others (`health.for_anybody`); without a token configured everything else is off there. On loopback without
a token it is open to this machine: then the request must also name this machine as its host, or a web page could
reach it through a name that it controls. A token that is configured is always asked for: as a bearer, or, on the
console's pages only, once at its login form, which gives a session cookie.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from urllib.parse import urlsplit

from flask import Flask, Request, Response, g, request
from itsdangerous import BadData, URLSafeTimedSerializer

from bridge.http.limits import WrongTokens
from bridge.http.problems import Refusal
from bridge.settings import Secret, SecretUnavailableError, is_loopback

# --- sessions of the console, and the tokens of its forms ---
#
# Nothing is stored: any worker knows what another gave out. A session is a signed time; the admin token is the key, so
# that a token that is taken away ends its sessions. A form's token is bound to a random cookie and to the session:
# another site can neither read nor guess it, and a program on another port of this machine, which can set cookies, does
# not know the session.
#
# Where the browser came by TLS, as far as can be known here, its cookies go by TLS alone and are named so that nobody
# without it can set them. What a proxy, or anybody, says of that is believed where it makes them stricter: a lie breaks
# the liar's own sign-in.

#: The session's cookie, and that of the forms.
COOKIE = "partner_bridge_session"
FORM_COOKIE = "partner_bridge_form"
#: Browsers take a cookie of such a name by TLS only, and from its own host only.
BY_TLS = "__Host-"
#: A session ends after this, whatever happens in it.
LASTS_S = 12 * 3600


def _signers(token: Secret) -> list[URLSafeTimedSerializer]:
    try:
        return [URLSafeTimedSerializer(text, salt="partner-bridge console session") for text in token.texts()]
    except SecretUnavailableError:
        return []


def came_by_tls(request: Request) -> bool:
    """Whether the browser did, by what the connection, a proxy that ends TLS, or a form's own origin tells."""
    forwarded = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip().lower()
    origin = urlsplit(request.headers.get("Origin", "")).scheme
    return request.is_secure or "https" in {forwarded, origin}


def session_of(request: Request) -> str:
    """The session that a request names; "" without one."""
    return _cookie(request, COOKIE)


def nonce_of(request: Request) -> str:
    """What the browser's forms are bound to; "" without it."""
    return _cookie(request, FORM_COOKIE)


def _cookie(request: Request, name: str) -> str:
    return request.cookies.get(f"{BY_TLS}{name}") or request.cookies.get(name, "")


def begin_session(request: Request, response: Response, token: Secret) -> None:
    """Give the session's cookie. `token` must hold one now."""
    session = _signers(token)[0].dumps(secrets.token_urlsafe(12))
    _set(request, response, COOKIE, str(session), lasts_s=LASTS_S)


def end_session(response: Response) -> None:
    """Take the session's cookie back."""
    for name, secure in ((COOKIE, False), (f"{BY_TLS}{COOKIE}", True)):
        response.delete_cookie(name, httponly=True, samesite="Strict", secure=secure)


def holds_token(session: str, token: Secret) -> bool:
    """Whether this is a session that has not ended."""
    for signer in _signers(token):
        try:
            signer.loads(session, max_age=LASTS_S)
        except BadData:
            continue
        return True
    return False


def form_token(nonce: str, session: str) -> str:
    """What the forms of this browser carry."""
    return hmac.new(nonce.encode(), b"form of " + session.encode(), hashlib.sha256).hexdigest()


def new_nonce() -> str:
    """For a browser that has no form cookie."""
    return secrets.token_urlsafe(24)


def remember_nonce(request: Request, response: Response, nonce: str) -> None:
    """Give the forms' cookie."""
    _set(request, response, FORM_COOKIE, nonce, lasts_s=None)


def is_own_form(request: Request, sent: str) -> bool:
    """Whether a form comes from a page of ours in this browser."""
    nonce = nonce_of(request)
    wanted = form_token(nonce, session_of(request))
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    origin = request.headers.get("Origin")
    return (
        bool(nonce)
        and site in {"same-origin", "none"}
        and (origin is None or urlsplit(origin).netloc.lower() == request.host.lower())
        and hmac.compare_digest(sent.encode(), wanted.encode())
    )


def _set(request: Request, response: Response, name: str, value: str, *, lasts_s: int | None) -> None:
    secure = came_by_tls(request)
    name = f"{BY_TLS}{name}" if secure else name
    response.set_cookie(name, value, max_age=lasts_s, httponly=True, samesite="Strict", secure=secure)


# --- who is let in ---

#: The console's blueprint, and what of it is there to be let in.
CONSOLE = "console"
SIGN_IN = frozenset({"console.login", "console.sign_in", "console.static"})
#: What answers without the token, on any bind; `STATUS` tells more to those who may know it.
STATUS = "/status"
OPEN = frozenset({"/livez", "/readyz", "/metrics", STATUS})


def guard(app: Flask, *, host: str, token: Secret | None, wrong_tokens: WrongTokens | None = None) -> None:
    """Let the app ask every request for what it needs; `g.who` tells afterwards who is there, if that was asked."""
    loopback = is_loopback(host)
    wrong_tokens = wrong_tokens or WrongTokens()

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
                refuse_repeated_tries(wrong_tokens)
                wrong_tokens.count(request.remote_addr, time.monotonic())
            raise Refusal(
                401,
                "Send the admin token as `Authorization: Bearer TOKEN`.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if not loopback:
            raise Refusal(403, "This is off here: set server.admin_token, or bind server.admin_bind to 127.0.0.1.")
        raise Refusal(403, "Without server.admin_token only requests to localhost or 127.0.0.1 are answered here.")

    app.before_request(check)


def _who(token: Secret | None, *, loopback: bool) -> str | None:
    """Who is there, if they may know and do all; None for anybody else."""
    if token is None:
        return "loopback" if loopback and is_loopback(_name(request.host)) else None
    if (request.blueprint == CONSOLE or request.path == STATUS) and holds_token(session_of(request), token):
        return "session"
    return "token" if _knows(token) else None


def refuse_repeated_tries(wrong_tokens: WrongTokens) -> None:
    """Raise Refusal while too many wrong tokens came from where the request comes from."""
    wait_s = wrong_tokens.wait_s(request.remote_addr, time.monotonic())
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
