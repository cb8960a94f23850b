"""Why did the study's vector field fail online, and why do tangent bridges train?  One factor at a time.

    python experiments/online_dissection.py --preset quick

The first block walks from the study's vector field under the study's rule to the tangent chain under jcredit's: each
line changes one factor of the line above it and keeps the rest.  The second has the exact gradient under every scale
and clip, so that what a rule costs can be told from what a credit lacks.  The third asks what a cosine is worth: the
exact gradient with an error of known size, drawn anew each time or the same at every step, with and without a pull on
the states, so that Gamma can be read at about the same RMS(h).
"""

import jcredit as jc
from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure, main
from jcredit.study.settings import CIFAR10, CIFAR10_STUDY, lines, named
from jcredit.sweeps.variants import Variant

WALK, ORACLE, ERRORS = (
    "from the study's field to the tangent chain",
    "the oracle under each rule",
    "errors of known size",
)
STUDY_RULE, NO_CLIP, RAW = ({"normalise": n, "clip": c} for n, c in (("rms", 1.0), ("rms", 0.0), ("raw", 0.0)))
PULL = {"state_penalty": 1e-4}


def field(**settings) -> dict:
    """The study's vector field, with settings changed."""
    return {"credit": jc.vector_field(**settings)}


SCALED = {"scheme": "jvp", "scale": "delta"}
STEPS = {
    "0 the study's field": STUDY_RULE | field() | {"warmup_ratio": 0.2},
    "1 no warm-up": STUDY_RULE | field(),
    "2 exact measurement": STUDY_RULE | field(scheme="jvp"),
    "3 no clip": NO_CLIP | field(scheme="jvp"),
    "4 raw credit": RAW | field(scheme="jvp"),
    "5 scale of delta_L": RAW | field(**SCALED),
    "6 plus delta_L": RAW | field(**SCALED, skip=True),
    "7 pull on the states": RAW | PULL | field(**SCALED, skip=True),
    "8 linear in delta_L": RAW | PULL | {"credit": jc.linear_field("gate")},
    "9 tangents, not losses": RAW | PULL | named("tangent_gate")["tangent_gate"],
    "10 gates of the blocks": RAW | PULL | named("tangent_mask")["tangent_mask"],
    "11 one map per block": RAW | PULL | named("tangent_chain")["tangent_chain"],
    "12 no pull": RAW | named("tangent_chain")["tangent_chain"],
    "13 constant rate": RAW | named("tangent_chain")["tangent_chain"] | {"schedule": "constant"},
}
CONTROLS = named("frozen", "broadcast")
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


def grid(only: tuple[str, ...] = (), **fields) -> tuple[Variant, ...]:
    """All blocks, or some of their lines, with fields changed in every line."""
    return (
        *lines(CIFAR10_STUDY, STEPS, WALK, only, **fields),
        *lines(
            CIFAR10, {f"oracle: {rule}": changes for rule, changes in RULES.items()} | CONTROLS, ORACLE, only, **fields
        ),
        *lines(CIFAR10, DISTURBED | CONTROLS, ERRORS, only, **fields),
    )


EXPERIMENT = Experiment(
    name="online_dissection",
    question="Which factor makes credit train online?",
    phase="beyond the study",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid(("0 the study's field", "12 no pull", "frozen", "fixed 1"), depth=2, width=16,
                 train_size=512, test_size=256, batch_size=64, epochs=1, diagnostic_samples=64),
            "30 seconds",
        ),
        "quick": Preset((42, 123), grid(epochs=5), "25 minutes"),
        "full": Preset((42, 123, 456), grid(epochs=20), "3 hours"),
    },
    table=TableSpec(
        "From the study's vector field to the tangent chain, one factor at a time: CIFAR-10, L = 4, D = 256",
        credit_columns(),
        notes=(
            "At the last epoch (quick 5, full 20, cosine schedule over these but where the rate is constant).",
            "Each line of the first block keeps what the lines above it changed, up to the pull (lam h of 1e-4), which"
            " line 12 takes off again. No learning rate was tuned for any line.",
            "fresh, fixed: the exact gradient plus an error of this size relative to its norm, drawn anew for every"
            " sample and step, or made by one random matrix per layer; Gamma is 1 / sqrt(1 + size^2) for both.",
        ),
    ),
    figure=default_figure("From the study's field to the tangent chain", ("test_accuracy", "gamma", "h_rms_last")),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
