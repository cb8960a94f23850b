"""Shared pieces of the tests: tiny runs, one small network with every array at hand, a poisoned backward pass."""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jcredit.config import Config, Hparams
from jcredit.networks import forward, image_mlp, ladder_mlp, lq_dynamics, make_env
from jcredit.numerics import float_type
from jcredit.tasks import Data, Task
from jcredit.tasks.base import cross_entropy
from jcredit.tasks.lq import quadratic_loss
from jcredit.tasks.teacher import INPUTS, teacher_task
from jcredit.training import Run, code_width, make_context
from jcredit.types import Array, Context, Env, NetParams, Network, Shapes, TrainState

TINY = Config(
    task="teacher", depth=3, width=16, classes=4, batch_size=8, train_size=32, test_size=16, epochs=2, hidden=16,
    hidden_layers=1, projection_dim=4, gate_rank=8, tangent_samples=4, directions=2, noise_samples=2,
    diagnostic_samples=16,
)  # fmt: skip

# conftest.py turns the compiler's optimisations off; tests of bits turn them on again, as in real runs.
quick = jax.jit
optimised_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
)


def tiny(**changes: Any) -> Config:
    """A configuration that compiles and runs in moments."""
    return dataclasses.replace(TINY, **changes)


# Every way to obtain credit without back-propagation, options included.
VARIANTS: dict[str, dict[str, Any]] = {
    "frozen": dict(method="frozen"),
    "broadcast": dict(method="broadcast"),
    "dfa": dict(method="dfa"),
    "fa": dict(method="fa"),
    "state_bridge": dict(method="state_bridge"),
    "state_bridge-raw": dict(method="state_bridge", state_loss="raw", code="deltaL_hL"),
    "scalar_bridge": dict(method="scalar_bridge", warmup_ratio=0.5),
    "scalar_bridge-present": dict(method="scalar_bridge", bridge_noise="present", bridge_target="softmin"),
    "scalar_bridge-paired": dict(method="scalar_bridge", bridge_noise="paired", exact_terminal=True),
    "field-central": dict(method="vector_field", code="deltaL"),
    "field-one_sided": dict(method="vector_field", scheme="one_sided", direction_layers="all", code="eT_hL"),
    "field-jvp": dict(method="vector_field", scheme="jvp", shuffled=True, exact_terminal=True),
    "field-gate": dict(method="vector_field", field_form="gate"),
    "field-mask": dict(method="vector_field", field_form="mask", scheme="jvp"),
    "field-chain": dict(method="vector_field", field_form="chain", direction_layers="all"),
    "field-residual": dict(method="vector_field", residual_directions=2),
    "tangent_gate": dict(method="tangent_gate"),
    "tangent_mask": dict(method="tangent_mask"),
    "tangent_chain": dict(method="tangent_chain"),
    "tangent_gate-scalar": dict(method="tangent_gate", tangent_target="scalar", scheme="jvp"),
    "tangent_chain-residual": dict(method="tangent_chain", tangent_target="scalar", residual_directions=2),
}
# One of each way to compute a credit: the others differ in how they learn it.
CREDITS = (
    "frozen", "broadcast", "dfa", "fa", "state_bridge", "scalar_bridge", "field-central", "field-jvp", "field-residual",
    "tangent_gate", "tangent_mask", "tangent_chain",
)  # fmt: skip
# Those whose a_l looks at no hidden layer but its own, hence can be computed for every layer at once.
OWN_LAYER_ONLY = ("broadcast", "dfa", "state_bridge", "scalar_bridge", "field-central", "tangent_gate")
RULES = ("inner_product", "target_shift", "cosine")


# --- a small network with every array at hand -------------------------------------------------------------------------


class Scene(NamedTuple):
    """A network with random, nowhere degenerate parameters, a batch, and BP gradients from an explicit tail."""

    config: Config
    network: Network
    loss: Any
    params: NetParams
    x_BxI: Array
    target_B: Array
    projection_DxP: Array
    noise_LxBxD: Array | None
    ctx: Context
    env: Env
    delta_LxBxD: Array


def build_network(kind: str, depth: int, width: int, classes: int) -> Network:
    if kind == "image":
        return image_mlp(12, width, depth, classes)
    if kind == "ladder":
        return ladder_mlp(12, width, depth, classes, 0.7)
    return lq_dynamics(12, depth, classes)


def explicit_tail(network: Network, params: NetParams, layer: int, h_BxD: Array, noise_LxBxD: Array | None = None):
    """h_layer -> the outputs, block after block."""
    for l in range(layer, jax.tree.leaves(params.blocks)[0].shape[0]):  # noqa: E741
        h_BxD = network.block(jax.tree.map(lambda p: p[l], params.blocks), h_BxD)  # noqa: B023
        h_BxD = h_BxD if noise_LxBxD is None else h_BxD + noise_LxBxD[l]
    return network.readout(params.readout, h_BxD)


@functools.cache
def _scene_arrays(kind: str, depth: int, batch: int, x64: bool):
    del x64  # only part of the cache's key
    config = tiny(depth=depth, width=12, classes=4, batch_size=batch)
    network = build_network(kind, depth, 12, 4)
    loss = quadratic_loss if kind == "lq" else cross_entropy

    params = randomised(jax.eval_shape(network.init, jax.random.key(0)), 7)
    x, projection = normal(1, batch, 12), normal(2, 12, config.projection_dim)
    target = normal(3, batch, 4) if kind == "lq" else jnp.arange(batch, dtype=jnp.int32) % 4
    noise = 0.1 * normal(4, depth, batch, 12) if kind == "lq" else None

    def deltas(params, x, target, noise):
        h_LxBxD = forward(network, params, x, noise).h_LxBxD
        tail_loss = lambda h, l: jnp.sum(loss(explicit_tail(network, params, l, h, noise), target))  # noqa: E731, E741
        return jnp.stack([jax.grad(tail_loss)(h_LxBxD[l], l) for l in range(depth + 1)])  # noqa: E741

    arrays = params, x, target, projection, noise, jax.jit(deltas)(params, x, target, noise)
    return config, network, loss, arrays


def make_scene(kind: str = "image", depth: int = 3, batch: int = 8, **changes: Any) -> Scene:
    """The scene called ``image``, ``ladder`` or ``lq`` (with process noise); ``changes`` go to its config."""
    config, network, loss, arrays = _scene_arrays(kind, depth, batch, bool(jax.config.jax_enable_x64))
    params, x, target, projection, noise, delta = arrays
    config = dataclasses.replace(config, **changes)
    ctx = context_of(config, network, loss, params, projection, x, target, noise)
    env = make_env(network, loss, params)
    return Scene(config, network, loss, params, x, target, projection, noise, ctx, env, delta)


@functools.cache
def _context_program(code: str, network: Network, loss: Any, x64: bool):
    del x64
    task: Any = SimpleNamespace(loss=loss)

    def build(params, projection, x, target, noise):
        trace = forward(network, params, x, noise)
        return make_context(tiny(code=code), task, network, params, projection, trace, target)

    return jax.jit(build)


def context_of(config, network, loss, params, projection, x, target, noise) -> Context:
    build = _context_program(config.code, network, loss, bool(jax.config.jax_enable_x64))
    return build(params, projection, x, target, noise)


def shapes_of(scene: Scene) -> Shapes:
    config = scene.config
    return Shapes(
        config.depth, config.width, config.classes, code_width(config), config.width, scene.network.branch_weights
    )


def branch_weights_of(scene: Scene) -> tuple[Array, Array]:
    """U = W1 and V = W2 of every block: what a learned map is to find."""
    blocks = scene.params.blocks
    if scene.config.depth and "inner" in blocks:
        return blocks["inner"]["w"], blocks["outer"]["w"]
    return blocks["w"], jnp.broadcast_to(jnp.eye(12, dtype=blocks["w"].dtype)[None], blocks["w"].shape)


def normal(seed: int, *shape: int) -> Array:
    """Standard normal numbers in the current precision; drawn by numpy, which compiles nothing."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), float_type())


def randomised(tree: Any, seed: int, scale: float = 0.3) -> Any:
    """Every leaf replaced by normal numbers: learned maps that start at zero hide mistakes."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [scale * normal(seed + i, *leaf.shape) for i, leaf in enumerate(leaves)])


# --- tiny runs --------------------------------------------------------------------------------------------------------


def image_network_task(config: Config) -> Task:
    """The teacher's data for the study's image network: needs no images."""
    network = image_mlp(INPUTS, config.width, config.depth, config.classes)
    return teacher_task(config)._replace(network=lambda hp: network)


def easy_data(config: Config) -> Data:
    """Samples of the teacher's sizes, labelled by the largest of their first entries."""
    x = [normal(20 + i, samples, INPUTS) for i, samples in enumerate((config.train_size, config.test_size))]
    y = [jnp.asarray(np.argmax(part[:, : config.classes], axis=1), jnp.int32) for part in x]
    return Data(x[0], y[0], x[1], y[1])


def start(run: Run, config: Config, seed: int = 0) -> tuple[TrainState, Hparams, Data]:
    """State, swept numbers and data of a run."""
    hp = run.hparams(config)
    return run.init(jax.random.key(seed), hp), hp, easy_data(config)


def first_batch(config: Config) -> Array:
    return jnp.arange(config.batch_size)


# --- comparisons ------------------------------------------------------------------------------------------------------


def relative(found: Array, expected: Array) -> float:
    """||found - expected|| / ||expected||, in double precision."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def arrays_of(tree: Any) -> list[np.ndarray]:
    """The leaves as numpy arrays, keys as their bits."""
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in jax.tree.leaves(tree)]


def same_bits(a: Any, b: Any) -> bool:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(x.tobytes() == y.tobytes() for x, y in zip(arrays_of(a), arrays_of(b), strict=True))


# --- the poisoned backward pass ---------------------------------------------------------------------------------------


class HiddenBackprop(Exception):
    """A reverse pass reached the input of a block."""


_poison_p = Primitive("poison")
_poison_p.def_impl(lambda x: x)
_poison_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(_poison_p, lambda ctx, x: [x])
batching.primitive_batchers[_poison_p] = lambda args, dims: (_poison_p.bind(*args), dims[0])


def _poison_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    return _poison_p.bind(x), t if type(t) is ad.Zero else _poison_p.bind(t)


def _poison_transpose(cotangent, x):
    raise HiddenBackprop("a reverse pass reached the input of a block")


ad.primitive_jvps[_poison_p] = _poison_jvp
ad.primitive_transposes[_poison_p] = _poison_transpose


def poisoned(task: Task) -> Task:
    """The same task, whose blocks let forward mode and their own parameters' gradients through, and nothing back.

    A ``custom_vjp`` that raises would not do: it rejects every jvp, and a block's permitted local gradient.
    """

    def network(hp):
        inner = task.network(hp)
        return inner._replace(block=lambda params, h: inner.block(params, _poison_p.bind(h)))

    return task._replace(network=network)
