"""Who may call the sandbox, and how often."""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from bridge.model import Clock, SystemClock
from bridge.sandbox.answers import Response, json_answer, missing_scopes, unauthorized

# --- how many calls the sandbox takes: HubSpot's rolling ten seconds and its daily quota ---

DAY_S = 86_400
#: HubSpot's window [docs LIMITS].
WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a call is let in (`policy` "" means yes) and what is left; None: no such limit."""

    policy: str
    remaining: int | None
    daily_remaining: int | None


class RateLimits:
    """At most `calls` in every rolling window of `per_s`, and `daily` from midnight to midnight UTC.

    None means no limit. The window is a true one: a log of the times of the calls let in, not buckets.
    Refused calls count against neither limit (HubSpot does not say; this is the lenient reading, and
    every refusal is listed among the violations anyway). A batch call is one call whatever its inputs
    [issue/forum]. Thread-safe: `_lock` guards the log and the day's count. `calls` and `daily` may be
    set at any time.
    """

    def __init__(
        self,
        *,
        calls: int | None = None,
        per_s: float = WINDOW_S,
        daily: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.calls = calls
        self.per_s = per_s
        self.daily = daily
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._admitted: deque[float] = deque()
        self._day = self._today()
        self._used_today = 0

    def admit(self) -> Admission:
        """Let one call in, or say which limit forbids it."""
        now = self._clock.monotonic()
        with self._lock:
            self._turn_the_day()
            while self._admitted and self._admitted[0] <= now - self.per_s:
                self._admitted.popleft()
            policy = ""
            if self.daily is not None and self._used_today >= self.daily:
                policy = "DAILY"
            elif self.calls is not None and len(self._admitted) >= self.calls:
                policy = "TEN_SECONDLY_ROLLING"
            else:
                self._used_today += 1
                if self.calls is not None:  # without a limit the log would only grow
                    self._admitted.append(now)
            return Admission(
                policy,
                None if self.calls is None else max(0, self.calls - len(self._admitted)),
                None if self.daily is None else max(0, self.daily - self._used_today),
            )

    @property
    def used_today(self) -> int:
        with self._lock:
            self._turn_the_day()
            return self._used_today

    def reset(self) -> None:
        """Forget the calls of the day and of the last ten seconds."""
        with self._lock:
            self._admitted.clear()
            self._used_today = 0

    def headers(self, admission: Admission) -> dict[str, str]:
        """The rate limit headers that HubSpot sends [docs LIMITS]; those of limits not set are absent."""
        found: dict[str, str] = {}
        if admission.remaining is not None:
            found["X-HubSpot-RateLimit-Max"] = str(self.calls)
            found["X-HubSpot-RateLimit-Remaining"] = str(admission.remaining)
            found["X-HubSpot-RateLimit-Interval-Milliseconds"] = str(round(self.per_s * 1000))
        if admission.daily_remaining is not None:
            found["X-HubSpot-RateLimit-Daily"] = str(self.daily)
            found["X-HubSpot-RateLimit-Daily-Remaining"] = str(admission.daily_remaining)
        return found

    def _today(self) -> int:
        return int(self._clock.now() // DAY_S)

    def _turn_the_day(self) -> None:
        if self._today() != self._day:
            self._day = self._today()
            self._used_today = 0


#: HubSpot's access tokens live half an hour [docs changelog "Expiration of OAuth access tokens"].
TOKEN_LIFETIME_S = 1800


class Access:
    """Tokens and scopes. Thread-safe: `_lock` guards all that follows it.

    `tokens` None: any non-empty bearer token is good, unless it was revoked or has expired.
    `refresh_tokens` None: likewise for refresh tokens. `rotates`: each is good once, and its answer brings the next.
    """

    def __init__(
        self,
        *,
        tokens: Iterable[str] | None = None,
        refresh_tokens: Iterable[str] | None = None,
        token_lifetime_s: int = TOKEN_LIFETIME_S,
        clock: Clock | None = None,
    ) -> None:
        self.token_lifetime_s = token_lifetime_s
        self.rotates = False
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._tokens = None if tokens is None else set(tokens)
        self._refresh_tokens = None if refresh_tokens is None else set(refresh_tokens)
        self._revoked: set[str] = set()
        self._expires_at: dict[str, float] = {}
        self._forbidden: set[str] = set()

    def accept_only(self, *tokens: str) -> None:
        """From now on these static tokens alone are good, beside those issued by refresh."""
        with self._lock:
            self._tokens = set(tokens)
            self._revoked -= self._tokens

    def revoke(self, *tokens: str) -> None:
        """These access or refresh tokens are answered as unknown."""
        with self._lock:
            self._revoked.update(tokens)

    def expire(self, token: str, ago_s: float = 0.0) -> None:
        """This access token counts as expired, `ago_s` seconds ago."""
        with self._lock:
            self._expires_at[token] = self._clock.now() - ago_s

    def expire_issued(self) -> None:
        """Every token issued by refresh so far expires now."""
        with self._lock:
            self._expires_at = dict.fromkeys(self._expires_at, self._clock.now())

    def forbid(self, *object_types: str) -> None:
        """The scopes for these object types are missing; "properties" stands for the Properties API."""
        with self._lock:
            self._forbidden.update(object_types)

    def allow(self, *object_types: str) -> None:
        """Undo `forbid`."""
        with self._lock:
            self._forbidden.difference_update(object_types)

    def refuse(self, headers: Mapping[str, str], target: str, scope: str) -> Response | None:
        """The 401 or 403 for a call, or None. `target` is an object type or "properties",
        `scope` the scope that the call needs.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        token = token.strip()
        now = self._clock.now()
        with self._lock:
            if scheme.lower() != "bearer" or not token or token in self._revoked:
                return unauthorized()
            expires_at = self._expires_at.get(token)
            if expires_at is not None and expires_at <= now:
                return unauthorized(expires_at, now)
            if expires_at is None and self._tokens is not None and token not in self._tokens:
                return unauthorized()
            if target in self._forbidden:
                return missing_scopes(scope)
        return None

    def token(self, body: bytes) -> Response:
        """`POST /oauth/v…/token` with `grant_type=refresh_token`, form-encoded [spec OAUTH].

        The refresh token comes back unchanged [issue/forum] unless it `rotates`; a wrong one is BAD_REFRESH_TOKEN.
        """
        form = dict(parse_qsl(body.decode("latin-1")))
        if form.get("grant_type") != "refresh_token":
            return _refused("BAD_GRANT_TYPE", "missing or unknown grant type")
        if not form.get("client_id") or not form.get("client_secret"):
            return _refused("BAD_CLIENT_ID", "missing or invalid client id")
        refresh_token = form.get("refresh_token", "")
        with self._lock:
            known = self._refresh_tokens is None or refresh_token in self._refresh_tokens
            if not refresh_token or not known or refresh_token in self._revoked:
                return _refused("BAD_REFRESH_TOKEN", "missing or invalid refresh token")
            access_token = f"issued-{secrets.token_urlsafe(240)}"  # 300 and more are allowed for [docs]
            self._expires_at[access_token] = self._clock.now() + self.token_lifetime_s
            if self.rotates:
                self._revoked.add(refresh_token)
                refresh_token = f"refresh-{secrets.token_urlsafe(16)}"
                if self._refresh_tokens is not None:
                    self._refresh_tokens.add(refresh_token)
        return json_answer(
            200,
            {
                "access_token": access_token,
                "refresh_token": refresh_token,
                "expires_in": self.token_lifetime_s,
                "token_type": "bearer",
                "token_use": "access_token",
                "hub_id": 1,
            },
        )


def _refused(status: str, message: str) -> Response:
    return json_answer(400, {"status": status, "message": message})
