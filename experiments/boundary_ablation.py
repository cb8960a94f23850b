"""What does the scalar bridge's credit owe to its code, its terminal gradient and the warm-up?

    python experiments/boundary_ablation.py --preset quick

The synthetic ladder at alpha = 1, L = 4.  The study found deltaL the better code for Gamma, credit destroyed where the
code contains h_L, Gamma rising with the terminal gradient's weight, and warm-up trading credit quality for accuracy;
its best Gamma (.768) has deltaL and warm-up .05.  The scale of the projection of h_L is unknown: both are shown.
The study compared its bridges with a warm-up of the scalar bridge alone; here the state bridge has one, too.

Claims of the study (docs/method.md 10): BA1-BA4.
"""

from typing import Any

from jcredit.report.tables import TableSpec
from jcredit.study.boundary import (
    CODES,
    FIGURES,
    OTHER_BRIDGE,
    OTHER_BRIDGE_LINES,
    WARMUP_LINES,
    WARMUPS,
    WEIGHT_LINES,
    WEIGHTS,
    bridge,
    cells,
)
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure, main
from jcredit.study.settings import LADDER, SMOKE, STUDY_CONTROLS, lines, named
from jcredit.sweeps.variants import Variant

SCALES = ("unit", "fan_in")
STUDY = {
    f"{block} | {name}": cells(figures)
    for block, table in FIGURES.items()
    for label, figures in table.items()
    for name in ([f"{label} {scale}" for scale in SCALES] if label.endswith("hL") else [label])
}


def blocks() -> dict[str, dict[str, dict[str, Any]]]:
    """{block: lines}; tgw 1 and warm-up .2 stand in the first block alone, as the reference of the others."""
    codes = {code: bridge(code) for code in ("eT", "deltaL")} | {
        f"{code} {scale}": bridge(code, scale) for code in ("eT_hL", "deltaL_hL") for scale in SCALES
    }
    return {
        CODES: STUDY_CONTROLS | named("dfa") | codes,
        WEIGHTS: WEIGHT_LINES,
        **{WARMUPS.format(code): table for code, table in WARMUP_LINES.items()},
        OTHER_BRIDGE: OTHER_BRIDGE_LINES,
    }


def grid(only: tuple[str, ...] = (), **fields) -> tuple[Variant, ...]:
    """All blocks, or some of their lines, with fields changed in every line."""
    return tuple(v for block, table in blocks().items() for v in lines(LADDER, table, block, only, **fields))


EXPERIMENT = Experiment(
    name="boundary_ablation",
    question="What does the scalar bridge's credit owe to its code, its terminal gradient and the warm-up?",
    phase="3: BA1-BA4",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid(("eT", "deltaL_hL fan_in", "tgw=0"), depth=2, width=16, hidden=16, epochs=2, **SMOKE),
            "20 seconds",
        ),
        "quick": Preset((42, 123), grid(epochs=16), "7 minutes"),
        "full": Preset((42, 123, 456), grid(), "20 minutes"),
    },
    table=TableSpec(
        "Boundary conditions of the scalar bridge: synthetic ladder, alpha = 1, L = 4",
        credit_columns(),
        STUDY,
        (
            "At the last epoch; Gamma and rho are means over l = 0..L-1.",
            "The reference of the lower blocks stands in the first one: tgw=1 and wr=0.2 with eT are its line eT,"
            " wr=0.2 with deltaL is its line deltaL. The study's tgw and warm-up tables have for it Gamma .458,"
            " rho .532, accuracy .558 (eT) and .558, .498, .442 (deltaL).",
            "The study does not state the scale of its projection of h_L: its one figure stands beside both, N(0, 1)"
            " (unit) and N(0, 1/D) (fan_in).",
            "The last block is not the study's: its state bridge had no warm-up.",
            "Study: after 80 epochs (BA1 three seeds; BA2-BA4 without spread). Quick stops at 16.",
        ),
    ),
    figure=default_figure("Boundary conditions of the scalar bridge", ("test_accuracy", "gamma", "rho")),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
