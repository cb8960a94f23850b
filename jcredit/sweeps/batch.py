"""A batch: runs that share a program, described plainly, and what is done with it, in whichever process.

A batch may be begun again at any time and anywhere: one process at a time has it, goes on from its checkpoint, and a
finished one is only read.  So a batch whose process died ends in the same bits as if it had not.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jcredit.config import parts_of
from jcredit.files import FileError, read_sealed, set_aside, write_sealed
from jcredit.report.rows import Row, append_rows, finished, read_rows
from jcredit.sweeps import owners, plan, snapshots
from jcredit.sweeps.forecast import Bar, Work
from jcredit.sweeps.layout import (
    Layout,
    choose_layout,
    compiled_programs_are_kept,
    keep_compiled_programs,
    use_all_cores,
)
from jcredit.sweeps.program import (
    Session,
    Stopped,
    advance,
    clear,
    forget,
    in_flight,
    keep_composition,
    train,
    what_is_run,
)
from jcredit.sweeps.record import git_commit
from jcredit.sweeps.variants import Folder, Request, labels_of
from jcredit.training import Run, make_run

log = logging.getLogger("jcredit")


class BatchError(RuntimeError):
    """A batch that could not be finished; the message names it, the cause and what to do."""


class Batch(NamedTuple):
    """Runs of one program.  Plain values, and parts that travel by their names: it can be sent anywhere.

    Attributes:
      group: the runs, in the order of the run axis.
      results_dir: where runs keep what they learn; absolute where it is sent.
      folder: where their rows go; None: they leave none.
      data_dir: folder with prepared image data (None: that of the process which runs it).
      seeds_per_batch: vmap width (None: chosen for the hardware).
      checkpoint_seconds: between checkpoints.
      sweep: id of the sweep that it belongs to.
      numerics: those of the process that started the sweep (``jcredit.numerics.numerics``).
      compile_cache: whether compiled programs are kept on disk.
    """

    group: tuple[Request, ...]
    results_dir: Path
    folder: Folder | None
    data_dir: str | Path | None
    seeds_per_batch: int | None
    checkpoint_seconds: float
    sweep: str
    numerics: dict[str, Any]
    compile_cache: bool

    @property
    def unfinished(self) -> Path:
        """The folder of in-flight checkpoints that its own is in."""
        return snapshots.unfinished(self.results_dir) if self.folder is None else self.folder.unfinished

    @property
    def whole(self) -> tuple[tuple[str, int], int]:
        """What its bar calls its program, and its run-epochs."""
        config = self.group[0].variant.config
        return what_is_run(config), config.epochs * len(self.group)

    @property
    def name(self) -> str:
        """What people call it: experiment, first line, runs, and the name of its folder while it is in flight."""
        where = "snapshots" if self.folder is None else f"{self.folder.experiment}/{self.folder.preset}"
        runs = f"{len(self.group)} run{'s' * (len(self.group) > 1)}"
        return f"{where}: {plan.shown(labels_of(self.group))}, {runs}, {in_flight(self.group, self.unfinished).name}"


def run_batch(batch: Batch, session: Session | None = None, run: Run | None = None) -> list[Row]:
    """Brings a batch to its end, from wherever others left it, and returns its rows.

    Args:
      batch: the batch.
      session: of the process that started the sweep; None in any other.
      run: its runs' functions, where they have been made already.

    Returns:
      Its rows: none where it leaves none, or where all of them are in the folder's file.

    Raises:
      BatchError: this process does not see the results directory of the sweep.
      Stopped: the sweep is to stop; there is a checkpoint.
      ConfigError, DataError, CheckpointError, ResultsError: as in ``run_sweep``.
    """
    elsewhere = session is None
    set_up = _numerics_of(batch) if elsewhere else contextlib.nullcontext()
    session = session or _session_elsewhere(batch)
    with set_up, owners.present(batch.results_dir, batch.name, batch.sweep) as me:
        if elsewhere:  # from here on it hears when it is to stop
            _check_sweep(batch)
        group = _not_kept(batch)
        while group:
            with owners.owned(batch.results_dir, me, owned_by(batch, group), _waiting(session)):
                if len(still := _not_kept(batch)) == len(group):
                    if run is None:  # a process that has not checked this
                        run = make_run(group[0].variant.config, data_dir=batch.data_dir)
                        plan.check_fits(run, len(group), choose_layout(len(group), session.seeds_per_batch))
                    if batch.folder is not None:
                        return _rows(batch, batch.folder, run, session)
                    advance(group, run, session, batch.unfinished)
                    forget(group, batch.unfinished)
                    break
            group = still  # others have kept some of them while this process waited
        else:
            session.bar.done(*batch.whole)
        forget(batch.group, batch.unfinished)  # a checkpoint from before others kept some
        return []


def _not_kept(batch: Batch) -> Sequence[Request]:
    """Those of its runs that are still to be trained, where all that counts is what they keep."""
    return batch.group if batch.folder is not None else snapshots.not_kept(batch.group, batch.results_dir)


def owned_by(batch: Batch, group: Sequence[Request]) -> list[str]:
    """What no two processes may be at, for a group of a batch's runs: its folder in flight, and each kept network."""
    keeping = [r for r in group if r.variant.keep or r.variant.followup is not None]
    kept = dict.fromkeys(owners.kept_name("{}-{}".format(*r.run_key)) for r in keeping)
    return [owners.in_flight_name(batch.results_dir, in_flight(group, batch.unfinished)), *kept]


def _rows(batch: Batch, folder: Folder, run: Run, session: Session) -> list[Row]:
    """The rows of a batch that this process owns: found, or made."""
    group, path = batch.group, in_flight(batch.group, batch.unfinished) / "rows.json"
    found = _stored(path)
    # In this order: whoever adds rows to the folder's file drops them here afterwards.
    if found is None and {r.key for r in group} <= finished(read_rows(folder.rows)):
        found = []
    if found is not None:
        session.bar.done(*batch.whole)
        return found
    rows = train(group, run, session, folder)
    # On disk before they are handed over: neither process nor network may lose them from here on.
    keep_composition(group, batch.unfinished, Layout(**rows[0]["layout"]))
    write_sealed(path, {"rows": rows})
    return rows


def take_what_is_left(folder: Folder) -> bool:
    """Writes the rows of finished batches that nobody has taken, because their sweep was killed; whether any were."""
    paths = sorted(p for p in folder.unfinished.glob("*/rows.json") if owners.IN_FLIGHT.fullmatch(p.parent.name))
    left = {path.parent: rows for path in paths if (rows := _stored(path)) is not None}
    for cache, rows in left.items():
        append_rows(folder.rows, rows, known="leave")
        clear(cache)
    return bool(left)


def _stored(path: Path) -> list[Row] | None:
    try:
        return read_sealed(path)["rows"]
    except FileNotFoundError:
        return None
    except FileError as error:
        set_aside(path, str(error), "these are made again from their checkpoint, or from the start")
        return None


def _waiting(session: Session) -> Callable[[owners.Owner], None]:
    """Says whom a batch waits for, once each, and stops waiting where the sweep is to stop."""
    said: set[str] = set()

    def waiting(other: owners.Owner) -> None:
        if session.stopped():
            raise Stopped(f"stopped while waiting for {other}; the same command goes on from there")
        if other.id not in said:
            said.add(other.id)
            session.bar.set_description(f"waiting for {other}")
            if session.bar.disable:
                log.warning("waiting for %s", other)

    return waiting


def check_portable(batch: Batch) -> None:
    """Raises ConfigError if another process could not find a part or function that a batch is made of by its name."""
    for variant in {id(r.variant): r.variant for r in batch.group}.values():
        for config in (variant.config, *([variant.start.config] if variant.start else [])):
            for _, part in parts_of(config):
                part.factory.__reduce__()
        for function in variant.followup.functions if variant.followup else ():
            function.__reduce__()


# --- in another process than the sweep's own --------------------------------------------------------------------------


@contextlib.contextmanager
def _numerics_of(batch: Batch) -> Iterator[None]:
    """A batch's own numerics, in this thread."""
    with contextlib.ExitStack() as stack:
        for name, value in batch.numerics.items():
            stack.enter_context(getattr(jax, name)(value))
        yield


def _check_sweep(batch: Batch) -> None:
    """Raises BatchError where the results directory does not have the batch's sweep, or not any more."""
    if not owners.exists(batch.results_dir, batch.sweep):
        raise BatchError(
            f"{batch.results_dir} on {owners.this_host()} does not have the sweep that sent this batch; give a results"
            " directory on a file system that all workers share"
        )


_commit = functools.cache(git_commit)
"""Of the code of a worker, which goes on as it began whatever is committed meanwhile."""


def _session_elsewhere(batch: Batch) -> Session:
    """Sets a worker's devices up, and what its batches share.

    Raises:
      BatchError: it does not see the results directory of the sweep, or the sweep is no more.
    """
    _check_sweep(batch)  # before anything is written
    use_all_cores()
    if batch.compile_cache and not compiled_programs_are_kept():  # a folder of the worker's own stays
        keep_compiled_programs()
    stopped = functools.partial(owners.asked_to_stop, batch.results_dir, batch.sweep)
    bar = Bar({batch.whole[0]: Work(batch.whole[1], 1.0)}, disable=True)
    return Session(batch.results_dir, batch.seeds_per_batch, _commit(), bar, stopped, batch.checkpoint_seconds)
