"""Health as values: alive, ready, and the figures of `GET /status`.

Alive depends only on what a restart cures: a dispatcher that makes no progress. Ready means that a webhook
could be journalled now; a CRM outage changes neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from bridge.operations.metrics import Gauges

#: A dispatcher that has not finished a step for this long is stuck: its longest wait is a second.
STUCK_AFTER_S = 60.0
#: `status` calls the service degraded when the oldest change has waited longer than this.
OLD_PENDING_S = 300.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether all is well, and if not, why, in one sentence."""

    ok: bool
    why: str = ""


class Vitals(Protocol):
    """What the service tells about itself."""

    def alive(self) -> Verdict: ...

    def ready(self) -> Verdict: ...

    def gauges(self) -> Gauges: ...

    def status(self) -> dict[str, Any]: ...
