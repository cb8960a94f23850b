"""The headline: which credit trains a network online, beside the strongest controls, paired over seeds?

    python experiments/online_credit.py --preset quick

Raw credit, L = 4, D = 256, 100 epochs.  Four regimes: crops and flips; flips alone, where the prototype's
back-propagation overfitted and rules bunched together; Fashion-MNIST, which is easier; crops and flips on 12 blocks of
width 512, where a credit that needs few steps in sequence would be worth most.  Beside the tangent bridges stand the
controls (frozen blocks, broadcast, shuffled tangents) and the strongest peers: feedback alignment, weight
mirror and Kolen-Pollack (chains with other fits), GrAPE (aligned direct feedback), forward gradients and block-local
losses.
"""

import jcredit as jc
from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, default_figure, main, trained_columns
from jcredit.study.settings import (
    CIFAR10,
    CIFAR10_DEEP,
    CONTROLS,
    FASHION_MNIST,
    MENDED_FIELD,
    PULL,
    SMOKE,
    lines,
    named,
)
from jcredit.sweeps.variants import Variant

TANGENTS = named("tangent_chain", "tangent_mask", "tangent_gate") | {
    "tangent_sweeps K=1": {"credit": jc.tangent_sweeps(1)},
    "tangent_sweeps K=2": {"credit": jc.tangent_sweeps(2)},
    "tangent_sweeps K=1 from the mask": {"credit": jc.tangent_sweeps(1, start="mask")},
}
PEERS = named("dfa", "fa", "weight_mirror", "kolen_pollack", "grape", "local_heads") | {
    "forward_gradient, local": {"credit": jc.forward_gradient()},
}
AT_ONCE = {f"kolen_pollack K={k}": {"credit": jc.kolen_pollack(sweeps=k)} for k in (1, 2)}
FOLLOWING = {  # told the weights' updates the maps need few tangents, as online_tuning found on the validation split
    "tangent_chain, following, 8 samples": {"credit": jc.tangent_chain(8, follows=True)},
    "tangent_chain, following, 8 samples, from feedback": {
        "credit": jc.tangent_chain(8, follows=True, begins="feedback")
    },
    "tangent_sweeps K=2, following, 8 samples, from feedback": {
        "credit": jc.tangent_sweeps(2, samples=8, follows=True, begins="feedback")
    },
    "tangent_chain, following, 8 samples, shuffled": {"credit": jc.tangent_chain(8, follows=True, shuffled=True)},
}
SCALAR = {
    "linear_field": {"credit": jc.linear_field("gate", learning_rate=3e-3)},  # the tangent bridges' rate
    "vector_field, mended": MENDED_FIELD,
}
TUNED = {  # at a third of the tangent bridges' rate, which online_tuning chose on the validation split
    "tangent_gate, rate 1e-3": {"credit": jc.tangent_gate(learning_rate=1e-3)},
    "linear_field, rate 1e-3": {"credit": jc.linear_field("gate")},
}
SHUFFLED = {
    "tangent_chain, shuffled": {"credit": jc.tangent_chain(shuffled=True)},
    "tangent_mask, shuffled": {"credit": jc.tangent_mask(shuffled=True)},
    "linear_field, rate 1e-3, shuffled": {"credit": jc.linear_field("gate", shuffled=True)},
}
LINES = CONTROLS | TANGENTS | FOLLOWING | PEERS | AT_ONCE | SCALAR | TUNED | SHUFFLED
FEW = (*CONTROLS, "dfa", "fa", "tangent_mask", "tangent_chain", "tangent_sweeps K=2")
DEEP_LINES = (
    CONTROLS
    | named("dfa", "weight_mirror", "kolen_pollack", "tangent_chain")
    | {
        "tangent_coarse": {"credit": jc.tangent_coarse(learning_rate=3e-3)},
        "tangent_coarse, rate 1e-3": {"credit": jc.tangent_coarse()},  # stays fitted: online_tuning
        "tangent_chain, following": {"credit": jc.tangent_chain(follows=True)},
        "tangent_chain, following, from feedback": {"credit": jc.tangent_chain(follows=True, begins="feedback")},
        "tangent_sweeps K=2, following, from feedback": {
            "credit": jc.tangent_sweeps(2, follows=True, begins="feedback")
        },
        "tangent_sweeps K=2, following, from feedback, shuffled": {
            "credit": jc.tangent_sweeps(2, follows=True, begins="feedback", shuffled=True)
        },
    }
    | {f"tangent_sweeps K={k}": {"credit": jc.tangent_sweeps(k)} for k in (2, 4)}
    | AT_ONCE
    | {
        f"{name}, pull": line | PULL
        for name, line in named("bp", "broadcast", "kolen_pollack", "tangent_chain").items()
    }
)
MAIN, FLIPS, FASHION, DEEP = "crops and flips", "flips alone", "Fashion-MNIST", "12 blocks, D = 512"


def grid(only: tuple[str, ...] = (), **fields) -> tuple[Variant, ...]:
    """Four regimes: all lines, the most telling ones in two others, and those whose depth differs on 12 blocks."""
    few = tuple(label for label in FEW if not only or label in only)
    return (
        *lines(CIFAR10, LINES, MAIN, only, **fields),
        *lines(CIFAR10.replace(crops=False), LINES, FLIPS, few, **fields),
        *lines(FASHION_MNIST, LINES, FASHION, few, **({"epochs": 20} | fields)),
        *lines(CIFAR10_DEEP, DEEP_LINES, DEEP, only, **({"epochs": 30} | fields)),
    )


EXPERIMENT = Experiment(
    name="online_credit",
    question="Which credit trains a network online, beside the strongest controls?",
    phase="beyond the study",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid(("frozen", "tangent_chain", "grape"), depth=2, width=16, epochs=1, **SMOKE),
            "30 seconds",
        ),
        "quick": Preset((42, 123), grid(epochs=8), "2 hours"),
        "full": Preset((42, 123, 456, 789, 1011, 1213), grid(), "60 hours"),
    },
    table=TableSpec(
        "Credit that trains online: residual MLP with L = 4, D = 256 (or 12, 512 where it says so), raw credit",
        trained_columns(),
        notes=(
            "At the last epoch; accuracy on the 10,000 test images; differences are paired by seed.",
            "Networks at 1e-3, tangent bridges and the linear field at 3e-3, peers at their defaults, but where a label"
            " says another, chosen by a small grid on a validation split; what that grid says of all of them is in"
            " online_tuning.",
            "K: sweeps over all layers at once, through the chain's maps or Kolen-Pollack's feedback.",
            "following: the maps are also told the weights' updates, as Kolen-Pollack's feedback is; samples: how many"
            " samples' tangents a step measures, 32 where no label says so.",
            "from feedback: the maps begin random, as feedback alignment, in place of zero, the broadcast.",
            "pull: 1e-4 h_l, added to the credit of h_l.",
            "Full: 100 epochs, 20 on Fashion-MNIST, 30 on 12 blocks. Quick: 8 epochs.",
        ),
    ),
    figure=default_figure("Credit that trains online", ("test_accuracy", "gamma", "h_rms_last")),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
