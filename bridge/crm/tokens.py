"""Access tokens: the plain kind, and what outlives a restart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import orjson
import structlog

from bridge.errors import BridgeError, JournalError, TokenOutageError


@dataclass(frozen=True, slots=True)
class Access:
    """A token to call with. `credential` is a fingerprint of what a person would change to get another:
    of the token itself, or of what it is got with.
    """

    token: str = field(repr=False)
    credential: str


class Tokens(Protocol):
    """Where access tokens come from. Called from several threads at once."""

    def access(self) -> Access:
        """The token to call with now. Raises TokenOutageError when trying again may help, another
        BridgeError when a person has to change something.
        """
        ...

    def credential(self) -> str:
        """The `credential` of what is configured now; "" when there is none. Makes no call."""
        ...

    def refused(self, access: Access) -> bool:
        """The CRM answered 401 to this token. Whether the call is worth repeating at once, because the
        next `access` will be another one.
        """
        ...

    def accepted(self, access: Access) -> None:
        """The CRM answered anything else."""
        ...

    def close(self) -> None:
        """Cut what is open."""
        ...


class StaticToken:
    """A token that people rotate. `read` is asked for each call, so that a changed file is noticed."""

    def __init__(self, read: Callable[[], str]) -> None:
        self._read = read

    def access(self) -> Access:
        token = self._read()
        return Access(token, fingerprint(token))

    def credential(self) -> str:
        try:
            return fingerprint(self._read())
        except BridgeError:
            return ""

    def refused(self, access: Access) -> bool:
        del access
        return False  # the dispatcher looks for another one while it waits

    def accepted(self, access: Access) -> None:
        pass

    def close(self) -> None:
        pass


def fingerprint(*texts: str) -> str:
    """What tells one secret from another without telling the secret."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


# --- the refresh token that HubSpot gave in place of the configured one, kept over restarts ---
#
# It is preferred until the configured token changes: then a person re-installed the app, and theirs counts.

#: The name under which it is kept.
KEPT_AS = "oauth.refresh_token"

_log = structlog.get_logger(__name__)


class TokenStore(Protocol):
    """Where a secret outlives the process. Both may raise JournalError."""

    def load_secret(self, name: str) -> str | None: ...

    def save_secret(self, name: str, value: str) -> None: ...


@dataclass(frozen=True, slots=True)
class _Kept:
    configured: str  # fingerprint of the configured token whose place it took
    token: str = field(repr=False)


class KeptToken:
    """Not thread-safe: whoever renews is alone with it."""

    def __init__(self, store: TokenStore) -> None:
        self._store = store
        self._unsaved: _Kept | None = None

    def preferred(self, configured: str) -> str | None:
        """The token to use in place of the configured one. Raises TokenOutageError when the journal
        cannot be read.
        """
        kept = self._unsaved
        if kept is None:
            try:
                kept = _read(self._store.load_secret(KEPT_AS))
            except JournalError as error:
                raise TokenOutageError("the journal cannot be read for the refresh token") from error
        return kept.token if kept is not None and kept.configured == fingerprint(configured) else None

    def keep(self, configured: str, token: str) -> None:
        """Prefer this one from now on."""
        self._unsaved = _Kept(fingerprint(configured), token)
        self.save()

    @property
    def is_saved(self) -> bool:
        return self._unsaved is None

    def save(self) -> None:
        """Write down what is not yet: in memory it would be lost with the process."""
        kept = self._unsaved
        if kept is None:
            return
        value = orjson.dumps({"configured": kept.configured, "token": kept.token}).decode()
        try:
            self._store.save_secret(KEPT_AS, value)
        except JournalError as error:
            _log.error("the new refresh token is not kept yet", error=type(error).__name__)
        else:
            self._unsaved = None


def _read(stored: str | None) -> _Kept | None:
    try:
        document = orjson.loads(stored or "{}")
        return _Kept(str(document["configured"]), str(document["token"]))
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
