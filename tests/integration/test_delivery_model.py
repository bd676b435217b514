"""Journal and delivery against a model: whatever happens on the way, every accepted value has a known end.

A state machine of hypothesis drives the real journal (a SQLite file) and the real dispatcher. Events come in any
order, doubled, late, without a time, dated by clocks that are a day off; our own clock is set a day forth or back;
the CRM refuses, does not know, answers 400, 401, 403, 429, 500, nonsense or nothing, applies calls whose answer is
lost, also up to 100 s later; the process dies at any call; people replay, discard, resync, pause, resume, and mend
mappings, also while a call is open. In the end the CRM is well, nothing is paused, time passes, and the CRM's state
must equal the model's (`tests.model_desired`).
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bridge.delivery.dispatcher import Dispatcher
from bridge.delivery.limiter import Limiter
from bridge.delivery.pauses import Backoff
from bridge.delivery.ports import CallSummary, OnUnknown
from bridge.journal.control import ValueFilter
from bridge.journal.event_log import EventFilter, KeptEvent, Remapped
from bridge.journal.replay import Difference
from bridge.journal.retry_log import Filter
from bridge.journal.store import Journal
from bridge.model import Event, Intake, Pause, PendingRecord, PropertyUpdate, Receipt, to_us
from bridge.settings import Crm as CrmSettings
from bridge.settings import Journal as JournalSettings
from bridge.settings import RateLimit, Retry
from tests.backends import verify
from tests.builders import event, key
from tests.empty_journal import prepare
from tests.fakes import FakeClock
from tests.model_crm import BAD, IGNORE, MOODS, PARK, SERVICES, WAIT, Died, ModelCrm, lane_of
from tests.model_desired import INVALID, Desired, Told

DAY_S = 86_400.0
#: Calls that one look at what is due may cost, with nine records and two lanes.
MOST_CALLS = 60


class AtOnce:
    """Runs each call where it is submitted: every run is repeatable."""

    def submit(self, job: Callable[[], None]) -> None:
        job()

    def close(self) -> None:
        pass


class Deaf:
    """Watches nothing."""

    def called(self, settled: CallSummary) -> None: ...

    def waited(self, seconds: float) -> None: ...

    def paused(self, pauses: Sequence[Pause]) -> None: ...

    def stumbled(self, error: str) -> None:
        raise AssertionError(f"delivery stumbled: {error}")


def on_unknown(record: PendingRecord) -> OnUnknown:
    policies: dict[str, OnUnknown] = {WAIT: "wait", IGNORE: "ignore"}
    return policies.get(record.key.id[0], "park")


VALUES = st.sampled_from(["a", "b", "c", "", BAD, INVALID])
#: Record, properties, seconds from now to the event's own time, whether the source leaves out what is unchanged.
ASKS = st.tuples(
    st.sampled_from(["1", "2", "3", "s1", "s2", f"{PARK}1", f"{WAIT}1", f"{IGNORE}1", None]),
    st.dictionaries(st.sampled_from(["p", "q", "r"]), VALUES, min_size=1, max_size=3),
    st.sampled_from([None, -DAY_S, -400, -60, -60, -1, 0, 30, DAY_S]),
    st.booleans(),
)
Ask = tuple[str | None, dict[str, str], float | None, bool]
RECORDS = st.sampled_from([None, "1", "s1"])


class DeliveryMachine(RuleBasedStateMachine):
    """The rules; what can happen between calls can happen during one too."""

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        self.url = self.make_journal()
        self.chance = random.Random(seed)
        self.clock = FakeClock()
        self.crm = ModelCrm(self.clock, self.chance)
        self.model = Desired()
        self.sent: list[Event] = []
        self.jumped = False
        self.open()

    def make_journal(self) -> str:
        """The URL of an empty journal."""
        self.folder = Path(tempfile.mkdtemp(prefix="model-"))
        url = f"sqlite:///{self.folder}/journal.db"
        prepare(url)
        return url

    def remove_journal(self) -> None:
        shutil.rmtree(self.folder)

    def open(self) -> None:
        self.journal = Journal(settings=JournalSettings(url=self.url), clock=self.clock, retry_max_s=8.0)
        self.dispatcher = Dispatcher(
            journal=self.journal,
            crm=self.crm,
            settings=CrmSettings(batch_size=3, flush_interval_s=0.1, rate_limit=RateLimit(10_000, 1.0)),
            retry=Retry(base_s=0.5, max_s=8.0, give_up_after_s=10_000),
            on_unknown=on_unknown,
            clock=self.clock,
            observer=Deaf(),
            pool=AtOnce(),
            limiter=Limiter(calls=10_000, per_s=1.0),
            backoff=Backoff(base_s=0.5, max_s=8.0, chance=self.chance),
        )
        self.dispatcher.restore_pauses()

    # --- partners ---

    @rule(asks=st.lists(ASKS, min_size=1, max_size=4))
    def events_arrive(self, asks: list[Ask]) -> None:
        now_us = to_us(self.clock.now())
        told: list[Told] = []
        for record, properties, offset, skip in asks:
            at_us = None if offset is None else to_us(self.clock.now() + offset)
            number = len(self.sent) + len(told)
            told.append(Told(f"e{number}", record, properties, at_us, skip_unchanged=skip))
        self.model.arrive(told, now_us)
        events = [self.event(one) for one in told]
        self.sent += events
        wanted = [Intake.PARKED if not any(u.properties for u in one.updates) else Intake.ACCEPTED for one in events]
        assert [receipt.intake for receipt in self.journal.append(events).receipts] == wanted

    @rule(ask=ASKS)
    def an_event_arrives_during_the_next_call(self, ask: Ask) -> None:
        self.during(partial(self.events_arrive, [ask]))

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 10_000))
    def an_event_is_delivered_again(self, which: int) -> None:
        [receipt] = self.journal.append([self.sent[which % len(self.sent)]]).receipts
        assert (receipt.intake, receipt.conflict) == (Intake.DUPLICATE, False)

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 10_000), ask=ASKS)
    def an_id_is_used_again_for_something_else(self, which: int, ask: Ask) -> None:
        record, properties, offset, skip = ask
        used, asked = self.sent[which % len(self.sent)].id, f"{len(self.sent):08x}"
        at_us = None if offset is None else to_us(self.clock.now() + offset)
        told = Told(f"{used}~{asked}", record, properties, at_us, skip_unchanged=skip)
        self.model.arrive([told], to_us(self.clock.now()))
        again = replace(self.event(told), id=used, content_hash=f"payload of {told.id}:{asked}:")
        self.sent.append(again)
        assert self.journal.append([again]).receipts == [Receipt(told.id, again.intake, conflict=True)]

    # --- the CRM, time and the process ---

    @rule(moods=st.lists(st.sampled_from(MOODS), min_size=1, max_size=4))
    def the_crm_is_moody(self, moods: list[str]) -> None:
        self.crm.moods = moods

    @rule(record=st.sampled_from([f"{WAIT}1"]))
    def a_record_is_created(self, record: str) -> None:
        self.crm.created.add(record)

    @rule(steps=st.integers(1, 6))
    def delivery_works(self, steps: int) -> None:
        for _ in range(steps):
            self.step(0.2)

    @rule()
    def another_call_begins_during_the_next_one(self) -> None:
        self.during(self.another_call)

    @rule(seconds=st.sampled_from([0.05, 1.0, 10.0, 130.0]))
    def time_passes(self, seconds: float) -> None:
        self.step(seconds)

    @rule(days=st.sampled_from([-1, 1]))
    def our_clock_jumps(self, days: int) -> None:
        self.jumped = True
        self.clock.jump(days * DAY_S)
        self.step(0.05)

    @rule()
    def the_process_is_restarted(self) -> None:
        self.journal.close()
        self.open()

    # --- people ---

    @rule(state=st.sampled_from([None, "retrying", "parked"]), record=RECORDS, during=st.booleans())
    def retries_are_replayed(self, state: str | None, record: str | None, during: bool) -> None:
        chosen = Filter(state=state, record=record)  # type: ignore[arg-type]  # one of its words
        self.now_or(during, lambda: self.journal.replay(self.journal.entries(chosen), self.remap))

    @rule(category=st.sampled_from(["VALIDATION_ERROR", "OBJECT_NOT_FOUND", None]), during=st.booleans())
    def retries_are_discarded(self, category: str | None, during: bool) -> None:
        self.now_or(during, partial(self.discard, Filter(category=category)))

    @rule(record=RECORDS, during=st.booleans())
    def events_are_replayed(self, record: str | None, during: bool) -> None:
        self.now_or(during, partial(self.replay_events, EventFilter(record=record)))

    @precondition(lambda self: not self.jumped)
    @rule(during=st.booleans())
    def a_mapping_is_changed_and_everything_mapped_anew(self, during: bool) -> None:
        self.now_or(during, self.change_the_mapping)

    @rule(record=RECORDS, overwritten=st.booleans(), during=st.booleans())
    def values_are_sent_once_more(self, record: str | None, overwritten: bool, during: bool) -> None:
        self.now_or(during, partial(self.resync, record, overwritten))

    @rule(object_type=st.sampled_from([None, SERVICES.object_type]))
    def delivery_is_paused(self, object_type: str | None) -> None:
        self.journal.pause(object_type)
        self.step(1.0)  # the dispatcher looks once a second
        self.crm.paused.add(object_type or "")

    @rule(object_type=st.sampled_from([None, SERVICES.object_type]))
    def delivery_is_resumed(self, object_type: str | None) -> None:
        self.journal.resume(object_type)
        self.crm.paused = set() if object_type is None else self.crm.paused - {object_type}

    # --- how ---

    def event(self, told: Told) -> Event:
        at = None if told.occurred_us is None else told.occurred_us / 1_000_000
        if told.record is None:
            return event(told.id, updates=(), unmappable="no record id", at=at)
        return event(told.id, updates=self.updates(told), at=at)

    def updates(self, told: Told) -> tuple[PropertyUpdate, ...]:
        mapped = self.model.mapped(told)
        good = {name: value for name, value in mapped.items() if value != INVALID}
        wrong = {name: "not valid" for name, value in mapped.items() if value == INVALID}
        record = key(str(told.record), lane_of(str(told.record)))
        return (PropertyUpdate(record, good, wrong, told.skip_unchanged),)

    def remap(self, kept: KeptEvent) -> Remapped:
        told = self.model.events[kept.event_id]
        return Remapped((), "no record id") if told.record is None else Remapped(self.updates(told))

    def during(self, happen: Callable[[], object]) -> None:
        self.crm.before_answer.append(happen)

    def now_or(self, during: bool, act: Callable[[], object]) -> None:
        if during:
            self.during(act)
        else:
            act()

    def another_call(self) -> None:
        self.dispatcher.run_once()  # of the process that lives then

    def discard(self, chosen: Filter) -> None:
        entries = self.journal.entries(chosen)
        for entry in entries:
            if entry.record is None:
                self.model.unmappable.difference_update(entry.event_ids)
            else:
                self.model.discard(entry.record, entry.properties)
        self.journal.discard(entries)

    def replay_events(self, chosen: EventFilter) -> list[Difference]:
        foreseen: list[Difference] = []
        differences: list[Difference] = []
        self.journal.replay_events(chosen, self.remap, dry_run=True, differences=foreseen.extend)
        self.journal.replay_events(chosen, self.remap, differences=differences.extend)
        assert foreseen == differences
        return differences

    def change_the_mapping(self) -> None:
        if self.jumped:  # before the call during which it was to happen
            return
        self.model.swapped = not self.model.swapped
        self.model.map_anew()
        self.replay_events(EventFilter())
        # Whoever maps the same events with the same mapping once more changes nothing.
        assert {found.what for found in self.replay_events(EventFilter())} <= {"kept"}

    def resync(self, record: str | None, overwritten: bool) -> None:
        if overwritten:
            for address in self.crm.state:
                if record in {None, address[0]}:
                    self.crm.state[address] = "overwritten"
        self.journal.resync(ValueFilter(record=record))

    def step(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.crm.let_time_pass()
        calls = self.crm.calls
        try:
            self.dispatcher.run_once()
        except Died:
            self.journal.close()
            self.open()
        assert self.crm.calls - calls <= MOST_CALLS, "a loop of calls"

    # --- what must hold ---

    @invariant()
    def the_contract_is_never_broken(self) -> None:
        if hasattr(self, "crm"):
            assert self.crm.violations == []

    def teardown(self) -> None:
        if not hasattr(self, "crm"):
            return
        try:
            verify(self.url)
            self.journal.resume()
            self.crm.paused, self.crm.moods = set(), []
            self.settle_down()
            self.check_the_end()
            self.crm.before_answer.clear()  # what waits for a call that never came must not disturb the last ones
            self.check_that_nothing_is_frozen()
            verify(self.url)
        finally:
            self.journal.close()
            self.remove_journal()

    def settle_down(self) -> None:
        """The CRM is well for five minutes: longer than any doubt or pause."""
        for _ in range(30):
            for seconds in (0.2, 0.2, 9.6):
                self.step(seconds)

    def check_the_end(self) -> None:
        assert self.crm.violations == []
        standing = self.model.standing()
        entries = self.journal.entries(Filter())
        refused = {
            (entry.record, name) for entry in entries if entry.id.startswith("refused-") for name in entry.properties
        }
        # A bad value of a record that the CRM does not know is found out only where a whole call was refused for it.
        bad = {address for address, value in standing.items() if value == BAD}
        certain = {address for address in bad if self.crm.knows(address[0])}
        assert certain | self.model.invalid() <= refused <= bad | self.model.invalid()
        open_ = {address[0] for address in standing if address not in refused and not self.crm.knows(address[0])}
        by_state = {
            state: {entry.record for entry in entries if entry.state == state and entry.id.startswith("record-")}
            for state in ("parked", "retrying")
        }
        assert by_state == {
            "parked": {record for record in open_ if record.startswith(PARK)},
            "retrying": {record for record in open_ if record.startswith(WAIT)},
        }
        waiting = {event_id for entry in entries if entry.id.startswith("event-") for event_id in entry.event_ids}
        assert waiting == self.model.unmappable
        differs = {
            address: (self.crm.state.get(address), value)
            for address, value in standing.items()
            if self.crm.knows(address[0]) and address not in refused and self.crm.state.get(address) != value
        }
        assert differs == {}, differs
        self.check_every_fate(refused)

    def check_every_fate(self, refused: set[tuple[str | None, str]]) -> None:
        """No event is unaccounted for, neither in its story nor in the log."""
        logged = {one.event: one for one in self.journal.events(EventFilter())}
        assert logged.keys() == self.model.events.keys()
        for told in self.model.events.values():
            [story] = self.journal.trace_event(told.id)
            if told.record is None:
                assert logged[told.id].outcome == ("parked" if told.id in self.model.unmappable else "discarded")
                continue
            fates = {fate["property"]: fate for asked in story["records"] for fate in asked["properties"]}
            names = self.model.mapped(told)
            assert fates.keys() == names.keys()
            wanted = {name: self.fate(told, name, refused) for name in names}
            found = {name: fate["fate"].replace("unchanged", "delivered") for name, fate in fates.items()}
            for name, became in list(found.items()):  # given up during a call that brought it to the CRM all the same
                if (wanted[name], became) == ("discarded", "delivered"):
                    assert self.crm.state[str(told.record), name] == self.model.mapped(told)[name]
                    found[name] = "discarded"
            assert found == wanted, told.id
            for fate in fates.values():
                assert fate["fate"] != "superseded" or fate["by_event"] not in {None, told.id}
                assert fate["fate"] != "delivered" or fate["call"]["status"] in {200, 207}

    def fate(self, told: Told, name: str, refused: set[tuple[str | None, str]]) -> str:
        record = str(told.record)
        word = self.model.words[record, name]
        if word.event != told.id:
            return "superseded"
        if word.discarded:
            return "discarded"
        if (record, name) in refused:
            return "refused"
        if self.crm.knows(record):
            return "delivered"
        return {PARK: "parked", WAIT: "retrying", IGNORE: "unknown"}[record[0]]

    def check_that_nothing_is_frozen(self) -> None:
        """Whatever clocks were wrong before: a new event wins, with a time of its own or without."""
        records = {record for record, _ in self.model.words if not record.startswith((PARK, WAIT, IGNORE))}
        self.clock.advance(301)  # as much as a partner's clock may be ahead
        for offset, value in ((0.0, "new"), (None, "newest")):
            wanted = dict.fromkeys("pqr", value)
            self.events_arrive([(record, wanted, offset, False) for record in sorted(records)])
            for _ in range(20):
                self.step(1.0)
            assert {record: {name: self.crm.state[record, name] for name in "pqr"} for record in records} == (
                dict.fromkeys(records, wanted)
            )


DeliveryMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("MODEL_EXAMPLES", "15")),
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestDelivery = DeliveryMachine.TestCase
