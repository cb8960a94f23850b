"""Measured effects of perturbations, and the regression of a credit on them (phase 4C; docs/method.md 4).

For v ~ N(0, I) and g = <delta_l, v>, E[g v] = delta_l: directional measurements are an unbiased view of the gradient.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jcredit.settings import ConfigError
from jcredit.types import Array, Context, Env, Key

Scheme = Literal["central", "one_sided", "jvp"]
"""How the effect of a perturbation is measured (``measure``)."""


class Probe(NamedTuple):
    """Samples and the layer each is perturbed at.

    Attributes:
      ctx: the samples; a probe may hold those of a batch in another order, or several times.
      layer_B: their hidden layers, 0..L-1.
      h_BxD: their states there, those of the trace.
      index_B: which samples of the batch they are.
    """

    ctx: Context
    layer_B: np.ndarray | Array
    h_BxD: Array
    index_B: np.ndarray | Array


def measure(env: Env, probe: Probe, v_MxBxD: Array, scheme: Scheme = "jvp", epsilon: Array | float = 1e-2) -> Array:
    """Effect of moving each sample's state at its own layer along M directions on its loss, by forward passes only.

    Args:
      env: the network's forward questions.
      probe: where each sample is perturbed.
      v_MxBxD: directions.
      scheme: ``jvp`` (exact, one forward tangent), or the finite differences ``central`` and ``one_sided``.
      epsilon: factor of the directions in a finite difference; no part of ``jvp``.

    Returns:
      g_MxB, <delta_l, v>: the change of the loss per unit of the factor.  ``one_sided`` takes the loss before from the
      trace, whose states ``probe.h_BxD`` must be.

    Raises:
      ConfigError: unknown scheme.
    """
    ctx, layer_B, h_BxD, _ = probe
    if scheme == "jvp":
        return env.loss_tangent(ctx, layer_B, h_BxD, v_MxBxD)
    loss_at = jax.vmap(lambda h: env.loss_at(ctx, layer_B, h))
    if scheme == "central":
        step = epsilon * v_MxBxD
        after, before = jnp.split(loss_at(jnp.concatenate([h_BxD[None] + step, h_BxD[None] - step])), 2)
        return (after - before) / (2 * epsilon)
    if scheme == "one_sided":
        here = env.readout_loss(ctx.trace.h_KxBxD[-1], ctx.target_B)
        return (loss_at(h_BxD[None] + epsilon * v_MxBxD) - here[None]) / epsilon
    raise ConfigError(f"scheme={scheme!r} is unknown; choose one of {', '.join(get_args(Scheme))}")


def take_samples(ctx: Context, index_N: Array | np.ndarray) -> Context:
    """The batch made of the samples ``index_N`` (N,) of another; samples may be left out or taken twice."""
    return Context(ctx.trace.take(index_N), ctx.target_B[index_N], ctx.error_BxC[index_N], ctx.delta_BxD[index_N])


def random_layers(key: Key, ctx: Context) -> Probe:
    """Gives every sample one hidden layer at random, every layer its share of the batch.

    The samples are drawn for the layers rather than the other way round: the layers then ascend and are known, and the
    perturbed pass leaves out what has not started.  Shares are equal to within one sample; where L does not divide B,
    it is always the same layers that have one more.  Batches smaller than the depth draw a layer for each sample.
    """
    depth, batch = ctx.trace.h_KxBxD.shape[0] - 1, ctx.target_B.shape[0]
    if batch < depth:
        layer_B, index_B = jax.random.randint(key, (batch,), 0, depth), np.arange(batch)
    else:
        layer_B, index_B = np.arange(batch) * depth // batch, jax.random.permutation(key, batch)
    return Probe(take_samples(ctx, index_B), layer_B, ctx.trace.h_KxBxD[layer_B, index_B], index_B)


def all_layers(ctx: Context) -> Probe:
    """Every sample at every hidden layer: a batch of L x B, layer by layer."""
    depth, batch = ctx.trace.h_KxBxD.shape[0] - 1, ctx.target_B.shape[0]
    index_N, h_NxD = np.tile(np.arange(batch), depth), ctx.trace.h_KxBxD[:-1].reshape(depth * batch, -1)
    return Probe(take_samples(ctx, index_N), np.repeat(np.arange(depth), batch), h_NxD, index_N)


def shuffled_order(key: Key, batch: int) -> Array:
    """An order of the batch in which no sample keeps its place: a random cyclic shift (the shuffled controls).

    A plain permutation leaves one sample in place on average; the regression then finds delta_l / B, whose cosine to
    delta_l is 1 however small it is.

    Raises:
      ConfigError: a batch of one, which has no such order.
    """
    if batch < 2:
        raise ConfigError(
            f"a shuffled control needs batch_size and diagnostic_samples of at least 2, not {batch}: one sample keeps"
            " its place"
        )
    return (jnp.arange(batch) + jax.random.randint(key, (), 1, batch)) % batch


def directional_loss(a_BxD: Array, v_MxBxD: Array, g_MxB: Array, probe: Probe | None = None) -> Array:
    """sum (<a, v> - g)^2 / sum g^2 at each layer, then the mean over layers: 1 for a = 0, 0 for the exact gradient.

    Args:
      a_BxD: credit where each sample was moved.
      v_MxBxD: the directions.
      g_MxB: their measured effects.
      probe: where they were moved; None takes all samples for those of one layer.  Layers met by no sample, or at which
        no effect was measured, do not count.
    """
    if probe is None:
        layer_B, depth = np.zeros(g_MxB.shape[1], np.int32), 1
    else:
        layer_B, depth = probe.layer_B, probe.ctx.trace.h_KxBxD.shape[0] - 1
    errors_B = jnp.sum((jnp.sum(a_BxD[None] * v_MxBxD, axis=-1) - g_MxB) ** 2, axis=0)
    effects_B = jnp.sum(g_MxB**2, axis=0)
    at_layer = lambda x_B: jax.ops.segment_sum(x_B, layer_B, depth)  # noqa: E731
    error_L, effect_L = at_layer(errors_B), at_layer(effects_B)
    met_L = (effect_L > 0).astype(effect_L.dtype)
    return jnp.sum(met_L * error_L / jnp.where(effect_L > 0, effect_L, 1.0)) / jnp.maximum(jnp.sum(met_L), 1.0)


def add_residual(env: Env, ctx: Context, a_KxBxD: Array, key: Key, directions: int) -> Array:
    """a_l + mean_m (g_m - <a_l, v_m>) v_m over fresh v ~ N(0, I): its expectation is delta_l for any a.

    The field lowers the variance of the estimate, the residual removes the field's bias (docs/method.md 4).
    ``a_KxBxD`` holds a_0..a_L; the last is returned as it came.
    """
    probe, a_NxD = all_layers(ctx), a_KxBxD[:-1].reshape(-1, a_KxBxD.shape[-1])  # N = L x B
    v_MxNxD = jax.random.normal(key, (directions, *a_NxD.shape), a_NxD.dtype)
    g_MxN = env.loss_tangent(probe.ctx, probe.layer_B, probe.h_BxD, v_MxNxD)
    missing_MxN = g_MxN - jnp.sum(a_NxD[None] * v_MxNxD, axis=-1)
    corrected = a_NxD + jnp.mean(missing_MxN[..., None] * v_MxNxD, axis=0)
    return jnp.concatenate([corrected.reshape(a_KxBxD[:-1].shape), a_KxBxD[-1:]])
