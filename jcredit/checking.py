"""Whether a run can run: its parts tried against each other by shape alone, before anything is compiled."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr

from jcredit.config import PARTS, ConfigError, Hparams
from jcredit.numerics import float_type, in_full_precision
from jcredit.sources import array_digest
from jcredit.training import Run
from jcredit.types import Array, Data, Estimator, LossFn, NetParams, Network, Task, TrainState

FEW = 4
"""Samples that a part of one's own is tried on."""
TOLERANCE = 1e-4
_USUAL = ("state", "ctx", "env", "key")
SIGNATURES = {
    "init": ("key", "shapes"), "credit": _USUAL, "loss": _USUAL, "update": _USUAL,
    "follow": ("state", "env", "step", "keep"),
}  # fmt: skip
"""What the functions of an estimator are called with."""


def check_run(run: Run) -> Jaxpr:
    """Traces a run without compiling it, so that what cannot run is said at once.

    Returns:
      One step as a jaxpr.

    Raises:
      ConfigError: a part that does not fit, such as a credit of another shape than the states.
    """
    key, hp = jax.random.key(0), run.hparams(run.config)
    task, network, estimator, _ = run.built(hp)
    check_signatures(run.config.credit.name, estimator)
    _check_network(run.config.network.name, network, task)
    data = jax.eval_shape(run.data, key, hp)
    _check_data(run.config.task.name, task, data)
    state = jax.eval_shape(run.init, key, hp)
    _check_trainable(run.config.credit.name, state)
    step = _checked_step(run, state, hp, data)
    jax.eval_shape(run.diagnose, state, hp, data)
    return step


@in_full_precision
def check_own(run: Run, own: Set[str]) -> None:
    """Refuses what parts of the user's own can get wrong without an error, having tried them on a few samples.

    Args:
      run: their run.
      own: which of its parts are not jcredit's: ``task``, ``network``, ``credit``, ``rule``.

    Raises:
      ConfigError: numbers that come from no key, a loss or a block in which samples of a batch mix.
    """
    config, key, hp = run.config, jax.random.key(0), run.hparams(run.config)
    task, network, *_ = run.built(hp)
    data = jax.eval_shape(run.data, key, hp)
    named = lambda *parts: " or ".join(getattr(config, part).name for part in parts if part in own)  # noqa: E731
    if own & {"network", "credit"}:
        check_repeats(f"{named('network', 'credit')}: init", run.init, key, hp)
    index_B = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
    check_repeats(named(*PARTS), run.step, jax.eval_shape(run.init, key, hp), hp, data, index_B)
    if "task" in own:
        outputs_BxC = jax.random.normal(key, (FEW, task.sizes.outputs), float_type())
        target_B = _few(data.test_y, task.sizes.outputs)
        if isinstance(task.data, Data):
            target_B = jnp.asarray(task.data.test_y[:FEW])
        check_samples_apart(config.task.name, task, outputs_BxC[: len(target_B)], target_B)
        if not callable(task.data) and array_digest(jax.tree.leaves(task.data)) != _read_again(run, hp):
            raise ConfigError(
                f"task {config.task.name} has other samples whenever it is built; draw from the key it is handed, or"
                " from a generator with a seed of its own"
            )
    if "network" in own:
        params, x_B = network.init(key), jax.eval_shape(task.prepare, data.test_x)
        check_blocks_apart(config.network.name, network, params, network.embed(params.embed, _few(x_B)))


def _few(like: Any, below: int = 2) -> Array:
    """As many samples as are tried, of some shape and type: normal numbers, or whole ones below another."""
    shape = (FEW, *like.shape[1:])
    if jnp.issubdtype(like.dtype, jnp.inexact):
        return jax.random.normal(jax.random.key(1), shape, like.dtype)
    return (jnp.arange(math.prod(shape)) % below).reshape(shape).astype(like.dtype)


def _read_again(run: Run, hp: Hparams) -> str:
    """Digest of the samples that a run's task has when it is built once more."""
    return array_digest(jax.tree.leaves(run.built(hp).task.data))


def check_signatures(name: str, estimator: Estimator) -> None:
    """Refuses an estimator whose functions do not take what they are called with.

    Raises:
      ConfigError: one does not.
    """
    for field, called in SIGNATURES.items():
        function = getattr(estimator, field)
        if function is None:
            continue
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # written in C, say
            continue
        try:
            signature.bind(*called)
        except TypeError:
            raise ConfigError(
                f"{name}: {field}{signature} is called as {field}({', '.join(called)}); let it take these"
            ) from None


def check_repeats(what: str, function: Callable, *args: Any) -> None:
    """Refuses a function that is another program when it is traced again.

    Raises:
      ConfigError: it is one.
    """
    # A function that JAX has not seen before: it would not trace one anew.
    programs = [jax.make_jaxpr(lambda *given: function(*given))(*args) for _ in range(2)]
    first, second = ((str(program.jaxpr), array_digest(program.consts)) for program in programs)
    if first != second:
        raise ConfigError(
            f"{what} is another program when it is traced again: it draws from numpy or keeps something between calls;"
            " draw from the key it is handed alone"
        )


def check_samples_apart(name: str, task: Task, outputs_BxC: Array, target_B: Array) -> None:
    """Refuses a loss or accuracy that is not one number for each sample, whatever others are in its batch.

    Raises:
      ConfigError: it is not.
    """
    others_BxC = outputs_BxC.at[1:].set(1 - outputs_BxC[1:])
    others_B = jnp.asarray(target_B).at[1:].set(target_B[0])
    score: LossFn
    for what, score in (("loss", task.loss), ("accuracy", task.accuracy or task.loss)):
        found, samples = score(outputs_BxC, target_B), (len(outputs_BxC),)
        if jnp.shape(found) != samples:
            raise ConfigError(f"{name}: {what} has shape {jnp.shape(found)}, not {samples}: one number a sample")
        if not _alike(score(others_BxC, others_B)[:1], found[:1]):
            raise ConfigError(
                f"{name}: a sample's {what} depends on the others of its batch; outputs have shape"
                f" {outputs_BxC.shape} and targets {jnp.shape(target_B)}, which may broadcast"
            )


def check_blocks_apart(name: str, network: Network, params: NetParams, h_BxD: Array) -> None:
    """Refuses a network in whose first block or readout, at its start, samples of a batch mix: credit is of a sample.

    Raises:
      ConfigError: it is one.
    """
    first, others_BxD = jax.tree.map(lambda p: p[0], params.blocks), h_BxD.at[1:].set(1 - h_BxD[1:])
    for what, function in (
        ("a block mixes", jax.jit(lambda h: network.block(first, h))),
        ("its readout mixes", jax.jit(lambda h: network.readout(params.readout, h))),
    ):
        if not _alike(function(others_BxD)[:1], function(h_BxD)[:1]):
            raise ConfigError(f"{name}: {what} the samples of a batch")


def _alike(one: Array, other: Array) -> bool:
    """Whether arrays of numbers, finite or not, are those of the other but for rounding."""
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        apart, size = (np.linalg.norm(np.nan_to_num(x)) for x in (a - b, b))
    return a.shape == b.shape and bool(apart <= TOLERANCE * (size + 1e-6))


def _check_network(name: str, network: Network, task: Task) -> None:
    """Refuses a network whose functions do not take what the others give."""
    params = jax.eval_shape(network.init, jax.random.key(0))
    if not isinstance(params, NetParams):
        raise ConfigError(
            f"network {name}: init returns a {type(params).__name__}; return jc.NetParams(embed=..., blocks=...,"
            " readout=...)"
        )
    leading = {leaf.shape[:1] for leaf in jax.tree.leaves(params.blocks)}
    if len(leading) != 1 or () in leading:
        raise ConfigError(
            f"network {name}: parameters of the blocks do not share their leading axis, one entry a block"
        )
    samples = 2
    x = jax.ShapeDtypeStruct((samples, *task.sizes.inputs), float_type())
    h = jax.eval_shape(network.embed, params.embed, x)
    if len(h.shape) != 2:
        return  # the forward pass says it
    if h.dtype != float_type():
        raise ConfigError(
            f"network {name}: states are of type {h.dtype}; a run's are {jnp.dtype(float_type())}, cast them in embed"
        )
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params.blocks)
    after, outputs = jax.eval_shape(network.block, first, h), jax.eval_shape(network.readout, params.readout, h)
    if (after.shape, after.dtype) != (h.shape, h.dtype):
        raise ConfigError(
            f"network {name}: a block turns states {_sample(h)} into {_sample(after)}; all states are of one shape and"
            " type"
        )
    if outputs.shape != (samples, task.sizes.outputs):
        raise ConfigError(
            f"network {name}: readout gives each sample an array of shape {outputs.shape[1:]}, and the task has"
            f" {task.sizes.outputs} outputs; take their number from sizes.outputs"
        )


def _check_trainable(name: str, state: TrainState) -> None:
    """Refuses parameters of an estimator that no gradient can train."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.est_state.params):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            where = jax.tree_util.keystr(path)
            raise ConfigError(f"{name}: state.params{where} is of type {leaf.dtype}; keep it in state.extra")


def _sample(states: Any) -> str:
    return f"{states.dtype}{states.shape[1:]}"


def _check_data(name: str, task: Task, data: Data) -> None:
    """Refuses a task that speaks of samples it does not have: JAX would take the last one in their place."""
    for split in ("train", "test") if task.train_size is not None else ("test",):
        x, y = (getattr(data, f"{split}_{kind}") for kind in "xy")
        if x.shape[:1] != y.shape[:1] or x.shape[:1] in ((), (0,)):
            raise ConfigError(
                f"task {name}: {split}_x has shape {x.shape} and {split}_y {y.shape}; give as many of both, one or more"
            )
    if task.train_size is not None and task.train_size > len(data.train_x):
        raise ConfigError(
            f"task {name}: train_size={task.train_size}, but its data have {len(data.train_x)} training samples"
        )


def _checked_step(run: Run, state: TrainState, hp: Hparams, data: Data) -> Jaxpr:
    """One step as a jaxpr, which must leave the state of one kind."""
    name, index = run.config.credit.name, jax.ShapeDtypeStruct((run.config.batch_size,), jnp.int32)
    step, (after, _) = jax.make_jaxpr(run.step, return_shape=True)(state, hp, data, index)
    for field in TrainState._fields:
        old, new = (jax.tree.structure(getattr(s, field)) for s in (state, after))
        if old != new:
            raise ConfigError(
                f"{name}: a step turns state.{field} from {_brief(old)} into {_brief(new)}; its fields must stay"
            )
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(after), strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            where = jax.tree_util.keystr(path)
            raise ConfigError(
                f"{name}: a step turns state{where} from {old.dtype}{old.shape} into {new.dtype}{new.shape}; shapes and"
                " types must stay"
            )
    return step.jaxpr


def _brief(structure: Any) -> str:
    """A tree's structure without the name of its type."""
    return str(structure).removeprefix("PyTreeDef(").removesuffix(")")
