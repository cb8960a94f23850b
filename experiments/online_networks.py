"""Past the MLP: does credit that trains a residual MLP train convolutions and a patch mixer too?

    python experiments/online_networks.py --preset quick

Three residual blocks of 3 x 3 convolutions, and four of a patch mixer, on CIFAR-10 with crops, flips and raw credit.
Their states are maps of 8 x 8 positions; a tangent bridge fits a map of the block's own form (kernels, where the block
convolves) to the block's own forward tangents, and hands the credit down by that map's transpose.  Every line has the
same learning rates, which were tuned for none of them.
"""

import jcredit as jc
from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, default_figure, main, trained_columns
from jcredit.study.settings import CIFAR10, CONTROLS, SMOKE, lines, named
from jcredit.sweeps.variants import Variant

LINES = CONTROLS | named("dfa", "fa", "state_bridge", "tangent_mask", "tangent_chain") | {
    "tangent_sweeps K=2, neumann": {"credit": jc.tangent_sweeps(2, "neumann")},
    "tangent_chain, shuffled": {"credit": jc.tangent_chain(shuffled=True)},
}  # fmt: skip
QUICK = (*CONTROLS, "fa", "tangent_chain", "tangent_chain, shuffled")
NETWORKS = {
    "convolutions, L = 3": CIFAR10.replace(network=jc.image_cnn()),
    "patch mixer, L = 4": CIFAR10.replace(network=jc.image_mixer()),
}


def grid(only: tuple[str, ...] = (), **fields) -> tuple[Variant, ...]:
    """A block for each network, of all lines or some, with fields changed in every line."""
    return tuple(v for block, base in NETWORKS.items() for v in lines(base, LINES, block, only, **fields))


EXPERIMENT = Experiment(
    name="online_networks",
    question="Does credit train convolutions and a patch mixer too?",
    phase="beyond the study",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid(("frozen", "tangent_chain"), depth=2, channels=4, epochs=1, **SMOKE),
            "30 seconds",
        ),
        "quick": Preset((42, 123), grid(QUICK, channels=24, epochs=5), "45 minutes"),
        "full": Preset((42, 123, 456), grid(epochs=30), "40 hours"),
    },
    table=TableSpec(
        "Past the MLP: CIFAR-10, raw credit",
        trained_columns(),
        notes=(
            "At the last epoch; accuracy on the 10,000 test images; differences are paired by seed.",
            "Quick: 24 channels, 5 epochs. Full: 48 channels, 30 epochs.",
            "No learning rate was tuned for any line: the network's is 1e-3, the estimators have their defaults.",
            "Depth utility: above frozen blocks.",
        ),
    ),
    figure=default_figure("Past the MLP: CIFAR-10, raw credit", ("test_accuracy", "gamma", "h_rms_last")),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
