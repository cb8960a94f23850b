"""Does a credit make use of depth?  Accuracy against the number of trained blocks.

    python experiments/depth_utility.py --preset quick

The CIFAR-10 network at L = 1, 2, 4 and 8 blocks, raw credit.  What trains hidden layers must gain from more of them;
frozen blocks and the broadcast, which learns nothing, say what more random or unguided blocks are worth by themselves.
"""

import jcredit as jc
from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure, main
from jcredit.study.settings import CIFAR10, CONTROLS, SMOKE, lines, named
from jcredit.sweeps.variants import Variant

DEPTHS = (1, 2, 4, 8)
LINES = CONTROLS | named("dfa", "tangent_chain") | {"tangent_sweeps K=2": {"credit": jc.tangent_sweeps(2)}}


def grid(depths: tuple[int, ...] = DEPTHS, only: tuple[str, ...] = (), **fields) -> tuple[Variant, ...]:
    """A block for each depth, of all lines or some, with fields changed in every line."""
    return tuple(v for depth in depths for v in lines(CIFAR10, LINES, f"L = {depth}", only, depth=depth, **fields))


EXPERIMENT = Experiment(
    name="depth_utility",
    question="Does a credit make use of depth?",
    phase="beyond the study",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid((1, 2), ("frozen", "tangent_chain"), width=16, epochs=1, **SMOKE),
            "20 seconds",
        ),
        "quick": Preset((42, 123), grid((1, 4), epochs=8), "15 minutes"),
        "full": Preset((42, 123), grid(epochs=30), "2 hours"),
    },
    table=TableSpec(
        "Accuracy against the number of trained blocks: CIFAR-10, D = 256, raw credit",
        credit_columns(),
        notes=("At the last epoch (quick 8, full 30); crops and flips, cosine schedule, default learning rates.",),
    ),
    figure=default_figure("Accuracy against the number of trained blocks", ("test_accuracy", "gamma")),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
