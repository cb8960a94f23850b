"""Frozen BP network: which estimators recover the credit of a network that is not moving?

    python experiments/frozen_recovery.py --preset quick

A network is trained by back-propagation, once, and frozen; every estimator is then fitted on its features.  The study
found state bridge > scalar bridge on e_T > scalar bridge on delta_L >> DFA, the vector field ahead of all (M = 4 as
good as 8 and 16), concluded that estimators are not the bottleneck, and never showed the plain broadcast of delta_L,
which learns nothing at all.

Claims of the study (docs/method.md 10): FZ1, FV1.
"""

import jcredit as jc
from jcredit.report.tables import Column, TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure, main
from jcredit.study.frozen import FULL_FIT, QUICK_FIT, QUICK_NET, SCALED, SMOKE_FIT, SMOKE_NET, fits
from jcredit.study.settings import CIFAR10
from jcredit.sweeps.variants import Snapshot, Variant

STUDY_BLOCK = "L = 4, D = 256"
STUDY: dict[str, dict[str, str]] = {
    f"{STUDY_BLOCK} | {label}": dict(zip(("Gamma", "rho", "nudge"), figures, strict=True))
    for label, figures in {
        "dfa": (".006 / .005", ".005", "-2.2e-05 / -6e-06"),
        "state_bridge eT": (".287", ".246 / .264", "-9.6e-04"),
        "scalar_bridge eT": (".115", ".125 / .120", "-3.7e-04"),
        "scalar_bridge deltaL": (".070", ".062", "-1.6e-04"),
        "vector_field M=4": (".364", ".426", "-1.4e-03"),
        "vector_field M=8": ("as M=4", "as M=4", "as M=4"),
        "vector_field M=16": ("as M=4", "as M=4", "as M=4"),
    }.items()
}


def grid(*nets, only: tuple[str, ...] = (), **fit) -> tuple[Variant, ...]:
    """A block for every network, frozen after its last epoch."""
    return tuple(
        variant for net in nets for variant in fits(Snapshot(net, net.epochs), block=block_name(net), only=only, **fit)
    )


def block_name(net: jc.Config) -> str:
    """Heading of a network's block."""
    return "L = {depth}, D = {width}".format(**net.network.settings)


EXPERIMENT = Experiment(
    name="frozen_recovery",
    question="Which estimators recover the credit of a frozen BP network?",
    phase="4A, 5B: FZ1, FV1",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,), grid(SMOKE_NET, only=("broadcast", "dfa", "vector_field M=4"), **SMOKE_FIT), "20 seconds"
        ),
        "quick": Preset((42, 123), grid(QUICK_NET, **QUICK_FIT), "15 minutes"),
        "full": Preset(
            (42, 123, 456),
            grid(CIFAR10, CIFAR10.replace(depth=6), CIFAR10.replace(width=512), **FULL_FIT),
            "15 hours",
        ),
    },
    table=TableSpec(
        "Credit on the frozen features of a BP network, CIFAR-10",
        (*credit_columns(accuracy=False), Column("network accuracy", "metrics.test_accuracy")),
        STUDY,
        (
            "Each seed has a network of its own; Gamma, rho and nudge are means over l = 0..L-1 on"
            " test images.",
            "Nudge moves h_l by .003 along unit-RMS credit. bp is the oracle, frozen the credit that is zero below h_L,"
            " broadcast a_l = delta_L.",
            SCALED,
            "Study: one network (61.7%), two runs of it (4A / 5B). It reports the same order at L = 6 and at D = 512,"
            " without figures.",
            "Quick stops the network after 3 epochs and the fits after 5 (1,950 steps); full: 100 and 30, where"
            " the study fitted for 100.",
        ),
    ),
    figure=default_figure("Credit on frozen features", ("gamma", "rho", "nudge"), "gamma"),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
