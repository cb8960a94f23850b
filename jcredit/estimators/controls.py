"""The references every learned credit is shown beside: back-propagation, frozen blocks, and the plain broadcast."""

from __future__ import annotations

import jax.numpy as jnp

from jcredit.types import Estimator, EstState


def _nothing(key, shapes):
    del key, shapes
    return EstState(params={}, extra={})


def bp() -> Estimator:
    """The oracle: a_l = delta_l, by back-propagation (Rumelhart et al. 1986)."""

    def credit(state, ctx, env, hp, key):
        del state, env, hp, key
        return ctx.delta_LxBxD

    return Estimator(_nothing, credit, None, "oracle: back-propagation")


def frozen() -> Estimator:
    """No credit below the readout; with it go blocks and embedding that are never updated."""

    def credit(state, ctx, env, hp, key):
        del state, env, hp, key
        return jnp.zeros_like(ctx.trace.h_LxBxD).at[-1].set(ctx.delta_BxD)

    return Estimator(_nothing, credit, None, "none: readout only")


def broadcast() -> Estimator:
    """a_l = delta_L for every layer: a residual network read as the identity; nothing learned."""

    def credit(state, ctx, env, hp, key):
        del state, env, hp, key
        return jnp.broadcast_to(ctx.delta_BxD[None], ctx.trace.h_LxBxD.shape)

    return Estimator(_nothing, credit, None, "0: delta_L as it is")
