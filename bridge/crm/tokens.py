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
    """A token to call with. `credential` is a fingerprint of what a person would change to get another one: the token
    itself, or the secrets that it is got with.
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
        """The CRM answered 401 to this token. True: the next `access` will be another one, so the call is worth
        repeating at once.
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
    """Tells secrets apart without showing them."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


# --- the refresh token that HubSpot gave in place of the configured one, stored over restarts ---
#
# It is preferred until the configured token changes: then a person re-installed the app, and theirs counts.

#: The name under which it is stored.
STORED_AS = "oauth.refresh_token"

_log = structlog.get_logger(__name__)


class TokenStore(Protocol):
    """Where a secret outlives the process. Both may raise JournalError."""

    def load_secret(self, name: str) -> str | None: ...

    def save_secret(self, name: str, value: str) -> None: ...


@dataclass(frozen=True, slots=True)
class _Stored:
    configured: str  # fingerprint of the configured token that it replaces
    token: str = field(repr=False)


class StoredToken:
    """Not thread-safe: only whoever renews uses it."""

    def __init__(self, store: TokenStore) -> None:
        self._store = store
        self._unsaved: _Stored | None = None

    def preferred(self, configured: str) -> str | None:
        """The token to use in place of the configured one. Raises TokenOutageError when the journal
        cannot be read.
        """
        stored = self._unsaved
        if stored is None:
            try:
                stored = _read(self._store.load_secret(STORED_AS))
            except JournalError as error:
                raise TokenOutageError("the journal cannot be read for the refresh token") from error
        return stored.token if stored is not None and stored.configured == fingerprint(configured) else None

    def keep(self, configured: str, token: str) -> None:
        """Prefer this one from now on."""
        self._unsaved = _Stored(fingerprint(configured), token)
        self.save()

    @property
    def is_saved(self) -> bool:
        return self._unsaved is None

    def save(self) -> None:
        """Write down what is not stored yet: it would be lost with the process."""
        stored = self._unsaved
        if stored is None:
            return
        value = orjson.dumps({"configured": stored.configured, "token": stored.token}).decode()
        try:
            self._store.save_secret(STORED_AS, value)
        except JournalError as error:
            _log.error("the new refresh token is not kept yet", error=type(error).__name__)
        else:
            self._unsaved = None


def _read(written: str | None) -> _Stored | None:
    try:
        document = orjson.loads(written or "{}")
        return _Stored(str(document["configured"]), str(document["token"]))
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
