"""What in the study hangs on how it was measured or set up, and what trains online: one figure each, made of rows.

    draw(Path("results"), load_experiments(None), Path("results/findings"))

The text is docs/findings.md, of the last one results/online/README.md.  Each figure is a pure function of the rows of
one experiment, at the preset that has rows of the most lines, or at one that the figure is about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes

from jcredit.report import dots, plots
from jcredit.report.rows import read_rows, with_reference
from jcredit.report.schema import Row, number_at
from jcredit.report.series import curve_points, over_seeds
from jcredit.report.styles import ESTIMATORS, OTHERS, PALETTE
from jcredit.report.tables import with_study
from jcredit.study.claims import PRESETS
from jcredit.study.experiment import Experiment, grid_of, in_grid
from jcredit.study.settings import ORACLE, RAW_BLOCK, STUDY_BLOCK


class Finding(NamedTuple):
    """A figure.

    Attributes:
      name: of its file.
      title: its heading.
      experiment: whose rows it shows.
      size: of the figure, in inches.
      panels: number of panels, side by side.
      draw: (axes, rows) -> None.
      preset: whose rows it shows; "": that which has rows of the most lines.
      labels: of the lines that are drawn; none: all of them.
      block: of these lines, where it is one.
    """

    name: str
    title: str
    experiment: str
    size: tuple[float, float]
    panels: int
    draw: Callable[[Sequence[Axes], Sequence[Row]], None]
    preset: str = ""
    labels: tuple[str, ...] = ()
    block: str = ""


def draw(results_dir: Path, experiments: Mapping[str, Experiment], into: Path) -> list[Path]:
    """Writes the figure of every finding whose experiment has rows, and returns the files.

    Raises:
      ResultsError: rows that cannot be read.
    """
    made = []
    for finding in FINDINGS:
        rows, preset = rows_of(results_dir, experiments, finding.experiment, finding.preset)
        rows = [row for row in rows if finding.block in ("", row.get("block"))]
        drawn = [row for row in rows if not finding.labels or row["label"] in finding.labels]
        if drawn:
            figure, axes = dots.panels(finding.panels, finding.size)
            finding.draw(axes, rows)
            source = f"{finding.experiment}, {preset}, {plots.seeds_of(drawn)} a line"
            made.append(into / f"{finding.name}.png")
            dots.write(figure, f"{finding.title}\n{source}", made[-1])
    return made


def rows_of(
    results_dir: Path, experiments: Mapping[str, Experiment], name: str, preset: str = ""
) -> tuple[list[Row], str]:
    """The rows in the present grid of an experiment, with the study's figures, and their preset.

    Where none is named that is the one that has rows of the most lines, as with claims; the longer of two that have as
    many.
    """
    if name not in experiments:
        return [], ""
    found = {
        p: in_grid(read_rows(results_dir / name / p / "rows.jsonl", name, p), grid_of(experiments[name], p))
        for p in ((preset,) if preset else PRESETS)
    }
    lines = {p: len({(row.get("block"), row["label"]) for row in rows}) for p, rows in found.items()}
    preset = max(lines, key=lambda p: lines[p])  # the first of equals
    return with_study(found[preset], experiments[name].table), preset


def _blocks(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    for block in dict.fromkeys(row.get("block") or "" for row in rows):
        yield block, [row for row in rows if (row.get("block") or "") == block]


# --- the figures ------------------------------------------------------------------------------------------------------


def _normalisation(axes: Sequence[Axes], rows: Sequence[Row]) -> None:
    credits = {"oracle": (ORACLE, "bp")} | {
        name: (name, name) for name in ("tangent_chain", "fa", "broadcast", "state_bridge", "scalar_bridge", "dfa")
    }
    rules = ((STUDY_BLOCK, PALETTE[1], "per-sample RMS, clip 1"), (RAW_BLOCK, PALETTE[0], "raw"))
    for y, labels in enumerate(credits.values()):
        for label, (block, color, name) in zip(labels, rules, strict=True):
            values = dots.values_of(rows, "metrics.test_accuracy", label, block)
            dots.draw(axes[0], y, values, color, name if y == 0 else None)
    dots.mark(axes[0], dots.values_of(rows, "metrics.test_accuracy", "frozen"), "--", "frozen blocks")
    dots.name(axes[0], list(credits), "test accuracy")
    dots.legend(axes[0])


def _rounding(axes: Sequence[Axes], rows: Sequence[Row]) -> None:
    for (block, own), color in zip(_blocks(rows), (PALETTE[1], PALETTE[0]), strict=False):
        noise = [number_at(row, "metrics.difference_noise") for row in own]
        exact, differenced = ([number_at(row, f"metrics.{m}") for row in own] for m in ("rho", "rho_one_sided"))
        points = [
            (n, abs(a - b))
            for n, a, b in zip(noise, exact, differenced, strict=True)
            if n is not None and a is not None and b is not None
        ]
        if points:
            axes[0].loglog(*zip(*points, strict=True), "o", ms=5, color=color, alpha=0.75, mew=0, label=block)
    axes[0].axvline(1, color="0.3", ls="--", lw=1, label="noise as large as the effects")
    axes[0].set_xlabel("rounding noise of a forward difference / size of the effects it measures", fontsize=dots.SMALL)
    axes[0].set_ylabel("|rho by forward difference - rho, exact|", fontsize=dots.SMALL)
    dots.legend(axes[0])


def _clamped(axes: Sequence[Axes], rows: Sequence[Row]) -> None:
    clamped = {block: dots.values_of(own, "metrics.gamma_clamped", "bp (raw)") for block, own in _blocks(rows)}
    shown = {block: values for block, values in clamped.items() if values}
    for y, (block, values) in enumerate(shown.items()):
        dots.draw(axes[0], y, values, PALETTE[1], "clamped" if y == 0 else None)
        exact = dots.values_of(rows, "metrics.gamma", "bp (raw)", block)
        dots.draw(axes[0], y, exact, PALETTE[0], "exact" if y == 0 else None)
    axes[0].axvline(0.94, color="black", ls=":", lw=1, label="the study, on CIFAR-10")
    dots.name(axes[0], list(shown), "cosine of the exact gradient with itself")
    dots.legend(axes[0])


def _dilution(axes: Sequence[Axes], rows: Sequence[Row]) -> None:
    for color, (block, own) in zip(PALETTE, _blocks(rows), strict=False):
        mine = [row for row in own if row["label"] == "dfa" and row.get("layers", {}).get("gamma")]
        depth = max((len(row["layers"]["gamma"]) for row in mine), default=0)
        for row in mine:
            values = [math.nan if v is None else v for v in row["layers"]["gamma"]]
            axes[0].plot(
                range(depth), values, "o-", ms=3.5, lw=1.2, color=color, label=block if row is mine[0] else None
            )
        dots.draw(axes[1], list(dict(_blocks(rows))).index(block), dots.values_of(own, "metrics.gamma", "dfa"), color)
    axes[0].set_xlabel("hidden state l", fontsize=dots.SMALL)
    axes[0].set_ylabel("cosine of DFA's credit with the gradient", fontsize=dots.SMALL)
    dots.name(axes[1], [block for block, _ in _blocks(rows)], "Gamma: its mean over l = 0..L-1")
    axes[1].set_xlim(left=0)
    dots.legend(axes[0])


def _case_d(axes: Sequence[Axes], rows: Sequence[Row]) -> None:
    labels = list(dict.fromkeys(row["label"] for row in rows))
    titles = {
        "dl_held_rms_all": "at the step size best on the batch",
        "careful_rms_all": "best on other training samples",
    }
    for axis, (metric, title) in zip(axes, titles.items(), strict=True):
        for color, (block, own) in zip(PALETTE, _blocks(rows), strict=False):
            for y, label in enumerate(labels):
                dots.draw(axis, y, dots.values_of(own, f"metrics.{metric}", label), color, block if y == 0 else None)
        axis.axvline(0, color="0.3", lw=0.8)
        axis.set_title(title, fontsize=dots.SMALL)
        named = labels if axis is axes[0] else [""] * len(labels)
        dots.name(axis, named, "change of held-out loss (to the right is damage)")
    dots.legend(axes[0])


def _projection(axes: Sequence[Axes], rows: Sequence[Row]) -> None:
    labels = [label for label in dict.fromkeys(row["label"] for row in rows) if label.startswith(("eT", "deltaL"))]
    for y, label in enumerate(labels):
        color = PALETTE[1] if "unit" in label else PALETTE[0]
        dots.draw(axes[0], y, dots.values_of(rows, "metrics.gamma", label), color)
        if theirs := number_at(next(row for row in rows if row["label"] == label), "study.gamma"):
            axes[0].plot(theirs, y, **plots.STUDY_MARK, label="the study" if y == 0 else None)
    dots.name(axes[0], labels, "Gamma")
    dots.legend(axes[0])


def _pinned(axes: Sequence[Axes], rows: Sequence[Row]) -> None:
    for color, (block, own) in zip(PALETTE, _blocks(rows), strict=False):
        mine = [row for row in own if row["label"] == "scalar_bridge"]
        for row in mine:
            label = block if row is mine[0] else None
            for axis, curve in zip(axes, ("terminal_gradient", "gamma"), strict=True):
                values = [math.nan if v is None else v for v in row["curves"].get(curve, [])]
                points = [(i + 1, v) for i, v in enumerate(values) if not math.isnan(v)]
                if points:
                    axis.plot(*zip(*points, strict=True), "o-", ms=3, lw=1.2, color=color, label=label)
    axes[0].axhline(1, color="0.3", ls="--", lw=1)
    axes[0].set_ylabel("terminal gradient error (1: a gradient of zero)", fontsize=dots.SMALL)
    axes[1].set_ylabel("Gamma of the scalar bridge", fontsize=dots.SMALL)
    for axis in axes:
        axis.set_ylim(bottom=0)
        axis.set_xlabel("epoch", fontsize=dots.SMALL)
    dots.legend(axes[0])


def _readings(axes: Sequence[Axes], rows: Sequence[Row]) -> None:
    lines = {name: ESTIMATORS[name][0] for name in ("state_bridge", "scalar_bridge", "broadcast")}
    lines |= {"state_bridge, no code": OTHERS[1][0], "scalar_bridge, no code": OTHERS[2][0]}
    blocks = [block for block, _ in _blocks(rows)]
    for label, color in lines.items():
        below = 0.25 if label.endswith("no code") else 0.0  # it would hide the bridge with one
        name = label
        for y, block in enumerate(blocks):
            if values := dots.values_of(rows, "metrics.gamma", label, block):
                dots.draw(axes[0], y + below, values, color, name, half=0.12)
                name = None
    axes[0].axvline(0.945, color="black", ls=":", lw=1, label="the study: both bridges")
    dots.name(axes[0], blocks, "Gamma")
    dots.legend(axes[0])


BRIDGES = {
    "state_bridge": "state bridge", "state_bridge, warmed up": "state bridge, warmed up as the scalar bridge is",
    "scalar_bridge": "scalar bridge", "broadcast": "broadcast",
}  # fmt: skip


def _order(axes: Sequence[Axes], rows: Sequence[Row]) -> None:
    for axis, depth in zip(axes, (2, 4, 8, 12), strict=True):
        for label, name in BRIDGES.items():
            mine = [row for row in rows if row["label"] == label and row["block"] == f"alpha = 1, L = {depth}"]
            curve = over_seeds([curve_points(row, "gamma") for row in mine])
            color, marker = ESTIMATORS[label.partition(",")[0]]
            line = ":" if "," in label else "-"
            axis.plot(curve.x, curve.mean, line, ms=3.5, lw=1.2, color=color, marker=marker, label=name)
            axis.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.15, lw=0)
        axis.axvline(16, color="0.3", ls="--", lw=1, label="the quick preset's length")
        axis.set_title(f"L = {depth}", fontsize=dots.SMALL)
        axis.set_ylim(0, 1)
        axis.set_xlabel("epoch", fontsize=dots.SMALL)
    axes[0].set_ylabel("Gamma", fontsize=dots.SMALL)
    dots.legend(axes[-1])


LATE = {
    "bp, fresh error 0.25": "the gradient, a random error on it",
    "bp, fixed error 0.25": "the same, one error for good",
    "Kolen-Pollack": "Kolen-Pollack",
    "Kolen-Pollack, 30 steps late": "30 steps late",
    "Kolen-Pollack, 100 steps late": "100 steps late",
    "32 samples": "tangent chain",
    "32 samples, following": "told the weights' updates",
    "32 samples, from feedback, following": "and begun as feedback alignment",
    "32 samples, 4 fits a step": "four fits a step",
}
"""What is as near to the gradient as the chain, or the chain itself, less late."""


def _late(axes: Sequence[Axes], rows: Sequence[Row]) -> None:
    accuracy = "metrics.test_accuracy"
    paired = with_reference(rows, accuracy, "bp", "above bp")
    for axis, metric in zip(axes, ("metrics.above bp", "metrics.gamma"), strict=True):
        for y, label in enumerate(LATE):
            color = PALETTE[("bp", "Ko", "32").index(label[:2])]
            dots.draw(axis, y, dots.values_of(paired, metric, label), color)
    axes[0].axvline(0, color="0.3", lw=0.8)
    dots.name(axes[0], list(LATE.values()), "validation accuracy above back-propagation's at the same seed")
    dots.name(axes[1], [""] * len(LATE), "Gamma")
    axes[1].set_xlim(0, 1.03)


ONLINE = {
    "kolen_pollack": ("Kolen-Pollack, a chain", 1),
    "kolen_pollack K=2": ("its feedback in two sweeps", 1),
    "kolen_pollack K=1": ("its feedback in one sweep", 1),
    "weight_mirror": ("weight mirror, a chain", 1),
    "tangent_chain": ("tangent chain", 2),
    "tangent_sweeps K=2": ("its maps in two sweeps", 2),
    "tangent_sweeps K=1": ("its maps in one sweep", 2),
    "tangent_chain, following, 8 samples": ("chain told the weights' updates, too", 2),
    "tangent_chain, following": ("chain told the weights' updates, too", 2),
    "tangent_chain, following, 8 samples, from feedback": ("told, and begun as feedback alignment", 2),
    "tangent_chain, following, from feedback": ("told, and begun as feedback alignment", 2),
    "tangent_sweeps K=2, following, from feedback": ("told and begun so, in two sweeps", 2),
    "tangent_mask": ("mask", 2),
    "linear_field, rate 1e-3": ("linear field: effects on the loss alone", 3),
    "tangent_mask, shuffled": ("mask, tangents of other samples", 0),
    "tangent_chain, shuffled": ("chain, tangents of other samples", 0),
    "fa": ("feedback alignment: nothing learned", 0),
    "broadcast": ("broadcast: nothing learned", 0),
}
"""{label: name and colour of its family} of what trains online, and of the controls that come nearest."""


def _online(axes: Sequence[Axes], rows: Sequence[Row]) -> None:
    paired = with_reference(rows, "metrics.test_accuracy", "bp", "above bp")
    met = {row["label"] for row in rows}
    drawn = {label: named for label, named in ONLINE.items() if label in met}
    names = list(dict.fromkeys(name for name, _ in drawn.values()))
    blocks = {"crops and flips": "four blocks, 100 epochs", "12 blocks, D = 512": "twelve blocks, 30 epochs"}
    for axis, (block, title) in zip(axes, blocks.items(), strict=True):
        for label, (name, family) in drawn.items():
            values = dots.values_of(paired, "metrics.above bp", label, block)
            dots.draw(axis, names.index(name), [100 * value for value in values], PALETTE[family])
        axis.axvline(0, color="0.3", lw=0.8)
        axis.set_xlim(-12.5, 1)  # the broadcast's at the left
        axis.set_title(title, fontsize=dots.SMALL)
        shown = names if axis is axes[0] else [""] * len(names)
        dots.name(axis, shown, "points of test accuracy above back-propagation")


FINDINGS = (
    Finding("normalisation", "The local rule cuts what credit gains", "cifar10", (6.4, 3.4), 1, _normalisation),
    Finding("rounding", "A forward difference loses digits where credit fails", "cifar10", (6.4, 3.6), 1, _rounding),
    Finding("clamped", "A clamped cosine is below 1 for the gradient itself", "synth_ladder", (6.4, 2.8), 1, _clamped),
    Finding("dilution", "DFA's Gamma is its first layer, averaged", "cifar_depth_scan", (8.4, 3.2), 2, _dilution,
            labels=("dfa",)),
    Finding("case_d", "Case D under two choices of the step size", "exploit_linesearch", (9.4, 3.4), 2, _case_d),
    Finding("projection", "The scale of h_L's projection", "boundary_ablation", (6.4, 3.6), 1, _projection),
    Finding("pinned", "Values that the code pins", "toy_lq", (9.4, 3.4), 2, _pinned),
    Finding("readings", "Toy LQ: no reading gives both figures", "toy_lq", (7.4, 2.8), 1, _readings),
    Finding("order", "Which bridge is ahead, and when: with a warm-up and without", "synth_ladder", (11, 3.2), 4,
            _order, "full", tuple(BRIDGES)),
    Finding("late", "Nearly one cosine, and not one accuracy: twelve blocks", "online_tuning", (9.4, 3.4), 2, _late,
            "full", tuple(LATE), "what the chain lacks on 12 blocks, D = 512"),
    Finding("online", "Credit that trains online", "online_credit", (9.4, 4.2), 2, _online, "full", tuple(ONLINE)),
)  # fmt: skip
