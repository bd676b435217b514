"""`partner-bridge explain` and the manual's page: what they tell of a key is what the loader takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bridge.cli.configuration import explain
from bridge.config import json_schema
from bridge.config.explaining import Explained, all_keys, explained
from bridge.config.scalars import Surroundings, surroundings
from bridge.config.source_schemas import FileSchema
from bridge.config.yaml_file import read_yaml
from bridge.errors import BridgeError
from tests.reference import PAGE, page

KEYS = all_keys()
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def told(*arguments: str) -> str:
    result = CliRunner().invoke(explain, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_page_is_current() -> None:
    """If not: python -m tests.dev reference."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_it_has_every_key_of_the_schema_for_editors() -> None:
    definitions = json_schema()["$defs"]
    known = {str(key) for key in KEYS}
    for block, at in {"Crm": "crm", "Source": "sources.*", "Mapping": "sources.*.mappings.*"}.items():
        assert {f"{at}.{name}" for name in definitions[block]["properties"]} <= known
    assert set(json_schema()["properties"]) == {key.name for key in KEYS if len(key.path) == 1}


@pytest.mark.parametrize("key", [key for key in KEYS if key.example is not None], ids=str)
def test_an_example_is_taken(key: Explained, tmp_path: Path) -> None:
    (tmp_path / "certificates.pem").touch()
    block = next((each.block for each in KEYS if each.path == key.path[:-1]), None) or FileSchema
    read = next(field for field in block().fields.values() if (field.data_key or field.name) == key.name)
    file = tmp_path / "bridge.yaml"
    file.write_text(f"{key.name}: {key.example}\n", encoding="utf-8")
    value = read_yaml(file).data[key.name]
    token = surroundings.set(Surroundings(environ={"ACME_SECRET": SECRET}, folder=tmp_path))
    try:
        assert read.deserialize(value) is not None
    finally:
        surroundings.reset(token)


def test_a_key_with_no_keys_in_it_has_an_example() -> None:
    within = {key.path[:-1] for key in KEYS}
    assert [str(key) for key in KEYS if key.example is None and key.path not in within] == []


def test_a_key_has_its_type_default_sentence_and_an_example() -> None:
    assert told("sources.*.record.on_unknown").splitlines() == [
        "sources.*.record.on_unknown",
        "What to do when the CRM knows no such record.",
        "  type     one of park, wait, ignore",
        "  default  park",
        "  example  on_unknown: wait",
    ]


def test_a_block_tells_of_the_keys_in_it() -> None:
    assert "  required yes" in told("sources.*.limit.per")
    assert [line.split()[0] for line in told("retry").splitlines()] == [
        "retry",
        "How",
        "type",
        "base",
        "max",
        "give_up_after",
    ]


def test_without_a_key_it_is_the_tree_of_all() -> None:
    assert len(told().splitlines()) == len(KEYS)


@pytest.mark.parametrize("written", ["sources.acme.mappings[0].when", "sources.*.mappings.*.when"])
def test_names_and_positions_may_stand_for_the_star(written: str) -> None:
    assert str(explained(written)) == "sources.*.mappings.*.when"


@pytest.mark.parametrize(
    "written, meant",
    [
        ("crm.api_key", "crm.token"),
        ("sources.acme.recrod", "sources.*.record"),
        ("on_unknwon", "sources.*.record.on_unknown"),
        ("sorces", "sources"),
    ],
)
def test_no_such_key_has_a_hint(written: str, meant: str) -> None:
    with pytest.raises(BridgeError) as raised:
        explained(written)
    assert str(raised.value) == f"there is no key {written}; did you mean {meant}?"
