"""Forward passes through a residual network, and the questions an estimator may ask of it.

Blocks are scanned, so that compile time does not grow with depth.  The library's only reverse passes are
``oracle_deltas`` (the oracle, diagnostics) and those inside the readout, an estimator, or one block or the embedding by
its own parameters (``Pulls``; ``rules.local_gradient`` for further local steps).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jcredit.settings import ConfigError
from jcredit.types import (
    Array,
    Branch,
    Context,
    Key,
    LossFn,
    NetParams,
    Network,
    OracleContext,
    Params,
    Shapes,
    Trace,
)  # fmt: skip

STAGES = 4
"""Parts a perturbed tail is run in (see ``_stages``)."""


def depth_of(params: NetParams) -> int:
    """Number of blocks L, from the parameters or their shapes."""
    return jax.tree.leaves(params.blocks)[0].shape[0]


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
    """One forward pass.  ``noise_LxBxD`` (L, B, D) is added to h_1..h_L if given.

    The gates of a network with a branch are kept: a block's pass has formed what they are made of, and what nobody
    reads is not computed in a compiled program.
    """
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
    gates_of = (lambda p, h: h[:, :0]) if network.branch is None else network.branch.gates

    def advance(h, layer):
        block_params, noise = layer
        after, kept = apply(block_params, h)
        after = after if noise is None else after + noise
        return after, (after, gates_of(block_params, h), kept)

    if h_0.ndim != 2:
        raise ConfigError(f"embed returned states of shape {h_0.shape}; a network's states are (B, D): flatten them")
    with jax.disable_jit(False):  # one pull per block cannot be stacked; what estimators and rules do stays eager
        h_last, (later, gates_LxBxH, kept) = jax.lax.scan(advance, h_0, (params.blocks, noise_LxBxD))
    outputs = network.readout(params.readout, h_last)
    return Trace(jnp.concatenate([h_0[None], later]), outputs, noise_LxBxD, gates_LxBxH), kept


def oracle_deltas(
    network: Network, loss: LossFn, params: NetParams, trace: Trace, target_B: Array, pulls: Pulls
) -> Array:
    """delta_0..delta_L by back-propagation: the BP gradient, for the oracle and for diagnostics alone.

    ``pulls`` are those of the same pass, made with ``through_states``.
    """
    readout_loss = lambda h: jnp.sum(loss(network.readout(params.readout, h), target_B))  # noqa: E731
    delta_last = jax.grad(readout_loss)(trace.h_KxBxD[-1])

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


@dataclass(frozen=True)
class NetworkEnv:
    """The questions an estimator may ask of a network at some parameters (see ``types.Env``)."""

    _network: Network
    _loss: LossFn
    _params: NetParams

    @property
    def branch(self) -> Branch | None:
        """The linearised branch of a block, without the block's weights."""
        return self._network.branch

    def normalise(self, h: Array) -> Array:
        """LN(h), or h itself; the network's own function meets (N, D), whatever axes lead here."""
        return self._network.normalise(h.reshape(-1, h.shape[-1])).reshape(*h.shape[:-1], -1)

    def output_loss(self, outputs_BxC: Array, target_B: Array) -> Array:
        """loss_B of any outputs."""
        return self._loss(outputs_BxC, target_B)

    def readout_loss(self, h_BxD: Array, target_B: Array) -> Array:
        """loss_B of the readout at h_L."""
        return self._loss(self._network.readout(self._params.readout, h_BxD), target_B)

    def loss_at(self, ctx: Context | OracleContext, layer_B: Array | np.ndarray, h_BxD: Array) -> Array:
        """loss_B with each sample's tail re-run from its own layer and state."""
        return self.readout_loss(self._last_state(ctx, layer_B, h_BxD), ctx.target_B)

    def _last_state(self, ctx: Context | OracleContext, layer_B: Array | np.ndarray, h_BxD: Array) -> Array:
        depth = ctx.trace.h_KxBxD.shape[0] - 1
        for first, end, started in _stages(layer_B, depth):
            own_B = jnp.asarray(layer_B[:started])

            def advance(h, layer):
                index, block_params, noise = layer
                # Samples perturbed at a later layer have not started yet: they wait, unchanged, for their block.
                after = self._network.block(block_params, h)
                after = after if noise is None else after + noise
                return jnp.where((own_B <= index)[:, None], after, h), None  # noqa: B023

            noise_LxBxD = ctx.trace.noise_LxBxD
            noise_LxBxD = noise_LxBxD if noise_LxBxD is None else noise_LxBxD[first:end, :started]
            blocks = jax.tree.map(lambda p: p[first:end], self._params.blocks)  # noqa: B023
            moved, _ = jax.lax.scan(advance, h_BxD[:started], (jnp.arange(first, end), blocks, noise_LxBxD))
            h_BxD = jnp.concatenate([moved, h_BxD[started:]])
        return h_BxD

    def loss_tangent(
        self, ctx: Context | OracleContext, layer_B: Array | np.ndarray, h_BxD: Array, v_MxBxD: Array
    ) -> Array:
        """g_MxB: derivatives of ``loss_at`` along directions, in forward mode."""
        along = lambda v: jax.jvp(lambda h: self.loss_at(ctx, layer_B, h), (h_BxD,), (v,))[1]  # noqa: E731
        return jax.vmap(along)(v_MxBxD)

    def outputs_tangent(
        self, ctx: Context | OracleContext, layer_B: Array | np.ndarray, h_BxD: Array, v_MxBxD: Array
    ) -> Array:
        """Derivatives of the outputs along directions, in forward mode (M, B, C)."""
        outputs = lambda h: self._network.readout(self._params.readout, self._last_state(ctx, layer_B, h))  # noqa: E731
        return jax.vmap(lambda v: jax.jvp(outputs, (h_BxD,), (v,))[1])(v_MxBxD)

    def next_states(self, ctx: Context | OracleContext, h_LxBxD: Array) -> Array:
        """Every block applied to a state of its own, with the pass's process noise."""
        after = jax.vmap(self._network.block)(self._params.blocks, h_LxBxD)
        return after if ctx.trace.noise_LxBxD is None else after + ctx.trace.noise_LxBxD

    def _block_tangent(self, block_params: Params, h_BxD: Array, v_BxD: Array) -> Array:
        return jax.jvp(lambda state: self._network.block(block_params, state), (h_BxD,), (v_BxD,))[1]

    def tangents(self, h_LxBxD: Array, u_BxD: Array) -> Array:
        """u_0 carried to u_L in one forward-mode sweep."""

        def advance(u, layer):
            block_params, h = layer
            after = self._block_tangent(block_params, h, u)
            return after, after

        _, later = jax.lax.scan(advance, u_BxD, (self._params.blocks, h_LxBxD))
        return jnp.concatenate([u_BxD[None], later])

    def block_tangents(self, h_LxBxD: Array, v_LxBxD: Array) -> Array:
        """J_l v_l for each block alone."""
        return jax.vmap(self._block_tangent)(self._params.blocks, h_LxBxD, v_LxBxD)

    def mirrored(self, key: Key, samples: int) -> dict[str, Array]:
        """x^T (x W) / samples for each of the blocks' own matrices, x ~ N(0, I): its expectation is W (L, I, O).

        Raises:
          ConfigError: the network declares no ``branch`` or no ``own`` matrices.
        """
        own = own_matrices_of(self, "mirrored weights")(self._params.blocks)
        keys = dict(zip(own, jax.random.split(key, len(own)), strict=True))

        def one(w_LxIxO, key):
            x_LxNxI = jax.random.normal(key, (w_LxIxO.shape[0], samples, w_LxIxO.shape[1]), w_LxIxO.dtype)
            return jnp.swapaxes(x_LxNxI, -1, -2) @ (x_LxNxI @ w_LxIxO) / samples

        return {name: one(w, keys[name]) for name, w in own.items()}


def branch_of(owner: NetworkEnv | Network | Shapes | Any, wanted_by: str) -> Branch:
    """The ``branch`` of a network, its Env or its Shapes.

    Raises:
      ConfigError: it has none.
    """
    if owner.branch is None:
        raise ConfigError(
            f"{wanted_by}: the network has no branch, whose weights it replaces by its own; help(jc.Branch) says how to"
            " give it one, and tangent_gate, the bridges, vector_field and grape need none"
        )
    return owner.branch


def own_matrices_of(owner: NetworkEnv | Network | Shapes | Any, wanted_by: str) -> Callable[[Params], dict[str, Array]]:
    """``Branch.own`` of a network, its Env or its Shapes.

    Raises:
      ConfigError: it has none.
    """
    own = branch_of(owner, wanted_by).own
    if own is None:
        raise ConfigError(f"{wanted_by}: the network's branch does not say which matrices are its own (jc.Branch.own)")
    return own
