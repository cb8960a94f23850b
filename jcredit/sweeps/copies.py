"""Copies of the data that a task reads from outside: no key tells them, so what was made on another one is told of."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from jcredit.parts import Part
from jcredit.report.rows import Row
from jcredit.sweeps import snapshots
from jcredit.sweeps.variants import Request
from jcredit.training import Run

FIX = "another results_dir, or --fresh, makes runs on this copy"
log = logging.getLogger("jcredit")


def warn_of_rows(
    wanted: Iterable[Request], rows: Iterable[Row], runs: Iterable[Run], data_dir: str | Path | None
) -> None:
    """Warns of wanted rows that are there already, and were made on another copy than there is here.

    The copy here is looked at where other runs read it, or where the user names its folder: nothing is downloaded for
    the sake of rows that are there.

    Args:
      wanted: the runs whose rows are wanted.
      rows: those that are there.
      runs: one of each program that is still to be run.
      data_dir: folder with prepared image data.
    """
    made_on = {(row["config_hash"], row["seed"]): row["data"] for row in rows if row.get("data")}
    here = {run.config.task: run.origin for run in runs}
    read = {task.name for task in here}
    others: dict[tuple[str, str, str], dict[str, None]] = {}
    for request in wanted:
        task = request.variant.config.task
        if (data := made_on.get(request.key)) is None:
            continue
        if task not in here:
            here[task] = _origin(task, data_dir) if task.name in read or _has_files(data_dir) else ""
        if here[task] not in ("", data):
            others.setdefault((task.name, data, here[task]), {})[request.variant.label] = None
    for (name, data, own), labels in others.items():
        _warn(f"rows of {', '.join(labels)} are there already, made", name, data, own)


def warn_of_kept(group: Sequence[Request], run: Run, results_dir: Path) -> None:
    """Warns of networks that runs take from where they are kept, and that were trained on another copy.

    Args:
      group: the runs.
      run: their functions.
      results_dir: where networks are kept.
    """
    if not run.origin:
        return
    taken = (progress.data for request in group for progress in snapshots.taken(request, results_dir))
    for data in dict.fromkeys(data for data in taken if data not in (None, run.origin)):
        _warn(f"networks that {group[0].variant.label} takes were trained", run.config.task.name, data, run.origin)


def _warn(what: str, name: str, data: str, own: str) -> None:
    log.warning("%s on another copy of %s, %s, than is here, %s; %s", what, name, data, own, FIX)


def _origin(task: Part, data_dir: str | Path | None) -> str:
    """The origin of a task's data here; "" where they cannot be read."""
    with contextlib.suppress(ValueError):  # DataError, ConfigError
        return task.build(data_dir).origin
    return ""


def _has_files(folder: str | Path | None) -> bool:
    """Whether a folder was named that holds anything: into an empty one images are downloaded."""
    with contextlib.suppress(OSError):
        return folder is not None and bool(os.listdir(Path(folder).expanduser()))
    return False
