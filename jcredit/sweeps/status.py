"""What a sweep under way tells others, for ``python -m jcredit watch``: small files that may be gone at any time.

On disk, outside git: ``<results-dir>/cache/status/sweep-<id>.json`` says how much a sweep has to do, ``<name>.json``
beside it how far a program of it has come.  They are written whole, at most as often as costs 1% of the time, and go
with their sweep; nobody but ``watch`` reads them, and a sweep runs on where they cannot be written.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jcredit.files import plain, remove_leftovers, write_text
from jcredit.sweeps.record import Progress
from jcredit.sweeps.variants import Request, labels_of

SHARE = 0.01
"""Of the time, at most, that is spent on writing."""


def folder(results_dir: Path) -> Path:
    """Where the files are."""
    return Path(results_dir) / "cache" / "status"


@contextlib.contextmanager
def announced(results_dir: Path, groups: Sequence[Sequence[Request]]) -> Iterator[None]:
    """Says what a sweep has to do while the block runs; afterwards its files are gone.

    Args:
      results_dir: where results go.
      groups: the runs of its programs.
    """
    began, runs = time.time(), [request for group in groups for request in group]
    path = folder(results_dir) / f"sweep-{uuid.uuid4().hex[:8]}.json"
    if runs:
        remove_leftovers(folder(results_dir))
        total = sum(request.variant.config.epochs for request in runs)
        _write(path, {"runs": len(runs), "run_epochs": total, "began": began, **_process()})
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for other in folder(results_dir).glob("*.json"):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    if other == path or _is_ours(json.loads(other.read_text(encoding="utf-8")), began):
                        other.unlink(missing_ok=True)
            folder(results_dir).rmdir()  # where others have files, it stays


def _is_ours(status: dict[str, Any], began: float) -> bool:
    """Whether a file is that of a program of the sweep: of this process, or done in another one."""
    if "epochs" not in status or status["began"] < began:
        return False
    return status["pid"] == os.getpid() or status["epoch"] == status["epochs"]


class Reporter:
    """Says how far a program has come: once per epoch, unless that would cost more than ``SHARE`` of the time."""

    def __init__(self, results_dir: Path, unfinished: Path, name: str, group: Sequence[Request]):
        """Nothing is written yet.

        Args:
          results_dir: where results go.
          unfinished: the folder of checkpoints of programs like this one, which says where its rows go.
          name: of its checkpoint there.
          group: its runs.
        """
        self._path, self._again = folder(results_dir) / f"{name}.json", 0.0
        self._epochs, self._first = group[0].variant.config.epochs, None
        home = Path(unfinished).resolve().relative_to(Path(results_dir).resolve())
        self._about = {
            "where": home.parent.as_posix() if home.name == "cache" else "networks to start from",
            "labels": labels_of(group), "runs": len(group), "epochs": self._epochs, "began": time.time(), **_process(),
        }  # fmt: skip

    def write(self, progress: Progress) -> None:
        """Says it now, if it is time again or the program is done."""
        start = time.monotonic()
        self._first = progress.epoch if self._first is None else self._first
        if start < self._again and progress.epoch < self._epochs:
            return
        state = {"epoch": progress.epoch, "first_epoch": self._first, "updated": time.time()}
        _write(self._path, {**self._about, **state, "curves": mean_curves(progress)})
        now = time.monotonic()
        self._again = now + (now - start) / SHARE


def mean_curves(progress: Progress) -> dict[str, list[float | None]]:
    """{metric: its mean over the runs after each epoch}; None where it was not taken or is nowhere finite."""
    names = dict.fromkeys(name for metrics in progress.history for name in metrics)
    return {name: [_mean(metrics.get(name, [])) for metrics in progress.history] for name in names}


def _mean(values: Sequence[Any]) -> float | None:
    finite = [v for v in values if isinstance(v, int | float) and math.isfinite(v)]
    return sum(finite) / len(finite) if finite else None


def _process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _write(path: Path, value: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        write_text(path, json.dumps(plain(value)))
