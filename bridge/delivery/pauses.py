"""Pauses of delivery: what each one stops, how long it lasts, and who may probe (G7); and how long a record is retried.

Every pause but an operator's ends by itself: when its time is over (rate limits), or when one record, the probe, is
sent then and its answer ends the pause; another answer lengthens it. Waits are measured on the monotonic clock; the
wall clock's times are for people and for the next start.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum

from bridge.model import MICROSECONDS, Category, Lane, Parked, Pause, PendingRecord, Reason, RetryLater, Scope

#: The reason of a pause that a person ordered: never probed, ended by a person only.
OPERATOR = "operator"

#: The reason of a pause that a new token may end.
UNAUTHORIZED = "unauthorized"

#: The reason of a pause that any answer but the same refusal ends.
MISCONFIGURED = "misconfigured"

#: The reason of a pause because the day's calls are used up.
DAILY_LIMIT = "daily_limit"

#: The reason of a pause because calls come to nothing.
OUTAGE = "outage"

#: Seconds that a pause read from the journal lasts at most, by its reason, where the CRM said how long; others last as
#: long as the backoff at most. The wall clock may have been set meanwhile.
_LONGEST_S = {"rate_limited": 3_600.0, DAILY_LIMIT: 86_400.0, "migrating": 86_400.0}

#: Seconds after which the pause of a lane or an object type is dropped if nothing waits for its end.
LAPSES_S = 60.0


class Backoff:
    """Growing delays with full jitter between `base_s` and `max_s`. As thread-safe as `random`."""

    def __init__(self, *, base_s: float, max_s: float, chance: random.Random | None = None) -> None:
        self.base_s = base_s
        self.max_s = max(base_s, max_s)
        self._chance = chance if chance is not None else random.Random()  # noqa: S311 (jitter, no secret)

    def ceiling_s(self, failures: int) -> float:
        """The longest delay after so many failures in a row."""
        doublings = min(max(1, failures), 60)
        return min(self.max_s, self.base_s * 2.0**doublings)

    def delay_s(self, failures: int) -> float:
        """A delay after so many failures in a row, at least 1."""
        return self._chance.uniform(self.base_s, self.ceiling_s(failures))

    def longest_total_s(self, failures: int) -> float:
        """The longest that so many failures in a row can take without pauses."""
        growing = 0
        total = 0.0
        while growing < failures and self.ceiling_s(growing) < self.max_s:
            total += self.ceiling_s(growing)
            growing += 1
        return total + (failures - growing) * self.max_s


class Gate(Enum):
    """What may start in a lane now."""

    OPEN = "open"
    PROBE = "probe"  # one record, to find out whether the trouble is over
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Stop:
    """Why delivery is to pause, and for how long: `delay_s` None leaves that to the backoff. `probes`: when the time is
    over, one record goes first. `credential`: of the token that was refused.
    """

    scope: Scope
    reason: str
    detail: str
    delay_s: float | None = None
    probes: bool = True
    credential: str | None = None


@dataclass(slots=True)
class _Active:
    pause: Pause
    stop: Stop | None  # None: an operator's
    until: float  # monotonic
    failures: int = 1
    since: float = 0.0
    probing: bool = False
    idle_since: float = float("inf")  # since when nothing waits for it to end
    early_from: float = float("inf")  # when a record without a part in the failures may probe already


class Pauses:
    """Every pause that holds. Not thread-safe: the dispatcher's lock guards it.

    `changed` is set whenever the pauses became others than were last stored.
    """

    def __init__(self, *, backoff: Backoff) -> None:
        self.changed = False
        self._backoff = backoff
        self._active: dict[tuple[Scope, str, str], _Active] = {}
        self._disproved_at = float("-inf")

    @property
    def none(self) -> bool:
        return not self._active

    def gate(self, lane: Lane, now: float, *, early: bool = False) -> Gate:
        """What may start in this lane now. `early`: with a record that had no part in any failure. It tells more than a
        record that failed already, and need not wait as long as one.
        """
        gate = Gate.OPEN
        for active in self._covering(lane):
            from_ = min(active.until, active.early_from) if early else active.until
            if active.stop is None or now < from_ or active.probing:
                return Gate.CLOSED
            if active.stop.probes:
                gate = Gate.PROBE
        return gate

    def probe(self, lane: Lane) -> None:
        """A probe of this lane begins."""
        for active in self._covering(lane):
            active.probing = True

    def probe_ended(self, lane: Lane) -> None:
        """The probe of this lane is settled, or was not made; `stop` or `answered` noted what it found."""
        for active in self._covering(lane):
            active.probing = False

    def stop(self, lane: Lane, stop: Stop, *, now: float, now_us: int, began: float, known: bool = False) -> float:
        """Begin or lengthen a pause; returns the seconds. `began`: when the failed call began, as calls that were open
        together fail together and count once. `known`: its records had failed before.
        """
        target = _target(lane, stop.scope)
        key = (stop.scope, target, stop.reason)
        active = self._active.get(key)
        failures = 1 if active is None else active.failures + (began >= active.since)
        delay_s = self._backoff.delay_s(failures) if stop.delay_s is None else stop.delay_s
        if active is not None and began < active.since:
            delay_s = max(active.until - now, delay_s if stop.delay_s is not None else 0.0)
        pause = Pause(
            stop.scope,
            target,
            stop.reason,
            stop.detail,
            since_us=now_us if active is None else active.pause.since_us,
            until_us=now_us + round(max(0.0, delay_s) * MICROSECONDS),
        )
        since = active.since if active is not None and began < active.since else now
        probing = active is not None and active.probing
        early_from = now + self._backoff.base_s if known else float("inf")
        self._active[key] = _Active(pause, stop, now + delay_s, failures, since, probing, early_from=early_from)
        self.changed = True
        return delay_s

    def answered(self, lane: Lane, *, accepted: bool) -> None:
        """The probe of this lane got a sound answer: the CRM accepted the call, or rejected it for the record in it.
        Ends the pauses that this answer disproves.
        """
        over = [
            key
            for key, active in self._active.items()
            if active.stop is not None
            and _covers(active.pause, lane)
            and (accepted or active.pause.scope is not Scope.LANE)
        ]
        self._drop(over)

    def disproved(self, *, now: float) -> None:
        """A call that was open when another one came to nothing has ended well: a probe would find out the same.
        Believed once in `base_s`, so that a CRM that half fails gets some rest.
        """
        outage = self._active.get(key := (Scope.ALL, "", OUTAGE))
        if outage is None or now - self._disproved_at < self._backoff.base_s:
            return
        if outage.failures == 1 and outage.since < now and not outage.probing:
            self._disproved_at = now
            self._drop([key])

    def stops_all(self, now: float) -> bool:
        """Whether nothing at all may start now."""
        return any(
            active.pause.scope is Scope.ALL
            and (active.stop is None or min(active.until, active.early_from) > now or active.probing)
            for active in self._active.values()
        )

    def stops_lane(self, lane: Lane) -> bool:
        """Whether a pause is of this lane alone."""
        return any(active.stop is not None and active.pause.scope is Scope.LANE for active in self._covering(lane))

    def expire(self, now: float) -> None:
        """Drop the pauses that end by their time alone."""
        over = [
            key
            for key, active in self._active.items()
            if active.stop is not None and not active.stop.probes and active.until <= now
        ]
        self._drop(over)

    def lapse(self, now: float, waiting: Collection[Lane]) -> None:
        """Drop the pauses of lanes and object types for which nothing has waited since their time was over: what they
        held up was withdrawn, and without a record for a probe they would never end. `waiting`: the lanes that have
        anything to be sent.
        """
        over = []
        for key, active in self._active.items():
            if active.stop is None or active.pause.scope is Scope.ALL or active.until > now:
                continue
            if active.probing or any(_covers(active.pause, lane) for lane in waiting):
                active.idle_since = float("inf")
            elif active.idle_since == float("inf"):
                active.idle_since = now
            elif now - active.idle_since >= LAPSES_S:
                over.append(key)
        self._drop(over)

    def holds(self, reason: str) -> bool:
        """Whether there is a pause for this reason."""
        return any(active.pause.reason == reason for active in self._active.values())

    def token_is(self, credential: str, *, now: float) -> None:
        """Probe at once when the token is another one than was refused."""
        for active in self._active.values():
            refused = active.stop.credential if active.stop is not None else None
            if active.pause.reason == UNAUTHORIZED and credential and credential != refused and active.until > now:
                active.until = now

    def restore(self, stored: Iterable[Pause], *, now: float, now_us: int) -> None:
        """Take up the pauses of the last run."""
        for pause in stored:
            if pause.reason == OPERATOR or pause.until_us is None:
                continue
            longest_s = _LONGEST_S.get(pause.reason, self._backoff.max_s)
            left_us = min(pause.until_us - now_us, pause.until_us - pause.since_us)  # no longer than it was to last
            left_s = min(max(0.0, left_us / MICROSECONDS), longest_s)
            stop = Stop(pause.scope, pause.reason, pause.detail)
            key = (pause.scope, pause.target, pause.reason)
            self._active[key] = _Active(pause, stop, now + left_s, since=now)

    def operators(self, stored: Iterable[Pause]) -> None:
        """Take over the operators' pauses as they are stored."""
        wanted = {(p.scope, p.target, p.reason): p for p in stored if p.reason == OPERATOR}
        known = {key: active.pause for key, active in self._active.items() if active.stop is None}
        for key in known.keys() - wanted.keys():
            del self._active[key]
        for key, pause in wanted.items():
            self._active[key] = _Active(pause, None, float("inf"))
        self.changed = self.changed or known != wanted

    def is_ordered(self, lane: Lane) -> bool:
        """Whether a person's pause covers this lane."""
        return any(active.stop is None for active in self._covering(lane))

    def all(self) -> list[Pause]:
        """Every pause, for people."""
        return [active.pause for active in self._active.values()]

    def own(self) -> list[Pause]:
        """Every pause but the operators', for the journal."""
        return [active.pause for active in self._active.values() if active.stop is not None]

    def _drop(self, keys: Iterable[tuple[Scope, str, str]]) -> None:
        for key in keys:
            del self._active[key]
            self.changed = True

    def _covering(self, lane: Lane) -> list[_Active]:
        if not self._active:
            return []
        return [active for active in self._active.values() if _covers(active.pause, lane)]


def _target(lane: Lane, scope: Scope) -> str:
    match scope:
        case Scope.ALL:
            return ""
        case Scope.OBJECT_TYPE:
            return lane.object_type
        case Scope.LANE:
            return str(lane)


def _covers(pause: Pause, lane: Lane) -> bool:
    return pause.scope is Scope.ALL or pause.target == _target(lane, pause.scope)


# --- when a record that keeps failing by itself is tried again, and when it is parked ---
#
# The time of pauses does not count: beside the time since the first failure, the delays after the record's own failures
# must add up to `give_up_after` as well. So past pauses need not be known, and neither a restart nor a jumping clock
# matters.

#: Seconds for which `on_unknown: wait` asks again for a record that the CRM does not know.
AWAIT_CREATION_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Pure but for the backoff's jitter; safe to share between threads."""

    backoff: Backoff
    give_up_after_s: float

    def failed(
        self, record: PendingRecord, reason: Reason, *, now_us: int, at_least_s: float = 0.0
    ) -> RetryLater | Parked:
        """The record failed by its own fault: it is tried again later, or parked when its time is over."""
        if self._is_over(record, self.give_up_after_s, now_us):
            hours = self.give_up_after_s / 3600
            message = f"gave up after {record.attempts + 1} attempts in {hours:.4g} h: {reason.message}"
            return Parked(record, Reason(Category.GAVE_UP, message[:500]))
        return self.later(record, reason, at_least_s=at_least_s)

    def await_creation(self, record: PendingRecord, reason: Reason, *, now_us: int) -> RetryLater | Parked:
        """The CRM does not know the record yet."""
        if self._is_over(record, AWAIT_CREATION_S, now_us):
            return Parked(record, reason)
        return self.later(record, reason)

    def later(self, record: PendingRecord, reason: Reason, *, at_least_s: float = 0.0) -> RetryLater:
        delay_s = max(at_least_s, self.backoff.delay_s(record.attempts + 1))
        return RetryLater(record, reason, delay_s)

    def _is_over(self, record: PendingRecord, longest_s: float, now_us: int) -> bool:
        if record.failing_since_us is None:
            return False
        failing_s = (now_us - record.failing_since_us) / MICROSECONDS
        return failing_s >= longest_s and self.backoff.longest_total_s(record.attempts) >= longest_s
