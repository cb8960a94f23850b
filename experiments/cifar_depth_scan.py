"""Does credit quality fall with depth on CIFAR-10, or is one aligned layer averaged away?

    python experiments/cifar_depth_scan.py --preset quick

Networks of L = 2..12 blocks, D = 512.  The study found Gamma falling with depth for DFA (.196 to .032) and the scalar
bridge (.175 to .032).  L times its DFA figure is .39, .40, .38, .38, .38: what one aligned layer and L - 1 others at
zero would give.  So Gamma is shown per layer: as the mean over all, for layer 0 alone, and over the others (deep).

Claims of the study (docs/method.md 10): DS1, DS2.
"""

from collections.abc import Sequence
from pathlib import Path

import jcredit as jc
from jcredit.report import plots
from jcredit.report.rows import Row
from jcredit.report.tables import Column, TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, main
from jcredit.study.settings import CIFAR10_STUDY, SMOKE, STUDY_CONTROLS, WARMUP, lines, named
from jcredit.sweeps.variants import Variant

DEPTHS = (2, 4, 6, 8, 12)
STUDY_TABLES = {  # accuracy, Gamma, rho at each depth
    "dfa": ((".312", ".196", ".001"), (".314", ".100", ".003"), (".310", ".064", "-.001"), (".306", ".047", ".002"),
            (".309", ".032", "-.004")),
    "scalar_bridge": ((".311", ".175", ".031"), (".298", ".123", "-.002"), (".299", ".096", "-.001"),
                      (".288", ".045", ".005"), (".239", ".032", ".001")),
}  # fmt: skip
LINES = STUDY_CONTROLS | named("dfa") | {"scalar_bridge": {"credit": jc.scalar_bridge()} | WARMUP}


def study_figures() -> dict[str, dict[str, str]]:
    """The study's table, and in brackets what layer 0 would have if it alone were aligned: L times Gamma."""
    return {
        f"L = {depth} | {label}": dict(zip(("accuracy", "Gamma", "rho"), figures, strict=True))
        | {"Gamma, l = 0": f"({depth * float(figures[1]):.2f})"}
        for label, table in STUDY_TABLES.items()
        for depth, figures in zip(DEPTHS, table, strict=True)
    }


def grid(depths: tuple[int, ...], only: tuple[str, ...] = (), **fields) -> tuple[Variant, ...]:
    """A block for every depth, of all lines or some, with fields changed in every line."""
    fields = {"width": 512} | fields
    return tuple(
        v for depth in depths for v in lines(CIFAR10_STUDY, LINES, f"L = {depth}", only, depth=depth, **fields)
    )


def columns() -> tuple[Column, ...]:
    """The usual columns, with Gamma also for layer 0 and for all others."""
    return tuple(
        column
        for usual in credit_columns()
        for column in (
            (usual, Column("Gamma, l = 0", "layers.gamma.0"), Column("Gamma, deep", "metrics.gamma_deep"))
            if usual.title == "Gamma"
            else (usual,)
        )
    )


def figure(rows: Sequence[Row], path: Path) -> None:
    """Gamma over depth l / L for every credit that is neither BP's (1) nor absent (0)."""
    scored = [row for row in rows if row["method"] not in ("bp", "frozen")]
    plots.layer_profile(scored, "gamma", path, "CIFAR-10 depth scan: Gamma layer by layer")


EXPERIMENT = Experiment(
    name="cifar_depth_scan",
    question="Does credit quality fall with depth on CIFAR-10, or is one aligned layer averaged away?",
    phase="2.2: DS1, DS2",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid((2,), ("frozen", "dfa", "scalar_bridge"), width=16, hidden=16, epochs=1, **SMOKE),
            "20 seconds",
        ),
        "quick": Preset((42, 123), grid((2, 4, 8), width=128, train_size=12800, epochs=8), "6 minutes"),
        "full": Preset((42, 123), grid(DEPTHS), "28 hours"),
    },
    table=TableSpec(
        "CIFAR-10 depth scan",
        columns(),
        study_figures(),
        (
            "At the last epoch, the study's rule (per-sample RMS credit, clip 1), D = 512; quick:"
            " D = 128, L = 2, 4, 8, and 800 steps.",
            "Gamma is the mean over l = 0..L-1, deep over l = 1..L-1; the figure shows every layer. If Gamma falls as"
            " 1/L while l = 0 stays level and deep is near zero, depth only averages layer 0 away.",
            "Study: seed 42, 100 epochs (DS1, DS2). In brackets L times its Gamma: what layer 0 would have if it alone"
            " were aligned.",
        ),
    ),
    figure=figure,
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
