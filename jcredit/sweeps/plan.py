"""What a sweep would take, before it is run: runs per device, bytes, FLOPs and an estimate of time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jcredit.config import Config, parts_of
from jcredit.settings import ConfigError
from jcredit.sweeps.cost import matmul_flops, memory_of
from jcredit.sweeps.layout import Layout, over_runs
from jcredit.training import Run, epoch_and_scores

EFFICIENCY = 0.5
"""Share of the matmul rate a run is assumed to reach (results/benchmark shows what it reaches on two CPU cores)."""


LARGE = 0.05
"""Share of a device's memory from which on a program is compiled to learn whether it fits."""


HUGE = 2**16
"""A setting from which on a shape that JAX refuses is laid to its size: two such sides overflow its indices."""


class Device(NamedTuple):
    """What a device has: memory in bytes, float32 matrix products in FLOP/s, and how many devices there are."""

    memory: float
    flops: float
    count: int


class Cost(NamedTuple):
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


def device_memory() -> float:
    """Bytes of each of this machine's devices; the cores of a CPU share its memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    shared = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return stats.get("bytes_limit") or shared / jax.local_device_count()


ANY_DEVICE = math.inf, 1
"""A device that holds whatever arrays there can be, as ``check_fits`` takes it."""


def check_fits(run: Run, runs: int = 1, device: tuple[float, int] | None = None) -> None:
    """Refuses runs that the memory cannot hold; nothing is allocated.

    First by a lower bound, from shapes: parameters, moments of both optimisers, the estimator, data, and one batch's
    h_0..h_L.  Where that takes a twentieth of the memory or more, the program is compiled for what it takes in fact.

    Args:
      run: one of them.
      runs: how many share its program.
      device: bytes of a device, and how many devices there are (None: this machine's).

    Raises:
      ConfigError: naming the largest array, the settings that make it and what there is.
    """
    memory, devices = device or (device_memory(), jax.local_device_count())
    key, hp, config = jax.random.key(0), run.hparams(run.config), run.config
    try:
        state, data = jax.eval_shape(run.init, key, hp), jax.eval_shape(run.data, key, hp)
    except (OverflowError, TypeError, ValueError, MemoryError) as error:
        if isinstance(error, ConfigError) or max(_whole_numbers(config).values()) < HUGE:
            raise  # a part's own mistake
        raise ConfigError(f"{_sizes(config)}: no arrays of such sizes ({type(error).__name__}); lower one") from error
    blocks, embed = state.params.blocks, state.params.embed
    depth = jax.tree.leaves(blocks)[0].shape[0] if jax.tree.leaves(blocks) else 0
    width = max((leaf.shape[-1] for leaf in jax.tree.leaves(embed) if leaf.ndim), default=0)
    shape = depth + 1, config.batch_size, width
    arrays = {**_arrays("state", state), **_arrays("data", data), "hidden states": (shape, 4 * math.prod(shape))}
    fixed = sum(size for name, (_, size) in arrays.items() if name.startswith("data")) if run.shared_data else 0
    share = -(-runs // devices)
    need = fixed + share * (sum(size for _, size in arrays.values()) - fixed)
    if LARGE * memory < need <= memory:
        cost = cost_of(run)
        need = cost.shared_bytes + share * cost.run_bytes
    if need > memory:
        name, (shape, size) = max(arrays.items(), key=lambda item: item[1][1])
        raise ConfigError(
            f"{_sizes(config, shape)}: {config.credit.name} needs at least {_readable(need)} for {share} run"
            f"{'s' * (share > 1)}, {_readable(size)} of it for {name} {list(shape)}, and a device has"
            f" {_readable(memory)}; lower it{', or run fewer seeds' * (share > 1)}"
        )


def _arrays(name: str, tree: Any) -> dict[str, tuple[tuple[int, ...], int]]:
    """{where in the tree: (shape, bytes)}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        f"{name}{jax.tree_util.keystr(path)}": (leaf.shape, math.prod(leaf.shape) * leaf.dtype.itemsize)
        for path, leaf in leaves
    }


def _whole_numbers(config: Config) -> dict[str, int]:
    found = {f"{path}.{name}": value for path, part in parts_of(config) for name, value in part.bound}
    return {n: v for n, v in {**found, "batch_size": config.batch_size}.items() if type(v) is int}


def _sizes(config: Config, shape: Sequence[int] | None = None) -> str:
    """The whole numbers of a configuration that an array's shape shows, the largest of all where it shows none."""
    found = _whole_numbers(config)
    shown = {name: value for name, value in found.items() if value > 1 and {value, value + 1} & set(shape or ())}
    named = shown or {name: value for name, value in found.items() if value == max(found.values())}
    most = max(named.values())
    return ", ".join(f"{name}={value}" for name, value in named.items() if value == most)


def _readable(size: float) -> str:
    power = min(int(math.log2(max(size, 1))) // 10, 6)
    return f"{size / 2 ** (10 * power):.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB')[power]}"


def this_device() -> Device:
    """The devices of this machine, their float32 rate measured with one short matrix product."""
    size, products = 1024, 4
    chain = jax.jit(lambda x: jax.lax.fori_loop(0, products, lambda _, y: y @ x, x))
    x = jnp.eye(size)
    chain(x).block_until_ready()
    start = time.perf_counter()
    chain(x).block_until_ready()
    return Device(device_memory(), products * 2 * size**3 / (time.perf_counter() - start), jax.local_device_count())


def cost_of(run: Run, labels: Sequence[str] = (), runs: int = 1) -> Cost:
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
    flops = matmul_flops(epoch_and_scores(run), state, hp, data)
    memory = memory_of(compiled)
    shared = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(data)) if run.shared_data else 0
    total = memory.arguments + memory.temporary + memory.results
    return Cost(tuple(labels), runs, run.config.epochs, flops, total - shared, shared)


def shown(labels: Sequence[str]) -> str:
    """A program by its first line of the table, and how many others it trains."""
    return " +".join([*labels[:1], *([str(len(labels) - 1)] if len(labels) > 1 else [])])


def describe(costs: Sequence[Cost], device: Device) -> str:
    """The plan as a table."""
    lines = [
        f"{device.count} device{'s' * (device.count > 1)} with {device.memory / 2**30:.1f} GiB and"
        f" {device.flops / 1e9:.0f} GFLOP/s each; time assumes {EFFICIENCY:.0%} of that rate, without compiling",
        f"{'program':<36} {'runs':>5} {'epochs':>6} {'MiB/run':>8} {'shared':>8} {'runs/device':>11}"
        f" {'TFLOP/run':>10} {'minutes':>8}",
    ]
    for p in costs:
        name = shown(p.labels)
        lines.append(
            f"{name:<36} {p.runs:>5} {p.epochs:>6} {p.run_bytes / 2**20:>8.1f} {p.shared_bytes / 2**20:>8.1f}"
            f" {p.per_device(device):>11} {p.epochs * p.flops / 1e12:>10.2f} {p.seconds(device) / 60:>8.1f}"
        )
    total = sum(p.seconds(device) for p in costs)
    runs = sum(p.runs for p in costs)
    lines.append(f"{'all':<36} {runs:>5} {'':>54} {total / 60:>8.1f}")
    return "\n".join(lines) + "\n"
