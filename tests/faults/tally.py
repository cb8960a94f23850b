"""The fault suite at full length, and its own tally: results/reliability/tally.json and README.md.

    python tests/faults/tally.py --seed 0 --moments 200

Every item (a chain of kills, a damaged file, a case) has a seed of its own and is written down when it is done.  One
that is stopped says what was done until then, and the same command goes on with the next item.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import harness
import kills
import numpy as np
from cases import CASES, can_mount
from damages import BYTES, CORRUPTIONS, DAMAGES, LATER

from jcredit.files import write_json, write_text
from jcredit.sweeps.record import versions

NO_MOUNT = "needs the right to mount a file system"


class Shop:
    """Where items are done, and the lines without faults, run once."""

    def __init__(self, folder: Path):
        self.folder, self.workshop = folder, harness.Workshop(folder)
        self.reference = functools.cache(functools.partial(harness.undisturbed, self.workshop))


class Item(NamedTuple):
    """Something to try; ``act`` appends its kills to the list it is given.

    Attributes:
      name: no two have the same.
      kind: of its own, for the tally.
      lines: of the sweep.
      act: what is done: (shop, reference, results, rng, deaths).
    """

    name: str
    kind: list[str]
    lines: tuple[str, ...]
    act: Callable[..., None]


def chain(i: int, left: int) -> Item:
    """The i-th chain of kills, of at most ``left``."""

    def act(shop, reference, results, rng, deaths):
        kills.chain_of_kills(shop, reference, results, rng, min(left, kills.LONGEST_CHAIN), deaths)

    return Item(f"chain {i}", ["chain"], kills.CHAINS[i % len(kills.CHAINS)], act)


def others(rounds: int) -> Iterator[Item]:
    """All damages and cases, so many times."""
    for number in range(1, rounds + 1):
        for what, how in DAMAGES:

            def damage(shop, reference, results, rng, deaths, what=what, how=how):
                CORRUPTIONS[what].act(shop, reference, results, how, rng)

            yield Item(f"{what}, {how}, {number}", ["damage", what, how], CORRUPTIONS[what].lines, damage)
        for name, case in CASES.items():

            def happens(shop, reference, results, rng, deaths, case=case):
                if (death := case.act(shop, reference, results, rng)) is not None:
                    deaths.append(death)

            yield Item(f"{name}, {number}", ["case", name], case.lines, happens)


def attempt(item: Item, shop: Shop, seed: int) -> dict[str, Any]:
    """Does one item, and says what became of it as JSON values."""
    start, deaths, failure, differ = time.monotonic(), list[kills.Death](), None, (0, 0, 0)
    reference, results = shop.reference(item.lines), shop.folder / "results"
    rng = np.random.default_rng([seed, *item.name.encode()])
    try:
        item.act(shop.workshop, reference, results, rng, deaths)
    except AssertionError as error:
        failure = " ".join(str(error).split())[:500]
        if isinstance(error, harness.Differ):
            differ = error.lost, error.doubled, error.different
    shutil.rmtree(results, ignore_errors=True)
    return {
        "name": item.name, "kind": item.kind, "kills": [list(death) for death in deaths], "rows": len(reference.bits),
        "lost": differ[0], "doubled": differ[1], "different": differ[2], "failure": failure,
        "seconds": round(time.monotonic() - start, 1), "git_commit": shop.workshop.git_commit,
    }  # fmt: skip


def summary(items: list[dict[str, Any]], seed: int, moments: int, rounds: int) -> dict[str, Any]:
    """What the items add up to."""
    damaged: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for what, how in (item["kind"][1:] for item in items if item["kind"][0] == "damage"):
        damaged[what][how] += 1
    deaths = [(item["kind"][0], *death) for item in items for death in item["kills"]]
    commits = dict.fromkeys(item["git_commit"] or "unknown" for item in items)
    return {
        "command": f"python tests/faults/tally.py --seed {seed} --moments {moments} --rounds {rounds}",
        "seed": seed, "moments_wanted": moments,
        "moments_killed": sum(kind == "chain" for kind, *_ in deaths),
        "workers_killed": sum(kind != "chain" for kind, *_ in deaths),
        "chains": sum(item["kind"] == ["chain"] for item in items),
        "items_left": sum(1 for item in others(rounds) if item.name not in {done["name"] for done in items}),
        **{f"rows_{name}": sum(item[name] for item in items) for name in ("lost", "doubled", "different")},
        "rows_compared": sum(item["rows"] for item in items),
        "killed_by_plan": dict(collections.Counter(plan for _, plan, _ in deaths)),
        "killed_while": dict(collections.Counter(at_work for *_, at_work in deaths)),
        "cases": dict(collections.Counter(item["kind"][1] for item in items if item["kind"][0] == "case")),
        "files_damaged": {what: dict(kinds) for what, kinds in damaged.items()},
        "failures": [f"{item['name']}: {item['failure']}" for item in items if item["failure"]],
        "minutes": round(sum(item["seconds"] for item in items) / 60, 1), "git_commits": list(commits),
    }  # fmt: skip


def page(found: dict[str, Any]) -> str:
    """The tally for readers."""
    ways = (*BYTES, LATER)
    damaged = sum(sum(kinds.values()) for kinds in found["files_damaged"].values())
    lines = [
        "# What the fault suite did", "",
        f"`{found['command']}` at {', '.join(found['git_commits'])}, {found['minutes']} minutes. Rows are compared by"
        " every field but timing. A command that is cut off goes on with what is left.", "",
        "| what | |", "|---|---:|",
        f"| SIGKILLs of the command wanted | {found['moments_wanted']} |",
        f"| done, in {found['chains']} chains of restarts | {found['moments_killed']} |",
        f"| SIGKILLs of a worker of a two-worker cluster | {found['workers_killed']} |",
        f"| files damaged | {damaged} |",
        f"| other cases, those kills of workers among them | {sum(found['cases'].values())} |",
        f"| damages and cases that are still to be tried | {found['items_left']} |",
        f"| rows compared with those of undisturbed runs | {found['rows_compared']} |",
        f"| rows lost | {found['rows_lost']} |",
        f"| rows doubled | {found['rows_doubled']} |",
        f"| rows with a bit different | {found['rows_different']} |",
        f"| chains, damages and cases that failed in any way, listed below | {len(found['failures'])} |",
        "",
        "## Killed while the process was at", "", "| | |", "|---|---:|",
        *(f"| {name} | {count} |" for name, count in sorted(found["killed_while"].items())), "",
        "## Moments chosen by", "", "| | |", "|---|---:|",
        *(f"| {name} | {count} |" for name, count in sorted(found["killed_by_plan"].items())), "",
        "## Files damaged", "", "| | " + " | ".join(ways) + " |", "|---|" + "---:|" * len(ways),
        *(
            f"| {name} | " + " | ".join(str(kinds.get(how, 0)) for how in ways) + " |"
            for name, kinds in found["files_damaged"].items()
        ), "",
        "## Other cases", "", "| | tried |", "|---|---:|",
        *(f"| {name} | {count} |" for name, count in found["cases"].items()), "",
        "## Failures", "", *(f"- {failure}" for failure in found["failures"] or ["none"]), "",
    ]  # fmt: skip
    return "\n".join(lines)


class Tally:
    """The file of what was done, which an earlier command may have begun."""

    def __init__(self, out: Path, seed: int, moments: int, rounds: int):
        self.out, self.wanted = out, {"seed": seed, "moments": moments, "rounds": rounds}
        path = out / "tally.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.items: list[dict[str, Any]] = before.get("items", []) if before.get("seed") == seed else []

    def left(self) -> Iterator[Item]:
        """What is still to be done, chains and all else in turn."""
        waiting, i = others(self.wanted["rounds"]), 0
        done, more = {item["name"] for item in self.items}, True
        while more:
            killed = sum(len(item["kills"]) for item in self.items if item["kind"] == ["chain"])
            if more := killed < self.wanted["moments"]:
                if f"chain {i}" not in done:
                    yield chain(i, self.wanted["moments"] - killed)
                i += 1
            if (item := next((item for item in waiting if item.name not in done), None)) is not None:
                more = True
                yield item

    def add(self, done: dict[str, Any]) -> None:
        """Writes an item down."""
        self.items.append(done)
        found = summary(self.items, **self.wanted)
        write_json(self.out / "tally.json", {**found, "versions": versions(), "items": self.items})
        write_text(self.out / "README.md", page(found))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moments", type=int, default=200, metavar="N", help="SIGKILLs (default: 200)")
    parser.add_argument(
        "--rounds", type=int, default=1, metavar="N", help="of all damages and other cases (default: 1)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results/reliability"), metavar="DIR",
        help="with the tally to go on with (default: results/reliability)",
    )  # fmt: skip
    args = parser.parse_args()
    tally = Tally(args.out, args.seed, args.moments, args.rounds)
    with tempfile.TemporaryDirectory(prefix="jcredit-faults-") as folder:
        shop = Shop(Path(folder))
        try:
            for item in tally.left():
                if item.name.startswith("full file system") and not can_mount(shop.folder / "mounted"):
                    print(f"{item.name}: {NO_MOUNT}")
                    continue
                tally.add(done := attempt(item, shop, args.seed))
                print(f"{item.name}: {done['failure'] or 'ok'}, {done['seconds']} s", flush=True)
        finally:
            shop.workshop.close()
    raise SystemExit(1 if any(item["failure"] for item in tally.items) else 0)


if __name__ == "__main__":
    main()
