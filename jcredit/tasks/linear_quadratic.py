"""Toy LQ control: linear dynamics whose costate is known in closed form (docs/method.md 7).

The dynamics are never trained: the toy asks only whether an estimator recovers lambda_l.
"""

from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from jcredit import parts
from jcredit.networks import lq_dynamics
from jcredit.numerics import float_type
from jcredit.settings import Added, Count, NonNegative
from jcredit.tasks.targets import squared_error
from jcredit.types import Data, Sizes, Task


@parts.task(lq_dynamics())
def lq(
    state_size: Count = 64,
    outputs: Count = 10,
    process_noise: NonNegative = 0.03,
    test_size: Count = 1024,
    target: Annotated[Literal["independent", "fixed"], Added("independent")] = "independent",
) -> Task:
    """Fresh h_0 ~ N(0, I) in every step and y* ~ N(0, I); evaluation on samples never trained on.

    With a y* of its own for each sample the error y - y* alone decides the loss, so a value function can fit it without
    looking at h; with one y* for all, values inform gradients.  The study's reading is unknown.

    Args:
      state_size: width D of the state.
      outputs: dimension C of the readout.
      process_noise: standard deviation of the noise added to every new state.
      test_size: evaluation samples.
      target: y* is drawn for each sample, or once for each run.
    """

    def data(key, network):
        del network
        x_key, y_key = jax.random.split(key)
        x = jax.random.normal(x_key, (test_size, state_size), float_type())
        rows = test_size if target == "independent" else 1
        y = jnp.broadcast_to(jax.random.normal(y_key, (rows, outputs), float_type()), (test_size, outputs))
        return Data(x[:0], y[:0], x, y)

    def batch(data, index_B, key):
        x_key, y_key = jax.random.split(key)
        shape = (index_B.shape[0], outputs)
        x = jax.random.normal(x_key, (shape[0], state_size), float_type())
        if target == "fixed":
            return x, jnp.broadcast_to(data.test_y[:1], shape)
        return x, jax.random.normal(y_key, shape, float_type())

    return Task(
        sizes=Sizes((state_size,), outputs),
        loss=squared_error,
        accuracy=None,
        data=data,
        batch=batch,
        prepare=lambda x: x,
        train_size=None,
        noise=lambda key, shape: process_noise * jax.random.normal(key, shape, float_type()),
    )
