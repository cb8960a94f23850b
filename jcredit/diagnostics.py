"""How good a credit is, layer by layer (method.md 6).  These see the BP gradient; no estimator or rule does."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jcredit.losses.perturbation import Probe, measure
from jcredit.numerics import cosine, pearson, rms_normalise
from jcredit.types import Array, Context, Env, Key

RHO_DIRECTIONS = 32


def gamma(a_BxD: Array, delta_BxD: Array) -> Array:
    """Mean over samples of the cosine of a credit and the BP gradient; zero vectors count as 0."""
    return jnp.mean(cosine(a_BxD, delta_BxD))


def rho(
    env: Env,
    ctx: Context,
    layer: Array,
    a_BxD: Array,
    key: Key,
    scheme: str,
    epsilon: Array | float,
    directions: int = RHO_DIRECTIONS,
) -> Array:
    """Pearson correlation of <a, v> with the measured effect of moving h_l along unit v, over directions x samples.

    Args:
      env: the network's forward questions.
      ctx: the evaluation batch.
      layer: l, the same for all samples.
      a_BxD: the credit at h_l.
      key: for the directions.
      scheme: ``jvp`` (exact) or ``forward`` (the study's difference; noisy in float32 where delta_l is small).
      epsilon: size of that difference.
      directions: M unit directions per sample.

    Returns:
      Scalar in [-1, 1]; 0 if either side is constant.
    """
    batch, width = a_BxD.shape
    v_MxBxD = jax.random.normal(key, (directions, batch, width), a_BxD.dtype)
    v_MxBxD = v_MxBxD / jnp.linalg.norm(v_MxBxD, axis=-1, keepdims=True)
    how = "one_sided" if scheme == "forward" else scheme
    probe = Probe(ctx, jnp.full(batch, layer), ctx.trace.h_LxBxD[layer], jnp.arange(batch))
    effect_MxB = measure(env, probe, v_MxBxD, how, epsilon)
    return pearson(jnp.sum(a_BxD[None] * v_MxBxD, axis=-1), effect_MxB)


def nudge(env: Env, ctx: Context, layer: Array, a_BxD: Array, eta: Array | float) -> Array:
    """Mean of loss(h_l - eta a / RMS(a)) - loss(h_l), in nats; negative is good."""
    layer_B, h_BxD = jnp.full(a_BxD.shape[0], layer), ctx.trace.h_LxBxD[layer]
    moved = env.loss_at(ctx, layer_B, h_BxD - eta * rms_normalise(a_BxD))
    return jnp.mean(moved - env.loss_at(ctx, layer_B, h_BxD))


def weight_cosine(grads_L, oracle_grads_L) -> Array:
    """Cosine, per block, of a batch-averaged weight gradient to BP's; inputs are stacked parameter pytrees.  (L,)."""
    flat = lambda tree: jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)], axis=1)  # noqa: E731
    return cosine(flat(grads_L), flat(oracle_grads_L))


def score_credit(
    env: Env,
    ctx: Context,
    a_LxBxD: Array,
    delta_LxBxD: Array,
    key: Key,
    *,
    rho_scheme: str,
    rho_epsilon: Array | float,
    nudge_eta: Array | float,
) -> dict[str, Array]:
    """Scores a_0..a_L at the hidden layers l = 0..L-1.

    Returns:
      gamma, rho, nudge and credit_norm, delta_norm (means over samples of Euclidean norms), each (L,); and h_rms,
      the RMS over samples and units of h_0..h_L, (L+1,).
    """
    depth = a_LxBxD.shape[0] - 1

    def score(layer_inputs):
        layer, a, delta, layer_key = layer_inputs
        return {
            "gamma": gamma(a, delta),
            "rho": rho(env, ctx, layer, a, layer_key, rho_scheme, rho_epsilon),
            "nudge": nudge(env, ctx, layer, a, nudge_eta),
            "credit_norm": jnp.mean(jnp.linalg.norm(a, axis=-1)),
            "delta_norm": jnp.mean(jnp.linalg.norm(delta, axis=-1)),
        }

    # One layer after the other: L x M x B x D tangents at once would not fit the 12-block networks.
    layers = jax.lax.map(score, (jnp.arange(depth), a_LxBxD[:-1], delta_LxBxD[:-1], jax.random.split(key, depth)))
    return {**layers, "h_rms": jnp.sqrt(jnp.mean(ctx.trace.h_LxBxD**2, axis=(1, 2)))}


def summarise(layers: dict[str, Array]) -> dict[str, Array]:
    """Means over l = 0..L-1, the deep means over l = 1..L-1 (left out for L = 1), and the RMS of h_L."""
    summary = {name: jnp.mean(layers[name]) for name in ("gamma", "rho", "nudge", "weight_cosine") if name in layers}
    if layers["gamma"].shape[0] > 1:
        summary |= {f"{name}_deep": jnp.mean(layers[name][1:]) for name in ("gamma", "rho", "nudge")}
    return {**summary, "h_rms_last": layers["h_rms"][-1]}
