"""Why did the study's vector field fail online, and why do tangent bridges train?  Step by step.

    python experiments/online_dissection.py --preset quick

The first block walks from the study's vector field under the study's rule to the tangent chain under jcredit's: each
line changes one thing of the line above it and keeps the rest; from 8 to 11 that is the whole form, optimizer or fit of
the estimator.  The second has the exact gradient under every scale and clip, so that what a rule costs can be told from
what a credit lacks.  The third asks what a cosine is worth: the exact gradient with an error of known size, drawn anew
each time or the same at every step, with and without a pull on the states, so that Gamma can be read at about the same
RMS(h).  The fourth asks whether an estimator that fails online is late, as the study suspected, since the blocks move
while it learns: it is given four fits for every step of the network.
"""

from collections.abc import Sequence
from pathlib import Path

import jcredit as jc
from jcredit.report import dots, stats
from jcredit.report.schema import Row
from jcredit.report.styles import PALETTE
from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, main
from jcredit.study.settings import CIFAR10, CIFAR10_STUDY, MENDED_FIELD, PULL, SMOKE, WARMUP, lines, named
from jcredit.sweeps.variants import Variant

WALK, ORACLE, ERRORS, FITS = (
    "from the study's field to the tangent chain",
    "the oracle under each rule",
    "errors of known size",
    "fits of the estimator in a step of the network",
)
STUDY_RULE, NO_CLIP, RAW = ({"normalise": n, "clip": c} for n, c in (("rms", 1.0), ("rms", 0.0), ("raw", 0.0)))


def field(**settings) -> dict:
    """The study's vector field, with settings changed."""
    return {"credit": jc.vector_field(**settings)}


SCALED = {"scheme": "jvp", "scale": "delta"}
STEPS = {
    "0 the study's field": STUDY_RULE | field() | WARMUP,
    "1 no warm-up": STUDY_RULE | field(),
    "2 exact measurement": STUDY_RULE | field(scheme="jvp"),
    "3 no clip": NO_CLIP | field(scheme="jvp"),
    "4 raw credit": RAW | field(scheme="jvp"),
    "5 scale of delta_L": RAW | field(**SCALED),
    "6 plus delta_L": RAW | field(**SCALED, skip=True),
    "7 pull on the states": RAW | PULL | field(**SCALED, skip=True),
    "8 linear in delta_L": RAW | PULL | {"credit": jc.linear_field("gate", learning_rate=1e-3, clip=1.0)},
    "9 optimizer of the bridges": RAW | PULL | {"credit": jc.linear_field("gate", learning_rate=3e-3)},
    "10 tangents, not losses": RAW | PULL | named("tangent_gate")["tangent_gate"],
    "11 gates of the blocks": RAW | PULL | named("tangent_mask")["tangent_mask"],
    "12 one map per block": RAW | PULL | named("tangent_chain")["tangent_chain"],
    "13 no pull": RAW | named("tangent_chain")["tangent_chain"],
    "14 constant rate": RAW | named("tangent_chain")["tangent_chain"] | {"schedule": "constant"},
}
CONTROLS = named("frozen", "broadcast") | {"broadcast, pull": {"credit": jc.broadcast()} | PULL}
RULES = {
    "RMS, clip 1": STUDY_RULE, "RMS": NO_CLIP, "batch": {"normalise": "batch", "clip": 0.0},
    "raw, clip 1": {"normalise": "raw", "clip": 1.0}, "raw": RAW, "raw, pull": RAW | PULL,
    "raw, constant rate": RAW | {"schedule": "constant"},
}  # fmt: skip
SIZES = (0.5, 1.0, 2.0, 4.0)
DISTURBED = {
    f"{error} {size:g}{', pull' if pull else ''}": {"credit": jc.disturbed_bp(size, error)} | pull
    for error in ("fresh", "fixed")
    for pull in ({}, PULL)
    for size in SIZES
}
FITTED = (
    named("state_bridge", "scalar_bridge")
    | {"vector_field, mended": MENDED_FIELD}
    | named("tangent_gate", "tangent_chain")
)
MANY = 4
LATE = {
    name if fits == 1 else f"{name}, {fits} fits": line | {"estimator_steps": fits}
    for name, line in FITTED.items()
    for fits in (1, MANY)
}
ORACLES = {f"oracle: {rule}": changes for rule, changes in RULES.items()}


def grid(only: tuple[str, ...] = (), **fields) -> tuple[Variant, ...]:
    """All blocks, or some of their lines, with fields changed in every line."""
    return (
        *lines(CIFAR10_STUDY, STEPS, WALK, only, **fields),
        *lines(CIFAR10, ORACLES | CONTROLS, ORACLE, only, **fields),
        *lines(CIFAR10, DISTURBED | CONTROLS, ERRORS, only, **fields),
        *lines(CIFAR10, named("bp") | CONTROLS | LATE, FITS, only, **fields),
    )


def figure(rows: Sequence[Row], path: Path) -> None:
    """Accuracy of the walk's steps, of the oracle under each rule, against Gamma for known errors, and of more fits."""
    accuracy = "metrics.test_accuracy"
    canvas, (walk, rules, worth, fits) = dots.panels(4, (18.0, 4.6))
    for axis, block, title, labels in (
        (walk, WALK, WALK, STEPS),
        (rules, ORACLE, ORACLE, ORACLES),
        (fits, FITS, "fits in a step", LATE),
    ):
        for y, label in enumerate(labels):
            dots.draw(axis, y, dots.values_of(rows, accuracy, label, block), PALETTE[0])
        dots.name(axis, list(labels), f"test accuracy: {title}")
    for error, color in zip(("fresh", "fixed"), PALETTE, strict=False):
        for pull, look in (("", "o-"), (", pull", "s--")):
            sizes = [f"{error} {size:g}{pull}" for size in SIZES]
            both = [[dots.values_of(rows, m, label, ERRORS) for m in ("metrics.gamma", accuracy)] for label in sizes]
            means = [(stats.mean(gamma), stats.mean(reached)) for gamma, reached in both if gamma and reached]
            if means:
                worth.plot(*zip(*means, strict=True), look, ms=4, lw=1.2, color=color, label=f"{error} error{pull}")
    worth.set_xlabel("Gamma", fontsize=dots.SMALL)
    worth.set_ylabel("test accuracy", fontsize=dots.SMALL)
    marks = {
        "frozen": ("--", "frozen"), "broadcast": (":", "broadcast"), "oracle: raw": ("-.", "BP"),
        "oracle: raw, pull": ("-", "BP, pull"),
    }  # fmt: skip
    for axis in (walk, rules, worth, fits):
        for label, (style, said) in marks.items():
            dots.mark(axis, dots.values_of(rows, accuracy, label, ORACLE), style, said, across=axis is worth)
    dots.legend(worth)
    dots.write(canvas, "From the study's field to the tangent chain, and what a cosine is worth", path)


EXPERIMENT = Experiment(
    name="online_dissection",
    question="Which factor makes credit train online?",
    phase="beyond the study",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid(
                ("0 the study's field", "13 no pull", "frozen", "fixed 1", "tangent_gate, 4 fits"),
                depth=2, width=16, epochs=1, **SMOKE,
            ),
            "30 seconds",
        ),
        "quick": Preset((42, 123, 456), grid(epochs=5), "70 minutes"),
        "full": Preset((42, 123, 456), grid(epochs=20), "4 hours"),
    },
    table=TableSpec(
        "From the study's vector field to the tangent chain, step by step: CIFAR-10, L = 4, D = 256",
        credit_columns(),
        notes=(
            "At the last epoch (quick 5, full 20, cosine schedule over these but where the rate is constant).",
            "Each line of the first block keeps what the lines above it changed, until line 13 takes the pull (1e-4"
            " h_l, added to the credit of h_l) off again. No learning rate was tuned for any line.",
            "fresh, fixed: the exact gradient plus an error of this size relative to its norm, drawn anew for every"
            " sample and step, or made by one random matrix per layer; Gamma is 1 / sqrt(1 + size^2) for"
            " fresh, and for fixed at the start.",
            "fits: steps of the estimator's optimizer for one of the network's, on the same batch with fresh noise; one"
            " where a label says none.",
        ),
    ),
    figure=figure,
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
