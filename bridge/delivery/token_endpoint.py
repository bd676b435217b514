"""The OAuth token endpoint: one request for an access token, and what its answer means.

Nothing that the endpoint says is repeated but a bounded word of it: its messages may quote the refresh token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from bridge.delivery.calls import Answer, NoAnswer
from bridge.delivery.transport import Transport
from bridge.errors import BridgeError, TokenOutageError, TokenRefusedError
from bridge.settings import OAuth, Secret

#: Seconds that a token lives when the answer does not say [docs changelog: 30 minutes].
_LIFETIME_S = 1800.0

#: What a refusal may be called to be repeated: the names of OAuth errors and HubSpot's.
_WORD = re.compile(r"[A-Za-z]{1,20}(_[A-Za-z]{1,20}){0,4}")

#: Refusals that concern the refresh token, as HubSpot and RFC 6749 name them.
_BAD_REFRESH_TOKEN = frozenset({"BAD_REFRESH_TOKEN", "INVALID_GRANT"})

#: Statuses below 500 after which asking again may help.
_TRANSIENT = frozenset({408, 425, 429, 477})


class BadRefreshTokenError(TokenRefusedError):
    """This refresh token is not accepted; another one may be."""


@dataclass(frozen=True, slots=True)
class Granted:
    """An access token that lives `life_s` seconds; `refresh_token` "" when the answer holds none."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    life_s: float


class TokenEndpoint:
    """Thread-safe."""

    def __init__(
        self, *, settings: OAuth, base_url: str, timeout_s: float, proxy: str | None, ca_file: Path | None
    ) -> None:
        self._settings = settings
        self._url = base_url.rstrip("/") + settings.token_path
        self._transport = Transport(timeout_s=timeout_s, proxy=proxy, ca_file=ca_file)

    def __repr__(self) -> str:
        return f"TokenEndpoint({self._url!r})"

    def ask(self, refresh_token: str, client_secret: str) -> Granted:
        """Get an access token. Raises TokenOutageError when asking again may help, BadRefreshTokenError
        or another TokenRefusedError when it will not.
        """
        form = {
            "grant_type": "refresh_token",
            "refresh_token": refresh_token,
            "client_id": self._settings.client_id,
            "client_secret": client_secret,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = self._transport.request("POST", self._url, headers, urlencode(form).encode())
        if isinstance(answer, NoAnswer) or not 200 <= answer.status < 300:
            raise self._refusal(answer)
        body = answer.body if isinstance(answer.body, dict) else {}
        token, renewed = body.get("access_token"), body.get("refresh_token")
        if not isinstance(token, str) or not token:
            raise TokenOutageError("the token endpoint's answer holds no access token")
        return Granted(token, renewed if isinstance(renewed, str) else "", _seconds(body.get("expires_in")))

    def close(self) -> None:
        """Cut an open request; later ones end at once."""
        self._transport.close()

    def _refusal(self, answer: Answer | NoAnswer) -> BridgeError:
        if isinstance(answer, NoAnswer):
            return TokenOutageError(f"the token endpoint does not answer ({answer.kind})")
        word = _word(answer.body)
        told = f"HTTP {answer.status}" + (f", {word}" if word else "")
        if answer.status >= 500 or answer.status in _TRANSIENT:
            return TokenOutageError(f"the token endpoint answers {told}")
        if word.upper() in _BAD_REFRESH_TOKEN:
            place = _place(self._settings.refresh_token)
            return BadRefreshTokenError(
                f"the refresh token is not accepted ({told}): re-install the app and put the new one into {place}"
            )
        return TokenRefusedError(
            f"the token endpoint refuses ({told}): check client_id, client_secret and token_path of crm.oauth"
        )


def _seconds(told: Any) -> float:
    """`expires_in`, or HubSpot's half hour when it is missing or absurd."""
    is_number = isinstance(told, int | float) and not isinstance(told, bool)
    return float(told) if is_number and 0 < told < 1e9 else _LIFETIME_S


def _word(body: Any) -> str:
    """The name of a refusal: HubSpot's `status`, or RFC 6749's `error`; "" for anything that is no name."""
    if not isinstance(body, dict):
        return ""
    for key in ("error", "status"):
        told = body.get(key)
        if isinstance(told, str) and told != "error" and _WORD.fullmatch(told):
            return told
    return ""


def _place(secret: Secret) -> str:
    if secret.file is not None:
        return f"the file {secret.file}"
    return f"the environment variable {secret.env}, then restart"
