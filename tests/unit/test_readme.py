"""The README tells the truth: what it lists is what there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from bridge.cli import COMMANDS
from bridge.operations.logs import LEVELS
from bridge.operations.metrics import Gauges, Metrics
from tests.unit.test_alerts import rules
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


def log_fields() -> set[str]:
    """The fields that the README promises."""
    table = README.partition("<!-- log-fields -->")[2].partition("\n\n")[0]
    return {name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1] if line else "")}


def test_every_field_of_the_log_is_listed_and_every_listed_field_occurs() -> None:
    """Constant texts, too: what is searched for must not hold what varies."""
    written = {"timestamp", "level", "event", "logger", "exception", "lines"}  # by structlog, and `logs.Lines`
    for file in sorted((Path(__file__).parents[2] / "bridge").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and writes_a_line(node.func):
                assert isinstance(node.args[0], ast.Constant), (file, node.lineno)
                written |= {keyword.arg for keyword in node.keywords if keyword.arg is not None}
    call = {"object_type", "id_property", "sources", "step", "correlation_id", "delivered", "refused", "retried"}
    acts = {"entries", "values", "unmapped", "given_up", "left_out", "pauses", "dry_run"}
    assert written | call | acts == log_fields()  # those of `log_call` and `log_act` are put together


def writes_a_line(function: ast.expr) -> bool:
    """`log.info`, `self._log.exception` and the like."""
    return re.fullmatch(rf"(?:\w+\.)*_?log\.(?:{'|'.join(LEVELS)}|exception)", ast.unparse(function)) is not None


def test_every_alert_has_a_paragraph_that_its_link_finds() -> None:
    """Also the other way round: no paragraph about an alert that is gone."""
    linked = [rule["annotations"]["runbook_url"].partition("#")[2] for rule in rules().values()]
    names = [f"PartnerBridge{name}" for name in rules()]
    assert re.findall(r'^- <a id="(\w+)"></a>\*\*(\w+)\*\*: \S', README, re.MULTILINE) == list(
        zip(linked, names, strict=True)
    )
