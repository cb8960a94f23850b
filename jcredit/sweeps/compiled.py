"""Compiled programs on disk: whether the entries of JAX's persistent cache, which run as code, are what was written.

The cache is kept to a size here: what nobody has used for longest goes.  JAX's own limit,
``jax_compilation_cache_max_size``, is off unless set, and needs ``filelock``, which is no dependency of this package.

JAX writes an entry in place, so that a killed process leaves a torn one, and tells a changed one by the checksum of its
compression alone, which zstandard, where it is installed, is not asked for.  Here the SHA-256 of an entry is noted when
it is first found whole; one that no longer has it, or was torn from the start, is set aside and compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import zlib
from pathlib import Path

from jcredit.files import FileError, read_sealed, set_aside, write_sealed

NOTED = "digests.json"
LIMIT = 512 * 2**20
"""Bytes that entries may take together; every start reads them all."""
SETTLED_SECONDS = 60.0
"""Entries younger than this may still be under way in another process, and are left to JAX's own check."""
_ZSTANDARD = bytes.fromhex("28b52ffd")


def trim(directory: Path, limit: int = LIMIT) -> None:
    """Removes the entries that were read or written longest ago, until the others fit.

    Args:
      directory: JAX's persistent cache; nothing happens if it is missing.
      limit: bytes.

    Raises:
      OSError: it cannot be read or written.
    """
    entries = []
    for path in directory.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            entries.append((path.stat(), path))
    entries.sort(key=lambda entry: max(entry[0].st_atime, entry[0].st_mtime), reverse=True)
    total = 0
    for stat, path in entries:
        total += stat.st_size
        if total > limit:
            path.unlink(missing_ok=True)


def set_damaged_aside(directory: Path) -> None:
    """Sets aside every entry that is torn or not what it was, and notes the digests of new ones.

    Args:
      directory: JAX's persistent cache; nothing happens if it is missing.

    Raises:
      OSError: it cannot be read or written.
    """
    if not directory.is_dir():
        return
    noted, found = _noted(directory), {}
    for path in sorted(directory.glob("*-cache")):
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            stat = path.stat()
            if path.name not in noted and time.time() - stat.st_mtime < SETTLED_SECONDS:
                continue
            data = path.read_bytes()
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a check is not a use
            digest = hashlib.sha256(data).hexdigest()
            if fault := _changed(digest, noted[path.name]) if path.name in noted else _torn(data):
                set_aside(path, fault, "the program is compiled again")
            else:
                found[path.name] = digest
    if found != noted:
        write_sealed(directory / NOTED, found)


def _noted(directory: Path) -> dict[str, str]:
    try:
        return read_sealed(directory / NOTED)
    except FileNotFoundError:
        return {}
    except FileError as error:
        set_aside(directory / NOTED, str(error), "digests are noted anew")
        return {}


def _changed(digest: str, noted: str) -> str:
    """What is wrong with an entry that was whole once; empty if nothing is."""
    return "" if digest == noted else "it does not have its digest"


def _torn(data: bytes) -> str:
    """What is wrong with a new entry; empty if nothing is.  A torn one of zstandard's JAX finds itself."""
    try:
        return "" if data.startswith(_ZSTANDARD) or zlib.decompress(data) else "it is empty"
    except zlib.error as error:
        return f"it is torn ({error})"
