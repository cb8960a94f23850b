"""Does delta_L in place of e_T help the scalar bridge on CIFAR-10?

    python experiments/cifar_delta_code.py --preset quick

L = 4, D = 512: the code grows from 10 to 512 numbers.  On the synthetic ladder delta_L had given the better Gamma; here
the study found it to fail (accuracy 17.2%, Gamma and rho near 0), and blamed the code's dimension.

Claims of the study (docs/method.md 10): DL1.
"""

import jcredit as jc
from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure, main
from jcredit.study.settings import CIFAR10_STUDY, SMOKE, STUDY_CONTROLS, WARMUP, lines, named
from jcredit.sweeps.variants import Variant

LINES = {
    **STUDY_CONTROLS,
    **named("dfa"),
    **{
        f"scalar_bridge {code}": {"credit": jc.scalar_bridge(trunk=jc.mlp(code=code))} | WARMUP
        for code in ("eT", "deltaL")
    },
}
STUDY = {
    "dfa": {"accuracy": ".314", "Gamma": ".100", "rho": ".003"},
    "scalar_bridge eT": {"accuracy": ".298", "Gamma": ".123", "rho": "-.002"},
    "scalar_bridge deltaL": {"accuracy": ".172", "Gamma": "≈0", "rho": "≈0"},
}


def grid(only: tuple[str, ...] = (), **fields) -> tuple[Variant, ...]:
    """All lines, or some of them, with fields changed in each."""
    return lines(CIFAR10_STUDY.replace(width=512), LINES, only=only, **fields)


EXPERIMENT = Experiment(
    name="cifar_delta_code",
    question="Does delta_L in place of e_T help the scalar bridge on CIFAR-10?",
    phase="3: DL1",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid(("scalar_bridge eT", "scalar_bridge deltaL"), depth=2, width=16, hidden=16, epochs=1, **SMOKE),
            "20 seconds",
        ),
        "quick": Preset((42, 123), grid(train_size=12800, epochs=4), "5 minutes"),
        "full": Preset((42, 123), grid(), "5 hours"),
    },
    table=TableSpec(
        "CIFAR-10, L = 4, D = 512: the code delta_L",
        credit_columns(),
        STUDY,
        (
            "At the last epoch; the study's rule (per-sample RMS credit, clip 1); warm-up .2.",
            "Study: 100 epochs, seed 42 where stated; deltaL from its test (DL1), eT and dfa from its depth scan (DS1,"
            " DS2). Quick takes 400 steps.",
        ),
    ),
    figure=default_figure("CIFAR-10, L = 4, D = 512: the code delta_L", ("test_accuracy", "gamma", "rho")),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
