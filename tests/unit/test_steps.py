"""What expressions may cost: counted in steps, the same for a webhook, `map`, `check` and a replay."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

import pytest

from bridge.errors import PayloadError
from bridge.intake.interpreter import MAX_VALUES, STEPS
from bridge.intake.mapping import CompiledSource, Mapped, compile_source
from bridge.model import Intake
from bridge.settings import Challenge, MappingBlock, OccurredAt, Pairs, Property, Record, Source, Verify

USED_UP = f"took more than {STEPS:,} steps, those of the whole request counted"
#: Two lists in 600 kB, joined: 900,000,000 comparisons.
JOIN = {"id": "7", "name": "A", "catalog": [{"id": f"c{n}"} for n in range(30_000)], "wanted": ["x" * 8] * 30_000}
JOINED = "catalog[?contains(_root.wanted, id)].id | [0]"
LONG = "x" * 100_000
MANY = {"id": "7", "name": "A", "long": LONG, "n": list(range(3_000)), "t": [LONG[:300]] * 300}

#: An expression each that takes or makes too much, by what it goes through.
COSTLY = {
    "a join": (JOIN, JOINED),
    "comparisons of lists": ({**MANY, "l": [[0] * 3_000] * 300}, "l[?length(_root.l[?@ == _root.l[0]]) > `0`]"),
    "a product": (MANY, "n[].[_root.n[*].to_string(@)]"),
    "texts made": (MANY, "n[].lower(_root.long)"),
    "texts joined": (MANY, "n[].join(_root.long, ['a', 'b'])"),
    "texts replaced": (MANY, "n[].replace(_root.long, 'x', 'yy')"),
    "JSON parsed": ({**MANY, "j": json.dumps([{}] * 20_000)}, "n[].parse_json(_root.j)"),
    "JSON made": (MANY, "n[].to_string(_root.n)"),
    "lists copied": (MANY, "map(&_root.n, n)[]"),
    "objects made": (MANY, "n[].[map(&{a: @}, _root.n)]"),
    "HTML": ({**MANY, "h": "&x" * 32_000}, "n[].unescape_html(_root.h)"),
    "sorted": (MANY, "n[].sort(_root.t)"),
    "sorted by": (MANY, "n[].sort_by([{a: _root.long}, {a: _root.long}], &a)"),
    "entries": ({**MANY, "o": {str(n): n for n in range(9_000)}}, "n[].items(_root.o)"),
}


QUICK = {"a join", "texts made", "texts joined", "lists copied", "objects made", "HTML"}


def compiled(*blocks: MappingBlock, **changes: Any) -> CompiledSource:
    return compile_source(Source("acme", verify=Verify("none"), mappings=blocks or (block(),), **changes))


def block(**changes: Any) -> MappingBlock:
    return MappingBlock(Record("id", "acme_id"), **{"properties": {"name": Property("name")}, **changes})


def only(mapped: Mapped) -> Any:
    assert len(mapped.events) == 1
    return mapped.events[0]


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.heavy) for kind in COSTLY]
)
def test_an_expression_that_takes_too_much_costs_its_property_only(kind: str) -> None:
    """In about a second of processor time, saying so; the other properties go on."""
    body, expression = COSTLY[kind]
    properties = {"costly": Property(expression), "name": Property("name"), "more": Property("lower(name)")}
    acme = compiled(block(properties=properties))
    began = time.process_time()
    update = only(acme.map_body(body)).updates[0]
    assert time.process_time() - began < 6  # a second on a machine that has nothing else to do
    assert update.invalid["costly"] == USED_UP
    assert update.properties == {"name": "A"}


def test_loops_go_on_meanwhile() -> None:
    """`pause` is called all the time, and what is judged does not depend on it."""
    acme, moments = compiled(block(properties={"x": Property(JOINED), "name": Property("name")})), [time.monotonic()]
    breathing = acme.map_body(JOIN, pause=lambda: moments.append(time.monotonic()))
    assert only(breathing).updates == only(acme.map_body(JOIN)).updates
    waits = sorted(after - before for before, after in pairwise(moments))
    assert len(waits) > 100
    assert waits[int(len(waits) * 0.95)] < 0.1


def test_loops_go_on_while_json_within_a_text_is_parsed() -> None:
    breaths: list[int] = []
    acme = compiled(block(properties={"x": Property("to_string(length(parse_json(j)))"), "name": Property("name")}))
    body = {"id": "7", "name": "A", "j": json.dumps([{}] * 40_000)}
    found = only(acme.map_body(body, pause=lambda: breaths.append(1)))
    assert found.updates[0].properties == {"x": "40000", "name": "A"}
    assert len(breaths) >= 200


def test_a_replay_judges_as_the_webhook_did() -> None:
    acme = compiled(block(properties={"x": Property(JOINED), "name": Property("name")}))
    event = only(acme.map_body(JOIN))
    assert acme.remap(event.payload, event.context, event.root).updates == event.updates


@pytest.mark.parametrize(
    "acme, reason",
    [
        (compiled(when=JOINED), f"`when` {USED_UP}"),
        (compiled(block(when=JOINED)), f"`when` {USED_UP}"),
        (compiled(event_id=JOINED), f"event_id {USED_UP}"),
        (compiled(MappingBlock(Record(JOINED), properties={"name": Property("name")})), f"the record id {USED_UP}"),
        (compiled(block(pairs=Pairs(f"[{JOINED}]", "a", "b", {"c": ("d", Property())}))), "the pairs cannot be read: "),
    ],
    ids=["when", "block's when", "event_id", "record id", "pairs"],
)
def test_where_nothing_can_be_told_the_event_waits_where_people_see_it(acme: CompiledSource, reason: str) -> None:
    """It is parked, never ignored, and no accident."""
    event = only(acme.map_body(JOIN))
    assert event.intake is Intake.PARKED
    assert event.unmappable.startswith(reason)


def test_an_event_whose_time_takes_too_much_is_parked() -> None:
    """It may be an older one: as the newest it could overwrite what came later."""
    mapped = compiled(occurred_at=OccurredAt(JOINED)).map_body(JOIN)
    assert mapped.invalid == [(0, {"record": f"occurred_at {USED_UP}"})]
    assert only(mapped).intake is Intake.PARKED
    assert only(mapped).unmappable == f"occurred_at {USED_UP}"


def test_only_events_refuse_the_request_by_what_they_take() -> None:
    with pytest.raises(PayloadError, match="events: took more than"):
        compiled(events="catalog[?contains(_root.wanted, id)]").map_body(JOIN)


def test_a_handshake_that_takes_too_much_is_none() -> None:
    challenge = compiled(challenge=Challenge(JOINED, when=JOINED)).challenge
    assert challenge is not None
    assert challenge.answer(JOIN, headers={}, query={}) is None


def test_all_events_of_a_request_share_its_steps() -> None:
    """The first ones go on as they are; those for which nothing is left say so."""
    events = [{"id": str(n), "name": "A", "n": list(range(1_000))} for n in range(400)]
    acme = compiled(block(properties={"x": Property("n[?to_string(@) == 'x'] | [0]"), "name": Property("name")}))
    mapped = acme.map_body(events)
    assert len(mapped.events) == 400
    late = [index for index, errors in mapped.invalid if errors == {"x": USED_UP}]
    assert late == list(range(late[0], 400))
    assert 50 < late[0] < 400


def test_long_values_of_many_events_are_bounded_together() -> None:
    """Each may take the same text of the whole body along."""
    body = {"long": "x" * 60_000, "items": [{"id": str(n)} for n in range(9_000)]}
    mapped = compiled(block(properties={"x": Property("_root.long")}), events="items").map_body(body)
    assert sum(len(text) for e in mapped.events for u in e.updates for text in u.properties.values()) <= MAX_VALUES
    assert (mapped.events[-1].unmappable or "").startswith("the values have more than 8,000,000 characters")


def test_a_list_that_is_joined_is_counted() -> None:
    body = {"tags": ["a"] * 50_000, "items": [{"id": str(n)} for n in range(1_000)]}
    tags = Property("_root.tags", multiple=True)
    mapped = compiled(block(properties={"x": tags}), events="items").map_body(body)
    assert mapped.invalid[-1] == (999, {"x": USED_UP})
