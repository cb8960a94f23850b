"""``jc.sweep``: configurations by label, seeds and settings to vary in, rows out."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jcredit.config import Config, change, parts_first, parts_of, paths_of
from jcredit.files import FileError, own_path
from jcredit.report.lines import Line, keep_lines
from jcredit.report.rows import Row, Rows
from jcredit.settings import ConfigError, as_python, brief
from jcredit.sweeps.layout import programs_kept, use_all_cores
from jcredit.sweeps.own_diagnostics import followup_of
from jcredit.sweeps.record import as_line, settings_of
from jcredit.sweeps.run import Stopped, run_sweep
from jcredit.sweeps.variants import Folder, Variant, checked_seeds

PRESET = "sweep"
"""The folder below the sweep's name, where an experiment has its presets."""


class Interrupted(KeyboardInterrupt):
    """A sweep was asked to stop, by SIGINT or SIGTERM, and has stopped after an epoch.

    As an interrupt it passes by ``except Exception``: a loop over sweeps stops as a whole.
    """


def sweep(
    configs: Mapping[str, Config],
    seeds: Iterable[int] = range(3),
    vary: Mapping[str, Sequence[Any]] | None = None,
    *,
    diagnostics: Mapping[str, Callable] | None = None,
    results_dir: str | Path | None = None,
    name: str = "sweep",
    data_dir: str | Path | None = None,
    seeds_per_batch: int | None = None,
    progress: bool = True,
    executor: Executor | None = None,
    batch_runs: int | None = None,
) -> Rows:
    """Runs every configuration with every seed, those of one static shape as one compiled program.

        configs = {"dfa": jc.Config(credit=jc.dfa()), "bp": jc.Config()}
        rows = jc.sweep(configs, seeds=range(8), vary={"learning_rate": [1e-3, 3e-3]})
        print(rows.table())

    Takes every core, unless JAX has been used before it is called.  The first interrupt stops it after an epoch.
    Compiled programs are kept for later calls and sessions in the cache directory (``JCREDIT_CACHE``, else
    ``~/.cache/jcredit``), or where ``jax_compilation_cache_dir`` is set, there; ``jax.config.update(
    "jax_enable_compilation_cache", False)`` before JAX is used turns that off.

    Args:
      configs: {label: configuration}.
      seeds: whole numbers from 0; one run of each line per seed.
      vary: {setting: values}: a field of ``Config``, a dotted path such as "credit.sigma", or the name of a setting of
        any part.  Every line is run with every combination; the values become part of its label.  Those of a float32
        array are taken as they are printed: 0.001, not 0.0010000000474974513.
      diagnostics: {name: function}: measured on every run after its last epoch, vmapped over runs, by pure functions
        ``(run, state, hp, data) -> a scalar, a vector over layers`` (of l = 0 .. L-1, or to L) ``or a dict of these``,
        such as ``lambda run, state, hp, data: jnp.linalg.norm(state.params.readout["w"])``.  A scalar is
        ``row["metrics"][name]``, a vector ``row["layers"][name]``, an entry of a dict is called ``<name>_<entry>``.
        ``run`` is that of ``jc.make_run``; ``state`` has ``params``, ``est_state``, ``key`` and ``step``, the
        optimisers' moments are None.  A function's source and what it uses are part of its runs' identity, as for
        estimators: a changed one makes rows anew.  Runs that are measured keep their networks and estimators in
        ``results_dir``, so that other diagnostics need no training; those that had none are trained again.
      results_dir: where rows are kept, as <results_dir>/<name>/sweep/rows.jsonl, and found by the next call, which goes
        on where this one was stopped; so are runs of any experiment there.  None: rows in memory alone.
      name: of the sweep, for its folder.
      data_dir: folder with prepared image data.
      seeds_per_batch: runs vmapped together on a device (None: chosen for the hardware).
      progress: whether to show a progress bar.
      executor: where programs run (None: in this process): any ``concurrent.futures.Executor`` whose processes see
        ``results_dir`` and can import what the configurations are made of, such as that of a Dask cluster,
        ``distributed.Client("tcp://host:8786").get_executor()``.  Not one that forks: JAX hangs there.  A program
        whose process died goes on from its checkpoint in the next.
      batch_runs: runs of one program that one process takes at once, at most (None: all of them).

    Returns:
      A row for every label and seed, in the order of labels, then values, then seeds.

    Raises:
      ConfigError: a line that cannot run or cannot be sent to other processes, or lacks a setting that is varied; a
        diagnostic that has a name or a shape which rows cannot take; an executor without ``results_dir``.
      ResultsError: the folder's rows cannot be read; they are left as they are.
      DataError: image data that can neither be found nor downloaded.
      CheckpointError: the checkpoint of an interrupted call cannot be read.
      BatchError: programs failed in other processes; all others are finished.
      Interrupted: on SIGINT or SIGTERM.
    """
    _check_options(results_dir, seeds_per_batch, executor, batch_runs)
    variants, seeds = _lines(configs, vary or {}), checked_seeds(seeds)
    followup = None if diagnostics is None else followup_of(diagnostics)
    if not isinstance(name, str) or name != Path(name).name or name in ("", ".."):
        raise ConfigError(f"name={name!r} must be a plain folder name; give the folder above it as results_dir")
    for factory in {part.factory for v in variants for _, part in parts_of(v.config)}:
        factory.look_again()
    use_all_cores()
    tasks = {task: task.with_samples() for task in {v.config.task for v in variants}}
    sampled = lambda config: dataclasses.replace(config, task=tasks[config.task])  # noqa: E731
    variants = [v._replace(config=sampled(v.config), followup=followup) for v in variants]
    options: dict[str, Any] = {"data_dir": data_dir, "seeds_per_batch": seeds_per_batch, "progress": progress}
    options |= {"executor": executor, "batch_runs": batch_runs}
    try:
        with programs_kept(), _place(results_dir) as place:
            folder = Folder(place, name, PRESET)
            if results_dir is not None:
                folder.check()
                keep_lines(folder.directory, {v.label: Line(v.hash, settings_of(v)) for v in variants})
            return _labelled(run_sweep(variants, seeds, folder, **options), variants, seeds)
    except Stopped as error:
        stopped = str(error).partition(";")[0]
        kept = "with results_dir the same call would go on from there"
        raise Interrupted(f"{stopped}; {kept}" if results_dir is None else str(error)) from None


@contextlib.contextmanager
def _place(results_dir: str | Path | None) -> Iterator[Path]:
    """The folder of results, or one that is gone after the block."""
    if results_dir is not None:
        yield own_path(results_dir)
        return
    with tempfile.TemporaryDirectory(prefix="jcredit-") as directory:
        yield Path(directory)


def _check_options(results_dir: Any, seeds_per_batch: Any, executor: Any, batch_runs: Any) -> None:
    """Of those that have a type and no home of their own.

    Raises:
      ConfigError: one that cannot be what it is to be.
    """
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        raise ConfigError("jax_disable_jit is on, and a sweep compiles; turn it off, or take steps of jc.make_run")
    if results_dir is not None:
        text = os.fspath(results_dir) if isinstance(results_dir, str | os.PathLike) else None
        if not isinstance(text, str) or not text or "\0" in text:
            raise ConfigError(f"results_dir={brief(results_dir)} is no folder; give its path, or None for none")
        try:
            own_path(text)
        except FileError as error:
            raise ConfigError(f"results_dir={error}") from None
    for name, value in (("seeds_per_batch", seeds_per_batch), ("batch_runs", batch_runs)):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if value is not None and not (whole and value >= 1):
            raise ConfigError(f"{name}={brief(value)} must be a whole number from 1, or None")
    if executor is not None and not isinstance(executor, Executor):
        raise ConfigError(
            f"executor={brief(executor)} is none of concurrent.futures; of a Dask cluster give"
            " distributed.Client('tcp://HOST:8786').get_executor()"
        )
    context = getattr(executor, "_mp_context", None) if isinstance(executor, ProcessPoolExecutor) else None
    if context is not None and context.get_start_method() == "fork":
        raise ConfigError(
            "executor: a ProcessPoolExecutor that forks hangs once JAX has started; make it with"
            " mp_context=multiprocessing.get_context('spawn')"
        )
    if getattr(executor, "_shutdown", False) is True or getattr(executor, "_shutdown_thread", False) is True:
        raise ConfigError(f"executor={brief(executor)} is shut down; make a new one")
    if executor is not None and results_dir is None:
        raise ConfigError(f"executor={executor!r} needs results_dir, a folder that all its processes see")


def _labelled(rows: Sequence[Row], variants: Sequence[Variant], seeds: Sequence[int]) -> Rows:
    """The row of every label and seed: lines with equal configurations share a run, and each has its row."""
    by_key = {(row["config_hash"], row["seed"]): row for row in rows}
    named = [(variant, variant.hash) for variant in variants]
    return Rows(
        as_line(by_key[key, seed], variant)
        for variant, key in named for seed in seeds
    )  # fmt: skip


def _lines(configs: Mapping[str, Config], vary: Mapping[str, Sequence[Any]]) -> list[Variant]:
    """Every configuration with every combination of values.

    Raises:
      ConfigError: no configuration, something else than one, or a setting that a line lacks or cannot take.
    """
    if not isinstance(configs, Mapping) or not configs:
        raise ConfigError("configs: give at least one configuration by its label, such as {'dfa': jc.Config(...)}")
    for label, config in configs.items():
        if not isinstance(label, str) or not isinstance(config, Config):
            raise ConfigError(f"configs: {brief(label)}: {brief(config)} must be a label and a jc.Config")
        if not label or label != label.strip() or not label.isprintable():
            raise ConfigError(
                f"configs: label {label!r} is no plain text; a table shows it, so give one without space around"
            )
    if not isinstance(vary, Mapping):
        raise ConfigError(f"vary={brief(vary)} must be settings and their values, {{'learning_rate': [1e-3, 3e-3]}}")
    values = {name: _values(name, given) for name, given in vary.items()}
    combinations = [tuple(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    variants = [v for label, config in configs.items() for v in _combined(label, config, combinations)]
    labels = [variant.label for variant in variants]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ConfigError(f"two lines are called {twice!r}: their values look alike; give each a label in configs")
    return variants


def _combined(label: str, config: Config, combinations: Iterable[tuple[tuple[str, Any], ...]]) -> list[Variant]:
    """A line of every combination of values; settings that overwrite each other are refused."""
    found: dict[Config, Variant] = {}
    for chosen in combinations:
        variant = Variant(
            "".join([label, *(f" {name}={_shown(value)}" for name, value in chosen)]), _varied(label, config, chosen)
        )
        if twin := found.get(variant.config):
            why = (
                "one setting overwrites another; vary one of them alone" if len(chosen) > 1 else "give each value once"
            )
            raise ConfigError(f"vary: lines {twin.label!r} and {variant.label!r} would be one configuration: {why}")
        found[variant.config] = variant
    return list(found.values())


def _values(name: str, given: Any) -> list[Any]:
    """The values of a varied setting; numbers as Python's own."""
    if not isinstance(name, str):
        raise ConfigError(f"vary: {brief(name)} must be the name of a setting, such as 'learning_rate'")
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigError(f"vary: {name}={brief(given)} must be a list of values")
    try:
        values = [as_python(value) for value in given]
        repeated = [value for i, value in enumerate(values) if value in values[:i]]
    except (TypeError, ValueError):  # arrays cannot be told apart by ==, and one without axes has no values
        raise ConfigError(f"vary: {name}={brief(given)} must be a list of numbers, texts or parts") from None
    if not values:
        raise ConfigError(f"vary: {name}=[] has no values; give some, or leave {name} out")
    if repeated:
        raise ConfigError(f"vary: {name} has {repeated[0]!r} twice; give each value once")
    return values


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _varied(label: str, config: Config, chosen: Iterable[tuple[str, Any]]) -> Config:
    for name, value in parts_first(chosen):
        try:
            config = change(config, name, value)
        except ConfigError as error:
            misspelt = "did you mean" in str(error)
            lacks = "" if misspelt or paths_of(config, name) else f"; sweep {label!r} without it"
            raise ConfigError(f"vary: {name}: line {label!r}: {error}{lacks}") from None
    return config
