"""Losses of the bridges: terminal value, terminal gradient, bridge consistency, state prediction (docs/method.md 4).

Two facts that explain the study's tables.  (i) Matching *values* along a trajectory says nothing about gradients
unless h_l varies around each sample; ``paired`` noise, where value and target see the same displaced state, does.
(ii) The code s is held fixed in grad_h, and e_T already determines the loss: V can fit every value and ignore h.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jcredit.numerics import scale_free
from jcredit.types import Array


def terminal_value_loss(value_B: Array, loss_B: Array) -> Array:
    """mean (V(h_L, 1, s) - loss)^2."""
    return jnp.mean((value_B - loss_B) ** 2)


def terminal_gradient_loss(a_BxD: Array, delta_BxD: Array) -> Array:
    """sum ||a(h_L, 1, s) - delta_L||^2 / sum ||delta_L||^2; scale-free, output-layer-local."""
    return scale_free(a_BxD - delta_BxD, delta_BxD)


def soft_min(value_RxN: Array, temperature: Array | float) -> Array:
    """-lam log (1/K) sum_k exp(-V_k / lam) over the leading axis; the plain mean as lam grows."""
    # Measured from the smallest value, with expm1 and log1p: exact in float32 for small and for large lam alike.
    lowest = jnp.min(value_RxN, axis=0)
    return lowest - temperature * jnp.log1p(jnp.mean(jnp.expm1((lowest[None] - value_RxN) / temperature), axis=0))


def bridge_consistency_loss(value: Array, target: Array) -> Array:
    """mean (V(h_l, t_l, s) - sg[T_l])^2 over layers and samples."""
    return jnp.mean((value - jax.lax.stop_gradient(target)) ** 2)


def state_prediction_loss(prediction_KxBxD: Array, h_last_BxD: Array, how: Literal["normalised", "raw"]) -> Array:
    """Squared error of predictions of h_L, relative to mean ||h_L||^2 (``normalised``) or as it is (``raw``).

    Args:
      prediction_KxBxD: G(h_l, t_l, s) for any number of layers.
      h_last_BxD: h_L.
      how: ``normalised`` or ``raw`` (the toy's ablation, LQ3).
    """
    error = jnp.mean(jnp.sum((prediction_KxBxD - h_last_BxD[None]) ** 2, axis=-1))
    return error / jnp.mean(jnp.sum(h_last_BxD**2, axis=-1)) if how == "normalised" else error
