"""Sweeps: many runs (configuration x seed) as few programs, resumed by key, with a row written for each.

Runs of one static shape form one program; its epochs advance in lockstep.  Nothing leaves the device inside an epoch.
Between epochs curves are kept, progress is shown, and from time to time a checkpoint is written, from which a killed
sweep goes on to the same bits.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jcredit import checkpoints, results
from jcredit.config import Config, as_dict, config_hash, static_key
from jcredit.layout import Layout, choose_layout, over_runs, place, stack
from jcredit.training import Run, make_run
from jcredit.types import Estimator

CHECKPOINT_SECONDS = 60.0
BLOW_UP = 10.0


class Variant(NamedTuple):
    """One line of a table: a configuration with a name.

    Attributes:
      label: its name, unique within its block.
      config: the configuration of all its runs.
      block: heading of the table block it belongs to.
      estimator: an estimator of one's own in place of ``config.method``; it is known by its label.
    """

    label: str
    config: Config
    block: str = ""
    estimator: Estimator | None = None

    @property
    def hash(self) -> str:
        """Key of the configuration; an estimator of one's own enters by its label."""
        own = config_hash(self.config)
        return own if self.estimator is None else hashlib.sha256(f"{own} {self.label}".encode()).hexdigest()[:12]


class Request(NamedTuple):
    """One run that is wanted."""

    variant: Variant
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        """(configuration hash, seed)."""
        return self.variant.hash, self.seed


class Place(NamedTuple):
    """Where the rows of a sweep go."""

    results_dir: Path
    experiment: str
    preset: str

    @property
    def directory(self) -> Path:
        """<results-dir>/<experiment>/<preset>."""
        return results.experiment_dir(self.results_dir, self.experiment, self.preset)

    @property
    def rows(self) -> Path:
        """The rows of this place."""
        return self.directory / "rows.jsonl"


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
      Interrupted: on SIGINT or SIGTERM, after a checkpoint.
    """
    wanted = [Request(v, s) for v in variants for s in seeds]
    done = results.finished(results.read_rows(place_.rows, place_.experiment, place_.preset))
    pending = [r for r in wanted if r.key not in done]
    total = sum(r.variant.config.epochs for r in pending)
    groups = list(_groups(pending, place_.directory))
    # All programs are described before the first one runs: what cannot run is said at once.
    runs = [make_run(g[0].variant.config, estimator=g[0].variant.estimator, data_dir=data_dir) for g in groups]
    with tqdm(total=total, unit="run-epoch", disable=not progress, dynamic_ncols=True) as bar, _stop_flag() as stop:
        for group, run in zip(groups, runs, strict=True):
            results.append_rows(place_.rows, _train(group, run, place_, seeds_per_batch, bar, stop))
    keys = {r.key for r in wanted}
    rows = results.read_rows(place_.rows, place_.experiment, place_.preset)
    return [row for row in rows if (row["config_hash"], row["seed"]) in keys]


# --- which runs share a program -----------------------------------------------------------------------------------


def _groups(pending: Sequence[Request], directory: Path) -> Iterator[list[Request]]:
    """Runs that share a program; those of a checkpoint left by a killed sweep first, in its composition."""
    by_key = {r.key: r for r in pending}
    for meta in sorted((directory / "cache").glob("*/runs.json")):
        keys = [(h, s) for h, s in json.loads(meta.read_text())]
        if keys and all(key in by_key for key in keys):
            yield [by_key.pop(key) for key in keys]
    groups: dict[Any, list[Request]] = {}
    for request in by_key.values():
        variant = request.variant
        own = None if variant.estimator is None else variant.label
        groups.setdefault((static_key(variant.config), variant.config.epochs, own), []).append(request)
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

    def advance(state, hp, data):
        state, metrics = run.epoch(state, hp, data)
        return state, {**metrics, **run.evaluate(state, hp, data)}

    # Scores are taken once in many epochs: there, compiling quickly is worth more than running quickly.
    unhurried = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    advance_all = over_runs(advance, per_run, layout, (0,)).lower(state, hp, data).compile()
    diagnose_all = over_runs(run.diagnose, per_run, layout).lower(state, hp, data).compile(compiler_options=unhurried)
    return Programs(advance_all, diagnose_all, time.perf_counter() - start)


def _start(group: Sequence[Request], run: Run, layout: Layout):
    """Initial states, numbers and data of a group, laid out on the devices; the last run fills up the padding.

    Not compiled: the few random arrays of an initial state take longer to compile than to draw.
    """
    padded = [*group, *[group[-1]] * (layout.padded(len(group)) - len(group))]
    keys = [jax.random.key(r.seed) for r in padded]
    hps = [run.hparams(r.variant.config) for r in padded]
    states = [run.init(key, hp) for key, hp in zip(keys, hps, strict=True)]
    if run.shared_data:
        data = place(run.data(keys[0], hps[0]), layout, per_run=False)
    else:
        data = place(stack([run.data(k, hp) for k, hp in zip(keys, hps, strict=True)]), layout, per_run=True)
    return place(stack(states), layout, per_run=True), place(stack(hps), layout, per_run=True), data


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
    state, hp, data = _start(group, run, layout)
    restored = checkpoints.restore(cache / "checkpoint", state)
    if restored is not None:
        state, meta = place(restored[0], layout, per_run=True), restored[1]
        bar.update(meta["epoch"] * len(group))
    programs = _compile(run, layout, state, hp, data)
    bar.set_description(_names(group))
    saved = time.perf_counter()
    while meta["epoch"] < config.epochs:
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
        if stop or time.perf_counter() - saved > CHECKPOINT_SECONDS:
            _save(cache, group, state, meta, layout)
            saved = time.perf_counter()
        if stop:
            raise Interrupted(
                f"stopped at epoch {meta['epoch']} of {config.epochs}; the same command goes on from there"
            )
    rows = [
        _row(i, request, run, meta, layout, programs.compile_s, len(group), place_) for i, request in enumerate(group)
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


# --- rows -----------------------------------------------------------------------------------------------------------


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


def _row(
    i: int, request: Request, run: Run, meta: dict[str, Any], layout: Layout, compile_s: float, runs: int, place_: Place
) -> results.Row:
    variant, history = request.variant, meta["history"]
    names = {name for entry in history for name in entry}
    curves = {name: [entry[name][i] if name in entry else None for entry in history] for name in sorted(names)}
    est_losses = curves.get("estimator_loss", [0.0] * len(history))
    bad = first_bad_epoch(curves["train_loss"], est_losses)
    flags = ["estimator_diverged"] if estimator_blew_up(est_losses[: (bad or len(history) + 1) - 1]) else []
    return results.plain({
        "schema": results.SCHEMA, "experiment": place_.experiment, "preset": place_.preset,
        "method": variant.config.method if variant.estimator is None else variant.label,
        "label": variant.label, "block": variant.block, "tier": run.tier,
        "config": as_dict(variant.config), "config_hash": variant.hash, "seed": request.seed,
        "status": "ok" if bad is None else "diverged", "flags": flags, "epochs": bad or len(history),
        "metrics": {name: curve[-1] for name, curve in curves.items()} if bad is None else {},
        "layers": {name: value[i] for name, value in meta["layers"].items()} if bad is None else {},
        "curves": {name: curve[: bad or None] for name, curve in curves.items()},
        "timing": {"compile_s": round(compile_s, 2), "run_s": round(meta["run_s"], 2), "runs_in_program": runs},
        "layout": layout._asdict(), "versions": versions(), "git_commit": git_commit(),
        "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
    })  # fmt: skip


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
