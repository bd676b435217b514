"""Sessions of the console, and the tokens of its forms. Nothing is stored: any worker knows what another gave out.

A session is a signed time; the admin token is the key, so that a token that is taken away ends its sessions. A
form's token is bound to a random cookie and to the session: another site can neither read nor guess it, and a
program on another port of this machine, which can set cookies, does not know the session.
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
#: A session ends after this, whatever happens in it.
LASTS_S = 12 * 3600


def _signers(token: Secret) -> list[URLSafeTimedSerializer]:
    try:
        return [URLSafeTimedSerializer(text, salt="partner-bridge console session") for text in token.texts()]
    except SecretUnavailableError:
        return []


def begin(response: Response, token: Secret, *, secure: bool) -> None:
    """Give the session's cookie. `token` must hold one now."""
    session = _signers(token)[0].dumps(secrets.token_urlsafe(12))
    _set(response, COOKIE, str(session), secure=secure, lasts_s=LASTS_S)


def end(response: Response) -> None:
    """Take it back."""
    response.delete_cookie(COOKIE, httponly=True, samesite="Strict")


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


def remember_nonce(response: Response, nonce: str, *, secure: bool) -> None:
    """Give the forms' cookie."""
    _set(response, FORM_COOKIE, nonce, secure=secure, lasts_s=None)


def is_own_form(request: Request, sent: str) -> bool:
    """Whether a form comes from a page of ours in this browser."""
    nonce = request.cookies.get(FORM_COOKIE, "")
    wanted = form_token(nonce, request.cookies.get(COOKIE, ""))
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    origin = request.headers.get("Origin")
    return (
        bool(nonce)
        and site in {"same-origin", "none"}
        and (origin is None or urlsplit(origin).netloc.lower() == request.host.lower())
        and hmac.compare_digest(sent.encode(), wanted.encode())
    )


def _set(response: Response, name: str, value: str, *, secure: bool, lasts_s: int | None) -> None:
    response.set_cookie(name, value, max_age=lasts_s, httponly=True, samesite="Strict", secure=secure)
