"""What delivery asks of others: the journal, the CRM, whoever watches. And the values that pass between."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from bridge.crm.transport import Answer, Input, NoAnswer
from bridge.model import Call, Due, Lane, Outcome, Pause, PendingRecord, Taken

OnUnknown = Literal["park", "wait", "ignore"]


class DueJournal(Protocol):
    """The journal as delivery sees it. Called from several threads at once.

    Any method may raise `JournalUnavailableError`; then nothing of it happened.
    """

    def due(self, *, limit: int, exclude: Collection[int]) -> Sequence[Due]:
        """Due records (due_at ≤ now, not parked): for every (lane, source) its `limit` oldest by due
        time, leaving out the refs in `exclude`. Cheap (index reads).
        """
        ...

    def take(
        self, refs: Sequence[int], *, began_at_us: int, max_bytes: int, only: Collection[str] | None = None
    ) -> Taken:
        """The records with their pending values, of `only` these properties, marked as being in a call that begins now
        (doubt). A record that has nothing pending is left out (and the journal takes it out of due).

        As many as fit into a body of `max_bytes`, in this order; of the first some values, if it is too large by
        itself. With `only` there is no cut: of a record that was in a call, a few properties fit into one.
        """
        ...

    def settle(
        self,
        taken: Sequence[PendingRecord],
        outcomes: Sequence[Outcome],
        *,
        call: Call | None,
        doubtful: bool,
    ) -> None:
        """One transaction. Exactly the (record, property, n) in an outcome's `record.values` are
        settled: these are what was sent, which may be fewer than are pending; a record that still has
        something pending stays due.

        A record may be in several outcomes (some properties refused, the others delivered), and an
        outcome may judge a record of an earlier call whose verdict was held back until now. Records
        of `taken` that are in no outcome stay due. `call` is None when what was taken was not sent
        after all. `doubtful`: the call ended without the CRM's answer and may still be applied, so
        the records of `taken` keep their doubt mark; any other end clears it.
        """
        ...

    def save_pauses(self, pauses: Sequence[Pause]) -> None:
        """Replaces every stored pause except those of reason `operator`, which only people write."""
        ...

    def load_pauses(self) -> Sequence[Pause]:
        """All stored pauses, those of reason `operator` included."""
        ...

    def clock_was_set(self, by_us: int) -> None:
        """The wall clock was set by so much: doubts are as old as before."""
        ...

    def note_reading(self, at_us: int) -> None:
        """The CRM is asked for something now: whoever takes over counts it in."""
        ...

    def calls_since(self, since_us: int) -> int:
        """How many calls began at this time or later."""
        ...


class CrmClient(Protocol):
    """The CRM. Called from several threads at once."""

    def update(self, lane: Lane, inputs: Sequence[Input]) -> Answer | NoAnswer:
        """One `batch/update` call within the total deadline. Does not raise for what the CRM does."""
        ...

    def prepare(self) -> None:
        """Do what may take a while before a call can be sent (renew a token). Does not raise."""
        ...

    def credential(self) -> str:
        """A fingerprint of the configured token, to notice that it changed ("" when there is none)."""
        ...

    def close(self) -> None:
        """Cut every open call; no call can be made after."""
        ...


@dataclass(frozen=True, slots=True)
class CallSummary:
    """What one call came to, for metrics and the log: ids and counts, never values."""

    lane: Lane
    code: str  # HTTP status, or the kind of `NoAnswer`
    duration_s: float
    records: int
    delivered: int
    refused: int
    retried: int
    parked: int
    ignored: int
    correlation_id: str | None
    error: str | None  # a bounded word
    step: str  # why this call was made: fresh, probe, suspect, isolation
    sources: tuple[str, ...] = ()  # whose events the records had


class Observer(Protocol):
    """Who watches delivery (metrics). Called from several threads; must neither block nor raise."""

    def called(self, call: CallSummary) -> None:
        """A call ended and was settled."""
        ...

    def waited(self, seconds: float) -> None:
        """Work was ready and the rate limit held it back for so long."""
        ...

    def paused(self, pauses: Sequence[Pause]) -> None:
        """The pauses changed; these hold now."""
        ...

    def stumbled(self, error: str) -> None:
        """The loop or a call ended in an unexpected error (class name), or the journal was unavailable."""
        ...
