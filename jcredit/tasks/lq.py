"""Toy LQ control: linear dynamics whose costate is known in closed form (method.md 7).

The dynamics are never trained: the toy asks only whether an estimator recovers lambda_l.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jcredit.config import Config
from jcredit.networks import lq_dynamics
from jcredit.numerics import float_type
from jcredit.tasks.base import Data, Task
from jcredit.types import Array, NetParams

EVALUATION_SAMPLES = 1024
STEPS_PER_EPOCH = 400


def quadratic_loss(outputs_BxC: Array, target_BxC: Array) -> Array:
    """0.5 ||y - y*||^2 for each sample.  Shape (B,)."""
    return 0.5 * jnp.sum((outputs_BxC - target_BxC) ** 2, axis=-1)


def costate(params: NetParams, error_BxC: Array) -> Array:
    """The closed form lambda_l = A_l^T ... A_{L-1}^T W^T (y - y*).

    Args:
      params: parameters of ``lq_dynamics`` (row convention: h_{l+1} = h_l A_l, y = h_L W).
      error_BxC: y - y*.

    Returns:
      lambda_0..lambda_L, shape (L+1, B, D).
    """
    last = error_BxC @ params.readout["w"].T
    retreat = lambda lam, a: (lam @ a.T, lam @ a.T)  # noqa: E731
    _, earlier = jax.lax.scan(retreat, last, params.blocks["a"], reverse=True)
    return jnp.concatenate([earlier, last[None]])


def lq_task(config: Config) -> Task:
    """Fresh h_0 ~ N(0, I) and y* ~ N(0, I) in every step; evaluation on samples never trained on."""
    width, outputs = config.width, config.classes

    def draw(key, samples):
        x_key, y_key = jax.random.split(key)
        x = jax.random.normal(x_key, (samples, width), float_type())
        return x, jax.random.normal(y_key, (samples, outputs), float_type())

    def make_data(key, hp):
        del hp
        test_x, test_y = draw(key, config.test_size or EVALUATION_SAMPLES)
        return Data(test_x[:0], test_y[:0], test_x, test_y)

    def noise(key, samples, hp):
        return hp.process_noise * jax.random.normal(key, (config.depth, samples, width), float_type())

    network = lq_dynamics(width, config.depth, outputs)
    return Task(
        network=lambda hp: network,
        loss=quadratic_loss,
        accuracy=None,
        make_data=make_data,
        shared=None,
        batch=lambda data, index_B, key: draw(key, index_B.shape[0]),
        prepare=lambda x: x,
        noise=noise,
        train_size=config.batch_size * (config.steps_per_epoch or STEPS_PER_EPOCH),
    )
