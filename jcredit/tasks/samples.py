"""Samples of one's own: what can be trained on, and how it is prepared."""

from __future__ import annotations

import logging
from typing import Any

import jax.numpy as jnp
import numpy as np

from jcredit.numerics import float_type
from jcredit.parts import Arrays
from jcredit.settings import ConfigError
from jcredit.types import Array, Data, Key, LossFn, Sizes, Task

log = logging.getLogger("jcredit")


def gather(data: Data, index_B: Array, key: Key) -> tuple[Array, Array]:
    """The training samples at ``index_B``, without augmentation."""
    del key
    return data.train_x[index_B], data.train_y[index_B]


def task_of(data: Arrays, outputs: int, loss: LossFn, accuracy: LossFn | None, normalise: bool) -> Task:
    """The task on (x, y, x_test, y_test), with inputs normalised over the training samples or as they are."""
    train_x = data[0]
    moments = _centre_and_factor(data) if normalise else (np.zeros(1), np.ones(1))
    centre, factor = (v.reshape((1,) * (train_x.ndim - 1) + (-1,)) for v in moments)

    def prepare(x):
        return (x.astype(float_type()) - jnp.asarray(centre, float_type())) * jnp.asarray(factor, float_type())

    def batch(found, index_B, key):
        x, y = gather(found, index_B, key)
        return prepare(x), y

    return Task(Sizes(train_x.shape[1:], outputs), loss, accuracy, Data(*data), batch, prepare, train_x.shape[0])


def _centre_and_factor(data: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the training samples, and one over their deviation where they vary."""
    mean, deviation = data.moments
    varies = deviation > 1e-7 * np.abs(mean)  # less than that, float32 does not resolve
    return mean, np.where(varies, 1 / np.where(varies, deviation, 1), 1)


def inputs(name: str, given: Any) -> np.ndarray:
    """A copy as uint8 or float32: what its owner does later must not reach a task that is known by its contents."""
    found = array(name, given)
    if found.dtype.kind not in "biuf":
        raise ConfigError(f"{name} is of type {found.dtype}; give numbers, floating or uint8")
    if found.ndim < 2 or 0 in found.shape:
        raise ConfigError(f"{name} has shape {found.shape}; give (samples, ...), at least one of each")
    if found.ndim == 3:
        raise ConfigError(
            f"{name} has shape {found.shape}, and which axis is of channels it does not say; give images as (samples,"
            f" height, width, channels), such as {name}[..., None], or features as (samples, features)"
        )
    with np.errstate(over="ignore"):
        kept = np.array(found, np.uint8 if found.dtype == np.uint8 else np.float32)
    if not np.isfinite(kept).all():
        raise ConfigError(f"{name} holds values that are not finite in float32; mend, scale or drop those samples")
    return kept


def array(name: str, given: Any) -> np.ndarray:
    """What was given as an array.

    Raises:
      ConfigError: it is masked, or ragged.
    """
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise ConfigError(f"{name} is masked; fill or drop what is missing")
    try:
        return np.asarray(given)
    except ValueError as error:  # ragged
        raise ConfigError(f"{name} is no array ({error})") from None


def check_fit(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray, called: str) -> None:
    """Refuses samples of other shapes, and other numbers of what is ``called`` labels or targets."""
    for name, x, y in (("x", train_x, train_y), ("x_test", test_x, test_y)):
        its = name.replace("x", "y")
        if x.shape[1:] != train_x.shape[1:]:
            raise ConfigError(f"{name} has shape {x.shape}; give (samples, ...), the same but for the samples")
        if y.shape[:1] != x.shape[:1]:
            wanted = f"{called}, one for each of the {len(x)} samples of {name}"
            raise ConfigError(f"{its} has shape {y.shape}; give {wanted}")
    if train_x.ndim == 4 and train_x.shape[1] in (1, 3, 4) and train_x.shape[2] == train_x.shape[3]:
        log.warning(
            "x has shape %s, taken for %d x %d pixels of %d channels; where channels come first, give"
            " np.moveaxis(x, 1, -1)", train_x.shape, *train_x.shape[1:],
        )  # fmt: skip
