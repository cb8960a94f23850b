"""Does any bridge carry better credit than DFA while a CIFAR-10 network trains?

    python experiments/online_scan.py --preset full --seeds 42
    python experiments/online_scan.py --preset full --methods dfa "cb_eT wr=0.2 tgw=1" --seeds 42 123 456

The first command is the study's scan, the second adds its three-seed validation to the same table; ``--preset quick``
does both in small.  L = 4, D = 256; S1 and S2 are Gamma and rho above DFA's at the same seed.  The study found two of
its configurations with S1 > 0 and S2 > 0 (cb_eT, warm-up .2), S2 marginal over seeds, cb_deltaL near chance.

Claims of the study (docs/method.md 10): ON1-ON3.
"""

from typing import Any

import jcredit as jc
from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, gain_columns, gains_figure, main
from jcredit.study.settings import CIFAR10_STUDY, SMOKE, STUDY_CONTROLS, lines, named
from jcredit.sweeps.variants import Variant

WARMUPS, WEIGHTS = (0.0, 0.05, 0.2), (1.0, 4.0)
CHANCE = {"accuracy": "near .1", "Gamma": "≈0", "rho": "≈0"}
STUDY = {
    "dfa": {"accuracy": ".312", "Gamma": ".101", "rho": "-.005"},
    "sb wr=0": {"Gamma": ".025", "rho": "-.013"},
    "cb_eT wr=0.2 tgw=1": {"accuracy": ".283", "Gamma": ".179", "rho": ".009", "S1": "+.079, +.059, +.135",
                           "S2": "+.014, -.004, +.003"},
    "cb_eT wr=0.2 tgw=4": {"accuracy": ".285", "Gamma": ".187", "rho": ".002", "S1": "+.087", "S2": "+.007"},
    **{f"cb_deltaL wr={r:g} tgw={w:g}": CHANCE for r in WARMUPS for w in WEIGHTS},
}  # fmt: skip


def table(warmups: tuple[float, ...] = WARMUPS) -> dict[str, dict[str, Any]]:
    """The lines: controls, DFA, the state bridge, and the scalar bridge with either code."""
    return {
        **STUDY_CONTROLS,
        **named("dfa"),
        **{f"sb wr={r:g}": {"credit": jc.state_bridge(), "warmup_ratio": r} for r in warmups},
        **{
            f"cb_{code} wr={r:g} tgw={w:g}": {
                "credit": jc.scalar_bridge(terminal_weight=w, trunk=jc.mlp(code=code)), "warmup_ratio": r
            }
            for code in ("eT", "deltaL")
            for r in warmups
            for w in WEIGHTS
        },
    }  # fmt: skip


def grid(only: tuple[str, ...] = (), warmups: tuple[float, ...] = WARMUPS, **fields) -> tuple[Variant, ...]:
    """All lines, or some of them, with fields changed in each."""
    return lines(CIFAR10_STUDY, table(warmups), only=only, **fields)


EXPERIMENT = Experiment(
    name="online_scan",
    question="Does any bridge carry better credit than DFA while a CIFAR-10 network trains?",
    phase="4B: ON1-ON3",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42, 123),
            grid(("dfa", "cb_eT wr=0 tgw=1", "cb_eT wr=0.2 tgw=1"), depth=2, width=16, hidden=16, epochs=1, **SMOKE),
            "20 seconds",
        ),
        "quick": Preset((42, 123), grid(warmups=(0.0, 0.2), train_size=12800, epochs=4), "6 minutes"),
        "full": Preset((42, 123, 456), grid(), "10 hours"),
    },
    table=TableSpec(
        "Credit of the bridges while CIFAR-10 is learned: L = 4, D = 256",
        (*credit_columns(), *gain_columns()),
        STUDY,
        (
            "At the last epoch; the study's rule (per-sample RMS credit, clip 1).",
            "S1 = Gamma - Gamma of dfa, S2 = rho - rho of dfa, each at the same seed; the figure has a dot per seed.",
            "sb has no terminal gradient loss, so tgw does not apply to it.",
            "Study: seed 42 after 100 epochs (ON1, ON3; dfa: OV1); S1 and S2 of cb_eT wr=0.2 tgw=1 for seeds 42, 123,"
            " 456 (ON2). The warm-up of its sb figure is not stated. Quick takes 400 steps and leaves out warm-up .05.",
        ),
    ),
    figure=gains_figure("Credit of the bridges while CIFAR-10 is learned"),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
