"""The file's form: YAML 1.2, lines of everything, anchors, and sentences for what cannot be read."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from bridge.config.yaml_file import Document, dotted, plain_value, read_yaml
from bridge.errors import ConfigError


def read(folder: Path, text: str) -> Document:
    file = folder / "bridge.yaml"
    file.write_text(text, encoding="utf-8")
    return read_yaml(file)


@pytest.mark.parametrize(
    "written, value",
    [
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("2026-01-02", "2026-01-02"),
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
        ("12:30:00", "12:30:00"),
        ("true", True),
        ("~", None),
        ("", None),
        ("007", 7),
        ("0x10", 16),
        ("0o17", 15),
        ("1.50", 1.5),
        ("1e3", 1000.0),
        ('"5"', "5"),
        ("'null'", "null"),
        ("!!str 5", "5"),
        ("=", "="),
        (r'"\ud83d\ude00"', "😀"),  # as JSON escapes it
    ],
)
def test_scalars_mean_what_yaml_1_2_says(tmp_path: Path, written: str, value: object) -> None:
    """Norway is a country, and a date is text."""
    found = read(tmp_path, f"key: {written}\n").data["key"]

    assert found == value
    assert isinstance(found, type(value))


@pytest.mark.parametrize("written", [r'key: "\ud83d"', r'"\ude00\ud83d": x', r'key: ["a\udfffb"]'])
def test_half_a_character_is_a_problem(tmp_path: Path, written: str) -> None:
    """No database takes it, nor does the CRM."""
    (problem,) = read(tmp_path, f"{written}\n").problems

    assert "half of a character" in problem.message


@pytest.mark.parametrize("text", ["007", "1.50", "0x1F", "-3", "1e3"])
def test_numbers_remember_how_they_were_written(text: str) -> None:
    assert plain_value(text).text == text


def test_keys_are_text_as_they_are_written(tmp_path: Path) -> None:
    data = read(tmp_path, "yes: 1\n007: 2\n2026-01-02: 3\ntrue: 4\n1.50: 5\n").data

    assert list(data) == ["yes", "007", "2026-01-02", "true", "1.50"]


def test_everything_has_its_line(tmp_path: Path) -> None:
    document = read(tmp_path, "a:\n  b:\n    - x\n    - {c: 1,\n       d: 2}\n")

    assert {dotted(keys): place.line for keys, place in document.places.items()} == {
        "": 1, "a": 1, "a.b": 2, "a.b[0]": 3, "a.b[1]": 4, "a.b[1].c": 4, "a.b[1].d": 5,
    }  # fmt: skip


def test_all_duplicate_keys_are_told_with_both_lines(tmp_path: Path) -> None:
    document = read(tmp_path, "a: 1\nb: {c: 1, c: 2}\na: 2\n")

    assert [(problem.path, problem.line, problem.message) for problem in document.problems] == [
        ("b.c", 2, "stands here and in line 2; keep one"),
        ("a", 3, "stands here and in line 1; keep one"),
    ]
    assert document.data["a"] == 1


def test_merge_keys_bring_what_the_mapping_lacks(tmp_path: Path) -> None:
    """`<<` gives way to the mapping's own keys, which keep their own lines."""
    document = read(tmp_path, "x-base: &base {a: 1, b: {c: 2}}\nuse:\n  <<: *base\n  a: 3\nmore: {<<: [*base]}\n")

    assert document.data["use"] == {"a": 3, "b": {"c": 2}}
    assert document.data["more"] == {"a": 1, "b": {"c": 2}}
    assert document.places["use", "a"].line == 4
    assert document.places["use", "b"].line == 1


@pytest.mark.parametrize(
    "text, line, sentence",
    [
        ("", 1, "the file is empty; `partner-bridge init` writes one"),
        ("# nothing\n", 1, "the file is empty"),
        ("- a\n", 1, "the file must hold keys such as `crm:`"),
        ("a: [1\nb: 2\n", 2, "not valid YAML"),
        ("a: 1\n\tb: 2\n", 2, "not valid YAML"),
        ("a: *nowhere\n", 1, "not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "not valid YAML"),
        ("a: &a [*a]\n", 1, "an alias stands inside its own anchor"),
        ("a: " + "[" * 3000, 1, ""),
    ],
)
def test_what_is_no_configuration_is_refused_in_a_sentence(tmp_path: Path, text: str, line: int, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, text)

    (problem,) = raised.value.problems
    assert sentence in problem.message
    assert problem.line == line
    assert "\n" not in str(problem)


def test_nested_aliases_cannot_ask_for_billions_of_values(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]

    with pytest.raises(ConfigError, match="too many values"):
        read(tmp_path, "\n".join(lines))


def test_a_tag_is_a_problem(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, "a: !!python/name:os.system x\n").problems

    assert (problem.path, problem.line) == ("a", 1)
    assert "leave it out" in problem.message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("a: 1\nname: Société\n".encode("latin-1"))
    cases: list[tuple[Path, Any]] = [
        (tmp_path / "gone.yaml", "there is no configuration file"),
        (tmp_path, "is a directory"),
        (tmp_path / "latin.yaml", "2: not UTF-8"),
    ]

    for path, sentence in cases:
        with pytest.raises(ConfigError, match=sentence) as raised:
            read_yaml(path)
        assert str(path) in str(raised.value)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeffcrm: 1\n").data == {"crm": 1}


def test_a_large_file_takes_hardly_more_than_its_values(tmp_path: Path) -> None:
    """The parser's nodes, ten times as large as they, are given up source by source."""
    properties = "".join(f"      p{n}: {{from: data.f{n}, type: number, scale: 0.01}}\n" for n in range(40))
    sources = "".join(f"  s{n}:\n    event_id: id\n    properties:\n{properties}" for n in range(25))
    file = tmp_path / "bridge.yaml"
    file.write_text(f"sources:\n{sources}", encoding="utf-8")
    read_yaml(file)  # what is loaded with the first one is no part of it
    tracemalloc.start()
    try:
        document = read_yaml(file)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(document.data["sources"]) == 25
    assert document.place(("sources", "s24", "properties", "p39", "type")).line == file.read_text().count("\n")
    assert peak < 2 * kept


def test_aliases_hold_across_sources_and_a_key_twice_is_told_as_ever(tmp_path: Path) -> None:
    """Also where what they name was walked and given up while the file was being read."""
    file = tmp_path / "bridge.yaml"
    file.write_text(
        "x-base: &base {a: 1, deep: {b: &two 2}}\n"
        "sources:\n"
        "  one: &one {<<: *base, deep: {c: *two}}\n"
        "  two: *one\n"
        "  one: {d: 4}\n"
        "  three: {<<: [*one, *base], e: 5}\n",
        encoding="utf-8",
    )
    document = read_yaml(file)
    one = {"a": 1, "deep": {"c": 2}}
    assert document.data["sources"] == {"one": one, "two": one, "three": {"e": 5, **one}}
    assert [(problem.path, problem.line) for problem in document.problems] == [("sources.one", 5)]
    assert document.place(("sources", "one", "deep", "c")).line == 3
    assert document.place(("sources", "one", "a")).line == 1
    file.write_text("sources: &all\n  one: {a: 1}\nx-again: *all\n", encoding="utf-8")
    assert read_yaml(file).data["x-again"] == {"one": {"a": 1}}
    file.write_text("sources: &all\n  one: {a: *all}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="an alias stands inside its own anchor"):
        read_yaml(file)
