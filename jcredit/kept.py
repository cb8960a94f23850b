"""What runs leave behind for other runs: networks and fitted estimators, found again by the key of their run.

On disk, outside git: ``<results-dir>/cache/snapshots/<run hash>-<seed>-<epoch>/`` with the orbax checkpoints
``network`` and ``estimator`` and a ``meta.json`` (curves and scores up to that epoch).  A directory appears by one
rename, when it is complete.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcredit import checkpoints, results
from jcredit.checkpoints import CheckpointError
from jcredit.config import Config, ConfigError, config_hash
from jcredit.types import TrainState

DIRECTORY = ("cache", "snapshots")
SAME = (
    "task", "depth", "width", "classes", "alpha", "teacher_layer_norm", "process_noise", "train_size", "test_size",
    "evaluate_on",
)  # fmt: skip
"""Fields in which a run must agree with the snapshot it starts from: the network, and the data it was trained on."""


class Snapshot(NamedTuple):
    """The network of a run at the end of one of its epochs, as a start for other runs of the same seed.

    Attributes:
      config: the configuration that trains it.
      epoch: from 1 to ``config.epochs``.
    """

    config: Config
    epoch: int

    @property
    def key(self) -> str:
        """What enters the key of a run that starts here."""
        return f"{config_hash(self.config)}@{self.epoch}"

    def overridden(self, fields: Mapping[str, Any]) -> Snapshot:
        """The same snapshot of a run with those of ``fields`` changed that decide its network and its data."""
        return self._replace(config=dataclasses.replace(self.config, **{k: v for k, v in fields.items() if k in SAME}))

    def check(self, config: Config) -> None:
        """Raises ConfigError if a run of ``config`` cannot start here."""
        if not 1 <= self.epoch <= self.config.epochs:
            raise ConfigError(
                f"a snapshot at epoch {self.epoch} of a run of epochs={self.config.epochs} does not exist;"
                f" choose 1 to {self.config.epochs}"
            )
        for name in SAME:
            own, theirs = getattr(config, name), getattr(self.config, name)
            if own != theirs:
                raise ConfigError(f"{name}={own!r} differs from the snapshot's {theirs!r}; set both to the same")


def directory(results_dir: Path, run_hash: str, seed: int, epoch: int) -> Path:
    """Where the run of this key keeps what it had learned after ``epoch`` epochs."""
    return results_dir.joinpath(*DIRECTORY, f"{run_hash}-{seed}-{epoch}")


def find(results_dir: Path, run_hash: str, seed: int, epoch: int) -> dict[str, Any] | None:
    """The meta data of what a run kept; None if there is nothing.

    Raises:
      CheckpointError: its meta data are damaged.
    """
    path = directory(results_dir, run_hash, seed, epoch) / "meta.json"
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({error}); delete {path.parent}") from error


def save(results_dir: Path, run_hash: str, seed: int, epoch: int, parts: dict[str, Any], meta: dict[str, Any]) -> None:
    """Keeps parts of a run's state (pytrees by name) and its meta data; what is there already stays as it is.

    Raises:
      CheckpointError: the directory cannot be written.
    """
    final = directory(results_dir, run_hash, seed, epoch)
    if final.exists():
        return
    draft = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        for name, tree in parts.items():
            if jax.tree.leaves(tree):
                checkpoints.save(draft / name, tree, {})
        results.write_text(draft / "meta.json", json.dumps(meta))  # nan is kept, unlike in rows
        if not final.exists():  # else another process was faster, with the same bits
            os.rename(draft, final)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load(results_dir: Path, run_hash: str, seed: int, epoch: int, part: str, like: Any) -> Any:
    """One part of what a run kept, shaped ``like`` this tree.

    Raises:
      CheckpointError: nothing is kept there, or it does not fit.
    """
    if not jax.tree.leaves(like):
        return like
    path = directory(results_dir, run_hash, seed, epoch) / part
    restored = checkpoints.restore(path, like)
    if restored is None:
        raise CheckpointError(f"{path}: nothing is kept there; delete {path.parent} to make it again")
    return restored[0]


def save_runs(
    results_dir: Path, runs: Sequence[tuple[str, int, Config] | None], state: TrainState, meta: dict[str, Any]
) -> None:
    """Keeps the runs of a program after an epoch: the network if it is trained, and the estimator.

    Args:
      results_dir: where results go.
      runs: (run hash, seed, configuration) of each run, in the order of the run axis; None for one not to be kept.
      state: their stacked states.
      meta: the program's meta data; ``history`` and ``layers`` hold one number or list per run.
    """
    learned = jax.tree.map(_host, {"network": state.params, "estimator": state.estimator})
    for i, run in enumerate(runs):
        if run is None:
            continue
        run_hash, seed, config = run
        parts = jax.tree.map(lambda leaf: leaf[i], learned)  # noqa: B023
        if config.trains == "nothing":
            del parts["network"]  # it is its start's
        own = {
            "history": [{name: values[i] for name, values in entry.items()} for entry in meta["history"]],
            "layers": {name: values[i] for name, values in meta.get("layers", {}).items()},
            "run_s": meta["run_s"],
        }
        save(results_dir, run_hash, seed, meta["epoch"], parts, own)


def _host(leaf):
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)


def merged(metas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The meta data of a program whose runs kept these, as ``save_runs`` took them apart."""
    histories = [meta["history"] for meta in metas]
    return {
        "epoch": len(histories[0]),
        "history": [
            {name: [e[name] for e in entries] for name in entries[0]} for entries in zip(*histories, strict=True)
        ],
        "layers": {name: [meta["layers"][name] for meta in metas] for name in metas[0]["layers"]},
        "run_s": max(meta["run_s"] for meta in metas),
    }
