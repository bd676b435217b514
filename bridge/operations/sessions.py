"""Sessions of the console, and the tokens of its forms. Nothing is stored: any worker knows what another gave out.

A session is a signed time; the admin token is the key, so that a token that is taken away ends its sessions. A
form's token is bound to a random cookie and to the session: another site can neither read nor guess it, and a
program on another port of this machine, which can set cookies, does not know the session.

Where the browser came by TLS, as far as can be known here, its cookies go by TLS alone and are named so that nobody
without it can set them. What a proxy, or anybody, says of that is believed where it makes them stricter: a lie breaks
the liar's own sign-in.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from urllib.parse import urlsplit

from flask import Request, Response
from itsdangerous import BadData, URLSafeTimedSerializer

from bridge.settings import Secret, SecretUnavailableError

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


def of(request: Request) -> str:
    """The session that a request names; "" without one."""
    return _cookie(request, COOKIE)


def nonce_of(request: Request) -> str:
    """What the browser's forms are bound to; "" without it."""
    return _cookie(request, FORM_COOKIE)


def _cookie(request: Request, name: str) -> str:
    return request.cookies.get(f"{BY_TLS}{name}") or request.cookies.get(name, "")


def begin(request: Request, response: Response, token: Secret) -> None:
    """Give the session's cookie. `token` must hold one now."""
    session = _signers(token)[0].dumps(secrets.token_urlsafe(12))
    _set(request, response, COOKIE, str(session), lasts_s=LASTS_S)


def end(response: Response) -> None:
    """Take it back."""
    for name, secure in ((COOKIE, False), (f"{BY_TLS}{COOKIE}", True)):
        response.delete_cookie(name, httponly=True, samesite="Strict", secure=secure)


def holds(session: str, token: Secret) -> bool:
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
    wanted = form_token(nonce, of(request))
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
