"""Estimators fitted on the frozen features of networks that are trained once and used by many scripts.

What a run has learned is kept under ``<results-dir>/cache/snapshots`` and found again by the key of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jcredit.estimators import mlp, scalar_bridge, state_bridge, vector_field
from jcredit.report import plots
from jcredit.report.rows import Row
from jcredit.study.settings import CIFAR10, CONTROLS, SMOKE, lines, named
from jcredit.sweeps.variants import Followup, Snapshot, Variant

QUICK_NET = CIFAR10.replace(epochs=3)
QUICK_FIT: dict[str, Any] = {"epochs": 5}
FULL_FIT: dict[str, Any] = {"epochs": 30}
SMOKE_NET = CIFAR10.replace(depth=2, width=16, epochs=2, **SMOKE)
SMOKE_FIT: dict[str, Any] = {"epochs": 1, "hidden": 16}
"""Networks and fits of the presets, the same in every script, so that each is trained once.

A vector field with M = 4 needs some 2,000 steps before its credit points anywhere (frozen_recovery has the curves).
"""

FIXED = {**CONTROLS, **named("dfa")}
"""Credit that learns nothing: one epoch shows all of it."""

LEARNED = {
    "state_bridge eT": {"credit": state_bridge()},
    "state_bridge, no code": {"credit": state_bridge(trunk=mlp(code="none"))},
    "scalar_bridge eT": {"credit": scalar_bridge()},
    "scalar_bridge deltaL": {"credit": scalar_bridge(trunk=mlp(code="deltaL"))},
    **{f"vector_field M={m}": {"credit": vector_field(directions=m)} for m in (4, 8, 16)},
    **{f"vector_field scaled M={m}": {"credit": vector_field(directions=m, scale="delta")} for m in (4, 8, 16)},
}
"""The study's estimators on frozen features (phases 4A and 5B).

*Scaled*, a vector field is handed the RMS of each sample's delta_L, and nothing else of it: as the study describes it,
the field has yet to learn that size, and with M = 4 a short fit can leave it worse than a credit of zero.
"""

SCALED = "Scaled: the vector field's output times the RMS of the sample's delta_L; not in the study."
"""The note that tables with such lines have."""

SPENT = (
    "bp", "broadcast", "dfa", "state_bridge eT", "scalar_bridge eT", "vector_field M=4", "vector_field scaled M=4",
)  # fmt: skip
"""Whose credit is spent in phase 6; bp is the oracle."""


def fits(
    start: Snapshot,
    *,
    epochs: int,
    block: str = "",
    followup: Followup | None = None,
    only: Sequence[str] = (),
    **fields,
) -> tuple[Variant, ...]:
    """One block of a grid: credit on the frozen features of a snapshot.

    Args:
      start: the network, frozen.
      epochs: epochs of fitting (one for the lines of ``FIXED``, which have nothing to fit); what is fitted is kept for
        followups of other scripts.
      block: heading of the block.
      followup: what is measured in the end.
      only: labels that are wanted; none given means all.
      **fields: changes to all lines, as in ``lines``.
    """
    base = start.config.replace(trains="nothing", epochs=epochs, diagnose_every=max(1, epochs // 4), nudge_eta=3e-3)
    own = {label: {"epochs": 1, **line} if label in FIXED else line for label, line in (FIXED | LEARNED).items()}
    return tuple(
        v._replace(start=start, keep=(v.config.epochs,), followup=followup)
        for v in lines(base, own, block, only, **fields)
    )


def change_figure(title: str, panels: Mapping[str, str]) -> Callable[[Sequence[Row], Path], None]:
    """Bars with a dot per seed, one panel for each {name: metric}."""

    def figure(rows: Sequence[Row], path: Path) -> None:
        renamed = [
            {
                **row,
                "metrics": {name: row["metrics"].get(metric) for name, metric in panels.items()},
                "study": {name: row.get("study", {}).get(metric) for name, metric in panels.items()},
            }
            for row in rows
        ]
        plots.bars(renamed, tuple(panels), path, title)

    return figure
