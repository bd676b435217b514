"""Access tokens by OAuth refresh.

HubSpot asks apps to watch `expires_in` and not to wait for a 401. It may answer with another refresh token than it was
asked with; that one is stored, and preferred until the configured one changes.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import structlog

from bridge.crm.tokens import Access, StoredToken, TokenStore, fingerprint
from bridge.crm.transport import Answer, NoAnswer, Transport
from bridge.errors import BridgeError, TokenOutageError, TokenRefusedError
from bridge.model import Clock
from bridge.settings import OAuth, Secret

# --- the OAuth token endpoint: one request for an access token, and what its answer means ---
#
# Of what the endpoint says only a bounded word is repeated: its messages may quote the refresh token.

#: Seconds that a token lives when the answer does not say [docs changelog: 30 minutes].
_LIFETIME_S = 1800.0

#: Names of refusals that are repeated: those of OAuth errors and HubSpot's look like this.
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


# --- the token in use, renewed in time ---

#: Share of a token's life after which it is renewed: six minutes ahead of HubSpot's half hour.
RENEW_AT = 0.8

#: Seconds between two tries to renew a token that is still good.
_AHEAD_S = 30.0

#: Seconds for which a failed renewal is the answer to all who waited for it.
_SHARED_S = 1.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Configured:
    refresh_token: str = field(repr=False)
    client_secret: str = field(repr=False)
    credential: str


@dataclass(frozen=True, slots=True)
class _Issued:
    """An access token and its times on the monotonic clock."""

    access: Access
    refresh_token: str = field(repr=False)
    renew_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BridgeError
    credential: str
    at: float


class OAuthTokens:
    """Thread-safe: `_lock` guards the fields below it and is never held during I/O. Whoever renews holds `_renewing`;
    all others go on with the present token, or wait for the new one.
    """

    def __init__(
        self,
        *,
        settings: OAuth,
        base_url: str,
        timeout_s: float,
        store: TokenStore,
        clock: Clock,
        proxy: str | None = None,
        ca_file: Path | None = None,
    ) -> None:
        self._settings = settings
        self._endpoint = TokenEndpoint(
            settings=settings, base_url=base_url, timeout_s=timeout_s, proxy=proxy, ca_file=ca_file
        )
        self._stored = StoredToken(store)  # belongs to whoever holds `_renewing`
        self._clock = clock
        self._timeout_s = timeout_s
        self._renewing = threading.Lock()
        self._lock = threading.Lock()
        self._issued: _Issued | None = None
        self._failure: _Failure | None = None
        self._refusals = 0  # access tokens refused in a row

    def __repr__(self) -> str:
        return f"OAuthTokens({self._endpoint!r})"

    # --- what the client of the CRM asks ------------------------------------------------------

    def access(self) -> Access:
        """The token to call with now; renewed first when it is time."""
        good = self._good()
        try:
            configured = self._configured()
        except BridgeError:
            if good is not None:
                return good.access
            raise
        if good is None:
            return self._wait_for_another(configured)
        if not self._stored.is_saved or self._is_due(good, configured):
            with self._alone(timeout_s=0) as mine:
                if mine:
                    self._renew_ahead(good, configured)
            good = self._good() or good
        return good.access

    def credential(self) -> str:
        try:
            return self._configured().credential
        except BridgeError:
            return ""

    def refused(self, access: Access) -> bool:
        """A refused token is not used again. The first refusal in a row is worth another try at once: the token may
        have been revoked, or our clock may be wrong.
        """
        with self._lock:
            if self._issued is None or self._issued.access.token != access.token:
                return True  # it is not the current one any more
            self._issued = None
            self._refusals += 1
            return self._refusals < 2

    def accepted(self, access: Access) -> None:
        del access
        with self._lock:
            self._refusals = 0

    def keep(self) -> bool:
        """Try once more to store the refresh token; False when only this process knows it."""
        with self._alone(timeout_s=self._timeout_s) as mine:
            if mine:
                self._stored.save()
            return self._stored.is_saved

    def close(self) -> None:
        self._endpoint.close()

    # --- when to renew ------------------------------------------------------------------------

    def _good(self) -> _Issued | None:
        with self._lock:
            issued = self._issued
        return issued if issued is not None and self._clock.monotonic() < issued.expires_at else None

    def _is_due(self, issued: _Issued, configured: _Configured) -> bool:
        now = self._clock.monotonic()
        if self._failed(configured, within_s=_AHEAD_S) is not None:
            return False
        return now >= issued.renew_at or issued.access.credential != configured.credential

    def _failed(self, configured: _Configured, *, within_s: float) -> BridgeError | None:
        """The last failure with these very secrets, if it is so recent."""
        with self._lock:
            failure = self._failure
        if failure is None or failure.credential != configured.credential:
            return None
        return failure.error if self._clock.monotonic() - failure.at < within_s else None

    def _wait_for_another(self, configured: _Configured) -> Access:
        with self._alone(timeout_s=2 * self._timeout_s) as mine:  # it may take two requests
            good = self._good()  # someone else renewed it meanwhile
            if good is None:
                if not mine:
                    raise TokenOutageError("the access token is still being renewed")
                if (error := self._failed(configured, within_s=_SHARED_S)) is not None:
                    raise error.with_traceback(None)
                good = self._renew(configured)
        return good.access

    def _renew_ahead(self, good: _Issued, configured: _Configured) -> None:
        """Renew while the present token is good, so a failure does not matter yet."""
        self._stored.save()
        current = self._good() or good  # someone else may just have renewed it
        if self._is_due(current, configured):
            with contextlib.suppress(BridgeError):
                self._renew(configured)

    @contextlib.contextmanager
    def _alone(self, *, timeout_s: float) -> Iterator[bool]:
        mine = self._renewing.acquire(timeout=timeout_s) if timeout_s else self._renewing.acquire(blocking=False)
        try:
            yield mine
        finally:
            if mine:
                self._renewing.release()

    # --- one renewal --------------------------------------------------------------------------

    def _renew(self, configured: _Configured) -> _Issued:
        """Get a new access token and take it as the current one."""
        try:
            issued = self._refreshed(configured)
        except BridgeError as error:
            with self._lock:
                self._failure = _Failure(error, configured.credential, self._clock.monotonic())
            _log.warning("access token not renewed", error=str(error))
            raise
        with self._lock:
            self._issued, self._failure = issued, None
        _log.info("access token renewed", seconds=round(issued.expires_at - self._clock.monotonic()))
        return issued

    def _refreshed(self, configured: _Configured) -> _Issued:
        own = configured.refresh_token
        preferred = self._stored.preferred(own)
        try:
            issued = self._ask(preferred or own, configured)
        except BadRefreshTokenError:
            if preferred is None:
                raise
            issued = self._ask(own, configured)
        if issued.refresh_token != (preferred or own):
            self._stored.keep(own, issued.refresh_token)
        return issued

    def _ask(self, refresh_token: str, configured: _Configured) -> _Issued:
        began = self._clock.monotonic()  # the token's life is counted from here, to be on the safe side
        granted = self._endpoint.ask(refresh_token, configured.client_secret)
        return _Issued(
            Access(granted.access_token, configured.credential),
            granted.refresh_token or refresh_token,
            renew_at=began + granted.life_s * RENEW_AT,
            expires_at=began + granted.life_s,
        )

    # --- secrets ------------------------------------------------------------------------------

    def _configured(self) -> _Configured:
        refresh_token, client_secret = self._settings.refresh_token.text(), self._settings.client_secret.text()
        credential = fingerprint(refresh_token, client_secret, self._settings.client_id)
        return _Configured(refresh_token, client_secret, credential)
