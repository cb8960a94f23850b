"""The fault suite at full length, and its own tally: results/reliability/tally.json and README.md.

    python tests/faults/tally.py --seed 0 --moments 200

The tally is written after every chain of kills, so that one that is stopped says what was done until then.
"""

from __future__ import annotations

import argparse
import collections
import functools
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np

from jcredit.files import write_json, write_text
from jcredit.sweeps.record import git_commit, versions


class Tally:
    """What was done, and what went wrong."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.start = args, time.monotonic()
        self.planned, self.at_work = collections.Counter(), collections.Counter()
        self.damaged: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
        self.chains, self.rows, self.failures = 0, 0, []
        self.lost, self.doubled, self.different = 0, 0, 0
        self.cases, self.not_possible = collections.Counter(), {}
        self.references: dict[tuple[str, ...], harness.Undisturbed] = {}

    def reference(self, shop: harness.Workshop, lines: tuple[str, ...]) -> harness.Undisturbed:
        """The lines without faults; run once."""
        if lines not in self.references:
            self.references[lines] = harness.undisturbed(shop, lines)
        return self.references[lines]

    def attempt(self, what: str, act: Any) -> Any:
        """Calls ``act``; what it finds wrong is a failure of the tally, and the rest goes on."""
        try:
            return act()
        except AssertionError as error:
            if isinstance(error, harness.Differ):
                self.lost, self.doubled, self.different = (
                    self.lost + error.lost, self.doubled + error.doubled, self.different + error.different
                )  # fmt: skip
            self.failures.append(f"{what}: {' '.join(str(error).split())[:500]}")
            return None

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "command": command(self.args), "seed": self.args.seed, "moments_wanted": self.args.moments,
            "moments_killed": sum(self.planned.values()), "chains": self.chains,
            "rows_compared": self.rows, "rows_lost": self.lost, "rows_doubled": self.doubled,
            "rows_different": self.different, "killed_by_plan": dict(self.planned), "cases": dict(self.cases),
            "not_possible": self.not_possible, "killed_while": dict(self.at_work),
            "files_damaged": {what: dict(kinds) for what, kinds in self.damaged.items()},
            "failures": self.failures, "minutes": round((time.monotonic() - self.start) / 60, 1),
            "git_commit": git_commit(), "versions": versions(),
        }  # fmt: skip

    def write(self) -> None:
        """Both files."""
        found = self.as_json()
        write_json(self.args.out / "tally.json", found)
        write_text(self.args.out / "README.md", page(found))


def command(args: argparse.Namespace) -> str:
    """What makes this tally."""
    return f"python tests/faults/tally.py --seed {args.seed} --moments {args.moments} --rounds {args.rounds}"


def page(found: dict[str, Any]) -> str:
    """The tally for readers."""
    damaged = sum(sum(kinds.values()) for kinds in found["files_damaged"].values())
    lines = [
        "# What the fault suite did", "",
        f"`{found['command']}` at {found['git_commit']}, {found['minutes']} minutes. Rows are compared by every field"
        " but timing.", "",
        "| what | |", "|---|---:|",
        f"| SIGKILLs wanted | {found['moments_wanted']} |",
        f"| SIGKILLs, in {found['chains']} chains of restarts | {found['moments_killed']} |",
        f"| files damaged | {damaged} |",
        f"| rows compared with those of undisturbed runs | {found['rows_compared']} |",
        f"| rows lost | {found['rows_lost']} |",
        f"| rows doubled | {found['rows_doubled']} |",
        f"| rows with a bit different | {found['rows_different']} |",
        f"| chains and cases that failed in any way, listed below | {len(found['failures'])} |",
        "",
        "## Killed while the process was at", "", "| | |", "|---|---:|",
        *(f"| {name} | {count} |" for name, count in sorted(found["killed_while"].items())), "",
        "## Moments chosen by", "", "| | |", "|---|---:|",
        *(f"| {name} | {count} |" for name, count in sorted(found["killed_by_plan"].items())), "",
        "## Files damaged", "", "| | " + " | ".join(harness.DAMAGES) + " |", "|---|" + "---:|" * len(harness.DAMAGES),
        *(
            f"| {name} | " + " | ".join(str(kinds.get(how, 0)) for how in harness.DAMAGES) + " |"
            for name, kinds in found["files_damaged"].items()
        ), "",
        "## Other cases", "", "| | tried |", "|---|---:|",
        *(f"| {name} | {count} |" for name, count in found["cases"].items()),
        *(f"| {name} | not possible here: {why} |" for name, why in found["not_possible"].items()), "",
        "## Failures", "", *(f"- {failure}" for failure in found["failures"] or ["none"]), "",
    ]  # fmt: skip
    return "\n".join(lines)


def one_chain(tally: Tally, shop: harness.Workshop, left: int, rng: np.random.Generator) -> None:
    """A chain of kills of the next lines."""
    reference = tally.reference(shop, harness.CHAINS[tally.chains % len(harness.CHAINS)])
    results, deaths = shop.folder / f"chain-{tally.chains}", []
    tally.attempt(
        f"chain {tally.chains}",
        lambda: harness.chain_of_kills(shop, reference, results, rng, min(left, harness.LONGEST_CHAIN), deaths),
    )
    tally.planned.update(death.kind for death in deaths)
    tally.at_work.update(death.at_work for death in deaths)
    tally.chains, tally.rows = tally.chains + 1, tally.rows + len(reference.bits)
    shutil.rmtree(results, ignore_errors=True)


def one_damage(tally: Tally, shop: harness.Workshop, what: str, how: str, rng: np.random.Generator) -> None:
    """One file damaged in one way."""
    act, lines = harness.CORRUPTIONS[what]
    reference = tally.reference(shop, lines)
    results = shop.folder / f"damage-{sum(sum(kinds.values()) for kinds in tally.damaged.values())}"
    tally.attempt(f"{what}, {how}", lambda: act(shop, reference, results, how, rng))
    tally.damaged[what][how] += 1
    tally.rows += len(reference.bits)
    shutil.rmtree(results, ignore_errors=True)


def one_case(tally: Tally, shop: harness.Workshop, name: str, rng: np.random.Generator) -> None:
    """One signal, disk, folder or second writer."""
    if name == "full file system" and not harness.can_mount(shop.folder / "mounted"):
        tally.not_possible[name] = "needs the right to mount a file system"
        return
    reference, results = tally.reference(shop, ("dfa",)), shop.folder / f"case-{sum(tally.cases.values())}"
    tally.attempt(name, lambda: harness.CASES[name](shop, reference, results, rng))
    tally.cases[name] += 1
    tally.rows += len(reference.bits)
    shutil.rmtree(results, ignore_errors=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moments", type=int, default=200, metavar="N", help="SIGKILLs (default: 200)")
    parser.add_argument(
        "--rounds", type=int, default=1, metavar="N", help="of all damages and other cases (default: 1)"
    )
    parser.add_argument("--out", type=Path, default=Path("results/reliability"), metavar="DIR")
    args = parser.parse_args()
    tally = Tally(args)
    with tempfile.TemporaryDirectory(prefix="jcredit-faults-") as folder:
        shop = harness.Workshop(Path(folder))
        try:
            for_kills, for_damage = np.random.default_rng(args.seed), np.random.default_rng([args.seed, 1])
            cases: list[Callable[[], None]] = [
                functools.partial(one_damage, tally, shop, what, how, for_damage)
                for how in harness.DAMAGES for what in harness.CORRUPTIONS
            ]  # fmt: skip
            cases += [functools.partial(one_case, tally, shop, name, for_damage) for name in harness.CASES]
            cases *= args.rounds
            while (left := args.moments - sum(tally.planned.values())) > 0 or cases:  # in turn
                if left > 0:
                    one_chain(tally, shop, left, for_kills)
                if cases:
                    cases.pop(0)()
                tally.write()
        finally:
            shop.close()
            tally.write()
    raise SystemExit(1 if tally.failures else 0)


if __name__ == "__main__":
    main()
