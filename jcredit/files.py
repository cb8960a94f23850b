"""Files that a kill cannot tear and whose damage shows; and where jcredit keeps what it can make again."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

SEAL = "sha256"
"""The name under which a sealed value carries its digest."""
OF_FOLLOWUPS = "dl_"
"""What names of followups' numbers in rows begin with: losses after local steps, of a number or size, not epochs."""
DAMAGED = ".damaged-"
"""What the names of files and folders that were set aside contain."""
log = logging.getLogger("jcredit")


class FileError(ValueError):
    """What has no form on disk, is not what was written, or cannot be a place for files; one line that says the fix."""


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
    """Tries to make what is missing of a folder and a file in it, under a name of its own, and leaves nothing behind.

    Raises:
      FileError: that cannot be done; a file is in the way, a name is too long, a place takes no files.
    """
    try:
        there = next(folder for folder in (path, *path.parents) if _is_there(folder))
        with tempfile.TemporaryDirectory(dir=there, prefix=".", suffix=".tmp") as trial:
            folder = Path(trial, path.relative_to(there))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "file").touch()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise FileError(f"{path} cannot hold results ({why}); name another folder") from error


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


def own_path(given: str | Path) -> Path:
    """A path as its user means it: ``~`` is the home folder.

    Raises:
      FileError: the home folder of somebody who is not known.
    """
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise FileError(f"{str(given)!r}: {one_line(error)}; write the folder out") from None


# --- errors on one line -----------------------------------------------------------------------------------------------


def cause(error: BaseException) -> str:
    """Type and first line of an error, to stand inside a line of ours; of a long one the middle is left out."""
    line = next(iter(str(error).strip().splitlines()), "")
    short = line if len(line) <= 200 else f"{line[:80]} ... {line[-115:]}"
    return f"{type(error).__name__}: {short}" if short else type(error).__name__


def one_line(error: BaseException) -> str:
    """All that an error says, on one line."""
    return " ".join(str(error).split())


# --- damage that shows ------------------------------------------------------------------------------------------------


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the SHA-256 of its own content, in sorted keys, under ``SEAL``."""
    content = {name: inner for name, inner in value.items() if name != SEAL}
    return {**content, SEAL: hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}


def unsealed(value: Any) -> dict[str, Any]:
    """What was sealed, without its seal.

    Raises:
      FileError: no object, no seal, or another content than was sealed.
    """
    if not isinstance(value, dict) or SEAL not in value:
        raise FileError("it has no digest")
    if sealed(value)[SEAL] != value[SEAL]:
        raise FileError("its content does not have its digest")
    return {name: inner for name, inner in value.items() if name != SEAL}


def write_sealed(path: str | Path, value: Mapping[str, Any]) -> None:
    """Writes JSON values with their digest, atomically; unlike in rows, nan is kept."""
    write_text(path, json.dumps(sealed(value)))


def read_sealed(path: str | Path) -> dict[str, Any]:
    """What ``write_sealed`` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      FileError: it is no file, no JSON, or not what was written.
      OSError: it cannot be read now (too many open files, a stale handle of a network), which says nothing of what is
        in it.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (IsADirectoryError, NotADirectoryError, ValueError, RecursionError) as error:
        raise FileError(f"not readable as JSON ({one_line(error)[:100]})") from error
    return unsealed(value)


def digest_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(path: str | Path, fault: str, instead: str) -> None:
    """Renames a damaged file or folder to ``<name>.damaged-<time>``, where nothing looks, and says so in one line.

    Args:
      path: what is damaged; nothing happens to it if another process was faster.
      fault: what is wrong with it.
      instead: what is done without it.
    """
    path = Path(path)
    aside = path.with_name(f"{path.name}{DAMAGED}{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:4]}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        log.warning("%s: %s; set aside as %s, %s", path, " ".join(fault.split()), aside.name, instead)
