"""Local update rules: from the credit at a block's output to a gradient of that block's parameters (method.md 5)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jcredit.numerics import batch_normalise, cosine, rms_normalise
from jcredit.types import Array, LocalRule

NORMALISATIONS = {"raw": lambda a: a, "rms": rms_normalise, "batch": batch_normalise}


def normalise_credit(a_LxBxD: Array, how: str) -> Array:
    """Scales credit: ``raw`` leaves it, ``rms`` per sample (the study's), ``batch`` one scale per layer.

    Raises:
      KeyError: ``how`` is none of these.
    """
    return NORMALISATIONS[how](a_LxBxD)


def _credit_as_goal(block, params, h_BxD, a_BxD):
    del block, params, h_BxD
    return a_BxD


def inner_product() -> LocalRule:
    """Minimise sum_b <sg a_{l+1}, h_{l+1}(theta; sg h_l)> / B; with a = delta this is the BP gradient."""

    def grads(block, params, h_BxD, goal_BxD):
        _, pull = jax.vjp(lambda p: block(p, h_BxD), params)
        return pull(goal_BxD / goal_BxD.shape[0])[0]

    return LocalRule(_credit_as_goal, grads)


def target_shift(eta: Array | float) -> LocalRule:
    """Minimise mean_b ||h_{l+1}(theta) - (h_{l+1} - eta a)||^2, the target held fixed over local steps (phase 6C).

    The first of those steps has exactly 2 eta times the gradient of ``inner_product``.
    """

    def goal(block, params, h_BxD, a_BxD):
        # State and shift apart: their difference would round away a raw credit, which is far smaller than a state.
        return block(params, h_BxD), eta * a_BxD

    def grads(block, params, h_BxD, goal):
        before_BxD, shift_BxD = goal
        after_BxD, pull = jax.vjp(lambda p: block(p, h_BxD), params)
        return pull(2 * (after_BxD - before_BxD + shift_BxD) / h_BxD.shape[0])[0]

    return LocalRule(goal, grads)


def cosine_rule() -> LocalRule:
    """Minimise mean_b [1 - cos(f_l(h_l; theta), -a)] on the block's residual output f_l = h_{l+1} - h_l (phase 6C).

    The residual output stands in for the displacement h_{l+1}(theta) - h_{l+1}, whose cosine has no gradient at the
    start of an update, where it is zero.
    """

    def grads(block, params, h_BxD, goal_BxD):
        objective = lambda p: jnp.mean(1 - cosine(block(p, h_BxD) - h_BxD, -goal_BxD))  # noqa: E731
        return jax.grad(objective)(params)

    return LocalRule(_credit_as_goal, grads)


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
