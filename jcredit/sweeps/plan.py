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
from jcredit.numerics import in_full_precision
from jcredit.settings import ConfigError
from jcredit.sweeps.cost import matmul_flops, memory_of
from jcredit.sweeps.layout import Layout, choose_layout, over_runs
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
      held_bytes: of each run that lies on a device: its state, numbers and data.
      scratch_bytes: of each run that is at work.
      shared_bytes: data that all runs of a device share.
      width: how many runs of a device are at work together; None: all of them.
    """

    labels: tuple[str, ...]
    runs: int
    epochs: int
    flops: float
    held_bytes: int
    scratch_bytes: int
    shared_bytes: int
    width: int | None = None

    def of_device(self, runs: int) -> int:
        """Bytes of a device with that many runs on it."""
        at_work = runs if self.width is None else min(self.width, runs)
        return self.shared_bytes + runs * self.held_bytes + at_work * self.scratch_bytes

    def per_device(self, device: Device) -> int:
        """How many runs fit on a device."""
        room = device.memory - self.shared_bytes
        together = max(0, math.floor(room / (self.held_bytes + self.scratch_bytes)))
        if self.width is None or together < self.width:
            return together
        return math.floor((room - self.width * self.scratch_bytes) / self.held_bytes)

    def seconds(self, device: Device) -> float:
        """Estimated time on all devices."""
        share = -(-self.runs // device.count)
        return share * self.epochs * self.flops / (device.flops * EFFICIENCY)


def device_memory() -> float:
    """Bytes of each of this machine's devices; the cores of a CPU share its memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    shared = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return stats.get("bytes_limit") or shared / jax.local_device_count()


def check_fits(run: Run, runs: int = 1, layout: Layout | None = None, memory: float | None = None) -> None:
    """Refuses runs that the memory cannot hold; nothing is allocated.

    First by a lower bound, from shapes: parameters, moments of both optimisers, the estimator and data of every run,
    and h_0..h_L of one batch of each run at work.  Where that takes a twentieth of the memory or more, the program is
    compiled for what it takes in fact.

    Args:
      run: one of them.
      runs: how many share its program.
      layout: how they lie on the devices (None: as is usual here).
      memory: bytes of a device (None: of this machine's; inf: it holds whatever arrays there can be).

    Raises:
      ConfigError: naming the largest array, the settings that make it and what there is.
    """
    memory, layout = memory or device_memory(), layout or choose_layout(runs)
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
    share, hidden = layout.padded(runs) // layout.devices, arrays["hidden states"][1]
    held = sum(size for _, size in arrays.values()) - fixed - hidden
    need = fixed + share * held + layout.width * hidden
    if LARGE * memory < need <= memory:
        need = cost_of(run, width=None if layout.width == share else layout.width).of_device(share)
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
    chain = jax.jit(in_full_precision(lambda x: jax.lax.fori_loop(0, products, lambda _, y: y @ x, x)))
    x = jnp.eye(size)
    chain(x).block_until_ready()
    start = time.perf_counter()
    chain(x).block_until_ready()
    return Device(device_memory(), products * 2 * size**3 / (time.perf_counter() - start), jax.local_device_count())


def cost_of(run: Run, labels: Sequence[str] = (), runs: int = 1, width: int | None = None) -> Cost:
    """Compiles an epoch of a run and its evaluation without running them, and reads their costs off the program.

    Args:
      run: the run.
      labels: lines of the table that the program trains.
      runs: how many runs it trains.
      width: how many runs of a device are at work together; None: all of them.
    """
    key, hp = jax.random.key(0), run.hparams(run.config)
    state = jax.eval_shape(run.init, key, hp)
    data = jax.eval_shape(run.data, key, hp)
    # Runs that take turns do so in a loop, which writes new states beside the old ones: two show what it holds.
    turns = 1 if width is None else 2
    stacked = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct((turns, *x.shape), x.dtype), tree)  # noqa: E731
    # Donating the state, as a sweep does, so that it is counted once; unoptimised code takes the same memory.
    advance = over_runs(epoch_and_scores(run), (True, True, not run.shared_data), Layout(), (0,))
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    lowered = advance.lower(stacked(state), stacked(hp), data if run.shared_data else stacked(data))
    memory = memory_of(lowered.compile(compiler_options=options))
    flops = matmul_flops(epoch_and_scores(run), state, hp, data)
    shared = _bytes(data) if run.shared_data else 0
    held = (memory.arguments - shared) // turns + (0 if width is None else _bytes(state))
    scratch = memory.arguments + memory.temporary + memory.results - shared - turns * held
    return Cost(tuple(labels), runs, run.config.epochs, flops, held, max(0, scratch), shared, width)


def _bytes(tree: Any) -> int:
    return sum(size for _, size in _arrays("", tree).values())


def shown(labels: Sequence[str]) -> str:
    """A program by its first line of the table, and how many others it trains."""
    return " +".join([*labels[:1], *([str(len(labels) - 1)] if len(labels) > 1 else [])])


def describe(costs: Sequence[Cost], device: Device) -> str:
    """The plan as a table."""
    lines = [
        f"{device.count} device{'s' * (device.count > 1)} with {device.memory / 2**30:.1f} GiB and"
        f" {device.flops / 1e9:.0f} GFLOP/s each; time assumes {EFFICIENCY:.0%} of that rate, without compiling",
        f"{'program':<36} {'runs':>5} {'epochs':>6} {'MiB/run':>8} {'at work':>8} {'shared':>8} {'runs/device':>11}"
        f" {'TFLOP/run':>10} {'minutes':>8}",
    ]
    for p in costs:
        name = shown(p.labels)
        lines.append(
            f"{name:<36} {p.runs:>5} {p.epochs:>6} {p.held_bytes / 2**20:>8.1f} {p.scratch_bytes / 2**20:>8.1f}"
            f" {p.shared_bytes / 2**20:>8.1f}"
            f" {p.per_device(device):>11} {p.epochs * p.flops / 1e12:>10.2f} {p.seconds(device) / 60:>8.1f}"
        )
    total = sum(p.seconds(device) for p in costs)
    runs = sum(p.runs for p in costs)
    lines.append(f"{'all':<36} {runs:>5} {'':>63} {total / 60:>8.1f}")
    return "\n".join(lines) + "\n"
