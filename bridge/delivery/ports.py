"""What delivery needs of others: the journal, the CRM, and an observer."""

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
        """Due records (due_at ≤ now, not parked): for every (lane, source) the `limit` oldest by due time, without the
        refs in `exclude`. Cheap (index reads).
        """
        ...

    def take(
        self, refs: Sequence[int], *, began_at_us: int, max_bytes: int, only: Collection[str] | None = None
    ) -> Taken:
        """The records with their pending values, of `only` these properties, marked as being in a call that begins now
        (doubt). A record that has nothing pending is left out (and the journal takes it out of due).

        As many as fit into a body of `max_bytes`, in this order; of the first only some values, if it is too large by
        itself. With `only` there is no such limit: some properties of a record that was in a call fit into one.
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
        """One transaction. Exactly the (record, property, n) in an outcome's `record.values` are settled: these were
        sent, and may be fewer than are pending. A record that still has something pending stays due.

        A record may be in several outcomes (some properties refused, the others delivered), and an outcome may be about
        a record of an earlier call that was not judged until now. Records of `taken` that are in no outcome stay due.
        `call` is None when what was taken was not sent after all. `doubtful`: the call ended without the CRM's answer
        and may still be applied, so the records of `taken` stay marked as in doubt; any other end clears the mark.
        """
        ...

    def save_pauses(self, pauses: Sequence[Pause]) -> None:
        """Replace every stored pause except those of reason `operator`, which only people write."""
        ...

    def load_pauses(self) -> Sequence[Pause]:
        """All stored pauses, those of reason `operator` included."""
        ...

    def clock_was_set(self, by_us: int) -> None:
        """The wall clock was set by so much: doubts are to stay as old as before."""
        ...

    def note_reading(self, at_us: int) -> None:
        """The CRM is asked for definitions now, which counts in the rate limit of whoever takes over."""
        ...

    def calls_since(self, since_us: int) -> int:
        """How many calls began at this time or later."""
        ...


class CrmClient(Protocol):
    """The CRM. Called from several threads at once."""

    def update(self, lane: Lane, inputs: Sequence[Input]) -> Answer | NoAnswer:
        """One `batch/update` call within the total deadline. Does not raise, whatever the CRM does."""
        ...

    def prepare(self) -> None:
        """Do what may take a while before a call can be sent (renew a token). Does not raise."""
        ...

    def credential(self) -> str:
        """A fingerprint of the configured token, which shows that it changed ("" when there is none)."""
        ...

    def close(self) -> None:
        """Cut every open call; later ones end at once."""
        ...


@dataclass(frozen=True, slots=True)
class CallSummary:
    """The result of one call, for metrics and the log: ids and counts, never values."""

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
    """Watches delivery (metrics). Called from several threads; must neither block nor raise."""

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
