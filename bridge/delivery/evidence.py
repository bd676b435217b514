"""Judges the inputs of a 2xx one by one: no record is delivered without evidence for that very record.

Errors are matched by trace id, then by id; results by trace id, by id, by the id property's value. An error
that covers several inputs refuses of each only what it may mean of that one. If as many results as inputs are
left over, HubSpot wrote them under ids that we do not know. What the answer is silent about was, as far as
anyone can tell, not written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.delivery.calls import Input
from bridge.delivery.complaints import Complaint, read_complaint, shown, texts
from bridge.delivery.meanings import Broken, Judged, Meaning, Rejected, Rules
from bridge.delivery.pauses import OUTAGE, Stop
from bridge.model import Delivered, Ignored, Outcome, Parked, PendingRecord, Reason, Refused, Scope

#: Per-input categories that may pass by themselves.
TRANSIENT_CATEGORIES = frozenset(
    {
        "RATE_LIMIT", "RATE_LIMITS", "INTERNAL_ERROR", "SERVER_ERROR", "SERVICE_UNAVAILABLE", "TIMEOUT",
        "GATEWAY_TIMEOUT", "LOCKED", "OBJECT_LOCKED", "TRANSIENT", "TEMPORARILY_UNAVAILABLE", "MIGRATION",
    }
)  # fmt: skip

#: Values of a batch answer's `status` beside COMPLETE; HubSpot's prose spells the last one with two L.
_UNFINISHED = frozenset({"PENDING", "PROCESSING", "CANCELED", "CANCELLED"})

#: Seconds that the rest of an unfinished call waits at least.
_UNFINISHED_S = 2.0


def is_unfinished(body: dict[str, Any]) -> bool:
    """Whether HubSpot had not finished the call when it answered: only what it confirms counts."""
    told = body.get("status")
    return isinstance(told, str) and told.upper() in _UNFINISHED


def judge_inputs(inputs: Sequence[Input], body: Any, rules: Rules) -> Meaning:
    """What a 2xx with this body means."""
    if not isinstance(body, dict):
        return _outage("an answer that is no JSON object")
    sheet = _Sheet(inputs)
    errors, results = _list(body.get("errors")), _list(body.get("results"))
    vague = [complaint for entry in errors if (complaint := sheet.note_error(entry, rules)) is not None]
    if vague and len(inputs) == 1 and sheet.left:
        sheet.refuse(inputs[0], vague[0], rules)
    if sheet.misaddressed is not None and not results:
        return Rejected(sheet.misaddressed)  # told of every input, but not the records' fault
    if sheet.unexplained and len(inputs) == 1:
        return Rejected(sheet.unexplained[0][1])  # the one input is the whole call
    nameless = sheet.note_results(results)
    unfinished = is_unfinished(body)
    if nameless == len(sheet.left) and not vague and not unfinished:
        for one in list(sheet.left.values()):
            sheet.close(one, Delivered(one.record))
    silent = tuple(one.record for one in sheet.left.values())
    unexplained = tuple(sheet.unexplained)
    speaks = sheet.named or any(one.category and one.category not in TRANSIENT_CATEGORIES for one in vague)
    if not sheet.outcomes and not unexplained and not speaks and (len(inputs) > 1 or unfinished):
        return _outage("an answer that confirms nothing")
    if unfinished:
        reason = Reason("UNFINISHED", "HubSpot had not finished the call when it answered")
        later = (rules.policy.later(one, reason, at_least_s=_UNFINISHED_S) for one in silent)
        return Judged((*sheet.outcomes, *later), (), unexplained, sheet.retire)
    return Judged(tuple(sheet.outcomes), silent, unexplained, sheet.retire)


@dataclass(slots=True)
class _Sheet:
    """The inputs of a call: those `left` are not judged yet. The rest as in `Judged`."""

    inputs: Sequence[Input]
    left: dict[str, Input] = field(init=False)  # by trace id
    outcomes: list[Outcome] = field(default_factory=list)
    unexplained: list[tuple[Input, Complaint]] = field(default_factory=list)
    retire: dict[str, Reason] = field(default_factory=dict)
    named: bool = False  # an error named some of the inputs
    misaddressed: Complaint | None = None  # it blames the property by which the inputs are addressed
    _traces: dict[str, Input] = field(init=False)
    _ids: dict[str, Input | None] = field(init=False)
    _folded: dict[str, Input | None] = field(init=False)  # None: several inputs

    def __post_init__(self) -> None:
        self._traces = {one.trace_id: one for one in self.inputs}
        self.left = dict(self._traces)
        self._ids = _index((one.record.key.id, one) for one in self.inputs)
        self._folded = _index((_fold(one.record.key.id), one) for one in self.inputs)

    def close(self, one: Input, outcome: Outcome) -> None:
        """Judge an input, the first time that the answer speaks of it."""
        if self.left.pop(one.trace_id, None) is not None:
            self.outcomes.append(outcome)

    def refuse(self, one: Input, complaint: Complaint, rules: Rules, *, shared: bool = False) -> None:
        """Judge an input that the answer complains about; `shared`: and about others in the same words. What
        these cannot mean of this one stays to be asked about it alone.
        """
        about = complaint.about(one.record, shared=shared)
        if complaint.category == "VALIDATION_ERROR":
            id_property = one.record.key.lane.id_property
            if complaint.blames_id_property(id_property) and id_property not in one.record.values:
                self.misaddressed = complaint
            if not about and complaint.about(one.record):
                return
            if not complaint.properties:
                if self.left.pop(one.trace_id, None) is not None:
                    self.unexplained.append((one, complaint))
                return
        names = complaint.definitions & one.record.values.keys()
        self.retire.update((name, complaint.reason_for(name)) for name in names)
        self.close(one, _judge_error(one.record, complaint, about, rules))

    def note_error(self, entry: Any, rules: Rules) -> Complaint | None:
        """Judge the inputs that this entry of `errors[]` is about; the complaint if it names none."""
        complaint = read_complaint(entry, fallback=f"HubSpot refused it: {shown(entry)}")
        about = [self._traces[trace] for trace in sorted(complaint.trace_ids) if trace in self._traces]
        if not about:
            about = [one for told in sorted(complaint.ids) if (one := self._of(told)) is not None]
        self.named = self.named or bool(about)
        for one in about:
            self.refuse(one, complaint, rules, shared=len(about) > 1)
        return None if about else complaint

    def note_results(self, results: Sequence[Any]) -> int:
        """Confirm the inputs that `results` name; returns how many records it names that are none."""
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
        if id_property := self.inputs[0].record.key.lane.id_property:
            # Only the property: HubSpot's record id may by chance equal another input's id.
            properties = result.get("properties")
            told = properties.get(id_property) if isinstance(properties, dict) else None
        named = texts(told)
        return self._of(named[0]) if len(named) == 1 else None

    def _of(self, told: str) -> Input | None:
        return self._ids.get(told) or self._folded.get(_fold(told))


def _record_id(result: dict[str, Any]) -> Any:
    """HubSpot's id of the record, which its properties repeat."""
    properties = result.get("properties")
    return result.get("id") or (properties.get("hs_object_id") if isinstance(properties, dict) else None)


def _judge_error(record: PendingRecord, complaint: Complaint, about: Collection[str], rules: Rules) -> Outcome:
    """What an error about these properties of this one input comes to."""
    reason = complaint.reason
    match complaint.category:
        case "OBJECT_NOT_FOUND":
            match rules.on_unknown(record):
                case "park":
                    return Parked(record, reason)
                case "wait":
                    return rules.policy.await_creation(record, reason, now_us=rules.now_us)
                case "ignore":
                    return Ignored(record)
        case category if category in TRANSIENT_CATEGORIES or not category:
            return rules.policy.failed(record, reason, now_us=rules.now_us)
        case "VALIDATION_ERROR" if about:
            return Refused(record, {name: complaint.reason_for(name) for name in sorted(about)})
        case _:
            return Parked(record, reason)


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
