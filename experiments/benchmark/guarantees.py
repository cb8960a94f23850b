"""What the sweeps promise, measured: the same bits where, and what the guard against numbers that are not finite costs.

    python experiments/benchmark/guarantees.py

Bits: eight runs of four lines in processes of their own over 1, 2 and 8 fake CPU devices, twice over 2, and on the GPU
or TPU where JAX finds one; all numbers of their rows.  The guard: ``first_bad_epoch`` and ``estimator_blew_up`` read
means over epochs that are kept anyway, once per run, and add nothing to the compiled step; the seconds they take are
divided by the run's seconds in steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jcredit as jc
from jcredit.config import Config
from jcredit.sweeps.record import estimator_blew_up, first_bad_epoch
from jcredit.sweeps.run import run_sweep
from jcredit.sweeps.variants import Folder, Variant

SEEDS = range(8)
SMALL = jc.Config(
    task=jc.tasks.teacher(classes=4, train_size=256, test_size=64), network=jc.ladder_mlp(depth=2, width=16),
    batch_size=8, epochs=3, diagnostic_samples=16,
)  # fmt: skip
LINES = {
    "bp": jc.bp(),
    "dfa": jc.dfa(),
    "scalar_bridge": jc.scalar_bridge(),
    "tangent_chain": jc.tangent_chain(samples=4),
}
EPOCHS = 100
"""Of the run whose guard is timed."""


# --- bits -------------------------------------------------------------------------------------------------------------


def numbers_of(results: str) -> dict[str, Any]:
    """{line, seed: all numbers of its row} and the device of a sweep over the devices of this process."""
    lines = [Variant(name, SMALL.replace(credit=credit)) for name, credit in LINES.items()]
    rows = run_sweep(lines, SEEDS, Folder(Path(results), "bits", "smoke"), progress=False)
    kept = ("metrics", "initial", "layers", "curves")
    return {f"{r['label']} {r['seed']}": [r[name] for name in kept] for r in rows} | {"device": rows[0]["device"]}


def elsewhere(devices: int | None) -> dict[str, Any]:
    """The same in a process of its own with so many CPU devices; None: on the platform that JAX chooses."""
    fake = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    environment = {**os.environ, **(fake if devices else {})}
    with tempfile.TemporaryDirectory(prefix="jcredit-") as results:
        command = [sys.executable, __file__, "--in", results]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)


def leaves(value: Any) -> list[float]:
    """All numbers of JSON values, in order."""
    if isinstance(value, dict | list):
        return [x for part in (value.values() if isinstance(value, dict) else value) for x in leaves(part)]
    return [] if value is None else [float(value)]


def compared(ours: dict[str, Any], others: dict[str, Any], line: str) -> str:
    """Whether the runs of a line are the same in all bits; else the largest relative difference of a number."""
    pairs = [(ours[f"{line} {seed}"], others[f"{line} {seed}"]) for seed in SEEDS]
    same = sum(a == b for a, b in pairs)
    if same == len(pairs):
        return "the same bits"
    numbers = [pair for a, b in pairs for pair in zip(leaves(a), leaves(b), strict=True)]
    largest = max(abs(a - b) / max(abs(a), abs(b), 1e-30) for a, b in numbers)
    return f"{same} of {len(pairs)} runs; else to {largest:.0e}"


def bits() -> list[str]:
    """A table of where the bits are the same."""
    one, two, again, eight = map(elsewhere, (1, 2, 2, 8))
    usual = elsewhere(None)  # this process has not used JAX yet: a TPU belongs to one at a time
    pairs = {"two processes, 2 devices": (two, again), "2 and 8 devices": (two, eight), "1 and 2 devices": (one, two)}
    if not usual["device"].startswith("cpu"):
        pairs[f"CPU and {usual['device']}"] = (one, usual)
    head = ["line", *pairs]
    rows = [[line, *(compared(ours, others, line) for ours, others in pairs.values())] for line in LINES]
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


# --- the guard --------------------------------------------------------------------------------------------------------


def guard_seconds(steps_per_epoch: int) -> float:
    """Seconds that the guard takes for each step of a run."""
    curve, count = [1.0 / (1 + epoch) for epoch in range(EPOCHS)], 1000
    start = time.perf_counter()
    for _ in range(count):
        assert first_bad_epoch(curve, curve, curve) is None and not estimator_blew_up(curve)
    return (time.perf_counter() - start) / count / EPOCHS / steps_per_epoch


def step_seconds(config: Config) -> tuple[float, int]:
    """Seconds of a step within a compiled epoch, the fastest of five, and the steps of an epoch."""
    import jax

    run = jc.make_run(config)
    hp, key = run.hparams(run.config), jax.random.key(0)
    state, data = run.init(key, hp), run.data(key, hp)
    epoch = jax.jit(run.epoch).lower(state, hp, data).compile()
    taken = []
    for _ in range(6):
        start = time.perf_counter()
        jax.block_until_ready(epoch(state, hp, data))
        taken.append(time.perf_counter() - start)
    return min(taken[1:]) / run.steps_per_epoch, run.steps_per_epoch


def guard() -> list[str]:
    """What it costs in the cheapest step of the study's size, and of a tiny one."""
    from measuring import run_of

    sizes = {"bp, CIFAR-10 shapes (L = 4, D = 256, batch 128)": run_of({"line": "bp"}).config,
             "bp, L = 2, D = 16, batch 8": SMALL.replace(credit=jc.bp())}  # fmt: skip
    lines = ["| line | step | guard, per step | share |", "|---|---:|---:|---:|"]
    for name, config in sizes.items():
        step, steps = step_seconds(config)
        cost = guard_seconds(steps)
        lines.append(f"| {name} | {step * 1e6:.0f} us | {cost * 1e6:.4f} us | {cost / step:.5%} |")
    return lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--in", dest="results", metavar="DIR", help="print this process's rows as JSON, made in DIR")
    args = parser.parse_args()
    if args.results is not None:
        print(json.dumps(numbers_of(args.results)))
        return
    print("\n".join([*bits(), "", *guard()]))


if __name__ == "__main__":
    main()
