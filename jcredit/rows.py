"""The row of a finished run: its curves and scores, whether it diverged, and what the numbers depend on."""

from __future__ import annotations

import importlib.metadata
import math
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from jcredit import results
from jcredit.config import as_dict
from jcredit.layout import Layout
from jcredit.training import Run
from jcredit.variants import Place, Request, Variant

BLOW_UP = 10.0


def first_bad_epoch(losses: Iterable[float], estimator_losses: Iterable[float]) -> int | None:
    """The first epoch (from 1) whose mean loss or estimator loss is not finite."""
    for epoch, values in enumerate(zip(losses, estimator_losses, strict=True), 1):
        if not all(math.isfinite(v) for v in values):
            return epoch
    return None


def estimator_blew_up(losses: Sequence[float]) -> bool:
    """Whether an epoch-mean estimator loss ever exceeds ten times the smallest one before it."""
    smallest = math.inf
    for loss in losses:
        if loss > BLOW_UP * smallest:
            return True
        smallest = min(smallest, loss)
    return False


def make_row(
    i: int, request: Request, run: Run, meta: dict[str, Any], layout: Layout, compile_s: float, runs: int,
    place_: Place, measured: dict[str, Any],
) -> results.Row:  # fmt: skip
    """The row of run ``i`` of a program, from its meta data and what was measured in the end."""
    variant, history = request.variant, meta["history"]
    names = {name for entry in history for name in entry}
    curves = {name: [entry[name][i] if name in entry else None for entry in history] for name in sorted(names)}
    est_losses = [entry["estimator_loss"][i] if "estimator_loss" in entry else 0.0 for entry in history]
    bad = first_bad_epoch([entry["train_loss"][i] for entry in history], est_losses)
    flags = ["estimator_diverged"] if estimator_blew_up(est_losses[: (bad or len(history) + 1) - 1]) else []
    return results.plain({
        "schema": results.SCHEMA, "experiment": place_.experiment, "preset": place_.preset,
        "method": variant.config.method if variant.estimator is None else variant.label,
        "label": variant.label, "block": variant.block, "tier": run.tier,
        "config": as_dict(variant.config), "config_hash": variant.hash, "seed": request.seed, **_origin(variant),
        "status": "ok" if bad is None else "diverged", "flags": flags, "epochs": bad or len(history),
        "metrics": {name: c[-1] for name, c in curves.items()} | measured.get("metrics", {}) if bad is None else {},
        "layers": {name: value[i] for name, value in meta["layers"].items()} if bad is None else {},
        "curves": {name: curve[: bad or None] for name, curve in curves.items()} | measured.get("curves", {}),
        "timing": {"compile_s": round(compile_s, 2), "run_s": round(meta["run_s"], 2), "runs_in_program": runs},
        "layout": layout._asdict(), "versions": versions(), "git_commit": git_commit(),
        "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
    })  # fmt: skip


def _origin(variant: Variant) -> dict[str, Any]:
    """Where a run starts and what is measured on it, for its row."""
    start, measure = variant.start, variant.measure
    origin = (
        {} if start is None else {"start": {"key": start.key, "epoch": start.epoch, "config": as_dict(start.config)}}
    )
    return origin if measure is None else origin | {"measure": {"name": measure.name, **measure.settings._asdict()}}


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}


def git_commit() -> str | None:
    """The commit of this code, with ``+`` behind it where the work tree differs; None outside a checkout."""

    def git(*args: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", "../experiments")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
