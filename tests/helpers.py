"""Shared pieces of the tests: tiny runs, and one small network with every array at hand."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jcredit as jc
from jcredit.config import Config, Hparams
from jcredit.numerics import float_type
from jcredit.observing import make_context
from jcredit.parts import Factory, Part
from jcredit.passes import NetworkEnv, depth_of, forward
from jcredit.sweeps.run import run_sweep
from jcredit.sweeps.variants import Folder, Variant
from jcredit.tasks.classification import arrays_task, cross_entropy
from jcredit.tasks.targets import regression_task, squared_error
from jcredit.training import Run
from jcredit.types import Array, Context, Data, NetParams, Network, Shapes, Sizes, TrainState

# conftest.py turns the compiler's optimisations off; tests of bits turn them on again, as in real runs.
quick = jax.jit
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", ""):
    OPTIMISED["xla_cpu_use_fusion_emitters"] = True
optimised_jit = functools.partial(jax.jit, compiler_options=OPTIMISED)

# --- tiny runs --------------------------------------------------------------------------------------------------------

TINY = Config(
    task=jc.tasks.teacher(classes=4, train_size=32, test_size=16),
    network=jc.ladder_mlp(depth=3, width=16),
    batch_size=8,
    epochs=2,
    diagnostic_samples=16,
)
TRUNK = jc.mlp(hidden=16, hidden_layers=1, projection_dim=4)
SMALL = dict(trunk=TRUNK, samples=4, directions=2, noise_samples=2, rank=8)
IMAGE_NETWORK = jc.image_mlp(depth=3, width=16)
"""The study's image network for the teacher's data: needs no images."""


def tiny(credit: Any = None, **changes: Any) -> Config:
    """A configuration that compiles and runs in moments; changes are as in ``Config.replace``, parts first."""
    parts = {name: changes.pop(name) for name in ("task", "network", "rule") if name in changes}
    parts |= {} if credit is None else {"credit": credit}
    return TINY.replace(**parts).replace(**changes)


def small(factory: Factory, **settings: Any) -> Part:
    """A factory's part at sizes that fit tiny runs."""
    sizes = {name: value for name, value in SMALL.items() if name in factory.settings}
    return factory(**{**sizes, **settings})


def trunk(**settings: Any) -> Part:
    """A small trunk of other settings."""
    return TRUNK.replace(**settings)


# Every factory of ours; test_config tells of one that is forgotten here.
FACTORIES: list[Factory] = [
    jc.bp, jc.broadcast, jc.dfa, jc.disturbed_bp, jc.exact_at, jc.exact_terminal, jc.fa, jc.forward_gradient, jc.frozen,
    jc.grape, jc.kolen_pollack, jc.linear_field, jc.local_heads, jc.mlp, jc.scalar_bridge, jc.state_bridge,
    jc.tangent_chain, jc.tangent_coarse, jc.tangent_gate, jc.tangent_mask, jc.tangent_sweeps, jc.unbiased_residual,
    jc.vector_field, jc.weight_mirror, jc.cosine_rule, jc.inner_product, jc.target_shift, jc.image_cnn, jc.image_mixer,
    jc.image_mlp, jc.ladder_mlp, jc.lq_dynamics, jc.tasks.cifar10, jc.tasks.fashion_mnist, jc.tasks.lq,
    jc.tasks.teacher, arrays_task, regression_task,
]  # fmt: skip
# Every way to obtain credit without back-propagation, options included.
VARIANTS: dict[str, Part] = {
    "frozen": jc.frozen(),
    "broadcast": jc.broadcast(),
    "dfa": jc.dfa(),
    "fa": jc.fa(),
    "state_bridge": small(jc.state_bridge),
    "state_bridge-raw": small(jc.state_bridge, state_loss="raw", trunk=trunk(code="deltaL_hL")),
    "state_bridge-no-code": small(jc.state_bridge, trunk=trunk(code="none")),
    "scalar_bridge": small(jc.scalar_bridge),
    "scalar_bridge-present": small(jc.scalar_bridge, noise_at="present", target="softmin"),
    "scalar_bridge-paired": jc.exact_terminal(small(jc.scalar_bridge, noise_at="paired")),
    "field-central": small(jc.vector_field, trunk=trunk(code="deltaL")),
    "field-one_sided": small(jc.vector_field, scheme="one_sided", layers="all", trunk=trunk(code="eT_hL")),
    "field-jvp": jc.exact_terminal(small(jc.vector_field, scheme="jvp", shuffled=True)),
    "field-residual": jc.unbiased_residual(small(jc.vector_field)),
    "linear-gate": small(jc.linear_field, scheme="central"),
    "linear-gate-jvp": small(jc.linear_field),
    "linear-mask": small(jc.linear_field, form="mask"),
    "linear-chain": small(jc.linear_field, form="chain", layers="all", scheme="central"),
    "linear-chain-residual": jc.unbiased_residual(small(jc.linear_field, form="chain", scheme="central")),
    "linear-sweeps": small(jc.linear_field, form="sweeps", sweeps=2),
    "linear-coarse": small(jc.linear_field, form="coarse"),
    "field-scaled": small(jc.vector_field, scale="delta", skip=True),
    "tangent_gate": small(jc.tangent_gate),
    "tangent_gate-later": small(jc.tangent_gate, sees="later"),
    "tangent_mask": small(jc.tangent_mask),
    "tangent_chain": small(jc.tangent_chain),
    "tangent_chain-shuffled": small(jc.tangent_chain, shuffled=True),
    "tangent_chain-states": small(jc.tangent_chain, along="states"),
    "tangent_chain-follows": small(jc.tangent_chain, follows=True),
    "tangent_chain-feedback": small(jc.tangent_chain, begins="feedback"),
    "tangent_sweeps": small(jc.tangent_sweeps, sweeps=2),
    "tangent_sweeps-jacobi": small(jc.tangent_sweeps, sweeps=2, relaxation="jacobi"),
    "tangent_sweeps-from the mask": small(jc.tangent_sweeps, sweeps=1, start="mask"),
    "tangent_sweeps-from the mask-follows": small(
        jc.tangent_sweeps, sweeps=1, start="mask", follows=True, begins="feedback"
    ),
    "tangent_coarse": small(jc.tangent_coarse),
    "tangent_coarse-both": small(jc.tangent_coarse, along="both"),
    "weight_mirror": small(jc.weight_mirror),
    "weight_mirror-sweeps": small(jc.weight_mirror, sweeps=2),
    "kolen_pollack": jc.kolen_pollack(),
    "kolen_pollack-sweep": jc.kolen_pollack(sweeps=1),
    "kolen_pollack-late": jc.kolen_pollack(lag=3),
    "grape": jc.grape(),
    "local_heads": jc.local_heads(),
    "forward_gradient-local": small(jc.forward_gradient),
    "forward_gradient-task": small(jc.forward_gradient, objective="task"),
}
ORACLES: dict[str, Part] = {
    "bp": jc.bp(),
    "disturbed_bp": jc.disturbed_bp(),
    "disturbed_bp-fixed": jc.disturbed_bp(error="fixed"),
    "grape-anchored": jc.grape(anchor_every=2),
    "exact_at": jc.exact_at(of=small(jc.tangent_chain)),
}
# One of each way to compute a credit: the others differ in how they learn it.
CREDITS = (
    "frozen", "broadcast", "dfa", "fa", "state_bridge", "scalar_bridge", "field-central", "field-jvp", "field-residual",
    "tangent_gate", "tangent_mask", "tangent_chain",
)  # fmt: skip
# Those whose a_l looks at no hidden layer but its own, hence can be computed for every layer at once.
OWN_LAYER_ONLY = ("broadcast", "dfa", "state_bridge", "scalar_bridge", "field-central", "tangent_gate")
RULES: dict[str, Part] = {
    "inner_product": jc.inner_product(),
    "target_shift": jc.target_shift(eta=0.1),
    "cosine": jc.cosine_rule(),
}


def as_part(declare: Any, made: Any) -> Any:
    """A part of a test's own, declared by ``jc.estimator``, ``jc.rule`` ..., whose factory returns what is given."""

    def own():
        return made

    return declare(own)()


def easy_data(config: Config) -> Data:
    """Samples of the teacher's sizes, labelled by the largest of their first entries."""
    task = config.task.settings
    x = [normal(20 + i, task[samples], task["inputs"]) for i, samples in enumerate(("train_size", "test_size"))]
    y = [jnp.asarray(np.argmax(part[:, : task["classes"]], axis=1), jnp.int32) for part in x]
    return Data(x[0], y[0], x[1], y[1])


def start(run: Run, config: Config, seed: int = 0) -> tuple[TrainState, Hparams, Data]:
    """State, swept numbers and (easy) data of a run."""
    hp = run.hparams(config)
    return run.init(jax.random.key(seed), hp), hp, easy_data(config)


def sweep_into(path: Path, variants: Sequence[Variant], seeds: Iterable[int] = (0, 1), name: str = "tiny", **options):
    """Rows of a sweep whose folder lies in ``path``."""
    return run_sweep(variants, tuple(seeds), Folder(path, name, "smoke"), progress=False, **options)


def variant(label: str = "dfa", credit: Any = None, block: str = "", **changes: Any) -> Variant:
    """A line of a sweep whose programs compile in moments."""
    return Variant(label, tiny(credit or jc.dfa(), **{"network.depth": 2, "diagnose_every": 2, **changes}), block)


def measured(row: dict[str, Any]) -> dict[str, Any]:
    """What of a row must not depend on how its run was scheduled."""
    return {k: row[k] for k in ("config_hash", "seed", "status", "epochs", "metrics", "layers", "curves", "flags")}


def small_images(samples: int, *shape: int) -> Part:
    """A task of random images (H, W, channels) in three classes."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(samples, *shape)).astype(np.float32), np.arange(samples) % 3
    return jc.tasks.arrays(x, y, x, y)


def first_batch(config: Config) -> Array:
    return jnp.arange(config.batch_size)


# --- a small network with every array at hand -------------------------------------------------------------------------

SIZES = Sizes((12,), 4)


class Scene(NamedTuple):
    """A network with random, nowhere degenerate parameters, a batch, and BP gradients from an explicit tail."""

    network: Network
    loss: Any
    params: NetParams
    x_BxI: Array
    target_B: Array
    noise_LxBxD: Array | None
    ctx: Context
    env: NetworkEnv
    delta_KxBxD: Array


def network_part(kind: str, depth: int) -> Part:
    """The network called ``image``, ``ladder`` or ``lq``, of width 12."""
    return {
        "image": lambda: jc.image_mlp(depth=depth, width=12),
        "ladder": lambda: jc.ladder_mlp(depth=depth, width=12, alpha=0.7),
        "lq": lambda: jc.lq_dynamics(depth=depth),
    }[kind]()


def explicit_tail(network: Network, params: NetParams, layer: int, h_BxD: Array, noise_LxBxD: Array | None = None):
    """h_layer -> the outputs, block after block."""
    for l in range(layer, depth_of(params)):  # noqa: E741
        h_BxD = network.block(jax.tree.map(lambda p: p[l], params.blocks), h_BxD)  # noqa: B023
        h_BxD = h_BxD if noise_LxBxD is None else h_BxD + noise_LxBxD[l]
    return network.readout(params.readout, h_BxD)


@functools.cache
def _scene(kind: str, depth: int, batch: int, x64: bool) -> Scene:
    del x64  # only part of the cache's key
    network = network_part(kind, depth).build(SIZES)
    loss = squared_error if kind == "lq" else cross_entropy
    params = randomised(jax.eval_shape(network.init, jax.random.key(0)), 7)
    x = normal(1, batch, 12)
    target = normal(3, batch, 4) if kind == "lq" else jnp.arange(batch, dtype=jnp.int32) % 4
    noise = 0.1 * normal(4, depth, batch, 12) if kind == "lq" else None

    def deltas(params, x, target, noise):
        h_KxBxD = forward(network, params, x, noise).h_KxBxD
        tail_loss = lambda h, l: jnp.sum(loss(explicit_tail(network, params, l, h, noise), target))  # noqa: E731, E741
        return jnp.stack([jax.grad(tail_loss)(h_KxBxD[l], l) for l in range(depth + 1)])  # noqa: E741

    ctx = _observed(network, loss, params, x, target, noise)
    env = NetworkEnv(network, loss, params)
    return Scene(network, loss, params, x, target, noise, ctx, env, jax.jit(deltas)(params, x, target, noise))


def _observed(network: Network, loss: Any, params: NetParams, x_BxI, target_B, noise_LxBxD) -> Context:
    return _context_program(network, loss, bool(jax.config.read("jax_enable_x64")))(
        params, x_BxI, target_B, noise_LxBxD
    )


@functools.cache
def _context_program(network: Network, loss: Any, x64: bool):
    del x64
    task: Any = SimpleNamespace(loss=loss)
    return jax.jit(lambda params, x, target, noise: make_context(
        task, network, params, forward(network, params, x, noise), target
    ))  # fmt: skip


def make_scene(kind: str = "image", depth: int = 3, batch: int = 8) -> Scene:
    """The scene called ``image``, ``ladder`` or ``lq`` (with process noise)."""
    return _scene(kind, depth, batch, bool(jax.config.read("jax_enable_x64")))


def context_of(scene: Scene, x_BxI: Array, target_B: Array) -> Context:
    """The context of other samples."""
    return _observed(scene.network, scene.loss, scene.params, x_BxI, target_B, scene.noise_LxBxD)


def shapes_of(scene: Scene) -> Shapes:
    return Shapes(depth_of(scene.params), 12, 4, scene.network.branch)


def branch_weights_of(scene: Scene) -> dict[str, Array]:
    """u = W1 and v = W2 of every block: what a learned map is to find."""
    blocks = scene.params.blocks
    if "inner" in blocks:
        return {"u": blocks["inner"]["w"], "v": blocks["outer"]["w"]}
    return {"u": blocks["w"], "v": jnp.broadcast_to(jnp.eye(12, dtype=blocks["w"].dtype)[None], blocks["w"].shape)}


def normal(seed: int, *shape: int) -> Array:
    """Standard normal numbers in the current precision; drawn by numpy, which compiles nothing."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), float_type())


def white(h: Array) -> Array:
    """LayerNorm without affine parameters, by its definition."""
    centred = h - jnp.mean(h, axis=-1, keepdims=True)
    return centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-5)


def randomised(tree: Any, seed: int, scale: float = 0.3) -> Any:
    """Every leaf replaced by normal numbers: learned maps that start at zero hide mistakes."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [scale * normal(seed + i, *leaf.shape) for i, leaf in enumerate(leaves)])


# --- comparisons ------------------------------------------------------------------------------------------------------


def relative(found: Any, expected: Any) -> float:
    """||found - expected|| / ||expected||, in double precision."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def flat(tree: Any) -> np.ndarray:
    """All leaves as one vector, in double precision."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def arrays_of(tree: Any) -> list[np.ndarray]:
    """The leaves as numpy arrays, keys as their bits."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in jax.tree.leaves(tree)]


def same_bits(a: Any, b: Any) -> bool:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(x.tobytes() == y.tobytes() for x, y in zip(arrays_of(a), arrays_of(b), strict=True))


def refused(call: Callable[[], Any], message: str) -> None:
    """The call raises a ConfigError of one line that matches ``message``."""
    with pytest.raises(jc.ConfigError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def counted(function) -> tuple[Any, list[int]]:
    """The function compiled once, and a list that grows each time it is traced."""
    traces = []

    def traced(*args):
        traces.append(1)
        return function(*args)

    return jax.jit(traced), traces
