"""The state bridge: predict h_L from h_l, and take the Jacobian of the prediction (the study's SB; method.md 4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jcredit.estimators.trunk import Trunk, layer_times
from jcredit.losses.bridge import state_prediction_loss
from jcredit.types import Estimator, EstState


def state_bridge(trunk: Trunk = Trunk(), loss: str = "normalised") -> Estimator:  # noqa: B008
    """G([LN(h_l), t_l, s]) predicts h_L; a_l = grad_{h_l} loss(readout(G(h_l, t_l, s))).

    Args:
      trunk: size of G.
      loss: ``normalised`` or ``raw`` squared error.
    """

    def init(key, shapes):
        return EstState(trunk.init(key, shapes, shapes.width), {})

    def predict(params, ctx, env, h_LxBxD):
        times = layer_times(h_LxBxD.shape[0] - 1)[:, None]
        return trunk.apply(params, env, h_LxBxD, times, ctx.code_BxS, h_LxBxD.shape[-1])

    def credit(state, ctx, env, hp, key):
        del hp, key
        reach = jax.vmap(env.readout_loss, in_axes=(0, None))
        objective = lambda h: jnp.sum(reach(predict(state.params, ctx, env, h), ctx.target_B))  # noqa: E731
        return jax.grad(objective)(ctx.trace.h_LxBxD)

    def fit(params, state, ctx, env, hp, key):
        del state, hp, key
        error = state_prediction_loss(predict(params, ctx, env, ctx.trace.h_LxBxD), ctx.trace.h_LxBxD[-1], loss)
        return error, {"state_error": error}

    return Estimator(init, credit, fit, "1: no measurement of the tail")
