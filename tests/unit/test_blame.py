"""Whose fault it is that a call came to nothing, where hardly anything else is sent (G5, G7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from bridge.crm.transport import Answer, Input
from bridge.delivery.answers import Judged
from bridge.delivery.cases import Moment, Retrial, Sent, Successes
from bridge.delivery.pauses import Backoff, RetryPolicy
from bridge.model import Lane, Scope
from tests.fakes_delivery import CLIENTS, inputs, ok, record
from tests.unit.test_dispatcher_laws import Rig

OTHERS = Lane("other_type", "id")
Script = Callable[[Lane, Sequence[Input]], Answer]


def delivered(script: Script, refs: Sequence[int], *, hours: float, others: bool = False) -> Rig:
    """What became of these records; `others`: of another object type there is always something new."""
    rig = Rig([], 1)
    rig.crm.script = script
    policy = rig.dispatcher._state.policy
    object.__setattr__(policy, "give_up_after_s", 600.0)
    for ref in refs:
        rig.journal.put(ref, {"name": "A"}, lane=CLIENTS)
    for step in range(round(hours * 3_600)):
        if others:
            rig.journal.put(1_000 + step % 4, {"name": str(step)}, lane=OTHERS)
        rig.step(1.0)
    return rig


def attempts(rig: Rig, refs: Sequence[int]) -> list[tuple[int, bool]]:
    return [(rig.journal.rows[ref].attempts, rig.journal.rows[ref].parked is not None) for ref in refs]


@pytest.mark.parametrize("first, then, reason", [(500, 403, "forbidden"), (423, 404, "misconfigured")])
def test_what_concerns_a_type_is_not_blamed_on_a_record_that_failed_for_another_reason(
    first: int, then: int, reason: str
) -> None:
    calls = 0

    def script(lane: Lane, sent: Sequence[Input]) -> Answer:
        nonlocal calls
        if lane == OTHERS:
            return ok(sent)
        calls += 1
        return Answer(first if calls == 1 else then, {"message": "x"})

    rig = delivered(script, [1, 2, 3], hours=0.5, others=True)
    assert attempts(rig, [1, 2, 3]) == [(0, False)] * 3
    assert {pause.reason for pause in rig.dispatcher.pauses} == {reason}


@pytest.mark.parametrize("status", [409, 423])
def test_one_locked_record_holds_up_none_of_its_call_although_nothing_else_is_sent(status: int) -> None:
    def script(_lane: Lane, sent: Sequence[Input]) -> Answer:
        return Answer(status, {"message": "locked"}) if any(one.record.ref == 1 for one in sent) else ok(sent)

    rig = delivered(script, [1, 2, 3], hours=0.1)
    assert {ref for ref, row in rig.journal.rows.items() if row.pending} == {1}


@pytest.mark.parametrize("status", [408, 409, 423, 425])
def test_a_lock_on_everything_is_not_blamed_on_the_only_record(status: int) -> None:
    rig = delivered(lambda _lane, _sent: Answer(status, {"message": "locked"}), [1], hours=0.5)
    assert attempts(rig, [1]) == [(0, False)]


def test_silence_about_the_one_that_was_asked_for_a_locked_group_is_its_own() -> None:
    """It goes on alone, and takes none of the others with it."""
    successes = Successes()
    asked = record(2)
    policy = RetryPolicy(Backoff(base_s=0.5, max_s=4.0), 600.0)
    since = successes.since_now(CLIENTS, Scope.ALL)
    retrial = Retrial(CLIENTS, (2, 3, 1), policy, since, asks_one=True)
    successes.note(OTHERS)
    sent = Sent(inputs(asked), (2,), Moment(0.0, 0))
    decision = retrial.accepted(sent, Judged((), silent=(asked,)))
    assert decision.put_off is None
    assert decision.free == (2,)
    assert retrial.refs == (3, 1)
