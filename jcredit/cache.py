"""Where jcredit keeps what it can make again: decoded images and compiled programs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """JCREDIT_CACHE, else XDG_CACHE_HOME/jcredit, else ~/.cache/jcredit; not made here."""
    if chosen := os.environ.get("JCREDIT_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "jcredit"
