"""What a payload would become, told without taking it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bridge.intake.identity import KnownIds
from bridge.intake.inputs import inputs_of
from bridge.intake.mapping import Mapped
from bridge.model import Intake


def report(mapped: Mapped, hints: Sequence[str] = ()) -> dict[str, Any]:
    """What `map` prints and the console shows: the inputs as HubSpot takes them, everything that becomes none, and the
    `hints` of its source, see `CompiledSource.hints`.
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
