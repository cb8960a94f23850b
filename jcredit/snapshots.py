"""Networks trained once and used by many: snapshots of a BP run, and estimators fitted on their frozen features.

What a run has learned is kept under ``<results-dir>/cache/snapshots`` and found again by the key of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jcredit import kept, plots
from jcredit.bases import CIFAR10, CONTROLS, lines, named, with_fields
from jcredit.config import Config, ConfigError, config_hash
from jcredit.kept import Snapshot
from jcredit.results import Row
from jcredit.sweep import keep_runs
from jcredit.training import make_run
from jcredit.types import NetParams
from jcredit.variants import Measure, Variant, snapshot_request

QUICK_NET = with_fields(CIFAR10, epochs=3)
QUICK_FIT: dict[str, Any] = {"epochs": 5}
SMOKE_NET = with_fields(
    CIFAR10, depth=2, width=16, hidden=16, train_size=512, test_size=256, batch_size=64, epochs=2, diagnostic_samples=64
)
SMOKE_FIT: dict[str, Any] = {"epochs": 1}
"""Networks and fits of the presets, the same in every script, so that each is trained once.

A vector field with M = 4 needs some 2,000 steps before its credit points anywhere (frozen_recovery has the curves).
"""

FIXED = {**CONTROLS, **named("dfa")}
"""Credit that learns nothing: one epoch shows all of it."""

LEARNED = {
    "state_bridge eT": {"method": "state_bridge"},
    "scalar_bridge eT": {"method": "scalar_bridge"},
    "scalar_bridge deltaL": {"method": "scalar_bridge", "code": "deltaL"},
    "vector_field M=4": {"method": "vector_field", "directions": 4},
    "vector_field M=8": {"method": "vector_field", "directions": 8},
    "vector_field M=16": {"method": "vector_field", "directions": 16},
}
"""The study's estimators on frozen features (phases 4A and 5B)."""

SPENT = ("bp", "broadcast", "dfa", "state_bridge eT", "scalar_bridge eT", "vector_field M=4")
"""Whose credit is spent in phase 6; bp is the oracle."""


def snapshot(
    config: Config,
    seed: int,
    epochs: Sequence[int],
    results_dir: str | Path,
    data_dir: str | Path | None = None,
    progress: bool = True,
) -> dict[int, NetParams]:
    """Network parameters of one run after some of its epochs; trained once, then read from disk.

    Args:
      config: what trains the network.
      seed: its seed.
      epochs: which epochs, from 1 to ``config.epochs``.
      results_dir: its ``cache/snapshots`` keeps them.
      data_dir: folder with prepared image data.
      progress: whether to show a progress bar.

    Raises:
      ConfigError: an epoch that the run does not have.
      CheckpointError: something kept cannot be read.
    """
    for epoch in epochs:
        if not 1 <= epoch <= config.epochs:
            raise ConfigError(f"epoch {epoch} of a run of epochs={config.epochs} does not exist")
    results_dir, key = Path(results_dir), config_hash(config)
    keep_runs([snapshot_request(config, seed, epochs)], results_dir, data_dir=data_dir, progress=progress)
    run = make_run(config, data_dir=data_dir)
    like = jax.eval_shape(run.init, jax.random.key(0), run.hparams(config)).params
    return {epoch: kept.load(results_dir, key, seed, epoch, "network", like) for epoch in epochs}


def fits(
    start: Snapshot,
    table: Mapping[str, Mapping[str, Any]],
    *,
    epochs: int,
    block: str = "",
    measure: Measure | None = None,
    only: Sequence[str] = (),
    **fields,
) -> tuple[Variant, ...]:
    """One block of a grid: credit on the frozen features of a snapshot.

    Args:
      start: the network, frozen.
      table: {label: fields in which the line differs}; those of ``FIXED`` have nothing to fit and take one epoch.
      epochs: epochs of fitting; what is fitted is kept for measures by other scripts.
      block: heading of the block.
      measure: what is measured in the end.
      only: labels that are wanted; none given means all.
      **fields: changes to all lines.
    """
    base = with_fields(
        start.config, trains="nothing", epochs=epochs, diagnose_every=max(1, epochs // 4), nudge_eta=3e-3, **fields
    )
    own = {label: {"epochs": 1, **line} if label in FIXED else line for label, line in table.items()}
    return tuple(
        v._replace(start=start, keep=(v.config.epochs,), measure=measure) for v in lines(base, own, block, only)
    )


def change_figure(title: str, panels: Mapping[str, str]) -> Callable[[Sequence[Row], Path], None]:
    """Bars with a dot per seed, one panel for each {name: metric}."""

    def figure(rows: Sequence[Row], path: Path) -> None:
        renamed = [
            {**row, "metrics": {name: row["metrics"].get(metric) for name, metric in panels.items()}} for row in rows
        ]
        plots.bars(renamed, tuple(panels), path, title)

    return figure
