"""Measured effects of perturbations, and the regression of a credit on them (phase 4C; method.md 4).

For v ~ N(0, I) and g = <delta_l, v>, E[g v] = delta_l: directional measurements are an unbiased view of the gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jcredit.numerics import scale_free
from jcredit.types import Array, Context, Env, Key

SCHEMES = ("central", "one_sided", "jvp")


def measure(
    env: Env, ctx: Context, layer_B: Array, h_BxD: Array, v_MxBxD: Array, scheme: str, epsilon: Array | float
) -> Array:
    """Effect of moving each sample's state at its own layer along M directions on its loss, by forward passes only.

    Args:
      env: the network's forward questions.
      ctx: the batch.
      layer_B: layer each sample is perturbed at, in 0..L-1.
      h_BxD: the states there.
      v_MxBxD: directions.
      scheme: ``central``, ``one_sided``, or ``jvp`` (their exact limit, one forward tangent).
      epsilon: size of a finite perturbation.

    Returns:
      g_MxB, loss per unit of displacement.

    Raises:
      ValueError: unknown scheme.
    """
    if scheme == "jvp":
        return env.loss_tangent(ctx, layer_B, h_BxD, v_MxBxD)
    loss_at = jax.vmap(lambda h: env.loss_at(ctx, layer_B, h))
    if scheme == "central":
        step = epsilon * v_MxBxD
        return (loss_at(h_BxD[None] + step) - loss_at(h_BxD[None] - step)) / (2 * epsilon)
    if scheme == "one_sided":
        here = env.readout_loss(ctx.trace.h_LxBxD[-1], ctx.target_B)
        return (loss_at(h_BxD[None] + epsilon * v_MxBxD) - here[None]) / epsilon
    raise ValueError(f"scheme={scheme!r} is unknown; choose one of {', '.join(SCHEMES)}")


def random_layers(key: Key, ctx: Context) -> tuple[Array, Array]:
    """Gives every sample its own hidden layer: (layer_B in 0..L-1, the states h_BxD there)."""
    depth, batch = ctx.trace.h_LxBxD.shape[0] - 1, ctx.target_B.shape[0]
    layer_B = jax.random.randint(key, (batch,), 0, depth)
    return layer_B, ctx.trace.h_LxBxD[layer_B, jnp.arange(batch)]


def shuffled_order(key: Key, batch: int) -> Array:
    """An order of the batch in which no sample keeps its place: a random cyclic shift (the shuffled controls).

    A plain permutation leaves one sample in place on average; the regression then finds delta_l / B, whose cosine to
    delta_l is 1 however small it is.
    """
    return (jnp.arange(batch) + jax.random.randint(key, (), 1, max(batch, 2))) % batch


def directional_loss(a_BxD: Array, v_MxBxD: Array, g_MxB: Array) -> Array:
    """mean (<a, v> - g)^2 / mean g^2: 1 for a = 0, 0 for the exact gradient."""
    return scale_free(jnp.sum(a_BxD[None] * v_MxBxD, axis=-1) - g_MxB, g_MxB)


def unbiased_residual(env: Env, ctx: Context, a_LxBxD: Array, key: Key, directions: int) -> Array:
    """a_l + mean_m (g_m - <a_l, v_m>) v_m over fresh v ~ N(0, I): its expectation is delta_l for any a (method.md 9).

    The field lowers the variance of the estimate, the residual removes the field's bias.  ``a_LxBxD`` holds
    a_0..a_L; the last is returned as it came.
    """
    hidden_LxBxD = a_LxBxD[:-1]
    depth, batch, width = hidden_LxBxD.shape

    def at_layer(layer, a_BxD, layer_key):
        v_MxBxD = jax.random.normal(layer_key, (directions, batch, width), a_BxD.dtype)
        g_MxB = env.loss_tangent(ctx, jnp.full(batch, layer), ctx.trace.h_LxBxD[layer], v_MxBxD)
        missing_MxB = g_MxB - jnp.sum(a_BxD[None] * v_MxBxD, axis=-1)
        return a_BxD + jnp.mean(missing_MxB[..., None] * v_MxBxD, axis=0)

    corrected = jax.vmap(at_layer)(jnp.arange(depth), hidden_LxBxD, jax.random.split(key, depth))
    return jnp.concatenate([corrected, a_LxBxD[-1:]])
