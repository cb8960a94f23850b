"""A local rule of your own: does a block need to know how much each unit is to change, or only which way?

A rule turns the credit at a block's output into a derivative there.  This one keeps the sign of every entry and one
size for each sample.  It is tried with the exact gradient and with random feedback, beside the usual rule.
"""

import jax.numpy as jnp

import jcredit as jc


@jc.rule
def sign_rule(mix: jc.Fraction = 1.0) -> jc.LocalRule:
    """The credit's signs at the sample's mean size: ``(1 - mix) a + mix mean|a| sign(a)``.

    Args:
      mix: how much of the signs; a swept number, so that values of it share a compiled program.
    """

    def goal(h_BxD, after_BxD, a_BxD):
        size_B = jnp.mean(jnp.abs(a_BxD), axis=-1, keepdims=True)
        return (1 - mix) * a_BxD + mix * size_B * jnp.sign(a_BxD)

    def signal(h_BxD, after_BxD, goal_BxD):
        return goal_BxD / h_BxD.shape[0]  # the objective is a mean over the batch

    return jc.LocalRule(goal, signal)


if __name__ == "__main__":  # workers, and --estimator, --rule ... of an experiment, import this file
    base = jc.Config(
        task=jc.tasks.teacher(train_size=2048, test_size=512),
        network=jc.image_mlp(depth=3, width=32),
        rule=sign_rule(),
        epochs=5,
        batch_size=64,
    )
    configs = {"bp": base, "dfa": base.replace(credit=jc.dfa())}
    rows = jc.sweep(configs, seeds=range(3), vary={"mix": [0.0, 0.5, 1.0]})
    print(rows.table())
    jc.testing.check_rule(sign_rule)  # last: a sweep in a process that has used JAX has one core
