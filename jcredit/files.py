"""Files that a kill cannot tear: written whole or not at all; and where jcredit keeps what it can make again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np


class FileError(ValueError):
    """A value that has no form on disk, or a place that cannot hold files; the message names it and the fix."""


def cache_directory() -> Path:
    """Decoded images and compiled programs: JCREDIT_CACHE, else XDG_CACHE_HOME/jcredit, else ~/.cache/jcredit."""
    if chosen := os.environ.get("JCREDIT_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "jcredit"


def private_directory(path: Path) -> Path:
    """The folder, made if need be, that only its owner may enter (0700): what lies there is later run or trusted.

    Raises:
      FileError: it belongs to somebody else, others may write to it, or it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.stat()
        if found.st_uid != os.geteuid():
            raise FileError(f"cache {path} belongs to user {found.st_uid}, not to you; set JCREDIT_CACHE to a folder of"
                            " your own")  # fmt: skip
        if found.st_mode & 0o022:
            raise FileError(
                f"cache {path} can be written by others (mode {found.st_mode & 0o777:o}), who could have left anything"
                " there; delete it, or set JCREDIT_CACHE to another"
            )
        if found.st_mode & 0o077:
            path.chmod(0o700)
        next(path.iterdir(), None)
    except OSError as error:
        raise FileError(f"cache {path} cannot be used ({error.strerror}); set JCREDIT_CACHE to a folder") from error
    return path


def check_writable(path: Path) -> None:
    """Tries to make a folder and a file in it, and leaves nothing behind.

    Raises:
      FileError: that cannot be done; a file is in the way, a name is too long, a place takes no files.
    """
    made: list[Path] = []
    try:
        missing = [folder for folder in (path, *path.parents) if not _is_there(folder)]
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another process was faster
                folder.mkdir()
                made.append(folder)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".", suffix=".tmp"):
            pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise FileError(f"{path} cannot hold results ({why}); name another folder") from error
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # another process has put something there
                folder.rmdir()


def _is_there(folder: Path) -> bool:
    """Whether there is something of this name; unlike ``Path.exists``, an error where that cannot be told."""
    try:
        folder.stat()
    except FileNotFoundError:
        return False
    return True


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


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file atomically: a reader, or a kill at any instant, meets the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
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
