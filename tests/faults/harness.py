"""What the fault suite and its tally share: the command in a process to which things happen, and what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))  # where pytest looks anyway

from quick import xla_flags  # noqa: E402

QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": xla_flags()}


class Outcome(NamedTuple):
    """What became of a command.

    Attributes:
      statuses: exit status of each process, minus the signal that ended it; of a cluster's workers, which do not end
        by themselves, 0.
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
    """A zygote, and a folder for everything its children do; ``git_commit`` is that of the code they run.

    Args:
      folder: made if missing.
      environment: variables of the zygote, beside those of this process.
    """

    def __init__(self, folder: Path, **environment: str):
        self.folder, self.runs = Path(folder), 0
        self.cache = self.folder / "compiled"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **QUICK, **environment},
        )  # fmt: skip
        assert self.process.stdout is not None
        self.git_commit: str | None = json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """Ends the zygote."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)

    def command(
        self, results: Path, lines: Sequence[str] = (), writers: int = 1, workers: int = 0, **plan: Any
    ) -> Outcome:
        """Runs the sweep's command; ``plan`` is what happens to it (see ``zygote.Fate``), or to a cluster's workers.

        Args:
          results: its results directory.
          lines: of the sweep (none: all).
          writers: the same command so many times at once.
          workers: of a cluster that it runs on; 0: on none.
          plan: what happens.
        """
        argv = ["--preset", "smoke", "--no-progress", "--results-dir", str(results)]
        argv += ["--methods", *lines] if lines else []
        return self.call(argv, results, writers, workers, **plan)

    def call(self, argv: Sequence[str], results: Path, writers: int = 1, workers: int = 0, **plan: Any) -> Outcome:
        """Runs the sweep's script with these arguments."""
        self.runs += 1
        log = self.folder / f"log-{self.runs:05d}.txt"
        request = {
            "argv": list(argv), "results": str(results), "cache": str(self.cache), "log": str(log),
            "writers": writers, "workers": workers, "plan": plan,
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


def set_aside(folder: Path) -> list[Path]:
    """What was set aside below a folder."""
    return sorted(path for path in folder.rglob("*") if ".damaged-" in path.name)
