"""What the page's charts draw, as plain data: a list of lines, and their numbers, curves and layer profiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jcredit.report import stats
from jcredit.report.schema import Row, grouped, number_at
from jcredit.report.series import Series, curve_points, over_seeds, profile_points
from jcredit.report.styles import estimator_of, label_styles, on_dark
from jcredit.report.tables import MISSING, Tables

LONGEST = 40
"""Points of a curve that is drawn whole; of a longer one every k-th, and the last."""
DIGITS = 4
DASHES = {"-": [1, 0], "--": [6, 3], ":": [2, 3], "-.": [7, 3, 2, 3]}
SHAPES = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "P": "cross",
    "X": "M-1,-.6L-.6,-1L0,-.4L.6,-1L1,-.6L.4,0L1,.6L.6,1L0,.4L-.6,1L-1,.6L-.4,0Z",
    "p": "M0,-1L.951,-.309L.588,.809L-.588,.809L-.951,-.309Z",
    "h": "M0,-1L.866,-.5L.866,.5L0,1L-.866,.5L-.866,-.5Z",
    "H": "M1,0L.5,.866L-.5,.866L-1,0L-.5,-.866L.5,-.866Z",
    "8": "M.924,.383L.383,.924L-.383,.924L-.924,.383L-.924,-.383L-.383,-.924L.383,-.924L.924,-.383Z",
    "*": "M0,-1.2L.3,-.4L1.14,-.37L.48,.15L.7,.97L0,.5L-.7,.97L-.48,.15L-1.14,-.37L-.3,-.4Z",
}
"""Vega's shapes for the markers of ``styles``, those it lacks as SVG paths."""


class Section(NamedTuple):
    """An experiment on the page.

    Attributes:
      name: of the experiment.
      preset: whose rows these are.
      question: one line; "" where there is none.
      tables: what is said of the rows.
      rows: with the study's figures (``tables.with_study``).
    """

    name: str
    preset: str
    question: str
    tables: Tables
    rows: Sequence[Row]


class Facts(NamedTuple):
    """What the page filters by, of a line or of a run."""

    experiment: str
    block: str
    method: str
    tier: str
    depth: str
    seeds: tuple[int, ...]


def facts_of(section: Section, rows: Sequence[Row]) -> Facts:
    """Of the rows of one line, or of one of them."""
    depth = number_at(rows[0], "config.network.depth")
    return Facts(
        section.name, rows[0].get("block") or "", estimator_of(rows[0]), str(rows[0].get("tier") or MISSING),
        MISSING if depth is None else f"{depth:g}", tuple(row["seed"] for row in rows),
    )  # fmt: skip


def charts_of(section: Section) -> dict[str, Any]:
    """Everything that a section's charts draw.

    Returns:
      {"lines": [{"block", "label", "color", "dark", "shape", "dash", "filled"}, ...] in the order of the tables;
      "metrics": {name: per line [mean, low, high, study, [a number per seed]], or null};
      "curves", "layers": {name: per line [which of "xs" it is over, [mean, ...], [min, ...], [max, ...]] over seeds
      (without the last two where they are the mean: of one seed),
      or null}; "xs": [[x, ...], ...]}.
    """
    blocks = grouped(section.rows)
    styles = label_styles(blocks)
    found = [(block, label, rows) for block, labels in blocks.items() for label, rows in labels.items()]
    lines = []
    for block, label, rows in found:
        look = styles[estimator_of(rows[0]), label]
        lines.append({
            "block": block, "label": label, "color": look.color, "dark": on_dark(look.color),
            "shape": SHAPES[look.marker], "dash": DASHES[look.dash], "filled": look.filled,
        })  # fmt: skip
    groups = [rows for *_, rows in found]
    xs: dict[tuple[Any, ...], int] = {}
    return {
        "lines": lines,
        "metrics": {name: [_metric(rows, name) for rows in groups] for name in _names(section.rows, "metrics")},
        "curves": _series(section.rows, groups, "curves", curve_points, xs),
        "layers": _series(section.rows, groups, "layers", profile_points, xs),
        "xs": [list(x) for x in xs],
    }


def _names(rows: Iterable[Row], field: str) -> list[str]:
    """Names under a field that have a number in some row, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name, value in (row.get(field) or {}).items() if _any(value)))


def _any(value: Any) -> bool:
    return any(v is not None for v in value) if isinstance(value, list) else value is not None


def _metric(rows: Sequence[Row], name: str) -> list[Any] | None:
    values = stats.present(number_at(row, f"metrics.{name}") for row in rows)
    if not values.size:
        return None
    found = stats.summary(values)
    study = number_at(rows[0], f"study.{name}")
    return [*(rounded(v) for v in (found.mean, found.low, found.high, study)), [rounded(v) for v in values]]


def _series(
    rows: Sequence[Row], groups: Sequence[Sequence[Row]], field: str,
    points: Callable[[Row, str], Mapping[float, float]], xs: dict[tuple[Any, ...], int],
) -> dict[str, Any]:  # fmt: skip
    """Mean and range over seeds of everything under a field that is more than a point; new abscissae go into ``xs``."""

    def drawn(series: Series) -> list[Any] | None:
        if not series.x:
            return None
        x, *ys = ([rounded(v) for v in _thinned(part)] for part in series)
        mean, *bounds = ys
        return [xs.setdefault(tuple(x), len(xs)), mean, *(bounds if bounds != [mean, mean] else ())]

    found = {}
    for name in _names(rows, field):
        series = [over_seeds([points(row, name) for row in group]) for group in groups]
        if any(len(s.x) > 1 for s in series):
            found[name] = [drawn(s) for s in series]
    return found


def _thinned(values: Sequence[float]) -> list[float]:
    step = -(-len(values) // LONGEST)
    kept = list(values[::step])
    return kept if (len(values) - 1) % step == 0 else [*kept, values[-1]]


def rounded(value: float | None) -> float | None:
    """A number to four digits; whole ones as such; None where there is none."""
    if value is None or value != value:
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short
