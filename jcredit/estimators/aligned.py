"""Direct feedback whose matrices learn: aligned to measured Jacobians (docs/method.md 4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jcredit import parts
from jcredit.estimators.feedback import direct_feedback
from jcredit.losses.perturbation import random_layers
from jcredit.numerics import cosine
from jcredit.settings import Count, NonNegative, Positive, Size
from jcredit.types import Estimator, EstState, adam, all_blocks


@parts.estimator
def grape(
    directions: Count = 1, learning_rate: Positive = 1e-3, clip: NonNegative = 0.0, anchor_every: Size = 0
) -> Estimator:
    """GrAPE after its abstract: DFA whose matrices turn to forward-mode Jacobians (Caillon et al. 2026, ICLR).

    a_l = e_T B_l for l < L, and a_L = delta_L.  Each sample is moved along fresh v ~ N(0, I) at one random layer; with
    the tangent j of the outputs, j v^T is a rank-one unbiased estimate of its Jacobian d outputs / d h_l.  The loss is
    sum_l 1 - cos(B_l, mean j v^T): directions are learned, the size of B_l is its start's, N(0, 1/C) as in ``dfa``, and
    what steps across it add.  One matrix serves all samples, so what varies between samples in the Jacobian is out of
    reach.

    **Written from the abstract of "Scaling Direct Feedback Learning with Jacobian Alignment Guarantees" and summaries
    of it, not from the paper.**  Known of the method are these: rank-one Jacobians estimated by forward-mode tangents;
    each layer's matrix aligned by a local cosine loss, before the update that it serves; infrequent anchor steps of
    back-propagation on one mini-batch.  Ours are what is perturbed (the states h_l, a layer per sample), the mean over
    the batch, the form 1 - cos, Adam and its rate, the matrices' start, an exact a_L, and the order of a step: here, as
    with every estimator, the matrices learn after the update.  So its rows speak for this reading, not for the paper.

    An anchor step is hidden back-propagation, hence off.  With ``anchor_every`` it is on, read as a step of the blocks
    by the true gradient, and the estimator is an oracle, marked as such.

    Args:
      directions: per sample.
      learning_rate: Adam's step size for the matrices.
      clip: global-norm clip of the matrices' gradient (0: off).
      anchor_every: every so many steps the blocks take the back-propagated gradient (0: never).  Scores taken before
        such a step are the gradient's.
    """

    def init(key, shapes):
        steps = {"step": jnp.zeros((), jnp.int32)} if anchor_every else {}
        return EstState({"b": direct_feedback(key, shapes.depth, shapes)}, steps)

    def credit(state, ctx, env, key):
        a_LxBxD = jnp.einsum("bc,lcd->lbd", ctx.error_BxC, state.params["b"])
        a_KxBxD = jnp.concatenate([a_LxBxD, ctx.delta_BxD[None]])
        if not anchor_every:
            return a_KxBxD
        return jnp.where((state.extra["step"] + 1) % anchor_every == 0, ctx.delta_KxBxD, a_KxBxD)

    def loss(state, ctx, env, key):
        b_LxCxD = state.params["b"]
        layer_key, v_key = jax.random.split(key)
        probe = random_layers(layer_key, ctx)
        v_MxBxD = jax.random.normal(v_key, (directions, *probe.h_BxD.shape), probe.h_BxD.dtype)
        j_MxBxC = env.outputs_tangent(probe.ctx, probe.layer_B, probe.h_BxD, v_MxBxD)
        at_BxL = jax.nn.one_hot(probe.layer_B, b_LxCxD.shape[0], dtype=v_MxBxD.dtype)
        jacobian_LxCxD = jax.lax.stop_gradient(jnp.einsum("bl,mbc,mbd->lcd", at_BxL, j_MxBxC, v_MxBxD))
        flat = lambda x: x.reshape(x.shape[0], -1)  # noqa: E731
        apart_L = 1 - cosine(flat(b_LxCxD), flat(jacobian_LxCxD))
        return jnp.sum(apart_L), {"misalignment": jnp.mean(apart_L)}

    def update(state, ctx, env, key):
        del ctx, env, key
        return state._replace(extra=jax.tree.map(lambda step: step + 1, state.extra))

    tier = "3: tangents of the outputs"
    if not anchor_every:
        return Estimator(init, credit, loss, update, adam(learning_rate, clip), tier, depth=1)
    marked = f"oracle: back-propagation every {anchor_every} steps, else {tier}"
    return Estimator(init, credit, loss, update, adam(learning_rate, clip), marked, depth=all_blocks, oracle=True)
