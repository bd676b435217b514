"""What a payload would become, without a journal; and the check of a source's `examples:`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bridge.errors import PayloadError
from bridge.intake.mapping import CompiledSource, Mapped
from bridge.intake.values import Gap
from bridge.model import Event, Intake, Receipt, RecordKey, other_id, same_content
from bridge.settings import Example

# --- events told apart by their ids without a journal, by the rule by which the journal does it: for dry runs ---

#: Ids of one source that are remembered.
_REMEMBERED = 10_000


class KnownIds:
    """The events that came before. Not thread-safe."""

    def __init__(self) -> None:
        self._hashes: OrderedDict[str, str] = OrderedDict()

    def receipt(self, event: Event) -> Receipt:
        """What the journal would take this event as."""
        own = event.id
        for one in (event, replace(event, id=other_id(event))):
            before = self._hashes.get(one.id)
            if before is None:
                self._hashes[one.id] = one.content_hash
                if len(self._hashes) > _REMEMBERED:
                    self._hashes.popitem(last=False)
                return Receipt(one.id, one.intake, conflict=one.id != own)
            if same_content(before, one.content_hash):
                return Receipt(one.id, Intake.DUPLICATE)
        return Receipt(own, Intake.DUPLICATE, conflict=True)


# --- what mapped events become in a batch/update call: each record once, its newest values ---


@dataclass(slots=True)
class Input:
    """One input of a batch/update call."""

    record: RecordKey
    properties: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The input as HubSpot takes it."""
        lane = self.record.lane
        address = {"id": self.record.sent, **({"idProperty": lane.id_property} if lane.id_property else {})}
        return {**address, "properties": self.properties}


def inputs_of(events: Iterable[Event]) -> list[Input]:
    """The inputs that these events would become if they arrived alone and in this order.

    As in the journal, an event with an older time never overwrites a newer value, one without a time
    is the newest at its arrival, and the later of two equal times wins; an invalid value sends nothing.
    """
    newest = 0
    changes: list[tuple[int, Event]] = []
    for event in events:
        at = event.occurred_at_us if event.occurred_at_us is not None else newest
        newest = max(newest, at)
        changes.append((at, event))
    inputs: dict[RecordKey, Input] = {}
    for _, event in sorted(changes, key=lambda change: change[0]):
        for update in event.updates:
            one = inputs.setdefault(update.record, Input(update.record))
            one.record = update.record  # the newest spelling
            one.properties.update(update.properties)
            for name in update.invalid:
                one.properties.pop(name, None)
    return [one for one in inputs.values() if one.properties]


def report(mapped: Mapped, hints: Sequence[str] = ()) -> dict[str, Any]:
    """What `map` prints and the console shows: the inputs as HubSpot takes them, everything that becomes none, and the
    `hints` of its source, see `CompiledSource.hints`.

    `left_out` lists {"index": of the event, "absent": {property: expression that found nothing}, "null": {property:
    expression that found null or a blank}}, either of them only where it holds something, and only for what was mapped
    with `explain`.
    """
    known = KnownIds()
    receipts = [known.receipt(event) for event in mapped.events]
    again = {at for at, receipt in enumerate(receipts) if receipt.intake is Intake.DUPLICATE}
    inputs = inputs_of([event for at, event in enumerate(mapped.events) if at not in again])
    types = sorted({one.record.lane.object_type for one in inputs})
    several = len(types) > 1
    shown = [{**({"objectType": one.record.lane.object_type} if several else {}), **one.as_json()} for one in inputs]
    result: dict[str, Any] = {
        "object_type": types if several else (types[0] if types else None),
        "inputs": [] if mapped.reject else shown,
        "ignored": [event.id for event in mapped.events if event.intake is Intake.IGNORED],
        "parked": [
            {"event": event.id, "reason": event.unmappable or "no property is valid"}
            for event in mapped.events
            if event.unmappable is not None or event.intake is Intake.PARKED
        ],
        "invalid": [{"index": index, "errors": errors} for index, errors in mapped.invalid],
        "left_out": [{"index": index, **_by_outcome(gaps)} for index, gaps in mapped.left_out],
    }
    if again:
        result["duplicates"] = [receipts[at].event_id for at in sorted(again)]
    if any(receipt.conflict for receipt in receipts):
        result["conflicts"] = [receipt.event_id for receipt in receipts if receipt.conflict]
    if mapped.unlisted:
        result["unlisted_names"] = mapped.unlisted
    if hints:
        result["hints"] = list(hints)
    if mapped.reject:
        result["refused"] = {"status": 422, "detail": "on_invalid: reject: nothing of the request is taken"}
    return result


def told(left_out: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """One entry of `left_out` for people: each property, and what was found where."""
    for outcome, what in (("absent", "nothing at"), ("null", "null or blank at")):
        for name, expression in left_out.get(outcome, {}).items():
            yield name, f"{what} {expression}"


def _by_outcome(gaps: Iterable[Gap]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for gap in gaps:
        found.setdefault(gap.outcome, {})[gap.property] = gap.expression or ""
    return found


# --- a source's `examples:`, run by the code that maps webhooks ---


def run_example(compiled: CompiledSource, example: Example) -> list[str]:
    """The differences between what an example expects and what the mapping gives; none is success."""
    try:
        mapped = _mapped(compiled, example)
    except (PayloadError, UnicodeEncodeError) as error:
        return [f"the payload is refused: {error}"]
    if example.ignored:
        return [
            f"event {index} is {event.intake}, expected it to be ignored"
            for index, event in enumerate(mapped.events)
            if event.intake is not Intake.IGNORED
        ]
    if example.invalid is not None:
        return _invalid_differences(example.invalid, mapped)
    differences = [
        f"event {index}: {name} {message}" for index, errors in mapped.invalid for name, message in errors.items()
    ]
    return differences + _input_differences(example.expect or (), mapped)


def hints_of_example(compiled: CompiledSource, example: Example) -> list[str]:
    """What to look at in an example's values, see `CompiledSource.hints`."""
    try:
        return compiled.hints(_mapped(compiled, example))
    except (PayloadError, UnicodeEncodeError):
        return []


def _mapped(compiled: CompiledSource, example: Example) -> Mapped:
    body = compiled.decode(example.body)
    return compiled.map_body(body, headers=example.headers, query=example.query, delivery_id="example")


def _invalid_differences(expected: Mapping[str, str], mapped: Mapped) -> list[str]:
    found = {name: message for _, errors in mapped.invalid for name, message in errors.items()}
    differences = [f"{name} is valid, expected it to be invalid" for name in expected if name not in found]
    differences += [f"{name} {message}" for name, message in found.items() if name not in expected]
    for name, wanted in expected.items():
        if name in found and wanted.strip(" .…") not in found[name]:
            differences.append(f"{name}: {found[name]!r} does not say {wanted!r}")
    return differences


def _input_differences(expected: tuple[Mapping[str, Any], ...], mapped: Mapped) -> list[str]:
    inputs = inputs_of(mapped.events)
    differences = []
    for index, wanted in enumerate(expected):
        if index >= len(inputs):
            differences.append(f"expected an input for {wanted.get('id')!r}, found none")
            continue
        found = inputs[index]
        given = {
            "id": found.record.sent,
            "id_property": found.record.lane.id_property,
            "idProperty": found.record.lane.id_property,
            "object_type": found.record.lane.object_type,
        }
        for key, value in given.items():
            if key in wanted and _text(wanted[key]) != value:
                differences.append(f"input {index}: {key} is {value!r}, expected {_text(wanted[key])!r}")
        properties = wanted.get("properties") or {}
        for name in [*properties, *(name for name in found.properties if name not in properties)]:
            sent = found.properties.get(name)
            hoped = _text(properties[name]) if name in properties else None
            if sent != hoped:
                differences.append(f"input {index}: {name} is {_shown(sent)}, expected {_shown(hoped)}")
    differences += [
        f"input {len(expected) + extra}: {one.record.sent!r} is not expected"
        for extra, one in enumerate(inputs[len(expected) :])
    ]
    return differences


def _shown(text: str | None) -> str:
    return "absent" if text is None else repr(text)


def _text(value: object) -> str:
    """A value of the file as HubSpot's text, so that `active: true` may be written."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
