"""Credit estimators: where d loss / d h_l comes from when it is not back-propagated.

Each factory returns an ``Estimator``, a tuple of pure functions; a user's own is the same tuple built anywhere.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jcredit.config import Config
from jcredit.estimators.controls import bp, broadcast, frozen
from jcredit.estimators.feedback import dfa, fa
from jcredit.estimators.linear_maps import chain_map, gate_map, make_map, mask_map
from jcredit.estimators.scalar_bridge import BridgeNoise, scalar_bridge
from jcredit.estimators.state_bridge import state_bridge
from jcredit.estimators.tangent_bridge import tangent_bridge
from jcredit.estimators.trunk import Trunk
from jcredit.estimators.vector_field import Measurement, vector_field
from jcredit.losses.perturbation import unbiased_residual
from jcredit.types import Estimator

__all__ = [
    "BridgeNoise", "Measurement", "Trunk", "bp", "broadcast", "chain_map", "dfa", "fa", "frozen", "gate_map",
    "make_estimator", "mask_map", "scalar_bridge", "state_bridge", "tangent_bridge", "vector_field",
    "with_exact_terminal", "with_unbiased_residual",
]  # fmt: skip


def with_exact_terminal(estimator: Estimator) -> Estimator:
    """The same estimator with a_L = delta_L."""

    def credit(state, ctx, env, hp, key):
        a_LxBxD = estimator.credit(state, ctx, env, hp, key)
        return jnp.concatenate([a_LxBxD[:-1], ctx.delta_BxD[None]])

    return estimator._replace(credit=credit)


def with_unbiased_residual(estimator: Estimator, directions: int) -> Estimator:
    """The same estimator with its bias measured away along fresh directions (method.md 9)."""

    def credit(state, ctx, env, hp, key):
        own_key, residual_key = jax.random.split(key)
        a_LxBxD = estimator.credit(state, ctx, env, hp, own_key)
        return unbiased_residual(env, ctx, a_LxBxD, residual_key, directions)

    # What measures the loss is no longer of tier 0 or 1.
    measures = estimator.is_oracle or estimator.tier.startswith(("2", "3"))
    tier = estimator.tier if measures else f"2: loss under perturbation, added to tier {estimator.tier}"
    return estimator._replace(credit=credit, tier=tier)


def make_estimator(config: Config) -> Estimator:
    """Returns the estimator ``config.method`` names, with the configuration's options."""
    trunk = Trunk(config.hidden, config.hidden_layers)
    how = Measurement(config.directions, config.direction_layers, config.scheme, config.shuffled)

    def tangent(form: str) -> Estimator:
        tangent_map = make_map(form, config.gate_rank)
        if config.tangent_target == "scalar":
            return vector_field(trunk, how, tangent_map)
        return tangent_bridge(tangent_map, config.tangent_samples, config.shuffled)

    field_map = None if config.field_form == "mlp" else config.field_form
    factories = {
        "bp": bp,
        "frozen": frozen,
        "broadcast": broadcast,
        "dfa": dfa,
        "fa": fa,
        "state_bridge": lambda: state_bridge(trunk, config.state_loss),
        "scalar_bridge": lambda: scalar_bridge(
            trunk, BridgeNoise(config.bridge_noise, config.noise_samples, config.bridge_target)
        ),
        "vector_field": lambda: vector_field(
            trunk, how, None if field_map is None else make_map(field_map, config.gate_rank)
        ),
        "tangent_gate": lambda: tangent("gate"),
        "tangent_mask": lambda: tangent("mask"),
        "tangent_chain": lambda: tangent("chain"),
    }
    estimator = factories[config.method]()
    if config.exact_terminal:
        estimator = with_exact_terminal(estimator)
    if config.residual_directions:
        estimator = with_unbiased_residual(estimator, config.residual_directions)
    return estimator
