"""The central types: a network, what one forward pass leaves behind, and what a credit estimator is.

Shape suffixes: B batch, D width, C outputs, H gates, S the code; L the blocks, K = L+1 the states h_0..h_L; M
directions, N samples of any number, P pairs of layer and block, R noise samples or a rank; I and O a matrix's sides.
``h_KxBxD`` holds h_0..h_L, ``h_LxBxD`` the blocks' inputs h_0..h_{L-1}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax

from jcredit.numerics import clip_by_norm

Array = jax.Array
Key = jax.Array
Params = Any
LossFn = Callable[[Array, Array], Array]
"""(outputs_BxC, target_B) -> loss_B, in nats for classification."""


# --- networks ---------------------------------------------------------------------------------------------------------


class Sizes(NamedTuple):
    """What a task asks of a network: the shape of one input sample, and the number of outputs C."""

    inputs: tuple[int, ...]
    outputs: int


class NetParams(NamedTuple):
    """Parameters of a residual network; every leaf of ``blocks`` has the L blocks on its leading axis."""

    embed: Params
    blocks: Params
    readout: Params


class Branch(NamedTuple):
    """The linearised residual branch of a block with its weights replaced by weights of one's own (FA, tangent maps).

    Attributes:
      gates: (block's parameters, h_BxD) -> m_BxH, the block's activation derivatives.
      random: (key, scale) -> random weights of its form, ``scale`` times a size that the network chooses.
      zero: (key) -> weights whose branch is zero, from which a learned map starts.
      push: (weights, m_BxH, h_BxD, v_BxD) -> the branch's tangent along v (B, D).
      pull: (weights, m_BxH, h_BxD, a_BxD) -> its transpose applied to a (B, D).
      dense: whether the weights are {"u": (D, H), "v": (H, D)} with a LayerNorm in front, as a direct mask map takes
        them.
      own: block's parameters -> {name: matrix} of those weights that are trained matrices of the block's own; linear,
        so that it also picks them out of an update (weight mirror, Kolen-Pollack).  None: these two say so.
    """

    gates: Callable[[Params, Array], Array]
    random: Callable[[Key, Array | float], Params]
    zero: Callable[[Key], Params]
    push: Callable[[Params, Array, Array, Array], Array]
    pull: Callable[[Params, Array, Array, Array], Array]
    dense: bool = False
    own: Callable[[Params], dict[str, Array]] | None = None


class Network(NamedTuple):
    """A residual network as pure functions of states (B, D); a network of images or tokens flattens its states.

    Attributes:
      init: key -> NetParams.
      embed: (embedding's parameters, x_B as the task prepares it) -> h_0; need not allow forward mode.
      block: (one block's parameters, h_BxD) -> h_BxD.
      readout: (readout's parameters, h_BxD) -> outputs_BxC, terminal LayerNorm included.
      normalise: h_BxD -> what estimators see of it: LN(h), or h itself (toy LQ).
      branch: the block's linearised branch; None where there is none (linear dynamics), or it is not wanted: FA, the
        mirrors and all tangent maps but ``gate`` then say so.
    """

    init: Callable[[Key], NetParams]
    embed: Callable[[Params, Array], Array]
    block: Callable[[Params, Array], Array]
    readout: Callable[[Params, Array], Array]
    normalise: Callable[[Array], Array] = lambda h_BxD: h_BxD
    branch: Branch | None = None


class Trace(NamedTuple):
    """What one forward pass leaves behind.

    Attributes:
      h_KxBxD: the hidden states h_0 .. h_L.
      outputs_BxC: the network's outputs.
      noise_LxBxD: the process noise that entered h_1 .. h_L; None where there is none.
      gates_LxBxH: activation derivatives m_l of the blocks at h_0 .. h_{L-1}; without a ``branch`` H = 0.
    """

    h_KxBxD: Array
    outputs_BxC: Array
    noise_LxBxD: Array | None
    gates_LxBxH: Array

    def take(self, index_N: Array | np.ndarray | slice) -> Trace:
        """The trace of the samples ``index_N`` (N,) of the batch; samples may be left out or taken twice."""
        h, outputs, noise, gates = self
        noise = noise if noise is None else noise[:, index_N]
        return Trace(h[:, index_N], outputs[index_N], noise, gates[:, index_N])


# --- what an estimator sees -------------------------------------------------------------------------------------------


class Context(NamedTuple):
    """Arrays an estimator may use.  Nothing in it has been back-propagated through a block.

    Attributes:
      trace: of the forward pass; the hidden states are ``trace.h_KxBxD``.
      target_B: labels (B,) int32, or targets (B, C) of a regression.
      error_BxC: e_T, the derivative of the loss by the outputs.
      delta_BxD: delta_L = d loss / d h_L, through the readout alone.
    """

    trace: Trace
    target_B: Array
    error_BxC: Array
    delta_BxD: Array


class OracleContext(NamedTuple):
    """A Context with the back-propagated gradients delta_0 .. delta_L; handed only to oracles and to diagnostics."""

    trace: Trace
    target_B: Array
    error_BxC: Array
    delta_BxD: Array
    delta_KxBxD: Array


class Env(Protocol):
    """What an estimator may ask of the network: forward passes only."""

    @property
    def branch(self) -> Branch | None:
        """The linearised branch of a block, without the block's weights."""
        ...

    def output_loss(self, outputs_BxC: Array, target_B: Array) -> Array:
        """loss_B of any outputs, such as those of heads of an estimator's own."""
        ...

    def normalise(self, h: Array) -> Array:
        """What estimators see of states (..., D): LN(h), or h itself (toy LQ)."""
        ...

    def readout_loss(self, h_BxD: Array, target_B: Array) -> Array:
        """loss_B of the readout at h_L; may be differentiated backwards, as `normalise` and `output_loss` may."""
        ...

    def loss_at(self, ctx: Context | OracleContext, layer_B: Any, h_BxD: Array) -> Array:
        """loss_B with each sample's tail re-run from its own layer (0..L) and state.

        Layers may be traced; given as an ascending NumPy array, samples run (almost) their own tails only.
        """
        ...

    def loss_tangent(self, ctx: Context | OracleContext, layer_B: Any, h_BxD: Array, v_MxBxD: Array) -> Array:
        """g_MxB: derivatives of ``loss_at`` along directions, in forward mode."""
        ...

    def outputs_tangent(self, ctx: Context | OracleContext, layer_B: Any, h_BxD: Array, v_MxBxD: Array) -> Array:
        """Derivatives of the outputs along directions from each sample's own layer and state (M, B, C)."""
        ...

    def next_states(self, ctx: Context | OracleContext, h_LxBxD: Array) -> Array:
        """Every block applied to a state of its own, with the pass's process noise (L, B, D)."""
        ...

    def tangents(self, h_LxBxD: Array, u_BxD: Array) -> Array:
        """u_0 carried to u_L in one forward-mode sweep: u_0..u_L (L+1, B, D)."""
        ...

    def block_tangents(self, h_LxBxD: Array, v_LxBxD: Array) -> Array:
        """J_l v_l for each block alone (L, B, D)."""
        ...

    def mirrored(self, key: Key, samples: int) -> dict[str, Array]:
        """x^T (x W) / samples for each matrix W in ``Branch.own`` of every block (L, I, O), x ~ N(0, I) noise."""
        ...


class Shapes(NamedTuple):
    """Sizes an estimator is initialised with: depth L, width D, outputs C; and the network's linearised branch."""

    depth: int
    width: int
    outputs: int
    branch: Branch | None


# --- estimators -------------------------------------------------------------------------------------------------------


class EstState(NamedTuple):
    """An estimator's state: trained parameters, and anything else (slow copies, fixed feedback)."""

    params: Params
    extra: Any


def all_blocks(depth: int) -> int:
    """The sequential depth of a credit that passes through every block: L."""
    return depth


SequentialDepth = int | Callable[[int], int] | None
"""A number of steps, a function of the depth L, or not stated (``Estimator.depth``)."""


def deeper(depth: SequentialDepth, by: int) -> SequentialDepth:
    """The sequential depth of a credit that takes ``by`` steps more."""
    if callable(depth):
        return lambda blocks: depth(blocks) + by
    return None if depth is None else depth + by


class InitFn(Protocol):
    """(key, shapes) -> EstState."""

    def __call__(self, key: Key, shapes: Shapes, /) -> EstState: ...  # noqa: D102


class CreditFn(Protocol):
    """(state, ctx, env, key) -> a_KxBxD, the credit a_0..a_L (L+1, B, D), in loss per unit of state."""

    def __call__(self, state: EstState, ctx: Any, env: Env, key: Key, /) -> Array: ...  # noqa: D102


class FollowFn(Protocol):
    """(state, env, step, keep) -> EstState, where the blocks' parameters became keep * p + step."""

    def __call__(self, state: EstState, env: Env, step: Params, keep: Array, /) -> EstState: ...  # noqa: D102


class UpdateFn(Protocol):
    """(state, ctx, env, key) -> EstState, at the end of every step: what is kept of the batch, or of ``params``."""

    def __call__(self, state: EstState, ctx: Context, env: Env, key: Key, /) -> EstState: ...  # noqa: D102


class EstimatorLoss(Protocol):
    """(state, ctx, env, key) -> (scalar, {name: scalar}); differentiated by ``state.params``."""

    def __call__(self, state: EstState, ctx: Context, env: Env, key: Key, /) -> tuple[Array, dict[str, Array]]: ...  # noqa: D102


def adam(learning_rate: Array | float = 1e-3, clip: Array | float = 0.0) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015) behind a clip of the global norm (0, the default: none); both numbers may be traced."""
    clipped = optax.stateless(lambda updates, params: clip_by_norm(updates, clip))
    return optax.chain(clipped, optax.scale_by_adam(), optax.scale_by_learning_rate(learning_rate))


def nothing_to_learn(key: Key, shapes: Shapes) -> EstState:
    """The state of an estimator that has none."""
    del key, shapes
    return EstState(params={}, extra={})


class Estimator(NamedTuple):
    """A source of credit, in the manner of ``optax.GradientTransformation``: a tuple of pure functions.

    Swept settings are closed over, as in optax: the factory is called with traced numbers (see ``jcredit.parts``).

    Attributes:
      init: (key, shapes) -> EstState.
      credit: (state, ctx, env, key) -> a_0..a_L; ``ctx`` is an OracleContext for oracles only.
      loss: (state, ctx, env, key) -> (scalar, dict of scalar metrics), ``ctx`` a plain Context for oracles, too; None
        if nothing is learned.
      update: (state, ctx, env, key) -> EstState, once in every step after what is fitted, if anything is: slow copies
        of ``params``, running moments of what a batch shows. ``ctx`` and ``env`` are those of ``loss``.
      follow: told how the rule's update moved the blocks' parameters, never what they are (Kolen-Pollack); None: it
        does not ask.
      optimizer: what trains ``params``.
      tier: which information it uses, as printed in tables.
      depth: the sequential depth of the credit, as printed beside the tier: how many steps, each as deep as one
        block, must follow each other until every layer has its credit once the forward pass is over; a number, or a
        function of the depth L (back-propagation: L). Not counted: what is fitted for later steps, and forward
        tangents, which can run beside the forward pass. None: not stated.
      oracle: whether it may see back-propagated gradients.
      trains_blocks: whether blocks and embedding are trained by its credit; False leaves the readout alone to learn.
    """

    init: InitFn
    credit: CreditFn
    loss: EstimatorLoss | None = None
    update: UpdateFn = lambda state, ctx, env, key: state
    optimizer: optax.GradientTransformation = adam()
    tier: str = "not stated"
    depth: SequentialDepth = None
    oracle: bool = False
    trains_blocks: bool = True
    follow: FollowFn | None = None


class LocalRule(NamedTuple):
    """An objective of one block's output, told by the credit there; its gradient trains that block's own parameters.

    A rule sees the block's input and output, never the block: the one derivative of the block that training takes, by
    its own parameters, is taken by the shared step.

    Attributes:
      goal: (h_BxD, after_BxD, a_BxD) -> goal (any arrays), formed once and held fixed over local steps.
      signal: (h_BxD, after_BxD, goal) -> derivative of the objective (a mean over the batch) by ``after_BxD``.
    """

    goal: Callable[[Array, Array, Array], Any]
    signal: Callable[[Array, Array, Any], Array]


# --- tasks ------------------------------------------------------------------------------------------------------------


class Data(NamedTuple):
    """Arrays of one task on the device: N training and T evaluation samples (images as uint8)."""

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array


class Task(NamedTuple):
    """A task as pure functions.

    Attributes:
      sizes: the shape of one sample as the network takes it, and the number of outputs.
      loss: (outputs_BxC, target_B) -> loss_B.
      accuracy: (outputs_BxC, target_B) -> correct_B in {0, 1}; None for a regression.
      data: what all runs share, or (key, network) -> Data of one run.
      batch: (Data, index_B, key) -> (x_B, target_B) for training: augmented, and as the network takes it.
      prepare: x_B as stored -> x_B as the network takes it.
      train_size: samples in an epoch; None where every step draws fresh ones.
      noise: (key, shape (L, B, D)) -> noise added to h_1..h_L in steps and credit scores, not in the evaluation of the
        loss; None where there is none.
      origin: hash of samples that are read from outside, which settings do not tell; "" where settings tell all.
    """

    sizes: Sizes
    loss: LossFn
    accuracy: LossFn | None
    data: Data | Callable[[Key, Network], Data]
    batch: Callable[[Data, Array, Key], tuple[Array, Array]]
    prepare: Callable[[Array], Array]
    train_size: int | None
    noise: Callable[[Key, tuple[int, ...]], Array] | None = None
    origin: str = ""


class TrainState(NamedTuple):
    """Everything a run carries from step to step.

    Attributes:
      params: of the network.
      opt_state: the moments of the network's optimizer.
      est_state: the estimator's parameters, and what else it keeps.
      est_opt_state: the state of the estimator's optimizer.
      warmup: DFA's feedback, used while ``step`` < warmup_ratio * total steps.
      step: how many were made, int32.
      key: that of every step is drawn from it and ``step``; it never changes.
    """

    params: NetParams
    opt_state: Any
    est_state: EstState
    est_opt_state: Any
    warmup: EstState
    step: Array
    key: Key
