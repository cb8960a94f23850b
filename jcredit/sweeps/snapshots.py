"""What runs leave behind for other runs, and take from them: networks and fitted estimators, found by the key of a run.

On disk, outside git: ``<results-dir>/cache/snapshots/<run hash>-<seed>-<epoch>/`` with the orbax checkpoints
``network`` and ``estimator`` and a ``meta.json`` (the run's progress up to that epoch).  A directory appears by one
rename, when it is complete.  Its files carry digests: one that is damaged, another run's, or from before there were
digests, is named and set aside, and the run is trained again.  It does not matter which experiment trained the run:
every other one finds it.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jcredit.config import Config, config_hash
from jcredit.files import FileError, read_sealed, set_aside, write_sealed
from jcredit.sweeps import checkpoints
from jcredit.sweeps.checkpoints import CheckpointError
from jcredit.sweeps.record import Progress
from jcredit.sweeps.variants import Request, Variant, snapshot_request
from jcredit.types import TrainState

SCHEMA = 2
AGAIN = "the run is trained again"

# --- one run's directory ----------------------------------------------------------------------------------------------


def directory(results_dir: Path, run_key: tuple[str, int], epoch: int) -> Path:
    """Where the run of this key keeps what it had learned after ``epoch`` epochs."""
    run_hash, seed = run_key
    return Path(results_dir) / "cache" / "snapshots" / f"{run_hash}-{seed}-{epoch}"


def unfinished(results_dir: Path) -> Path:
    """Checkpoints of programs that were cut off while they trained networks for others to start from."""
    return Path(results_dir) / "cache" / "unfinished"


def find(results_dir: Path, run_key: tuple[str, int], epoch: int) -> Progress | None:
    """The progress of a run that kept what it had learned, whose files have all been checked.

    Returns:
      None if there is nothing, or it is damaged and was set aside.
    """
    final = directory(results_dir, run_key, epoch)
    if not final.exists():
        return None
    try:
        return _checked(final)
    except FileError as error:
        set_aside(final, str(error), AGAIN)
        return None


def _checked(final: Path) -> Progress:
    """The progress of a kept run.

    Raises:
      FileError: it is damaged, of another run, or of another schema.
      OSError: it cannot be read now.
    """
    try:
        stored = read_sealed(final / "meta.json")
    except (FileNotFoundError, FileError) as error:
        reason = " is missing" if isinstance(error, FileNotFoundError) else f": {error}"
        raise FileError(f"meta.json{reason}") from error
    if stored.get("schema") != SCHEMA:
        raise FileError(f"meta.json: schema is {stored.get('schema')!r}, not {SCHEMA}")
    if stored["owner"] != final.name:
        raise FileError(f"meta.json: what {stored['owner']!r} kept, not {final.name!r}")
    for part in stored["parts"]:
        if (fault := checkpoints.fault(final / part, final.name)) is not None:
            raise FileError(fault)
    return Progress.from_json(stored["progress"])


def save(results_dir: Path, run_key: tuple[str, int], parts: dict[str, Any], progress: Progress) -> None:
    """Keeps parts of a run's state (pytrees by name) after an epoch; what is there already stays as it is.

    Raises:
      CheckpointError: the directory cannot be written.
    """
    final = directory(results_dir, run_key, progress.epoch)
    if final.exists():
        return
    draft = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        filled = {name: tree for name, tree in parts.items() if jax.tree.leaves(tree)}
        for name, tree in filled.items():
            checkpoints.save(draft / name, tree, {}, final.name)
        about = {"schema": SCHEMA, "owner": final.name, "parts": list(filled), "progress": progress.to_json()}
        write_sealed(draft / "meta.json", about)
        if not final.exists():  # else another process was faster, with the same bits
            os.rename(draft, final)
    except OSError as error:
        raise CheckpointError(f"{final}: cannot write ({error}); free space or use another place") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load(results_dir: Path, run_key: tuple[str, int], epoch: int, part: str, like: Any) -> Any:
    """One part of what a run kept, ``network`` or ``estimator``, shaped ``like`` this tree.

    Raises:
      CheckpointError: nothing is kept there any more, or it does not fit.
    """
    if not jax.tree.leaves(like):
        return like
    final = directory(results_dir, run_key, epoch)
    restored = checkpoints.restore(final / part, like, final.name)
    if restored is None:  # it was there when runs were planned
        raise CheckpointError(f"{final / part}: nothing is kept there; the same command trains the run again")
    return restored[0]


# --- what runs want of each other -------------------------------------------------------------------------------------


def starts(pending: Iterable[Request]) -> list[Request]:
    """The runs that other runs start from.

    Raises:
      ConfigError: a run cannot start from its snapshot.
    """
    epochs: dict[tuple[Config, int], set[int]] = {}
    for variant, seed in pending:
        if variant.start is not None:
            variant.start.check(variant.config)
            epochs.setdefault((variant.start.config, seed), set()).add(variant.start.epoch)
    return [snapshot_request(config, seed, wanted) for (config, seed), wanted in epochs.items()]


def has_kept(request: Request, results_dir: Path) -> bool:
    """Whether a run has kept all that it is to keep."""
    return all(find(results_dir, request.run_key, epoch) is not None for epoch in request.variant.keep)


def not_kept(requests: Iterable[Request], results_dir: Path) -> list[Request]:
    """Those runs that have not yet kept all that they are to keep."""
    return [r for r in requests if not has_kept(r, results_dir)]


def finished(request: Request, results_dir: Path) -> Progress | None:
    """The progress of a run that need not be trained: it has kept what it learned, whoever asked for that."""
    last = find(results_dir, request.run_key, request.variant.config.epochs)
    return last if last is not None and has_kept(request, results_dir) else None


def taken(request: Request, results_dir: Path) -> list[Progress]:
    """The progress of what is kept for a run: of the network it starts with, and of its own at its end."""
    sources, start = [(request.run_key, request.variant.config.epochs)], request.variant.start
    if start is not None:
        sources.append(((config_hash(start.config), request.seed), start.epoch))
    return [found for key, epoch in sources if (found := find(results_dir, key, epoch)) is not None]


def begin(request: Request, state: TrainState, results_dir: Path, is_finished: bool) -> TrainState:
    """The state a run begins with: its snapshot's network and, if it is finished, all it has learned."""
    variant, seed = request
    start, last = variant.start, variant.config.epochs
    if start is not None:
        key = config_hash(start.config), seed
        state = state._replace(params=load(results_dir, key, start.epoch, "network", state.params))
    if not is_finished:
        return state
    if variant.config.trains != "nothing":
        state = state._replace(params=load(results_dir, request.run_key, last, "network", state.params))
    return state._replace(est_state=load(results_dir, request.run_key, last, "estimator", state.est_state))


def keep(group: Sequence[Request], state: TrainState, progress: Progress, results_dir: Path) -> None:
    """Keeps those runs of a program that are wanted at this epoch: their networks, if trained, and estimators.

    Args:
      group: the runs, in the order of the run axis.
      state: their stacked states.
      progress: theirs.
      results_dir: where results go.
    """

    def wanted(variant: Variant) -> bool:
        at_end = variant.followup is not None and progress.epoch == variant.config.epochs
        return at_end or progress.epoch in variant.keep

    chosen = [i for i, request in enumerate(group) if wanted(request.variant)]
    if not chosen:
        return
    learned = jax.tree.map(_host, {"network": state.params, "estimator": state.est_state})
    for i in chosen:
        parts = jax.tree.map(lambda leaf: leaf[i], learned)  # noqa: B023
        if group[i].variant.config.trains == "nothing":
            del parts["network"]  # it is its start's
        save(results_dir, group[i].run_key, parts, progress.of_run(i))


def _host(leaf):
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)
