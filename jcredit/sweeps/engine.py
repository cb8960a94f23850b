"""The engine of a sweep: hands batches to an executor, those first that others wait for, and takes what they bring.

Any ``concurrent.futures.Executor`` will do whose workers see the results directory; without one, batches run here, one
after the other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from pathlib import Path
from typing import NamedTuple

from jcredit.config import ConfigError, config_hash
from jcredit.files import FileError, cause
from jcredit.numerics import numerics
from jcredit.report.rows import Row
from jcredit.report.schema import ResultsError
from jcredit.sweeps import owners, snapshots, status
from jcredit.sweeps.batch import Batch, BatchError, check_portable, owned_by, run_batch
from jcredit.sweeps.checkpoints import CheckpointError
from jcredit.sweeps.layout import compiled_programs_are_kept
from jcredit.sweeps.program import Session, Stopped, composition, in_flight
from jcredit.sweeps.variants import Folder, Request
from jcredit.tasks.image_data import DataError
from jcredit.training import Run

POLL_SECONDS = 0.5
LOOK_SECONDS = 2.0
MENDABLE = (ConfigError, DataError, ResultsError, CheckpointError, FileError)
"""What users mend, said in one line; anything else that a batch raises is a failure of its own."""
LOST = "the scheduler, or the pool that ran the batches, was lost"
GOES_ON = "finished runs have their rows, and the same command goes on from the last checkpoints"
_GONE = (CancelledError, BrokenExecutor)
log = logging.getLogger("jcredit")


class Program(NamedTuple):
    """Runs that share a program.

    Attributes:
      group: the runs.
      run: their functions.
      folder: where their rows go (None: they leave none).
      flops: of one epoch of one of them.
    """

    group: list[Request]
    run: Run
    folder: Folder | None
    flops: float


class InProcess(Executor):
    """Runs what it is given at once, in the thread that gives it."""

    def submit(self, fn: Callable, /, *args, **kwargs) -> Future:
        """A future that is done."""
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def run_all(
    programs: Sequence[Program],
    session: Session,
    take: Callable[[Batch, list[Row]], None],
    data_dir: str | Path | None,
    executor: Executor | None = None,
    batch_runs: int | None = None,
    done: Collection[tuple[str, int]] = (),
) -> None:
    """Hands programs out in batches.

    Args:
      programs: those that others start from first.
      session: of this process.
      take: called with each finished batch, and its rows where they are not in the folder's file.
      data_dir: folder with prepared image data.
      executor: where batches run (None: here).
      batch_runs: runs in a batch, at most (None: all of a program, or a share of it for each worker of a cluster).
      done: keys of runs whose rows are there.

    Raises:
      ConfigError, BatchError, Stopped: as ``run_sweep``.
    """
    if not programs:
        return
    results_dir = session.results_dir
    folders = {snapshots.unfinished(results_dir), *(p.folder.unfinished for p in programs if p.folder is not None)}
    kept = snapshots.unfinished(results_dir)  # trained for what they keep, whether they have rows or not

    def is_over(path: Path) -> bool:
        return path.parent != kept and any(key in done for key in (composition(path) or ([],))[0])

    owners.remove_remains(results_dir, folders, is_over)
    with owners.present(results_dir, "a sweep") as me:
        batches = list(_batches(programs, session, me.id, data_dir, batch_runs, getattr(executor, "workers", 1)))
        if executor is not None:
            for batch, _ in batches:
                check_portable(batch)

        def halt() -> set[str]:
            owners.ask_to_stop(results_dir, me.id)
            return {owner.what for owner in owners.living(results_dir) if owner.sweep == me.id}

        def take_and_count(batch: Batch, rows: list[Row]) -> None:
            take(batch, rows)
            where.end(batch)

        where = _Here(batches, session) if executor is None else _Elsewhere(batches, session, executor)
        hand_out(
            [batch for batch, _ in batches], where.begin, take_and_count, stopping=where.stopping, halt=halt,
            persistent=where.persistent, free=lambda batch: owners.are_free(results_dir, owned_by(batch, batch.group)),
        )  # fmt: skip


class _Here:
    """Batches in this process, which count their epochs themselves."""

    persistent = False

    def __init__(self, batches: Sequence[tuple[Batch, Run]], session: Session):
        self._session, self._runs = session, {batch.name: run for batch, run in batches}

    def begin(self, batch: Batch) -> Future:
        """Runs a batch; when this returns it is done."""
        return InProcess().submit(run_batch, batch, self._session, self._runs[batch.name])

    def end(self, batch: Batch) -> None:
        """A batch is done, and its rows are taken."""

    def stopping(self) -> bool:
        """Whether the sweep is to stop."""
        return self._session.stopped()


class _Elsewhere:
    """Batches in other processes; the bar is brought up to what they say of themselves (``status``)."""

    persistent = True

    def __init__(self, batches: Sequence[tuple[Batch, Run]], session: Session, executor: Executor):
        self._batches, self._session = {in_flight(b.group, b.unfinished): b for b, _ in batches}, session
        self._executor, self._bar = executor, session.bar
        self._seen: dict[Path, tuple[int, float]] = {}  # run-epochs and seconds
        self._again = 0.0

    def begin(self, batch: Batch) -> Future:
        """Hands a batch to the executor."""
        return self._executor.submit(run_batch, batch)

    def stopping(self) -> bool:
        """Whether the sweep is to stop."""
        self._look()
        return self._session.stopped()

    def _look(self) -> None:
        """Counts the epochs since the last look."""
        if not self._batches or time.monotonic() < self._again:
            return
        self._again = time.monotonic() + LOOK_SECONDS
        said = dict(status.objects(next(iter(self._batches.values())).results_dir))
        for path, batch in self._batches.items():
            if {"epoch", "seconds"} <= (own := said.get(path.name, {})).keys():
                self._count(path, own["epoch"] * len(batch.group), own["seconds"])

    def end(self, batch: Batch) -> None:
        """Counts all that is left of a batch that is done, and whose rows are taken."""
        path = in_flight(batch.group, batch.unfinished)
        self._count(path, batch.whole[1], None)
        del self._batches[path]

    def _count(self, path: Path, run_epochs: int, seconds: float | None) -> None:
        before, spent = self._seen.get(path, (0, 0.0))
        if run_epochs > before:
            took = None if seconds is None or path not in self._seen else seconds - spent
            self._bar.done(self._batches[path].whole[0], run_epochs - before, took)
        if run_epochs >= before:
            self._seen[path] = run_epochs, spent if seconds is None else seconds


def _batches(
    programs: Sequence[Program],
    session: Session,
    sweep: str,
    data_dir: str | Path | None,
    batch_runs: int | None,
    workers: int,
) -> Iterator[tuple[Batch, Run]]:
    """Every program as one batch, or as several; one that was cut off goes on as it was."""
    results_dir = session.results_dir.resolve()  # other processes may have another current directory, or home
    data_dir = data_dir and Path(data_dir).expanduser().resolve()
    shares = -(-workers // len(programs))
    for group, run, folder, _ in programs:
        folder = folder and folder._replace(results_dir=results_dir)
        whole = Batch(
            tuple(group), results_dir, folder, data_dir, session.seeds_per_batch,
            session.checkpoint_seconds, sweep, numerics(), compiled_programs_are_kept(),
        )  # fmt: skip
        most = batch_runs or -(-len(group) // shares)
        if in_flight(group, whole.unfinished).exists():
            most = len(group)
        for i in range(0, len(group), most):
            yield whole._replace(group=tuple(group[i : i + most])), run


# --- in which order, and what becomes of them -------------------------------------------------------------------------


class _Job(NamedTuple):
    """A batch, the keys of the runs it trains, and those of the runs that others must have trained before it."""

    batch: Batch
    trains: frozenset[tuple[str, int]]
    needs: frozenset[tuple[str, int]]


def _job(batch: Batch) -> _Job:
    trains = frozenset(r.run_key for r in batch.group)
    starts = ((config_hash(r.variant.start.config), r.seed) for r in batch.group if r.variant.start is not None)
    return _Job(batch, trains, trains.union(starts))


def hand_out(
    batches: Sequence[Batch],
    begin: Callable[[Batch], Future],
    take: Callable[[Batch, list[Row]], None],
    *,
    stopping: Callable[[], bool],
    halt: Callable[[], set[str]],
    persistent: bool,
    free: Callable[[Batch], bool] = lambda batch: True,
) -> None:
    """Has batches run, and takes the rows of each as it ends.

    A batch waits for those before it that train a run it starts from, or one of its own; and, while there are others to
    run, for whoever else is at it.

    Args:
      batches: in the order in which they should run.
      begin: hands a batch to an executor.
      take: called with a finished batch and its rows, in this thread.
      stopping: whether the sweep is to stop.
      halt: asks the batches that are under way in other processes to stop, and returns their names; they are waited
        for, all others are taken back.
      persistent: whether other batches still run when one fails.
      free: whether nobody else is at a batch.

    Raises:
      Stopped: the sweep was to stop, and was not at its end.
      BatchError: the executor itself was lost; or a batch failed (where ``persistent``, after all others).
      Exception: what a batch raised, if it is the user's to mend (``MENDABLE``) or not ``persistent``.
    """
    waiting, running = [_job(batch) for batch in batches], dict[Future, _Job]()
    failed: list[tuple[_Job, Exception]] = []
    stopped: list[Stopped] = []
    try:
        while waiting or running:
            before = [*running.values(), *(job for job, _ in failed)]
            ready = None if persistent and stopping() else _next(waiting, before, free, idle=not running)
            if ready is not None:
                waiting = [job for job in waiting if job is not ready]
                running[_begun(begin, ready.batch)] = ready
            elif not running:
                break
            elif stopping():
                waiting += _taken_back(running, halt())
            timeout = 0 if ready is not None else POLL_SECONDS
            for future in wait(running, timeout, FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    take(job.batch, future.result())
                except Stopped as error:
                    stopped.append(error)
                    if not persistent:
                        raise
                except _GONE as error:
                    raise _lost(error) from error
                except Exception as error:
                    failed.append((job, error))
                    if not persistent:
                        raise
                    others = "the sweep stops" if stopping() else "the other batches go on"
                    log.warning("%s: %s; %s", job.batch.name, cause(error), others)
    finally:
        for future in running:
            future.cancel()
    if stopped or (stopping() and waiting):
        left = f"; {len(waiting)} of {len(batches)} batches had not begun" if waiting else ""
        raise Stopped(f"stopped{left}; the same command goes on from there")
    if failed:
        _raise(failed, len(waiting))


def _begun(begin: Callable[[Batch], Future], batch: Batch) -> Future:
    """The future of a batch that is handed to an executor.

    Raises:
      BatchError: the executor takes none any more.
    """
    try:
        return begin(batch)
    except _GONE as error:
        raise _lost(error) from error


def _lost(error: BaseException) -> BatchError:
    return BatchError(f"{LOST} ({cause(error)}); {GOES_ON}")


def _next(waiting: Sequence[_Job], before: Sequence[_Job], free: Callable[[Batch], bool], idle: bool) -> _Job | None:
    """The first job that needs none of those before it, and that nobody else is at unless there is nothing else."""
    unfinished, taken = set().union(*(job.trains for job in before)), None
    for job in waiting:
        if unfinished.isdisjoint(job.needs):
            if free(job.batch):
                return job
            taken = taken or job
        unfinished |= job.trains
    return taken if idle else None


def _taken_back(running: dict[Future, _Job], begun: set[str]) -> list[_Job]:
    """Cancels those jobs that have not begun anywhere, and returns them."""
    futures = [f for f, job in running.items() if job.batch.name not in begun and not f.done() and f.cancel()]
    return [running.pop(future) for future in futures]


def _raise(failed: Sequence[tuple[_Job, Exception]], blocked: int) -> None:
    job, error = failed[0]
    if isinstance(error, MENDABLE):  # one line that says what users do wrong
        raise error
    others = f" (and {len(failed) - 1} other batches failed)" if len(failed) > 1 else ""
    rest = f"; {blocked} batches that start from its runs were not begun" if blocked else ""
    raise BatchError(f"batch {job.batch.name}: {cause(error)}{others}{rest}; {GOES_ON}") from error
