"""How good a credit is, layer by layer (docs/method.md 6).  These see the BP gradient; no estimator or rule does."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jcredit.losses.perturbation import Probe, measure
from jcredit.numerics import clamped_cosine, cosine, norm, pearson, rms_normalise
from jcredit.types import Array, Context, Env, Key

RHO_DIRECTIONS = 32
CLAMP = 1e-8
AVERAGED = (
    "gamma", "gamma_clamped", "gamma_fresh", "rho", "rho_one_sided", "difference_noise", "nudge", "credit_norm",
    "delta_norm", "weight_cosine",
)  # fmt: skip
DEEP = ("gamma", "rho", "nudge")
METRICS = (*AVERAGED, *(f"{name}_deep" for name in DEEP), "h_rms_last")
"""What ``summarise`` returns; no estimator may call a metric of its own so."""


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
      scheme: ``jvp`` (exact) or ``one_sided`` (the study's difference; noisy in float32 where delta_l is small).
      epsilon: size of that difference.
      directions: M unit directions per sample.

    Returns:
      Scalar in [-1, 1]; 0 if either side is constant.
    """
    batch, width = a_BxD.shape
    v_MxBxD = jax.random.normal(key, (directions, batch, width), a_BxD.dtype)
    v_MxBxD = v_MxBxD / jnp.linalg.norm(v_MxBxD, axis=-1, keepdims=True)
    probe = Probe(ctx, jnp.full(batch, layer), ctx.trace.h_KxBxD[layer], jnp.arange(batch))
    effect_MxB = measure(env, probe, v_MxBxD, scheme, epsilon)
    return pearson(jnp.sum(a_BxD[None] * v_MxBxD, axis=-1), effect_MxB)


def nudge(env: Env, ctx: Context, layer: Array, a_BxD: Array, eta: Array | float) -> Array:
    """Mean of loss(h_l - eta a / RMS(a)) - loss(h_l), in nats; negative is good."""
    layer_B, h_BxD = jnp.full(a_BxD.shape[0], layer), ctx.trace.h_KxBxD[layer]
    moved = env.loss_at(ctx, layer_B, h_BxD - eta * rms_normalise(a_BxD))
    return jnp.mean(moved - env.loss_at(ctx, layer_B, h_BxD))


def weight_cosine(grads_L, oracle_grads_L) -> Array:
    """Cosine, per block, of a batch-averaged weight gradient to BP's; inputs are stacked parameter pytrees.  (L,)."""
    flat = lambda tree: jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)], axis=1)  # noqa: E731
    return cosine(flat(grads_L), flat(oracle_grads_L))


def clamped_gamma(a_BxD: Array, delta_BxD: Array) -> Array:
    """Gamma with the product of the norms clamped at 1e-8, as common cosine functions do it.

    Where gradients are small it falls short of 1 even for the gradient itself: the study's BP had .940.
    """
    return jnp.mean(clamped_cosine(a_BxD, delta_BxD, CLAMP))


def difference_noise(env: Env, ctx: Context, delta_BxD: Array, epsilon: Array | float) -> Array:
    """What rounding does to the study's rho: spacing of float numbers at the loss over the effect of a unit direction.

    Median over samples of (spacing / epsilon) / (||delta_l|| / sqrt(D)); above 1 a forward difference sees mostly
    rounding.
    """
    loss_B = env.readout_loss(ctx.trace.h_KxBxD[-1], ctx.target_B)
    spacing_B = jnp.nextafter(loss_B, jnp.full_like(loss_B, jnp.inf)) - loss_B
    effect_B = norm(delta_BxD) * delta_BxD.shape[-1] ** -0.5
    return jnp.median(spacing_B / epsilon / jnp.maximum(effect_B, jnp.finfo(effect_B.dtype).tiny))


def score_credit(
    env: Env,
    ctx: Context,
    a_KxBxD: Array,
    fresh_KxBxD: Array,
    delta_KxBxD: Array,
    key: Key,
    *,
    rho_epsilon: Array | float,
    nudge_eta: Array | float,
) -> dict[str, Array]:
    """Scores a_0..a_L at the hidden layers l = 0..L-1.

    Args:
      env: the network's forward questions.
      ctx: the evaluation batch.
      a_KxBxD: the credit.
      fresh_KxBxD: DFA's credit from matrices that nothing was trained with, for ``gamma_fresh``.
      delta_KxBxD: the BP gradient.
      key: for the directions.
      rho_epsilon: size of the study's difference.
      nudge_eta: step of the nudge.

    Returns:
      gamma, gamma_clamped, gamma_fresh, rho, rho_one_sided, difference_noise, nudge and credit_norm, delta_norm (means
      over samples of Euclidean norms), each (L,); and h_rms, the RMS over samples and units of h_0..h_L, (L+1,).
    """
    depth = a_KxBxD.shape[0] - 1

    def score(layer_inputs):
        layer, a, fresh, delta, layer_key = layer_inputs
        return {
            "gamma": gamma(a, delta),
            "gamma_clamped": clamped_gamma(a, delta),
            "gamma_fresh": gamma(fresh, delta),
            "rho": rho(env, ctx, layer, a, layer_key, "jvp", rho_epsilon),
            "rho_one_sided": rho(env, ctx, layer, a, layer_key, "one_sided", rho_epsilon),
            "difference_noise": difference_noise(env, ctx, delta, rho_epsilon),
            "nudge": nudge(env, ctx, layer, a, nudge_eta),
            "credit_norm": jnp.mean(norm(a)),
            "delta_norm": jnp.mean(norm(delta)),
        }

    # One layer after the other: L x M x B x D tangents at once would not fit the 12-block networks.
    keys = jax.random.split(key, depth)
    layers = jax.lax.map(score, (jnp.arange(depth), a_KxBxD[:-1], fresh_KxBxD[:-1], delta_KxBxD[:-1], keys))
    return {**layers, "h_rms": jnp.sqrt(jnp.mean(ctx.trace.h_KxBxD**2, axis=(1, 2)))}


def summarise(layers: dict[str, Array]) -> dict[str, Array]:
    """Means over l = 0..L-1, the deep means over l = 1..L-1 (left out for L = 1), and the RMS of h_L."""
    summary = {name: jnp.mean(layers[name]) for name in AVERAGED if name in layers}
    if layers["gamma"].shape[0] > 1:
        summary |= {f"{name}_deep": jnp.mean(layers[name][1:]) for name in DEEP}
    return {**summary, "h_rms_last": layers["h_rms"][-1]}
