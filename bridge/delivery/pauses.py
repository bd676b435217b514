"""Stops of delivery: what each one covers, how long it lasts, and who may probe (G7); and a failing record's patience.

Every stop but an operator's ends by itself: by its time alone (rate limits), or at that time by one
record, the probe, whose answer lifts the stop or lengthens it. Waits are measured on the monotonic
clock; the wall clock's times are kept for people and for the next start.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum

from bridge.model import MICROSECONDS, Category, Lane, Parked, Pause, PendingRecord, Reason, RetryLater, Scope

#: The reason of a stop that a person ordered: never probed, ended by a person only.
OPERATOR = "operator"

#: The reason of a stop that a new token may end.
UNAUTHORIZED = "unauthorized"

#: The reason of a stop that any answer but the same refusal ends.
MISCONFIGURED = "misconfigured"

#: The reason of a stop because the day's calls are used up.
DAILY_LIMIT = "daily_limit"

#: The reason of a stop because calls come to nothing.
OUTAGE = "outage"

#: Seconds that a stop read from the journal lasts at most, where the CRM said how long it is to be; others last as
#: long as the backoff at most. The wall clock may have been set meanwhile.
_LONGEST_S = {"rate_limited": 3_600.0, DAILY_LIMIT: 86_400.0, "migrating": 86_400.0}

#: Seconds for which nothing may wait for the end of a lane's or an object type's stop before it is dropped.
LAPSES_S = 60.0


class Backoff:
    """Growing delays with full jitter between `base_s` and `max_s`. Thread-safe as `random` is."""

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

    def patience_used_s(self, failures: int) -> float:
        """The time that so many failures in a row take at most, which does not run in pauses."""
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
    """The advice to stop: `delay_s` None leaves the time to the backoff; `probes`: when it is over, one
    record goes first. `credential` is the token that was refused.
    """

    scope: Scope
    reason: str
    detail: str
    delay_s: float | None = None
    probes: bool = True
    credential: str | None = None


@dataclass(slots=True)
class _Held:
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
        self._held: dict[tuple[Scope, str, str], _Held] = {}
        self._disproved_at = float("-inf")

    @property
    def none(self) -> bool:
        return not self._held

    def gate(self, lane: Lane, now: float, *, early: bool = False) -> Gate:
        """What may start in this lane now. `early`: with a record that had no part in any failure. Probes
        with records that failed already tell little, so they must not put off one that would tell more.
        """
        gate = Gate.OPEN
        for held in self._covering(lane):
            from_ = min(held.until, held.early_from) if early else held.until
            if held.stop is None or now < from_ or held.probing:
                return Gate.CLOSED
            if held.stop.probes:
                gate = Gate.PROBE
        return gate

    def probe(self, lane: Lane) -> None:
        """A probe of this lane begins."""
        for held in self._covering(lane):
            held.probing = True

    def probe_ended(self, lane: Lane) -> None:
        """The probe of this lane is settled, or was not made; `stop` or `answered` told what it found."""
        for held in self._covering(lane):
            held.probing = False

    def stop(self, lane: Lane, stop: Stop, *, now: float, now_us: int, began: float, known: bool = False) -> float:
        """Begin or lengthen a pause; returns the seconds. `began`: when the call that failed began:
        calls that were open together fail together and count once. `known`: with records that had failed
        before.
        """
        target = _target(lane, stop.scope)
        key = (stop.scope, target, stop.reason)
        held = self._held.get(key)
        failures = 1 if held is None else held.failures + (began >= held.since)
        delay_s = self._backoff.delay_s(failures) if stop.delay_s is None else stop.delay_s
        if held is not None and began < held.since:
            delay_s = max(held.until - now, delay_s if stop.delay_s is not None else 0.0)
        pause = Pause(
            stop.scope,
            target,
            stop.reason,
            stop.detail,
            since_us=now_us if held is None else held.pause.since_us,
            until_us=now_us + round(max(0.0, delay_s) * MICROSECONDS),
        )
        since = held.since if held is not None and began < held.since else now
        probing = held is not None and held.probing
        early_from = now + self._backoff.base_s if known else float("inf")
        self._held[key] = _Held(pause, stop, now + delay_s, failures, since, probing, early_from=early_from)
        self.changed = True
        return delay_s

    def answered(self, lane: Lane, *, accepted: bool) -> None:
        """The probe of this lane got a sound answer: `accepted` tells whether the CRM took the call, or
        refused the input. Lifts what that answer disproves.
        """
        over = [
            key
            for key, held in self._held.items()
            if held.stop is not None and _covers(held.pause, lane) and (accepted or held.pause.scope is not Scope.LANE)
        ]
        self._drop(over)

    def disproved(self, *, now: float) -> None:
        """A call that was open when another one came to nothing ended well after it, which is what a
        probe would find out. Believed once in `base_s`, lest a CRM that half fails gets no rest.
        """
        if self.none or now - self._disproved_at < self._backoff.base_s:
            return
        over = [
            key
            for key, held in self._held.items()
            if key == (Scope.ALL, "", OUTAGE) and held.failures == 1 and held.since < now and not held.probing
        ]
        if over:
            self._disproved_at = now
            self._drop(over)

    def stops_all(self, now: float) -> bool:
        """Whether nothing at all may start now."""
        return any(
            held.pause.scope is Scope.ALL
            and (held.stop is None or min(held.until, held.early_from) > now or held.probing)
            for held in self._held.values()
        )

    def stops_lane(self, lane: Lane) -> bool:
        """Whether this very lane is stopped, for a trouble of its own."""
        return any(h.stop is not None and h.pause.scope is Scope.LANE for h in self._covering(lane))

    def expire(self, now: float) -> None:
        """Drop the pauses that end by their time alone."""
        over = [
            key
            for key, held in self._held.items()
            if held.stop is not None and not held.stop.probes and held.until <= now
        ]
        self._drop(over)

    def lapse(self, now: float, waiting: Collection[Lane]) -> None:
        """Drop the pauses of single lanes and object types for which nothing has waited since their time was
        over: what they held up was withdrawn, and with nothing to probe with they would hold for ever. `waiting`
        are the lanes that have anything to be sent.
        """
        over = []
        for key, held in self._held.items():
            if held.stop is None or held.pause.scope is Scope.ALL or held.until > now:
                continue
            if held.probing or any(_covers(held.pause, lane) for lane in waiting):
                held.idle_since = float("inf")
            elif held.idle_since == float("inf"):
                held.idle_since = now
            elif now - held.idle_since >= LAPSES_S:
                over.append(key)
        self._drop(over)

    def waits_for_token(self) -> bool:
        return self.holds(UNAUTHORIZED)

    def holds(self, reason: str) -> bool:
        return any(held.pause.reason == reason for held in self._held.values())

    def token_is(self, credential: str, *, now: float) -> None:
        """Probe at once when the token is another one than was refused."""
        for held in self._held.values():
            refused = held.stop.credential if held.stop is not None else None
            if held.pause.reason == UNAUTHORIZED and credential and credential != refused and held.until > now:
                held.until = now

    def restore(self, stored: Iterable[Pause], *, now: float, now_us: int) -> None:
        """Take up the pauses of the last run."""
        for pause in stored:
            if pause.reason == OPERATOR or pause.until_us is None:
                continue
            longest_s = _LONGEST_S.get(pause.reason, self._backoff.max_s)
            left_us = min(pause.until_us - now_us, pause.until_us - pause.since_us)  # no more than it is long
            left_s = min(max(0.0, left_us / MICROSECONDS), longest_s)
            stop = Stop(pause.scope, pause.reason, pause.detail)
            key = (pause.scope, pause.target, pause.reason)
            self._held[key] = _Held(pause, stop, now + left_s, since=now)

    def operators(self, stored: Iterable[Pause]) -> None:
        """Honour exactly the operators' pauses among the stored ones."""
        wanted = {(p.scope, p.target, p.reason): p for p in stored if p.reason == OPERATOR}
        known = {key: held.pause for key, held in self._held.items() if held.stop is None}
        for key in known.keys() - wanted.keys():
            del self._held[key]
        for key, pause in wanted.items():
            self._held[key] = _Held(pause, None, float("inf"))
        self.changed = self.changed or known != wanted

    def is_ordered(self, lane: Lane) -> bool:
        """Whether a person's pause covers this lane."""
        return any(held.stop is None for held in self._covering(lane))

    def all(self) -> list[Pause]:
        """Every pause, for people."""
        return [held.pause for held in self._held.values()]

    def own(self) -> list[Pause]:
        """Every pause but the operators', for the journal."""
        return [held.pause for held in self._held.values() if held.stop is not None]

    def _drop(self, keys: Iterable[tuple[Scope, str, str]]) -> None:
        for key in keys:
            del self._held[key]
            self.changed = True

    def _covering(self, lane: Lane) -> list[_Held]:
        if not self._held:
            return []
        return [held for held in self._held.values() if _covers(held.pause, lane)]


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


# --- when a record that keeps failing by itself is tried again, and when it is parked at last ---
#
# The time does not run in pauses: beside the time since the first failure, the delays that the record's
# own failures asked for must add up to `give_up_after` as well. That needs no record of past pauses and
# survives restarts and a jumping clock.

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
        """The record failed by its own fault: later again, or parked when its time is over."""
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
        return failing_s >= longest_s and self.backoff.patience_used_s(record.attempts) >= longest_s
