"""What mapped events become in a batch/update call: each record once, its newest values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bridge.model import Event, RecordKey


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
    """The inputs of these events, had they arrived alone and in this order.

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
