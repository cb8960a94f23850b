"""Credit that is linear in delta_L: learned tangent maps P_l and their transposes (docs/method.md 4).

A map approximates a tangent map of the network: ``push`` carries a displacement of h_l forward, ``pull`` carries
delta_L back through the very same weights.  What is linear in delta_L cannot forget the scale of a sample's error.
Every map starts with V = 0, so that credit starts as the broadcast a_l = delta_L; the chain may also start as feedback
alignment, with random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcredit.numerics import float_type, layer_norm_tangent
from jcredit.passes import branch_of, own_matrices_of
from jcredit.types import Array, Env, Key, Params, Shapes, Trace, all_blocks, deeper

MapForm = Literal["gate", "mask", "chain", "sweeps", "coarse"]
Relaxation = Literal["jacobi", "neumann"]
Start = Literal["delta", "gate", "mask", "coarse"]
Sees = Literal["own", "later"]
Begins = Literal["broadcast", "feedback"]


class TangentMap(NamedTuple):
    """Learned linear maps, one from each h_l to a later state: to h_L (direct), h_{l+1} (chain) or between (coarse).

    Attributes:
      init: (key, Shapes) -> params.
      push: (params, env, trace, v_LxBxD) -> (P_l - I) v_l, the learned correction, for l = 0..L-1.
      pull: (params, env, trace, delta_BxD) -> a_0..a_L.
      ends: L -> the state each P_l reaches, l+1..L, as a NumPy array; None where every block is fitted alone (chain).
      depth: the sequential depth of the credit (see ``Estimator.depth``).
      path: how a credit passes from block to block, for the tier; "" where every layer's comes at once.
      start: for maps in two stages: the first, whose params stand beside those of the second as {"start", "maps"}.
      relative_to: what an error of ``push`` is measured against: the ``input`` v, or the change P_l v - v (``moved``).
    """

    init: Callable[[Key, Shapes], Params]
    push: Callable[[Params, Env, Trace, Array], Array]
    pull: Callable[[Params, Env, Trace, Array], Array]
    ends: Callable[[int], np.ndarray] | None
    depth: int | Callable[[int], int]
    path: str = ""
    relative_to: Literal["input", "moved"] = "moved"
    start: TangentMap | None = None


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


def _to_the_end(depth: int) -> np.ndarray:
    return np.full(depth, depth)


def gate_map(rank: int, sees: Sees = "own") -> TangentMap:
    """P_l v = v + ((v U_l) * g_l) V_l with learned gates g_l = sigmoid(2 (LN(h_l) G_l + c_l)).

    The tail's Jacobian depends on h_l .. h_{L-1}; gates that see ``later`` states too add sum_{j>l} LN(h_j) G'_j, with
    one G'_j for all layers below j, so that parameters and cost stay linear in L.
    """

    def init(key, shapes):
        low_rank_key, gate_key = jax.random.split(key)
        gates = shapes.width**-0.5 * jax.random.normal(gate_key, (shapes.depth, shapes.width, rank), float_type())
        bias = jnp.zeros((shapes.depth, 1, rank), float_type())
        later = {"later": jnp.zeros_like(gates)} if sees == "later" else {}
        return {**_init_low_rank(low_rank_key, shapes.depth, shapes.width, rank), "g": gates, "c": bias, **later}

    def gates(params, env, trace):
        seen_LxBxD = env.normalise(trace.h_KxBxD[:-1])
        z_LxBxR = seen_LxBxD @ params["g"] + params["c"]
        if sees == "later":
            shares_LxBxR = seen_LxBxD @ params["later"]
            z_LxBxR = z_LxBxR + jax.lax.cumsum(shares_LxBxR, reverse=True) - shares_LxBxR
        return jax.nn.sigmoid(2 * z_LxBxR)

    def push(params, env, trace, v_LxBxD):
        return _through(gates(params, env, trace), v_LxBxD, params["u"], params["v"])

    def pull(params, env, trace, delta_BxD):
        delta_LxBxD = jnp.broadcast_to(delta_BxD[None], trace.h_KxBxD[:-1].shape)
        back = _through(gates(params, env, trace), delta_LxBxD, _transpose(params["v"]), _transpose(params["u"]))
        return _credit(delta_BxD, back)

    return TangentMap(init, push, pull, _to_the_end, depth=1, relative_to="input")


def spans_map(ends: Callable[[int], np.ndarray], wanted_by: str, path: str = "") -> TangentMap:
    """P_l v = v + sum_{l <= j < e_l} push(W_lj, m_j, h_l, v): a branch of its own for every block up to state e_l.

    Each P_l is of first order in the branches it spans, with their gates; a_l = P_l^T a_{e_l}, all layers whose a_{e_l}
    is known at once.  With e_l = L that is the direct mask in terms of any network's branch.
    """

    def pairs(depth):
        """Layer l and block j of every branch, layer by layer."""
        found = [(layer, block) for layer, end in enumerate(ends(depth)) for block in range(layer, end)]
        return np.asarray(found).T

    def init(key, shapes):
        zero = branch_of(shapes, wanted_by).zero
        return jax.vmap(zero)(jax.random.split(key, pairs(shapes.depth).shape[1]))

    def push(params, env, trace, v_LxBxD):
        h_LxBxD, m_LxBxH = trace.h_KxBxD[:-1], trace.gates_LxBxH
        l_P, j_P = pairs(h_LxBxD.shape[0])
        each_PxBxD = jax.vmap(branch_of(env, wanted_by).push)(params, m_LxBxH[j_P], h_LxBxD[l_P], v_LxBxD[l_P])
        return jax.ops.segment_sum(each_PxBxD, l_P, h_LxBxD.shape[0], indices_are_sorted=True)

    def pull(params, env, trace, delta_BxD):
        h_LxBxD, m_LxBxH = trace.h_KxBxD[:-1], trace.gates_LxBxH
        depth = h_LxBxD.shape[0]
        reached, (l_P, j_P), level = ends(depth), pairs(depth), _levels(ends(depth))
        a_KxBxD = jnp.broadcast_to(delta_BxD[None], (depth + 1, *delta_BxD.shape))
        for step in range(1, level.max() + 1):
            at, mine = np.flatnonzero(level[:-1] == step), np.flatnonzero(level[l_P] == step)
            weights = jax.tree.map(lambda w: w[mine], params)  # noqa: B023
            above_PxBxD = a_KxBxD[reached[l_P[mine]]]
            back = jax.vmap(branch_of(env, wanted_by).pull)(
                weights, m_LxBxH[j_P[mine]], h_LxBxD[l_P[mine]], above_PxBxD
            )
            correction = jax.ops.segment_sum(back, np.searchsorted(at, l_P[mine]), len(at), indices_are_sorted=True)
            a_KxBxD = a_KxBxD.at[at].set(a_KxBxD[reached[at]] + correction)
        return a_KxBxD

    return TangentMap(init, push, pull, ends, lambda depth: int(_levels(ends(depth)).max()), path)


def _levels(ends: np.ndarray) -> np.ndarray:
    """How many maps lie between each state and h_L (0 for h_L itself)."""
    level = np.zeros(len(ends) + 1, int)
    for layer in reversed(range(len(ends))):
        level[layer] = level[ends[layer]] + 1
    return level


def coarse_ends(depth: int) -> np.ndarray:
    """Maps over one, two, four ... blocks: the state at distance d from h_L is reached from the lowest bit of d below.

    Every distance is a sum of at most floor(log2 L) + 1 powers of two, met from the largest: L maps serve all layers.
    """
    distance = depth - np.arange(depth)
    return np.arange(depth) + (distance & -distance)


def coarse_map() -> TangentMap:
    """Maps over one, two, four ... blocks, composed in at most floor(log2 L) + 1 steps (compare Guenther et al. 2020).

    L maps in all, of L (1 + log2(L) / 2) branches at most; a map is of first order in the branches it spans, and the
    products of branches of different spans come by composition.
    """
    return spans_map(coarse_ends, "coarse map", path="log2 L spans")


def mask_map() -> TangentMap:
    """P_l v = v + ((LNJ_l v) U_l * [m_l .. m_{L-1}]) V_l: the gates are the blocks' own activation derivatives.

    The cost grows with L^2.  A ``dense`` branch is rank (L - l) H, zero-padded to L H so that layers stack; for any
    other branch the same sum is taken block by block (``spans_map``).
    """
    by_blocks = spans_map(_to_the_end, "mask map")

    def init(key, shapes):
        branch = branch_of(shapes, "mask map")
        if not branch.dense:
            return by_blocks.init(key, shapes)
        gates = jax.eval_shape(branch.zero, key)["u"].shape[-1]
        return _init_low_rank(key, shapes.depth, shapes.width, shapes.depth * gates)

    def gates(trace):
        m_LxBxH = trace.gates_LxBxH
        depth, batch, _ = m_LxBxH.shape
        later_LxL = jnp.triu(jnp.ones((depth, depth), m_LxBxH.dtype))  # row l keeps the gates of blocks l..L-1
        kept = later_LxL[:, None, :, None] * jnp.swapaxes(m_LxBxH, 0, 1)[None]
        return kept.reshape(depth, batch, -1)

    def push(params, env, trace, v_LxBxD):
        if not branch_of(env, "mask map").dense:
            return by_blocks.push(params, env, trace, v_LxBxD)
        return _through(gates(trace), layer_norm_tangent(trace.h_KxBxD[:-1], v_LxBxD), params["u"], params["v"])

    def pull(params, env, trace, delta_BxD):
        if not branch_of(env, "mask map").dense:
            return by_blocks.pull(params, env, trace, delta_BxD)
        h_LxBxD = trace.h_KxBxD[:-1]
        delta_LxBxD = jnp.broadcast_to(delta_BxD[None], h_LxBxD.shape)
        back = _through(gates(trace), delta_LxBxD, _transpose(params["v"]), _transpose(params["u"]))
        return _credit(delta_BxD, layer_norm_tangent(h_LxBxD, back))

    return TangentMap(init, push, pull, _to_the_end, depth=1)


def random_branches(key: Key, shapes: Shapes, scale: Array | float, wanted_by: str) -> Params:
    """Random weights of a branch for each of the L blocks, at ``scale`` times the initial size of the blocks' own."""
    random = branch_of(shapes, wanted_by).random
    return jax.vmap(lambda k: random(k, scale))(jax.random.split(key, shapes.depth))


def chain_pull(weights: Params, env: Env, trace: Trace, delta_BxD: Array, wanted_by: str) -> Array:
    """a_l = a_{l+1} + branch.pull(weights_l, m_l, h_l, a_{l+1}), from a_L = delta_L down: a_0..a_L (L+1, B, D).

    Raises:
      ConfigError: the network has no branch.
    """
    branch = branch_of(env, wanted_by)

    def retreat(a, layer):
        own, m, h = layer
        before = a + branch.pull(own, m, h, a)
        return before, before

    _, earlier = jax.lax.scan(retreat, delta_BxD, (weights, trace.gates_LxBxH, trace.h_KxBxD[:-1]), reverse=True)
    return jnp.concatenate([earlier, delta_BxD[None]])


def take_up(weights: Params, env: Env, step: Params, keep: Array, wanted_by: str) -> Params:
    """Weights of the blocks' branches, moved as the blocks' own matrices were: keep * p + step (Kolen & Pollack 1994).

    Raises:
      ConfigError: the network's branch has no matrices of its own.
    """
    moved = own_matrices_of(env, wanted_by)(step)
    return weights | {name: keep * weights[name] + s for name, s in moved.items()}


def chain_map(begins: Begins = "broadcast") -> TangentMap:
    """One learned branch per block, applied in sequence: a weight mirror (Akrout et al. 2019), fitted to tangents.

    A sequential pass through *learned* feedback; the blocks' own weights are not used on the way back.  It ``begins``
    as the broadcast, each branch zero, or as the random feedback of feedback alignment.
    """

    def init(key, shapes):
        if begins == "feedback":
            return random_branches(key, shapes, 1.0, "chain map")
        return jax.vmap(branch_of(shapes, "chain map").zero)(jax.random.split(key, shapes.depth))

    def push(params, env, trace, v_LxBxD):
        return jax.vmap(branch_of(env, "chain map").push)(params, trace.gates_LxBxH, trace.h_KxBxD[:-1], v_LxBxD)

    def pull(params, env, trace, delta_BxD):
        return chain_pull(params, env, trace, delta_BxD, "chain map")

    return TangentMap(init, push, pull, None, all_blocks, path="sequential")


def sweeps_map(
    sweeps: int, relaxation: Relaxation, start: Start = "delta", rank: int = 256, begins: Begins = "broadcast"
) -> TangentMap:
    """The chain's learned branches Q_l, applied to all layers at once, K times, from a^(0) = delta_L everywhere.

    jacobi    a_l^(k+1) = a_{l+1}^(k) + Q_l^T a_{l+1}^(k): the K blocks above, those further up read as the identity.
    neumann   a_l^(k+1) = delta_L + sum_{j >= l} Q_j^T a_{j+1}^(k): every product of up to K branches of all blocks
              above, the terms of the Neumann series of the chain; the sums over layers are one cumulative sum.

    Both are the chain at K = L, with its parameters, how it ``begins`` and its fit, and their critical path is K
    whatever L is.  Layer-parallel training relaxes the exact adjoint in the first way (Guenther et al. 2020).

    Another ``start`` is the credit of a map of its own, fitted beside the chain's maps.  Its error e^(0) is what the
    sweeps work on: jacobi moves it K layers down, e_l^(K) = (I + Q_l^T) .. (I + Q_{l+K-1}^T) e_{l+K}^(0), neumann takes
    it through K branches, e_l^(k+1) = sum_{j >= l} Q_j^T e_{j+1}^(k).
    """
    chain = chain_map(begins)
    first = None if start == "delta" else make_map(start, rank)

    def init(key, shapes):
        if first is None:
            return chain.init(key, shapes)
        chain_key, start_key = jax.random.split(key)
        return {"maps": chain.init(chain_key, shapes), "start": first.init(start_key, shapes)}

    def pull(params, env, trace, delta_BxD):
        branch, h_LxBxD = branch_of(env, "sweeps map"), trace.h_KxBxD[:-1]
        maps = params if first is None else params["maps"]

        def sweep(a_KxBxD, _):
            above_LxBxD = a_KxBxD[1:]
            branches_LxBxD = jax.vmap(branch.pull)(maps, trace.gates_LxBxH, h_LxBxD, above_LxBxD)
            if relaxation == "jacobi":
                below_LxBxD = above_LxBxD + branches_LxBxD
            else:
                below_LxBxD = delta_BxD[None] + jax.lax.cumsum(branches_LxBxD, reverse=True)
            return jnp.concatenate([below_LxBxD, delta_BxD[None]]), None

        if first is None:
            begin = jnp.broadcast_to(delta_BxD[None], (h_LxBxD.shape[0] + 1, *delta_BxD.shape))
        else:
            begin = first.pull(params["start"], env, trace, delta_BxD)
        return jax.lax.scan(sweep, begin, None, length=sweeps)[0]

    path = f"{sweeps} sweep{'s' * (sweeps > 1)}"
    if first is None:
        return chain._replace(pull=pull, depth=sweeps, path=path)
    return chain._replace(
        init=init, pull=pull, depth=deeper(first.depth, sweeps), path=f"{start}, then {path}", start=first
    )


def make_map(form: MapForm, rank: int, sweeps: int = 1) -> TangentMap:
    """Returns the map called ``form``; ``gate`` is of this rank, ``sweeps`` are neumann's from delta_L."""
    return {
        "gate": lambda: gate_map(rank),
        "mask": mask_map,
        "chain": chain_map,
        "sweeps": lambda: sweeps_map(sweeps, "neumann"),
        "coarse": coarse_map,
    }[form]()
