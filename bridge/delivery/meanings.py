"""What an answer means: for the call as a whole, or for each of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bridge.delivery.calls import Input
from bridge.delivery.complaints import Complaint
from bridge.delivery.pauses import Stop
from bridge.delivery.ports import OnUnknown
from bridge.delivery.retry_policy import RetryPolicy
from bridge.model import Outcome, PendingRecord, Reason


@dataclass(frozen=True, slots=True)
class Judged:
    """A 2xx: outcomes by evidence; `silent` are the inputs about which the answer says nothing, `unexplained`
    those whose values it refuses without naming any, `retire` the properties that nobody can write.
    """

    outcomes: tuple[Outcome, ...]
    silent: tuple[PendingRecord, ...] = ()
    unexplained: tuple[tuple[Input, Complaint], ...] = ()
    retire: Mapping[str, Reason] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejected:
    """The CRM refused the call as a whole for what is in it: to be searched."""

    complaint: Complaint


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The call is too large: to be halved."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Locked:
    """The call met a lock: to be sent again after a short while, delivery goes on. `own`: it is this one record's
    trouble, whatever becomes of others.
    """

    reason: Reason
    own: bool = False


@dataclass(frozen=True, slots=True)
class Again:
    """Nothing was decided: the call is to be made again at once, with another token."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Stopped:
    """Delivery is to pause; the records are not to blame."""

    stop: Stop


@dataclass(frozen=True, slots=True)
class Broken:
    """Delivery is to pause, and if the CRM turns out to be well, the records of this call are retried by themselves."""

    stop: Stop
    reason: Reason


Meaning = Judged | Rejected | TooLarge | Locked | Again | Stopped | Broken


@dataclass(frozen=True, slots=True)
class Rules:
    """What judging needs to know beside the answer."""

    on_unknown: Callable[[PendingRecord], OnUnknown]
    policy: RetryPolicy
    now_us: int
