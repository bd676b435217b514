"""What the portal's definitions rule out is refused unsent, and nothing that the portal may take."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from bridge.crm.properties import ABSENT, Definition, NotTold
from bridge.delivery.limiter import Limiter
from bridge.delivery.portal_rules import PortalRules, complaint_about
from bridge.errors import CrmUnreachableError
from bridge.model import PendingRecord, Reason, Refused, RetryLater, Value
from tests.builders import key
from tests.fakes import FakeClock

TIER = Definition("tier", "enumeration", "select", options={"gold": "Gold tier", "silver": "Silver"})
NAME = Definition("company_name", "string")
MANY = Definition("products", "enumeration", "checkbox", options={"crm": "CRM", "cms": "CMS"})
OWNER = Definition("owner", "enumeration", options={"1": "Ana"}, external=True)
REVENUE = Definition("revenue", "number")
SCORE = Definition("score", "number", calculated=True)


@dataclass
class FakePortal:
    """A portal whose definitions a test changes; `unlisted` are told by name only."""

    listed: dict[str, Definition] = field(default_factory=lambda: {one.name: one for one in (TIER, NAME, REVENUE)})
    unlisted: dict[str, Definition] = field(default_factory=dict)
    told: NotTold | None = None
    unreachable: bool = False
    takes_s: float = 0.0
    clock: FakeClock | None = None
    asked: list[str] = field(default_factory=list)

    def properties(self, object_type: str) -> dict[str, Definition] | NotTold:
        self.asked.append(object_type)
        self._pass()
        if self.unreachable:
            raise CrmUnreachableError("the portal cannot be reached")
        return self.told or dict(self.listed)

    def _pass(self) -> None:
        if self.clock is not None:
            self.clock.advance(self.takes_s)

    def property(self, object_type: str, name: str) -> Definition | NotTold:
        self.asked.append(f"{object_type}/{name}")
        self._pass()
        if self.unreachable:
            raise CrmUnreachableError("the portal cannot be reached")
        return self.unlisted.get(name, ABSENT)


def record(ref: int, **values: str) -> PendingRecord:
    return PendingRecord(ref, key(str(ref)), 1, {name: Value(text, 1) for name, text in values.items()})


class TickingClock(FakeClock):
    """Goes on by a millisecond whenever it is looked at, so that a wait for the rate limit ends."""

    def monotonic(self) -> float:
        self.advance(0.001)
        return super().monotonic()


class Desk:
    """The rules on a clock that the test moves."""

    def __init__(self, **portal: object) -> None:
        self.portal = FakePortal(**portal)  # type: ignore[arg-type]  # its own fields
        self.clock = TickingClock()
        limiter = Limiter(calls=1_000, per_s=1.0)
        self.portal.clock = self.clock
        self.rules = PortalRules(portal=self.portal, limiter=limiter, clock=self.clock)

    def sent(self, *records: PendingRecord) -> tuple[dict[int, list[str]], dict[int, dict[str, Reason]]]:
        """By record, the properties that are sent, and what is refused."""
        left, refused = self.rules.rule_out("partner_clients", records)
        assert all(isinstance(one, Refused | RetryLater) for one in refused)
        return {one.ref: list(one.values) for one in left}, {
            one.record.ref: dict(one.properties) for one in refused if isinstance(one, Refused)
        }


def test_what_cannot_be_taken_is_refused_and_the_rest_is_sent() -> None:
    desk = Desk()
    left, refused = desk.sent(record(1, tier="platinum", company_name="A"), record(2, tier="gold"), record(3, tier="x"))
    assert left == {1: ["company_name"], 2: ["tier"]}
    assert refused.keys() == {1, 3}
    assert refused[1]["tier"] == Reason(
        "VALIDATION_ERROR",
        "platinum was not one of the allowed options: [gold, silver] "
        "(by the portal's definition of tier; it was not sent)",
    )


@pytest.mark.parametrize(
    "definition, text",
    [
        (TIER, "gold"),
        (TIER, "Gold"),  # whether HubSpot takes another letter case, or the label, is not known for certain
        (TIER, "Gold tier"),
        (TIER, ""),
        (MANY, "crm;cms"),
        (OWNER, "77"),
        (Definition("any", "enumeration"), "x"),
        (REVENUE, "1234.5"),
        (REVENUE, "1,234.5"),
        (REVENUE, "-1e5"),
        (REVENUE, "NaN"),
        (REVENUE, "\uff11\uff12"),
        (REVENUE, "1d"),
        (REVENUE, " "),
        (MANY, "crm;"),
        (MANY, ";;crm;;cms"),
        (Definition("sum", "number", calculated=True, custom=True), "1"),
        (REVENUE, "9" * 500),
        (REVENUE, ""),
        (Definition("renewal", "date"), "2026-01-05T10:30:00Z"),
        (Definition("renewal", "date"), "soon"),
        (Definition("what", "of_the_future"), "x"),
    ],
)
def test_what_the_portal_may_take_is_left_to_it(definition: Definition, text: str) -> None:
    assert complaint_about(definition.name, definition, text) is None


@pytest.mark.parametrize(
    "definition, text, why",
    [
        (TIER, "platinum", "platinum was not one of the allowed options: [gold, silver]"),
        (TIER, "gold;silver", "gold;silver was not one of"),
        (MANY, "crm;erp", "erp was not one of the allowed options: [crm, cms]"),
        (REVENUE, "a lot", "was not a valid number"),
        (REVENUE, "12 apples", "was not a valid number"),
        (REVENUE, "n/a", "was not a valid number"),
        (SCORE, "1", "read-only"),
        (None, "x", "does not exist"),
    ],
)
def test_what_it_cannot_take_is_told_in_one_sentence(definition: Definition | None, text: str, why: str) -> None:
    name = definition.name if definition is not None else "gone"
    complaint = complaint_about(name, definition, text) or ""
    assert complaint.endswith(f"(by the portal's definition of {name}; it was not sent)")
    assert why in complaint
    assert len(complaint) < 300


def test_definitions_are_read_at_the_first_call_and_every_ten_minutes() -> None:
    desk = Desk()
    for _ in range(11):
        desk.sent(record(1, tier="gold"))
        desk.clock.advance(60)
    assert desk.portal.asked == ["partner_clients", "partner_clients"]


def test_an_option_that_is_added_is_taken_once_definitions_may_be_read_again() -> None:
    """They are read at once, but at most once a minute."""
    desk = Desk()
    assert desk.sent(record(1, tier="gold"))[1] == {}
    desk.clock.advance(120)
    desk.portal.listed["tier"] = Definition("tier", "enumeration", options={"gold": "", "iron": ""})
    assert desk.sent(record(1, tier="iron")) == ({1: ["tier"]}, {})
    assert desk.sent(record(2, tier="zinc"))[1].keys() == {2}
    assert desk.portal.asked == ["partner_clients"] * 2


def test_a_value_that_was_refused_and_comes_again_is_judged_by_a_new_reading() -> None:
    """A person has mended the portal and replays: at once, and once for all that is replayed."""
    desk = Desk()
    records = [record(ref, tier="iron") for ref in range(1, 4)]
    assert desk.sent(*records)[1].keys() == {1, 2, 3}
    desk.clock.advance(2)
    desk.portal.listed["tier"] = Definition("tier", "enumeration", options={"gold": "", "iron": ""})
    assert [desk.sent(one) for one in records] == [({one.ref: ["tier"]}, {}) for one in records]
    assert desk.portal.asked == ["partner_clients"] * 2
    desk.portal.listed["tier"] = TIER
    desk.clock.advance(61)
    for ref in range(50):  # values that nobody replayed: no further reading
        assert desk.sent(record(ref, tier="zinc"))[1].keys() == {ref}
    assert desk.portal.asked == ["partner_clients"] * 3


def test_a_property_that_is_not_listed_is_asked_for_by_its_name() -> None:
    """HubSpot lists no sensitive properties; what it does not know is refused, and asked for once."""
    desk = Desk(unlisted={"secret": Definition("secret", "string")})
    left, refused = desk.sent(record(1, secret="s", gone="x"), record(2, gone="y"))
    assert left == {1: ["secret"]}
    assert {ref: set(names) for ref, names in refused.items()} == {1: {"gone"}, 2: {"gone"}}
    assert desk.sent(record(1, secret="s"), record(3, gone="x"))[0] == {1: ["secret"]}
    assert desk.portal.asked == ["partner_clients", "partner_clients/gone", "partner_clients/secret"]


@pytest.mark.parametrize("trouble", [{"told": NotTold("forbidden")}, {"unreachable": True}, {"listed": {}}])
def test_where_the_portal_does_not_tell_it_decides(trouble: dict[str, object]) -> None:
    """Without the scope, out of reach, or with an empty list nothing is refused here."""
    desk = Desk(**trouble)
    assert desk.sent(record(1, tier="platinum", gone="x")) == ({1: ["tier", "gone"]}, {})
    for _ in range(5):
        desk.sent(record(1, tier="platinum"))
    assert desk.portal.asked == ["partner_clients"]


def test_values_that_come_again_at_once_wait_for_the_next_reading() -> None:
    """A partner that goes to and fro between two bad values has the definitions read every two seconds at most."""
    desk = Desk()
    for at in range(40):
        left, refused = desk.sent(record(1, tier=f"bad{at % 2}", company_name="A"))
        assert (left, refused) in [({1: ["company_name"]}, {1: refused.get(1)}), ({}, {})]
        desk.clock.advance(0.25)
    assert len(desk.portal.asked) <= 6


def test_a_portal_that_is_slow_or_does_not_tell_is_left_alone_for_a_while() -> None:
    """A call that was held up for long goes back unsent, so that the next one must ask nothing."""
    desk = Desk(unlisted={}, takes_s=30.0, unreachable=True)
    for _ in range(3):
        assert desk.sent(record(1, gone="x")) == ({1: ["gone"]}, {})
    assert desk.portal.asked == ["partner_clients"]

    desk = Desk()
    desk.sent(record(1, tier="gold"))
    desk.portal.unreachable, desk.portal.takes_s = True, 30.0
    for _ in range(3):
        assert desk.sent(record(1, gone="x", other="y", tier="gold"))[0] == {1: ["gone", "other", "tier"]}
    assert desk.portal.asked == ["partner_clients", "partner_clients/gone"]  # the second name had no time left

    desk = Desk()
    assert desk.sent(record(1, tier="iron"))[1].keys() == {1}
    desk.clock.advance(61)
    desk.portal.unreachable, desk.portal.takes_s = True, 30.0
    for _ in range(3):
        assert desk.sent(record(1, tier="iron")) == ({1: ["tier"]}, {})
    assert desk.portal.asked == ["partner_clients"] * 2


def test_definitions_that_cannot_be_confirmed_refuse_nothing() -> None:
    """They are older than a minute, and the portal does not answer: it decides."""
    desk = Desk()
    desk.sent(record(1, tier="gold"))
    desk.clock.advance(61)
    desk.portal.unreachable = True
    assert desk.sent(record(1, tier="platinum")) == ({1: ["tier"]}, {})
