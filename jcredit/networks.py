"""Residual networks as pure functions, their forward pass, and the questions an estimator may ask of them.

Blocks are stacked on a leading axis and scanned, so that compile time does not grow with depth.  The library's only
reverse passes are ``oracle_deltas`` (the oracle, diagnostics) and those inside the readout, an estimator, or one block
or the embedding by its own parameters (``Pulls``; ``losses.rules.local_gradient`` for further local steps).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jcredit.numerics import float_type, layer_norm
from jcredit.types import Array, Env, Key, NetParams, Network, Params, Trace

LossFn = Callable[[Array, Array], Array]
STAGES = 4


def affine(params: Params, x_BxI: Array) -> Array:
    """x W + b."""
    return x_BxI @ params["w"] + params["b"][None, :]


@jax.custom_vjp
def wide_product(x_BxI: Array, w_IxD: Array) -> Array:
    """x W for inputs far wider than the batch; reverse mode only.

    Its gradient x^T g is the widest product of a step; on CPU, XLA forms it faster from an x^T that lies in memory than
    from x (results/benchmark/README.md).
    """
    return x_BxI @ w_IxD


def _pull_wide_product(kept, g_BxD):
    x_BxI, w_IxD = kept
    by_weights = jax.lax.platform_dependent(
        x_BxI,
        g_BxD,
        cpu=lambda x, g: jax.lax.optimization_barrier(x.T) @ g,
        default=lambda x, g: x.T @ g,
    )
    return g_BxD @ w_IxD.T, by_weights


wide_product.defvjp(lambda x, w: (x @ w, (x, w)), _pull_wide_product)


def _uniform_affine(key: Key, fan_in: int, fan_out: int) -> Params:
    """Weights and bias uniform in +-1/sqrt(fan_in), the default of the study's framework."""
    w_key, b_key = jax.random.split(key)
    bound = fan_in**-0.5
    return {
        "w": jax.random.uniform(w_key, (fan_in, fan_out), float_type(), -bound, bound),
        "b": jax.random.uniform(b_key, (fan_out,), float_type(), -bound, bound),
    }


def _normal_affine(key: Key, fan_in: int, fan_out: int, std: float | None = None) -> Params:
    """Weights N(0, std^2), by default N(0, 1/fan_in); no bias at the start."""
    scale: float = fan_in**-0.5 if std is None else std
    return {"w": scale * jax.random.normal(key, (fan_in, fan_out), float_type()), "b": jnp.zeros(fan_out, float_type())}


def _stack(init_block: Callable[[Key], Params], key: Key, depth: int) -> Params:
    return jax.vmap(init_block)(jax.random.split(key, depth))


def gelu_derivative(z: Array) -> Array:
    """Phi(z) + z phi(z)."""
    return jax.scipy.stats.norm.cdf(z) + z * jnp.exp(-0.5 * z * z) * (2 * jnp.pi) ** -0.5


@jax.custom_jvp
def gelu(z: Array) -> Array:
    """z Phi(z), exact (Hendrycks & Gimpel 2016)."""
    return jax.nn.gelu(z, approximate=False)


@gelu.defjvp
def _gelu_tangent(primals, tangents):
    # One factor, known in the forward pass, is all that a pull has to keep.
    return gelu(*primals), gelu_derivative(*primals) * tangents[0]


def image_mlp(inputs: int, width: int, depth: int, classes: int) -> Network:
    """The study's residual MLP for flattened images (method.md 1).

    h_{l+1} = h_l + GELU(LN(h_l) W1 + b1) W2 + b2, logits = LN(h_L) W_out + b_out; W2 starts at N(0, 0.01^2).
    """

    def init_block(key: Key) -> Params:
        inner, outer = jax.random.split(key)
        return {"inner": _uniform_affine(inner, width, width), "outer": _normal_affine(outer, width, width, 0.01)}

    def init(key: Key) -> NetParams:
        embed, blocks, readout = jax.random.split(key, 3)
        return NetParams(
            embed=_uniform_affine(embed, inputs, width),
            blocks=_stack(init_block, blocks, depth),
            readout=_uniform_affine(readout, width, classes),
        )

    def block(params: Params, h_BxD: Array) -> Array:
        return h_BxD + affine(params["outer"], gelu(affine(params["inner"], layer_norm(h_BxD))))

    def branch_weights(key: Key, scale: float) -> tuple[Array, Array]:
        # FA replaces both matrices at the scale of the initial W1: uniform in +-1/sqrt(D).
        u, v = jax.random.split(key)
        bound = scale * width**-0.5
        draw = lambda k: jax.random.uniform(k, (width, width), float_type(), -bound, bound)  # noqa: E731
        return draw(u), draw(v)

    return Network(
        init=init,
        embed=lambda params, x: wide_product(x.reshape(x.shape[0], -1), params["w"]) + params["b"][None, :],
        block=block,
        readout=lambda params, h: affine(params, layer_norm(h)),
        gates=lambda params, h: gelu_derivative(affine(params["inner"], layer_norm(h))),
        normalise=layer_norm,
        branch_weights=branch_weights,
    )


def ladder_mlp(inputs: int, width: int, depth: int, classes: int, alpha: Array | float, layer_norm_on=True) -> Network:
    """Student and teacher of the synthetic ladder (method.md 1 and 8).

    h_{l+1} = h_l + phi(LN(h_l) W_l + b_l), phi(z) = (1 - alpha) z + alpha tanh z; logits = h_L W_out + b_out.
    """
    norm = layer_norm if layer_norm_on else lambda h: h

    def init(key: Key) -> NetParams:
        embed, blocks, readout = jax.random.split(key, 3)
        return NetParams(
            embed=_normal_affine(embed, inputs, width),
            blocks=_stack(lambda k: _normal_affine(k, width, width), blocks, depth),
            readout=_normal_affine(readout, width, classes),
        )

    def block(params: Params, h_BxD: Array) -> Array:
        z = affine(params, norm(h_BxD))
        return h_BxD + (1 - alpha) * z + alpha * jnp.tanh(z)

    def gates(params: Params, h_BxD: Array) -> Array:
        return (1 - alpha) + alpha * (1 - jnp.tanh(affine(params, norm(h_BxD))) ** 2)

    def branch_weights(key: Key, scale: float) -> tuple[Array, Array]:
        # One matrix per block: the way out of the activation is the identity and is kept.
        w = scale * width**-0.5 * jax.random.normal(key, (width, width), float_type())
        return w, jnp.eye(width, dtype=float_type())

    return Network(init, affine, block, affine, gates, layer_norm, branch_weights)


def lq_dynamics(width: int, depth: int, outputs: int) -> Network:
    """Linear dynamics h_{l+1} = h_l A_l with near-isometric A_l and readout y = h_L W (method.md 7).

    A_l is a random orthogonal matrix plus 0.1 N(0, 1/D) entries; it has no residual branch, hence no gates.
    """

    def init_block(key: Key) -> Params:
        q_key, g_key = jax.random.split(key)
        q = jax.random.orthogonal(q_key, width, dtype=float_type())
        return {"a": q + 0.1 * width**-0.5 * jax.random.normal(g_key, (width, width), float_type())}

    def init(key: Key) -> NetParams:
        blocks, readout = jax.random.split(key)
        return NetParams({}, _stack(init_block, blocks, depth), _normal_affine(readout, width, outputs))

    def no_branch(*_):
        raise ValueError("toy LQ has no residual branch: use an estimator without gates")

    return Network(
        init=init,
        embed=lambda params, x: x,
        block=lambda params, h: h @ params["a"],
        readout=affine,
        gates=no_branch,
        normalise=lambda h: h,
        branch_weights=no_branch,
    )


# --- forward passes ---------------------------------------------------------------------------------------------------


class Pulls(NamedTuple):
    """The embedding and every block, each differentiated once, alone, by a forward pass that keeps what this takes.

    Attributes:
      embed: derivative of an objective by h_0 (B, D) -> (its gradient by the embedding's parameters,).
      blocks: a pytree of the L blocks' pulls on a leading axis, each: derivative by h_{l+1} -> (gradient by the block's
        own parameters,); with ``through_states`` also the derivative by h_l, which is back-propagation.
    """

    embed: Callable
    blocks: Callable


def forward(network: Network, params: NetParams, x_B: Array, noise_LxBxD: Array | None = None) -> Trace:
    """One forward pass.  ``noise_LxBxD`` (L, B, D) is added to h_1..h_L if given."""
    h_0 = network.embed(params.embed, x_B)
    return _through_blocks(network, params, h_0, noise_LxBxD, lambda p, h: (network.block(p, h), None))[0]


def forward_with_pulls(
    network: Network, params: NetParams, x_B: Array, noise_LxBxD: Array | None = None, *, through_states: bool = False
) -> tuple[Trace, Pulls]:
    """``forward``, and what it takes to train the embedding and every block by a credit without a second pass.

    ``through_states`` is for the oracle and for diagnostics: it lets ``oracle_deltas`` back-propagate.
    """
    with jax.named_scope("embedding"):
        h_0, pull = jax.vjp(lambda p: network.embed(p, x_B), params.embed)
    own = lambda p, h: jax.vjp(lambda q: network.block(q, h), p)  # noqa: E731
    both = lambda p, h: jax.vjp(network.block, p, h)  # noqa: E731
    trace, pulls = _through_blocks(network, params, h_0, noise_LxBxD, both if through_states else own)
    return trace, Pulls(pull, pulls)


def _through_blocks(network: Network, params: NetParams, h_0: Array, noise_LxBxD: Array | None, apply: Callable):
    """The trace from h_0 on, and the L second results of ``apply`` (block's parameters, h) -> (output, anything)."""

    def advance(h, layer):
        block_params, noise = layer
        after, kept = apply(block_params, h)
        after = after if noise is None else after + noise
        return after, (after, kept)

    chex.assert_rank(h_0, 2)
    h_last, (later, kept) = jax.lax.scan(advance, h_0, (params.blocks, noise_LxBxD))
    trace = Trace(jnp.concatenate([h_0[None], later]), network.readout(params.readout, h_last), noise_LxBxD)
    return trace, kept


def oracle_deltas(
    network: Network, loss: LossFn, params: NetParams, trace: Trace, target_B: Array, pulls: Pulls
) -> Array:
    """delta_0..delta_L by back-propagation: the BP gradient, for the oracle and for diagnostics alone.

    ``pulls`` are those of the same pass, made with ``through_states``.
    """
    readout_loss = lambda h: jnp.sum(loss(network.readout(params.readout, h), target_B))  # noqa: E731
    delta_last = jax.grad(readout_loss)(trace.h_LxBxD[-1])

    def retreat(delta, pull):
        before = pull(delta)[1]
        return before, before

    _, earlier = jax.lax.scan(retreat, delta_last, pulls.blocks, reverse=True)
    return jnp.concatenate([earlier, delta_last[None]])


def _stages(layer_B: Array | np.ndarray, depth: int) -> list[tuple[int, int, int]]:
    """The tail in at most ``STAGES`` parts: (first block, block after the last, samples that run).

    Where layers are known and ascend, the samples that start in later parts are left out, which spares up to three
    eighths of the arithmetic; a part is one scan, so compile time does not grow with depth.
    """
    if not isinstance(layer_B, np.ndarray) or (np.diff(layer_B) < 0).any():
        return [(0, depth, layer_B.shape[0])]
    bounds = sorted({depth * part // STAGES for part in range(STAGES + 1)})
    parts = [(a, b, int(np.searchsorted(layer_B, b - 1, side="right"))) for a, b in itertools.pairwise(bounds)]
    return [part for part in parts if part[2] > 0]


def make_env(network: Network, loss: LossFn, params: NetParams) -> Env:
    """Returns the questions an estimator may ask of the network at ``params`` (see ``Env``)."""

    def readout_loss(h_BxD, target_B):
        return loss(network.readout(params.readout, h_BxD), target_B)

    def loss_at(ctx, layer_B, h_BxD):
        depth = ctx.trace.h_LxBxD.shape[0] - 1
        for first, end, started in _stages(layer_B, depth):
            own_B = jnp.asarray(layer_B[:started])

            def advance(h, layer):
                index, block_params, noise = layer
                # Samples perturbed at a later layer have not started yet: they wait, unchanged, for their block.
                after = network.block(block_params, h)
                after = after if noise is None else after + noise
                return jnp.where((own_B <= index)[:, None], after, h), None  # noqa: B023

            noise_LxBxD = ctx.trace.noise_LxBxD
            noise_LxBxD = noise_LxBxD if noise_LxBxD is None else noise_LxBxD[first:end, :started]
            blocks = jax.tree.map(lambda p: p[first:end], params.blocks)  # noqa: B023
            moved, _ = jax.lax.scan(advance, h_BxD[:started], (jnp.arange(first, end), blocks, noise_LxBxD))
            h_BxD = jnp.concatenate([moved, h_BxD[started:]])
        return readout_loss(h_BxD, ctx.target_B)

    def loss_tangent(ctx, layer_B, h_BxD, v_MxBxD):
        along = lambda v: jax.jvp(lambda h: loss_at(ctx, layer_B, h), (h_BxD,), (v,))[1]  # noqa: E731
        return jax.vmap(along)(v_MxBxD)

    def next_states(ctx, h_LxBxD):
        after = jax.vmap(network.block)(params.blocks, h_LxBxD)
        return after if ctx.trace.noise_LxBxD is None else after + ctx.trace.noise_LxBxD

    def block_tangent(block_params, h, v):
        return jax.jvp(lambda state: network.block(block_params, state), (h,), (v,))[1]

    def tangents(h_LxBxD, u_BxD):
        def advance(u, layer):
            block_params, h = layer
            after = block_tangent(block_params, h, u)
            return after, after

        _, later = jax.lax.scan(advance, u_BxD, (params.blocks, h_LxBxD))
        return jnp.concatenate([u_BxD[None], later])

    return Env(
        readout_loss=readout_loss,
        loss_at=loss_at,
        loss_tangent=loss_tangent,
        next_states=next_states,
        tangents=tangents,
        block_tangents=lambda h, v: jax.vmap(block_tangent)(params.blocks, h, v),
        gates=lambda h: jax.vmap(network.gates)(params.blocks, h),
        normalise=network.normalise,
    )
