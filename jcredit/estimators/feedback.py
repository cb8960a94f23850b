"""Fixed random feedback: direct (Nokland 2016) and block by block (Lillicrap et al. 2016)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jcredit.estimators.linear_maps import chain_pull
from jcredit.numerics import float_type
from jcredit.types import Estimator, EstState


def dfa() -> Estimator:
    """Direct feedback alignment: a_l = e_T B_l with fixed B_l ~ N(0, 1/C), for l = 0..L (Nokland 2016)."""

    def init(key, shapes):
        shape = (shapes.depth + 1, shapes.outputs, shapes.width)
        return EstState({}, shapes.outputs**-0.5 * jax.random.normal(key, shape, float_type()))

    def credit(state, ctx, env, hp, key):
        del env, hp, key
        return jnp.einsum("bc,lcd->lbd", ctx.error_BxC, state.extra)

    return Estimator(init, credit, None, "0: random feedback")


def fa(scale: float = 1.0) -> Estimator:
    """Feedback alignment: each block's backward pass with fixed random matrices (Lillicrap et al. 2016).

    The residual identity, the LayerNorm Jacobian and the activation derivatives are kept; both weight matrices are
    replaced by random ones at ``scale`` times the initial W1's.  Starts from the exact delta_L.
    """

    def init(key, shapes):
        keys = jax.random.split(key, shapes.depth)
        return EstState({}, jax.vmap(lambda k: shapes.branch_weights(k, scale))(keys))

    def credit(state, ctx, env, hp, key):
        del hp, key
        u_LxDxH, v_LxHxD = state.extra
        hidden = ctx.trace.h_LxBxD[:-1]
        return chain_pull(u_LxDxH, v_LxHxD, env.gates(hidden), hidden, ctx.delta_BxD)

    return Estimator(init, credit, None, "0: random feedback, sequential")
