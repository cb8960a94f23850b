"""Figures from rows: bars with an interval and a dot per seed, lines and layer profiles with a band over the seeds.

Bars have a black diamond at the study's own number where row["study"] holds one (``tables.with_study``).

All figures use matplotlib's object interface (no global state that lasts), are written atomically, and are the same
bytes for the same rows.  An estimator has one colour and one marker in all figures (``styles``).  Missing numbers are
left out; diverged runs are counted in the label.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullFormatter

from jcredit.files import FileError, write_bytes
from jcredit.report import stats
from jcredit.report.schema import Row, grouped, number_at
from jcredit.report.series import curve_points, over_seeds, points_at, profile_points
from jcredit.report.styles import Blocks, Labels, Style, estimator_of, label_styles

TITLES = {
    "test_accuracy": "test accuracy (fraction)",
    "gamma": "Gamma (cosine with true credit)",
    "rho": "rho (predicted vs. true effect)",
    "nudge": "nudge (loss change, low is good)",
    "loss change": "loss change (nats)",
    "h_rms_last": "RMS of h_L (log scale)",
}
LOGARITHMIC = ("h_rms_last",)
STUDY_MARK: dict[str, Any] = {"marker": "D", "ms": 4.2, "color": "black", "mec": "white", "mew": 0.6, "ls": "none"}
SEED_MARK: dict[str, Any] = {"ms": 4.6, "mfc": "white", "mec": "black", "mew": 0.8, "ls": "none"}
MARKED = 8
"""Markers of a long curve."""
TITLE_WIDTH = 25
"""Characters below a panel of bars."""
UNSAID = {"png": ("Software",), "pdf": ("Creator", "Producer", "CreationDate"), "svg": ("Creator", "Date")}
"""Kinds of figures, and what Matplotlib would say in each of itself and the day."""
LEGEND_INCHES = (0.5, 0.055)
"""Width of a mark below the panels, and of a character of what it says."""
DPI = 150


Points = Callable[[Row], dict[float, float]]
Styles = Mapping[tuple[str, str], Style]


def bars(rows: Sequence[Row], metrics: Sequence[str], path: str | Path, title: str = "") -> None:
    """Writes one panel per metric (a name in row["metrics"]) and block: bars, 95% intervals, dots for seeds."""
    blocks = grouped(rows)
    figure, axes = _panels(blocks, [3.0] * len(metrics), title)
    _bar_panels(axes, blocks, metrics, label_styles(blocks))
    _marks_legend(figure, rows, metrics, lines=False)
    write_figure(figure, path)


def layer_profile(rows: Sequence[Row], metric: str, path: str | Path, title: str = "") -> None:
    """Writes a panel per block of ``row["layers"][metric]`` over depth l / L: mean and range over seeds per label."""
    _line_figure(rows, lambda row: profile_points(row, metric), path, title, "depth (layer / L)", _title(metric))


def against(
    rows: Sequence[Row], curve: str, xs: Sequence[float], path: str | Path, title: str, xlabel: str,
    top: float | None = None,
) -> None:  # fmt: skip
    """Writes a panel per block of ``row["curves"][curve]`` over the abscissae ``xs``: mean and range over seeds.

    ``top`` is where the panels end, of whatever runs out of them all seeds count.
    """
    points = lambda row: dict(points_at(row, f"curves.{curve}", xs))  # noqa: E731
    _line_figure(rows, points, path, title, xlabel, _title(curve), top)


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
      path: the file, a PNG, PDF or SVG by its ending.
      title: heading of the figure.
      metrics: names in row["metrics"].
      curve: name in row["curves"].
    """
    metrics = [m for m in metrics if any(number_at(r, f"metrics.{m}") is not None for r in rows)]
    has_curve = any(curve_points(r, curve) for r in rows)
    blocks = grouped(rows)
    figure, axes = _panels(blocks, [2.1] * len(metrics) + [3.4] * has_curve, title)
    styles = label_styles(blocks)
    _bar_panels(axes, blocks, metrics, styles)
    _marks_legend(figure, rows, metrics, lines=has_curve, bars=bool(metrics))
    for i, (block, labels) in enumerate(blocks.items() if has_curve else ()):
        axis = axes[i][-1]
        _line_panel(axis, labels, styles, lambda row: curve_points(row, curve), counted=labels)
        _tidy(axis, "" if metrics else block, xlabel="epoch", ylabel=_title(curve))
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        looks = {styles[_key(label, found)][:2] for label, found in labels.items()}
        if not metrics or len(looks) < len(labels):  # else colours and markers of the bars beside name the lines
            _legend(axis)
    if has_curve:
        _same_limits(axes, len(metrics), "y")
    write_figure(figure, path)


def study_mark(rows: Sequence[Row], metric: str) -> float | None:
    """The study's number for a line of a table; None where there is none, or none that a logarithmic axis has."""
    value = number_at(rows[0], f"study.{metric}")
    return None if value is None or (value <= 0 and metric in LOGARITHMIC) else value


def _title(metric: str) -> str:
    name = TITLES.get(metric, metric.replace("_", " "))
    parts = name.split(" (", 1) if len(name) > TITLE_WIDTH else [name]
    return "\n(".join(textwrap.fill(part, TITLE_WIDTH) for part in parts)


def _named(label: str, rows: Sequence[Row]) -> str:
    diverged = sum(row["status"] != "ok" for row in rows)
    return plain(textwrap.fill(label, 30)) + (f"\n({diverged}/{len(rows)} diverged)" if diverged else "")


def plain(text: str) -> str:
    """A text as Matplotlib draws it as it is: neither mathematics nor, for its _, left out of a legend."""
    return ("\N{ZERO WIDTH SPACE}" if text.startswith("_") else "") + text.replace("$", r"\$")


def _key(label: str, rows: Sequence[Row]) -> tuple[str, str]:
    return estimator_of(rows[0]), label


def _bar_panels(axes: Any, blocks: Blocks, metrics: Sequence[str], styles: Styles) -> None:
    """Draws a line of bar panels per block, one column per metric from the left; the first names block and labels."""
    for i, (block, labels) in enumerate(blocks.items()):
        for j, metric in enumerate(metrics):
            _bar_panel(axes[i][j], labels, metric, styles, names=j == 0)
            _tidy(axes[i][j], block if j == 0 else "", xlabel=_title(metric), grid="x")
    for j in range(len(metrics)):
        _same_limits(axes, j, "x")


def _bar_panel(axis: Axes, labels: Labels, metric: str, styles: Styles, names: bool) -> None:
    for y, (label, rows) in enumerate(labels.items()):
        values = stats.present(number_at(row, f"metrics.{metric}") for row in rows)
        style = styles[_key(label, rows)]
        if values.size:
            axis.barh(y, values.mean(), height=0.68, color=style.color, hatch=style.hatch, edgecolor="white")
            _whisker(axis, y, *stats.interval95(values))
            axis.plot(values, [y] * values.size, marker=style.marker, **SEED_MARK, clip_on=False, zorder=4)
        else:
            axis.annotate(
                "no value", (0.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=7, color="0.4"
            )
        if (study := study_mark(rows, metric)) is not None:
            axis.plot(study, y, **STUDY_MARK, clip_on=False, zorder=5)
    axis.set_yticks(range(len(labels)), [_named(k, v) for k, v in labels.items()] if names else [""] * len(labels))
    axis.set_ylim(len(labels) - 0.4, -0.6)
    if metric in LOGARITHMIC:
        axis.set_xscale("log")
        found = (number_at(row, f"metrics.{metric}") for rows in labels.values() for row in rows)
        least = min((value for value in found if value), default=1.0)
        left = 0.1 if least > 0.1 else 10.0 ** math.floor(math.log10(least / 1.5)) if least > 0 else 1e-9
        axis.set_xlim(left=left, right=max(1.0, axis.get_xlim()[1]))  # a decade at least, or no tick is named
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.axvline(0, color="0.3", lw=0.8)
        farthest = max(map(abs, axis.get_xlim()))
        axis.xaxis.set_major_locator(MaxNLocator(nbins=4 if farthest > 0.01 else 2))  # small numbers are wide
    axis.tick_params(axis="y", length=0)


def _whisker(axis: Axes, y: float, low: float, high: float) -> None:
    """Draws an interval, black within white; the panel's edge cuts what two or three seeds leave open."""
    if math.isfinite(low):
        low = max(low, 1e-9) if axis.get_xscale() == "log" else low
        for color, width in (("white", 2.6), ("black", 0.9)):  # an artist: the limits of the axis stay as they are
            axis.add_artist(Line2D([low, high], [y, y], color=color, lw=width, marker="|", ms=6, mew=width, zorder=3))


def seeds_of(rows: Sequence[Row]) -> str:
    """How many seeds the lines of some rows have, from the fewest to the most: "2 to 6 seeds"."""
    counts = sorted({len(found) for labels in grouped(rows).values() for found in labels.values()})
    return " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1]))) + " seed" + "s" * (counts[-1] > 1)


def _marks_legend(
    figure: Figure, rows: Sequence[Row], metrics: Sequence[str], bars: bool = True, lines: bool = True
) -> None:
    """Says below the panels what the marks are, and over how many seeds."""
    if not rows:
        return
    seeds = seeds_of(rows)
    handles: list[Any] = []
    if bars:
        handles += [Line2D([], [], marker="o", **SEED_MARK, label=f"a seed, in its line's marker ({seeds})")]
        handles += [Line2D([], [], color="black", marker="|", ms=6, lw=0.9, label="95% t interval of the mean")]
    if lines:
        ended = ", those that are left" if any(row["status"] != "ok" for row in rows) else ""
        name = ("range of the seeds" if bars else f"mean and range of {seeds}") + ended
        handles += [Patch(color="0.6", alpha=0.4, lw=0, label=name)]
    if any(study_mark([row], metric) is not None for row in rows for metric in metrics):
        handles += [Line2D([], [], **STUDY_MARK, label="the study")]
    fits = sum(LEGEND_INCHES[0] + LEGEND_INCHES[1] * len(h.get_label()) for h in handles) < figure.get_figwidth()
    columns = len(handles) if fits else 1
    figure.legend(handles=handles, loc="outside lower left", fontsize=8, frameon=False, ncols=columns)


def _line_panel(axis: Axes, labels: Labels, styles: Styles, points: Points, counted: Labels) -> None:
    """Draws a line and band per label; the legend counts the diverged among the rows of ``counted``."""
    for i, (label, rows) in enumerate(labels.items()):
        series = over_seeds([points(row) for row in rows])
        if not series.x:
            continue
        style, every = styles[_key(label, rows)], -(-len(series.x) // MARKED)
        axis.plot(
            series.x, series.mean, style.dash, color=style.color, lw=1.5, marker=style.marker, ms=5, mew=0.9,
            mfc=style.color if style.filled else "white", markevery=(i % every, every),
            label=_named(label, counted[label]),
        )  # fmt: skip
        if len(rows) > 1:
            axis.fill_between(series.x, series.low, series.high, color=style.color, alpha=0.14, lw=0)


def _line_figure(
    rows: Sequence[Row], points: Points, path: str | Path, title: str, xlabel: str, ylabel: str,
    top: float | None = None,
) -> None:  # fmt: skip
    """Writes a panel of lines per block; one legend serves all panels if they have the same labels."""
    blocks = grouped(rows)
    columns = min(3, max(1, len(blocks)))
    distinct = len({frozenset(labels) for labels in blocks.values()}) > 1  # then each panel has its own legend
    lines = -(-len(blocks) // columns) or 1
    figure = Figure(
        figsize=(1.2 + (4.8 if distinct else 3.2) * columns, 0.4 + 2.9 * lines), dpi=DPI, layout="constrained"
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
    if top is not None:
        below = [low for low in (axis.dataLim.ymin for axis in flat[: len(blocks)]) if math.isfinite(low)]
        flat[0].set_ylim(min([*below, 0.0]) - 0.05 * top, top)  # the panels share it
    figure.suptitle(plain(title or ylabel), fontsize=11)
    _marks_legend(figure, rows, (), bars=False)
    write_figure(figure, path)


def _panels(blocks: Blocks, widths: Sequence[float], title: str) -> tuple[Figure, Any]:
    """A figure with one line of panels per block, as tall as its labels need."""
    heights = [0.9 + 0.3 * max(3, len(labels)) for labels in blocks.values()] or [1.5]
    widths = widths or [3.0]
    figure = Figure(figsize=(2.2 + sum(widths), 0.5 + sum(heights)), dpi=DPI, layout="constrained")
    axes = figure.subplots(
        len(heights), len(widths), squeeze=False, gridspec_kw={"height_ratios": heights, "width_ratios": widths}
    )
    figure.suptitle(plain(title), fontsize=11)
    return figure, axes


def _same_limits(axes: Any, column: int, which: Literal["x", "y"]) -> None:
    """Gives all lines of a column the same axis, so that blocks can be compared by eye."""
    limits = [getattr(line[column], f"get_{which}lim")() for line in axes if line[column].has_data()]
    if limits:
        low, high = min(low for low, _ in limits), max(high for _, high in limits)
        for line in axes:
            getattr(line[column], f"set_{which}lim")(low, high)


def _tidy(axis: Axes, title: str, xlabel: str, ylabel: str = "", grid: Literal["x", "both"] = "both") -> None:
    axis.set_title(plain(title), fontsize=9.5, loc="left", fontweight="bold")
    axis.set_xlabel(xlabel, fontsize=9)
    axis.set_ylabel(ylabel, fontsize=9)
    axis.tick_params(labelsize=8.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color="0.9", lw=0.6)
    axis.set_axisbelow(True)


def _legend(axis: Axes) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(
            loc="upper left", bbox_to_anchor=(1.02, 1.0), fontsize=8, frameon=False, borderaxespad=0, handlelength=2.8
        )


def write_figure(figure: Figure, path: str | Path) -> None:
    """Writes a PNG, PDF or SVG atomically: the same bytes for the same figure, whatever day it is.

    Raises:
      FileError: the file is named as one of another kind.
    """
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in UNSAID:
        raise FileError(f"figure {str(path)!r}: figures are PNGs, PDFs or SVGs; end its name in .png, .pdf or .svg")
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "jcredit", "pdf.fonttype": 42}):  # fonts that journals take
        figure.savefig(buffer, format=kind, metadata=dict.fromkeys(UNSAID[kind]))
    write_bytes(path, buffer.getvalue())
