"""Tangent bridges: fit the Jacobian that the state bridge leaves unfitted, and transpose it (docs/method.md 4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jcredit import parts
from jcredit.estimators.linear_maps import Relaxation, TangentMap, chain_map, gate_map, mask_map, sweeps_map
from jcredit.losses.perturbation import shuffled_order
from jcredit.numerics import scale_free
from jcredit.parts import ConfigError, Count, NonNegative, Positive
from jcredit.types import Estimator, EstState, adam


def tangent_bridge(tangent_map: TangentMap, samples: int, shuffled: bool, optimizer) -> Estimator:
    """P_l(h) approximates the tangent map from h_l to h_L (or over one block), and a_l = P_l^T delta_L.

    Tangents are measured forward: u_0 ~ N(0, I) at h_0 is carried to u_L in one sweep, which serves every layer; the
    chained form takes fresh tangents of each block alone.  The loss sums over layers the squared error of P_l u_l,
    relative to ||u_l||^2 (gate) or to what there is to explain, ||u_L - u_l||^2 (mask) or ||J_l v - v||^2 (chain).

    Args:
      tangent_map: ``gate_map``, ``mask_map`` or ``chain_map``.
      samples: leading samples of the batch whose tangents are measured.
      shuffled: control; every sample is given the measured tangent of another.
      optimizer: what trains the map.
    """

    def loss(state, ctx, env, key):
        batch = ctx.target_B.shape[0]
        if samples > batch:
            raise ConfigError(
                f"samples={samples} of a tangent bridge exceeds a batch of {batch}; lower it, or raise batch_size and"
                " diagnostic_samples"
            )
        h_LxBxD = ctx.trace.h_KxBxD[:-1, :samples]
        v_key, shuffle_key = jax.random.split(key)
        if tangent_map.chained:
            v_LxBxD = jax.random.normal(v_key, h_LxBxD.shape, h_LxBxD.dtype)
            moved = env.block_tangents(h_LxBxD, v_LxBxD) - v_LxBxD
        else:
            u_KxBxD = env.tangents(h_LxBxD, jax.random.normal(v_key, h_LxBxD.shape[1:], h_LxBxD.dtype))
            v_LxBxD, moved = u_KxBxD[:-1], u_KxBxD[-1:] - u_KxBxD[:-1]
        if shuffled:
            moved = moved[:, shuffled_order(shuffle_key, moved.shape[1])]
        error = tangent_map.push(state.params, env, h_LxBxD, v_LxBxD) - moved
        reference = moved if tangent_map.relative_to == "moved" else v_LxBxD
        total = jnp.sum(jax.vmap(scale_free)(error, reference))
        return total, {"unexplained": jnp.mean(jax.vmap(scale_free)(error, moved))}

    return Estimator(
        init=lambda key, shapes: EstState(tangent_map.init(key, shapes), {}),
        credit=lambda state, ctx, env, key: tangent_map.pull(state.params, env, ctx.trace.h_KxBxD[:-1], ctx.delta_BxD),
        loss=loss,
        optimizer=optimizer,
        tier="3: tangents" + (f", {tangent_map.path}" if tangent_map.path else ""),
    )


@parts.estimator
def tangent_gate(
    rank: Count = 256,
    samples: Count = 32,
    shuffled: bool = False,
    learning_rate: Positive = 3e-3,
    clip: NonNegative = 0.0,
) -> Estimator:
    """The direct tangent bridge with learned gates: a_l = delta_L + ((delta_L V_l^T) * g_l(h_l)) U_l^T.

    Args:
      rank: of the learned correction.
      samples: leading samples of the batch whose tangents are measured.
      shuffled: control; every sample is given the measured tangent of another.
      learning_rate: Adam's step size for the map.
      clip: global-norm clip of the map's gradient (0: off).
    """
    return tangent_bridge(gate_map(rank), samples, shuffled, adam(learning_rate, clip))


@parts.estimator
def tangent_mask(
    samples: Count = 32, shuffled: bool = False, learning_rate: Positive = 3e-3, clip: NonNegative = 0.0
) -> Estimator:
    """The direct tangent bridge whose gates are the activation derivatives of all blocks above.

    Args:
      samples: leading samples of the batch whose tangents are measured.
      shuffled: control; every sample is given the measured tangent of another.
      learning_rate: Adam's step size for the map.
      clip: global-norm clip of the map's gradient (0: off).
    """
    return tangent_bridge(mask_map(), samples, shuffled, adam(learning_rate, clip))


@parts.estimator
def tangent_chain(
    samples: Count = 32, shuffled: bool = False, learning_rate: Positive = 3e-3, clip: NonNegative = 0.0
) -> Estimator:
    """The chained tangent bridge: one learned map per block, applied in sequence (a weight mirror).

    Args:
      samples: leading samples of the batch whose tangents are measured.
      shuffled: control; every sample is given the measured tangent of another.
      learning_rate: Adam's step size for the maps.
      clip: global-norm clip of the maps' gradient (0: off).
    """
    return tangent_bridge(chain_map(), samples, shuffled, adam(learning_rate, clip))


@parts.estimator
def tangent_sweeps(
    sweeps: Count = 1,
    relaxation: Relaxation = "neumann",
    samples: Count = 32,
    shuffled: bool = False,
    learning_rate: Positive = 3e-3,
    clip: NonNegative = 0.0,
) -> Estimator:
    """Between direct and chained: the chain's learned maps, applied to all layers at once, K times.

    L sweeps are the chain; the critical path of the credit is K whatever L is, the cost of a sweep that of the chain.

    Args:
      sweeps: K.
      relaxation: neumann sums the branches of all blocks above, so that one sweep is of first order in all of them;
        jacobi takes the K blocks above and reads the others as the identity.
      samples: leading samples of the batch whose tangents are measured.
      shuffled: control; every sample is given the measured tangent of another.
      learning_rate: Adam's step size for the maps.
      clip: global-norm clip of the maps' gradient (0: off).
    """
    return tangent_bridge(sweeps_map(sweeps, relaxation), samples, shuffled, adam(learning_rate, clip))
