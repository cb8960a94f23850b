"""The scalar credit bridge: a value function V(h, t, s) whose gradient is the credit (the study's CB; method.md 4)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcredit.estimators.trunk import Trunk, layer_times
from jcredit.losses.bridge import bridge_consistency_loss, soft_min, terminal_gradient_loss, terminal_value_loss
from jcredit.types import Estimator, EstState


class BridgeNoise(NamedTuple):
    """How the K noisy next states of the consistency target arise.

    Attributes:
      at: ``next`` displaces h_{l+1}, ``present`` displaces h_l before the block, ``paired`` evaluates V at that
        displaced h_l as well, which is what informs gradients.
      samples: K.
      target: ``mean`` or ``softmin`` over the K values (``paired`` compares each with its own).
    """

    at: str = "next"
    samples: int = 4
    target: str = "mean"


def scalar_bridge(trunk: Trunk = Trunk(), noise: BridgeNoise = BridgeNoise()) -> Estimator:  # noqa: B008
    """V([LN(h), t, s]) in R with a_l = grad_h V(h_l, t_l, s).

    Loss = value_weight * terminal value + bridge consistency + terminal_weight * terminal gradient; targets come
    from a slow copy of V (exponential moving average with decay ``hp.ema``), noise has deviation ``hp.sigma``.

    Args:
      trunk: size of V.
      noise: the consistency target.
    """

    def value(params, env, h, times, code):
        return trunk.apply(params, env, h, times, code, 1)[..., 0]

    def gradient(params, env, h, times, code):
        return jax.grad(lambda state: jnp.sum(value(params, env, state, times, code)))(h)

    def init(key, shapes):
        params = trunk.init(key, shapes, 1)
        return EstState(params, jax.tree.map(jnp.copy, params))

    def credit(state, ctx, env, hp, key):
        del hp, key
        h_LxBxD = ctx.trace.h_LxBxD
        return gradient(state.params, env, h_LxBxD, layer_times(h_LxBxD.shape[0] - 1)[:, None], ctx.code_BxS)

    def consistency(params, slow, value_LxB, ctx, env, hp, key):
        h_LxBxD = ctx.trace.h_LxBxD
        times = layer_times(h_LxBxD.shape[0] - 1)[:, None]
        xi_KxLxBxD = hp.sigma * jax.random.normal(key, (noise.samples, *h_LxBxD[1:].shape), h_LxBxD.dtype)
        here_KxLxBxD = h_LxBxD[None, :-1] + xi_KxLxBxD
        if noise.at == "next":
            after_KxLxBxD = h_LxBxD[None, 1:] + xi_KxLxBxD
        else:
            after_KxLxBxD = jax.vmap(lambda h: env.next_states(ctx, h))(here_KxLxBxD)
        next_KxLxB = value(slow, env, after_KxLxBxD, times[None, 1:], ctx.code_BxS)
        if noise.at == "paired":
            here_KxLxB = value(params, env, here_KxLxBxD, times[None, :-1], ctx.code_BxS)
            return bridge_consistency_loss(here_KxLxB, next_KxLxB)
        target = soft_min(next_KxLxB, hp.softmin_lambda) if noise.target == "softmin" else jnp.mean(next_KxLxB, axis=0)
        return bridge_consistency_loss(value_LxB[:-1], target)

    def fit(params, state, ctx, env, hp, key):
        h_LxBxD, one = ctx.trace.h_LxBxD, jnp.ones(1, ctx.trace.h_LxBxD.dtype)
        h_last, loss_B = h_LxBxD[-1], env.readout_loss(h_LxBxD[-1], ctx.target_B)
        if noise.at == "paired":  # no clean state but h_L is asked for
            value_LxB = value(params, env, h_last[None], one[:, None], ctx.code_BxS)
        else:  # word for word the pass that ``credit`` differentiates, so that XLA makes it once
            value_LxB = value(params, env, h_LxBxD, layer_times(h_LxBxD.shape[0] - 1)[:, None], ctx.code_BxS)
        terms = {
            "terminal_value": terminal_value_loss(value_LxB[-1], loss_B),
            "consistency": consistency(params, state.extra, value_LxB, ctx, env, hp, key),
            "terminal_gradient": terminal_gradient_loss(
                gradient(params, env, h_last, one, ctx.code_BxS), ctx.delta_BxD
            ),
        }
        total = hp.value_weight * terms["terminal_value"] + terms["consistency"]
        return total + hp.terminal_weight * terms["terminal_gradient"], terms

    def update(state, hp):
        slow = jax.tree.map(lambda old, new: hp.ema * old + (1 - hp.ema) * new, state.extra, state.params)
        return EstState(state.params, slow)

    return Estimator(init, credit, fit, "1: no measurement of the tail", update)
