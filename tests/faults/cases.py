"""Signals, disks, folders, second writers and killed workers: what fails says so in one line, and nothing is lost."""

from __future__ import annotations

import errno
import functools
import os
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import Outcome, Undisturbed, Workshop
from kills import CLUSTER_KILLS, worker_killed

SCRIPT = "tests/faults/sweep.py"
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


def interrupted(shop: Workshop, reference: Undisturbed, results: Path, rng: np.random.Generator, number: int) -> None:
    """A signal at a seeded epoch: its status, one line, and the command it names goes on."""
    stopped = shop.command(results, reference.lines, at="epoch", k=int(rng.integers(1, 3)), signal=number)
    said = stopped.text.strip().splitlines()[-1]
    assert stopped.status == STATUS[signal.Signals(number)] and "Traceback" not in stopped.text, stopped.text
    if SCRIPT in said:
        again = shop.call(shlex.split(said.partition(SCRIPT)[2]), results)
    else:
        assert "the same command goes on" in said, said
        again = shop.command(results, reference.lines)
    assert again.status == 0, again.text
    reference.check(results)


def failed_clearly(outcome: Outcome) -> None:
    """The command ended by itself, in one line that says why."""
    errors = [line for line in outcome.text.splitlines() if "error:" in line]
    good = outcome.status in (1, 2) and len(errors) == 1 and "Traceback" not in outcome.text
    assert good, f"status {outcome.status}: {outcome.text}"


def full_disk(shop: Workshop, reference: Undisturbed, results: Path, rng: np.random.Generator, number: int) -> None:
    """No space, or no quota, from a seeded write on; and then there is again."""
    k = int(rng.integers(1, reference.outcome.counts["any file"] // 2))
    full = shop.command(results, reference.lines, at="any file", k=k, errno=number)
    failed_clearly(full)
    assert os.strerror(number) in full.text, full.text
    assert shop.command(results, reference.lines).status == 0
    reference.check(results)


def file_size_limit(shop: Workshop, reference: Undisturbed, results: Path, rng: np.random.Generator) -> None:
    """No file may be larger than some bytes, too few for rows, which orbax's threads meet as well."""
    failed_clearly(shop.command(results, reference.lines, file_size=int(rng.integers(1000, 3000))))
    assert shop.command(results, reference.lines).status == 0
    reference.check(results)


def full_file_system(shop: Workshop, reference: Undisturbed, results: Path, rng: np.random.Generator) -> None:
    """A file system of some KiB, mounted for this; for root alone.  Two checkpoints at a time take about 200 KiB."""
    results.mkdir()
    size = f"size={int(rng.integers(16, 44)) * 4}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(results)], check=True)
    try:
        failed_clearly(shop.command(results, reference.lines))
        subprocess.run(["mount", "-o", "remount,size=64m", str(results)], check=True)
        assert shop.command(results, reference.lines).status == 0
        reference.check(results)
    finally:
        subprocess.run(["umount", str(results)], check=True)


def unwritable(shop: Workshop, reference: Undisturbed, results: Path, rng: np.random.Generator) -> None:
    """A results directory below a file, which nobody can make, root included."""
    results.write_text("a file")
    failed_clearly(shop.command(results / "below", reference.lines))
    results.unlink()
    assert shop.command(results, reference.lines).status == 0
    reference.check(results)


def vanished(shop: Workshop, reference: Undisturbed, results: Path, rng: np.random.Generator) -> None:
    """The results directory is gone at a seeded epoch: it ends by itself, and the same command makes all of it."""
    k = int(rng.integers(1, reference.outcome.counts["epoch"] + 1))
    outcome = shop.command(results, reference.lines, at="epoch", k=k, vanish=str(results))
    assert outcome.status in (0, 1, 2) and "Traceback" not in outcome.text, outcome.text
    assert shop.command(results, reference.lines).status == 0
    reference.check(results)


def two_writers(shop: Workshop, reference: Undisturbed, results: Path, rng: np.random.Generator) -> None:
    """The same command twice at once: both end by themselves, and no row is there twice or torn."""
    both = shop.command(results, reference.lines, writers=2)
    assert set(both.statuses) == {0} and "Traceback" not in both.text, both.text
    assert shop.command(results, reference.lines).status == 0
    reference.check(results)


class Case(NamedTuple):
    """What happens, and the lines of the sweep that it happens to."""

    act: Callable[..., None]
    lines: tuple[str, ...] = ("dfa",)


FIT = ("fit", "fit measured")
CASES = {
    "SIGINT": Case(functools.partial(interrupted, number=signal.SIGINT)),
    "SIGTERM": Case(functools.partial(interrupted, number=signal.SIGTERM)),
    "no space from a write on": Case(functools.partial(full_disk, number=errno.ENOSPC)),
    "no quota from a write on": Case(functools.partial(full_disk, number=errno.EDQUOT)),
    "file size limit": Case(file_size_limit),
    "full file system": Case(full_file_system),
    "unwritable folder": Case(unwritable),
    "vanished folder": Case(vanished),
    "two writers": Case(two_writers),
} | {
    f"a cluster's worker killed at: {kind}": Case(functools.partial(worker_killed, kind=kind), lines)
    for kind in CLUSTER_KILLS for lines in [FIT if kind == "kept network" else ("dfa",)]
}  # fmt: skip


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a file system."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True)
    if not mounted.returncode:
        subprocess.run(["umount", str(folder)], check=True)
    return not mounted.returncode
