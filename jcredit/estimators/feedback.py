"""Fixed random feedback: direct (Nokland 2016) and block by block (Lillicrap et al. 2016)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jcredit import parts
from jcredit.estimators.linear_maps import chain_pull, random_branches
from jcredit.numerics import float_type
from jcredit.settings import Positive
from jcredit.types import Array, Estimator, EstState, Key, Shapes, all_blocks


def direct_feedback(key: Key, states: int, shapes: Shapes) -> Array:
    """Matrices from the outputs' error to as many states, B_l ~ N(0, 1/C): (states, C, D)."""
    shape = (states, shapes.outputs, shapes.width)
    return shapes.outputs**-0.5 * jax.random.normal(key, shape, float_type())


@parts.estimator
def dfa() -> Estimator:
    """Direct feedback alignment: a_l = e_T B_l with fixed B_l ~ N(0, 1/C), for l = 0..L (Nokland 2016)."""

    def init(key, shapes):
        return EstState({}, direct_feedback(key, shapes.depth + 1, shapes))

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
      scale: of the random weights, relative to the size that the network chooses (``Branch.random``).
    """

    def init(key, shapes):
        return EstState({}, random_branches(key, shapes, scale, "fa"))

    def credit(state, ctx, env, key):
        del key
        return chain_pull(state.extra, env, ctx.trace, ctx.delta_BxD, "fa")

    return Estimator(init, credit, tier="0: random feedback, sequential", depth=all_blocks)
