"""Does the vector credit field train a CIFAR-10 network?

    python experiments/online_vector.py --preset quick

L = 4, D = 256, the field learning beside the network.  The study found it below DFA (24.3%, Gamma .001) although it was
the best estimator on frozen features, and concluded that the local rule cannot use good credit.  Shown with and without
warm-up and terminal loss, beside the best scalar bridge and the shuffled control.

Claims of the study (docs/method.md 10): OV1.
"""

import jcredit as jc
from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, gain_columns, gains_figure, main
from jcredit.study.settings import CIFAR10_STUDY, SMOKE, STUDY_CONTROLS, lines, named
from jcredit.sweeps.variants import Variant

LINES = {
    **STUDY_CONTROLS,
    **named("dfa"),
    "cb_eT wr=0.2 tgw=1": {"credit": jc.scalar_bridge(), "warmup_ratio": 0.2},
    **{
        f"vec wr={r:g} tw={w:g}": {"credit": jc.vector_field(terminal_weight=w), "warmup_ratio": r}
        for r, w in ((0.0, 1.0), (0.2, 1.0), (0.2, 0.0))
    },
    "vec scaled wr=0.2 tw=1": {"credit": jc.vector_field(scale="delta"), "warmup_ratio": 0.2},
    "vec shuffled wr=0 tw=0": {"credit": jc.vector_field(shuffled=True, terminal_weight=0.0)},
    "mended vec": {"credit": jc.exact_terminal(of=jc.vector_field(scale="delta", skip=True)), "state_penalty": 1e-4},
}
STUDY = {
    "dfa": {"accuracy": ".312", "Gamma": ".101", "rho": "-.005", "S1": "0", "S2": "0"},
    "vec wr=0.2 tw=1": {"accuracy": ".243", "Gamma": ".001", "rho": ".000", "S1": "-.100", "S2": "+.005"},
    "cb_eT wr=0.2 tgw=1": {"accuracy": ".283", "Gamma": ".179", "rho": ".009", "S1": "+.079", "S2": "+.014"},
}


def grid(only: tuple[str, ...] = (), **fields) -> tuple[Variant, ...]:
    """All lines, or some of them, with fields changed in each."""
    return lines(CIFAR10_STUDY, LINES, only=only, **fields)


EXPERIMENT = Experiment(
    name="online_vector",
    question="Does the vector credit field train a CIFAR-10 network?",
    phase="5C: OV1",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid(("dfa", "vec wr=0.2 tw=1", "vec wr=0.2 tw=0"), depth=2, width=16, hidden=16, epochs=1, **SMOKE),
            "20 seconds",
        ),
        "quick": Preset((42, 123), grid(train_size=32000, epochs=8), "10 minutes"),
        "full": Preset((42, 123, 456), grid(), "5 hours"),
    },
    table=TableSpec(
        "The vector credit field while CIFAR-10 is learned: L = 4, D = 256",
        (*credit_columns(), *gain_columns()),
        STUDY,
        (
            "At the last epoch; the study's rule (per-sample RMS credit, clip 1); M = 4 central"
            " differences, each sample at one random hidden layer per step.",
            "S1 = Gamma - Gamma of dfa, S2 = rho - rho of dfa, each at the same seed; the figure has a dot per seed.",
            "vec scaled: the study's field times the RMS of the sample's delta_L, nothing else changed. mended vec:"
            " plus delta_L, no warm-up, lam h of 1e-4.",
            "A Gamma near 1 with a large RMS(h_L) may be trivial: where states outgrow weights, delta_l nears delta_L.",
            "Study: seed 42 after 100 epochs (OV1, ON1). Quick takes 2,000 steps.",
        ),
    ),
    figure=gains_figure("The vector credit field while CIFAR-10 is learned"),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
