"""The references every learned credit is shown beside: back-propagation, frozen blocks, and the plain broadcast."""

from __future__ import annotations

import jax.numpy as jnp

from jcredit import parts
from jcredit.types import Estimator, all_blocks, nothing_to_learn


@parts.estimator
def bp() -> Estimator:
    """The oracle: a_l = delta_l, by back-propagation (Rumelhart et al. 1986)."""

    def credit(state, ctx, env, key):
        del state, env, key
        return ctx.delta_KxBxD

    return Estimator(nothing_to_learn, credit, tier="oracle: back-propagation", depth=all_blocks, oracle=True)


@parts.estimator
def frozen() -> Estimator:
    """No credit below the readout, and blocks and embedding that are never updated."""

    def credit(state, ctx, env, key):
        del state, env, key
        return jnp.zeros_like(ctx.trace.h_KxBxD).at[-1].set(ctx.delta_BxD)

    return Estimator(nothing_to_learn, credit, tier="none: readout only", depth=0, trains_blocks=False)


@parts.estimator
def broadcast() -> Estimator:
    """a_l = delta_L for every layer: a residual network read as the identity; nothing learned."""

    def credit(state, ctx, env, key):
        del state, env, key
        return jnp.broadcast_to(ctx.delta_BxD[None], ctx.trace.h_KxBxD.shape)

    return Estimator(nothing_to_learn, credit, tier="0: delta_L as it is", depth=1)
