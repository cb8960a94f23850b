"""The study's first network, 12 blocks of width 512: do its order of methods and its failure of the state bridge hold?

    python experiments/cifar12.py --preset quick

Its first table (BP 59.2%, DFA 30.0%, scalar bridge 29.6%, state bridge 18.5% although it predicts h_L to four decimals)
comes from 12 blocks, of a width it does not state (512 elsewhere), before it clipped any gradient.  Credit has unit RMS
per sample and no clip here, BP is raw; jcredit's raw credit stands beside it.

Claims of the study (docs/method.md 10): CF1-CF3.
"""

import jcredit as jc
from jcredit.report.tables import Column, TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure, main
from jcredit.study.settings import CIFAR10_DEEP, CONTROLS, SMOKE, STUDY_CONTROLS, WARMUP, lines, named
from jcredit.sweeps.variants import Variant

STUDY_RULE = "per-sample RMS credit, no clip"
RAW_RULE = "raw credit"
STUDY_LINES = STUDY_CONTROLS | named("dfa", "state_bridge") | {"scalar_bridge": {"credit": jc.scalar_bridge()} | WARMUP}
RAW_LINES = CONTROLS | named("dfa", "fa", "tangent_chain")
STUDY = {
    f"{RAW_RULE} | bp": {"accuracy": ".592±.004", "Gamma": ".940", "rho": ".990", "nudge": "-.027"},
    f"{STUDY_RULE} | dfa": {"accuracy": ".300±.003", "Gamma": ".030", "rho": ".005", "nudge": "≈0"},
    f"{STUDY_RULE} | scalar_bridge": {"accuracy": ".296±.010", "Gamma": ".056", "rho": "≈0", "nudge": "≈0"},
    f"{STUDY_RULE} | state_bridge": {
        "accuracy": ".185±.018", "Gamma": ".021", "rho": ".004", "nudge": "≈0", "state error": ".0000"
    },
}  # fmt: skip


def grid(only: tuple[str, ...] = (), **fields) -> tuple[Variant, ...]:
    """Both blocks, or some of their lines, with fields changed in every line."""
    return (
        *lines(CIFAR10_DEEP, STUDY_LINES, STUDY_RULE, only, normalise="rms", **fields),
        *lines(CIFAR10_DEEP, RAW_LINES, RAW_RULE, only, **fields),
    )


EXPERIMENT = Experiment(
    name="cifar12",
    question="Do the study's order of methods and its failure of the state bridge hold on its 12 blocks?",
    phase="1: CF1-CF3",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid(("frozen", "dfa"), depth=3, width=16, epochs=1, **SMOKE),
            "20 seconds",
        ),
        "quick": Preset((42,), grid(train_size=12800, epochs=3), "15 minutes"),
        "full": Preset((42,), grid(), "25 hours"),
    },
    table=TableSpec(
        "CIFAR-10, residual MLP with L = 12, D = 512",
        (
            *credit_columns(),
            Column("clamped Gamma", "metrics.gamma_clamped"),
            Column("rho, as the study", "metrics.rho_one_sided"),
            Column("state error", "metrics.test_state_error", format=".4f"),
        ),
        STUDY,
        (
            "At the last epoch, random crops and flips; accuracy on the 10,000 test images. Quick: 300 steps.",
            "Clamped Gamma: the product of the norms is kept above 1e-8, as common cosine functions do. rho, as the"
            " study: by a forward difference of 1e-3 in float32.",
            "State error: of the predicted h_L, relative to mean ||h_L||^2.",
        ),
    ),
    figure=default_figure("CIFAR-10, L = 12, D = 512", ("test_accuracy", "gamma", "h_rms_last")),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
