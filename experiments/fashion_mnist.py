"""Fashion-MNIST: which credit trains hidden layers on an easier task?

    python experiments/fashion_mnist.py --preset quick

The study used Fashion-MNIST for its debug runs (``smoke_test``) and reported no figures.  Here are the two blocks of
``cifar10.py`` on the real data set, 28 x 28 grey images without augmentation: the study's local rule and jcredit's.
"""

from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure, main
from jcredit.study.settings import FASHION_MNIST, FASHION_MNIST_STUDY, SMOKE, both_rules
from jcredit.sweeps.variants import Variant


def grid(only: tuple[str, ...] = (), **fields) -> tuple[Variant, ...]:
    """Both blocks, or some of their lines, with fields changed in every line."""
    return both_rules(FASHION_MNIST_STUDY, FASHION_MNIST, only, **fields)


EXPERIMENT = Experiment(
    name="fashion_mnist",
    question="Which credit trains hidden layers on an easier task?",
    phase="1, debug runs",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid(("frozen", "dfa"), depth=2, width=16, hidden=16, epochs=1, **SMOKE),
            "20 seconds",
        ),
        "quick": Preset((42, 123), grid(width=128, train_size=25600, epochs=6), "4 minutes"),
        "full": Preset((42, 123, 456), grid(), "90 minutes"),
    },
    table=TableSpec(
        "Fashion-MNIST, residual MLP with L = 4",
        credit_columns(),
        notes=(
            "At the last epoch, no augmentation; accuracy on the 10,000 test images. D = 256 and"
            " 20 epochs (full), D = 128 and 1,200 steps (quick).",
            "Depth utility is accuracy minus that of frozen blocks at the same seed; frozen has no credit to score.",
            "The study reports no figures for its Fashion-MNIST runs, which were smoke tests.",
        ),
    ),
    figure=default_figure("Fashion-MNIST, L = 4", ("test_accuracy", "gamma", "h_rms_last")),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
