"""Which reading of what the study leaves open comes nearest to its tables?

    python experiments/calibration.py --preset quick

The study does not state the scale of its terminal gradient loss, where its noise enters, its soft minimum, its slow
copy, its clip, whether the embedding is trained, or its teacher's LayerNorm.  Each is changed by itself, in the
boundary ablation of its synthetic ladder (alpha = 1, L = 4, 80 epochs), its DFA and its state bridge.  The score is the
mean distance to the study's cells (Gamma, rho, accuracy): readings are ranked on some lines, and the others say what
the ranking is worth; so does one number per metric in the place of all networks.  This is calibration, not evidence.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence

import jcredit as jc
from jcredit.report.schema import Row, grouped
from jcredit.report.tables import TableSpec, aligned
from jcredit.study.boundary import CODES, FIGURES, WARMUP_LINES, WARMUPS, WEIGHT_LINES, WEIGHTS, bridge, cells
from jcredit.study.experiment import Experiment, Preset, credit_columns, default_figure, main
from jcredit.study.settings import LADDER, SMOKE, lines, named
from jcredit.sweeps.variants import Variant

LINES = {
    "dfa": named("dfa")["dfa"],
    "state_bridge": {"credit": jc.state_bridge(), "warmup_ratio": 0.2},
    **{code: bridge(code) for code in FIGURES[CODES]},
    **WEIGHT_LINES,
    **{f"{code} {label}": line for code, table in WARMUP_LINES.items() for label, line in table.items()},
}
RANKED = ("dfa", "eT", "tgw=0", "tgw=4", "eT wr=0.05")
"""Lines on which readings are ranked; the others are held out."""

STUDY: Mapping[str, Mapping[str, str]] = {
    "dfa": {"Gamma": ".05", "rho": ".06"},
    "state_bridge": {"Gamma": ".34", "rho": ".32"},
    **{label: cells(FIGURES[block][label]) for block in (CODES, WEIGHTS) for label in FIGURES[block]},
    **{
        f"{code} {label}": cells(figures)
        for code in WARMUP_LINES
        for label, figures in FIGURES[WARMUPS.format(code)].items()
    },
}
METRICS = ("gamma", "rho", "test_accuracy")
CONSTANT = "no network: one number per metric"

READINGS: dict[str, dict] = {
    "as the other experiments": {},
    "terminal gradient as it is": {"terminal_scale": "raw"},
    "noise before the block": {"noise_at": "present"},
    "noise in both values": {"noise_at": "paired"},
    "soft minimum, lam .1": {"target": "softmin"},
    "EMA .9": {"ema": 0.9},
    "no clip": {"clip": 0.0},
    "one scale for the batch": {"normalise": "batch"},
    "embedding fixed": {"train_embedding": False},
    "teacher without LayerNorm": {"teacher_network": jc.ladder_mlp(depth=4, width=128, layer_norm_on=False)},
}
HELD_OUT = ("as the other experiments", "embedding fixed", "noise in both values")
"""Readings whose other lines are run: the nearest two of the first run, and the one that other experiments have."""


def grid(readings: Sequence[str], held_out: Sequence[str], **fields) -> tuple[Variant, ...]:
    """A block for each reading: the ranked lines, and the held-out ones where they are wanted."""
    return tuple(
        variant
        for reading in readings
        for variant in lines(
            LADDER, LINES, reading, tuple(LINES) if reading in held_out else RANKED, **READINGS[reading] | fields
        )
    )


def targets(rows: Sequence[Row], labels: Sequence[str]) -> Iterator[tuple[str, float, float]]:
    """(metric, ours, the study's) of every cell that the study has of some lines; ours are means over seeds."""
    for label, found in grouped(rows)[rows[0].get("block") or ""].items():
        for metric in METRICS if label in labels else ():
            theirs = found[0]["study"].get(metric)
            values = [row["metrics"].get(metric) for row in found]
            if theirs is not None and None not in values:
                yield metric, sum(values) / len(values), theirs


def ranking(rows: Sequence[Row]) -> str:
    """Markdown: the readings, nearest first, with the mean distance on the ranked lines and on the others.

    Beside them what needs no network: in every line the median, metric by metric, of the study's ranked cells.
    """
    halves = RANKED, [label for label in LINES if label not in RANKED]
    found = {
        reading: [list(targets([row for row in rows if (row.get("block") or "") == reading], half)) for half in halves]
        for reading in grouped(rows)
    }
    ranked, others = max(found.values(), key=lambda both: len(both[1]))
    middle = {metric: statistics.median(theirs for m, _, theirs in ranked if m == metric) for metric, _, _ in ranked}
    found[CONSTANT] = [[(m, middle[m], theirs) for m, _, theirs in half if m in middle] for half in (ranked, others)]
    table = []
    for reading, both in found.items():
        distances = [[abs(ours - theirs) for _, ours, theirs in half] for half in both]
        means = [f"{statistics.mean(d):.3f}" if d else "" for d in distances]
        table.append([reading, means[0], str(len(distances[0])), means[1], str(len(distances[1]))])
    table.sort(key=lambda line: line[1])
    header = ["reading", "distance, ranked lines", "cells", "distance, other lines", "cells"]
    return "## Mean distance to the study's cells\n\n" + aligned([header, *table])


EXPERIMENT = Experiment(
    name="calibration",
    question="Which reading of what the study leaves open comes nearest to its tables?",
    phase="calibration of phases 2 and 3",
    doc=__doc__,
    presets={
        "smoke": Preset(
            (42,),
            grid(("as the other experiments", "EMA .9"), (), depth=2, width=16, hidden=16, epochs=2, **SMOKE),
            "20 seconds",
        ),
        "quick": Preset((42,), grid(tuple(READINGS), HELD_OUT), "90 minutes"),
        "full": Preset((42, 123, 456), grid(tuple(READINGS), tuple(READINGS)), "5 hours"),
    },
    table=TableSpec(
        "Calibration: readings of what the study leaves open (synthetic ladder, alpha = 1, L = 4)",
        tuple(column for column in credit_columns(nudge=False) if column.title != "depth utility"),
        STUDY,
        (
            "At the last epoch of 80, as in the study; quick has one seed, and the held-out lines of some readings.",
            f"Readings are ranked on {', '.join(RANKED)}; the distance is the mean over cells of |ours - the study's|"
            " in Gamma, rho and accuracy.",
            f"{CONSTANT.capitalize()}, the median of the study's ranked cells, in every line: a reading no nearer says"
            " nothing of how the study's lines differ.",
            "The state bridge has the scalar bridge's warm-up of .2 here; the study's had none.",
            "Not varied here: the scale of the projection of h_L (boundary_ablation shows both), SGD, whose step size"
            " the study does not give, and the lam of the soft minimum.",
        ),
        summary=ranking,
    ),
    figure=default_figure("Calibration", ("gamma", "rho", "test_accuracy")),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
