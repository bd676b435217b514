"""The chart's README: its table of values is written from the comments in values.yaml.

`python -m tests.chart_readme` writes it anew; a test checks that it is current.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

CHART = Path(__file__).parents[1] / "helm" / "partner-bridge"
README = CHART / "README.md"
MARKER = "<!-- values: written by python -m tests.chart_readme -->\n"


def rows(values: str) -> Iterator[tuple[str, str, str]]:
    """Key, default and comment of each value; a group of values has no default."""
    comment: list[str] = []
    path: list[str] = []
    for line in values.splitlines():
        if said := re.match(r"\s*# ?(.*)", line):
            comment.append(said[1])
        elif found := re.match(r"( *)([\w-]+):(?: (.*))?$", line):
            indent, key, default = found.groups()
            path[len(indent) // 2 :] = [key]
            if default or comment:
                yield ".".join(path), default or "", " ".join(comment)
            comment = []
        else:
            comment = []  # a comment that stands alone is about the file


def table(values: str) -> str:
    """The rows as Markdown."""
    lines = ["| value | default | |", "|---|---|---|"]
    for key, default, comment in rows(values):
        shown = f"`{default}`" if default else ""
        escaped = comment.replace("|", r"\|")
        lines.append(f"| `{key}` | {shown} | {escaped} |")
    return "\n".join(lines) + "\n"


def current() -> str:
    """The README as it should be: what people wrote, and the table."""
    written, _, _ = README.read_text(encoding="utf-8").partition(MARKER)
    return written + MARKER + "\n" + table((CHART / "values.yaml").read_text(encoding="utf-8"))


if __name__ == "__main__":
    README.write_text(current(), encoding="utf-8")
