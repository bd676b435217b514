"""What an answer of the CRM means: for the call as a whole, or for each of its inputs.

A call is accepted or rejected as a whole; a property is refused. Nothing here raises, whatever the body: `complaints`
reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from bridge.crm import sentences
from bridge.crm.complaints import Complaint, printable, read_complaint, shown, text, texts
from bridge.crm.transport import Answer, Input, NoAnswer
from bridge.delivery.pauses import DAILY_LIMIT, MISCONFIGURED, OUTAGE, UNAUTHORIZED, RetryPolicy, Stop
from bridge.delivery.ports import OnUnknown
from bridge.model import Delivered, Ignored, Outcome, Parked, PendingRecord, Reason, Refused, Scope


@dataclass(frozen=True, slots=True)
class Judged:
    """The CRM accepted the call: outcomes by evidence. `silent`: the inputs about which the answer says nothing;
    `unexplained`: those whose values it refuses without naming any; `retire`: the properties that nobody can write.
    """

    outcomes: tuple[Outcome, ...]
    silent: tuple[PendingRecord, ...] = ()
    unexplained: tuple[tuple[Input, Complaint], ...] = ()
    retire: Mapping[str, Reason] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rejected:
    """The CRM rejected the call as a whole for what is in it: the culprits are to be searched for."""

    complaint: Complaint


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The call is too large: to be halved."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Locked:
    """The call met a lock: it is to be sent again after a short while, and delivery goes on. `own`: it is this one
    record's trouble, whatever becomes of others.
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
class Criteria:
    """What an answer is judged by, beside the inputs."""

    on_unknown: Callable[[PendingRecord], OnUnknown]
    policy: RetryPolicy
    now_us: int


# --- the inputs of a 2xx, one by one: no record is delivered without evidence for that very record ---
#
# Errors are matched by trace id, then by id; results by trace id, by id, by the id property's value. Of an error that
# covers several inputs, each is refused only what may be meant of it. If as many results as inputs are left over,
# HubSpot wrote them under ids that we do not know. An input that the answer does not mention was, as far as anyone can
# tell, not written.

#: Per-input categories that may pass by themselves.
TRANSIENT_CATEGORIES = frozenset(
    {
        "RATE_LIMIT", "RATE_LIMITS", "INTERNAL_ERROR", "SERVER_ERROR", "SERVICE_UNAVAILABLE", "TIMEOUT",
        "GATEWAY_TIMEOUT", "LOCKED", "OBJECT_LOCKED", "TRANSIENT", "TEMPORARILY_UNAVAILABLE", "MIGRATION",
    }
)  # fmt: skip

#: Those of a lock, as a 423 is for a whole call.
_LOCKED_CATEGORIES = frozenset({"LOCKED", "OBJECT_LOCKED"})

#: Values of a batch answer's `status` beside COMPLETE; HubSpot's documentation also spells the last one with two L.
_UNFINISHED = frozenset({"PENDING", "PROCESSING", "CANCELED", "CANCELLED"})

#: Seconds that the rest of an unfinished call waits at least.
_UNFINISHED_S = 2.0


def is_unfinished(body: dict[str, Any]) -> bool:
    """Whether HubSpot answered before it had finished the call: only what it confirms counts."""
    told = body.get("status")
    return isinstance(told, str) and told.upper() in _UNFINISHED


def judge_inputs(inputs: Sequence[Input], body: Any, criteria: Criteria) -> Meaning:
    """What a 2xx with this body means."""
    if not isinstance(body, dict):
        return _outage("an answer that is no JSON object")
    found = _Findings(inputs, criteria)
    errors, results = _list(body.get("errors")), _list(body.get("results"))
    vague = [complaint for entry in errors if (complaint := found.note_error(entry)) is not None]
    if vague and len(inputs) == 1 and found.left:
        found.refuse(inputs[0], vague[0])
    if found.misaddressed is not None and not results:
        return Rejected(found.misaddressed)  # said of every input, but no record's fault
    if found.unexplained and len(inputs) == 1:
        return Rejected(found.unexplained[0][1])  # the one input is the whole call
    unfinished = is_unfinished(body)
    if len(found.transient) == len(inputs) and not results and not unfinished:
        return _all_transient(found.transient)
    nameless = found.note_results(results)
    if nameless == len(found.left) and not vague and not unfinished:
        for one in list(found.left.values()):
            found.close(one, Delivered(one.record))
    silent = tuple(one.record for one in found.left.values())
    unexplained = tuple(found.unexplained)
    speaks = found.named or not all(map(_is_transient, vague))
    if not found.outcomes and not unexplained and not speaks and (len(inputs) > 1 or unfinished):
        return _outage("an answer that confirms nothing")
    if unfinished:
        reason = Reason("UNFINISHED", "HubSpot had not finished the call when it answered")
        later = (criteria.policy.later(one, reason, at_least_s=_UNFINISHED_S) for one in silent)
        return Judged((*found.outcomes, *later), (), unexplained, found.retire)
    return Judged(tuple(found.outcomes), silent, unexplained, found.retire)


class _Findings:
    """What the answer says of the inputs so far: those `left` are not judged yet. The rest as in `Judged`."""

    def __init__(self, inputs: Sequence[Input], criteria: Criteria) -> None:
        self._criteria = criteria
        self._id_property = inputs[0].record.key.lane.id_property
        self._traces = {one.trace_id: one for one in inputs}
        self._ids = _index((one.record.key.id, one) for one in inputs)
        self._folded = _index((_fold(one.record.key.id), one) for one in inputs)
        self.left = dict(self._traces)
        self.outcomes: list[Outcome] = []
        self.unexplained: list[tuple[Input, Complaint]] = []
        self.retire: dict[str, Reason] = {}
        self.transient: list[
            Complaint
        ] = []  # of each input with an error that says it will pass, and blames nothing of it
        self.named = False  # an error named some of the inputs
        self.misaddressed: Complaint | None = None  # it blames the property by which the inputs are addressed

    def close(self, one: Input, outcome: Outcome) -> None:
        """Judge an input, the first time that the answer speaks of it."""
        if self.left.pop(one.trace_id, None) is not None:
            self.outcomes.append(outcome)

    def refuse(self, one: Input, complaint: Complaint, *, shared: bool = False) -> None:
        """Judge an input that the answer complains about; `shared`: and about others in the same words. If these cannot
        be meant of this one, it stays to be asked about alone.
        """
        about = complaint.about(one.record, shared=shared)
        if complaint.category == "VALIDATION_ERROR":
            if complaint.blames_id_property(self._id_property) and self._id_property not in one.record.values:
                self.misaddressed = complaint
            if not about and complaint.about(one.record):
                return
            if not complaint.properties:
                if self.left.pop(one.trace_id, None) is not None:
                    self.unexplained.append((one, complaint))
                return
        names = complaint.definitions & one.record.values.keys()
        self.retire.update((name, complaint.reason_for(name)) for name in names)
        if one.trace_id in self.left and complaint.category in TRANSIENT_CATEGORIES and not complaint.properties:
            self.transient.append(complaint)
        self.close(one, _judge_error(one.record, complaint, about, self._criteria))

    def note_error(self, entry: Any) -> Complaint | None:
        """Judge the inputs that this entry of `errors[]` names; returns the complaint if it names none."""
        complaint = read_complaint(entry, fallback=f"HubSpot refused it: {shown(entry)}")
        about = [self._traces[trace] for trace in sorted(complaint.trace_ids) if trace in self._traces]
        if not about:
            about = [one for told in sorted(complaint.ids) if (one := self._of(told)) is not None]
        self.named = self.named or bool(about)
        for one in about:
            self.refuse(one, complaint, shared=len(about) > 1)
        return None if about else complaint

    def note_results(self, results: Sequence[Any]) -> int:
        """Confirm the inputs that `results` name; returns how many other records they name."""
        nameless: set[str] = set()
        for result in results:
            if not isinstance(result, dict):
                continue
            named = self._named_by(result)
            if named is not None:
                self.close(named, Delivered(named.record))
            elif len(told := texts(_record_id(result))) == 1:
                nameless.add(told[0])
        return len(nameless)

    def _named_by(self, result: dict[str, Any]) -> Input | None:
        trace = result.get("objectWriteTraceId")
        if isinstance(trace, str) and trace in self._traces:
            return self._traces[trace]
        told = _record_id(result)
        if self._id_property:
            # Only the property: HubSpot's record id may by chance equal another input's id.
            properties = result.get("properties")
            told = properties.get(self._id_property) if isinstance(properties, dict) else None
        named = texts(told)
        return self._of(named[0]) if len(named) == 1 else None

    def _of(self, told: str) -> Input | None:
        return self._ids.get(told) or self._folded.get(_fold(told))


def _record_id(result: dict[str, Any]) -> Any:
    """HubSpot's id of the record, which its properties repeat."""
    properties = result.get("properties")
    return result.get("id") or (properties.get("hs_object_id") if isinstance(properties, dict) else None)


def _judge_error(record: PendingRecord, complaint: Complaint, about: Collection[str], criteria: Criteria) -> Outcome:
    """What an error about these properties of this one input comes to."""
    reason = complaint.reason
    match complaint.category:
        case "OBJECT_NOT_FOUND":
            match criteria.on_unknown(record):
                case "park":
                    return Parked(record, reason)
                case "wait":
                    return criteria.policy.await_creation(record, reason, now_us=criteria.now_us)
                case "ignore":
                    return Ignored(record)
        case _ if _is_transient(complaint):
            return criteria.policy.failed(record, reason, now_us=criteria.now_us)
        case "VALIDATION_ERROR" if about:
            return Refused(record, {name: complaint.reason_for(name) for name in sorted(about)})
        case _:
            return Parked(record, reason)


def _is_transient(complaint: Complaint) -> bool:
    """Whether this error may pass by itself; one without a category may be anything."""
    return not complaint.category or complaint.category in TRANSIENT_CATEGORIES


def _all_transient(complaints: Sequence[Complaint]) -> Locked | Broken:
    """Every input of a call has an error that will pass. Nobody can say whose fault that is, as with a 423 or a 503."""
    reason = complaints[0].reason
    if all(complaint.category in _LOCKED_CATEGORIES for complaint in complaints):
        return Locked(reason)
    return Broken(Stop(Scope.ALL, OUTAGE, f"{reason.category}: {reason.message}"[:300]), reason)


def _outage(detail: str) -> Broken:
    return Broken(Stop(Scope.ALL, OUTAGE, detail), Reason("UNREADABLE", detail))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _index(pairs: Iterable[tuple[str, Input]]) -> dict[str, Input | None]:
    found: dict[str, Input | None] = {}
    for key, one in pairs:
        found[key] = None if key in found else one
    return found


def _fold(told: str) -> str:
    """HubSpot normalises values such as e-mail addresses."""
    return told.strip().casefold()


# --- the call as a whole ---

#: Seconds that `Retry-After` may ask for at most on a 429; an absurd value must not stop us for a year.
LONGEST_RETRY_AFTER_S = 3600.0

#: The same on 477 (account migrating between data centres), where HubSpot speaks of up to 24 h.
LONGEST_MIGRATION_S = 86_400.0

#: Seconds that a pause lasts at least where the CRM says how long: shorter ones would be a storm of calls.
_SHORTEST_S = 0.5

#: Statuses after which the call may still be applied: a proxy gave up waiting for HubSpot.
DOUBTFUL_STATUSES = frozenset({502, 504, 520, 522, 524})


def doubtful(answer: Answer | NoAnswer) -> bool:
    """Whether the CRM may still apply a call that ended so."""
    match answer:
        case NoAnswer():
            return answer.doubtful
        case Answer(status=status, body=body) if 200 <= status < 300:
            return not isinstance(body, dict) or is_unfinished(body)
        case Answer(status=status):
            return status in DOUBTFUL_STATUSES


def judge(inputs: Sequence[Input], answer: Answer | NoAnswer, criteria: Criteria) -> Meaning:
    """What this answer to a call with these inputs means."""
    match answer:
        case NoAnswer(kind="token"):
            return Stopped(Stop(Scope.ALL, UNAUTHORIZED, answer.detail, credential=answer.credential))
        case NoAnswer(kind="oversize", body=dict() as beginning):
            return _unread(inputs, answer, beginning, criteria)
        case NoAnswer():
            stop = Stop(Scope.ALL, OUTAGE, f"{answer.kind}: {answer.detail}")
            reason = Reason("NO_ANSWER", f"no answer from the CRM ({answer.kind})")
            # Records that were never sent cannot be to blame.
            return Broken(stop, reason) if answer.doubtful or answer.kind == "internal" else Stopped(stop)
        case Answer(status=status) if 200 <= status < 300:
            return judge_inputs(inputs, answer.body, criteria)
        case Answer(status=400 | 422 as status):
            return Rejected(read_complaint(answer.body, fallback=f"HTTP {status}: {_excerpt(answer)}"))
        case Answer(status=408 | 409 | 423 | 425):
            return Locked(_reason(answer))
        case Answer(status=413 | 414):
            return TooLarge(_reason(answer))
        case Answer():
            return _trouble(answer, criteria)


def _unread(inputs: Sequence[Input], answer: NoAnswer, beginning: dict[str, Any], criteria: Criteria) -> Meaning:
    """An answer that is too large to be read is no outage: the call goes again in halves. The answer to a single record
    is believed as far as it was read: a result that names it, or one in a complete answer without errors (200), which
    can be nobody else's. If the part that was read does not mention the record, it is sent again later.
    """
    reason = Reason("ANSWER_TOO_LARGE", f"the CRM's answer was too large to be read ({answer.detail})")
    if len(inputs) > 1:
        return TooLarge(reason)
    if answer.status != 400:
        status = beginning.get("status") if answer.status == 200 else None
        meaning = judge_inputs(inputs, {**beginning, "status": "PROCESSING" if status is None else status}, criteria)
        if isinstance(meaning, Judged) and meaning.outcomes:
            return meaning
    return Locked(reason, own=True)


def retry_after_s(answer: Answer, *, now_us: int, at_most_s: float) -> float | None:
    """What `Retry-After` asks for, capped; None when it is missing, negative or unreadable."""
    told = answer.headers.get("retry-after", "").strip()
    try:
        seconds = float(told) if _is_number(told.replace(".", "", 1)) else _until(told, now_us)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(seconds, at_most_s) if seconds >= 0 else None


def _asked_s(answer: Answer, *, now_us: int, at_most_s: float) -> float | None:
    """How long to pause as `Retry-After` asks; None when it does not."""
    seconds = retry_after_s(answer, now_us=now_us, at_most_s=at_most_s)
    return None if seconds is None else max(seconds, _SHORTEST_S)


def _until(told: str, now_us: int) -> float:
    date = parsedate_to_datetime(told)
    date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return date.timestamp() - now_us / 1_000_000


def _trouble(answer: Answer, criteria: Criteria) -> Meaning:
    reason = _reason(answer)
    detail = reason.message[:300]
    match answer.status:
        case 401 if answer.renewable:
            return Again(reason)
        case 401:
            return Stopped(Stop(Scope.ALL, UNAUTHORIZED, detail, credential=answer.credential))
        case 403:
            return Broken(Stop(Scope.OBJECT_TYPE, "forbidden", detail), reason)
        case 429:
            return Stopped(_rate_limited(answer, criteria.now_us, detail))
        case 477:
            delay = _asked_s(answer, now_us=criteria.now_us, at_most_s=LONGEST_MIGRATION_S)
            return Stopped(Stop(Scope.ALL, "migrating", detail, delay_s=delay))
        case status if 300 <= status < 500:
            return Broken(Stop(Scope.OBJECT_TYPE, MISCONFIGURED, detail), reason)
        case _:
            return Broken(Stop(Scope.ALL, OUTAGE, detail), reason)


def _rate_limited(answer: Answer, now_us: int, detail: str) -> Stop:
    body = answer.body if isinstance(answer.body, dict) else {}
    policy = (text(body.get("policyName")) or sentences.limit(text(body.get("message")))).upper()
    daily = "DAILY" in policy
    delay = _asked_s(answer, now_us=now_us, at_most_s=LONGEST_RETRY_AFTER_S)
    if delay is None and not daily:
        secondly = "SECONDLY" in policy and "TEN_SECONDLY" not in policy
        delay = 1.0 if secondly else _window_s(answer)
    # A daily quota comes back at midnight of the portal. We do not know its time zone, so probes ask.
    return Stop(Scope.ALL, DAILY_LIMIT if daily else "rate_limited", detail, delay_s=delay, probes=daily)


def _window_s(answer: Answer) -> float:
    """The rolling window that the CRM names, else HubSpot's 10 s."""
    told = answer.headers.get("x-hubspot-ratelimit-interval-milliseconds", "")
    return min(max(int(told) / 1000, 1.0), 60.0) if _is_number(told) and len(told) < 10 else 10.0


def _reason(answer: Answer) -> Reason:
    complaint = read_complaint(answer.body, fallback=_excerpt(answer))
    category = complaint.category or f"HTTP_{answer.status}"
    return Reason(category, f"HTTP {answer.status}: {complaint.words}"[:500])


def _excerpt(answer: Answer) -> str:
    """The beginning of the body, for people."""
    return (printable(answer.excerpt) if answer.body is None else shown(answer.body)) or "no explanation"


def _is_number(told: str) -> bool:
    return told.isascii() and told.isdigit()
