"""The fault suite at full length, and its own tally: results/reliability/tally.json and README.md.

    python tests/faults/tally.py --seed 0 --moments 200

The tally is written after every chain of kills, so that one that is stopped says what was done until then.
"""

from __future__ import annotations

import argparse
import collections
import shutil
import tempfile
import time
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
            self.failures.append(f"{what}: {' '.join(str(error).split())[:500]}")
            return None

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "command": command(self.args), "seed": self.args.seed, "moments_wanted": self.args.moments,
            "moments_killed": sum(self.planned.values()), "chains": self.chains, "killed_by_plan": dict(self.planned),
            "killed_while": dict(self.at_work), "files_damaged": {k: dict(v) for k, v in self.damaged.items()},
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
    return f"python tests/faults/tally.py --seed {args.seed} --moments {args.moments} --damages {args.damages}"


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
        f"| chains or cases with a row lost, doubled or changed, or damage not named | {len(found['failures'])} |",
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


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moments", type=int, default=200, metavar="N", help="SIGKILLs (default: 200)")
    parser.add_argument("--damages", type=int, default=2, metavar="N", help="files of each kind damaged in each way")
    parser.add_argument("--out", type=Path, default=Path("results/reliability"), metavar="DIR")
    args = parser.parse_args()
    tally = Tally(args)
    with tempfile.TemporaryDirectory(prefix="jcredit-faults-") as folder:
        shop = harness.Workshop(Path(folder))
        try:
            for_kills, for_damage = np.random.default_rng(args.seed), np.random.default_rng([args.seed, 1])
            cases = [
                (what, how) for _ in range(args.damages) for how in harness.DAMAGES for what in harness.CORRUPTIONS
            ]
            while (left := args.moments - sum(tally.planned.values())) > 0 or cases:  # in turn
                if left > 0:
                    one_chain(tally, shop, left, for_kills)
                if cases:
                    one_damage(tally, shop, *cases.pop(0), for_damage)
                tally.write()
        finally:
            shop.close()
            tally.write()
    raise SystemExit(1 if tally.failures else 0)


if __name__ == "__main__":
    main()
