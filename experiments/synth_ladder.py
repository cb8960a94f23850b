"""The synthetic nonlinearity ladder: how does credit quality fall with nonlinearity and depth?

    python experiments/synth_ladder.py --preset quick --seeds 42 123 456

A student learns a random teacher of its own form, whose activation runs from linear (alpha = 0) to tanh (alpha = 1).
The study found at alpha = 1 the scalar credit bridge ahead of the state bridge at every depth, the state bridge ahead
at alpha = 0, and later the vector field far ahead of both.  Its local rule scales each sample's credit (rms) and clips.

Claims of the study (docs/method.md 10): LD1-LD5.
"""

import jcredit as jc
from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure, main, ratio_columns
from jcredit.study.settings import LADDER, ORACLE, SMOKE, STUDY_CONTROLS, WARMUP, lines, named
from jcredit.sweeps.variants import Variant

DEPTHS = (2, 4, 8, 12)
GAMMA = {"dfa": (".03", ".05", ".06", ".07"), "state_bridge": (".52", ".34", ".25", ".22"),
         "scalar_bridge": (".53", ".45", ".36", ".24"), "vector_field": (None, ".91±.05", ".96±.01", None)}  # fmt: skip
RHO = {"dfa": (".03", ".06", ".07", ".07"), "state_bridge": (".47", ".32", ".23", ".21"),
       "scalar_bridge": (".57", ".51", ".42", ".32"), "vector_field": (None, ".96±.01", ".95±.01", None)}  # fmt: skip
ACCURACY = {("scalar_bridge", 4): ".523"}
BRIDGE_RATIOS = {0: "1/7 to 1/3", 0.25: "1/5 to 1/2", 0.5: "1/3 to 1/1.5"}  # of Gamma, CB over SB
BRIDGES = {"SB": "state_bridge", "DFA": "dfa"}
WARMED = "state_bridge, warmed up"
RAW = {"normalise": "raw", "clip": 0.0}
LINES = {
    **STUDY_CONTROLS,
    **named("dfa", "state_bridge"),
    WARMED: {"credit": jc.state_bridge()} | WARMUP,
    "scalar_bridge": {"credit": jc.scalar_bridge()} | WARMUP,
    "vector_field": {"credit": jc.vector_field(layers="all")} | WARMUP,
    **{f"{name} (raw)": line | RAW for name, line in named("bp", "broadcast", "tangent_chain").items()},
    "tangent_chain, shuffled (raw)": {"credit": jc.tangent_chain(shuffled=True)} | RAW,
}
TOUR = tuple(label for label in LINES if label not in ("broadcast", WARMED, "tangent_chain, shuffled (raw)"))
"""The lines of a first look: one of each kind, raw controls beside the raw learned line."""

CLAIMED = (*STUDY_CONTROLS, "dfa", "state_bridge", "scalar_bridge")
"""What LD1 to LD5 compare, and its controls."""


def block_name(alpha: float, depth: int) -> str:
    """Heading of a table block."""
    return f"alpha = {alpha:g}, L = {depth}"


def study_figures() -> dict[str, dict[str, str]]:
    """The study's tables at alpha = 1 (LD1; vector field: VP1; accuracy: BA1), and its ratios of CB (LD2, LD3)."""
    study: dict[str, dict[str, str]] = {}
    for column, table in (("Gamma", GAMMA), ("rho", RHO)):
        for label, figures in table.items():
            for depth, figure in zip(DEPTHS, figures, strict=True):
                if figure is not None:
                    study.setdefault(f"{block_name(1, depth)} | {label}", {})[column] = figure
    for (label, depth), figure in ACCURACY.items():
        study[f"{block_name(1, depth)} | {label}"]["accuracy"] = figure
    for i, depth in enumerate(DEPTHS):
        for alpha, figure in BRIDGE_RATIOS.items():
            study[f"{block_name(alpha, depth)} | scalar_bridge"] = {"Gamma / SB": figure}
        study[f"{block_name(0, depth)} | scalar_bridge"] |= {"rho / SB": "1/2 to 1/1.5", "rho / DFA": "2 to 6"}
        study[f"{block_name(1, depth)} | scalar_bridge"] |= {
            f"{title} / {short}": f"{float(table['scalar_bridge'][i] or 0) / float(table[label][i] or 1):.1f}"
            for title, table in (("Gamma", GAMMA), ("rho", RHO))
            for short, label in BRIDGES.items()
        }
    study[f"{block_name(0.5, 4)} | scalar_bridge"]["rho / SB"] = "≈1"
    return study


def grid(
    alphas: tuple[float, ...], depths: tuple[int, ...], only: tuple[str, ...] = (), **fields
) -> tuple[Variant, ...]:
    """A block for every alpha and depth, of all lines or some, with fields changed in every line."""
    return tuple(
        variant
        for alpha in alphas
        for depth in depths
        for variant in lines(LADDER, LINES, block_name(alpha, depth), only, alpha=alpha, depth=depth, **fields)
    )


EXPERIMENT = Experiment(
    name="synth_ladder",
    question="How does credit quality fall with nonlinearity and depth?",
    phase="2.1, 4C: LD1-LD5",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid((1.0,), (2,), (ORACLE, "frozen", "scalar_bridge", "vector_field"), width=16, hidden=16, epochs=2,
                 **SMOKE),
            "20 seconds",
        ),
        "tour": Preset((42, 123, 456), grid((1.0,), (4,), TOUR, epochs=6), "3 minutes"),
        "quick": Preset(
            (42, 123, 456),
            grid((0.0, 1.0), (2, 4), epochs=16) + grid((0.25, 0.5), (4,), CLAIMED, epochs=16)
            + grid((0.0, 1.0), (8, 12), CLAIMED, epochs=16),
            "35 minutes",
        ),
        "full": Preset((42, 123, 456), grid((0.0, 0.25, 0.5, 1.0), DEPTHS), "12 hours"),
    },
    table=TableSpec(
        "Synthetic ladder: credit quality against nonlinearity and depth",
        (*credit_columns(nudge=False), *ratio_columns(BRIDGES)),
        study_figures(),
        (
            "At the last epoch; Gamma and rho are means over l = 0..L-1.",
            "Study: its tables at alpha = 1 after 80 epochs (LD1; vector field VP1; accuracy BA1). Quick stops at 16.",
            "SB: state_bridge, DFA: dfa. The study's ratios of its scalar bridge: ranges over depths at alpha below 1"
            " (LD2, LD3), ratios of its means at alpha = 1.",
            "Lines marked raw take credit as it is; all others the study's rule (per-sample RMS credit, clip 1), scalar"
            " bridge and vector field after 20% DFA warm-up, as the study trained them; the state bridge, which the"
            " study did not warm up, without and with it. oracle, RMS rule: the exact gradient through that rule.",
        ),
    ),
    figure=default_figure("Synthetic ladder", ("test_accuracy", "gamma", "rho"), "test_accuracy"),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
