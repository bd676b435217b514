"""The chart's README tells of the values that there are, and its example works."""

from __future__ import annotations

import re

from tests.chart.rendering import objects, read_yaml
from tests.chart_readme import CHART, README, current, rows


def test_the_chart_readme_is_current() -> None:
    assert README.read_text(encoding="utf-8") == current(), "run python -m tests.chart_readme"


def test_every_value_is_listed_with_its_default() -> None:
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    values = read_yaml(text)
    for key, default, comment in rows(text):
        inner = values
        for name in key.split("."):
            inner = inner[name]
        assert not default or inner == read_yaml(default), key
        assert comment or default, key
    listed = {key for key, _, _ in rows(text)}
    assert {name for name, value in values.items() if not isinstance(value, dict)} <= listed
    assert {"journal.volumeGiB", "prometheusRule.thresholds.pausedFor", "config.crm.token.file"} <= listed


def test_the_readmes_example_renders() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert "ingress" in objects(read_yaml(example))
