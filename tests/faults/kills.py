"""Kills at seeded moments: of the command, again and again, and of a worker of a cluster."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from harness import Outcome, Undisturbed, Workshop

CHAINS = (("dfa",), ("bridge",), ("fit", "fit measured"), ("bp", "fit"))
"""Lines of the sweep that are killed together: without an estimator, with one, with snapshots and followups."""
KILLS = ("compile", "epoch", "checkpoint", "kept network", "row", "rename", "fsync", "any file", "clock")
LONGEST_CHAIN = 12
"""Kills before the command may end by itself."""
CLUSTER_KILLS = ("compile", "epoch", "checkpoint", "kept network", "row", "rename", "fsync", "any file")
"""The command, which alone adds rows to the sweep's, is not killed there; workers keep those of a batch."""


class Death(NamedTuple):
    """A kill: what was planned, and what the process was at."""

    kind: str
    at_work: str


def plan_of(kind: str, reference: Outcome, rng: np.random.Generator) -> dict[str, Any]:
    """A seeded moment of a kind, in the first half of what an undisturbed run goes through: later ones come later."""
    if kind == "clock":
        return {"seconds": float(rng.uniform(0, reference.seconds))}
    plan: dict[str, Any] = {"at": kind, "k": int(rng.integers(1, (reference.counts[kind] + 1) // 2 + 1))}
    if kind in ("compile", "epoch") or (kind in ("checkpoint", "kept network") and rng.random() < 0.5):
        # Behind the call: while XLA compiles or runs, while orbax's threads write.
        plan["delay"] = float(rng.uniform(0.0, {"compile": 0.3, "epoch": 0.05}.get(kind, 0.1)))
    return plan


def chain_of_kills(
    shop: Workshop, reference: Undisturbed, results: Path, rng: np.random.Generator, most: int, deaths: list[Death]
) -> None:
    """Starts the same command until it ends by itself, killing it at most so often; then compares every bit.

    Args:
      shop: where.
      reference: the same lines, undisturbed.
      results: a folder of its own.
      rng: draws the moments.
      most: kills.
      deaths: gets every kill.

    Raises:
      AssertionError: a run that failed by itself, or left other rows than the undisturbed one.
    """
    kinds = [kind for kind in KILLS if reference.outcome.counts.get(kind, 1)]  # not all lines keep networks
    first = int(rng.integers(len(kinds)))
    while True:
        kind = kinds[(first + len(deaths)) % len(kinds)]
        plan = plan_of(kind, reference.outcome, rng) if len(deaths) < most else {}
        outcome = shop.command(results, reference.lines, **plan)
        if outcome.status != -9:
            assert outcome.status == 0, outcome.text
            break
        deaths.append(Death(kind, outcome.at_work))
    reference.check(results)


def worker_killed(shop: Workshop, reference: Undisturbed, results: Path, rng: np.random.Generator, kind: str) -> Death:
    """Kills one of two workers of a cluster at a seeded moment; the other one brings the sweep to its end.

    Args:
      shop: where.
      reference: the same lines, undisturbed, in one process.
      results: a folder of its own.
      rng: draws the moment.
      kind: of it.

    Raises:
      AssertionError: no worker was killed, the command failed, or left other rows than in one process.
    """
    plan = plan_of(kind, reference.outcome, rng)
    while True:
        outcome = shop.command(results, reference.lines, workers=2, once=str(shop.folder / f"kill-{shop.runs}"), **plan)
        assert outcome.status == 0, outcome.text
        reference.check(results)
        if -9 in outcome.statuses:
            break
        # A worker has a part of what there is in one process: this moment came in neither.
        assert plan["k"] > 1, f"no worker was killed at {kind}: {outcome.counts}"
        plan["k"] //= 2
        shutil.rmtree(results)
    assert sorted(outcome.statuses) == [-9, 0, 0], outcome.statuses
    return Death(f"cluster: {kind}", outcome.at_work)
