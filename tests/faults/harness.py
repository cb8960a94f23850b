"""What the fault suite and its tally share: the command in a process to which things happen, and what it leaves."""

from __future__ import annotations

import errno
import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jcredit.sweeps.compiled import set_damaged_aside

HERE = Path(__file__).parent
CHAINS = (("dfa",), ("bridge",), ("fit", "fit measured"), ("bp", "fit"))
"""Lines of the sweep that are killed together: without an estimator, with one, with snapshots and followups."""
KILLS = ("compile", "epoch", "checkpoint", "kept network", "row", "rename", "fsync", "any file", "clock")
LONGEST_CHAIN = 12
"""Kills before the command may end by itself."""


class Outcome(NamedTuple):
    """What became of a command.

    Attributes:
      statuses: exit status of each process; minus the signal that ended it.
      seconds: it took.
      at_work: what it was at in the end.
      counts: moments by kind.
      text: all it said.
    """

    statuses: list[int]
    seconds: float
    at_work: str
    counts: dict[str, int]
    text: str

    @property
    def status(self) -> int:
        """That of the first process."""
        return self.statuses[0]


class Workshop:
    """A zygote, and a folder for everything its children do."""

    def __init__(self, folder: Path):
        self.folder, self.runs = Path(folder), 0
        self.cache = self.folder / "compiled"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        )  # fmt: skip

    def close(self) -> None:
        """Ends the zygote."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)

    def command(
        self, results: Path, lines: Sequence[str] = (), cache: Path | None = None, writers: int = 1, **plan: Any
    ) -> Outcome:
        """Runs the sweep's command; ``plan`` is what happens to it (see ``zygote.Fate``)."""
        argv = ["--preset", "smoke", "--no-progress", "--results-dir", str(results)]
        argv += ["--methods", *lines] if lines else []
        return self.call(argv, results, cache, writers, **plan)

    def call(
        self, argv: Sequence[str], results: Path, cache: Path | None = None, writers: int = 1, **plan: Any
    ) -> Outcome:
        """Runs the sweep's script with these arguments."""
        self.runs += 1
        log = self.folder / f"log-{self.runs:05d}.txt"
        request = {
            "argv": list(argv), "results": str(results), "cache": str(cache or self.cache), "log": str(log),
            "writers": writers, "plan": plan,
        }  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Outcome(**json.loads(self.process.stdout.readline()), text=log.read_text(errors="replace"))


def rows_file(results: Path) -> Path:
    """The sweep's rows."""
    return results / "faults/smoke/rows.jsonl"


def read_bits(results: Path) -> list[tuple[tuple[str, int], str]]:
    """Key and text of every row, but for its timing: seconds, and how many runs happened to share a program."""
    found = []
    for line in rows_file(results).read_text().splitlines():
        row = json.loads(line)
        del row["sha256"], row["timing"]
        found.append(((row["config_hash"], row["seed"]), json.dumps(row, sort_keys=True)))
    return found


class Differ(AssertionError):
    """Rows that are not those of the undisturbed sweep: how many were lost, are there twice, or are others."""

    def __init__(self, results: Path, lost: int, doubled: int, different: int):
        self.lost, self.doubled, self.different = lost, doubled, different
        super().__init__(f"{results}: {lost} rows lost, {doubled} doubled, {different} different")


class Undisturbed(NamedTuple):
    """A chain's lines, run once without faults."""

    lines: tuple[str, ...]
    results: Path
    bits: dict[tuple[str, int], str]
    outcome: Outcome

    def check(self, results: Path) -> None:
        """Raises Differ unless the same rows are there, each once, bit for bit."""
        found = read_bits(results)
        rows = dict(found)
        lost, different = len(self.bits.keys() - rows.keys()), [k for k in rows if rows[k] != self.bits.get(k)]
        if lost or different or len(found) != len(rows):
            raise Differ(results, lost, len(found) - len(rows), len(different))


def undisturbed(shop: Workshop, lines: tuple[str, ...]) -> Undisturbed:
    """Runs the lines twice, the second time with their programs compiled already, which is what is measured."""
    results = shop.folder / f"undisturbed-{'-'.join(lines).replace(' ', '_')}"
    for _ in range(2):
        shutil.rmtree(results, ignore_errors=True)
        outcome = shop.command(results, lines)
        assert outcome.status == 0, outcome.text
    return Undisturbed(lines, results, dict(read_bits(results)), outcome)


class Death(NamedTuple):
    """A kill: what was planned, and what the process was at."""

    kind: str
    at_work: str


def plan_of(kind: str, reference: Outcome, rng: np.random.Generator) -> dict[str, Any]:
    """A seeded moment of a kind, in the first half of what an undisturbed run goes through: later ones come later."""
    if kind == "clock":
        return {"seconds": float(rng.uniform(0, reference.seconds))}
    plan: dict[str, Any] = {"at": kind, "k": int(rng.integers(1, (reference.counts[kind] + 1) // 2 + 1))}
    if kind in ("compile", "epoch") or (kind in ("checkpoint", "kept network") and rng.random() < 0.5):
        # Behind the call: while XLA compiles or runs, while orbax's threads write.
        plan["delay"] = float(rng.uniform(0.0, {"compile": 0.3, "epoch": 0.05}.get(kind, 0.1)))
    return plan


def chain_of_kills(
    shop: Workshop, reference: Undisturbed, results: Path, rng: np.random.Generator, most: int, deaths: list[Death]
) -> None:
    """Starts the same command until it ends by itself, killing it at most so often; then compares every bit.

    Args:
      shop: where.
      reference: the same lines, undisturbed.
      results: a folder of its own.
      rng: draws the moments.
      most: kills.
      deaths: gets every kill.

    Raises:
      AssertionError: a run that failed by itself, or left other rows than the undisturbed one.
    """
    kinds = [kind for kind in KILLS if reference.outcome.counts.get(kind, 1)]  # not all lines keep networks
    first = int(rng.integers(len(kinds)))
    while True:
        kind = kinds[(first + len(deaths)) % len(kinds)]
        plan = plan_of(kind, reference.outcome, rng) if len(deaths) < most else {}
        outcome = shop.command(results, reference.lines, **plan)
        if outcome.status != -9:
            assert outcome.status == 0, outcome.text
            break
        deaths.append(Death(kind, outcome.at_work))
    reference.check(results)


def set_aside(folder: Path) -> list[Path]:
    """What was set aside below a folder."""
    return sorted(path for path in folder.rglob("*") if ".damaged-" in path.name)


# --- signals, disks, folders, writers ---------------------------------------------------------------------------------

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
    """A file system of some KiB, mounted for this; for root alone."""
    results.mkdir()
    size = f"size={int(rng.integers(16, 60)) * 4}k"
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
    assert set(both.statuses) <= {0, 1, 2} and "Traceback" not in both.text, both.text
    assert shop.command(results, reference.lines).status == 0
    reference.check(results)


CASES: dict[str, Callable[..., None]] = {
    "SIGINT": functools.partial(interrupted, number=signal.SIGINT),
    "SIGTERM": functools.partial(interrupted, number=signal.SIGTERM),
    "no space from a write on": functools.partial(full_disk, number=errno.ENOSPC),
    "no quota from a write on": functools.partial(full_disk, number=errno.EDQUOT),
    "file size limit": file_size_limit,
    "full file system": full_file_system,
    "unwritable folder": unwritable,
    "vanished folder": vanished,
    "two writers": two_writers,
}


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a file system."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True)
    if not mounted.returncode:
        subprocess.run(["umount", str(folder)], check=True)
    return not mounted.returncode


# --- damage -----------------------------------------------------------------------------------------------------------

DAMAGES = ("a flipped bit", "truncated", "emptied", "foreign")


def damage(path: Path, how: str, rng: np.random.Generator) -> None:
    """Damages a file in place."""
    data = bytearray(path.read_bytes())
    if how == "a flipped bit":
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    elif how == "truncated":
        del data[int(rng.integers(len(data))) :]
    else:
        data = bytearray() if how == "emptied" else bytearray(rng.bytes(len(data)))
    path.write_bytes(data)


def files_of(folder: Path) -> list[Path]:
    """All files with content below a folder that was not set aside."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    return sorted(path for path in found if ".damaged-" not in str(path.relative_to(folder)))


def damaged_checkpoint(
    shop: Workshop, reference: Undisturbed, results: Path, how: str, rng: np.random.Generator
) -> str:
    """Kills a sweep that has checkpoints, damages a file of the newest one, and goes on; returns the file's name.

    Raises:
      AssertionError: the damage was not named and set aside, or the rows are others.
    """
    stopped = shop.command(results, reference.lines, at="epoch", k=3)  # two epochs are saved
    assert stopped.status == -9, stopped.text
    steps = sorted(results.rglob("checkpoint/[0-9]*/meta.json"))
    assert len(steps) == 2, steps
    victim = files_of(steps[-1].parent)[int(rng.integers(len(files_of(steps[-1].parent))))]
    damage(victim, how, rng)
    resumed = shop.command(results, reference.lines)
    assert resumed.status == 0 and "set aside" in resumed.text and steps[-1].parent.name in resumed.text, resumed.text
    assert set_aside(results), victim
    reference.check(results)
    return victim.name


def damaged_kept(shop: Workshop, reference: Undisturbed, results: Path, how: str, rng: np.random.Generator) -> str:
    """Damages a file of a kept network of finished runs whose rows are gone, and asks for these runs again.

    Raises:
      AssertionError: as above.
    """
    shutil.copytree(reference.results, results)
    rows_file(results).unlink()
    kept = sorted((results / "cache/snapshots").iterdir())
    needed = [path for path in kept if path.name.endswith("-2")]  # the start, or the fits
    files = files_of(needed[int(rng.integers(len(needed)))])
    victim = files[int(rng.integers(len(files)))]
    damage(victim, how, rng)
    again = shop.command(results, reference.lines)
    assert again.status == 0 and "set aside" in again.text and "trained again" in again.text, again.text
    assert set_aside(results), victim
    reference.check(results)
    return victim.name


def damaged_rows(shop: Workshop, reference: Undisturbed, results: Path, how: str, rng: np.random.Generator) -> str:
    """Damages the rows of a finished sweep: refused in one line that names the file, which is left as it is.

    Raises:
      AssertionError: anything else.
    """
    shutil.copytree(reference.results, results)
    path = rows_file(results)
    while True:
        damage(path, how, rng)
        if b'"sha256": "' in path.read_bytes() or how != "a flipped bit":
            break
        shutil.copy(rows_file(reference.results), path)  # it hit the name of the digest, and no number
    before = path.read_bytes()
    again = shop.command(results, reference.lines)
    said = [line for line in again.text.splitlines() if str(path) in line]
    if how == "emptied":  # a file without rows is one that nobody has written yet
        assert again.status == 0, again.text
        reference.check(results)
    elif again.status == 0:  # cut between two lines
        assert how == "truncated", again.text
        reference.check(results)
    else:
        assert again.status == 2 and len(said) == 1 and "Traceback" not in again.text, again.text
        assert path.read_bytes() == before
    return path.name


def damaged_compiled(shop: Workshop, reference: Undisturbed, results: Path, how: str, rng: np.random.Generator) -> str:
    """Damages an entry of the cache of compiled programs, old enough to be whole, and runs all lines anew.

    Raises:
      AssertionError: as above.
    """
    cache = shop.cache / "xla"
    entries = [path for path in files_of(cache) if path.name.endswith("-cache")]
    for path in entries:
        os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    victim = entries[int(rng.integers(len(entries)))]
    if rng.random() < 0.5:  # in half of the cases its digest is known
        set_damaged_aside(cache)
    damage(victim, how, rng)
    again = shop.command(results, reference.lines)
    assert again.status == 0 and "set aside" in again.text and victim.name in again.text, again.text
    assert any(path.name.startswith(victim.name) for path in set_aside(cache)), victim
    reference.check(results)
    return victim.name


CORRUPTIONS = {
    "checkpoint": (damaged_checkpoint, ("bridge",)),
    "kept network": (damaged_kept, ("fit", "fit measured")),
    "rows": (damaged_rows, ("dfa",)),
    "compiled program": (damaged_compiled, ("dfa",)),
}
"""What is damaged: by which function, in which chain."""
