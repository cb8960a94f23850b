"""How good a credit is, layer by layer (docs/method.md 6).  These see the BP gradient; no estimator or rule does."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jcredit.losses.perturbation import all_layers, measure
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
    a_KxBxD: Array,
    delta_KxBxD: Array,
    key: Key,
    epsilon: Array | float,
    directions: int = RHO_DIRECTIONS,
) -> tuple[Array, Array]:
    """Pearson correlation of <a_l, v> with the effect of moving h_l along unit v, over directions x samples.

    Args:
      env: the network's forward questions.
      ctx: the evaluation batch.
      a_KxBxD: the credit.
      delta_KxBxD: the BP gradient, whose <delta_l, v> is the exact effect.
      key: for the directions.
      epsilon: size of the study's forward difference.
      directions: M unit directions per sample and layer.

    Returns:
      rho against the exact effect, and against the forward difference, which is noisy in float32 where delta_l is
      small; each (L,), in [-1, 1], 0 if either side is constant.
    """
    probe, depth = all_layers(ctx), a_KxBxD.shape[0] - 1  # N = L x B
    a_NxD, delta_NxD = (x_KxBxD[:-1].reshape(probe.h_BxD.shape) for x_KxBxD in (a_KxBxD, delta_KxBxD))

    def along(key):
        v_NxD = jax.random.normal(key, a_NxD.shape, a_NxD.dtype)
        v_NxD = v_NxD / jnp.linalg.norm(v_NxD, axis=-1, keepdims=True)
        effect_N = measure(env, probe, v_NxD[None], "one_sided", epsilon)[0]
        return jnp.sum(a_NxD * v_NxD, axis=-1), jnp.sum(delta_NxD * v_NxD, axis=-1), effect_N

    # One direction after the other: M x L x B x D at once would not fit the 12-block networks.
    found = jax.lax.map(along, jax.random.split(key, directions))
    predicted, exact, differenced = (x_MxN.reshape(directions, depth, -1) for x_MxN in found)
    over_layers = jax.vmap(pearson, in_axes=1)
    return over_layers(predicted, exact), over_layers(predicted, differenced)


def nudge(env: Env, ctx: Context, a_KxBxD: Array, eta: Array | float) -> Array:
    """Mean of loss(h_l - eta a_l / (RMS(a_l) + 1e-6)) - loss(h_l) for l < L, in nats; negative is good.  (L,)."""
    probe, depth = all_layers(ctx), a_KxBxD.shape[0] - 1
    loss_at = jax.vmap(lambda h_NxD: env.loss_at(probe.ctx, probe.layer_B, h_NxD))  # both alike: no credit, no change
    step_NxD = eta * rms_normalise(a_KxBxD[:-1].reshape(probe.h_BxD.shape))
    moved_N, here_N = loss_at(jnp.stack([probe.h_BxD - step_NxD, probe.h_BxD]))
    return jnp.mean((moved_N - here_N).reshape(depth, -1), axis=1)


def weight_cosine(grads_L, oracle_grads_L) -> Array:
    """Cosine, per block, of a batch-averaged weight gradient to BP's; inputs are stacked parameter pytrees.  (L,)."""
    flat = lambda tree: jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(tree)], axis=1)  # noqa: E731
    return cosine(flat(grads_L), flat(oracle_grads_L))


def clamped_gamma(a_BxD: Array, delta_BxD: Array) -> Array:
    """Gamma with the product of the norms clamped at 1e-8, as common cosine functions do it.

    Where gradients are small it falls short of 1 even for the gradient itself; the study's .940 for BP may be this.
    """
    return jnp.mean(clamped_cosine(a_BxD, delta_BxD, CLAMP))


def difference_noise(env: Env, ctx: Context, delta_BxD: Array, epsilon: Array | float) -> Array:
    """What rounding does to the study's rho: spacing of float numbers at the loss over the effect of a unit direction.

    Median over samples of (spacing / epsilon) / (||delta_l|| / sqrt(D)): a lower bound, since the pass to the loss
    rounds too; above 1 a forward difference sees mostly rounding.

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
    a_LxBxD, fresh_LxBxD, delta_LxBxD = a_KxBxD[:-1], fresh_KxBxD[:-1], delta_KxBxD[:-1]
    exact_L, differenced_L = rho(env, ctx, a_KxBxD, delta_KxBxD, key, rho_epsilon)
    layers = {
        "gamma": jax.vmap(gamma)(a_LxBxD, delta_LxBxD),
        "gamma_clamped": jax.vmap(clamped_gamma)(a_LxBxD, delta_LxBxD),
        "gamma_fresh": jax.vmap(gamma)(fresh_LxBxD, delta_LxBxD),
        "rho": exact_L,
        "rho_one_sided": differenced_L,
        "difference_noise": jax.vmap(lambda delta: difference_noise(env, ctx, delta, rho_epsilon))(delta_LxBxD),
        "nudge": nudge(env, ctx, a_KxBxD, nudge_eta),
        "credit_norm": jnp.mean(norm(a_LxBxD), axis=1),
        "delta_norm": jnp.mean(norm(delta_LxBxD), axis=1),
    }
    return {**layers, "h_rms": jnp.sqrt(jnp.mean(ctx.trace.h_KxBxD**2, axis=(1, 2)))}


def summarise(layers: dict[str, Array]) -> dict[str, Array]:
    """Means over l = 0..L-1, the deep means over l = 1..L-1 (left out for L = 1), and the RMS of h_L."""
    summary = {name: jnp.mean(layers[name]) for name in AVERAGED if name in layers}
    if layers["gamma"].shape[0] > 1:
        summary |= {f"{name}_deep": jnp.mean(layers[name][1:]) for name in DEEP}
    return {**summary, "h_rms_last": layers["h_rms"][-1]}
