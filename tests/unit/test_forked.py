"""Programs that tests fork end as interpreters do."""

from __future__ import annotations

from pathlib import Path

from tests.forked import Forked


def test_a_program_closes_what_it_opened_and_nobody_else_does(tmp_path: Path) -> None:
    """What the forking process had open is gone; a number of it closed late would be somebody's descriptor."""
    said = tmp_path / "said"
    with said.open("wb") as output:
        assert Forked([], stdout=output, module="tests.descriptors").wait(30) == 0
    assert said.read_text(encoding="utf-8") == ""
