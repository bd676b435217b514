"""What passes between delivery and the CRM's client: an input of a call, and how the call ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bridge.model import PendingRecord

NoAnswerKind = Literal["connect", "tls", "token", "oauth", "timeout", "reset", "truncated", "oversize", "internal"]


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a call: a record with exactly the values that are sent, and its trace id."""

    record: PendingRecord
    trace_id: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer with a status. `body` is the parsed JSON, None when it is missing or unreadable.

    `headers` have lower-case names; `credential` is the fingerprint of the token that was used, or of what
    it was got with. `renewable`: the token was refused, and the next call will come with another.
    """

    status: int
    body: Any = field(default=None, repr=False)
    excerpt: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    correlation_id: str | None = None
    duration_s: float = 0.0
    credential: str = ""
    renewable: bool = False


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """A call that ended without an answer. `doubtful`: it may still be applied. Of one that was too large, `status`
    and what is complete in the part of its `body` that was read.
    """

    kind: NoAnswerKind
    doubtful: bool
    detail: str
    duration_s: float = 0.0
    credential: str = ""
    status: int | None = None
    body: Any = field(default=None, repr=False)
