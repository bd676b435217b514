"""Events told apart by their ids without a journal, by the rule by which the journal does it: for dry runs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from bridge.model import Event, Intake, Receipt, other_id, same_content

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
