"""References of learned credit: back-propagation, as it is and disturbed, frozen blocks, and the plain broadcast."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jcredit import parts
from jcredit.numerics import float_type, norm
from jcredit.settings import NonNegative
from jcredit.types import Estimator, EstState, all_blocks, nothing_to_learn


@parts.estimator
def bp() -> Estimator:
    """The oracle: a_l = delta_l, by back-propagation (Rumelhart et al. 1986)."""

    def credit(state, ctx, env, key):
        del state, env, key
        return ctx.delta_KxBxD

    return Estimator(nothing_to_learn, credit, tier="oracle: back-propagation", depth=all_blocks, oracle=True)


@parts.estimator
def disturbed_bp(size: NonNegative = 1.0, error: Literal["fresh", "fixed"] = "fresh") -> Estimator:
    """The oracle with an error of known size: a_l = delta_l + size |delta_l| n.

    Gamma is 1 / sqrt(1 + size^2): throughout with a fresh error, before training with a fixed one.  The former averages
    out over samples and steps, the latter does not, as an estimator's own bias does not.

    Args:
      size: of the error, relative to |delta_l|.
      error: fresh: n ~ N(0, I / D) for every sample, layer and step; fixed: n = R_l delta_l / |delta_l| with one matrix
        R_l ~ N(0, 1/D) for each layer, drawn once.
    """

    def init(key, shapes):
        if error == "fresh":
            return nothing_to_learn(key, shapes)
        r_LxDxD = jax.random.normal(key, (shapes.depth, shapes.width, shapes.width), float_type())
        return EstState(params={}, extra={"r": shapes.width**-0.5 * r_LxDxD})

    def credit(state, ctx, env, key):
        del env
        delta_LxBxD = ctx.delta_KxBxD[:-1]
        if error == "fixed":
            noise_LxBxD = jnp.einsum("lbd,lde->lbe", delta_LxBxD, state.extra["r"])
        else:
            n_LxBxD = jax.random.normal(key, delta_LxBxD.shape, delta_LxBxD.dtype)
            scale_LxBx1 = norm(delta_LxBxD)[..., None] * delta_LxBxD.shape[-1] ** -0.5
            noise_LxBxD = scale_LxBx1 * n_LxBxD
        return jnp.concatenate([delta_LxBxD + size * noise_LxBxD, ctx.delta_BxD[None]])

    return Estimator(init, credit, tier="oracle: back-propagation", oracle=True, depth=all_blocks)


@parts.estimator
def frozen() -> Estimator:
    """No credit below the readout, and blocks and embedding that are never updated."""

    def credit(state, ctx, env, key):
        del state, env, key
        zeros_KxBxD = jax.lax.optimization_barrier(jnp.zeros_like(ctx.trace.h_KxBxD))  # else XLA computes its norms
        return zeros_KxBxD.at[-1].set(ctx.delta_BxD)

    return Estimator(nothing_to_learn, credit, tier="none: readout only", depth=0, trains_blocks=False)


@parts.estimator
def broadcast() -> Estimator:
    """a_l = delta_L for every layer: a residual network read as the identity; nothing learned."""

    def credit(state, ctx, env, key):
        del state, env, key
        return jnp.broadcast_to(ctx.delta_BxD[None], ctx.trace.h_KxBxD.shape)

    return Estimator(nothing_to_learn, credit, tier="0: delta_L as it is", depth=1)
