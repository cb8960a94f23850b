"""Loss, accuracy and batches of classification, and a task on arrays of one's own."""

from __future__ import annotations

import logging
from typing import Annotated, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jcredit import parts
from jcredit.networks import image_mlp
from jcredit.numerics import float_type
from jcredit.parts import Arrays, Part
from jcredit.settings import Bound, ConfigError
from jcredit.types import Array, Data, Key, Sizes, Task

Classes: TypeAlias = Annotated[int, Bound(2)]
"""A number of classes."""
log = logging.getLogger("jcredit")
MOST_CLASSES = 2**31 - 2
"""The largest label: the number of classes, one more, is an int32."""


def cross_entropy(logits_BxC: Array, labels_B: Array) -> Array:
    """Softmax cross-entropy of integer labels, in nats.  Shape (B,)."""
    log_p = jax.nn.log_softmax(logits_BxC)
    return -jnp.take_along_axis(log_p, labels_B[:, None], axis=1)[:, 0]


def correct(logits_BxC: Array, labels_B: Array) -> Array:
    """1 where the largest logit is the label's, else 0.  Shape (B,)."""
    return (jnp.argmax(logits_BxC, axis=1) == labels_B).astype(logits_BxC.dtype)


def gather(data: Data, index_B: Array, key: Key) -> tuple[Array, Array]:
    """The training samples at ``index_B``, without augmentation."""
    del key
    return data.train_x[index_B], data.train_y[index_B]


@parts.task(image_mlp())
def arrays_task(data: Arrays, classes: Classes, normalise: bool = True) -> Task:
    """Classification of samples at hand, vectors or images; see ``arrays``.

    Args:
      data: (x, y, x_test, y_test).
      classes: number of classes C.
      normalise: whether inputs are shifted and scaled to mean 0 and deviation 1 over the training samples, for each
        feature of vectors and each channel of images; one that is constant there is shifted alone.
    """
    train_x, train_y, test_x, test_y = data
    moments = _centre_and_factor(data) if normalise else (np.zeros(1), np.ones(1))
    centre, factor = (v.reshape((1,) * (train_x.ndim - 1) + (-1,)) for v in moments)

    def prepare(x):
        return (x.astype(float_type()) - jnp.asarray(centre, float_type())) * jnp.asarray(factor, float_type())

    def batch(found, index_B, key):
        x, y = gather(found, index_B, key)
        return prepare(x), y

    sizes = Sizes(train_x.shape[1:], classes)
    shared = Data(train_x, train_y, test_x, test_y)
    return Task(sizes, cross_entropy, correct, shared, batch, prepare, train_x.shape[0])


def _centre_and_factor(data: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the training samples, and one over their deviation where they vary."""
    mean, deviation = data.moments
    varies = deviation > 1e-7 * np.abs(mean)  # less than that, float32 does not resolve
    return mean, np.where(varies, 1 / np.where(varies, deviation, 1), 1)


def arrays(x: Any, y: Any, x_test: Any, y_test: Any, *, normalise: bool = True) -> Part:
    """A classification task on arrays of one's own: ``jc.Config(task=jc.tasks.arrays(x, y, x_test, y_test))``.

    Args:
      x: training inputs (N, features) or images (N, height, width, channels), floating or uint8.
      y: their labels (N,), whole numbers from 0, or truth values.
      x_test: evaluation inputs (T, ...).
      y_test: their labels (T,).
      normalise: whether inputs are scaled to mean 0 and deviation 1 over the training samples.

    Raises:
      ConfigError: arrays that do not fit each other, labels that are no classes, or inputs that are not finite.
    """
    train_x, train_y = _inputs("x", x), _labels("y", y)
    test_x, test_y = _inputs("x_test", x_test), _labels("y_test", y_test)
    for name, inputs, labels in (("x", train_x, train_y), ("x_test", test_x, test_y)):
        if inputs.shape[1:] != train_x.shape[1:]:
            raise ConfigError(f"{name} has shape {inputs.shape}; give (samples, ...), the same but for the samples")
        if labels.shape != inputs.shape[:1]:
            raise ConfigError(f"labels of {name} have shape {labels.shape}; give one for each of {len(inputs)} samples")
    if (train_y == train_y[0]).all():
        raise ConfigError(f"y: all {len(train_y)} labels are {train_y[0]}; give samples of at least two classes")
    present = np.unique(train_y)
    if gaps := train_y.max() + 1 - len(present):
        first = np.flatnonzero(present != np.arange(len(present)))[0]
        log.warning(
            "y has no sample of %d of the classes 0 to %d, first %d, and they have outputs all the same; relabel if"
            " they do not exist", gaps, train_y.max(), first,
        )  # fmt: skip
    if len(new := np.setdiff1d(test_y, present)):
        log.warning("y_test has label %d, of which y has no sample: nothing can learn it", new[0])
    if train_x.ndim == 4 and train_x.shape[1] in (1, 3, 4) and train_x.shape[2] == train_x.shape[3]:
        log.warning(
            "x has shape %s, taken for %d x %d pixels of %d channels; where channels come first, give"
            " np.moveaxis(x, 1, -1)", train_x.shape, *train_x.shape[1:],
        )  # fmt: skip
    classes = int(max(train_y.max(), test_y.max())) + 1
    return arrays_task(data=Arrays((train_x, train_y, test_x, test_y)), classes=classes, normalise=normalise)


def _inputs(name: str, given: Any) -> np.ndarray:
    """A copy as uint8 or float32: what its owner does later must not reach a task that is known by its contents."""
    found = _array(name, given)
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


def _labels(name: str, given: Any) -> np.ndarray:
    found = _array(name, given)
    if found.dtype.kind not in "biu" or found.ndim != 1 or not len(found) or found.min() < 0:
        few = np.unique(found.astype(str))[:3].tolist()
        raise ConfigError(
            f"{name} has labels of type {found.dtype} and shape {found.shape}, such as {', '.join(few) or 'none'}; give"
            " one whole number from 0, or a truth value, for each sample"
        )
    if found.max() > MOST_CLASSES:
        raise ConfigError(f"{name} has a label {found.max()}; classes are 0, 1, ..., at most {MOST_CLASSES}")
    return found.astype(np.int32)


def _array(name: str, given: Any) -> np.ndarray:
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise ConfigError(f"{name} is masked; fill or drop what is missing")
    try:
        return np.asarray(given)
    except ValueError as error:  # ragged
        raise ConfigError(f"{name} is no array ({error})") from None
