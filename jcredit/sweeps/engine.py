"""The engine of a sweep: hands batches to an executor, those first that others wait for, and takes what they bring.

Any ``concurrent.futures.Executor`` will do whose workers see the results directory; without one, batches run here, one
after the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from typing import NamedTuple

from jcredit.config import config_hash
from jcredit.report.rows import Row
from jcredit.sweeps.batch import Batch, BatchError
from jcredit.sweeps.program import Interrupted

POLL_SECONDS = 0.5
log = logging.getLogger("jcredit")


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
) -> None:
    """Has batches run, and takes the rows of each as it ends.

    A batch waits for those before it that train a run it starts from, or one of its own.

    Args:
      batches: in the order in which they should run.
      begin: hands a batch to an executor.
      take: called with a finished batch and its rows, in this thread.
      stopping: whether the sweep is to stop.
      halt: asks the batches that are under way in other processes to stop, and returns their names; they are waited
        for, all others are taken back.
      persistent: whether other batches still run when one fails.

    Raises:
      Interrupted: the sweep was to stop, and was not at its end.
      BatchError: a batch was lost with its process, or failed otherwise; where ``persistent``, after all others.
      Exception: what a batch raised.
    """
    waiting, running = [_job(batch) for batch in batches], dict[Future, _Job]()
    failed: list[tuple[_Job, Exception]] = []
    stopped: list[Interrupted] = []
    try:
        while waiting or running:
            ready = None if persistent and stopping() else _ready(waiting, [*running.values(), *(j for j, _ in failed)])
            if ready is not None:
                waiting = [job for job in waiting if job is not ready]
                running[begin(ready.batch)] = ready
            elif not running:
                break
            elif stopping():
                waiting += _taken_back(running, halt())
            timeout = 0 if ready is not None else POLL_SECONDS
            for future in wait(running, timeout, FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    take(job.batch, future.result())
                except Interrupted as error:
                    stopped.append(error)
                    if not persistent:
                        raise
                except Exception as error:
                    failed.append((job, error))
                    if not persistent:
                        raise
                    if not stopping():
                        log.warning("%s: %s; the other batches go on", job.batch.name, _shown(error))
    finally:
        for future in running:
            future.cancel()
    if stopped or (stopping() and waiting):
        left = f"; {len(waiting)} of {len(batches)} batches had not begun" if waiting else ""
        raise Interrupted(f"stopped{left}; the same command goes on from there")
    if failed:
        _raise(failed, len(waiting))


def _ready(waiting: Sequence[_Job], before: Sequence[_Job]) -> _Job | None:
    """The first job that waits for none of those before it."""
    unfinished = set().union(*(job.trains for job in before))
    for job in waiting:
        if unfinished.isdisjoint(job.needs):
            return job
        unfinished |= job.trains
    return None


def _taken_back(running: dict[Future, _Job], begun: set[str]) -> list[_Job]:
    """Cancels those jobs that have not begun anywhere, and returns them."""
    futures = [f for f, job in running.items() if job.batch.name not in begun and not f.done() and f.cancel()]
    return [running.pop(future) for future in futures]


def _shown(error: BaseException) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _raise(failed: Sequence[tuple[_Job, Exception]], blocked: int) -> None:
    job, error = failed[0]
    if isinstance(error, ValueError):  # what users do wrong: one line that says so
        raise error
    others = f" (and {len(failed) - 1} other batches failed)" if len(failed) > 1 else ""
    rest = f"; {blocked} batches that start from its runs were not begun" if blocked else ""
    cause = "its process or the scheduler was lost" if isinstance(error, CancelledError) else _shown(error)
    raise BatchError(
        f"batch {job.batch.name}: {cause}{others}{rest}; finished runs have their rows, and the same command"
        " goes on from the last checkpoint"
    ) from error
