"""One measurement of the benchmark, in a process of its own."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import jcredit as jc
from jcredit.study.settings import CIFAR10
from jcredit.sweeps import record
from jcredit.sweeps.layout import use_all_cores

LINES: dict[str, jc.Part] = {
    "bp": jc.bp(),
    "dfa": jc.dfa(),
    "broadcast": jc.broadcast(),
    "scalar_bridge": jc.scalar_bridge(),
    "vector_field M=4 central": jc.vector_field(),
    "vector_field M=4 jvp": jc.vector_field(scheme="jvp"),
    "vector_field M=4 central, all layers": jc.vector_field(layers="all"),
    "tangent_gate": jc.tangent_gate(),
    "tangent_mask": jc.tangent_mask(),
    "tangent_chain": jc.tangent_chain(),
    "tangent_chain, following, 8 samples": jc.tangent_chain(8, follows=True),
    "tangent_sweeps K=2": jc.tangent_sweeps(2),
    "kolen_pollack": jc.kolen_pollack(),
    "kolen_pollack K=2": jc.kolen_pollack(sweeps=2),
}
SCOPES = (
    ("batch",), ("adam",), ("estimator",), ("credit",), ("update", "embedding"), ("update",), ("forward", "embedding"),
    ("forward",),
)  # fmt: skip
IMAGES = 3200


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Measures one job (see ``benchmark.jobs``) and returns its numbers."""
    if job["kind"] == "torch":
        from torch_eager import Sizes, measure

        rates = measure(job["method"], job["seeds"], Sizes(), job["seconds"], job["repeats"])
        return {"rates": rates, "peak_bytes": _resident_bytes()}
    if job.get("one_core"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    use_all_cores()
    return {"peak": matmul_peak, "line": measure_line, "pair": measure_pair, "profile": profile}[job["kind"]](job)


def _peak_bytes() -> int:
    """Of the first device where it has memory of its own, else of this process."""
    import jax

    if (stats := jax.local_devices()[0].memory_stats()) and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return _resident_bytes()


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _rates(call, units: float, job: dict[str, Any]) -> list[float]:
    """Units per second of each repeat, every repeat long enough to be timed."""
    start = time.perf_counter()
    call()  # the first call also faults pages in, and tells how many make a repeat
    n = max(1, round(job["seconds"] / (time.perf_counter() - start)))
    rates = []
    for _ in range(job["repeats"]):
        start = time.perf_counter()
        for _ in range(n):
            call()
        rates.append(n * units / (time.perf_counter() - start))
    return rates


def matmul_peak(job: dict[str, Any]) -> dict[str, Any]:
    """FLOP/s of 1024 x 1024 float32 products on all devices at once."""
    import jax
    import jax.numpy as jnp

    from jcredit.sweeps.layout import Layout, over_runs

    layout = Layout(jax.local_device_count())
    size, products = 1024, 10
    chain = over_runs(lambda x, w: jax.lax.fori_loop(0, products, lambda _, y: y @ w, x), (True, False), layout)
    x, w = jnp.ones((layout.devices, size, size)), jnp.eye(size)
    call = lambda: jax.block_until_ready(chain(x, w))  # noqa: E731
    rates = _rates(call, layout.devices * products * 2 * size**3, job)
    return {"rates": rates, "device": record.device()}


@jc.task(jc.image_mlp(depth=4, width=256))
def random_pixels() -> jc.Task:
    """Random images and labels of CIFAR-10's shape and augmentation."""
    import numpy as np

    from jcredit.tasks.images import image_task

    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(0, 10, IMAGES).astype(np.int32)
    return image_task("cifar10", jc.Data(pixels, labels, pixels[:1], labels[:1]), crops=True, flips=True)  # type: ignore[arg-type]


def run_of(job: dict[str, Any]) -> jc.Run:
    """The run of a job's line, with its changes."""
    config = CIFAR10.replace(task=random_pixels(), credit=LINES[job["line"]])
    return jc.make_run(config.replace(**job.get("changes", {})))


def profile(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of one step of one seed in each of its parts, [in matrix products, in everything else]."""
    import jax

    from jcredit.sweeps.cost import time_by_scope

    run = run_of(job)
    hp, key = run.hparams(run.config), jax.random.key(0)
    state, data = run.init(key, hp), run.data(key, hp)
    epoch = jax.jit(run.epoch).lower(state, hp, data).compile()
    call = lambda: jax.block_until_ready(epoch(state, hp, data))  # noqa: E731
    rate = statistics.median(_rates(call, run.steps_per_epoch, job))
    spent = time_by_scope(epoch, call, SCOPES)
    return {"rate": rate, "parts": {part: [s / run.steps_per_epoch for s in both] for part, both in spent.items()}}


def measure_line(job: dict[str, Any]) -> dict[str, Any]:
    """Compile seconds, seed-steps per second, matmul FLOPs of one step, and peak memory of one line."""
    import jax
    import jax.numpy as jnp

    from jcredit.sweeps.cost import matmul_flops

    run = run_of(job)
    call, compile_s = _epochs(run, job)
    rates = _rates(call, job["seeds"] * run.steps_per_epoch, job)
    hp, key = run.hparams(run.config), jax.random.key(0)
    given = (jax.eval_shape(run.init, key, hp), hp, jax.eval_shape(run.data, key, hp))
    flops = matmul_flops(run.step, *given, jnp.arange(run.config.batch_size))
    return {"compile_s": compile_s, "rates": rates, "flops": flops, "peak_bytes": _peak_bytes()}


def measure_pair(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a line's epochs over those of BP's, the two in turn: a machine whose rate drifts, drifts for both."""
    calls = [_epochs(run_of(job | {"line": line}), job)[0] for line in ("bp", job["line"])]

    def seconds(call: Callable[[], None]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    bp, line = map(seconds, calls)  # these two also fault pages in, and tell how many make a measurement
    turns = max(5, round(2 * job["seconds"] * job["repeats"] / (bp + line)))
    taken = [(seconds(calls[0]), seconds(calls[1])) for _ in range(turns)]
    return {"costs": [line / bp for bp, line in taken]}


def _epochs(run: jc.Run, job: dict[str, Any]) -> tuple[Callable[[], None], float]:
    """A call that trains all seeds for one more epoch, and the seconds it took to compile."""
    import jax

    from jcredit.sweeps.layout import choose_layout, over_runs, put, stack

    seeds, hp = range(job["seeds"]), run.hparams(run.config)
    layout = choose_layout(job["seeds"], job.get("seeds_per_batch"))
    padded = [*seeds, *[0] * (layout.padded(len(seeds)) - len(seeds))]
    states = put(stack([run.init(jax.random.key(s), hp) for s in padded]), layout, per_run=True)
    hps = put(stack([hp] * len(padded)), layout, per_run=True)
    data = put(run.data(jax.random.key(0), hp), layout, per_run=False)
    start = time.perf_counter()
    epoch = over_runs(run.epoch, (True, True, False), layout, (0,)).lower(states, hps, data).compile()
    compile_s = time.perf_counter() - start

    def call() -> None:
        nonlocal states
        states, metrics = epoch(states, hps, data)
        jax.block_until_ready(metrics)

    return call, compile_s
