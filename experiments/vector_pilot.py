"""Is a vector credit field better than the gradient of a scalar one?

    python experiments/vector_pilot.py --preset quick

The synthetic ladder at alpha = 1, L = 4 and 8.  The field a(h, t, s) is fitted to measured effects of M random
perturbations of each hidden state.  The study found Gamma and rho above .84 where the scalar bridge has .26 to .34, and
M = 8 no better than M = 4.

Claims of the study (docs/method.md 10): VP1.
"""

import jcredit as jc
from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure, main
from jcredit.study.settings import LADDER, SMOKE, STUDY_CONTROLS, WARMUP, lines, named
from jcredit.sweeps.variants import Variant

LINES = {
    **STUDY_CONTROLS,
    **named("dfa"),
    "scalar_bridge": {"credit": jc.scalar_bridge()} | WARMUP,
    **{f"vector M={m}": {"credit": jc.vector_field(directions=m, layers="all")} | WARMUP for m in (4, 8)},
}
STUDY_TABLES = {
    4: {"dfa": (".01±.01", ".01±.01"), "scalar_bridge": (".34±.10", ".33±.11"), "vector M=4": (".91±.05", ".96±.01"),
        "vector M=8": (".84±.10", ".92±.05")},
    8: {"dfa": (".08±.04", ".08±.04"), "scalar_bridge": (".26±.03", ".29±.02"), "vector M=4": (".96±.01", ".95±.01"),
        "vector M=8": (".90±.10", ".93±.04")},
}  # fmt: skip
STUDY = {
    f"L = {depth} | {label}": {"Gamma": gamma, "rho": rho}
    for depth, table in STUDY_TABLES.items()
    for label, (gamma, rho) in table.items()
}


def grid(depth: int, only: tuple[str, ...] = (), **fields) -> tuple[Variant, ...]:
    """The block of one depth, all lines or some, with fields changed in each."""
    return lines(LADDER, LINES, f"L = {depth}", only, depth=depth, **fields)


EXPERIMENT = Experiment(
    name="vector_pilot",
    question="Is a vector credit field better than the gradient of a scalar one?",
    phase="4C: VP1",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid(2, ("dfa", "vector M=4", "vector M=8"), width=16, hidden=16, epochs=2, **SMOKE),
            "20 seconds",
        ),
        "quick": Preset(
            (42, 123),
            grid(4, epochs=20) + grid(8, tuple(label for label in LINES if label != "vector M=8"), epochs=20),
            "8 minutes",
        ),
        "full": Preset((42, 123, 456), grid(4) + grid(8), "50 minutes"),
    },
    table=TableSpec(
        "Vector credit field against scalar bridge: synthetic ladder, alpha = 1",
        credit_columns(),
        STUDY,
        (
            "At the last epoch; Gamma and rho are means over l = 0..L-1.",
            "Every sample is perturbed at every hidden layer in each step (central differences); warm-up .2.",
            "Study: 80 epochs, three seeds (VP1). Quick stops at 20 and leaves out M = 8 at L = 8.",
        ),
    ),
    figure=default_figure("Vector credit field against scalar bridge", ("test_accuracy", "gamma", "rho")),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
