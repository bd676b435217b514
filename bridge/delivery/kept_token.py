"""The refresh token that HubSpot gave in place of the configured one, kept over restarts.

It is preferred until the configured token changes: then a person re-installed the app, and theirs counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import orjson
import structlog

from bridge.delivery.tokens import fingerprint
from bridge.errors import JournalError, TokenOutageError

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
