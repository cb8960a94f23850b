"""Compiled programs on disk: whether the entries of JAX's persistent cache, which run as code, are what was written.

JAX writes an entry in place, so that a killed process leaves a torn one, and tells a changed one by the checksum of its
compression alone, which zstandard, where it is installed, is not asked for.  Here the SHA-256 of an entry is noted when
it is first found whole; one that no longer has it, or was torn from the start, is set aside and compiled again.
"""

from __future__ import annotations

import time
import zlib
from pathlib import Path

from jcredit.files import FileError, digest_of, read_sealed, set_aside, write_sealed

NOTED = "digests.json"
SETTLED_SECONDS = 60.0
"""Entries younger than this may still be under way in another process, and are left to JAX's own check."""
_ZSTANDARD = bytes.fromhex("28b52ffd")


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
        if path.name in noted:
            digest = digest_of(path)
            fault = "" if digest == noted[path.name] else "it does not have its digest"
        elif time.time() - path.stat().st_mtime < SETTLED_SECONDS:
            continue
        else:
            digest, fault = digest_of(path), _torn(path.read_bytes())
        if fault:
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


def _torn(data: bytes) -> str:
    """What is wrong with a new entry; empty if nothing is.  A torn one of zstandard's JAX finds itself."""
    try:
        return "" if data.startswith(_ZSTANDARD) or zlib.decompress(data) else "it is empty"
    except zlib.error as error:
        return f"it is torn ({error})"
