"""Is it the estimator or the local rule?  Every kind of credit under every scale of it, on CIFAR-10 and on the ladder.

    python experiments/rule_cross.py --preset quick

The study ran its estimators under one rule alone, per-sample RMS credit and a clip, and jcredit's tangent bridges ran
raw: such tables compare estimators and rules at once.  Here each stands under each.  No warm-up and no pull on the
states anywhere; estimators and networks at their default learning rates, which were not tuned for any of the cells.
"""

from collections.abc import Sequence
from pathlib import Path

import jcredit as jc
from jcredit.report import dots
from jcredit.report.schema import Row
from jcredit.report.styles import PALETTE
from jcredit.report.tables import Column, TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, main
from jcredit.study.settings import CIFAR10, CONTROLS, LADDER, SMOKE, lines, named
from jcredit.sweeps.variants import Variant

RULES = {
    "RMS, clip 1": {"normalise": "rms", "clip": 1.0},
    "RMS": {"normalise": "rms", "clip": 0.0},
    "batch": {"normalise": "batch", "clip": 0.0},
    "raw, clip 1": {"normalise": "raw", "clip": 1.0},
    "raw": {"normalise": "raw", "clip": 0.0},
}
LINES = CONTROLS | named("dfa", "fa", "state_bridge", "scalar_bridge") | {
    "vector_field": {"credit": jc.exact_terminal(of=jc.vector_field(scheme="jvp", scale="delta", skip=True))},
    **named("tangent_mask", "tangent_chain"),
}  # fmt: skip
TASKS = {"CIFAR-10": CIFAR10, "ladder, alpha = 1": LADDER}


def grid(tasks: tuple[str, ...] = tuple(TASKS), only: tuple[str, ...] = (), **fields) -> tuple[Variant, ...]:
    """A block for every task and rule, of all lines or some, with fields changed in every line."""
    return tuple(
        variant
        for task in tasks
        for rule, changes in RULES.items()
        for variant in lines(TASKS[task], LINES, f"{task}: {rule}", only, **changes, **fields)
    )


def figure(rows: Sequence[Row], path: Path) -> None:
    """Accuracy of every credit, one colour for each rule; a panel for each task."""
    met = {row["label"] for row in rows}
    credits = [label for label in LINES if label != "frozen" and label in met]
    canvas, axes = dots.panels(len(TASKS), (10.5, 1.6 + 0.35 * len(credits)))
    for axis, task in zip(axes, TASKS, strict=True):
        for i, (rule, color) in enumerate(zip(RULES, PALETTE, strict=False)):
            for y, label in enumerate(credits):
                values = dots.values_of(rows, "metrics.test_accuracy", label, f"{task}: {rule}")
                place = y + 0.16 * (i - (len(RULES) - 1) / 2)
                dots.draw(axis, place, values, color, rule if y == 0 else None, half=0.08)
        frozen = dots.values_of(rows, "metrics.test_accuracy", "frozen", f"{task}: raw")
        dots.mark(axis, frozen, "--", "frozen blocks")
        dots.name(axis, credits if axis is axes[0] else [""] * len(credits), f"{task}: test accuracy")
    canvas.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, frameon=False, ncols=6)
    dots.write(canvas, "Every kind of credit under every scale of it", path)


EXPERIMENT = Experiment(
    name="rule_cross",
    question="Is it the estimator or the local rule?",
    phase="beyond the study",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid(("ladder, alpha = 1",), ("bp", "dfa"), depth=2, width=16, epochs=1, **SMOKE),
            "20 seconds",
        ),
        "quick": Preset((42, 123), (*grid(("CIFAR-10",), epochs=8), *grid(("ladder, alpha = 1",), epochs=16)),
                        "55 minutes"),
        "full": Preset((42, 123, 456), grid(), "20 hours"),
    },
    table=TableSpec(
        "Every kind of credit under every scale of it",
        (*credit_columns(), Column("weight cosine", "metrics.weight_cosine")),
        notes=(
            "At the last epoch; CIFAR-10: L = 4, D = 256, crops and flips; ladder: L = 4, D = 128.",
            "RMS: each sample's credit to unit RMS; batch: one scale for the batch; clip: each block's gradient to norm"
            " 1. bp under any of them but raw is the oracle through that rule.",
            "vector_field: its output times the RMS of the sample's delta_L, plus delta_L, fitted to exact effects.",
            "Weight cosine: of the blocks' gradients, as the rule makes them, to BP's.",
            "Quick: 8 epochs (CIFAR-10) and 16 (ladder).",
        ),
    ),
    figure=figure,
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
