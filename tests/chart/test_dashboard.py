"""The Grafana dashboard is whole: what it asks can be asked, and every panel says what it shows."""

from __future__ import annotations

import json
import re
from typing import Any

import promql_parser
import pytest

from tests.chart.rendering import CHART

BOARD: dict[str, Any] = json.loads((CHART / "files" / "dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
#: What Grafana puts in place of its variables.
VARIABLES = {"$namespace": "prod", "$job": "prod/rel", "$source": ".*", "$__rate_interval": "2m"}


def queries() -> list[str]:
    """Every PromQL expression, as Prometheus gets it."""
    found = [target["expr"] for panel in PANELS for target in panel["targets"]]
    for name, value in VARIABLES.items():
        found = [expression.replace(name, value) for expression in found]
    return found


def test_rows_are_those_that_operators_ask_for() -> None:
    rows = [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Flow", "Delivery", "Trouble", "Journal", "Sources"]


@pytest.mark.parametrize("expression", sorted(set(queries())))
def test_every_query_is_promql_over_the_chosen_deployment(expression: str) -> None:
    assert "$" not in expression
    promql_parser.parse(expression)
    selectors = re.findall(r"bridge_\w+(\{[^}]*\})?", expression)
    assert selectors
    assert all(selector.startswith('{namespace=~"prod",job=~"prod/rel"') for selector in selectors), expression


def test_every_panel_says_what_it_shows_and_lies_beside_the_others() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in PANELS:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"].get("unit") or panel["type"] == "state-timeline", panel["title"]
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def test_it_fits_any_grafana_and_deployment() -> None:
    assert (BOARD["uid"], BOARD["schemaVersion"]) == ("partner-bridge", 42)
    assert "id" not in BOARD
    variables = {each["name"]: each for each in BOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "namespace", "job", "source"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for name in ("namespace", "job", "source"):
        assert re.fullmatch(rf"label_values\(bridge_\w+.*, {name}\)", variables[name]["definition"])


def test_no_gauge_is_added_up_over_replicas() -> None:
    """Each tells of the whole deployment; a sum may only add up what was made one of before."""
    for expression in queries():
        for aggregate, metric in re.findall(r"(\w+)(?: by \([\w, ]+\))? ?\((bridge_\w+)\{", expression):
            if not metric.endswith(("_total", "_bucket", "_count", "_sum")):
                assert aggregate in {"max", "min", "count"}, expression
