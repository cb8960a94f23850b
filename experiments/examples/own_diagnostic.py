"""A diagnostic of your own: in how many dimensions does the credit of a batch live?

``jc.sweep(diagnostics=...)`` measures pure functions of each trained run, mapped over seeds.  ``run.credit`` is what an
estimator says about samples of your choice, with all that one forward pass leaves behind.  Anything can be computed
from these.  Here: the participation ratio (sum s)^2 / sum s^2 of the eigenvalues s of the credit's covariance at every
layer, and its cosine to delta_L beside it.  DFA's credit cannot have more dimensions than there are classes.
"""

import jax
import jax.numpy as jnp
import numpy as np

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


def credit(run, state, hp, data):
    """Dimensions of a_0 .. a_L, their mean, and mean cosine of a_0 .. a_L to delta_L, over the evaluation samples."""
    x_B = run.built(hp).task.prepare(data.test_x)
    ctx, a_KxBxD = run.credit(state, hp, x_B, data.test_y, jax.random.key(0))
    norms = jnp.linalg.norm(a_KxBxD, axis=-1) * jnp.linalg.norm(ctx.delta_BxD, axis=-1)[None]
    cosine = jnp.sum(a_KxBxD * ctx.delta_BxD[None], axis=-1) / jnp.maximum(norms, 1e-30)
    ratio_K, cosine_K = jax.vmap(dimensions)(a_KxBxD), cosine.mean(axis=1)
    # Vectors go to row["layers"] as credit_dimensions and credit_to_delta_L, scalars to row["metrics"] in the same way.
    return {"dimensions": ratio_K, "to_delta_L": cosine_K, "mean_dimensions": ratio_K.mean()}


if __name__ == "__main__":
    credits = {"bp": jc.bp(), "dfa": jc.dfa(), "chain": jc.tangent_chain()}
    configs = {name: BASE.replace(credit=part) for name, part in credits.items()}
    rows = jc.sweep(configs, seeds=range(SEEDS), diagnostics={"credit": credit})
    print(rows.table(metrics=["test_accuracy", "gamma", "credit_mean_dimensions"]))
    for name in configs:
        layers = [row["layers"] for row in rows.where(label=name)]
        ratio, cosine = (
            np.mean([own[f"credit_{what}"] for own in layers], axis=0) for what in ("dimensions", "to_delta_L")
        )
        shown = [" ".join(f"{x:5.2f}" for x in values) for values in (ratio, cosine)]
        print(f"{name:5} dimensions of a_0 .. a_L {shown[0]}   cosine to delta_L {shown[1]}")
