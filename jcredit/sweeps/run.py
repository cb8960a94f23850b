"""Sweeps: many runs (configuration x seed) as few programs, resumed by key, with a row written for each.

Runs of one static shape form one program; its epochs advance in lockstep.  Nothing leaves the device inside an epoch.
Between epochs curves are kept, progress is shown, and from time to time a checkpoint is written, from which a killed
sweep goes on to the same bits.  Programs are handed out as batches (``engine``), here or to other processes.
"""

from __future__ import annotations

import functools
import json
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jax.extend.core import Jaxpr

from jcredit.checking import check_own, check_run
from jcredit.config import BETWEEN_EPOCHS, Config, ConfigError, parts_of, static_key
from jcredit.files import DAMAGED
from jcredit.poison import check_no_hidden_backprop
from jcredit.report.rows import Row, append_rows, finished, read_rows
from jcredit.sweeps import copies, plan, program, snapshots, status
from jcredit.sweeps.batch import Batch, take_what_is_left
from jcredit.sweeps.cost import flops_of_jaxpr
from jcredit.sweeps.engine import Program, run_all
from jcredit.sweeps.forecast import Bar, Work
from jcredit.sweeps.layout import choose_layout
from jcredit.sweeps.program import Session, Stopped as Stopped, composition, forget, what_is_run
from jcredit.sweeps.record import copied_row, git_commit, rows_under
from jcredit.sweeps.variants import Folder, Request, Variant, labels_of
from jcredit.training import Run, make_run


def run_sweep(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    folder: Folder,
    *,
    data_dir: str | Path | None = None,
    seeds_per_batch: int | None = None,
    progress: bool = True,
    there: Sequence[Row] | None = None,
    executor: Executor | None = None,
    batch_runs: int | None = None,
) -> list[Row]:
    """Runs every variant with every seed that has no row yet, and returns the rows of these runs, each once.

    A run that another experiment under the same results directory has finished is not run again: its row is copied.
    Lines with equal keys are one run, whose row bears the name of the first of them.  A row made on another copy of the
    data counts too; there is a warning.

    Args:
      variants: what to run.
      seeds: one run of each variant per seed.
      folder: where rows and checkpoints go.
      data_dir: folder with prepared image data.
      seeds_per_batch: vmap width (None: chosen for the hardware).
      progress: whether to show a progress bar.
      there: the folder's rows, where they have been read already, those that a killed sweep left among them.
      executor: where batches run, in processes that see ``results_dir`` (None: here, one after the other).
      batch_runs: runs of one program in a batch, at most (None: all, or an even share where there are more workers of
        a cluster than programs).

    Raises:
      ResultsError: earlier rows cannot be read; they are left as they are.
      ConfigError: a run that cannot be built, cannot start from its snapshot, or cannot be sent to other processes.
      DataError: image data that can neither be found nor downloaded.
      CheckpointError: a checkpoint cannot be read, or written.
      BatchError: batches failed; all others are finished.
      Stopped: on SIGINT or SIGTERM, after a checkpoint.
    """
    commit = git_commit()
    wanted = _requests(variants, seeds)
    if there is None:
        take_what_is_left(folder)
    rows, copied, pending = _sort_out(wanted, folder, there)
    # All programs are traced before the first one runs: what cannot run is said at once.
    fits = functools.partial(_check_fits, seeds_per_batch=seeds_per_batch, batch_runs=batch_runs)
    programs = _with_starts(pending, folder, data_dir, fits if executor is None else _check_sizes)
    copies.warn_of_rows(wanted, [*rows, *copied], (run for _, run, *_ in programs), data_dir)
    append_rows(folder.rows, copied, known="leave")
    new: list[Row] = []

    def take(batch: Batch, made: list[Row]) -> None:
        if batch.folder is not None:
            append_rows(folder.rows, made, known="leave")
            new.extend(made)
            forget(batch.group, batch.unfinished)

    at_once = getattr(executor, "workers", 1)
    with _session(folder.results_dir, seeds_per_batch, commit, programs, progress, at_once) as session:
        run_all(programs, session, take, data_dir, executor, batch_runs, finished([*rows, *copied]))
    keys = {r.key for r in wanted}
    if keys - finished([*rows, *copied, *new]):  # another process made them meanwhile
        rows, copied, new = read_rows(folder.rows, folder.experiment, folder.preset), [], []
    return [row for row in (*rows, *copied, *new) if (row["config_hash"], row["seed"]) in keys]


def plan_sweep(
    variants: Sequence[Variant],
    seeds: Sequence[int],
    folder: Folder,
    *,
    data_dir: str | Path | None = None,
    there: Sequence[Row] | None = None,
    width: int | None = None,
) -> list[plan.Cost]:
    """What those runs would take that have no row yet, and the snapshots they start from, which count as runs.

    Compiles their programs and runs nothing.

    Args:
      variants, seeds, folder, data_dir, there: as in ``run_sweep``.
      width: how many runs of a device are at work together; None: all of them.

    Raises:
      ResultsError: earlier rows cannot be read.
      ConfigError: a run that cannot be built, or cannot start from its snapshot.
    """
    _, _, pending = _sort_out(_requests(variants, seeds), folder, there)
    programs = _with_starts(pending, folder, data_dir, _check_sizes)
    return [plan.cost_of(run, labels_of(group), len(group), width) for group, run, *_ in programs]


# --- which runs are wanted, and which of them share a program ---------------------------------------------------------


def _requests(variants: Sequence[Variant], seeds: Sequence[int]) -> list[Request]:
    """The distinct runs; what is wanted by several lines keeps what any of them wants kept, or what it has learned."""
    lines: dict[str, Variant] = {}
    keep: dict[str, set[int]] = {}
    for variant in variants:
        lines.setdefault(variant.hash, variant)
        keep.setdefault(variant.run_hash, set()).update(variant.keep)
    trained = [variant.run_hash for variant in lines.values()]
    for variant in lines.values():
        if trained.count(variant.run_hash) > 1:  # with one followup and another, or none
            keep[variant.run_hash].add(variant.config.epochs)
    kept = [variant._replace(keep=tuple(sorted(keep[variant.run_hash]))) for variant in lines.values()]
    return [Request(variant, seed) for variant in kept for seed in dict.fromkeys(seeds)]


def _sort_out(
    wanted: Sequence[Request], folder: Folder, there: Sequence[Row] | None
) -> tuple[list[Row], list[Row], list[Request]]:
    """The folder's rows, rows of wanted runs copied from elsewhere, and the runs that are still to be run."""
    rows = list(read_rows(folder.rows, folder.experiment, folder.preset) if there is None else there)
    done = finished(rows)
    missing = {r.key: r for r in wanted if r.key not in done}
    copied = []
    if missing:
        elsewhere = {(row["config_hash"], row["seed"]): row for row in rows_under(folder.results_dir, but=folder.rows)}
        copied = [copied_row(elsewhere[key], request, folder) for key, request in missing.items() if key in elsewhere]
    done = finished(copied)
    return rows, copied, [r for key, r in missing.items() if key not in done]


def _with_starts(
    pending: Sequence[Request], folder: Folder, data_dir: str | Path | None, check: Callable[[Run, int], None]
) -> list[Program]:
    """The programs of the networks that pending runs start from and nobody has kept, then those of the runs."""
    starts = snapshots.not_kept(snapshots.starts(pending), folder.results_dir)
    before = _programs(starts, None, folder.results_dir, data_dir, check)
    claimed = {r.run_key for r in starts}
    return before + _programs(pending, folder, folder.results_dir, data_dir, check, claimed)


def _programs(
    pending: Sequence[Request],
    folder: Folder | None,
    results_dir: Path,
    data_dir: str | Path | None,
    check: Callable[[Run, int], None],
    claimed: Iterable[tuple[str, int]] = (),
) -> list[Program]:
    """Sorts runs into programs, and traces these.

    Args:
      pending: the runs.
      folder: where their rows go.
      results_dir: where runs keep what they have learned.
      data_dir: folder with prepared image data.
      check: refuses runs of a program, of which it is given one and their number, that no memory can hold.
      claimed: keys of runs that will have been trained, and have kept all they learned, by then.
    """
    unfinished = snapshots.unfinished(results_dir) if folder is None else folder.unfinished
    programs = []
    for group in _groups(pending, unfinished, results_dir, set(claimed)):
        with _named(group[0].variant):
            run = make_run(group[0].variant.config, data_dir=data_dir)
            _check_alike(group)
            check(run, len(group))
            step = _traced(run, group[0].variant, data_dir)
        copies.warn_of_kept(group, run, results_dir)
        programs.append(Program(group, run, folder, flops_of_jaxpr(step) * run.steps_per_epoch))
    return programs


def _check_alike(group: Sequence[Request]) -> None:
    """Refuses an estimator of which a swept number decides what the program, or a row, is told once for all runs.

    Raises:
      ConfigError: two of them differ in it.
    """
    first: dict[str, Any] | None = None
    for config in dict.fromkeys(request.variant.config for request in group):
        estimator = config.credit.build()
        facts = {name: getattr(estimator, name) for name in ("tier", "oracle", "trains_blocks")}
        facts |= {f"{name} is None": getattr(estimator, name) is None for name in ("loss", "follow")}
        first = first or facts
        if differs := next((name for name in facts if facts[name] != first[name]), None):
            raise ConfigError(
                f"credit={config.credit!r}: {differs} is {first[differs]!r} for one value of a swept number and"
                f" {facts[differs]!r} for another; a program has one: annotate what decides it float, int or bool in"
                " place of a swept type"
            )


def _traced(run: Run, variant: Variant, data_dir: str | Path | None) -> Jaxpr:
    """A step of a run, once all has been tried that can be before it is compiled."""
    step = check_run(run)
    if own := _own(variant.config):
        check_own(run, own)
    if own & {"credit", "rule"}:
        check_no_hidden_backprop(variant.config, data_dir=data_dir)
    if variant.followup is not None:
        variant.followup.check(run)
    return step


@contextmanager
def _named(variant: Variant) -> Iterator[None]:
    """What a part raises itself is told with the line it belongs to, and what would say more."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        parts = ", ".join(f"{path}={part.name}" for path, part in parts_of(variant.config) if part.factory.source)
        if parts:
            block = f"{variant.block} | " if variant.block else ""
            error.add_note(f"in line {block + variant.label!r}, with {parts}; jc.testing.check_... may say more of it")
        raise


def _check_fits(run: Run, runs: int, *, seeds_per_batch: int | None, batch_runs: int | None) -> None:
    """Refuses runs whose batches the memory of this machine, where they are to run, cannot hold."""
    at_once = min(runs, batch_runs or runs)
    plan.check_fits(run, at_once, choose_layout(at_once, seeds_per_batch))


def _check_sizes(run: Run, runs: int) -> None:
    """Refuses runs of arrays that there cannot be, wherever they are to run."""
    plan.check_fits(run, runs, memory=math.inf)


def _own(config: Config) -> set[str]:
    """Which parts are made of anything that is not jcredit's, whose parts the tests have checked."""
    return {path.partition(".")[0] for path, part in parts_of(config) if part.factory.source is not None}


def _groups(
    pending: Sequence[Request], unfinished: Path, results_dir: Path, claimed: set[tuple[str, int]]
) -> Iterator[list[Request]]:
    """Runs that share a program; those of a checkpoint left by a killed sweep first, in its composition.

    Runs that need not be trained come last: a run that two followups want is trained for the first of them.
    """
    by_key = {r.key: r for r in pending}
    for path in sorted(unfinished.glob("*/program.json")):
        keys, _ = (None if DAMAGED in path.parent.name else composition(path.parent)) or ([], None)
        if keys and all(key in by_key for key in keys):
            group = [by_key.pop(key) for key in keys]
            claimed |= {r.run_key for r in group}
            yield group
    groups: dict[Any, list[Request]] = {}
    for request in by_key.values():
        variant = request.variant
        known = request.run_key in claimed or snapshots.finished(request, results_dir) is not None
        claimed.add(request.run_key)
        followup = json.dumps(variant.followup and variant.followup.described())
        beside = tuple(getattr(variant.config, name) for name in BETWEEN_EPOCHS)
        same = (known, static_key(variant.config), beside, followup)
        groups.setdefault(same, []).append(request)
    yield from (group for _, group in sorted(groups.items(), key=lambda item: item[0][0]))


# --- while programs run ----------------------------------------------------------------------------------------------


@contextmanager
def _session(
    results_dir: Path,
    seeds_per_batch: int | None,
    commit: str | None,
    programs: Sequence[Program],
    progress: bool,
    at_once: int = 1,
) -> Iterator[Session]:
    """A progress bar over the epochs of all runs, and a flag that is set when the sweep is to stop."""
    work: dict[tuple[str, int], Work] = {}
    for group, _, _, flops in programs:
        config = group[0].variant.config
        same = work.get(what_is_run(config), Work(0, flops))  # with one followup and another
        work[what_is_run(config)] = same._replace(run_epochs=same.run_epochs + config.epochs * len(group))
    quiet = not progress or not work
    with status.announced(results_dir, [group for group, *_ in programs]) as tell, _stop_signal() as stop:
        with Bar(work, at_once=at_once, tell=tell, disable=quiet) as bar:
            stopped, stop.heard = lambda: stop.number is not None, bar.stopping
            try:
                yield Session(Path(results_dir), seeds_per_batch, commit, bar, stopped, program.CHECKPOINT_SECONDS)
            except Stopped as error:
                error.signal = stop.number or error.signal
                raise


class StopSignal:
    """A handler of signals: the first asks the sweep under way to stop, a second one interrupts at once.

    Attributes:
      number: of the first signal; None before there is one.
      heard: called at the first.
    """

    number: int | None = None
    heard: Callable[[], object] = staticmethod(lambda: None)

    def __call__(self, number: int, frame: Any) -> None:
        """Takes a signal."""
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
        # Its output may be a pipe that has ended, or a line that is half written: the sweep stops all the same.
        with suppress(OSError, ValueError, RuntimeError):
            self.heard()


@contextmanager
def _stop_signal() -> Iterator[StopSignal]:
    """The handler of SIGINT and SIGTERM while the block runs."""
    handler, previous = StopSignal(), {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handler)
    except ValueError:  # not in the main thread: signals are someone else's
        pass
    try:
        yield handler
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
