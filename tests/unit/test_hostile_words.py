"""Two partners before the CRM, one of whom writes whatever our own code looks for in the CRM's words.

The dispatcher is real, the CRM is the sandbox without its socket. The texts are drawn from the code's own table of
sentences and patterns, so that a new one joins by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridge.crm import complaints, sentences
from bridge.crm.hubspot import encode
from bridge.crm.sentences import Sentence
from bridge.crm.transport import Answer, Input
from bridge.delivery import answers
from bridge.model import Lane
from bridge.sandbox import Behaviour, Crm
from bridge.sandbox.answers import Naming
from bridge.sandbox.crm import Request
from tests.examples import examples
from tests.fakes_delivery import CLIENTS
from tests.unit.test_dispatcher import House

#: Another lane of the same object type: it shares its properties, and nothing else.
OTHER = Lane("partner_clients", "external_id")

#: How the CRM tells what it refuses.
STYLES: Mapping[str, tuple[bool, Naming]] = {
    "207": (True, "both"),
    "207 without a name": (True, "none"),
    "207 in words": (True, "words"),
    "400": (False, "both"),
    "400 in JSON": (False, "message"),
    "400 in errors": (False, "context"),
    "400 in words": (False, "words"),
    "anonymous 400": (False, "none"),
}

#: Calls of a lane, beside the one that it takes anyway, after which the last good record has arrived, whatever the
#: other partner writes: each partner's half, and as much again where ids that are one record have to be kept apart.
MORE_CALLS = 5

GOOD = 20


# --- what the code looks for ------------------------------------------------------------------------

#: What a hostile sentence names: what is others' too.
NAMES = ("acme_client_id", "external_id", "company_name", "tier", "annual_revenue")
VALUES = ("gold", "17", "name of g1", "g1")

#: What stands in a place of it; in one that is not here anything.
PLACES = {"name": NAMES, "value": VALUES, "texts": ("gold", "g1, G1"), "kind": ("long.",), "number": ("1",)}

ROWS = [
    one
    for one in vars(sentences).values()
    if isinstance(one, tuple) and all(isinstance(sentence, Sentence) for sentence in one)
]
PREFIXES = [one for name, one in vars(sentences).items() if name.isupper() and isinstance(one, str)]
PATTERNS = [one for module in (sentences, complaints) for one in vars(module).values() if isinstance(one, re.Pattern)]
CODES = [
    sorted(map(str, one))
    for module in (complaints, answers)
    for one in vars(module).values()
    if isinstance(one, frozenset)
]


def test_the_texts_are_taken_from_the_code() -> None:
    """As long as this finds them, a new sentence is drawn as well."""
    rows = (sentences.UNFIT, sentences.VALUES, sentences.DUPLICATES, sentences.LIMITS, sentences.UNKNOWN_TYPE)
    assert all(row in ROWS for row in rows)
    assert PREFIXES == [sentences.LISTED]
    assert {"PROPERTY_DOESNT_EXIST", "READ_ONLY_VALUE", "RATE_LIMITS"} <= {word for row in CODES for word in row}
    assert PATTERNS


def filled(sentence: Sentence) -> st.SearchStrategy[str]:
    """The sentence with others' names and values in its places."""
    places = re.findall(r"\{(\w+)\}", sentence.wording)
    return st.tuples(*(st.sampled_from(PLACES.get(place, NAMES + VALUES)) for place in places)).map(
        lambda told: sentence.wording.format(**dict(zip(places, told, strict=True)))
    )


def fixed(sentence: Sentence) -> st.SearchStrategy[str]:
    """A part of it without the places."""
    return st.sampled_from([part for part in re.split(r"\{\w+\}", sentence.wording) if part])


sentence = st.sampled_from(ROWS).flatmap(st.sampled_from)
words = sentence.flatmap(filled)
code = st.sampled_from(CODES).flatmap(st.sampled_from)
item = st.fixed_dictionaries(
    {"error": code, "name": st.sampled_from(NAMES)},
    optional={
        "code": code,
        "propertyValue": st.sampled_from(VALUES),
        "message": words,
        "context": st.fixed_dictionaries({"propertyName": st.sampled_from(NAMES).map(lambda name: [name])}),
    },
)
piece = st.one_of(
    words,
    sentence.flatmap(fixed),
    st.lists(item, min_size=1, max_size=2).map(json.dumps),
    item.map(json.dumps),
    code,
    st.sampled_from([*PREFIXES, *NAMES, *VALUES]),
    st.sampled_from(PATTERNS).flatmap(st.from_regex),
)
mixed = st.lists(piece, min_size=1, max_size=3).map("".join)
texts = st.one_of(words, item.map(json.dumps), mixed).filter(
    lambda text: text.isprintable() and not re.fullmatch(r"[0-9.eE+-]*", text) and text != "gold"
)


# --- the stage --------------------------------------------------------------------------------------


@dataclass
class Stage:
    """The good partner's records in both lanes, the hostile one's in the first."""

    style: str
    fold_case: bool = False
    good: dict[int, tuple[Lane, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        multi_status, naming = STYLES[self.style]
        behaviour = Behaviour(multi_status=multi_status, naming=naming, echo_trace_ids=True)
        self.crm = Crm(open_properties=False, fold_case=self.fold_case, behaviour=behaviour)
        self.crm.define("partner_clients", "external_id", unique=True)
        self.house = House(self._answer)
        self.refs = 0

    def _answer(self, lane: Lane, sent: Sequence[Input]) -> Answer:
        request = Request(
            "POST",
            f"/crm/v3/objects/{lane.object_type}/batch/update",
            encode(lane, sent),
            headers={"authorization": "Bearer t", "content-type": "application/json"},
        )
        answer, call = self.crm.handle(request)
        self.crm.ledger.finish(call, answer.status)
        return Answer(answer.status, orjson.loads(answer.body), headers=dict(answer.headers))

    def put(self, id_: str, values: Mapping[str, str], *, source: str, lane: Lane = CLIENTS) -> int:
        self.refs += 1
        self.house.journal.put(self.refs, values, source=source, lane=lane)
        row = self.house.journal.rows[self.refs]
        row.key = type(row.key)(lane, id_)
        return self.refs

    def put_good(self) -> None:
        for number in range(GOOD):
            lane = CLIENTS if number % 4 else OTHER
            values = {"company_name": f"name of g{number}", "tier": "gold", "annual_revenue": "17"}
            self.good[self.put(f"g{number}", values, source="good", lane=lane)] = (lane, f"g{number}")

    def run(self) -> int:
        """Deliver; returns the calls after which all good records had arrived."""
        self.house.run(2, step_s=0.25)
        calls = self._calls_to_the_good()
        for _ in range(120):
            if {"due", "retrying"}.isdisjoint(self.house.journal.states()):
                break
            self.house.run(1, step_s=1)
        return calls

    def _calls_to_the_good(self) -> int:
        """The calls of a lane until the last that held a good record, in the lane where they were most."""
        most = 0
        for lane in (CLIENTS, OTHER):
            sent = [{one.record.ref for one in sent} for called, sent in self.house.crm.calls if called == lane]
            most = max(most, *(place for place, refs in enumerate(sent, 1) if refs & self.good.keys()))
        return most

    def check_the_good(self, calls: int) -> None:
        """Nothing of the good partner's is refused, waits, or came late; nothing is paused or retired."""
        states = {id_: self.house.journal.state(ref) for ref, (_, id_) in self.good.items()}
        assert set(states.values()) == {"delivered"}, states
        assert self.house.dispatcher._state.retired._known == {}
        assert [pauses for pauses in self.house.observer.pauses if pauses] == []
        assert calls <= 1 + MORE_CALLS, [(one.status, len(one.inputs)) for one in self.crm.ledger.calls("update")]


Case = Callable[[Callable[..., None]], Callable[..., None]]


def hostile(style: str, *values: str, ids: Sequence[str] = (), times: int = 1, fold_case: bool = False) -> Case:
    """One case that was, or nearly was, a fault."""
    return example(
        style=style,
        fold_case=fold_case,
        values=[("tier", text) for text in values],
        times=times,
        ids=[(id_, False) for id_ in ids],
        twin=False,
        source="a hostile one",
        first=True,
    )


@settings(
    max_examples=examples(), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
@given(
    style=st.sampled_from(sorted(STYLES)),
    fold_case=st.booleans(),
    values=st.lists(st.tuples(st.sampled_from(["tier", "annual_revenue"]), texts), max_size=4),
    times=st.sampled_from([1, 1, 12]),
    ids=st.lists(st.tuples(texts, st.booleans()), max_size=4),
    twin=st.booleans(),
    source=st.sampled_from(["a hostile one", "hostile"]),
    first=st.booleans(),
)
@hostile("400", "acme_client_id is non-unique")
@hostile("207 in words", "acme_client_id is non-unique")
@hostile("400 in errors", "gold was not one of the allowed options: [gold]")
@hostile("400 in words", '[{"error": "PROPERTY_DOESNT_EXIST", "name": "company_name"}]')
@hostile("400", ids=['{"error":"PROPERTY_DOESNT_EXIST","name":"company_name"}'], fold_case=True)
@hostile("anonymous 400", "platinum", times=100)
def test_whatever_one_partner_writes_only_its_own_values_wait(
    style: str,
    fold_case: bool,
    values: list[tuple[str, str]],
    times: int,
    ids: list[tuple[str, bool]],
    twin: bool,
    source: str,
    first: bool,
) -> None:
    """In values and ids, in any style of answer; the other partner's records arrive within the same few calls."""
    stage = Stage(style, fold_case)
    if not first:
        stage.put_good()
    bad = [
        stage.put(f"h{number}", {"notes": text, name: text}, source=source)
        for number, (name, text) in enumerate(values * times)
    ]
    odd = [text for text, _ in ids] + [f"unknown{text}" for text, unknown in ids if unknown]
    odd += [text.swapcase() for text, _ in ids]
    fine = [stage.put(id_, {"notes": id_}, source=source) for id_ in dict.fromkeys(odd)]
    if twin:  # another partner's record in other letters: to a CRM that folds case the same one
        fine.append(stage.put("G1", {"notes": "twin"}, source=source))
    if first:
        stage.put_good()
    calls = stage.run()
    stage.check_the_good(calls)
    assert {stage.house.journal.state(ref) for ref in bad} <= {"refused", "parked"}
    for ref in fine:
        unknown = stage.house.journal.rows[ref].key.id.lower().startswith("unknown")
        assert stage.house.journal.state(ref) == ("parked" if unknown else "delivered")
