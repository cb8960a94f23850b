"""Speed: seed-steps per second, compile time, FLOPs, memory, per method and number of seeds, in one run.

    python experiments/benchmark/benchmark.py --preset quick --against torch

CIFAR shapes (L = 4, D = 256, batch 128), the real step: gather, crops and flips, credit, local updates, AdamW, and the
estimator's step. Every line is measured in a process of its own (compile time and peak memory are its own); the float32
matmul peak comes from the same run, and costs relative to BP that are aimed at from epochs of the two in turn.
``--preset accelerator`` is for a GPU or TPU: fewer lines, more seeds.
``--against torch`` (pip install 'jcredit[peers]') also runs the same algorithms in eager PyTorch, one seed after
another. Profiles say which part of a step of one seed on one core takes how long, in matrix products and in everything
else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from measuring import LINES, work
from showing import COST_AIMS, figure, table

from jcredit.files import write_json, write_text
from jcredit.study.command import Parser

PEERS = {name: name.split()[0] for name in ("bp", "dfa", "scalar_bridge", "vector_field M=4 central")}
PROFILED = (
    "bp", "dfa", "scalar_bridge", "vector_field M=4 central", "vector_field M=4 jvp", "tangent_chain",
    "tangent_chain, following, 8 samples", "kolen_pollack K=2",
)  # fmt: skip
WIDE = (
    "bp", "dfa", "broadcast", "scalar_bridge", "vector_field M=4 central", "vector_field M=4 jvp", "tangent_mask",
    "tangent_chain", "tangent_sweeps K=2", "kolen_pollack K=2",
)  # fmt: skip
PRESETS = {  # lines, seeds, seconds per repeat, repeats, minutes
    "smoke": (("bp", "dfa"), (2,), 0.3, 2, "20 seconds"),
    "quick": (tuple(LINES), (1, 2, 6, 16), 1.5, 3, "30 minutes"),
    "full": (tuple(LINES), (1, 2, 6, 16), 10.0, 7, "50 minutes"),
    "accelerator": (WIDE, (6, 96), 0.5, 3, "as long as 21 programs compile"),
}


def jobs(preset: str, against: str | None) -> dict[str, dict[str, Any]]:
    """Every measurement of a preset by name."""
    lines, seed_counts, seconds, repeats, _ = PRESETS[preset]
    pace = {"seconds": seconds, "repeats": repeats}
    found: dict[str, dict[str, Any]] = {"matmul peak": {"kind": "peak", **pace}}
    for seeds in seed_counts:
        for line in lines:
            found[f"{line} | {seeds}"] = {"kind": "line", "line": line, "seeds": seeds, **pace}
            if against and line in PEERS:
                found[f"torch {line} | {seeds}"] = {"kind": "torch", "method": PEERS[line], "seeds": seeds, **pace}
    if preset in ("quick", "full"):
        for line in COST_AIMS:
            found[f"{line} beside bp | 6 in turn"] = {"kind": "pair", "line": line, "seeds": 6, **pace}
        found["bp | 1 on one core"] = {"kind": "line", "line": "bp", "seeds": 1, "one_core": True, **pace}
        for line in PROFILED:
            found[f"profile of {line}"] = {"kind": "profile", "line": line, "one_core": True, **pace}
        for depth in (2, 48):
            changes = {"depth": depth, "width": 64}
            brief = {"seconds": 0.1, "repeats": 1}
            found[f"bp, L = {depth}, D = 64 | 1"] = {
                "kind": "line", "line": "bp", "changes": changes, "seeds": 1, **brief
            }  # fmt: skip
    return found


def run_jobs(found: dict[str, dict[str, Any]], progress: bool, kept: dict[str, Any], path: Path) -> None:
    """Runs every job that is not kept in a fresh process, one after the other, without a compilation cache.

    What is measured is written to the path after each; it says which run it is of, where that is not the first.
    """
    from tqdm import tqdm

    measured = dict(kept.get("measured", {}))
    run = 1 + max((m.get("run", 0) for m in measured.values()), default=-1)
    left = {name: job for name, job in found.items() if name not in measured}
    for name, job in (bar := tqdm(left.items(), unit="line", disable=not progress)):
        bar.set_description(name)
        command = [sys.executable, __file__, "--job", json.dumps(job)]
        finished = subprocess.run(command, capture_output=True, text=True)
        if finished.returncode != 0:
            sys.exit(f"benchmark.py: {name} failed: {finished.stderr.strip().splitlines()[-1]}")
        measured[name] = json.loads(finished.stdout.splitlines()[-1]) | ({"run": run} if run else {})
        write_json(path, {"device": kept.get("device") or _device(measured), "measured": measured})


def main() -> None:
    """The command."""
    parser = Parser(prog="benchmark.py", description=__doc__, allow_abbrev=False)
    sizes = "; ".join(f"{name}: {p[-1]}" for name, p in PRESETS.items())
    parser.add_argument("--preset", default="quick", choices=PRESETS, help=f"size ({sizes})")
    parser.add_argument("--against", choices=["torch"], help="also measure the same algorithms in eager PyTorch")
    where = "where results go (default: results)"
    parser.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR", help=where)
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.add_argument("--redraw", action="store_true", help="only rebuild table and figure from measurements.json")
    again = "keep what measurements.json holds, of a run that was stopped or of one with fewer lines; measure the rest"
    parser.add_argument("--resume", action="store_true", help=again)
    parser.add_argument("--job", help="(internal) measure one job in this process")
    args = parser.parse_args()
    if args.job:
        print(json.dumps(work(json.loads(args.job))))
        return
    if args.against and args.preset == "accelerator":
        parser.error("--against torch measures PyTorch on the CPU; give it with another preset")
    if args.against:
        try:
            __import__("torch")
        except ModuleNotFoundError:
            parser.error("--against torch needs PyTorch; pip install 'jcredit[peers]'")
    directory = args.results_dir / "benchmark" / args.preset
    kept = directory / "measurements.json"
    if args.redraw and not kept.exists():
        parser.error(f"--redraw needs {kept}; run without it to measure")
    if not args.redraw:
        held = json.loads(kept.read_text()) if args.resume and kept.exists() else {}
        run_jobs(jobs(args.preset, args.against), not args.no_progress, held, kept)
    measured = json.loads(kept.read_text())["measured"]
    text = table(measured, args.preset)
    write_text(directory / "table.md", text)
    figure(measured, directory / "figure.png")
    print(text)


def _device(measured: dict[str, dict[str, Any]]) -> str:
    import platform

    cores = f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}"
    kind = measured["matmul peak"]["device"]
    return cores if kind.startswith("cpu") else f"{kind}; {cores}"


if __name__ == "__main__":
    main()
