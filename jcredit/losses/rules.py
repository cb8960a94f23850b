"""Local update rules: from the credit at a block's output to a gradient of that block's parameters (method.md 5)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jcredit.numerics import batch_normalise, cosine, rms_normalise
from jcredit.types import Array, LocalRule, Params

NORMALISATIONS = {"raw": lambda a: a, "rms": rms_normalise, "batch": batch_normalise}


def normalise_credit(a_LxBxD: Array, how: str) -> Array:
    """Scales credit: ``raw`` leaves it, ``rms`` per sample (the study's), ``batch`` one scale per layer.

    Raises:
      KeyError: ``how`` is none of these.
    """
    return NORMALISATIONS[how](a_LxBxD)


def local_gradient(rule: LocalRule, block: Callable, params: Params, h_BxD: Array, goal) -> Params:
    """The rule's gradient of one block's parameters at its input ``h_BxD`` (B, D); ``goal`` is from ``rule.goal``."""
    after_BxD, pull = jax.vjp(lambda p: block(p, h_BxD), params)
    return pull(rule.signal(h_BxD, after_BxD, goal))[0]


def _credit_as_goal(h_BxD, after_BxD, a_BxD):
    del h_BxD, after_BxD
    return a_BxD


def inner_product() -> LocalRule:
    """Minimise sum_b <sg a_{l+1}, h_{l+1}(theta; sg h_l)> / B; with a = delta this is the BP gradient."""

    return LocalRule(_credit_as_goal, lambda h_BxD, after_BxD, goal_BxD: goal_BxD / goal_BxD.shape[0])


def target_shift(eta: Array | float) -> LocalRule:
    """Minimise mean_b ||h_{l+1}(theta) - (h_{l+1} - eta a)||^2, the target held fixed over local steps (phase 6C).

    The first of those steps has exactly 2 eta times the gradient of ``inner_product``.
    """

    def goal(h_BxD, after_BxD, a_BxD):
        # State and shift apart: their difference would round away a raw credit, which is far smaller than a state.
        return after_BxD, eta * a_BxD

    def signal(h_BxD, after_BxD, goal):
        before_BxD, shift_BxD = goal
        return 2 * (after_BxD - before_BxD + shift_BxD) / h_BxD.shape[0]

    return LocalRule(goal, signal)


def cosine_rule() -> LocalRule:
    """Minimise mean_b [1 - cos(f_l(h_l; theta), -a)] on the block's residual output f_l = h_{l+1} - h_l (phase 6C).

    The residual output stands in for the displacement h_{l+1}(theta) - h_{l+1}, whose cosine has no gradient at the
    start of an update, where it is zero.
    """

    def signal(h_BxD, after_BxD, goal_BxD):
        return jax.grad(lambda after: jnp.mean(1 - cosine(after - h_BxD, -goal_BxD)))(after_BxD)

    return LocalRule(_credit_as_goal, signal)


def make_rule(name: str, eta: Array | float) -> LocalRule:
    """Returns the rule called ``name``; ``eta`` is the step of target shift.

    Raises:
      ValueError: no rule has this name.
    """
    if name == "inner_product":
        return inner_product()
    if name == "target_shift":
        return target_shift(eta)
    if name == "cosine":
        return cosine_rule()
    raise ValueError(f"rule={name!r} is unknown; choose inner_product, target_shift or cosine")
