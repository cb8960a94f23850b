"""A diagnostic of your own: in how many dimensions does the credit of a batch live?

``make_run`` gives a run as pure functions; ``run.credit`` is what an estimator says about samples of your choice, with
all that one forward pass leaves behind.  Anything can be computed from these, mapped over seeds, compiled once.  Here:
the participation ratio (sum s)^2 / sum s^2 of the eigenvalues s of the credit's covariance at every layer, epoch by
epoch, and its cosine to delta_L beside it.  DFA's credit cannot have more dimensions than there are classes.
"""

import jax
import jax.numpy as jnp

import jcredit as jc

SEEDS, CLASSES = 4, 10
BASE = jc.Config(
    task=jc.tasks.teacher(train_size=2048, test_size=512, classes=CLASSES),
    network=jc.image_mlp(depth=3, width=32),
    epochs=4,
    batch_size=64,
)


def dimensions(a_BxD):
    """Participation ratio of a credit over the samples of a batch; between 1 and the smaller of B and D."""
    gram_DxD = a_BxD.T @ a_BxD
    return jnp.trace(gram_DxD) ** 2 / jnp.sum(gram_DxD**2)


def measured(run, state, hp, data):
    """(dimensions of a_0 .. a_L, mean cosine of a_0 .. a_L to delta_L), over the evaluation samples."""
    x_B = run.built(hp).task.prepare(data.test_x)
    ctx, a_KxBxD = run.credit(state, hp, x_B, data.test_y, jax.random.key(0))
    norms = jnp.linalg.norm(a_KxBxD, axis=-1) * jnp.linalg.norm(ctx.delta_BxD, axis=-1)[None]
    cosine = jnp.sum(a_KxBxD * ctx.delta_BxD[None], axis=-1) / jnp.maximum(norms, 1e-30)
    return jax.vmap(dimensions)(a_KxBxD), cosine.mean(axis=1)


for name, credit in {"bp": jc.bp(), "dfa": jc.dfa(), "chain": jc.tangent_chain()}.items():
    run = jc.make_run(BASE.replace(credit=credit))
    keys, hp = jax.random.split(jax.random.key(1), SEEDS), run.hparams(run.config)
    data = jax.vmap(run.data, (0, None))(keys, hp)
    state = jax.vmap(run.init, (0, None))(keys, hp)
    epoch = jax.jit(jax.vmap(run.epoch, (0, None, 0)))
    measure = jax.jit(jax.vmap(lambda s, d, run=run, hp=hp: measured(run, s, hp, d)))
    for number in range(run.config.epochs + 1):
        ratio, cosine = (" ".join(f"{x:5.2f}" for x in values.mean(axis=0)) for values in measure(state, data))
        print(f"{name:5} epoch {number}   dimensions of a_0 .. a_L {ratio}   cosine to delta_L {cosine}")
        state, _ = epoch(state, hp, data)
