"""The study's two bridges: a predictor of h_L, and a value function, whose gradients by h_l are the credit."""

from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from jcredit import parts
from jcredit.estimators.trunk import Trunk, layer_times, mlp
from jcredit.losses.bridge import (
    bridge_consistency_loss,
    soft_min,
    state_prediction_loss,
    terminal_gradient_loss,
    terminal_value_loss,
)
from jcredit.parts import TrunkPart
from jcredit.settings import Added, Count, Fraction, NonNegative, Positive
from jcredit.types import Estimator, EstState, adam


@parts.estimator
def state_bridge(
    state_loss: Literal["normalised", "raw"] = "normalised",
    trunk: TrunkPart = mlp(),  # noqa: B008
    learning_rate: Positive = 1e-3,
    clip: NonNegative = 1.0,
) -> Estimator:
    """G([LN(h_l), t_l, s]) predicts h_L; a_l = grad_{h_l} loss(readout(G(h_l, t_l, s))) (the study's SB).

    Args:
      state_loss: squared error relative to mean ||h_L||^2, or as it is (the toy's ablation, LQ3).
      trunk: G.
      learning_rate: Adam's step size for G.
      clip: global-norm clip of G's gradient (0: off).
    """
    g: Trunk = trunk.build()

    def init(key, shapes):
        return EstState(*g.init(key, shapes, shapes.width))

    def predict(state, ctx, env, h_KxBxD):
        times = layer_times(h_KxBxD.shape[0] - 1)[:, None]
        return g.apply(state.params, env, h_KxBxD, times, g.code(state.extra, ctx), h_KxBxD.shape[-1])

    def credit(state, ctx, env, key):
        del key
        reach = jax.vmap(env.readout_loss, in_axes=(0, None))
        objective = lambda h: jnp.sum(reach(predict(state, ctx, env, h), ctx.target_B))  # noqa: E731
        return jax.grad(objective)(ctx.trace.h_KxBxD)

    def loss(state, ctx, env, key):
        del key
        h_KxBxD = ctx.trace.h_KxBxD
        predicted = predict(state, ctx, env, h_KxBxD)
        relative = state_prediction_loss(predicted, h_KxBxD[-1], "normalised")
        return state_prediction_loss(predicted, h_KxBxD[-1], state_loss), {"state_error": relative}

    return Estimator(
        init, credit, loss, optimizer=adam(learning_rate, clip), tier="1: no measurement of the tail", depth=1
    )


@parts.estimator
def scalar_bridge(
    noise_at: Literal["next", "present", "paired"] = "next",
    noise_samples: Count = 4,
    target: Literal["mean", "softmin"] = "mean",
    sigma: NonNegative = 0.05,
    softmin_lambda: Positive = 0.1,
    ema: Fraction = 0.99,
    value_weight: NonNegative = 1.0,
    terminal_weight: NonNegative = 1.0,
    terminal_scale: Annotated[Literal["relative", "raw"], Added("relative")] = "relative",
    trunk: TrunkPart = mlp(),  # noqa: B008
    learning_rate: Positive = 1e-3,
    clip: NonNegative = 1.0,
) -> Estimator:
    """V([LN(h), t, s]) in R with a_l = grad_h V(h_l, t_l, s) (the study's CB; docs/method.md 4).

    Loss = value_weight * terminal value + bridge consistency + terminal_weight * terminal gradient; the consistency
    target is made of K noisy next values of a slow copy of V.

    Args:
      noise_at: displaces h_{l+1}; h_l before the block (present); or h_l in V and target alike (paired), which is what
        informs gradients.
      noise_samples: number K of noisy next states.
      target: how the K next values are combined (paired compares each with its own).
      sigma: standard deviation of the noise.
      softmin_lambda: temperature of the soft minimum.
      ema: decay of the slow copy.
      value_weight: weight of the terminal value loss.
      terminal_weight: weight of the terminal gradient loss (the study's tgw; 0: none).
      terminal_scale: that loss relative to ||delta_L||^2, or as it is (it vanishes where delta_L is small).
      trunk: V.
      learning_rate: Adam's step size for V.
      clip: global-norm clip of V's gradient (0: off).
    """
    v: Trunk = trunk.build()

    def value(params, env, h, times, code_BxS):
        return v.apply(params, env, h, times, code_BxS, 1)[..., 0]

    def gradient(params, env, h, times, code_BxS):
        return jax.grad(lambda state: jnp.sum(value(params, env, state, times, code_BxS)))(h)

    def init(key, shapes):
        params, fixed = v.init(key, shapes, 1)
        return EstState(params, {"slow": jax.tree.map(jnp.copy, params), "fixed": fixed})

    def credit(state, ctx, env, key):
        del key
        h_KxBxD = ctx.trace.h_KxBxD
        times = layer_times(h_KxBxD.shape[0] - 1)[:, None]
        return gradient(state.params, env, h_KxBxD, times, v.code(state.extra["fixed"], ctx))

    def consistency(state, value_KxB, code_BxS, ctx, env, key):
        h_KxBxD = ctx.trace.h_KxBxD
        times = layer_times(h_KxBxD.shape[0] - 1)[:, None]
        xi_RxLxBxD = sigma * jax.random.normal(key, (noise_samples, *h_KxBxD[1:].shape), h_KxBxD.dtype)
        here_RxLxBxD = h_KxBxD[None, :-1] + xi_RxLxBxD
        if noise_at == "next":
            after_RxLxBxD = h_KxBxD[None, 1:] + xi_RxLxBxD
        else:
            after_RxLxBxD = jax.vmap(lambda h: env.next_states(ctx, h))(here_RxLxBxD)
        next_RxLxB = value(state.extra["slow"], env, after_RxLxBxD, times[None, 1:], code_BxS)
        if noise_at == "paired":
            here_RxLxB = value(state.params, env, here_RxLxBxD, times[None, :-1], code_BxS)
            return bridge_consistency_loss(here_RxLxB, next_RxLxB)
        combined = soft_min(next_RxLxB, softmin_lambda) if target == "softmin" else jnp.mean(next_RxLxB, axis=0)
        return bridge_consistency_loss(value_KxB[:-1], combined)

    def loss(state, ctx, env, key):
        h_KxBxD, one = ctx.trace.h_KxBxD, jnp.ones(1, ctx.trace.h_KxBxD.dtype)
        h_last, loss_B = h_KxBxD[-1], env.readout_loss(h_KxBxD[-1], ctx.target_B)
        code_BxS = v.code(state.extra["fixed"], ctx)
        if noise_at == "paired":  # no clean state but h_L is asked for
            value_KxB = value(state.params, env, h_last[None], one[:, None], code_BxS)
        else:  # word for word the pass that ``credit`` differentiates, so that XLA makes it once
            value_KxB = value(state.params, env, h_KxBxD, layer_times(h_KxBxD.shape[0] - 1)[:, None], code_BxS)
        last_gradient = gradient(state.params, env, h_last, one, code_BxS)
        terms = {
            "terminal_value": terminal_value_loss(value_KxB[-1], loss_B),
            "consistency": consistency(state, value_KxB, code_BxS, ctx, env, key),
            "terminal_gradient": terminal_gradient_loss(last_gradient, ctx.delta_BxD),
        }
        raw = jnp.mean(jnp.sum((last_gradient - ctx.delta_BxD) ** 2, axis=-1))
        terminal = raw if terminal_scale == "raw" else terms["terminal_gradient"]
        total = value_weight * terms["terminal_value"] + terms["consistency"] + terminal_weight * terminal
        return total, {**terms, "terminal_gradient_raw": raw}

    def update(state, ctx, env, key):
        del ctx, env, key
        slow = jax.tree.map(lambda old, new: ema * old + (1 - ema) * new, state.extra["slow"], state.params)
        return EstState(state.params, {**state.extra, "slow": slow})

    # Noise before a block is a measurement of that block.
    tier = "1: no measurement of the tail" if noise_at == "next" else "3: displaced states of single blocks"
    return Estimator(init, credit, loss, update, optimizer=adam(learning_rate, clip), tier=tier, depth=1)
