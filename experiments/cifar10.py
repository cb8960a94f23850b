"""CIFAR-10: which credit trains hidden layers, under the study's rule and under jcredit's?

    python experiments/cifar10.py --preset quick

One residual MLP (L = 4, D = 256), two blocks of one table.  The study's configuration scales every sample's credit to
unit RMS and clips; jcredit's takes credit as it is.  The study reported BP 59.2%, DFA 30.0%, scalar bridge 29.6%, state
bridge 18.5% after 100 epochs on 12 blocks, and blamed estimator, co-adaptation and local rule in turn.  The controls
(frozen blocks, the plain broadcast of delta_L, the oracle) say what a credit has to beat.

Claims of the study (docs/method.md 10): none is judged here; CF1-CF3 are on the twelve blocks of cifar12, OV1 in
online_vector.
"""

from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure, main
from jcredit.study.settings import CIFAR10, CIFAR10_STUDY, RAW_BLOCK, SMOKE, STUDY_BLOCK, both_rules
from jcredit.sweeps.variants import Variant

STUDY = {
    f"{RAW_BLOCK} | bp": {"accuracy": ".592±.004 (12 blocks)", "Gamma": ".940", "rho": ".990", "nudge": "-.027"},
    f"{STUDY_BLOCK} | dfa": {"accuracy": ".312", "Gamma": ".101", "rho": "-.005"},
    f"{STUDY_BLOCK} | state_bridge": {"accuracy": ".185±.018 (12 blocks)", "Gamma": ".025", "rho": "-.013"},
    f"{STUDY_BLOCK} | scalar_bridge": {"accuracy": ".283", "Gamma": ".179", "rho": ".009"},
    f"{STUDY_BLOCK} | vector_field, plain": {"accuracy": ".243", "Gamma": ".001", "rho": ".000"},
}


def grid(only: tuple[str, ...] = (), **fields) -> tuple[Variant, ...]:
    """Both blocks, or some of their lines, with fields changed in every line."""
    return both_rules(CIFAR10_STUDY, CIFAR10, only, **fields)


EXPERIMENT = Experiment(
    name="cifar10",
    question="Which credit trains hidden layers on CIFAR-10, under the study's rule and under jcredit's?",
    phase="1, 5C",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid(("frozen", "dfa", "tangent_chain"), depth=2, width=16, hidden=16, epochs=1, **SMOKE),
            "20 seconds",
        ),
        "quick": Preset((42, 123), grid(epochs=8), "20 minutes"),
        "full": Preset((42, 123, 456), grid(), "5 hours"),
    },
    table=TableSpec(
        "CIFAR-10, residual MLP with L = 4, D = 256",
        credit_columns(),
        STUDY,
        (
            "At the last epoch, random crops and flips; accuracy on the 10,000 test images.",
            "Depth utility is accuracy minus that of frozen blocks at the same seed; frozen has no credit to score.",
            "Study: its 100-epoch figures, seed 42 at L = 4, D = 256 (ON1, ON3, OV1), or from its 12-block network"
            " where marked (CF1; Gamma, rho, nudge of bp: CF2, whose .940 for BP's own cosine cannot be right).",
            "oracle, RMS rule: the exact gradient through the study's normalisation and clip. Warm-up .2 (DFA's credit"
            " first) for scalar bridge and plain vector field under the study's rule, as the study had it; no other.",
            "vector_field, plain: under the study's rule as the study describes it; raw as free as that, but measured"
            " exactly and with delta_L at h_L. Mended: the latter's output times the RMS of the sample's delta_L, plus"
            " delta_L, and lam h of 1e-4. Shuffled: measured tangents go to other samples; what is left is the"
            " broadcast and the noise of the fit, a random feedback.",
        ),
    ),
    figure=default_figure("CIFAR-10, L = 4, D = 256", ("test_accuracy", "gamma", "h_rms_last")),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
