"""What a trained network scores: its loss and accuracy on the evaluation samples, and the scores of its credit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jcredit import diagnostics
from jcredit.config import Hparams
from jcredit.numerics import APART, float_type
from jcredit.observing import (
    WARMUP_CREDIT,
    Metrics,
    Setup,
    credit_of,
    estimator_loss,
    observe,
    shapes_of,
    spent_credit,
    with_oracle,
)
from jcredit.passes import forward
from jcredit.rules import inner_product, local_gradients
from jcredit.types import Data, TrainState

EVALUATION_BATCH = 1000


def evaluate(setup: Setup, state: TrainState, hp: Hparams, data: Data) -> Metrics:
    """Mean loss (nats in classification) and, where the task has one, accuracy over all evaluation samples.

    Without a task's process noise, which training steps and credit scores have.
    """
    task, network, *_ = setup.built(hp)
    samples = data.test_x.shape[0]
    size = min(EVALUATION_BATCH, samples)
    chunks = -(-samples // size)

    def score(index_B):
        inside = (index_B < samples).astype(float_type())  # the last chunk is padded
        at = jnp.minimum(index_B, samples - 1)
        outputs = forward(network, state.params, task.prepare(data.test_x[at])).outputs_BxC
        scores = {"test_loss": task.loss(outputs, data.test_y[at])}
        if task.accuracy is not None:
            scores["test_accuracy"] = task.accuracy(outputs, data.test_y[at])
        return {name: jnp.sum(value * inside) for name, value in scores.items()}

    totals = jax.lax.map(score, jnp.arange(chunks * size).reshape(chunks, size))
    return jax.tree.map(lambda total: jnp.sum(total) / samples, totals)


def diagnose(setup: Setup, state: TrainState, hp: Hparams, data: Data) -> dict[str, Metrics]:
    """Scores of the credit on the first evaluation samples: {"metrics": scalars, "layers": arrays over layers}."""
    built, config = setup.built(hp), setup.config
    task, network, estimator, rule = built
    root = jax.random.fold_in(jax.random.key(0), APART)  # the same directions for every method, seed and epoch
    keys = jax.random.split(root, 5)
    x_B, target_B = task.prepare(data.test_x[: config.diagnostic_samples]), data.test_y[: config.diagnostic_samples]
    seen = observe(built, state.params, x_B, target_B, keys[0], True)
    a_KxBxD = credit_of(setup, built, state, seen, keys[1])
    oracle = with_oracle(task, network, state.params, seen.ctx, seen.pulls)
    untrained = WARMUP_CREDIT.init(keys[4], shapes_of(network, state.params, task))
    fresh = WARMUP_CREDIT.credit(untrained, seen.ctx, seen.env, keys[1])
    layers = diagnostics.score_credit(
        seen.env, seen.ctx, a_KxBxD, fresh, oracle.delta_KxBxD, keys[2], rho_epsilon=hp.rho_epsilon,
        nudge_eta=hp.nudge_eta,
    )  # fmt: skip
    if setup.trains_blocks:
        spent = local_gradients(rule, seen.ctx.trace, seen.pulls, spent_credit(config, a_KxBxD, seen.ctx, hp))
        exact = local_gradients(inner_product().build(), seen.ctx.trace, seen.pulls, oracle.delta_KxBxD)
        layers["weight_cosine"] = diagnostics.weight_cosine(spent[1], exact[1])
    metrics: dict[str, Any] = diagnostics.summarise(layers)
    if estimator.loss is not None:
        loss, terms = estimator_loss(setup, estimator, state.est_state, seen, keys[3])
        metrics |= {f"test_{name}": value for name, value in {"estimator_loss": loss, **terms}.items()}
    return {"metrics": metrics, "layers": layers}
