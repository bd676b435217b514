"""The day's calls: counted by us, bounded by HubSpot's word, and what happens when they are spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from bridge.crm.transport import Answer, Input, NoAnswer
from bridge.delivery.dispatcher import Dispatcher
from bridge.delivery.limiter import DAY_US, SPENT, DailyBudget
from bridge.model import Lane
from bridge.settings import Crm, RateLimit, Retry
from tests.fakes_delivery import FakeClock, FakeCrm, FakeJournal, FakeObserver, InlinePool, Script, ok

NOON_US = 20_000 * DAY_US + DAY_US // 2
MIDNIGHT_US = 20_001 * DAY_US


def told(left: int, of: int = 650_000) -> Answer:
    headers = {"x-hubspot-ratelimit-daily": str(of), "x-hubspot-ratelimit-daily-remaining": str(left)}
    return Answer(200, headers=headers)


def spend(budget: DailyBudget, answer: Answer | NoAnswer, *, at_us: int = NOON_US, refused: bool = False) -> None:
    budget.started(at_us)
    budget.answered(answer, refused=refused)
    budget.closed(sent=True)


def test_without_a_budget_and_without_headers_nobody_knows() -> None:
    budget = DailyBudget(None)
    spend(budget, Answer(200))
    assert budget.left(NOON_US) is None
    assert budget.stop(NOON_US) is None


def test_our_own_count_begins_with_what_was_used_before_the_restart() -> None:
    budget = DailyBudget(10)
    budget.begin(7, NOON_US)
    assert budget.left(NOON_US) == 3


def test_a_spent_budget_waits_for_midnight_utc_without_a_call() -> None:
    budget = DailyBudget(2)
    spend(budget, Answer(200))
    assert budget.stop(NOON_US) is None
    spend(budget, NoAnswer("timeout", doubtful=True, detail=""))
    stop = budget.stop(NOON_US)
    assert stop is not None
    assert (stop.reason, stop.detail, stop.probes, stop.delay_s) == ("daily_limit", SPENT, False, 43_200)
    assert budget.stop(MIDNIGHT_US) is None
    assert budget.left(MIDNIGHT_US) == 2


def test_a_call_that_was_not_sent_costs_nothing() -> None:
    budget = DailyBudget(1)
    budget.started(NOON_US)
    assert budget.left(NOON_US) == 0
    assert budget.stop(NOON_US) is None  # it may come back
    budget.closed(sent=False)
    assert budget.left(NOON_US) == 1


def test_hubspots_word_bounds_our_count_and_does_not_widen_it() -> None:
    """Other apps use the portal's quota too; our share of it stays our share."""
    budget = DailyBudget(100)
    spend(budget, told(40))
    assert budget.left(NOON_US) == 40
    spend(budget, told(5_000))
    assert budget.left(NOON_US) == 98


def test_hubspots_word_alone_counts_where_the_budget_is_the_whole_quota() -> None:
    """The portal's day may have begun at another time than ours."""
    budget = DailyBudget(100)
    budget.begin(100, NOON_US)
    budget.answered(told(60, of=100), refused=False)
    assert budget.left(NOON_US) == 60


def test_open_calls_are_taken_off_what_hubspot_said() -> None:
    budget = DailyBudget(None)
    spend(budget, told(2))
    budget.started(NOON_US)
    budget.started(NOON_US)
    assert budget.left(NOON_US) == 0
    assert budget.stop(NOON_US) is None


@pytest.mark.parametrize("refused", [False, True])
def test_what_hubspot_calls_spent_is_asked_again_by_probes(refused: bool) -> None:
    """F16: the portal's time zone is not known."""
    budget = DailyBudget(None)
    spend(budget, Answer(429) if refused else told(0), refused=refused)
    stop = budget.stop(NOON_US)
    assert stop is not None
    assert (stop.reason, stop.probes, stop.delay_s) == ("daily_limit", True, None)
    spend(budget, Answer(200))  # the probe went through, and says nothing of the quota
    assert budget.stop(NOON_US) is None


@pytest.mark.parametrize("header", ["", "-1", "many", "1e3", "9" * 40])
def test_an_unreadable_header_says_nothing(header: str) -> None:
    budget = DailyBudget(None)
    budget.answered(Answer(200, headers={"x-hubspot-ratelimit-daily-remaining": header}), refused=False)
    assert budget.left(NOON_US) is None


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_jumps_a_day_stops_nothing(days: int) -> None:
    """F31."""
    budget = DailyBudget(1)
    spend(budget, Answer(200))
    assert budget.stop(NOON_US + days * DAY_US) is None


# --- in the dispatcher --------------------------------------------------------------------------


class House:
    """A dispatcher with a daily budget at noon UTC, stepped by hand."""

    def __init__(self, daily: int | None, script: Script | None = None, *, journal: FakeJournal | None = None) -> None:
        self.clock = FakeClock(epoch=NOON_US / 1e6 - 1_000.0) if journal is None else journal.clock
        self.journal = journal or FakeJournal(self.clock)
        self.crm = FakeCrm(script)
        self.dispatcher = Dispatcher(
            journal=self.journal,
            crm=self.crm,
            settings=Crm(batch_size=10, rate_limit=RateLimit(calls=1_000, per_s=1e-12, daily=daily)),
            retry=Retry(base_s=2.0, max_s=600.0),
            on_unknown=lambda _: "park",
            clock=self.clock,
            observer=FakeObserver(),
            pool=InlinePool(),
        )
        self.dispatcher.restore_pauses()

    def put(self, *refs: int) -> None:
        for ref in refs:
            self.journal.put(ref, {"name": f"Client {ref}"})

    def run(self, seconds: float, step_s: float = 0.05) -> None:
        for _ in range(round(seconds / step_s)):
            self.clock.pass_(step_s)
            self.dispatcher.run_once()

    @property
    def reasons(self) -> list[str]:
        return [pause.reason for pause in self.dispatcher.pauses]


def test_delivery_stops_exactly_at_the_budget_and_goes_on_at_midnight() -> None:
    house = House(3)
    house.put(*range(50))
    house.run(43_200 - 10, step_s=10.0)
    assert house.crm.sizes == [10, 10, 10]
    assert house.dispatcher.daily_calls_left == 0
    assert house.reasons == ["daily_limit"]
    assert [pause.detail for pause in house.journal.stored_pauses] == [SPENT]
    house.run(20)
    assert house.journal.states() == {"delivered": 50}
    assert house.reasons == []
    assert house.journal.stored_pauses == []
    assert house.dispatcher.daily_calls_left == 1


def test_a_restart_neither_forgets_the_days_calls_nor_a_raised_budget() -> None:
    house = House(3)
    house.put(*range(50))
    house.run(5)
    again = House(3, journal=house.journal)
    again.run(60)
    assert again.crm.calls == []
    assert again.reasons == ["daily_limit"]
    raised = House(4, journal=house.journal)
    raised.run(5)
    assert raised.crm.sizes == [10]
    assert raised.reasons == ["daily_limit"]
    unlimited = House(None, journal=house.journal)
    unlimited.run(5)
    assert unlimited.journal.states() == {"delivered": 50}
    assert unlimited.journal.stored_pauses == []


def test_the_portals_own_midnight_ends_a_pause_that_hubspot_ordered() -> None:
    """F16: growing intervals, so that few calls are spent and delivery goes on soon after."""
    house = House(None, lambda _, __: Answer(429, {"policyName": "DAILY"}))
    house.put(*range(50))
    house.run(6 * 3_600, step_s=10.0)
    assert house.reasons == ["daily_limit"]
    assert house.dispatcher.daily_calls_left == 0
    assert 6 * 6 <= len(house.crm.calls) <= 200  # at most every 10 minutes
    assert house.journal.states() == {"due": 50}
    house.crm.script = lambda _, sent: replace(ok(sent), headers=told(600_000).headers)
    house.run(605, step_s=0.5)
    assert house.journal.states() == {"delivered": 50}
    assert house.reasons == []
    assert house.dispatcher.daily_calls_left == 600_000


def test_hubspots_last_call_is_followed_by_a_probe_and_not_by_a_batch() -> None:
    def script(_: Lane, sent: Sequence[Input]) -> Answer:
        return replace(ok(sent), headers=told(max(0, 2 - len(house.crm.calls))).headers)

    house = House(None, script)
    house.put(*range(50))
    house.run(1)
    assert house.crm.sizes == [10, 10]
    assert house.reasons == ["daily_limit"]


def test_calls_that_never_reach_the_crm_do_not_use_the_budget_up() -> None:
    house = House(50, lambda _, __: NoAnswer("connect", doubtful=False, detail="refused"))
    house.put(*range(20))
    house.run(1_000, step_s=0.5)
    assert house.dispatcher.daily_calls_left == 50
    house.crm.script = lambda _, sent: ok(sent)
    house.run(1_300)  # the longest pauses are ten minutes
    assert house.journal.states() == {"delivered": 20}


def test_a_call_whose_token_was_renewed_is_made_again_at_once() -> None:
    """401 with OAuth: no pause, no record's patience, nothing parked."""
    answers = [Answer(401, {"category": "EXPIRED_AUTHENTICATION"}, renewable=True)]
    house = House(None, lambda _, sent: answers.pop() if answers else ok(sent))
    house.put(*range(10))
    house.run(1)
    assert house.crm.sizes == [10, 10]
    assert house.journal.states() == {"delivered": 10}
    assert house.journal.calls[0].error is not None
    assert house.journal.rows[1].attempts == 0
