"""Toy LQ control: does an estimator recover a costate that is known in closed form?

    python experiments/toy_lq.py --preset quick

Linear dynamics h_{l+1} = h_l A_l + noise over 12 steps, readout y = h_L W, loss 0.5 ||y - y*||^2: the costate is
lambda_l = (y - y*) W^T A_{L-1}^T .. A_l^T.  Nothing is learned but the estimator; Gamma is its cosine to lambda_l on
samples never trained on.  The study found that state and scalar credit bridge recover it (cosine .945, .944; DFA .001)
and that without the terminal gradient loss the scalar bridge's gradients carry nothing (.03).  It states neither the
dynamics nor the goals y*: four readings are shown.

Claims of the study (docs/method.md 10): LQ1-LQ3.
"""

import jcredit as jc
from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure, main
from jcredit.study.settings import CONTROLS, TOY_LQ, lines, named
from jcredit.sweeps.variants import Variant

TRUNK = jc.mlp(hidden_layers=3)
BRIDGE = jc.scalar_bridge(target="softmin", noise_samples=8, sigma=0.1, softmin_lambda=0.1, ema=0.995, trunk=TRUNK)
LINES = {
    **CONTROLS,
    **named("dfa"),
    "state_bridge": {"credit": jc.state_bridge(trunk=TRUNK)},
    "state_bridge raw": {"credit": jc.state_bridge(state_loss="raw", trunk=TRUNK)},
    "scalar_bridge": {"credit": BRIDGE},
    "scalar_bridge tgw=0": {"credit": BRIDGE.replace(terminal_weight=0.0)},
    "vector_field": {"credit": jc.vector_field(trunk=TRUNK)},
    "state_bridge, no code": {"credit": jc.state_bridge(trunk=TRUNK.replace(code="none"))},
    "scalar_bridge, no code": {"credit": BRIDGE.replace(trunk=TRUNK.replace(code="none"))},
}
STUDY = {
    "dfa": {"Gamma": ".001±.003", "rho": ".001±.007", "nudge": ".000±.001"},
    "state_bridge": {"Gamma": ".945±.002", "rho": ".931±.003", "nudge": "-.344±.019"},
    "scalar_bridge": {"Gamma": ".944±.001", "rho": ".930±.002", "nudge": "-.342±.019"},
    "scalar_bridge tgw=0": {"Gamma": ".03"},
}
STUDY |= {f"{line}, no code": STUDY[line] for line in ("state_bridge", "scalar_bridge")}  # it does not say which


READINGS = {
    f"A near the {near}, {'a y* for each sample' if target == 'independent' else 'one y* for all'}": {
        "near": near, "spread": 0.1 if near == "isometry" else 0.13, "target": target
    }
    for near in ("isometry", "identity")
    for target in ("independent", "fixed")
}  # fmt: skip
"""What the study leaves open: the dynamics, and whether the goal differs from sample to sample."""


def grid(only: tuple[str, ...] = (), readings: int = len(READINGS), **fields) -> tuple[Variant, ...]:
    """A block for each reading (or the first ones), of all lines or some, with fields changed in each."""
    return tuple(
        variant
        for block, reading in list(READINGS.items())[:readings]
        for variant in lines(TOY_LQ, LINES, block, only, **reading, **fields)
    )


EXPERIMENT = Experiment(
    name="toy_lq",
    question="Does an estimator recover a costate that is known in closed form?",
    phase="1: LQ1, LQ2, LQ3",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42, 123),
            grid(
                ("broadcast", "dfa", "state_bridge", "scalar_bridge"),
                readings=1,
                depth=3,
                state_size=16,
                hidden=32,
                batch_size=64,
                steps_per_epoch=20,
                epochs=2,
                diagnostic_samples=64,
            ),
            "20 seconds",
        ),
        "quick": Preset((42, 123, 456), grid(batch_size=64, steps_per_epoch=250, epochs=10), "25 minutes"),
        "full": Preset((42, 123, 456), grid(), "3 hours"),
    },
    table=TableSpec(
        "Toy LQ: credit against the closed-form costate",
        credit_columns(accuracy=False),
        STUDY,
        (
            "Gamma is the cosine to the costate.",
            "The study ran 8,000 steps of batch 256 (preset full); quick runs 2,500 of batch 64.",
            "frozen and broadcast are the controls: no credit, and delta_L = (y - y*) W^T at every layer.",
            "A_l is a random orthogonal matrix or the identity, plus N(0, .1^2 / D) or N(0, .13^2 / D) entries; with a"
            " y* for each sample e_T alone fixes the loss: values inform no gradient. The study states neither.",
            "No code: the estimator sees no e_T. With one y* for all, e_T gives away the part of h_L that the loss"
            " reads, and the best prediction of h_L from h_l and e_T has a credit of zero (docs/method.md 4).",
        ),
    ),
    figure=default_figure("Toy LQ: credit against the closed-form costate", ("gamma", "rho", "nudge"), "gamma"),
)

if __name__ == "__main__":
    main(EXPERIMENT)
