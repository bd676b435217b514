"""The curves of growth as pictures, readable on light and on dark: `python -m tests.bench.pictures` draws them anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import orjson

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from tests.bench.results import KEPT

Curve = Sequence[Sequence[float]]

#: Grey and blue that stand out from white and from near-black alike.
GREY, BLUE = "#7d8590", "#2f81f7"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "partner-bridge",  # the same figures make the same file
    "font.family": "sans-serif",
    "font.size": 9,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color"), GREY
    ),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GREY,
    "grid.alpha": 0.25,
}
COLUMNS = 4


def draw(kept: Mapping[str, Any], folder: Path) -> None:
    """Write `backlog.svg` and `calls.svg`, of what `growth` kept."""
    for name, x_title in (("backlog", "records waiting"), ("calls", None)):
        if name in kept:
            _sheet(kept[name]["curves"], folder / f"{name}.svg", x_title=x_title)


def _sheet(curves: Mapping[str, Curve], file: Path, *, x_title: str | None) -> None:
    columns = min(COLUMNS, len(curves))
    lines = -(-len(curves) // columns)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]  # the stubs list every key
        figure, grid = plt.subplots(lines, columns, figsize=(2.6 * columns, 2.1 * lines), squeeze=False)
        for axes, (name, curve) in zip(grid.flat, curves.items(), strict=False):
            settled = "retention" in name  # whatever waits is not pruned
            _panel(axes, name, curve, "settled events" if settled else x_title or name.removeprefix("calls by "))
        for axes in list(grid.flat)[len(curves) :]:
            axes.set_visible(False)
        figure.tight_layout()
        figure.savefig(file, transparent=True, metadata={"Date": None})
        plt.close(figure)


def _panel(axes: Axes, title: str, curve: Curve, x_title: str) -> None:
    places = range(len(curve))  # evenly: from nothing to millions
    axes.plot(places, [y for _, y in curve], color=BLUE, marker="o", markersize=4, linewidth=1.8)
    for place, (_, y) in zip(places, curve, strict=True):
        axes.annotate(f"{y:,.3g}" if y < 1000 else f"{y:,.0f}", (place, y), (0, 5), textcoords="offset points",
                      ha="center", fontsize=8)  # fmt: skip
    axes.set_title("CRM calls" if title.startswith("calls by ") else title, fontsize=9)
    axes.set_xlabel(x_title)
    axes.set_xticks(list(places), [short(x) for x, _ in curve])
    axes.set_xlim(-0.4, len(curve) - 0.6)
    axes.set_ylim(0, max(y for _, y in curve) * 1.25 or 1)


def short(number: float) -> str:
    """1,000,000 as 1M, 100,000 as 100k."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"


if __name__ == "__main__":
    draw(orjson.loads((KEPT / "growth.json").read_bytes()), KEPT)
