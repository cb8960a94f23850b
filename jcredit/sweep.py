"""Sweeps: many runs (configuration x seed) as few programs, resumed by key, with a row written for each.

Runs of one static shape form one program; its epochs advance in lockstep.  Nothing leaves the device inside an epoch.
Between epochs curves are kept, progress is shown, and from time to time a checkpoint is written, from which a killed
sweep goes on to the same bits.
"""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jcredit import checkpoints, hosts, kept, plan, results, reuse
from jcredit.config import static_key
from jcredit.layout import Layout, choose_layout, over_runs, place, stack
from jcredit.rows import make_row
from jcredit.training import Run, epoch_and_scores, make_run
from jcredit.variants import Place, Request, Variant

CHECKPOINT_SECONDS = 60.0


class Interrupted(RuntimeError):
    """The sweep was asked to stop; its checkpoint is on disk."""


def run_sweep(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    place_: Place,
    *,
    data_dir: str | Path | None = None,
    seeds_per_batch: int | None = None,
    progress: bool = True,
) -> list[results.Row]:
    """Runs every variant with every seed that has no row yet, and returns all rows of these runs.

    Args:
      variants: what to run.
      seeds: one run of each variant per seed.
      place_: where rows and checkpoints go.
      data_dir: folder with prepared image data.
      seeds_per_batch: vmap width (None: chosen for the hardware).
      progress: whether to show a progress bar.

    Raises:
      ResultsError: earlier rows cannot be read; they are left as they are.
      ConfigError: a run cannot start from its snapshot.
      HostsError: several processes are to share runs that start from snapshots or keep what they learn.
      Interrupted: on SIGINT or SIGTERM, after a checkpoint.
    """
    wanted = [Request(v, s) for v in variants for s in seeds]
    pending = _pending(wanted, place_)
    starts = reuse.starts(pending)
    total = sum(r.variant.config.epochs for r in pending)
    groups = list(_groups(pending, place_))
    # All programs are described before the first one runs: what cannot run is said at once.
    runs = [make_run(g[0].variant.config, estimator=g[0].variant.estimator, data_dir=data_dir) for g in groups]
    keep_runs(starts, place_.results_dir, data_dir=data_dir, seeds_per_batch=seeds_per_batch, progress=progress)
    shares = hosts.shares(groups, jax.process_count())
    quiet = not progress or not hosts.is_lead()
    with tqdm(total=total, unit="run-epoch", disable=quiet, dynamic_ncols=True) as bar, _stop_flag() as stop:
        for share, run in zip(shares, runs, strict=True):
            mine = share[jax.process_index()]
            rows = hosts.gather(_train(mine, run, place_, seeds_per_batch, bar, stop) if mine else [])
            if hosts.is_lead():
                results.append_rows(place_.rows, rows)
    keys = {r.key for r in wanted}
    rows = results.read_rows(place_.rows, place_.experiment, place_.preset)
    return [row for row in rows if (row["config_hash"], row["seed"]) in keys]


def plan_sweep(
    variants: Sequence[Variant], seeds: Sequence[int], place_: Place, *, data_dir: str | Path | None = None
) -> list[plan.Program]:
    """What those runs would take that have no row yet, and the snapshots they start from, which count as runs.

    Compiles their programs and runs nothing.

    Raises:
      ResultsError: earlier rows cannot be read.
    """
    pending = _pending([Request(v, s) for v in variants for s in seeds], place_)
    snapshots = _not_kept(reuse.starts(pending), place_.results_dir)
    groups = [*_groups(snapshots, _kept_in(place_.results_dir)), *_groups(pending, place_)]
    return [
        plan.program_of(g, make_run(g[0].variant.config, estimator=g[0].variant.estimator, data_dir=data_dir))
        for g in groups
    ]


def _pending(wanted: Sequence[Request], place_: Place) -> list[Request]:
    done = results.finished(results.read_rows(place_.rows, place_.experiment, place_.preset))
    return [r for r in wanted if r.key not in done]


def keep_runs(
    requests: Sequence[Request],
    results_dir: Path,
    *,
    data_dir: str | Path | None = None,
    seeds_per_batch: int | None = None,
    progress: bool = True,
) -> None:
    """Trains those runs that have not yet kept what they have to keep; they leave no rows.

    Args:
      requests: what is wanted, with the epochs in ``variant.keep``.
      results_dir: its ``cache/snapshots`` is where runs keep what they have learned.
      data_dir: folder with prepared image data.
      seeds_per_batch: vmap width (None: chosen for the hardware).
      progress: whether to show a progress bar.

    Raises:
      CheckpointError: what was kept is damaged.
      Interrupted: on SIGINT or SIGTERM, after a checkpoint.
    """
    where, wanted = _kept_in(results_dir), _not_kept(requests, results_dir)
    total = sum(r.variant.config.epochs for r in wanted)
    with tqdm(total=total, unit="run-epoch", disable=not progress, dynamic_ncols=True) as bar, _stop_flag() as stop:
        for group in _groups(wanted, where):
            run = make_run(group[0].variant.config, estimator=group[0].variant.estimator, data_dir=data_dir)
            _train(group, run, where, seeds_per_batch, bar, stop)


def _kept_in(results_dir: Path) -> Place:
    return Place(results_dir, *kept.DIRECTORY)


def _not_kept(requests: Sequence[Request], results_dir: Path) -> list[Request]:
    return [r for r in requests if not reuse.has_kept(r, results_dir, r.variant.keep)]


# --- which runs share a program -----------------------------------------------------------------------------------


def _groups(pending: Sequence[Request], where: Place) -> Iterator[list[Request]]:
    """Runs that share a program; those of a checkpoint left by a killed sweep first, in its composition."""
    by_key = {r.key: r for r in pending}
    for meta in sorted((where.directory / "cache").glob("*/runs.json")):
        keys = [(h, s) for h, s in json.loads(meta.read_text())]
        if keys and all(key in by_key for key in keys):
            yield [by_key.pop(key) for key in keys]
    groups: dict[Any, list[Request]] = {}
    for request in by_key.values():
        variant = request.variant
        own = None if variant.estimator is None else variant.label
        known = reuse.found(request, where.results_dir) is not None
        same = (static_key(variant.config), variant.config.epochs, own, variant.measure, known)
        groups.setdefault(same, []).append(request)
    yield from groups.values()


def _group_directory(group: Sequence[Request], directory: Path) -> Path:
    name = hashlib.sha256(json.dumps([r.key for r in group]).encode()).hexdigest()[:12]
    return directory / "cache" / name


# --- one program ----------------------------------------------------------------------------------------------------


class Programs(NamedTuple):
    """The compiled programs of a group, and the seconds their compilation took."""

    advance: Callable  # (state, hp, data) -> (state, metrics): one epoch and its evaluation
    diagnose: Callable  # (state, hp, data) -> scores of the credit
    compile_s: float


def _compile(run: Run, layout: Layout, state, hp, data) -> Programs:
    start = time.perf_counter()
    per_run = (True, True, not run.shared_data)
    # Scores are taken once in many epochs: there, compiling quickly is worth more than running quickly.
    unhurried = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    advance_all = over_runs(epoch_and_scores(run), per_run, layout, (0,)).lower(state, hp, data).compile()
    diagnose_all = over_runs(run.diagnose, per_run, layout).lower(state, hp, data).compile(compiler_options=unhurried)
    return Programs(advance_all, diagnose_all, time.perf_counter() - start)


def _start(group: Sequence[Request], run: Run, layout: Layout, results_dir: Path, finished: bool):
    """Initial states, numbers and data of a group, laid out on the devices; the last run fills up the padding.

    Not compiled: the few random arrays of an initial state take longer to compile than to draw.
    """
    padded = [*group, *[group[-1]] * (layout.padded(len(group)) - len(group))]
    keys = [jax.random.key(r.seed) for r in padded]
    hps = [run.hparams(r.variant.config) for r in padded]
    states = [run.init(key, hp) for key, hp in zip(keys, hps, strict=True)]
    states = [reuse.begin(r, state, results_dir, finished) for r, state in zip(padded, states, strict=True)]
    if run.shared_data:
        data = place(run.data(keys[0], hps[0]), layout, per_run=False)
    else:
        data = place(stack([run.data(k, hp) for k, hp in zip(keys, hps, strict=True)]), layout, per_run=True)
    return place(stack(states), layout, per_run=True), place(stack(hps), layout, per_run=True), data


def _measure(group: Sequence[Request], run: Run, layout: Layout, *args) -> list[dict[str, Any]]:
    """What the measure of a group's variants finds on each of its runs."""
    measure = group[0].variant.measure
    if measure is None:
        return [{} for _ in group]
    per_run = (True, True, not run.shared_data)
    found = over_runs(measure.build(run, measure.settings), per_run, layout)(*args)
    found = jax.tree.map(np.asarray, found)
    return [jax.tree.map(lambda x: x[i], found) for i in range(len(group))]  # noqa: B023


def _train(
    group: Sequence[Request], run: Run, place_: Place, seeds_per_batch: int | None, bar: tqdm, stop: list[int]
) -> list[results.Row]:
    """Trains the runs of one group from their checkpoint or from the start, and returns their rows."""
    config = group[0].variant.config
    cache = _group_directory(group, place_.directory)
    meta: dict[str, Any] = {"epoch": 0, "history": [], "run_s": 0.0, "layout": None}
    layout = choose_layout(len(group), seeds_per_batch)
    saved_layout = _saved_layout(cache)
    if saved_layout is not None and saved_layout.devices <= jax.local_device_count():
        layout = saved_layout  # the same bits need the same layout
    found = [reuse.found(r, place_.results_dir) for r in group]
    state, hp, data = _start(group, run, layout, place_.results_dir, all(found))
    restored = None if all(found) else checkpoints.restore(cache / "checkpoint", state)
    if restored is not None:
        state, meta = place(restored[0], layout, per_run=True), restored[1]
    elif all(found):
        meta |= kept.merged([f for f in found if f])
    bar.update(meta["epoch"] * len(group))
    programs = _compile(run, layout, state, hp, data) if meta["epoch"] < config.epochs else None
    bar.set_description(_names(group))
    saved = time.perf_counter()
    while programs is not None and meta["epoch"] < config.epochs:
        start = time.perf_counter()
        state, metrics = programs.advance(state, hp, data)
        entry = jax.tree.map(lambda x: np.asarray(x)[: len(group)].tolist(), metrics)
        meta["epoch"] += 1
        if meta["epoch"] % config.diagnose_every == 0 or meta["epoch"] == config.epochs:
            scores = programs.diagnose(state, hp, data)
            entry |= jax.tree.map(lambda x: np.asarray(x)[: len(group)].tolist(), scores["metrics"])
            meta["layers"] = jax.tree.map(lambda x: np.asarray(x)[: len(group)].tolist(), scores["layers"])
        meta["history"].append(entry)
        meta["run_s"] += time.perf_counter() - start
        bar.set_postfix(epoch=f"{meta['epoch']}/{config.epochs}", loss=f"{np.mean(entry['train_loss']):.3f}")
        bar.update(len(group))
        reuse.keep(group, state, meta, place_.results_dir)
        # Of several processes none keeps checkpoints: a program that was cut off is run again, finished ones are not.
        if (stop or time.perf_counter() - saved > CHECKPOINT_SECONDS) and jax.process_count() == 1:
            _save(cache, group, state, meta, layout)
            saved = time.perf_counter()
        if stop:
            raise Interrupted(
                f"stopped at epoch {meta['epoch']} of {config.epochs}; the same command goes on from there"
            )
    measured = _measure(group, run, layout, state, hp, data)
    compile_s = programs.compile_s if programs is not None else 0.0
    rows = [
        make_row(i, request, run, meta, layout, compile_s, len(group), place_, measured[i])
        for i, request in enumerate(group)
    ]
    checkpoints.remove(cache / "checkpoint")
    _forget(cache)
    return rows


def _names(group: Sequence[Request]) -> str:
    names = list(dict.fromkeys(r.variant.label for r in group))
    return names[0] if len(names) == 1 else f"{names[0]} +{len(names) - 1}"


def _save(cache: Path, group: Sequence[Request], state, meta: dict[str, Any], layout: Layout) -> None:
    meta["layout"] = list(layout)
    checkpoints.save(cache / "checkpoint", state, meta)
    results.write_json(cache / "layout.json", list(layout))
    results.write_json(cache / "runs.json", [r.key for r in group])


def _saved_layout(cache: Path) -> Layout | None:
    path = cache / "layout.json"
    return Layout(*json.loads(path.read_text())) if path.exists() else None


def _forget(cache: Path) -> None:
    for name in ("runs.json", "layout.json"):
        (cache / name).unlink(missing_ok=True)
    if cache.exists() and not any(cache.iterdir()):
        cache.rmdir()


@contextmanager
def _stop_flag() -> Iterator[list[int]]:
    """A list that the first SIGINT or SIGTERM makes non-empty; a second one interrupts at once."""
    caught: list[int] = []

    def handler(number, frame):
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handler)
    except ValueError:  # not in the main thread: signals are someone else's
        pass
    try:
        yield caught
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
