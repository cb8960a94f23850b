"""The sweep that the fault suite kills: tiny; with and without an estimator, a frozen network, a followup.

python tests/faults/sweep.py --preset smoke --results-dir runs
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import jcredit as jc
from jcredit.files import write_text
from jcredit.report.tables import TableSpec
from jcredit.study.experiment import Experiment, Preset, credit_columns, main
from jcredit.sweeps.variants import Followup, Snapshot, Variant

NET = jc.Config(
    task=jc.tasks.teacher(classes=4, train_size=256, test_size=32),
    network=jc.ladder_mlp(depth=2, width=8),
    credit=jc.bp(),
    batch_size=8,
    epochs=3,
    diagnostic_samples=16,
)
BRIDGE = jc.scalar_bridge(trunk=jc.mlp(hidden=8, hidden_layers=1, projection_dim=4), noise_samples=2)
FROZEN = NET.replace(credit=BRIDGE, trains="nothing", epochs=2)


class Settings(NamedTuple):
    """Of the followup."""

    factor: float = 1.0


def size_of_estimator(run, settings):
    """A followup that reads what was fitted."""

    def measure(state, hp, data):
        total = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(state.est_state.params))
        return {"metrics": {"size": settings.factor * total}, "curves": {"sizes": total[None]}}

    return measure


def grid() -> tuple[Variant, ...]:
    """Trained with and without an estimator, and fitted on a frozen network, alone and measured afterwards."""
    start, size = Snapshot(NET, 2), Followup("size", size_of_estimator, Settings())
    return (
        Variant("bp", NET),
        Variant("dfa", NET.replace(credit=jc.dfa())),
        Variant("bridge", NET.replace(credit=BRIDGE)),
        Variant("fit", FROZEN, "frozen", start=start, keep=(1, 2)),
        Variant("fit measured", FROZEN, "frozen", start=start, followup=size),
    )


def figure(rows, path) -> None:
    """Instead of a picture, which would take longer than the sweep."""
    write_text(path, "\n".join(row["label"] for row in rows))


EXPERIMENT = Experiment(
    name="faults",
    question="Is anything lost when it is killed?",
    phase="no claim",
    doc=__doc__,
    presets={"smoke": Preset((3, 5), grid(), "20 seconds")},
    table=TableSpec("Faults", credit_columns(accuracy=False)),
    figure=figure,
)

if __name__ == "__main__":
    main(EXPERIMENT)
