"""What a payload would become, told without taking it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bridge.intake.identity import KnownIds
from bridge.intake.inputs import inputs_of
from bridge.intake.mapping import Mapped
from bridge.intake.values import Gap
from bridge.model import Intake


def report(mapped: Mapped, hints: Sequence[str] = ()) -> dict[str, Any]:
    """What `map` prints and the console shows: the inputs as HubSpot takes them, everything that becomes none, and the
    `hints` of its source, see `CompiledSource.hints`.

    `left_out` lists {"index": of the event, "absent": {property: expression that found nothing}, "null": {property:
    expression that found null or a blank}}, of the two what there is; only of what was mapped with `explain`.
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
