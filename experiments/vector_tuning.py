"""Which learning rate does the mended vector field take, and does it need the pull on the states?  Validation split.

    python experiments/vector_tuning.py --preset quick

The 5,000 last training images are held out and scored; no test image is looked at.  Three learning rates of the field
with and without lam h of 1e-4, one seed; the network's own rate stays at 1e-3 as in every CIFAR-10 table.
"""

from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure, main
from jcredit.study.settings import CIFAR10, CONTROLS, MENDED_FIELD, SMOKE, lines
from jcredit.sweeps.variants import Variant

RATES, PENALTIES = (3e-4, 1e-3, 3e-3), (0.0, 1e-4)
LINES = CONTROLS | {
    f"rate={rate:g} lam={penalty:g}": MENDED_FIELD | {"credit.of.learning_rate": rate, "state_penalty": penalty}
    for penalty in PENALTIES
    for rate in RATES
}


def grid(only: tuple[str, ...] = (), **fields) -> tuple[Variant, ...]:
    """All lines, or some of them, scored on the validation split."""
    return lines(CIFAR10, LINES, only=only, evaluate_on="validation", **fields)


EXPERIMENT = Experiment(
    name="vector_tuning",
    question="Which learning rate does the mended vector field take?",
    phase="tuning, validation split",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid(("frozen", "rate=0.001 lam=0"), depth=2, width=16, hidden=16, epochs=1, **SMOKE),
            "20 seconds",
        ),
        "quick": Preset((42,), grid(epochs=6), "6 minutes"),
        "full": Preset((42,), grid(epochs=15), "15 minutes"),
    },
    table=TableSpec(
        "The mended vector field on CIFAR-10: validation accuracy",
        credit_columns(),
        notes=(
            "One seed, at the last epoch; accuracy on the 5,000 training images held out. Everything that was tried.",
            "Quick: 6 epochs, cosine schedule over these.",
        ),
    ),
    figure=default_figure("The mended vector field, validation split", ("test_accuracy", "gamma", "h_rms_last")),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
