"""Credit that is linear in delta_L: learned tangent maps P_l and their transposes (docs/method.md 4).

A map approximates a tangent map of the network: ``push`` carries a displacement of h_l forward, ``pull`` carries
delta_L back through the very same weights.  What is linear in delta_L cannot forget the scale of a sample's error.
Every map starts with V = 0, so that credit starts as the broadcast a_l = delta_L.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jcredit.numerics import float_type, layer_norm_tangent
from jcredit.parts import ConfigError
from jcredit.passes import branch_of
from jcredit.types import Array, Branch, Env, Key, Params, Shapes

MapForm = Literal["gate", "mask", "chain"]
Relaxation = Literal["jacobi", "neumann"]


class TangentMap(NamedTuple):
    """A learned linear map from h_l to h_L (direct) or from h_l to h_{l+1} (chained), for all l at once.

    Attributes:
      init: (key, Shapes) -> params.
      push: (params, env, h_LxBxD, v_LxBxD) -> (P_l - I) v_l, the learned correction, for l = 0..L-1.
      pull: (params, env, h_LxBxD, delta_BxD) -> a_0..a_L.
      chained: whether P_l spans one block only, fitted to that block alone.
      path: how a credit passes from block to block, for the tier; "" where every layer's comes at once.
      relative_to: what an error of ``push`` is measured against: the ``input`` v, or the change P_l v - v (``moved``).
    """

    init: Callable[[Key, Shapes], Params]
    push: Callable[[Params, Env, Array, Array], Array]
    pull: Callable[[Params, Env, Array, Array], Array]
    chained: bool
    path: str = ""
    relative_to: Literal["input", "moved"] = "moved"


def _init_low_rank(key: Key, depth: int, width: int, rank: int) -> Params:
    u = width**-0.5 * jax.random.normal(key, (depth, width, rank), float_type())
    return {"u": u, "v": jnp.zeros((depth, rank, width), float_type())}


def _credit(delta_BxD: Array, correction_LxBxD: Array) -> Array:
    """delta_L + correction for l < L, and the exact delta_L at L."""
    return jnp.concatenate([delta_BxD[None] + correction_LxBxD, delta_BxD[None]])


def _through(gates: Array, x: Array, first: Array, second: Array) -> Array:
    """((x first) * gates) second, layer by layer: (L, B, .) times (L, ., .)."""
    return ((x @ first) * gates) @ second


def _transpose(matrices: Array) -> Array:
    return jnp.swapaxes(matrices, -1, -2)


def gate_map(rank: int) -> TangentMap:
    """P_l v = v + ((v U_l) * g_l) V_l with learned gates g_l = sigmoid(2 (LN(h_l) G_l + c_l))."""

    def init(key, shapes):
        low_rank_key, gate_key = jax.random.split(key)
        gates = shapes.width**-0.5 * jax.random.normal(gate_key, (shapes.depth, shapes.width, rank), float_type())
        bias = jnp.zeros((shapes.depth, 1, rank), float_type())
        return {**_init_low_rank(low_rank_key, shapes.depth, shapes.width, rank), "g": gates, "c": bias}

    def gates(params, env, h_LxBxD):
        return jax.nn.sigmoid(2 * (env.normalise(h_LxBxD) @ params["g"] + params["c"]))

    def push(params, env, h_LxBxD, v_LxBxD):
        return _through(gates(params, env, h_LxBxD), v_LxBxD, params["u"], params["v"])

    def pull(params, env, h_LxBxD, delta_BxD):
        delta_LxBxD = jnp.broadcast_to(delta_BxD[None], h_LxBxD.shape)
        back = _through(gates(params, env, h_LxBxD), delta_LxBxD, _transpose(params["v"]), _transpose(params["u"]))
        return _credit(delta_BxD, back)

    return TangentMap(init, push, pull, chained=False, relative_to="input")


def mask_map() -> TangentMap:
    """P_l v = v + ((LNJ_l v) U_l * [m_l .. m_{L-1}]) V_l: the gates are the blocks' own activation derivatives.

    Rank (L - l) H, zero-padded to L H so that layers stack; the cost grows with L^2.  For networks whose branch is
    ``dense``.
    """

    def init(key, shapes):
        if not branch_of(shapes, "mask map").dense:
            raise ConfigError("mask map: the network's branch is not dense (a product with matrices); use chain")
        return _init_low_rank(key, shapes.depth, shapes.width, shapes.depth * shapes.width)

    def gates(env, h_LxBxD):
        m_LxBxH = env.gates(h_LxBxD)
        depth, batch, _ = m_LxBxH.shape
        later_LxL = jnp.triu(jnp.ones((depth, depth), m_LxBxH.dtype))  # row l keeps the gates of blocks l..L-1
        kept = later_LxL[:, None, :, None] * jnp.swapaxes(m_LxBxH, 0, 1)[None]
        return kept.reshape(depth, batch, -1)

    def push(params, env, h_LxBxD, v_LxBxD):
        return _through(gates(env, h_LxBxD), layer_norm_tangent(h_LxBxD, v_LxBxD), params["u"], params["v"])

    def pull(params, env, h_LxBxD, delta_BxD):
        delta_LxBxD = jnp.broadcast_to(delta_BxD[None], h_LxBxD.shape)
        back = _through(gates(env, h_LxBxD), delta_LxBxD, _transpose(params["v"]), _transpose(params["u"]))
        return _credit(delta_BxD, layer_norm_tangent(h_LxBxD, back))

    return TangentMap(init, push, pull, chained=False)


def chain_pull(branch: Branch, weights: Params, m_LxBxH: Array, h_LxBxD: Array, delta_BxD: Array) -> Array:
    """a_l = a_{l+1} + branch.pull(weights_l, m_l, h_l, a_{l+1}), from a_L = delta_L down: a_0..a_L."""

    def retreat(a, layer):
        own, m, h = layer
        before = a + branch.pull(own, m, h, a)
        return before, before

    _, earlier = jax.lax.scan(retreat, delta_BxD, (weights, m_LxBxH, h_LxBxD), reverse=True)
    return jnp.concatenate([earlier, delta_BxD[None]])


def chain_map() -> TangentMap:
    """One learned branch per block, applied in sequence: a weight mirror (Akrout et al. 2019), fitted to tangents.

    A sequential pass through *learned* feedback; the blocks' own weights are not used on the way back.
    """

    def init(key, shapes):
        return jax.vmap(branch_of(shapes, "chain map").zero)(jax.random.split(key, shapes.depth))

    def push(params, env, h_LxBxD, v_LxBxD):
        return jax.vmap(branch_of(env, "chain map").push)(params, env.gates(h_LxBxD), h_LxBxD, v_LxBxD)

    def pull(params, env, h_LxBxD, delta_BxD):
        return chain_pull(branch_of(env, "chain map"), params, env.gates(h_LxBxD), h_LxBxD, delta_BxD)

    return TangentMap(init, push, pull, chained=True, path="sequential")


def sweeps_map(sweeps: int, relaxation: Relaxation) -> TangentMap:
    """The chain's learned branches F_l, applied to all layers at once, K times, from a^(0) = delta_L everywhere.

    jacobi    a_l^(k+1) = a_{l+1}^(k) + F_l^T a_{l+1}^(k): the K blocks above, those further up read as the identity.
    neumann   a_l^(k+1) = delta_L + sum_{j >= l} F_j^T a_{j+1}^(k): every product of up to K branches of all blocks
              above, the terms of the Neumann series of the chain; the sums over layers are one cumulative sum.

    Both are the chain at K = L, with its parameters and its fit, and their critical path is K whatever L is.
    Layer-parallel training relaxes the exact adjoint in the first way (Guenther et al. 2020).
    """
    chain = chain_map()

    def pull(params, env, h_LxBxD, delta_BxD):
        branch, m_LxBxH = branch_of(env, "sweeps map"), env.gates(h_LxBxD)

        def sweep(a_KxBxD, _):
            above_LxBxD = a_KxBxD[1:]
            branches_LxBxD = jax.vmap(branch.pull)(params, m_LxBxH, h_LxBxD, above_LxBxD)
            if relaxation == "jacobi":
                below_LxBxD = above_LxBxD + branches_LxBxD
            else:
                below_LxBxD = delta_BxD[None] + jax.lax.cumsum(branches_LxBxD, reverse=True)
            return jnp.concatenate([below_LxBxD, delta_BxD[None]]), None

        start = jnp.broadcast_to(delta_BxD[None], (h_LxBxD.shape[0] + 1, *delta_BxD.shape))
        return jax.lax.scan(sweep, start, None, length=sweeps)[0]

    return chain._replace(pull=pull, path=f"{sweeps} sweep{'s' * (sweeps > 1)}")


def make_map(form: MapForm, rank: int) -> TangentMap:
    """Returns the map called ``form``: ``gate`` (of this rank), ``mask`` or ``chain``."""
    return {"gate": lambda: gate_map(rank), "mask": mask_map, "chain": chain_map}[form]()
