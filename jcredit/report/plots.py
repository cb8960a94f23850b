"""Figures from rows: bars with a dot per seed, lines and layer profiles with a band over the range of the seeds.

Bars have a black diamond at the study's own number where row["study"] holds one (``tables.with_study``).

All figures use matplotlib's object interface (no global state), are written atomically, and are the same bytes for the
same rows.  A label keeps its colour in all panels and blocks.  Missing numbers are left out; diverged runs are counted
in the label.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from jcredit.files import write_bytes
from jcredit.report import stats
from jcredit.report.schema import Row, grouped, number_at

# Okabe & Ito's palette, which colour-blind readers can tell apart, without its yellow (too pale on white).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
DASHES = ("-", "--", ":", "-.")
HATCHES = ("", "///", "...", "xxx")
TITLES = {
    "gamma": "Gamma (cosine with the true credit)",
    "rho": "rho (predicted against true effect)",
    "nudge": "nudge (loss change, lower is better)",
    "h_rms_last": "RMS of h_L (log scale)",
}
LOGARITHMIC = ("h_rms_last",)
HIDDEN_SCORES = ("gamma", "rho", "nudge", "credit_norm", "delta_norm")  # of h_0 .. h_{L-1}
STUDY_MARK: dict[str, Any] = {"marker": "D", "ms": 4.2, "color": "black", "mec": "white", "mew": 0.6, "ls": "none"}
DPI = 130


class Style(NamedTuple):
    """How a label is drawn: past the palette's end colours repeat with another dash and hatch."""

    color: str
    dash: str
    hatch: str


class Series(NamedTuple):
    """Numbers of all seeds at one abscissa each: x, mean, minimum and maximum over seeds, all of one length."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


Labels = Mapping[str, Sequence[Row]]
Blocks = Mapping[str, Labels]
Points = Callable[[Row], dict[float, float]]


def bars(rows: Sequence[Row], metrics: Sequence[str], path: str | Path, title: str = "") -> None:
    """Writes one panel per metric (a name in row["metrics"]) and block: bars at the mean, a dot per seed."""
    blocks = grouped(rows)
    figure, axes = _panels(blocks, [3.6] * len(metrics), title)
    _bar_panels(axes, blocks, metrics, label_styles(blocks))
    _study_legend(figure, rows, metrics)
    write_figure(figure, path)


def layer_profile(rows: Sequence[Row], metric: str, path: str | Path, title: str = "") -> None:
    """Writes a panel per block of ``row["layers"][metric]`` over depth l / L: mean and range over seeds per label."""
    _line_figure(rows, lambda row: _profile(row, metric), path, title, "depth (layer / L)", _title(metric))


def against(rows: Sequence[Row], curve: str, xs: Sequence[float], path: str | Path, title: str, xlabel: str) -> None:
    """Writes a panel per block of ``row["curves"][curve]`` over the abscissae ``xs``: mean and range over seeds."""
    _line_figure(rows, lambda row: dict(_points(row, f"curves.{curve}", xs)), path, title, xlabel, _title(curve))


def overview(
    rows: Sequence[Row],
    path: str | Path,
    title: str = "",
    metrics: Sequence[str] = ("test_accuracy", "gamma"),
    curve: str = "test_accuracy",
) -> None:
    """Writes an experiment's default figure: per block, one line of bars for each metric and the curve over epochs.

    A metric or curve that no row has gets no panel.

    Args:
      rows: rows of one experiment.
      path: the PNG.
      title: heading of the figure.
      metrics: names in row["metrics"].
      curve: name in row["curves"].
    """
    metrics = [m for m in metrics if any(number_at(r, f"metrics.{m}") is not None for r in rows)]
    has_curve = any(_curve(r, curve) for r in rows)
    blocks = grouped(rows)
    figure, axes = _panels(blocks, [2.6] * len(metrics) + [4.0] * has_curve, title)
    styles = label_styles(blocks)
    _bar_panels(axes, blocks, metrics, styles)
    _study_legend(figure, rows, metrics)
    for i, (block, labels) in enumerate(blocks.items() if has_curve else ()):
        axis = axes[i][-1]
        _line_panel(axis, labels, styles, lambda row: _curve(row, curve), counted=labels)
        _tidy(axis, "" if metrics else block, xlabel="epoch", ylabel=_title(curve))
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        if not metrics or len(labels) > len(PALETTE):  # else the bars beside name the colours
            _legend(axis)
    if has_curve:
        _same_limits(axes, len(metrics), "y")
    write_figure(figure, path)


def label_styles(blocks: Blocks) -> dict[str, Style]:
    """A style per label: labels that share a block differ, a label looks the same wherever it occurs."""
    together: dict[str, set[str]] = {}
    for labels in blocks.values():
        for label in labels:
            together.setdefault(label, set()).update(labels)
    slots: dict[str, int] = {}
    for label, others in together.items():
        taken = {slots[other] for other in others if other in slots}
        slots[label] = next(k for k in range(len(taken) + 1) if k not in taken)

    def style(slot: int) -> Style:
        lap = slot // len(PALETTE) % len(DASHES)
        return Style(PALETTE[slot % len(PALETTE)], DASHES[lap], HATCHES[lap])

    return {label: style(slot) for label, slot in slots.items()}


def over_seeds(seeds: Sequence[Mapping[float, float]]) -> Series:
    """Collects {abscissa: number} of each seed into mean and range at every abscissa that any seed has."""
    xs = sorted({x for points in seeds for x in points})
    at = [[points[x] for points in seeds if x in points] for x in xs]
    return Series(xs, [stats.mean(v) for v in at], [min(v) for v in at], [max(v) for v in at])


def study_mark(rows: Sequence[Row], metric: str) -> float | None:
    """The study's number for a line of a table; None where there is none, or none that a logarithmic axis has."""
    value = number_at(rows[0], f"study.{metric}")
    return None if value is None or (value <= 0 and metric in LOGARITHMIC) else value


def _curve(row: Row, name: str) -> dict[float, float]:
    """Epoch -> number; a curve with one entry more than there are epochs starts before training, at epoch 0."""
    length = len((row.get("curves") or {}).get(name) or [])
    first = 0 if length == row.get("epochs", length) + 1 else 1
    return dict(_points(row, f"curves.{name}", [float(first + i) for i in range(length)]))


def _profile(row: Row, name: str) -> dict[float, float]:
    """Depth l / L -> number.

    Scores of credit have an entry for each h_0..h_{L-1} and start at l = 0, like profiles with L + 1 entries; any other
    profile of L entries belongs to the blocks' outputs and starts at l = 1.
    """
    layers = row.get("layers") or {}
    length = len(layers.get(name) or [])
    depth = next((len(layers[score]) for score in HIDDEN_SCORES if layers.get(score)), max(1, length - 1))
    first = 1 if length == depth and name not in HIDDEN_SCORES else 0
    return dict(_points(row, f"layers.{name}", [(first + i) / depth for i in range(length)]))


def _points(row: Row, path: str, xs: Sequence[float]) -> Iterator[tuple[float, float]]:
    for i, x in enumerate(xs):
        if (value := number_at(row, f"{path}.{i}")) is not None:
            yield x, value


def _title(metric: str) -> str:
    return TITLES.get(metric, metric.replace("_", " "))


def _named(label: str, rows: Sequence[Row]) -> str:
    diverged = sum(row["status"] != "ok" for row in rows)
    return textwrap.fill(label, 30) + (f"\n({diverged}/{len(rows)} diverged)" if diverged else "")


def _bar_panels(axes: Any, blocks: Blocks, metrics: Sequence[str], styles: Mapping[str, Style]) -> None:
    """Draws a line of bar panels per block, one column per metric from the left; the first names block and labels."""
    for i, (block, labels) in enumerate(blocks.items()):
        for j, metric in enumerate(metrics):
            _bar_panel(axes[i][j], labels, metric, styles, names=j == 0)
            _tidy(axes[i][j], block if j == 0 else "", xlabel=_title(metric), grid="x")
    for j in range(len(metrics)):
        _same_limits(axes, j, "x")


def _bar_panel(axis: Axes, labels: Labels, metric: str, styles: Mapping[str, Style], names: bool) -> None:
    for y, (label, rows) in enumerate(labels.items()):
        values = stats.present(number_at(row, f"metrics.{metric}") for row in rows)
        style = styles[label]
        if values.size:
            axis.barh(y, values.mean(), height=0.68, color=style.color, hatch=style.hatch, edgecolor="white")
            axis.plot(
                values, [y] * values.size, "o", ms=3.8, mfc="white", mec="black", mew=0.8, clip_on=False, zorder=3
            )
        else:
            axis.annotate(
                "no value", (0.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=7, color="0.4"
            )
        if (study := study_mark(rows, metric)) is not None:
            axis.plot(study, y, **STUDY_MARK, clip_on=False, zorder=4)
    axis.set_yticks(range(len(labels)), [_named(k, v) for k, v in labels.items()] if names else [""] * len(labels))
    axis.set_ylim(len(labels) - 0.4, -0.6)
    if metric in LOGARITHMIC:
        axis.set_xscale("log")
        axis.set_xlim(left=0.1)
    else:
        axis.axvline(0, color="0.3", lw=0.8)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=4))  # small numbers are wide
    axis.tick_params(axis="y", length=0)


def _study_legend(figure: Figure, rows: Sequence[Row], metrics: Sequence[str]) -> None:
    """Names the diamond below the panels, where there is one."""
    if any(study_mark([row], metric) is not None for row in rows for metric in metrics):
        mark = Line2D([], [], **STUDY_MARK, label="the study")
        figure.legend(handles=[mark], loc="outside lower left", fontsize=7.5, frameon=False)


def _line_panel(axis: Axes, labels: Labels, styles: Mapping[str, Style], points: Points, counted: Labels) -> None:
    """Draws a line and band per label; the legend counts the diverged among the rows of ``counted``."""
    for label, rows in labels.items():
        series = over_seeds([points(row) for row in rows])
        if not series.x:
            continue
        color, dash, _ = styles[label]
        marker = "o" if len(series.x) < 16 else None
        axis.plot(
            series.x, series.mean, dash, color=color, lw=1.6, marker=marker, ms=3, label=_named(label, counted[label])
        )
        if len(rows) > 1:
            axis.fill_between(series.x, series.low, series.high, color=color, alpha=0.16, lw=0)


def _line_figure(rows: Sequence[Row], points: Points, path: str | Path, title: str, xlabel: str, ylabel: str) -> None:
    """Writes a panel of lines per block; one legend serves all panels if they have the same labels."""
    blocks = grouped(rows)
    columns = min(3, max(1, len(blocks)))
    distinct = len({frozenset(labels) for labels in blocks.values()}) > 1  # then each panel has its own legend
    lines = -(-len(blocks) // columns) or 1
    figure = Figure(
        figsize=(1.2 + (5.2 if distinct else 3.6) * columns, 0.4 + 2.9 * lines), dpi=DPI, layout="constrained"
    )
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    flat = list(axes.flat)
    styles = label_styles(blocks)
    everywhere = {
        label: [row for row in rows if row["label"] == label] for labels in blocks.values() for label in labels
    }
    for i, (block, labels) in enumerate(blocks.items()):
        _line_panel(flat[i], labels, styles, points, counted=labels if distinct else everywhere)
        _tidy(flat[i], block, xlabel=xlabel, ylabel=ylabel if i % columns == 0 else "")
        if distinct or i == min(columns, len(blocks)) - 1:
            _legend(flat[i])
    for axis in flat[len(blocks) :]:
        axis.set_axis_off()
    figure.suptitle(title or ylabel, fontsize=11)
    write_figure(figure, path)


def _panels(blocks: Blocks, widths: Sequence[float], title: str) -> tuple[Figure, Any]:
    """A figure with one line of panels per block, as tall as its labels need."""
    heights = [0.9 + 0.3 * max(3, len(labels)) for labels in blocks.values()] or [1.5]
    widths = widths or [3.0]
    figure = Figure(figsize=(2.2 + sum(widths), 0.5 + sum(heights)), dpi=DPI, layout="constrained")
    axes = figure.subplots(
        len(heights), len(widths), squeeze=False, gridspec_kw={"height_ratios": heights, "width_ratios": widths}
    )
    figure.suptitle(title, fontsize=11)
    return figure, axes


def _same_limits(axes: Any, column: int, which: Literal["x", "y"]) -> None:
    """Gives all lines of a column the same axis, so that blocks can be compared by eye."""
    limits = [getattr(line[column], f"get_{which}lim")() for line in axes if line[column].has_data()]
    if limits:
        low, high = min(low for low, _ in limits), max(high for _, high in limits)
        for line in axes:
            getattr(line[column], f"set_{which}lim")(low, high)


def _tidy(axis: Axes, title: str, xlabel: str, ylabel: str = "", grid: Literal["x", "both"] = "both") -> None:
    axis.set_title(title, fontsize=9.5, loc="left", fontweight="bold")
    axis.set_xlabel(xlabel, fontsize=8.5)
    axis.set_ylabel(ylabel, fontsize=8.5)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color="0.9", lw=0.6)
    axis.set_axisbelow(True)


def _legend(axis: Axes) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), fontsize=7.5, frameon=False, borderaxespad=0)


def write_figure(figure: Figure, path: str | Path) -> None:
    """Writes a PNG atomically: the same bytes for the same figure, whatever Matplotlib is called."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # else the bytes name matplotlib's version
    write_bytes(path, buffer.getvalue())
