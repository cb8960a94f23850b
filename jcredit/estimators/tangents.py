"""Tangent bridges: fit the Jacobian that the state bridge leaves unfitted, and transpose it (docs/method.md 4)."""

from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from jcredit import parts
from jcredit.estimators.linear_maps import (
    Begins,
    Relaxation,
    Sees,
    Start,
    TangentMap,
    chain_map,
    coarse_map,
    gate_map,
    mask_map,
    sweeps_map,
    take_up,
)  # fmt: skip
from jcredit.losses.perturbation import shuffled_order
from jcredit.numerics import rms_normalise, scale_free
from jcredit.passes import own_matrices_of
from jcredit.settings import Added, ConfigError, Count, NonNegative, Positive
from jcredit.types import Array, Context, Env, Estimator, EstState, Key, Params, adam

Along = Literal["noise", "states", "both"]
FOLLOWER = "maps that follow the weights"


def directions(along: Along, h_BxD: Array, key: Key) -> Array:
    """What a sample's state is displaced by: v ~ N(0, I), the way to another sample's state at RMS 1, or their sum.

    The other sample is the one before, the first one's the last.  Along the ways lies all that tells states apart;
    noise in many dimensions is nearly orthogonal to each.  Leading axes are layers.
    """
    if along == "noise":
        return jax.random.normal(key, h_BxD.shape, h_BxD.dtype)
    way_BxD = rms_normalise(jnp.roll(h_BxD, 1, axis=-2) - h_BxD)
    return way_BxD if along == "states" else way_BxD + jax.random.normal(key, h_BxD.shape, h_BxD.dtype)


def tangent_fit(
    tangent_map: TangentMap,
    params: Params,
    ctx: Context,
    env: Env,
    key: Key,
    samples: int,
    shuffled: bool,
    along: Along = "noise",
) -> tuple[jax.Array, jax.Array]:
    """How far P_l u_l is from the measured tangent: the loss, and the share of P_l - I left unexplained.

    Tangents are measured forward: u_0 (``directions``) at h_0 is carried to u_L in one sweep, which serves every layer;
    where blocks are fitted alone each takes tangents of its own.  The loss sums over layers the squared error of
    P_l u_l, relative to ||u_l||^2 (gate) or to what there is to explain, ||u_e - u_l||^2 with e the state reached
    (mask, coarse) or ||J_l v - v||^2 (chain).
    """
    trace = ctx.trace.take(slice(samples))
    h_LxBxD = trace.h_KxBxD[:-1]
    v_key, shuffle_key = jax.random.split(key)
    if tangent_map.ends is None:
        v_LxBxD = directions(along, h_LxBxD, v_key)
        moved = env.block_tangents(h_LxBxD, v_LxBxD) - v_LxBxD
    else:
        u_KxBxD = env.tangents(h_LxBxD, directions(along, h_LxBxD[0], v_key))
        v_LxBxD = u_KxBxD[:-1]
        moved = u_KxBxD[tangent_map.ends(h_LxBxD.shape[0])] - v_LxBxD
    if shuffled:
        moved = moved[:, shuffled_order(shuffle_key, moved.shape[1])]
    error = tangent_map.push(params, env, trace, v_LxBxD) - moved
    reference = moved if tangent_map.relative_to == "moved" else v_LxBxD
    return jnp.sum(jax.vmap(scale_free)(error, reference)), jnp.mean(jax.vmap(scale_free)(error, moved))


def tangent_bridge(
    tangent_map: TangentMap, samples: int, shuffled: bool, optimizer, along: Along = "noise", follows: bool = False
) -> Estimator:
    """P_l(h) approximates a tangent map of the network from h_l on, and the credit is delta_L through its transpose.

    Args:
      tangent_map: of ``linear_maps``; one with a ``start`` has the two fitted each to its own tangents.
      samples: leading samples of the batch whose tangents are measured.
      shuffled: control; every sample is given the measured tangent of another.
      optimizer: what trains the map.
      along: the directions of the tangents (``directions``).
      follows: for maps of single blocks: moves them as the blocks' own matrices are moved, besides the fit.
    """

    if shuffled and samples < 2:
        raise ConfigError(f"samples={samples} with shuffled=True: one tangent keeps its place; give at least 2")
    if along != "noise" and samples < 2:
        raise ConfigError(
            f"samples={samples} with along={along!r}: the way to another state takes two; give at least 2"
        )

    def loss(state, ctx, env, key):
        batch = ctx.target_B.shape[0]
        if samples > batch:
            raise ConfigError(
                f"samples={samples} of a tangent bridge exceeds a batch of {batch}; lower it, or raise batch_size and"
                " diagnostic_samples (and give the task as many evaluation samples)"
            )
        fit = lambda of, params, key: tangent_fit(of, params, ctx, env, key, samples, shuffled, along)  # noqa: E731
        if tangent_map.start is None:
            total, unexplained = fit(tangent_map, state.params, key)
            return total, {"unexplained": unexplained}
        maps_key, start_key = jax.random.split(key)
        total, unexplained = fit(tangent_map, state.params["maps"], maps_key)
        start_total, start_unexplained = fit(tangent_map.start, state.params["start"], start_key)
        return total + start_total, {"unexplained": unexplained, "start_unexplained": start_unexplained}

    def init(key, shapes):
        if follows:
            own_matrices_of(shapes, FOLLOWER)  # says so where there are none
        return EstState(tangent_map.init(key, shapes), {})

    def follow(state, env, step, keep):
        own = state.params if tangent_map.start is None else state.params["maps"]
        own = take_up(own, env, step, keep, FOLLOWER)
        return state._replace(params=own if tangent_map.start is None else {**state.params, "maps": own})

    return Estimator(
        init=init,
        credit=lambda state, ctx, env, key: tangent_map.pull(state.params, env, ctx.trace, ctx.delta_BxD),
        loss=loss,
        optimizer=optimizer,
        tier=", ".join(filter(None, ("3: tangents", "the weights' own updates" * follows, tangent_map.path))),
        depth=tangent_map.depth,
        follow=follow if follows else None,
    )


@parts.estimator
def tangent_gate(
    rank: Count = 256,
    samples: Count = 32,
    shuffled: bool = False,
    learning_rate: Positive = 3e-3,
    clip: NonNegative = 0.0,
    sees: Annotated[Sees, Added("own")] = "own",
    along: Annotated[Along, Added("noise")] = "noise",
) -> Estimator:
    """The direct tangent bridge with learned gates: a_l = delta_L + ((delta_L V_l^T) * g_l(h_l)) U_l^T.

    Args:
      rank: of the learned correction.
      samples: leading samples of the batch whose tangents are measured.
      shuffled: control; every sample is given the measured tangent of another.
      learning_rate: Adam's step size for the map.
      clip: global-norm clip of the map's gradient (0: off).
      sees: a gate sees its own state h_l, or also those above it up to h_{L-1}, on which the tail's Jacobian depends.
      along: directions of the tangents: noise, the way to another sample's state, or the sum of both.
    """
    return tangent_bridge(gate_map(rank, sees), samples, shuffled, adam(learning_rate, clip), along)


@parts.estimator
def tangent_mask(
    samples: Count = 32,
    shuffled: bool = False,
    learning_rate: Positive = 3e-3,
    clip: NonNegative = 0.0,
    along: Annotated[Along, Added("noise")] = "noise",
) -> Estimator:
    """The direct tangent bridge whose gates are the activation derivatives of all blocks above.

    Args:
      samples: leading samples of the batch whose tangents are measured.
      shuffled: control; every sample is given the measured tangent of another.
      learning_rate: Adam's step size for the map.
      clip: global-norm clip of the map's gradient (0: off).
      along: directions of the tangents: noise, the way to another sample's state, or the sum of both.
    """
    return tangent_bridge(mask_map(), samples, shuffled, adam(learning_rate, clip), along)


@parts.estimator
def tangent_chain(
    samples: Count = 32,
    shuffled: bool = False,
    learning_rate: Positive = 3e-3,
    clip: NonNegative = 0.0,
    along: Annotated[Along, Added("noise")] = "noise",
    follows: Annotated[bool, Added(False)] = False,
    begins: Annotated[Begins, Added("broadcast")] = "broadcast",
) -> Estimator:
    """The chained tangent bridge: one learned map per block, applied in sequence (a weight mirror).

    Args:
      samples: leading samples of the batch whose tangents are measured.
      shuffled: control; every sample is given the measured tangent of another.
      learning_rate: Adam's step size for the maps.
      clip: global-norm clip of the maps' gradient (0: off).
      along: directions of the tangents: noise, the way to another sample's state, or the sum of both.
      follows: whether the maps also take up the updates of the blocks' own matrices, as Kolen-Pollack's feedback does.
        They are then up to date but for the step's own fit, to the weights before it, and a quarter of the samples
        does as well (CIFAR-10's validation split, four blocks).
      begins: with maps of zero, whose credit is the broadcast, or with random ones, which is feedback alignment.
    """
    return tangent_bridge(chain_map(begins), samples, shuffled, adam(learning_rate, clip), along, follows)


@parts.estimator
def tangent_sweeps(
    sweeps: Count = 1,
    relaxation: Relaxation = "neumann",
    samples: Count = 32,
    shuffled: bool = False,
    learning_rate: Positive = 3e-3,
    clip: NonNegative = 0.0,
    start: Annotated[Start, Added("delta")] = "delta",
    rank: Annotated[Count, Added(256)] = 256,
    along: Annotated[Along, Added("noise")] = "noise",
    follows: Annotated[bool, Added(False)] = False,
    begins: Annotated[Begins, Added("broadcast")] = "broadcast",
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
      start: what the first sweep is given: delta_L at every layer, or the credit of learned gates (parameters linear in
        L), of the mask, or of coarse maps, fitted beside the chain's maps; its own depth is added to K.
      rank: of the gates, where they are the start.
      along: directions of the tangents: noise, the way to another sample's state, or the sum of both.
      follows: whether the chain's maps also take up the updates of the blocks' own matrices (``tangent_chain``).
      begins: with chain's maps of zero, or with random ones, whose sweeps are feedback alignment's.
    """
    tangent_map = sweeps_map(sweeps, relaxation, start, rank, begins)
    return tangent_bridge(tangent_map, samples, shuffled, adam(learning_rate, clip), along, follows)


@parts.estimator
def tangent_coarse(
    samples: Count = 32,
    shuffled: bool = False,
    learning_rate: Positive = 1e-3,
    clip: NonNegative = 0.0,
    along: Annotated[Along, Added("noise")] = "noise",
) -> Estimator:
    """Maps over one, two, four ... blocks: every layer's credit in at most floor(log2 L) + 1 steps.

    The coarse levels of layer-parallel training (Guenther et al. 2020), learned: a map over s blocks is the sum of a
    learned branch for each of them, with the block's own gates, fitted to forward tangents over these blocks.

    Args:
      samples: leading samples of the batch whose tangents are measured.
      shuffled: control; every sample is given the measured tangent of another.
      learning_rate: Adam's step size for the maps; chosen on CIFAR-10's validation split (L = 12, one seed), where the
        other tangent bridges' 3e-3 breaks the fit.
      clip: global-norm clip of the maps' gradient (0: off).
      along: directions of the tangents: noise, the way to another sample's state, or the sum of both.
    """
    return tangent_bridge(coarse_map(), samples, shuffled, adam(learning_rate, clip), along)
