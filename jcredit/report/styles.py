"""How a line of a table looks in every figure: one colour and one marker per estimator, everywhere.

An estimator's colour and marker are fixed here, so that figures of different experiments can be laid side by side; its
variants in one block differ in dash, fill, hatch and shade, the first twelve of them.  Colours are Okabe & Ito's and,
beyond their number, Paul Tol's, which colour-blind readers can tell apart; markers tell most estimators apart in grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jcredit.report.schema import Row

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Okabe and Ito's, without its yellow (too pale on white): of what is no estimator, such as rules."""
DASHES = ("-", "--", ":", "-.")
HATCHES = ("", "///", "...", "xxx")
SHADES = (0.0, 0.0, 0.4, 0.4, -0.4, -0.4)
"""Share of white (negative: of black) that a method's variants have, in order; by twos, which differ in fill."""

ESTIMATORS = {
    "bp": ("#000000", "o"),
    "frozen": ("#8C8C8C", "s"),
    "broadcast": ("#E69F00", "^"),
    "dfa": ("#D55E00", "v"),
    "fa": ("#CC79A7", "<"),
    "state_bridge": ("#56B4E9", "P"),
    "scalar_bridge": ("#0072B2", "X"),
    "vector_field": ("#882255", "p"),
    "tangent_gate": ("#999933", ">"),
    "tangent_mask": ("#44AA99", "h"),
    "tangent_chain": ("#117733", "*"),
    "tangent_sweeps": ("#332288", "8"),
    "tangent_coarse": ("#DDCC77", "H"),
    "linear_field": ("#AA4499", "s"),
    "grape": ("#CC6677", "P"),
    "weight_mirror": ("#994455", ">"),
    "kolen_pollack": ("#997700", "h"),
    "local_heads": ("#6699CC", "o"),
    "forward_gradient": ("#EE99AA", "X"),
    "disturbed_bp": ("#4477AA", "o"),
}
"""Colour and marker of each estimator; a wrapper has those of what it wraps."""
OTHERS = (("#AA3377", "o"), ("#228833", "s"), ("#EE6677", "^"), ("#88CCEE", "v"))
"""Of estimators that are not ours, in order of appearance."""

Labels = Mapping[str, Sequence[Row]]
Blocks = Mapping[str, Labels]


class Style(NamedTuple):
    """How a line is drawn.

    Attributes:
      color: "#RRGGBB".
      marker: Matplotlib's name of the estimator's marker.
      dash: Matplotlib's name of the line style.
      hatch: of bars.
      filled: whether markers are.
    """

    color: str
    marker: str
    dash: str
    hatch: str
    filled: bool


def estimator_of(row: Row) -> str:
    """The name of a row's estimator; of the innermost one where estimators wrap others."""
    name, part = row["method"], (row.get("config") or {}).get("credit")
    while isinstance(part, Mapping):
        name = part.get("estimator", name)
        part = next((v for v in part.values() if isinstance(v, Mapping) and "estimator" in v), None)
    return name


def label_styles(blocks: Blocks) -> dict[tuple[str, str], Style]:
    """A style per (estimator, label): colour and marker are the estimator's, labels that share a block differ."""
    together: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for labels in blocks.values():
        keys = {(estimator_of(rows[0]), label) for label, rows in labels.items()}
        for key in ((estimator_of(rows[0]), label) for label, rows in labels.items()):
            together.setdefault(key, set()).update(other for other in keys if other[0] == key[0])
    slots: dict[tuple[str, str], int] = {}
    for key, others in together.items():
        taken = {slots[other] for other in others if other in slots}
        slots[key] = next(k for k in range(len(taken) + 1) if k not in taken)
    looks = dict(ESTIMATORS)
    for name, _ in slots:
        looks.setdefault(name, OTHERS[(len(looks) - len(ESTIMATORS)) % len(OTHERS)])
    return {(name, label): _style(*looks[name], slot) for (name, label), slot in slots.items()}


def _style(color: str, marker: str, slot: int) -> Style:
    shaded = mixed(color, SHADES[slot % len(SHADES)])
    return Style(shaded, marker, DASHES[slot % len(DASHES)], HATCHES[slot % len(HATCHES)], slot % 2 == 0)


def mixed(color: str, share: float) -> str:
    """A colour with a share of white, or of black where it is negative; black itself becomes grey instead."""
    channels = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    towards = 255 if share > 0 or not any(channels) else 0
    return "#" + "".join(f"{round(c + (towards - c) * abs(share)):02X}" for c in channels)


def on_dark(color: str) -> str:
    """A colour as it is drawn on a dark ground: mixed with white until its contrast to black is 6 (WCAG 2.2).

    Black becomes white, lest it meet the grey of frozen blocks.
    """
    if not luminance(color):
        return "#FFFFFF"
    for percent in range(0, 101, 5):
        if luminance(found := mixed(color, percent / 100)) >= 6 * 0.05 - 0.05:
            return found
    raise AssertionError("white has a contrast of 21")


def luminance(color: str) -> float:
    """Relative luminance in 0..1 (WCAG 2.2) of a colour "#RRGGBB"."""
    linear = [
        c / 12.92 if (c := int(color[i : i + 2], 16) / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for i in (1, 3, 5)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
