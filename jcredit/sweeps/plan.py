"""What a sweep would take, before it is run: runs per device, bytes, FLOPs and an estimate of time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcredit.sweeps.cost import matmul_flops, memory_of
from jcredit.sweeps.layout import Layout, over_runs
from jcredit.training import Run, epoch_and_scores

EFFICIENCY = 0.5
"""Share of the matmul rate a run is assumed to reach (results/benchmark shows what it reaches on two CPU cores)."""


class Device(NamedTuple):
    """What a device has: memory in bytes, float32 matrix products in FLOP/s, and how many devices there are."""

    memory: float
    flops: float
    count: int


class Program(NamedTuple):
    """What one program of a sweep takes.

    Attributes:
      labels: lines of the table that it trains.
      runs: how many runs they are.
      epochs: of each run.
      flops: of one epoch of one run and its evaluation.
      run_bytes: state, numbers and scratch of one run.
      shared_bytes: data that all runs of a device share.
    """

    labels: tuple[str, ...]
    runs: int
    epochs: int
    flops: float
    run_bytes: int
    shared_bytes: int

    def per_device(self, device: Device) -> int:
        """How many runs fit on a device at once."""
        return max(0, math.floor((device.memory - self.shared_bytes) / self.run_bytes))

    def seconds(self, device: Device) -> float:
        """Estimated time on all devices."""
        share = -(-self.runs // device.count)
        return share * self.epochs * self.flops / (device.flops * EFFICIENCY)


def this_device() -> Device:
    """The devices of this machine, their float32 rate measured with one short matrix product."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    # The cores of a CPU share its memory.
    memory = stats.get("bytes_limit") or (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / jax.local_device_count()
    )
    size, products = 1024, 4
    chain = jax.jit(lambda x: jax.lax.fori_loop(0, products, lambda _, y: y @ x, x))
    x = jnp.eye(size)
    chain(x).block_until_ready()
    start = time.perf_counter()
    chain(x).block_until_ready()
    return Device(memory, products * 2 * size**3 / (time.perf_counter() - start), jax.local_device_count())


def program_of(run: Run, labels: Sequence[str] = (), runs: int = 1) -> Program:
    """Compiles one run's epoch and evaluation without running them, and reads their costs off the program.

    Args:
      run: the run.
      labels: lines of the table that the program trains.
      runs: how many runs it trains.
    """
    key, hp = jax.random.key(0), run.hparams(run.config)
    state = jax.eval_shape(run.init, key, hp)
    data = jax.eval_shape(run.data, key, hp)
    one_run = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), tree)  # noqa: E731
    # Donating the state, as a sweep does, so that it is counted once; unoptimised code takes the same memory.
    advance = over_runs(epoch_and_scores(run), (True, True, not run.shared_data), Layout(), (0,))
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    lowered = advance.lower(one_run(state), one_run(hp), data if run.shared_data else one_run(data))
    compiled = lowered.compile(compiler_options=options)
    memory = memory_of(compiled)
    shared = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(data)) if run.shared_data else 0
    total = memory.arguments + memory.temporary + memory.results
    return Program(tuple(labels), runs, run.config.epochs, matmul_flops(compiled), total - shared, shared)


def shown(labels: Sequence[str]) -> str:
    """A program by its first line of the table, and how many others it trains."""
    return " +".join([*labels[:1], *([str(len(labels) - 1)] if len(labels) > 1 else [])])


def describe(programs: Sequence[Program], device: Device) -> str:
    """The plan as a table."""
    lines = [
        f"{device.count} device{'s' * (device.count > 1)} with {device.memory / 2**30:.1f} GiB and"
        f" {device.flops / 1e9:.0f} GFLOP/s each; time assumes {EFFICIENCY:.0%} of that rate, without compiling",
        f"{'program':<36} {'runs':>5} {'epochs':>6} {'MiB/run':>8} {'shared':>8} {'runs/device':>11}"
        f" {'TFLOP/run':>10} {'minutes':>8}",
    ]
    for p in programs:
        name = shown(p.labels)
        lines.append(
            f"{name:<36} {p.runs:>5} {p.epochs:>6} {p.run_bytes / 2**20:>8.1f} {p.shared_bytes / 2**20:>8.1f}"
            f" {p.per_device(device):>11} {p.epochs * p.flops / 1e12:>10.2f} {p.seconds(device) / 60:>8.1f}"
        )
    total = sum(p.seconds(device) for p in programs)
    runs = sum(p.runs for p in programs)
    lines.append(f"{'all':<36} {runs:>5} {'':>54} {total / 60:>8.1f}")
    return "\n".join(lines) + "\n"
