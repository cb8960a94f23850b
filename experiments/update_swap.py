"""Local rules swapped on a BP snapshot: is it the rule that spoils good credit?

    python experiments/update_swap.py --preset quick

As snapshot_exploit (CIFAR10, unit-RMS credit, clamp [-1, 1]), with the target shift at eta = .01, .1, .3, 1 and the
cosine rule in place of the inner product.  The study found that the target shift shrinks the damage (vector field +.057
to +.002 at eta = .1) and the cosine does next to nothing.  The first step of a target shift is exactly 2 eta times that
of the inner product: small etas are small steps, whatever else they are.  Local steps of .01, and where the network has
the study's length of .001 too, at which snapshot_exploit comes nearest to its figures.

Claims of the study (docs/method.md 10): US1.
"""

from collections.abc import Sequence
from pathlib import Path

import jcredit as jc
from jcredit.report.schema import Row
from jcredit.report.tables import Column, TableSpec
from jcredit.study.experiment import Experiment, Preset, main
from jcredit.study.exploit import KSteps, k_steps, rule_name
from jcredit.study.frozen import (
    FULL_FIT,
    QUICK_FIT,
    QUICK_NET,
    SCALED,
    SMOKE_FIT,
    SMOKE_NET,
    SPENT,
    change_figure,
    fits,
)
from jcredit.study.settings import CIFAR10
from jcredit.sweeps.variants import Followup, Snapshot, Variant

SHIFTS = (0.01, 0.1, 0.3, 1.0)
RULES = (jc.inner_product(), *(jc.target_shift(eta=eta) for eta in SHIFTS), jc.cosine_rule())
ETAS = (1e-3, 1e-2)
SIZE = {1e-3: ", .001", 1e-2: ""}
TITLES = ("inner product", *(f"shift {eta:g}" for eta in SHIFTS), "cosine")
FIGURES = {
    "dfa": {"inner product, held": "-.0001"},
    "scalar_bridge eT": {"inner product, held": "+.042", "cosine, held": "~0"},
    "vector_field M=4": {"inner product, held": "+.057", "shift 0.1, held": "+.002", "cosine, held": "~0"},
    "bp": {"inner product, held": "+.011", "cosine, held": "~0"},
}
STUDY = {  # which does not state the size of its steps
    label: {f"{title}{size}": figure for size in SIZE.values() for title, figure in figures.items()}
    for label, figures in FIGURES.items()
}


def grid(net, settings: KSteps, only: tuple[str, ...] = SPENT, **fit) -> tuple[Variant, ...]:
    """One block: every credit spent by every rule on the network's last epoch."""
    followup = Followup("k steps", k_steps, settings._replace(rules=RULES))
    return fits(Snapshot(net, net.epochs), followup=followup, only=only, **fit)


def metric(rule: jc.Part, where: str, eta: float) -> str:
    """Loss change after five steps of a rule."""
    return f"dl_{where}_{rule_name(rule)}_eta{eta:.0e}_k5"


def changes(where: str, eta: float) -> tuple[Column, ...]:
    """A column of loss changes for each rule."""
    return tuple(
        Column(f"{title}, {where}{SIZE[eta]}", f"metrics.{metric(rule, where, eta)}", format="+.4f")
        for rule, title in zip(RULES, TITLES, strict=True)
    )


def figure(rows: Sequence[Row], path: Path) -> None:
    """Held-out loss change under each rule, for the shortest steps that the rows have."""
    eta = next(eta for eta in ETAS if any(metric(RULES[0], "held", eta) in row["metrics"] for row in rows))
    panels = {rule_name(r).replace("_", " ").replace("shift", "shift "): metric(r, "held", eta) for r in RULES}
    change_figure(f"Held-out loss change after five local steps of each rule, of {eta:g}", panels)(rows, path)


EXPERIMENT = Experiment(
    name="update_swap",
    question="Does another local rule make good credit useful on a BP snapshot?",
    phase="6C: US1",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid(SMOKE_NET, KSteps(etas=ETAS, steps=(1, 5), batches=2, size=64, held=128),
                 ("bp", "dfa", "vector_field M=4"), **SMOKE_FIT),
            "20 seconds",
        ),
        "quick": Preset(
            (42, 123), grid(QUICK_NET, KSteps(etas=ETAS[1:], steps=(1, 5), batches=2, held=500), **QUICK_FIT),
            "7 minutes, 1 after frozen_recovery",
        ),
        "full": Preset(
            (42, 123, 456), grid(CIFAR10, KSteps(etas=ETAS, steps=(1, 5), batches=16, held=2000), **FULL_FIT), "3 hours"
        ),
    },
    table=TableSpec(
        "Loss change after five local steps of each rule on a BP snapshot, CIFAR-10",
        {
            "Held-out samples, steps of .01": (Column("Gamma", "metrics.gamma"), *changes("held", 1e-2)),
            "Held-out samples, steps of .001": changes("held", 1e-3),
            "The batch itself, steps of .01": changes("same", 1e-2),
            "The batch itself, steps of .001": changes("same", 1e-3),
        },
        STUDY,
        (
            "Loss change in nats after k = 5 steps (the study does not state their size), on held-out samples and on"
            " the batch itself; negative is good. The change after each step is in the rows.",
            SCALED,
            "All methods and rules step on the same batches. Target shifts keep the target of the first step.",
            "Study: one seed; it gives no other figures than these.",
        ),
    ),
    figure=figure,
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
