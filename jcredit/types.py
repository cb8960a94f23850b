"""The central types: a network, what one forward pass leaves behind, and what a credit estimator is.

Shape suffixes: B batch, D width, C outputs, S code, M directions, H gate width; ``LxBxD`` holds h_0..h_L where a
trace or a credit is meant (L+1 of them), and the L blocks where parameters, gates or tangents are meant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
Key = jax.Array
Params = Any


class NetParams(NamedTuple):
    """Parameters of a residual network; every leaf of ``blocks`` has the L blocks on its leading axis."""

    embed: Params
    blocks: Params
    readout: Params


class Network(NamedTuple):
    """A residual network as pure functions."""

    init: Callable[[Key], NetParams]
    embed: Callable[[Params, Array], Array]  # x_B... -> h_BxD; need not be differentiable in forward mode
    block: Callable[[Params, Array], Array]  # one block: h_BxD -> h_BxD
    readout: Callable[[Params, Array], Array]  # h_BxD -> outputs_BxC, terminal LayerNorm included
    gates: Callable[[Params, Array], Array]  # one block's activation derivatives: h_BxD -> m_BxH
    normalise: Callable[[Array], Array]  # what estimators see of h: LN(h), or h itself (toy LQ)
    branch_weights: Callable[[Key, float], tuple[Array, Array]]  # random feedback (U_DxH, V_HxD) of one block (FA)


class Trace(NamedTuple):
    """What one forward pass leaves behind."""

    h_LxBxD: Array  # h_0 .. h_L: L+1 states
    outputs_BxC: Array
    noise_LxBxD: Array | None  # the process noise that entered h_1 .. h_L; None where there is none


class Context(NamedTuple):
    """Arrays an estimator may use.  Nothing in it has been back-propagated through a block."""

    trace: Trace
    target_B: Array  # labels (B,) int32, or targets (B, C) of a regression
    error_BxC: Array  # e_T: derivative of the loss by the outputs
    delta_BxD: Array  # delta_L = d loss / d h_L, through the readout alone
    code_BxS: Array  # the conditioning code s


class OracleContext(NamedTuple):
    """A Context with the back-propagated gradients; handed only to oracles and to diagnostics."""

    trace: Trace
    target_B: Array
    error_BxC: Array
    delta_BxD: Array
    code_BxS: Array
    delta_LxBxD: Array  # delta_0 .. delta_L


class Env(NamedTuple):
    """What an estimator may ask of the network: closures over its parameters, forward passes only."""

    readout_loss: Callable  # (h_BxD, target_B) -> loss_B; the one that may be differentiated
    # Layers 0..L may be traced; given as an ascending NumPy array, samples run (almost) their own tails only.
    loss_at: Callable  # (ctx, layer_B, h_BxD) -> loss_B, the tail re-run from each sample's own layer
    loss_tangent: Callable  # (ctx, layer_B, h_BxD, v_MxBxD) -> g_MxB, forward mode
    next_states: Callable  # (ctx, h_LxBxD) -> h_LxBxD: every block applied to a state of its own
    tangents: Callable  # (h_LxBxD, u_BxD) -> u_LxBxD: u_0 carried to u_L in one forward-mode sweep
    block_tangents: Callable  # (h_LxBxD, v_LxBxD) -> J_l v_l for each block alone
    gates: Callable  # (h_LxBxD) -> m_LxBxH, activation derivatives of the L blocks
    normalise: Callable  # h -> LN(h) (identity for toy LQ)


class Shapes(NamedTuple):
    """Sizes an estimator is initialised with."""

    depth: int
    width: int
    outputs: int
    code: int
    gates: int
    branch_weights: Callable[[Key, float], tuple[Array, Array]]


class EstState(NamedTuple):
    """An estimator's state: trained parameters, and anything else (slow copies, fixed feedback)."""

    params: Params
    extra: Any


def no_update(state: EstState, hp: Any) -> EstState:
    """The update of an estimator that keeps nothing beside its parameters."""
    del hp
    return state


class Estimator(NamedTuple):
    """A source of credit, in the manner of ``optax.GradientTransformation``: a tuple of pure functions.

    Attributes:
      init: (key, Shapes) -> EstState.
      credit: (EstState, ctx, env, hp, key) -> a_LxBxD for l = 0..L; ``ctx`` is an OracleContext for oracles only.
      loss: (params, EstState, ctx, env, hp, key) -> (scalar, dict of scalar metrics); None if nothing is learned.
      update: (EstState, hp) -> EstState, after each optimiser step.
      tier: which information it uses, as printed in tables; it starts with "oracle" only for the BP reference.
    """

    init: Callable[[Key, Shapes], EstState]
    credit: Callable[..., Array]
    loss: Callable[..., tuple[Array, dict[str, Array]]] | None
    tier: str
    update: Callable[[EstState, Any], EstState] = no_update

    @property
    def is_oracle(self) -> bool:
        """Whether this estimator may see back-propagated gradients."""
        return self.tier.startswith("oracle")


class LocalRule(NamedTuple):
    """An objective of one block's output, told by the credit there; its gradient trains that block's own parameters.

    A rule sees the block's input and output, never the block: the one derivative of the block that training takes, by
    its own parameters, is taken by the shared step.

    Attributes:
      goal: (h_BxD, after_BxD, a_BxD) -> goal (any arrays), formed once and held fixed over local steps.
      signal: (h_BxD, after_BxD, goal) -> derivative of the objective (a mean over the batch) by ``after_BxD``.
    """

    goal: Callable[..., Any]
    signal: Callable[..., Array]


class TrainState(NamedTuple):
    """Everything a run carries from step to step."""

    params: NetParams
    optimizer: Any
    estimator: EstState
    estimator_optimizer: Any
    warmup: EstState  # DFA's feedback, used while epoch < warmup_ratio * epochs
    projection_DxP: Array  # fixed random projection of the codes that contain h_L
    step: Array
    key: Key
