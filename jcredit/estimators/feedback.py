"""Fixed random feedback: direct (Nokland 2016) and block by block (Lillicrap et al. 2016)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jcredit import parts
from jcredit.estimators.linear_maps import chain_pull
from jcredit.numerics import float_type
from jcredit.passes import branch_of
from jcredit.settings import Positive
from jcredit.types import Estimator, EstState, all_blocks


@parts.estimator
def dfa() -> Estimator:
    """Direct feedback alignment: a_l = e_T B_l with fixed B_l ~ N(0, 1/C), for l = 0..L (Nokland 2016)."""

    def init(key, shapes):
        shape = (shapes.depth + 1, shapes.outputs, shapes.width)
        return EstState({}, shapes.outputs**-0.5 * jax.random.normal(key, shape, float_type()))

    def credit(state, ctx, env, key):
        del env, key
        return jnp.einsum("bc,kcd->kbd", ctx.error_BxC, state.extra)

    return Estimator(init, credit, tier="0: random feedback", depth=1)


@parts.estimator
def fa(scale: Positive = 1.0) -> Estimator:
    """Feedback alignment: each block's backward pass with fixed random weights (Lillicrap et al. 2016).

    The residual identity, the LayerNorm Jacobian and the activation derivatives are kept; the weights are replaced by
    random ones.  Starts from the exact delta_L.

    Args:
      scale: of the random weights, relative to the initial size of the block's own.
    """

    def init(key, shapes):
        random = branch_of(shapes, "fa").random
        return EstState({}, jax.vmap(lambda k: random(k, scale))(jax.random.split(key, shapes.depth)))

    def credit(state, ctx, env, key):
        del key
        h_LxBxD = ctx.trace.h_KxBxD[:-1]
        return chain_pull(branch_of(env, "fa"), state.extra, env.gates(h_LxBxD), h_LxBxD, ctx.delta_BxD)

    return Estimator(init, credit, tier="0: random feedback, sequential", depth=all_blocks)
