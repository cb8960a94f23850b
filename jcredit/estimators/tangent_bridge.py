"""The tangent bridge: fit the Jacobian that the state bridge leaves unfitted, and transpose it (method.md 9)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jcredit.estimators.linear_maps import TangentMap
from jcredit.losses.perturbation import shuffled_order
from jcredit.numerics import scale_free
from jcredit.types import Estimator, EstState


def tangent_bridge(tangent_map: TangentMap, samples: int = 32, shuffled: bool = False) -> Estimator:
    """P_l(h) approximates the tangent map from h_l to h_L (or over one block), and a_l = P_l^T delta_L.

    Tangents are measured forward: u_0 ~ N(0, I) at h_0 is carried to u_L in one sweep, which serves every layer; the
    chained form takes fresh tangents of each block alone.  The loss sums over layers the squared error of P_l u_l,
    relative to ||u_l||^2 (gate) or to what there is to explain, ||u_L - u_l||^2 (mask) or ||J_l v - v||^2 (chain).

    Args:
      tangent_map: ``gate_map``, ``mask_map`` or ``chain_map``.
      samples: leading samples of the batch whose tangents are measured.
      shuffled: control; every sample is given the measured tangent of another.
    """

    def fit(params, state, ctx, env, hp, key):
        del state, hp
        h_LxBxD = ctx.trace.h_LxBxD[:-1, :samples]
        v_key, shuffle_key = jax.random.split(key)
        if tangent_map.chained:
            v_LxBxD = jax.random.normal(v_key, h_LxBxD.shape, h_LxBxD.dtype)
            moved = env.block_tangents(h_LxBxD, v_LxBxD) - v_LxBxD
        else:
            u_LxBxD = env.tangents(h_LxBxD, jax.random.normal(v_key, h_LxBxD.shape[1:], h_LxBxD.dtype))
            v_LxBxD, moved = u_LxBxD[:-1], u_LxBxD[-1:] - u_LxBxD[:-1]
        if shuffled:
            moved = moved[:, shuffled_order(shuffle_key, moved.shape[1])]
        error = tangent_map.push(params, env, h_LxBxD, v_LxBxD) - moved
        reference = moved if tangent_map.relative_to == "moved" else v_LxBxD
        loss = jnp.sum(jax.vmap(scale_free)(error, reference))
        return loss, {"unexplained": jnp.mean(jax.vmap(scale_free)(error, moved))}

    return Estimator(
        init=lambda key, shapes: EstState(tangent_map.init(key, shapes), {}),
        credit=lambda state, ctx, env, hp, key: tangent_map.pull(
            state.params, env, ctx.trace.h_LxBxD[:-1], ctx.delta_BxD
        ),
        loss=fit,
        tier="3: tangents" + (", sequential" if tangent_map.chained else ""),
    )
