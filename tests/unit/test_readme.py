"""The README tells the truth: what it lists is what there is."""

from __future__ import annotations

import re
from pathlib import Path

from bridge.cli import COMMANDS
from bridge.operations.metrics import Gauges, Metrics
from tests.unit.test_null_and_absent import readme_table

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def exposed() -> set[str]:
    """The metric families of a real exposition."""
    gauges = Gauges(
        pending=0,
        pending_limit=1,
        oldest_pending=None,
        entries=(),
        last_event={},
        silent={},
        pauses=(),
        daily_calls_left=1,
        journal_bytes=0,
        journal_limit=1,
    )
    text = Metrics().exposition(lambda: gauges).decode()
    return {name for name in re.findall(r"^# TYPE (bridge_\w+)", text, re.MULTILINE) if not name.endswith("_created")}


def test_every_metric_is_listed_and_every_listed_metric_exists() -> None:
    assert set(re.findall(r"`(bridge_\w+)", README)) == exposed()


def test_the_table_of_null_and_absent_is_the_tested_one() -> None:
    assert readme_table() in README


def test_every_command_is_listed() -> None:
    commands = README.partition("## Commands")[2].partition("## HTTP")[0]
    assert {name for name in COMMANDS if not re.search(rf"`(?:[a-z]+`, `)?{name}\b|`{name}`", commands)} == set()


def test_relative_links_and_files_exist() -> None:
    for name in re.findall(r"`((?:bridge|tests)/[\w./]*)`", README):
        assert (Path(__file__).parents[2] / name).exists(), name
