"""Whether a run can run: its parts tried against each other by shape alone, before anything is compiled."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr

from jcredit.config import ConfigError, Hparams
from jcredit.numerics import float_type
from jcredit.training import Run
from jcredit.types import Data, NetParams, Network, Task, TrainState


def check_run(run: Run) -> Jaxpr:
    """Traces a run without compiling it, so that what cannot run is said at once.

    Returns:
      One step as a jaxpr.

    Raises:
      ConfigError: a part that does not fit, such as a credit of another shape than the states.
    """
    key, hp = jax.random.key(0), run.hparams(run.config)
    task, network, *_ = run.built(hp)
    _check_network(run.config.network.name, network, task)
    data = jax.eval_shape(run.data, key, hp)
    _check_data(run.config.task.name, task, data)
    state = jax.eval_shape(run.init, key, hp)
    step = _checked_step(run, state, hp, data)
    jax.eval_shape(run.diagnose, state, hp, data)
    return step


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
