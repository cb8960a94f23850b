"""One program: the runs that share it are trained in lockstep, from what they kept, a checkpoint, or the start."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jcredit.config import Config, static_key
from jcredit.files import FileError, read_sealed, set_aside, write_sealed
from jcredit.report.rows import Row
from jcredit.sweeps import checkpoints, plan, snapshots, status
from jcredit.sweeps.forecast import Bar
from jcredit.sweeps.layout import Layout, choose_layout, over_runs, put, stack
from jcredit.sweeps.record import Progress, make_row
from jcredit.sweeps.variants import Folder, Request, labels_of
from jcredit.training import Run, epoch_and_scores

CHECKPOINT_SECONDS = 60.0
log = logging.getLogger("jcredit")


class Stopped(RuntimeError):
    """The sweep was asked to stop; its checkpoint is on disk.

    Attributes:
      signal: the number of the signal that asked.
    """

    signal: int = signal.SIGINT


class Session(NamedTuple):
    """What all programs of a sweep share in one process.

    Attributes:
      results_dir: where runs keep what they have learned.
      seeds_per_batch: vmap width (None: chosen for the hardware).
      git_commit: of the code, when the sweep started.
      bar: counts epochs of runs, by ``what_is_run``.
      stopped: whether the sweep is to stop.
      checkpoint_seconds: between checkpoints.
    """

    results_dir: Path
    seeds_per_batch: int | None
    git_commit: str | None
    bar: Bar
    stopped: Callable[[], bool]
    checkpoint_seconds: float = CHECKPOINT_SECONDS


def what_is_run(config: Config) -> tuple[str, int]:
    """The name of a configuration's program in a forecast."""
    return static_key(config), config.epochs


class Compiled(NamedTuple):
    """The compiled programs of a group, and the seconds their compilation took."""

    advance: Callable  # (state, hp, data) -> (state, metrics): one epoch and its evaluation
    diagnose: Callable  # (state, hp, data) -> scores of the credit
    seconds: float


class Trained(NamedTuple):
    """Finished runs of a group.

    Attributes:
      progress: of each run alone.
      layout: how they lie on the hardware.
      args: their stacked (state, hp, data); None where nobody needs them.
      compile_s: seconds their compilation took.
    """

    progress: list[Progress]
    layout: Layout
    args: tuple[Any, Any, Any] | None
    compile_s: float


def _compile(run: Run, layout: Layout, state, hp, data) -> Compiled:
    start = time.perf_counter()
    per_run = (True, True, not run.shared_data)
    # Scores are taken once in many epochs: there, compiling quickly is worth more than running quickly.
    unhurried = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    advance_all = over_runs(epoch_and_scores(run), per_run, layout, (0,)).lower(state, hp, data)
    diagnose_all = over_runs(run.diagnose, per_run, layout).lower(state, hp, data)
    with ThreadPoolExecutor(2) as pool:  # XLA compiles outside Python's lock
        first, second = pool.submit(advance_all.compile), pool.submit(diagnose_all.compile, unhurried)
        return Compiled(first.result(), second.result(), time.perf_counter() - start)


def _start(group: Sequence[Request], run: Run, layout: Layout, results_dir: Path, is_finished: bool):
    """Initial states, numbers and data of a group, laid out on the devices; the last run fills up the padding.

    Not compiled: the few random arrays of an initial state take longer to compile than to draw.
    """
    padded = [*group, *[group[-1]] * (layout.padded(len(group)) - len(group))]
    keys = [jax.random.key(r.seed) for r in padded]
    hps = [run.hparams(r.variant.config) for r in padded]
    states = [run.init(key, hp) for key, hp in zip(keys, hps, strict=True)]
    states = [snapshots.begin(r, state, results_dir, is_finished) for r, state in zip(padded, states, strict=True)]
    if run.shared_data:
        data = put(run.data(keys[0], hps[0]), layout, per_run=False)
    else:
        data = put(stack([run.data(k, hp) for k, hp in zip(keys, hps, strict=True)]), layout, per_run=True)
    return put(stack(states), layout, per_run=True), put(stack(hps), layout, per_run=True), data


def train(group: Sequence[Request], run: Run, session: Session, folder: Folder) -> list[Row]:
    """Trains the runs of one group, measures what is to be measured on them, and returns their rows."""
    trained = advance(group, run, session, folder.unfinished)
    progress, found = trained.progress, [{} for _ in group]
    if group[0].variant.followup is not None:
        found = _followed_up(group, run, trained)
        progress = [p.continued_by(session.git_commit) for p in progress]
    cost = {"compile_s": trained.compile_s, "runs_in_program": len(group)}
    return [
        make_row(request, run, own, folder, found=more, **cost)
        for request, own, more in zip(group, progress, found, strict=True)
    ]


def _followed_up(group: Sequence[Request], run: Run, trained: Trained) -> list[dict[str, Any]]:
    """What the followup of a group's variants finds on each of its runs."""
    followup = group[0].variant.followup
    assert followup is not None and trained.args is not None
    per_run = (True, True, not run.shared_data)
    found = over_runs(followup.build(run, followup.settings), per_run, trained.layout)(*trained.args)
    found = jax.tree.map(np.asarray, found)
    return [jax.tree.map(lambda x: x[i], found) for i in range(len(group))]  # noqa: B023


def advance(group: Sequence[Request], run: Run, session: Session, unfinished: Path) -> Trained:
    """Brings the runs of one group to their last epoch: from what they kept, their checkpoint, or the start.

    Args:
      group: the runs.
      run: their functions.
      session: what all programs share.
      unfinished: the folder of checkpoints; the group's has a folder of its own there.
    """
    kept = [p for r in group if (p := snapshots.finished(r, session.results_dir)) is not None]
    if len(kept) == len(group):
        return _as_kept(group, run, session, kept)
    config, cache = group[0].variant.config, in_flight(group, unfinished)
    layout = _saved_layout(cache, len(group)) or choose_layout(len(group), session.seeds_per_batch)
    state, hp, data = _start(group, run, layout, session.results_dir, False)
    progress = Progress.begun(layout, session.git_commit, run.origin)
    if (restored := checkpoints.restore(cache / "checkpoint", state, cache.name)) is not None:
        saved_state, before = restored[0], Progress.from_json(restored[1])
        if (fault := _no_way_on(group, run, before, session.results_dir)) is not None:
            set_aside(cache, fault, "its runs start afresh")
            return advance(group, run, session, unfinished)
        if elsewhere := before.begun_elsewhere():
            log.warning("%s: begun with %s; it goes on, its rows name both", plan.shown(labels_of(group)), elsewhere)
        state = put(saved_state, layout, per_run=True)
        progress = before.continued_by(session.git_commit)._replace(layout=layout)
        session.bar.done(what_is_run(config), progress.epoch * len(group))
    report = status.Reporter(session.results_dir, unfinished, cache.name, group)
    report.write(progress)
    compiled = None
    if progress.epoch < config.epochs:
        session.bar.at(f"compiling {plan.shown(labels_of(group))}")
        compiled = _compile(run, layout, state, hp, data)
        session.bar.compiled(what_is_run(config), compiled.seconds)
    if compiled is not None and progress.epoch == 0:
        progress = progress._replace(initial=_host(compiled.diagnose(state, hp, data)["layers"], len(group)))
    session.bar.at(plan.shown(labels_of(group)))
    saved = time.perf_counter()
    while compiled is not None and progress.epoch < config.epochs:
        before = progress.run_s
        state, progress = _one_epoch(group, compiled, state, hp, data, progress)
        session.bar.set_postfix(
            epoch=f"{progress.epoch}/{config.epochs}",
            loss=f"{np.mean(progress.history[-1]['train_loss']):.3f}",
            refresh=False,
        )
        session.bar.done(what_is_run(config), len(group), progress.run_s - before)
        report.write(progress)
        snapshots.keep(group, state, progress, session.results_dir)
        stopped = session.stopped()
        if stopped or time.perf_counter() - saved > session.checkpoint_seconds:
            keep_composition(group, unfinished, layout)
            checkpoints.save(cache / "checkpoint", state, progress.to_json(), cache.name)
            saved = time.perf_counter()
        if stopped:
            raise Stopped(f"stopped at epoch {progress.epoch} of {config.epochs}; the same command goes on from there")
    own = [progress.of_run(i) for i in range(len(group))]
    return Trained(own, layout, (state, hp, data), compiled.seconds if compiled is not None else 0.0)


def _as_kept(group: Sequence[Request], run: Run, session: Session, kept: list[Progress]) -> Trained:
    """Runs that others have trained already; their states are read only for a followup."""
    variant, layout = group[0].variant, choose_layout(len(group), session.seeds_per_batch)
    args = None if variant.followup is None else _start(group, run, layout, session.results_dir, True)
    session.bar.done(what_is_run(variant.config), variant.config.epochs * len(group))
    return Trained(kept, layout, args, 0.0)


def _host(tree: Any, runs: int) -> Any:
    """Stacked numbers as lists of those of the first ``runs``, without the padding."""
    return jax.tree.map(lambda x: np.asarray(x)[:runs].tolist(), tree)


def _one_epoch(group: Sequence[Request], compiled: Compiled, state, hp, data, progress: Progress):
    """The stacked states and the progress of a group's runs, one epoch further."""
    config, runs, start = group[0].variant.config, len(group), time.perf_counter()
    state, metrics = compiled.advance(state, hp, data)
    metrics, layers, epoch = _host(metrics, runs), {}, progress.epoch + 1
    if epoch % config.diagnose_every == 0 or epoch == config.epochs:
        scores = _host(compiled.diagnose(state, hp, data), runs)
        metrics, layers = metrics | scores["metrics"], scores["layers"]
    return state, progress.after(metrics, layers, time.perf_counter() - start)


# --- programs that were cut off ---------------------------------------------------------------------------------------


def in_flight(group: Sequence[Request], unfinished: Path) -> Path:
    """The folder of a group's checkpoint while it is trained."""
    name = hashlib.sha256(json.dumps([r.key for r in group]).encode()).hexdigest()[:12]
    return unfinished / name


def composition(cache: Path) -> tuple[list[tuple[str, int]], Layout] | None:
    """The keys of the runs of a folder in flight and their layout; None if there are none, or they were damaged.

    A damaged folder is named and set aside.
    """
    try:
        stored = read_sealed(cache / "program.json")
        return [(run_hash, seed) for run_hash, seed in stored["runs"]], Layout(**stored["layout"])
    except FileNotFoundError:
        return None
    except FileError as error:
        set_aside(cache, f"program.json: {error}", "its runs start afresh")
        return None


def keep_composition(group: Sequence[Request], unfinished: Path, layout: Layout) -> None:
    """Writes down which runs a folder in flight is of; before anything else is there, so that it is found again."""
    cache = in_flight(group, unfinished)
    if composition(cache) != ([r.key for r in group], layout):
        write_sealed(cache / "program.json", {"runs": [list(r.key) for r in group], "layout": layout._asdict()})


def _saved_layout(cache: Path, runs: int) -> Layout | None:
    """The layout of a checkpoint of some runs, if there is one, or the same over as many devices as there are.

    Over fewer devices runs keep their bits, down to two (``choose_layout``).  There is no going on below that: the
    folder is named and set aside, and its runs start afresh.
    """
    if (found := composition(cache)) is None:
        return None
    _, saved = found
    fewest = 2 if saved.devices > 1 else 1
    for devices in range(min(saved.devices, jax.local_device_count()), fewest - 1, -1):
        layout = saved._replace(devices=devices)
        if layout.padded(runs) == saved.padded(runs):
            return layout
    fault = f"begun on {saved.devices} devices, whose bits {jax.local_device_count()} here would not keep"
    set_aside(cache, fault, "its runs start afresh")
    return None


def _no_way_on(group: Sequence[Request], run: Run, progress: Progress, results_dir: Path) -> str | None:
    """Why runs cannot go on from a checkpoint that is whole; None if they can."""
    if progress.data not in (None, run.origin):
        return f"begun on another copy of {run.config.task.name}, {progress.data}, than is here, {run.origin}"
    passed = {epoch for r in group for epoch in r.variant.keep if epoch <= progress.epoch}
    for epoch in sorted(passed):
        wanted = [r for r in group if epoch in r.variant.keep]
        if any(snapshots.find(results_dir, r.run_key, epoch) is None for r in wanted):
            return f"at epoch {progress.epoch}, past epoch {epoch}, which others are to start from and nobody has kept"
    return None


def forget(group: Sequence[Request], unfinished: Path) -> None:
    """Removes a group's folder in flight, if there is one: its rows are written, or what it learned is kept."""
    clear(in_flight(group, unfinished))


def clear(cache: Path) -> None:
    """Removes a folder in flight, if there is one."""
    checkpoints.remove(cache / "checkpoint")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in ("rows.json", "program.json"):
            (cache / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # gone, or it holds files that are not ours
        cache.rmdir()
