"""What a sweep under way tells others, for ``python -m jcredit watch``: small files that may be gone at any time.

On disk, outside git: ``<results-dir>/cache/status/sweep-<id>.json`` says how much a sweep has to do, ``<name>.json``
beside it how far a program of it has come.  They are written whole, at most as often as costs 1% of the time, and go
with their sweep, those of a killed one with the next on its machine; nobody but ``watch`` reads them, and a sweep runs
on where they cannot be written.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jcredit.files import plain, remove_leftovers, write_text
from jcredit.sweeps.forecast import Forecast
from jcredit.sweeps.record import Progress
from jcredit.sweeps.variants import Request, labels_of

STARTS = "networks to start from"
"""Where the runs are of programs that leave no rows."""
SHARE = 0.01
"""Of the time, at most, that is spent on writing."""


def folder(results_dir: Path) -> Path:
    """Where the files are."""
    return Path(results_dir) / "cache" / "status"


class _Sparing:
    """Writes a file, but no more often than costs ``SHARE`` of the time."""

    def __init__(self, path: Path):
        self._path, self._again = path, 0.0

    def write(self, value: Callable[[], dict[str, Any]], *, at_once: bool = False) -> None:
        """Writes what ``value`` gives, if it is time again (or ``at_once``)."""
        start = time.monotonic()
        if start >= self._again or at_once:
            _write(self._path, value())
            now = time.monotonic()
            self._again = now + (now - start) / SHARE


@contextlib.contextmanager
def announced(results_dir: Path, groups: Sequence[Sequence[Request]]) -> Iterator[Callable[[Forecast], None]]:
    """Says what a sweep has to do while the block runs; afterwards its files are gone.

    Args:
      results_dir: where results go.
      groups: the runs of its programs.

    Yields:
      A function that says how much is left.
    """
    began, runs = time.time(), [request for group in groups for request in group]
    labels = {label for group in groups for label in labels_of(group)}
    path = folder(results_dir) / f"sweep-{uuid.uuid4().hex[:8]}.json"
    total = sum(request.variant.config.epochs for request in runs)
    file, about = _Sparing(path), {"runs": len(runs), "run_epochs": total, "began": began, **_process()}

    def tell(forecast: Forecast) -> None:
        state = {"done": total - forecast.run_epochs_left(), "left": forecast.left(), "updated": time.time()}
        file.write(lambda: {**about, **state})

    _forget_the_dead(results_dir)
    if runs:
        remove_leftovers(folder(results_dir))
        file.write(lambda: {**about, "done": 0, "left": None, "updated": began}, at_once=True)
    try:
        yield tell
    finally:
        with contextlib.suppress(OSError):
            for other in folder(results_dir).glob("*.json"):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    if other == path or _is_ours(json.loads(other.read_text(encoding="utf-8")), began, labels):
                        other.unlink(missing_ok=True)
            folder(results_dir).rmdir()  # where others have files, it stays


def alive(process: dict[str, Any]) -> bool:
    """Whether the process of a status may still be there: on another machine nobody knows."""
    if process["host"] != socket.gethostname():
        return True
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _forget_the_dead(results_dir: Path) -> None:
    """Removes what killed processes of this machine left: the next sweep goes on, or its user has moved on."""
    for name, value in objects(results_dir):
        with contextlib.suppress(OSError, KeyError, TypeError, OverflowError):
            if not alive(value):
                (folder(results_dir) / f"{name}.json").unlink(missing_ok=True)


def _is_ours(status: dict[str, Any], began: float, labels: set[str]) -> bool:
    """Whether a file is that of a program of the sweep: of this process, or done in another one."""
    if "epochs" not in status or status["began"] < began or not labels.issuperset(status["labels"]):
        return False
    return status["pid"] == os.getpid() or status["epoch"] == status["epochs"]


def objects(results_dir: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, what it says) of each file that can be read now."""
    for path in sorted(folder(results_dir).glob("*.json")):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # replaced or gone
            continue
        if isinstance(value, dict):
            yield path.stem, value


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
        self._file, self._epochs = _Sparing(folder(results_dir) / f"{name}.json"), group[0].variant.config.epochs
        home = Path(unfinished).resolve().relative_to(Path(results_dir).resolve())
        self._about = {
            "where": home.parent.as_posix() if home.name == "cache" else STARTS,
            "labels": labels_of(group), "runs": len(group), "epochs": self._epochs, "began": time.time(), **_process(),
        }  # fmt: skip

    def write(self, progress: Progress) -> None:
        """Says it now, if it is time again or the program is done."""
        state = {"epoch": progress.epoch, "seconds": progress.run_s, "updated": time.time()}
        self._file.write(
            lambda: {**self._about, **state, "curves": mean_curves(progress)},
            at_once=progress.epoch == self._epochs,
        )


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
