"""Access tokens as the CRM's client sees them, and the plain kind: one text, from a variable or a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from bridge.errors import BridgeError


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
