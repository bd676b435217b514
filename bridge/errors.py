"""Every error the bridge raises on purpose. The message is for a stranger: it says what to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class BridgeError(Exception):
    """Root of all errors of ours: one clear sentence, never a traceback for the user."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration: where it stands and what to change."""

    path: str
    message: str
    line: int | None = None
    file: str | None = None

    def __str__(self) -> str:
        place = f"{self.file or 'bridge.yaml'}:{self.line}: " if self.line is not None else ""
        return f"{place}{self.path}: {self.message}" if self.path else f"{place}{self.message}"


class ConfigError(BridgeError):
    """The configuration cannot be used; carries every problem found, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class MappingError(BridgeError):
    """A mapping of the configuration cannot be compiled; `path` is relative to its source."""

    def __init__(self, path: tuple[str | int, ...], message: str) -> None:
        self.path = path
        self.message = message
        super().__init__(message)


class PayloadError(BridgeError):
    """A request body is not what its source says (HTTP 400); the message may be shown to the sender."""


class JournalError(BridgeError):
    """The journal cannot be used; nothing of the request was taken."""


class JournalFullError(JournalError):
    """The journal has reached `max_pending` or `max_size`; nothing of the request was taken."""


class JournalUnavailableError(JournalError):
    """The journal cannot be written just now (disk full, read-only, locked); trying again may help."""


class JournalDiskError(JournalUnavailableError):
    """The disk under the journal refuses or fails; `kind` is `full`, `io` or `read-only`."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class JournalDamagedError(JournalError):
    """The journal's file is damaged; a person must restore a backup or recover a copy."""


class JournalLockedError(JournalError):
    """Another process holds a lock on the journal that this command needs."""


class JournalTermError(JournalUnavailableError):
    """This process does not deliver any more: another one has taken over."""


class JournalVersionError(JournalError):
    """The journal was written by another version of Partner Bridge."""


class CrmUnreachableError(BridgeError):
    """The CRM could not be asked, or refused to answer."""


class TokenRefusedError(BridgeError):
    """The CRM gives no access token for what is configured; asking again will not help."""


class TokenOutageError(BridgeError):
    """No access token can be had just now; asking again may help."""
