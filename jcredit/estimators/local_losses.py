"""Credit from losses of the blocks' own, and the forward gradient (docs/method.md 4)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jcredit import parts
from jcredit.losses.perturbation import add_residual
from jcredit.numerics import float_type
from jcredit.settings import Count, NonNegative, Positive
from jcredit.types import Array, Context, Env, Estimator, EstState, adam, nothing_to_learn

Objective = Literal["local", "task"]


def _init_heads(key, shapes) -> EstState:
    """A linear classifier of every state h_0 .. h_{L-1}; h_L has the network's own readout."""
    shape = (shapes.depth, shapes.width, shapes.outputs)
    w = shapes.width**-0.5 * jax.random.normal(key, shape, float_type())
    return EstState({"w": w, "b": jnp.zeros((shapes.depth, 1, shapes.outputs), float_type())}, {})


def _head_losses(params, ctx: Context, env: Env, h_LxBxD: Array) -> Array:
    """loss_LxB of the heads at states (L, B, D)."""
    outputs_LxBxC = env.normalise(h_LxBxD) @ params["w"] + params["b"]
    return jax.vmap(lambda outputs: env.output_loss(outputs, ctx.target_B))(outputs_LxBxC)


def _fit_heads(state, ctx, env, key):
    losses_LxB = _head_losses(state.params, ctx, env, ctx.trace.h_KxBxD[:-1])
    return jnp.sum(jnp.mean(losses_LxB, axis=1)), {"local_loss": jnp.mean(losses_LxB)}


@parts.estimator
def local_heads(learning_rate: Positive = 1e-3, clip: NonNegative = 0.0) -> Estimator:
    """Block-local learning: a_l is the gradient of the loss of a linear head at h_l.

    Every block is trained by a classifier of its own output (prediction loss of Nokland & Eidnes 2019, ICML; heads of
    greedy learning, Belilovsky et al. 2019, ICML); no error of a later block reaches it.  The head's gradient stops at
    h_l.  a_L is delta_L, of the network's own readout.

    Args:
      learning_rate: Adam's step size for the heads.
      clip: global-norm clip of the heads' gradient (0: off).
    """

    def credit(state, ctx, env, key):
        del key
        total = lambda h_LxBxD: jnp.sum(_head_losses(state.params, ctx, env, h_LxBxD))  # noqa: E731
        return jnp.concatenate([jax.grad(total)(ctx.trace.h_KxBxD[:-1]), ctx.delta_BxD[None]])

    tier = "1: no measurement of the tail, local losses"
    return Estimator(_init_heads, credit, _fit_heads, optimizer=adam(learning_rate, clip), tier=tier, depth=1)


@parts.estimator
def forward_gradient(
    objective: Objective = "local", directions: Count = 1, learning_rate: Positive = 1e-3, clip: NonNegative = 0.0
) -> Estimator:
    """The forward gradient: a_l = (1/M) sum_m <grad, v_m> v_m along fresh v ~ N(0, I), by forward tangents alone.

    Of the task's loss (Baydin et al. 2022, arXiv:2202.08587) its expectation is delta_l and its relative variance
    (D + 1) / M.  Of a local loss, a linear head at every state, it is the gradient of ``local_heads`` taken forward
    (Ren et al. 2023, ICLR: local losses, activations perturbed instead of weights, as here in both).

    Args:
      objective: the loss of each state's own head, or the task's.
      directions: M fresh directions per layer and sample.
      learning_rate: Adam's step size for the heads; the task's loss has none.
      clip: global-norm clip of the heads' gradient (0: off); likewise.
    """
    if objective == "task":

        def task_credit(state, ctx, env, key):
            nothing = jnp.zeros_like(ctx.trace.h_KxBxD).at[-1].set(ctx.delta_BxD)
            return add_residual(env, ctx, nothing, key, directions)

        return Estimator(nothing_to_learn, task_credit, tier="2: loss under perturbation", depth=1)

    def credit(state, ctx, env, key):
        h_LxBxD = ctx.trace.h_KxBxD[:-1]
        losses = lambda h: _head_losses(state.params, ctx, env, h)  # noqa: E731
        v_MxLxBxD = jax.random.normal(key, (directions, *h_LxBxD.shape), h_LxBxD.dtype)
        g_MxLxB = jax.vmap(lambda v: jax.jvp(losses, (h_LxBxD,), (v,))[1])(v_MxLxBxD)
        return jnp.concatenate([jnp.mean(g_MxLxB[..., None] * v_MxLxBxD, axis=0), ctx.delta_BxD[None]])

    tier = "1: no measurement of the tail, local losses under perturbation"
    return Estimator(_init_heads, credit, _fit_heads, optimizer=adam(learning_rate, clip), tier=tier, depth=1)
