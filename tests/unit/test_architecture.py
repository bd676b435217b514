"""The architecture page names what there is."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
PAGE = (TOP / "bridge/docs/architecture.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
NAMED = sorted(set(re.findall(r"`((?:bridge|tests|helm)/[\w./-]+)`", PAGE)))


def rows(section: str) -> list[list[str]]:
    """The table of a section, without its head."""
    lines = re.findall(r"^\| (.*) \|$", SECTIONS[section], re.MULTILINE)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines if not line.startswith("---")][1:]


@pytest.mark.parametrize("path", NAMED)
def test_what_the_page_names_is_there(path: str) -> None:
    assert (TOP / path).exists()


def test_every_room_of_the_contract_is_told_of() -> None:
    """And no other: the list of the page is that of import-linter."""
    contracts = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = [name for layer in contracts[0]["layers"] for name in layer.split(" | ")]
    told = re.findall(r"`bridge/([a-z_]+)(?:\.py)?`", " ".join(row[0] for row in rows("The rooms")))
    left_out = {"__main__", "settings"}  # a start, and what `config` makes
    assert {name.removeprefix("bridge.") for name in layers} - left_out == set(told)


@pytest.mark.parametrize("guarantee, kept_by", [(row[0], row[2]) for row in rows("The guarantees, and who keeps them")])
def test_a_guarantee_is_named_where_it_is_kept(guarantee: str, kept_by: str) -> None:
    modules = re.findall(r"`(bridge/[\w/.]+)`", kept_by)
    assert modules
    assert all(re.search(rf"\b{guarantee}\b", (TOP / module).read_text(encoding="utf-8")) for module in modules)


def test_there_are_twelve_guarantees_and_thirty_words_at_most() -> None:
    assert [row[0] for row in rows("The guarantees, and who keeps them")] == [f"G{n}" for n in range(1, 13)]
    assert len(rows("The words")) <= 30


@pytest.mark.parametrize("word", [word for row in rows("The words") for word in row[0].split(", ")])
def test_a_word_of_the_glossary_is_one_of_the_code(word: str) -> None:
    spelled = re.compile(rf"\b{word.replace(' ', '[ _]')}", re.IGNORECASE)
    assert any(spelled.search(path.read_text(encoding="utf-8")) for path in (TOP / "bridge").rglob("*.py"))
