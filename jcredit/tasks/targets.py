"""Squared error, and regression on arrays of one's own."""

from __future__ import annotations

import logging
from typing import Any

import jax.numpy as jnp
import numpy as np

from jcredit import parts
from jcredit.networks import image_mlp
from jcredit.parts import Arrays, Part
from jcredit.settings import ConfigError, Count
from jcredit.tasks.samples import array, check_fit, inputs, task_of
from jcredit.types import Array, Task

log = logging.getLogger("jcredit")
USUAL = (1e-2, 1e2)
"""Deviations of targets that networks and learning rates of usual size can follow."""


def squared_error(outputs_BxC: Array, target_BxC: Array) -> Array:
    """0.5 ||y - y*||^2 for each sample, so that its derivative is the error y - y*.  Shape (B,)."""
    return 0.5 * jnp.sum((outputs_BxC - target_BxC) ** 2, axis=-1)


@parts.task(image_mlp())
def regression_task(data: Arrays, outputs: Count, normalise: bool = True) -> Task:
    """Regression on samples at hand, vectors or images; see ``regression``.

    Args:
      data: (x, y, x_test, y_test).
      outputs: numbers C to predict for each sample.
      normalise: whether inputs are shifted and scaled to mean 0 and deviation 1 over the training samples, for each
        feature of vectors and each channel of images; one that is constant there is shifted alone.
    """
    return task_of(data, outputs, squared_error, None, normalise)


def regression(x: Any, y: Any, x_test: Any, y_test: Any, *, normalise: bool = True) -> Part:
    """A regression on arrays of one's own: ``jc.Config(task=jc.tasks.regression(x, y, x_test, y_test))``.

    The loss is 0.5 ||y - y*||^2, the mean over samples of which rows have as ``test_loss``; there is no accuracy.

    Args:
      x: training inputs (N, features) or images (N, height, width, channels), floating or uint8.
      y: their targets (N,) or (N, C), of order one: they are not scaled.
      x_test: evaluation inputs (T, ...).
      y_test: their targets (T,) or (T, C).
      normalise: whether inputs are scaled to mean 0 and deviation 1 over the training samples.

    Raises:
      ConfigError: arrays that do not fit each other, or numbers that are not finite.
    """
    data = (inputs("x", x), _targets("y", y), inputs("x_test", x_test), _targets("y_test", y_test))
    check_fit(*data, "targets")
    _, train_y, _, test_y = data
    outputs = train_y.shape[1]
    if test_y.shape[1] != outputs:
        raise ConfigError(f"y_test has {test_y.shape[1]} numbers for each sample, and y has {outputs}; give as many")
    deviation = float(train_y.std(axis=0, dtype=np.float64).max())
    mean = float(np.abs(train_y.mean(axis=0, dtype=np.float64)).max())
    if not deviation:
        raise ConfigError(f"y: all {len(train_y)} targets are alike; there is nothing to learn")
    if not USUAL[0] <= deviation <= USUAL[1] or mean > USUAL[1] * max(deviation, 1):
        log.warning(
            "y has deviations up to %.3g about means up to %.3g, where networks start near 0 and learn in steps of"
            " order one; take the mean off and divide by the deviation", deviation, mean,
        )  # fmt: skip
    return regression_task(data=Arrays(data), outputs=outputs, normalise=normalise)


def _targets(name: str, given: Any) -> np.ndarray:
    """Targets (N, C) as float32."""
    found = array(name, given)
    if found.dtype.kind not in "iuf" or found.ndim not in (1, 2) or 0 in found.shape:
        raise ConfigError(
            f"{name} has targets of type {found.dtype} and shape {found.shape}; give numbers (samples,) or (samples,"
            " outputs)"
        )
    with np.errstate(over="ignore"):
        kept = np.array(found.reshape(len(found), -1), np.float32)
    if not np.isfinite(kept).all():
        raise ConfigError(f"{name} holds values that are not finite in float32; mend, scale or drop those samples")
    return kept
