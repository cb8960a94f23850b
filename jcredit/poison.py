"""No hidden back-propagation, enforced: step and credit are traced with blocks that let no reverse pass out of them."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jcredit import parts
from jcredit.config import Config
from jcredit.parts import NetworkPart
from jcredit.settings import ConfigError
from jcredit.training import make_run
from jcredit.types import Network, Sizes


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


@parts.network
def poisoned(sizes: Sizes, /, of: NetworkPart) -> Network:
    """The same network, whose blocks let forward mode and their own parameters' gradients through, and nothing back.

    So do the gates of its branch, which are made of a block's input and its weights.  A ``custom_vjp`` that raises
    would not do: it rejects every jvp, and a block's permitted local gradient.

    Args:
      sizes: of the task.
      of: the network.
    """
    inner: Network = of.build(sizes)
    if (branch := inner.branch) is not None:
        gates = branch.gates
        branch = branch._replace(gates=lambda params, h: gates(params, _poison_p.bind(h)))
    return inner._replace(block=lambda params, h: inner.block(params, _poison_p.bind(h)), branch=branch)


def check_no_hidden_backprop(config: Config, *, data_dir: str | Path | None = None) -> None:
    """Traces a training step of a run, and its credit, on poisoned blocks; nothing is compiled.

    Args:
      config: the run; an oracle may do as it likes.
      data_dir: folder with prepared image data.

    Raises:
      ConfigError: credit, its loss or the local rule back-propagates through a block.
    """
    if config.credit.build().oracle:
        return
    run = make_run(config.replace(network=poisoned(of=config.network)), data_dir=data_dir)
    key, hp = jax.random.key(0), run.hparams(run.config)
    state, data = jax.eval_shape(run.init, key, hp), jax.eval_shape(run.data, key, hp)
    index = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)

    def step_and_credit(state, hp, data, index_B):  # a step that fits the estimator alone asks for no credit
        x_B, target_B = run.built(hp).task.batch(data, index_B, key)
        return run.step(state, hp, data, index_B), run.credit(state, hp, x_B, target_B, key)

    try:
        jax.eval_shape(step_and_credit, state, hp, data, index)
    except HiddenBackprop:
        raise ConfigError(
            f"{config.credit.name} back-propagates through a block; measure effects forward with jc.measure, stop the"
            " gradient (jax.lax.stop_gradient) of what its loss hands to env, or say oracle=True of its jc.Estimator,"
            " which every table then prints"
        ) from None
