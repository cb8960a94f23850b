"""Local update rules: from the credit at a block's output to a gradient of its parameters (docs/method.md 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jcredit import parts
from jcredit.numerics import batch_normalise, cosine, rms_normalise
from jcredit.passes import Pulls
from jcredit.settings import ConfigError, Positive
from jcredit.types import Array, LocalRule, Params, Trace

Normalisation = Literal["raw", "rms", "batch"]
NORMALISATIONS = {"raw": lambda a: a, "rms": rms_normalise, "batch": batch_normalise}


def normalise_credit(a_KxBxD: Array, how: Normalisation) -> Array:
    """Scales credit (L+1, B, D): ``raw`` not, ``rms`` per sample (the study's), ``batch`` one scale per layer."""
    return NORMALISATIONS[how](a_KxBxD)


def local_gradient(rule: LocalRule, block: Callable, params: Params, h_BxD: Array, goal) -> Params:
    """The rule's gradient of one block's parameters at its input ``h_BxD`` (B, D); ``goal`` is from ``rule.goal``."""
    after_BxD, pull = jax.vjp(lambda p: block(p, h_BxD), params)
    return pull(_signal(rule, h_BxD, after_BxD, goal))[0]


def _signal(rule: LocalRule, h_BxD: Array, after_BxD: Array, goal) -> Array:
    """The rule's signal.

    Raises:
      ConfigError: it is of another shape or type than the block's output.
    """
    signal = rule.signal(h_BxD, after_BxD, goal)
    found = (getattr(signal, "shape", None), getattr(signal, "dtype", type(signal).__name__))
    if found != (after_BxD.shape, after_BxD.dtype):
        raise ConfigError(
            f"the local rule's signal has shape {found[0]} and type {found[1]}, not {after_BxD.shape} and"
            f" {after_BxD.dtype}: it is a derivative by the block's output"
        )
    return signal


def local_gradients(rule: LocalRule, trace: Trace, pulls: Pulls, a_KxBxD: Array) -> tuple[Params, Params]:
    """Gradients of the embedding (by a_0) and of all blocks (by a_1..a_L), each block seeing only itself.

    Args:
      rule: from a credit to a derivative by a block's output.
      trace: of the pass that is learned from.
      pulls: of the same pass.
      a_KxBxD: the credit as it is spent, a_0..a_L.

    Returns:
      The embedding's gradient, and the blocks' with the L blocks on the leading axis of every leaf.

    Raises:
      ConfigError: a signal of another shape or type than the block's output.
    """

    def one(pull, h, after, a):
        return pull(_signal(rule, h, after, rule.goal(h, after, a)))[0]

    h_KxBxD = trace.h_KxBxD
    after_LxBxD = h_KxBxD[1:] if trace.noise_LxBxD is None else h_KxBxD[1:] - trace.noise_LxBxD
    blocks = jax.vmap(one)(pulls.blocks, h_KxBxD[:-1], after_LxBxD, a_KxBxD[1:])
    # The embedding is a block that starts from nothing: its residual output is h_0 itself.
    with jax.named_scope("embedding"):
        return one(pulls.embed, jnp.zeros_like(h_KxBxD[0]), h_KxBxD[0], a_KxBxD[0]), blocks


def _credit_as_goal(h_BxD, after_BxD, a_BxD):
    del h_BxD, after_BxD
    return a_BxD


@parts.rule
def inner_product() -> LocalRule:
    """Minimise sum_b <sg a_{l+1}, h_{l+1}(theta; sg h_l)> / B; with a = delta this is the BP gradient."""

    return LocalRule(_credit_as_goal, lambda h_BxD, after_BxD, goal_BxD: goal_BxD / goal_BxD.shape[0])


@parts.rule
def target_shift(eta: Positive = 0.1) -> LocalRule:
    """Minimise mean_b ||h_{l+1}(theta) - (h_{l+1} - eta a)||^2, the target held fixed over local steps (phase 6C).

    The first of those steps has exactly 2 eta times the gradient of ``inner_product``.

    Args:
      eta: step of the target along the credit.
    """

    def goal(h_BxD, after_BxD, a_BxD):
        # State and shift apart: their difference would round away a raw credit, which is far smaller than a state.
        return after_BxD, eta * a_BxD

    def signal(h_BxD, after_BxD, goal):
        before_BxD, shift_BxD = goal
        return 2 * (after_BxD - before_BxD + shift_BxD) / h_BxD.shape[0]

    return LocalRule(goal, signal)


@parts.rule
def cosine_rule() -> LocalRule:
    """Minimise mean_b [1 - cos(f_l(h_l; theta), -a)] on the block's residual output f_l = h_{l+1} - h_l (phase 6C).

    The residual output stands in for the displacement h_{l+1}(theta) - h_{l+1}, whose cosine has no gradient at the
    start of an update, where it is zero.
    """

    def signal(h_BxD, after_BxD, goal_BxD):
        return jax.grad(lambda after: jnp.mean(1 - cosine(after - h_BxD, -goal_BxD)))(after_BxD)

    return LocalRule(_credit_as_goal, signal)
