"""Figures of dots: one for each seed, a bar at their mean, what they belong to named on the left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jcredit.report import plots, stats
from jcredit.report.schema import Row, number_at

SMALL = 8.5
"""Size of the text at axes, in points."""


def panels(count: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of this size in inches with panels side by side."""
    figure = Figure(figsize=size, dpi=plots.DPI, layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def write(figure: Figure, title: str, path: str | Path) -> None:
    """Gives all panels the same look, and writes the figure."""
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.grid(color="0.9", lw=0.6)
        axis.set_axisbelow(True)
    figure.suptitle(title, fontsize=10)
    plots.write_figure(figure, path)


def values_of(rows: Sequence[Row], metric: str, label: str, block: str | None = None) -> list[float]:
    """A number of a line, one value for each seed that has it; in this block, or in all of them."""
    found = (number_at(r, metric) for r in rows if r["label"] == label and block in (None, r.get("block") or ""))
    return [value for value in found if value is not None]


def draw(
    axis: Axes, y: float, values: Sequence[float], color: str, label: str | None = None, *, half: float = 0.22
) -> None:
    """A dot for each seed and a bar at their mean, at height ``y`` plus and minus ``half``."""
    if values:
        axis.plot(values, [y] * len(values), "o", ms=5, color=color, alpha=0.75, mew=0, label=label)
        axis.plot([stats.mean(values)] * 2, [y - half, y + half], color=color, lw=2)


def mark(axis: Axes, values: Sequence[float], style: str, label: str, *, across: bool = False) -> None:
    """A thin line at the mean of some values: upright, or ``across`` the panel."""
    if values:
        (axis.axhline if across else axis.axvline)(stats.mean(values), color="0.3", ls=style, lw=1, label=label)


def name(axis: Axes, labels: Sequence[str], xlabel: str) -> None:
    """Names the heights 0, 1, ... from the top, and the horizontal axis."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.set_xlabel(xlabel, fontsize=SMALL)


def legend(axis: Axes) -> None:
    """What the colours and lines of a panel are, in a row below all panels; nothing happens if nothing has a label."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure = axis.get_figure()
        assert isinstance(figure, Figure)
        columns = 4 if max(map(len, labels)) < 20 else 2
        figure.legend(handles, labels, fontsize=7.5, frameon=False, loc="outside lower center", ncols=columns)
