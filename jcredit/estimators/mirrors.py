"""Credit through copies of the blocks' weights that are learned without reading them (docs/method.md 4).

Both copy the weights themselves, not the block's effective linear map: LayerNorm Jacobian and activation derivatives at
h_l are known from the forward pass, as in feedback alignment, which these are with feedback that learns.  Credit passes
through the copies block by block, as in the papers, or to all layers at once, as in ``tangent_sweeps``.
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from jcredit import parts
from jcredit.estimators.linear_maps import TangentMap, chain_map, random_branches, sweeps_map, take_up
from jcredit.numerics import scale_free
from jcredit.passes import own_matrices_of
from jcredit.settings import Added, Count, Positive, Size
from jcredit.types import Estimator, EstState, Shapes


def _random_weights(key, shapes: Shapes, scale, wanted_by: str):
    own_matrices_of(shapes, wanted_by)  # says so where there are none
    return random_branches(key, shapes, scale, wanted_by)


def _through_copies(sweeps: int) -> TangentMap:
    """How credit passes through the copies: in so many sweeps over all layers at once, or (0) block by block."""
    return sweeps_map(sweeps, "neumann") if sweeps else chain_map()


@parts.estimator
def weight_mirror(
    samples: Count = 128,
    learning_rate: Positive = 1e-2,
    scale: Positive = 1.0,
    sweeps: Annotated[Size, Added(0)] = 0,
) -> Estimator:
    """Feedback that mirrors the weights by their responses to noise (Akrout et al. 2019, NeurIPS).

    In mirror mode every matrix W of a block is sent noise x ~ N(0, I), its bias and activation blocked, and its mirror
    B moves by rate (x^T (x W) - B), the Hebbian product of both sides' activity less a decay; E[x^T x] = I, so B tends
    to W.  Here every training step has a mirror step, of the weights it began with.

    Args:
      samples: noise vectors of a mirror step.
      learning_rate: the rate of the Hebbian step and of its decay.
      scale: of the random start, relative to the size that the network chooses (``Branch.random``).
      sweeps: over all layers at once, that hand the credit down in place of a pass from block to block (0).
    """
    passes = _through_copies(sweeps)

    def loss(state, ctx, env, key):
        mirrored = jax.lax.stop_gradient(env.mirrored(key, samples))
        own = {name: state.params[name] for name in mirrored}
        error = jax.tree.map(jnp.subtract, own, mirrored)
        # Its gradient is the rule's step: B - x^T (x W) / samples.
        total = 0.5 * jnp.sum(jnp.stack([jnp.sum(e**2) for e in error.values()]))
        return total, {"mirror_error": jnp.mean(jnp.stack([scale_free(error[n], mirrored[n]) for n in error]))}

    return Estimator(
        init=lambda key, shapes: EstState(_random_weights(key, shapes, scale, "weight_mirror"), {}),
        credit=lambda state, ctx, env, key: passes.pull(state.params, env, ctx.trace, ctx.delta_BxD),
        loss=loss,
        optimizer=optax.sgd(learning_rate),
        tier=f"3: noise responses of single weights, {passes.path}",
        depth=passes.depth,
    )


@parts.estimator
def kolen_pollack(
    scale: Positive = 1.0, lag: Annotated[Size, Added(0)] = 0, sweeps: Annotated[Size, Added(0)] = 0
) -> Estimator:
    """Feedback that moves as the weights do, and decays with them (Kolen & Pollack 1994; Akrout et al. 2019).

    Weights become (1 - r w) W + step by learning rate r and weight decay w, the feedback (1 - r w) B + step, so that
    W - B shrinks by 1 - r w in every step: without ``weight_decay`` the two only share what they have learned.  The
    feedback is told the updates of the blocks' matrices, never the matrices.

    Args:
      scale: of the random start, relative to the size that the network chooses (``Branch.random``).
      lag: mean delay in steps; a control, for what it costs to be late.  In each step B takes up 1 / (1 + lag) of the
        updates that it has yet to follow; what shrinks then is W less B and these.
      sweeps: over all layers at once, that hand the credit down in place of a pass from block to block (0).
    """
    passes = _through_copies(sweeps)

    def init(key, shapes):
        weights = _random_weights(key, shapes, scale, "kolen_pollack")
        return EstState({}, {"weights": weights, "behind": jax.tree.map(jnp.zeros_like, weights)} if lag else weights)

    def follow(state, env, step, keep):
        if not lag:
            return state._replace(extra=take_up(state.extra, env, step, keep, "kolen_pollack"))
        moved = own_matrices_of(env, "kolen_pollack")(step)
        weights, behind = dict(state.extra["weights"]), dict(state.extra["behind"])
        for name, s in moved.items():
            due = keep * behind[name] + s
            weights[name] = keep * weights[name] + due / (1 + lag)
            behind[name] = due * (lag / (1 + lag))
        return state._replace(extra={"weights": weights, "behind": behind})

    def credit(state, ctx, env, key):
        weights = state.extra["weights"] if lag else state.extra
        return passes.pull(weights, env, ctx.trace, ctx.delta_BxD)

    return Estimator(
        init,
        credit,
        tier=f"1: the weights' own updates, {passes.path}",
        depth=passes.depth,
        follow=follow,
    )
