"""What runs take from others and leave to them: the networks they start with, and what they have learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jcredit import hosts, kept
from jcredit.config import Config, config_hash
from jcredit.types import TrainState
from jcredit.variants import Request, Variant, snapshot_request


def starts(pending: Sequence[Request]) -> list[Request]:
    """The runs that other runs start from."""
    epochs: dict[tuple[Config, int], set[int]] = {}
    for variant, seed in pending:
        if (variant.start or variant.keep or variant.measure) and jax.process_count() > 1:
            raise hosts.HostsError(f"{variant.label!r} keeps or needs a snapshot: run it with one process")
        if variant.start is not None:
            variant.start.check(variant.config)
            epochs.setdefault((variant.start.config, seed), set()).add(variant.start.epoch)
    return [snapshot_request(config, seed, wanted) for (config, seed), wanted in epochs.items()]


def has_kept(request: Request, results_dir: Path, epochs: Sequence[int]) -> bool:
    """Whether a run has kept what it had learned after all these epochs."""
    own = request.variant.run_hash, request.seed
    return all(kept.find(results_dir, *own, epoch) is not None for epoch in epochs)


def found(request: Request, results_dir: Path) -> dict[str, Any] | None:
    """What a finished run has kept, where something is to be measured on it or it is to be kept for that."""
    variant, last = request.variant, request.variant.config.epochs
    if (variant.measure is None and last not in variant.keep) or not has_kept(request, results_dir, variant.keep):
        return None
    return kept.find(results_dir, variant.run_hash, request.seed, last)


def begin(request: Request, state: TrainState, results_dir: Path, finished: bool) -> TrainState:
    """The state a run begins with: its snapshot's network and, if it is ``finished``, all it has learned."""
    variant, seed = request
    if variant.start is not None:
        start = config_hash(variant.start.config), seed, variant.start.epoch
        state = state._replace(params=kept.load(results_dir, *start, "network", state.params))
    if not finished:
        return state
    own = variant.run_hash, seed, variant.config.epochs
    if variant.config.trains != "nothing":
        state = state._replace(params=kept.load(results_dir, *own, "network", state.params))
    return state._replace(estimator=kept.load(results_dir, *own, "estimator", state.estimator))


def keep(group: Sequence[Request], state: TrainState, meta: dict[str, Any], results_dir: Path) -> None:
    """Keeps those runs of a group that are wanted at this epoch."""

    def wanted(variant: Variant) -> bool:
        at_end = variant.measure is not None and meta["epoch"] == variant.config.epochs
        return at_end or meta["epoch"] in variant.keep

    runs = [(v.run_hash, seed, v.config) if wanted(v) else None for v, seed in group]
    if any(runs):
        kept.save_runs(results_dir, runs, state, meta)
