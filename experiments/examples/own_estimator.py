"""An estimator of your own that learns nothing: forward gradients at the hidden states.

Every hidden state is moved along a few fresh directions, and the measured changes of the loss, times these directions,
are the credit: right on average, noisy by the width (Baydin et al. 2022).  More directions, less noise: the table shows
how far one and sixteen carry beside the exact gradient (bp).  ``jc.forward_gradient("task")`` is it, ready made.
"""

import jax
import jax.numpy as jnp

import jcredit as jc


@jc.estimator
def forward_gradient(directions: jc.Count = 1) -> jc.Estimator:
    """a_l = mean_m g_m v_m over fresh v_m ~ N(0, I), g_m the derivative of the loss along v_m at h_l.

    Args:
      directions: M, for each sample and layer in every step.
    """

    def init(key, shapes):
        return jc.EstState(params={}, extra={})  # nothing is trained, nothing is kept

    def credit(state, ctx, env, key):
        probe = jc.all_layers(ctx)  # every sample at every hidden layer below the last: N = L x B states
        v_MxNxD = jax.random.normal(key, (directions, *probe.h_BxD.shape))
        g_MxN = jc.measure(env, probe, v_MxNxD)
        a_NxD = jnp.mean(g_MxN[..., None] * v_MxNxD, axis=0)
        below = a_NxD.reshape(ctx.trace.h_KxBxD[:-1].shape)
        return jnp.concatenate([below, ctx.delta_BxD[None]])  # a_L is known exactly

    return jc.Estimator(init, credit, tier="2: loss under perturbation", depth=1)


if __name__ == "__main__":  # workers, and --estimator, --rule ... of an experiment, import this file
    base = jc.Config(
        task=jc.tasks.teacher(train_size=2048, test_size=512),
        network=jc.image_mlp(depth=3, width=32),
        epochs=5,
        batch_size=64,
    )
    credits = {"bp": jc.bp(), "M = 1": forward_gradient(), "M = 16": forward_gradient(directions=16)}
    rows = jc.sweep({label: base.replace(credit=credit) for label, credit in credits.items()}, seeds=range(3))
    print(rows.table())
    jc.testing.check_estimator(forward_gradient)  # last: a sweep in a process that has used JAX has one core
