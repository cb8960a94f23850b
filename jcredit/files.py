"""Files that a kill cannot tear: written whole or not at all; and where jcredit keeps what it can make again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


class FileError(ValueError):
    """A value that has no form on disk; the message names it and the fix."""


def cache_directory() -> Path:
    """Decoded images and compiled programs: JCREDIT_CACHE, else XDG_CACHE_HOME/jcredit, else ~/.cache/jcredit."""
    if chosen := os.environ.get("JCREDIT_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "jcredit"


def plain(value: Any) -> Any:
    """Turns numpy and jax scalars and arrays, tuples, mappings and paths into plain strict-JSON values.

    Numbers that are not finite become None, which is how a row says "missing".

    Raises:
      FileError: a value of a type that has no JSON form.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "dtype") and hasattr(value, "__array__"):  # numpy's and jax's; jax is not imported for it
        array = np.asarray(value)
        return plain(array.tolist() if array.dtype.kind in "biufU" else array.astype(np.float64).tolist())
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    raise FileError(f"cannot store {value!r} of type {type(value).__name__}; give numbers, text, lists or dicts")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` at the end: a reader, or a kill at any instant, meets the old or the new.

    Until then it is hidden beside it, and locked, by which ``remove_leftovers`` tells a living writer from a dead one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file, temporary = _own_temporary(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)  # the rename itself is durable only once its directory is
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _own_temporary(path: Path) -> tuple[BinaryIO, Path]:
    """A new hidden file beside ``path`` that this process has locked, and its path."""
    while True:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        file = temporary.open("xb")
        # Where a file system has no locks, nobody takes it for a leftover either.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_nlink:
            return file, temporary
        file.close()  # somebody cleared it away before it was locked


def remove_leftovers(directory: str | Path) -> None:
    """Removes the hidden files of writers that were killed in a directory, and never one of a writer that lives."""
    for path in Path(directory).glob(".*.tmp"):
        with contextlib.suppress(OSError), path.open("r+b") as file:  # a directory, or locked by its writer
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file atomically: a reader, or a kill at any instant, meets the old content or the new, never a part."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Writes a value as indented strict JSON, atomically; numbers that are not finite become null."""
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Holds the lock file beside ``path``: the file itself is replaced by each write, so it cannot carry the lock."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
