"""Loss and accuracy of classification, and a task on arrays of one's own."""

from __future__ import annotations

import logging
from typing import Annotated, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jcredit import parts
from jcredit.networks import image_mlp
from jcredit.parts import Arrays, Part
from jcredit.settings import Bound, ConfigError
from jcredit.tasks.samples import array, check_fit, inputs, task_of
from jcredit.types import Array, Task

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


@parts.task(image_mlp())
def arrays_task(data: Arrays, classes: Classes, normalise: bool = True) -> Task:
    """Classification of samples at hand, vectors or images; see ``arrays``.

    Args:
      data: (x, y, x_test, y_test).
      classes: number of classes C.
      normalise: whether inputs are shifted and scaled to mean 0 and deviation 1 over the training samples, for each
        feature of vectors and each channel of images; one that is constant there is shifted alone.
    """
    return task_of(data, classes, cross_entropy, correct, normalise)


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
    data = (inputs("x", x), _labels("y", y), inputs("x_test", x_test), _labels("y_test", y_test))
    check_fit(*data, "labels")
    _, train_y, _, test_y = data
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
    classes = int(max(train_y.max(), test_y.max())) + 1
    return arrays_task(data=Arrays(data), classes=classes, normalise=normalise)


def _labels(name: str, given: Any) -> np.ndarray:
    found = array(name, given)
    if found.dtype.kind not in "biu" or found.ndim != 1 or not len(found) or found.min() < 0:
        few = np.unique(found.astype(str))[:3].tolist()
        raise ConfigError(
            f"{name} has labels of type {found.dtype} and shape {found.shape}, such as {', '.join(few) or 'none'}; give"
            " one whole number from 0, or a truth value, for each sample (numbers to predict: jc.tasks.regression)"
        )
    if found.max() > MOST_CLASSES:
        raise ConfigError(f"{name} has a label {found.max()}; classes are 0, 1, ..., at most {MOST_CLASSES}")
    return found.astype(np.int32)
