"""Estimators made of another: what they add holds for any credit."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jcredit import parts
from jcredit.losses.perturbation import add_residual
from jcredit.parts import EstimatorPart
from jcredit.settings import Count
from jcredit.types import Estimator, deeper


@parts.estimator
def exact_terminal(of: EstimatorPart) -> Estimator:
    """The same estimator with a_L = delta_L.

    Args:
      of: the estimator.
    """
    inner: Estimator = of.build()

    def credit(state, ctx, env, key):
        a_KxBxD = inner.credit(state, ctx, env, key)
        return jnp.concatenate([a_KxBxD[:-1], ctx.delta_BxD[None]])

    return inner._replace(credit=credit)


@parts.estimator
def exact_at(of: EstimatorPart, layers: Literal["embedding", "blocks"] = "embedding") -> Estimator:
    """The same estimator with the BP gradient put in at some layers: where does its error cost accuracy?

    An oracle, for dissection alone.  Block l is trained by a_{l+1}, the embedding by a_0.  During a warm-up all layers
    have the warm-up's credit, as those of any estimator.

    Args:
      of: the estimator; blocks are trained even where it trains none.
      layers: embedding: a_0 = delta_0, and a_1 .. a_L are the estimator's; blocks: a_0 is the estimator's, and a_l =
        delta_l for l = 1..L.
    """
    inner: Estimator = of.build()

    def credit(state, ctx, env, key):
        a_KxBxD = inner.credit(state, ctx, env, key)
        below, above = (ctx.delta_KxBxD, a_KxBxD) if layers == "embedding" else (a_KxBxD, ctx.delta_KxBxD)
        return jnp.concatenate([below[:1], above[1:]])

    tier = f"oracle: back-propagation for the {layers}, added to {inner.tier}"

    def depth(blocks):
        own = inner.depth(blocks) if callable(inner.depth) else inner.depth
        return max(blocks, own or 0)

    return inner._replace(
        credit=credit, tier=tier, oracle=True, trains_blocks=True, depth=None if inner.depth is None else depth
    )


@parts.estimator
def unbiased_residual(of: EstimatorPart, directions: Count = 2) -> Estimator:
    """The same estimator with its bias measured away along fresh directions (docs/method.md 4).

    Args:
      of: the estimator.
      directions: fresh directions of the loss per layer and sample.
    """
    inner: Estimator = of.build()

    def credit(state, ctx, env, key):
        own_key, residual_key = jax.random.split(key)
        a_KxBxD = inner.credit(state, ctx, env, own_key)
        return add_residual(env, ctx, a_KxBxD, residual_key, directions)

    head = inner.tier.partition(":")[0]
    number = max(2, int(head)) if head.isdigit() else 2
    tier = inner.tier if inner.oracle else f"{number}: loss under perturbation, added to {inner.tier}"
    return inner._replace(credit=credit, tier=tier, depth=deeper(inner.depth, 1))
