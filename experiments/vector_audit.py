"""Is the vector field's credit real, or an artefact of how it is trained and scored?

    python experiments/vector_audit.py --preset quick

The study's checks at alpha = 1, L = 4 and 8.  Fresh evaluation directions: rho is always scored on directions drawn
independently of training, on samples never trained on, against the exact tangent (jvp).  Shuffled targets: measured
effects go to other samples of the batch.  No terminal loss; one-sided differences.  The study found the shuffled
control to collapse (5 of 6), the terminal loss dispensable, and one-sided as good as central.  The terminal loss by
itself leaks alignment into the shuffled control, and DFA's warm-up trains the blocks: it is also run without both.

Claims of the study (docs/method.md 10): VA1.
"""

from typing import Any

import jcredit as jc
from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure, gain_columns, main
from jcredit.study.settings import LADDER, SMOKE, STUDY_CONTROLS, WARMUP, lines, named
from jcredit.sweeps.variants import Variant


def field(**settings) -> dict[str, Any]:
    """A line of the vector field, every sample perturbed at all layers."""
    return {"credit": jc.vector_field(layers="all", **settings)} | WARMUP


LINES = {
    **STUDY_CONTROLS,
    **named("dfa"),
    "scalar_bridge": {"credit": jc.scalar_bridge()} | WARMUP,
    "vector M=4": field(),
    "shuffled": field(shuffled=True),
    "shuffled, alone": {"credit": field(shuffled=True, terminal_weight=0.0)["credit"]},
    "no terminal": field(terminal_weight=0.0),
    "one-sided": field(scheme="one_sided"),
}
STUDY_TABLE = {
    "scalar_bridge": (".224", ".210", "-.007"),
    "vector M=4": (".847", ".951", "-.026"),
    "shuffled": (".051", ".068", "-.001"),
    "no terminal": (".955", ".971", "-.027"),
    "one-sided": (".832", ".943", "-.024"),
}
STUDY: dict[str, dict[str, str]] = {
    f"L = 4 | {label}": dict(zip(("Gamma", "rho", "nudge"), figures, strict=True))
    for label, figures in STUDY_TABLE.items()
}


def grid(depths: tuple[int, ...], only: tuple[str, ...] = (), **fields) -> tuple[Variant, ...]:
    """A block for every depth, of all lines or some, with fields changed in each."""
    return tuple(v for depth in depths for v in lines(LADDER, LINES, f"L = {depth}", only, depth=depth, **fields))


EXPERIMENT = Experiment(
    name="vector_audit",
    question="Is the vector field's credit real, or an artefact of how it is trained and scored?",
    phase="5A: VA1",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid((2,), ("vector M=4", "shuffled", "no terminal"), width=16, hidden=16, epochs=2, **SMOKE),
            "20 seconds",
        ),
        "quick": Preset((42, 123), grid((4,), epochs=20), "5 minutes"),
        "full": Preset((42, 123, 456), grid((4, 8)), "70 minutes"),
    },
    table=TableSpec(
        "Audit of the vector credit field: synthetic ladder, alpha = 1",
        (*credit_columns(), *gain_columns("scalar_bridge", ("Gamma - CB", "rho - CB"))),
        STUDY,
        (
            "At the last epoch; Gamma and rho are means over l = 0..L-1.",
            "Fresh evaluation directions: rho (jvp: exact effects) is scored on 32 unit directions per sample and"
            " layer, drawn independently of training, on samples never trained on, here as in all tables.",
            "Shuffled: measured effects are moved to other samples of the same batch, each sample keeps its directions."
            " The terminal loss alone aligns the field near h_L, and warm-up trains the blocks by DFA:"
            " 'shuffled, alone' has neither and is the clean control.",
            "Gamma - CB and rho - CB: above scalar_bridge at the same seed; the study found at least .49 and .55.",
            "Study: seed 42, L = 4, 80 epochs (VA1); it gives no table for L = 8. Quick: L = 4, 20 epochs.",
        ),
    ),
    figure=default_figure("Audit of the vector credit field", ("test_accuracy", "gamma", "rho")),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
