"""Laying runs on hardware: shard the run axis over devices, then map or vmap within a device.

``lax.map`` within a device gives every run the bits it has alone; ``vmap`` batches its matrix products, which wins on
accelerators and agrees to rounding.  On CPU one device per core with ``lax.map`` is the faster of the two.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jcredit.files import FileError, cache_directory, private_directory
from jcredit.numerics import in_full_precision
from jcredit.sweeps.compiled import set_damaged_aside, trim

log = logging.getLogger("jcredit")


class Layout(NamedTuple):
    """How the runs of one program lie on the hardware.

    Attributes:
      devices: devices the run axis is sharded over.
      width: runs vmapped together within a device; 1 maps them one after the other.
    """

    devices: int = 1
    width: int = 1

    def padded(self, runs: int) -> int:
        """The number of runs the program has: ``runs`` rounded up to fill every device evenly."""
        unit = self.devices * self.width
        return -(-runs // unit) * unit


def use_all_cores() -> None:
    """Makes one CPU device per core, each with one thread.  Must come before the first use of a device.

    Has no effect where a number of CPU devices was chosen (``jax_num_cpu_devices``, ``JAX_NUM_CPU_DEVICES``, or the
    option ``--xla_force_host_platform_device_count`` of XLA), where XLA is already running, or on other platforms.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if getattr(jax.config, "jax_num_cpu_devices", -1) > 0 or "host_platform_device_count" in flags:
        return
    # What this process may use, where the system tells (Linux), else all there are.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError:  # XLA runs already: keep the devices there are
        there = jax.local_device_count()
        if jax.default_backend() == "cpu" and there < cores:
            _say_fewer(there, cores)
        return
    flag = "--xla_cpu_multi_thread_eigen=false"
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()


@functools.cache
def _say_fewer(there: int, cores: int) -> None:
    """Says once that cores are left idle."""
    text = "JAX was used before this sweep, which therefore has %d of %d cores; sweep first, or in a process of its own"
    log.warning(text, there, cores)


_CACHE = "jax_compilation_cache_dir"
_KEEPS = "jax_enable_compilation_cache"
_LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"
_looked_through: set[Path] = set()
"""Folders of compiled programs whose damaged entries this process has set aside."""


def keep_compiled_programs() -> None:
    """Keeps compiled programs below the cache directory, so that a sweep compiles once per machine.

    Where the folder cannot be used or is not the user's alone, there is a warning and nothing is kept: compiled
    programs are run as they lie there.
    """
    try:
        directory = private_directory(cache_directory() / "xla")
    except FileError as error:
        log.warning("compiled programs are not kept: %s", error)
        return
    with contextlib.suppress(OSError):  # one that cannot be read or written: JAX warns, and compiles
        trim(directory)
        if directory not in _looked_through:  # once: a loop of short sweeps would spend its time on this
            set_damaged_aside(directory)
            _looked_through.add(directory)
    jax.config.update(_CACHE, str(directory))
    # All of them: an initial state is dozens of tiny ones, which a second start would compile again.
    jax.config.update(_LEAST_SECONDS, 0)


@contextlib.contextmanager
def programs_kept() -> Iterator[None]:
    """As ``keep_compiled_programs`` while the block runs, in a process that is its user's: afterwards JAX is as before.

    Nothing is changed where JAX keeps programs in a folder of the user's, or is to keep none
    (``jax_enable_compilation_cache``).
    """
    if getattr(jax.config, _CACHE) or not getattr(jax.config, _KEEPS):
        yield
        return
    least = getattr(jax.config, _LEAST_SECONDS)
    keep_compiled_programs()
    try:
        yield
    finally:
        jax.config.update(_CACHE, None)
        jax.config.update(_LEAST_SECONDS, least)
        compilation_cache.reset_cache()  # else JAX stays with the folder that it has opened


def compiled_programs_are_kept() -> bool:
    """Whether compiled programs are kept on disk in this process."""
    return bool(getattr(jax.config, _CACHE))


def usual_width() -> int | None:
    """How many runs are at work together on a device of this machine where many lie; None: all of them."""
    return 1 if jax.default_backend() == "cpu" else None


def choose_layout(runs: int, seeds_per_batch: int | None = None) -> Layout:
    """The layout for ``runs`` runs of one program.

    Args:
      runs: how many there are.
      seeds_per_batch: vmap width; None chooses 1 on CPU and all runs of a device elsewhere.
    """
    # XLA simplifies a program for several devices further than one for a single device, which moves last bits: where
    # there are several, even a single run takes two, so that its bits do not depend on its company.
    devices = min(jax.local_device_count(), max(runs, 2))
    share = -(-runs // devices)
    width = seeds_per_batch or usual_width() or share
    return Layout(devices, min(width, share))


def mesh_of(layout: Layout) -> Mesh:
    """The one-dimensional mesh of a layout, with the axis ``run``."""
    used = jax.local_devices()[: layout.devices]
    return jax.make_mesh((layout.devices,), ("run",), axis_types=(AxisType.Auto,), devices=used)


def put(tree: Any, layout: Layout, per_run: bool) -> Any:
    """Puts arrays on the devices of a layout: split along their leading run axis, or copied to every device."""
    spec = PartitionSpec("run") if per_run else PartitionSpec()
    return jax.device_put(tree, NamedSharding(mesh_of(layout), spec))


def over_runs(fn: Callable, per_run: Sequence[bool], layout: Layout, donate: Sequence[int] = ()) -> Any:
    """Lifts a function of one run to all runs of a layout, jit-compiled.

    Args:
      fn: function of one run's arguments.
      per_run: for each argument, whether it has a leading run axis (else it is shared by all runs).
      layout: devices and vmap width; the run axis must have ``layout.padded`` length.
      donate: arguments whose buffers are reused.

    Returns:
      A jitted function of the stacked arguments; its results have a leading run axis.
    """

    @in_full_precision
    def on_device(*args):
        own = [arg for arg, varies in zip(args, per_run, strict=True) if varies]

        def one(own_args):
            rest = iter(own_args)
            return fn(*(next(rest) if varies else arg for arg, varies in zip(args, per_run, strict=True)))

        return jax.lax.map(one, own, batch_size=layout.width if layout.width > 1 else None)

    specs = tuple(PartitionSpec("run") if varies else PartitionSpec() for varies in per_run)
    sharded = jax.shard_map(
        on_device, mesh=mesh_of(layout), in_specs=specs, out_specs=PartitionSpec("run"), check_vma=False
    )
    return jax.jit(sharded, donate_argnums=tuple(donate))


def stack(trees: Sequence[Any]) -> Any:
    """Stacks equal pytrees along a new leading run axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
