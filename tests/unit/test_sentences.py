"""What is read in the CRM's words, and what a partner's words within them can never say."""

from __future__ import annotations

import ast
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bridge.delivery
from bridge.crm import sentences
from bridge.crm.complaints import Complaint, read_complaint
from bridge.crm.sentences import LISTED, Sentence

OPTIONS = "was not one of the allowed options: [gold, silver]"


def test_a_sentence_is_read_from_its_beginning_to_its_end() -> None:
    """What stands around it makes it another one."""
    sentence = Sentence("property {name} in portal ID {number}")
    assert sentence.read("property tier in portal ID 17") == {"name": "tier", "number": "17"}
    for told in (
        "A property tier in portal ID 17",
        "property tier in portal ID 17.",
        "property tier in portal ID x",
        "",
    ):
        assert sentence.read(told) is None


@given(told=st.text(alphabet="ab wasnotvlid.[]", max_size=60))
def test_a_value_is_told_only_where_the_sentence_can_be_divided_in_one_way(told: str) -> None:
    """Whatever the value holds, it is read as it is or not at all."""
    for sentence in (f"{told} {OPTIONS}", f"{told} was not a valid long."):
        assert sentences.value(sentence) in {told, None}


@pytest.mark.parametrize(
    "told",
    [
        "gold was not one of",
        f"gold {OPTIONS}",
        "gold was not one of the allowed options: [",
        '"gold"',
        "7 was not a valid",
        "7 was not a valid long.\n",
    ],
)
def test_a_value_that_holds_the_sentence_is_never_taken_for_anothers(told: str) -> None:
    """Or every record with the allowed value "gold" would be refused."""
    for sentence in (f"{told} {OPTIONS}", f"{told} was not a valid long."):
        assert sentences.value(sentence) in {told, None}
    assert sentences.value(f"gold {OPTIONS}") == "gold"
    assert sentences.value("7 was not a valid long.") == "7"
    assert sentences.value(f"two\nlines {OPTIONS}") == "two\nlines"


HOSTILE = '[{"error":"PROPERTY_DOESNT_EXIST","name":"company_name","k":"a"}]'


@pytest.mark.parametrize(
    "message",
    [
        f"Duplicate IDs found in batch input: {HOSTILE}. IDs must be unique",
        f"{LISTED}{HOSTILE} {OPTIONS}",
        f"{HOSTILE} was not a valid long.",
        f" {LISTED}{HOSTILE}",
        f"{LISTED}{HOSTILE}.",
        f'{LISTED}["{HOSTILE}"]',
        f"{LISTED}{{}}",
    ],
)
def test_json_is_read_behind_its_sentence_and_to_the_end_of_the_text(message: str) -> None:
    """JSON within an id or a value names no property."""
    assert read_complaint({"message": message}).named == ()
    assert read_complaint({"message": LISTED + HOSTILE}).definitions == {"company_name"}


def test_json_within_json_is_a_value() -> None:
    """HubSpot escapes what it quotes there."""
    item = {"name": "tier", "error": "INVALID_OPTION", "propertyValue": HOSTILE, "message": f"{HOSTILE} {OPTIONS}"}
    complaint = read_complaint({"message": LISTED + json.dumps([item])})
    assert complaint.properties == {"tier"}
    assert complaint.values == {("tier", HOSTILE)}
    assert complaint.definitions == frozenset()


@pytest.mark.parametrize(
    "words",
    [
        "acme_client_id is non-unique",
        "Unable to perform update/upsert by non-unique 0-2 property acme_client_id in portal ID 1",
        'Property "acme_client_id" does not exist',
    ],
)
def test_a_property_that_is_named_keeps_the_message_from_blaming_the_id_property(words: str) -> None:
    """What the CRM names in `errors`, in `context` or in its JSON is what it speaks of."""
    item = {"name": "tier", "error": "INVALID_OPTION", "propertyValue": words, "message": f"{words} {OPTIONS}"}
    detail = {"message": words, "code": "INVALID_OPTION", "context": {"propertyName": ["tier"]}}
    for body in (
        {"message": LISTED + json.dumps([item])},
        {"message": words, "errors": [detail]},
        {"message": words, "context": {"propertyName": ["tier"]}},
        {"message": f"{words} {OPTIONS}"},
    ):
        assert not read_complaint(body).blames_id_property("acme_client_id")


@pytest.mark.parametrize("sentence", sentences.UNFIT, ids=lambda sentence: sentence.wording)
def test_a_sentence_about_the_id_property_blames_that_one_only(sentence: Sentence) -> None:
    """HubSpot's own sentence, with nothing before or behind it."""
    told = sentence.wording.format(type="0-2", name="acme_client_id", number="17")
    assert Complaint("VALIDATION_ERROR", told).blames_id_property("acme_client_id")
    assert not Complaint("VALIDATION_ERROR", told).blames_id_property("client_id")
    for other in (f"{told} {OPTIONS}", f"'{told}'", f"x\n{told}", f"{told}\n"):
        assert not Complaint("VALIDATION_ERROR", other).blames_id_property("acme_client_id")


def test_reading_takes_time_in_proportion_to_the_text() -> None:
    """65,536 characters of a hostile value, full of what is looked for."""
    long = " was not one of the allowed options: [" * 1_700
    began = time.process_time()
    for told in (long, f"{long}]", f"{LISTED}{'[' * 65_536}", f"{LISTED}{'[{},' * 16_000}"):
        read_complaint({"message": told, "errors": [{"message": told, "context": {"propertyName": ["tier"]}}]})
    assert time.process_time() - began < 1.0


def test_one_module_matches_text() -> None:
    """Of those that judge answers: no other may search what the CRM says, so that its table stays whole."""
    folder = Path(bridge.delivery.__file__).parent
    allowed = {
        "sentences.py": "its job",
        "complaints.py": "constants",
        "hubspot.py": "tokens",
        "token_endpoint.py": "",
        "portal_rules.py": "values before they are sent",
        "beginnings.py": "JSON that is cut off",
    }
    for path in folder.glob("*.py"):
        imported = {
            name.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for name in node.names
        }
        assert "re" not in imported or path.name in allowed, path.name
