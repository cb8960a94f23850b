"""Who is at work in a results directory: whatever is being trained there has one living owner.

On disk: ``<results-dir>/cache/owners/<id>.owner``, one file for each batch of runs under way and for each sweep, which
says who that is and what it owns.  Its process keeps it locked (``flock``); the operating system lets go of the lock
however the process ends, so that what a killed one owned is free at once.  On a network file system that takes locks
between machines: NFS 4, or NFS 3 with its lock daemon; Lustre mounted with ``flock``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from jcredit.files import locked, remove_leftovers

IN_FLIGHT = re.compile("[0-9a-f]{12}")
"""How folders of in-flight checkpoints are called; others beside them are not ours to remove."""
POLL_SECONDS = 0.5
_ours: set[str] = set()
"""Ids of this process's own owners; there are file systems whose locks do not bind the process that holds them."""
_one_at_a_time = threading.Lock()


class Owner(NamedTuple):
    """A living batch or sweep.

    Attributes:
      id: of its file.
      host: its machine.
      pid: its process there.
      since: when it began, ISO 8601 with the offset of its clock.
      what: for people.
      sweep: id of the sweep that it belongs to; empty for a sweep.
      names: what it owns, such as in-flight checkpoints and kept networks; no two living owners share one.
    """

    id: str
    host: str
    pid: int
    since: str
    what: str
    sweep: str = ""
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.what} on {self.host}, process {self.pid}, since {self.since}"


def registry(results_dir: Path) -> Path:
    """The folder of the owners' files."""
    return Path(results_dir) / "cache" / "owners"


@contextlib.contextmanager
def present(results_dir: Path, what: str, sweep: str = "") -> Iterator[Owner]:
    """An owner of nothing yet, for as long as the block runs.

    Args:
      results_dir: where it works.
      what: what it is, for people.
      sweep: id of the sweep that it belongs to.
    """
    me = Owner(uuid.uuid4().hex[:12], this_host(), os.getpid(), _now(), what, sweep)
    path, file = _path(results_dir, me.id), None
    try:
        with _registry_locked(results_dir):
            file = path.open("w", encoding="utf-8")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _ours.add(me.id)
            _write(path, me)
        yield me
    finally:
        with _registry_locked(results_dir):
            path.unlink(missing_ok=True)
            if file is not None:
                file.close()
            _ours.discard(me.id)
            with contextlib.suppress(OSError):  # the next one does it
                _forget_stops(results_dir)


@contextlib.contextmanager
def owned(
    results_dir: Path, me: Owner, names: Collection[str], waiting: Callable[[Owner], None] = lambda other: None
) -> Iterator[None]:
    """Owns all of some names while the block runs; waits until no other living owner has any of them.

    Args:
      results_dir: where the owners work.
      me: an owner that is present and owns nothing.
      names: what to own.
      waiting: called with the owner that is waited for, again and again; may raise, to wait no longer.
    """
    while (other := _claim(results_dir, me, names)) is not None:
        waiting(other)
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        with _registry_locked(results_dir):
            _write(_path(results_dir, me.id), me)


def exists(results_dir: Path, id: str) -> bool:
    """Whether an owner's file is there; makes nothing."""
    return _path(results_dir, id).exists()


def this_host() -> str:
    """The name of this machine."""
    return socket.gethostname()


def living(results_dir: Path) -> list[Owner]:
    """All living owners; the files of dead ones are removed."""
    with _registry_locked(results_dir):
        return _living(results_dir)


def are_free(results_dir: Path, names: Collection[str]) -> bool:
    """Whether no living owner has any of some names, as of now."""
    return all(set(names).isdisjoint(owner.names) for owner in living(results_dir))


# --- asking a sweep's batches to stop, wherever they run --------------------------------------------------------------


def ask_to_stop(results_dir: Path, sweep: str) -> None:
    """Asks all batches of a sweep to stop after their epoch; forgotten with the sweep and the last of them."""
    _path(results_dir, sweep).with_suffix(".stop").touch()


def asked_to_stop(results_dir: Path, sweep: str) -> bool:
    """Whether a sweep has asked its batches to stop."""
    return _path(results_dir, sweep).with_suffix(".stop").exists()


# --- what killed processes left ---------------------------------------------------------------------------------------


def remove_remains(
    results_dir: Path, unfinished: Collection[Path], is_over: Callable[[Path], bool] = lambda path: False
) -> None:
    """Removes what killed processes left half written, and nothing that a living one is at.

    That is: hidden files of interrupted writes; drafts of kept networks; folders of in-flight checkpoints in which no
    checkpoint was finished, or that no sweep can go on from.  Those that one can go on from, and rows, stay.

    Args:
      results_dir: where they worked.
      unfinished: folders with a folder for each in-flight checkpoint.
      is_over: whether nobody can go on from the checkpoint in such a folder.
    """
    kept = Path(results_dir) / "cache" / "snapshots"
    for directory in (*unfinished, *(path.parent for path in unfinished)):
        remove_leftovers(directory)
    with _registry_locked(results_dir):
        taken = {name for owner in _living(results_dir) for name in owner.names}
        for draft in kept.glob(".*.tmp"):
            run = draft.name[1:].rpartition("-")[0]
            if kept_name(run) not in taken:
                shutil.rmtree(draft, ignore_errors=True)
        for path in (path for folder in unfinished for path in folder.glob("*/")):
            if not IN_FLIGHT.fullmatch(path.name) or in_flight_name(results_dir, path) in taken:
                continue
            remove_leftovers(path)
            if (path / "rows.json").exists():
                continue
            if is_over(path) or not any(path.glob("checkpoint/*/meta.json")):
                shutil.rmtree(path / "checkpoint", ignore_errors=True)  # first: without program.json nobody knows it
                shutil.rmtree(path, ignore_errors=True)


def kept_name(run: str) -> str:
    """What is owned by whoever trains a run that keeps what it learns; ``run`` is <run hash>-<seed>."""
    return f"kept {run}"


def in_flight_name(results_dir: Path, path: Path) -> str:
    """What is owned by whoever trains the runs of an in-flight checkpoint's folder."""
    return f"in flight {Path(path).resolve().relative_to(Path(results_dir).resolve())}"


# --- files ------------------------------------------------------------------------------------------------------------


def _claim(results_dir: Path, me: Owner, names: Collection[str]) -> Owner | None:
    """Takes all names, or returns a living owner of one of them."""
    with _registry_locked(results_dir):
        for other in _living(results_dir):
            if other.id != me.id and not set(names).isdisjoint(other.names):
                return other
        _write(_path(results_dir, me.id), me._replace(names=tuple(names)))
        return None


@contextlib.contextmanager
def _registry_locked(results_dir: Path) -> Iterator[None]:
    registry(results_dir).mkdir(parents=True, exist_ok=True)
    with _one_at_a_time, locked(registry(results_dir)):
        yield


def _living(results_dir: Path) -> list[Owner]:
    found = []
    for path in sorted(registry(results_dir).glob("*.owner")):
        if path.stem not in _ours and _is_free(path):
            path.unlink(missing_ok=True)
        else:
            with contextlib.suppress(ValueError):  # not yet written, or torn by a full disk: it owns nothing
                stored = json.loads(path.read_text(encoding="utf-8"))
                found.append(Owner(**{**stored, "names": tuple(stored["names"])}))
    return found


def _is_free(path: Path) -> bool:
    """Whether nobody holds the lock of a file, or it is gone."""
    try:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    return True


def _path(results_dir: Path, id: str) -> Path:
    return registry(results_dir) / f"{id}.owner"


def _write(path: Path, owner: Owner) -> None:
    """In place, since the file carries the lock; whoever reads it holds the registry's."""
    path.write_text(json.dumps(owner._asdict()), encoding="utf-8")


def _forget_stops(results_dir: Path) -> None:
    """Forgets that sweeps asked to stop which are gone; a batch outlives its sweep where that is interrupted twice."""
    living = _living(results_dir)
    heard = {owner.sweep for owner in living} | {owner.id for owner in living}
    for path in registry(results_dir).glob("*.stop"):
        if path.stem not in heard:
            path.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
