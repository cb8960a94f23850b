"""The synthetic nonlinearity ladder: a student learns the argmax of a random teacher of its own form (method.md 8)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jcredit.config import Config
from jcredit.networks import forward, ladder_mlp
from jcredit.numerics import float_type
from jcredit.tasks.base import Data, Task, correct, cross_entropy, gather

INPUTS = 128
TRAIN_SAMPLES, TEST_SAMPLES = 8192, 1024


def teacher_task(config: Config) -> Task:
    """x ~ N(0, I_128); the teacher has the student's width, depth and alpha; each run draws its own teacher."""
    train_size = config.train_size or TRAIN_SAMPLES
    test_size = config.test_size or TEST_SAMPLES

    def network(hp, layer_norm_on=True):
        return ladder_mlp(INPUTS, config.width, config.depth, config.classes, hp.alpha, layer_norm_on)

    def make_data(key, hp):
        teacher_key, x_key = jax.random.split(key)
        teacher = network(hp, config.teacher_layer_norm)
        x = jax.random.normal(x_key, (train_size + test_size, INPUTS), float_type())
        y = jnp.argmax(forward(teacher, teacher.init(teacher_key), x).outputs_BxC, axis=1).astype(jnp.int32)
        return Data(x[:train_size], y[:train_size], x[train_size:], y[train_size:])

    return Task(
        network=network,
        loss=cross_entropy,
        accuracy=correct,
        make_data=make_data,
        shared=None,
        batch=gather,
        prepare=lambda x: x,
        noise=None,
        train_size=train_size,
    )
