"""Loss, accuracy and batches of classification, and a task on arrays of one's own."""

from __future__ import annotations

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
        feature of vectors and each channel of images.
    """
    train_x, train_y, test_x, test_y = data
    axes = tuple(range(train_x.ndim - 1)) if train_x.ndim > 2 else (0,)
    mean = train_x.mean(axes, dtype=np.float64) if normalise else np.zeros(1)
    scale = 1 / np.maximum(train_x.std(axes, dtype=np.float64), 1e-6) if normalise else np.ones(1)
    centre, factor = (v.reshape((1,) * (train_x.ndim - 1) + (-1,)) for v in (mean, scale))

    def prepare(x):
        return (x.astype(float_type()) - jnp.asarray(centre, float_type())) * jnp.asarray(factor, float_type())

    def batch(found, index_B, key):
        x, y = gather(found, index_B, key)
        return prepare(x), y

    sizes = Sizes(train_x.shape[1:], classes)
    shared = Data(train_x, train_y, test_x, test_y)
    return Task(sizes, cross_entropy, correct, shared, batch, prepare, train_x.shape[0])


def arrays(x: Any, y: Any, x_test: Any, y_test: Any, *, normalise: bool = True) -> Part:
    """A classification task on arrays of one's own: ``jc.Config(task=jc.tasks.arrays(x, y, x_test, y_test))``.

    Args:
      x: training inputs (N, features) or images (N, height, width, channels), floating or uint8.
      y: their labels (N,), whole numbers from 0.
      x_test: evaluation inputs (T, ...).
      y_test: their labels (T,).
      normalise: whether inputs are scaled to mean 0 and deviation 1 over the training samples.

    Raises:
      ConfigError: arrays that do not fit each other, labels that are no classes, or inputs that are not finite.
    """
    x, y, x_test, y_test = (np.asarray(a) for a in (x, y, x_test, y_test))
    for name, inputs, labels in (("x", x, y), ("x_test", x_test, y_test)):
        if inputs.ndim < 2 or inputs.shape[1:] != x.shape[1:]:
            raise ConfigError(f"{name} has shape {inputs.shape}; give (samples, ...), the same but for the samples")
        if labels.shape != inputs.shape[:1] or not len(labels):
            raise ConfigError(f"labels of {name} have shape {labels.shape}; give one for each of {len(inputs)} samples")
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise ConfigError(f"labels of {name} are {labels.dtype} from {labels.min()}; give whole numbers from 0")
        if not np.isfinite(inputs).all():
            raise ConfigError(f"{name} holds values that are not finite; mend or drop those samples")
    classes = int(max(y.max(), y_test.max())) + 1
    if classes < 2:
        raise ConfigError("labels name one class only; give at least two")
    # Copies: what its owner does to the arrays later must not reach a task that is known by their contents.
    kept = [np.array(a, np.uint8 if a.dtype == np.uint8 else np.float32) for a in (x, x_test)]
    data = Arrays((kept[0], y.astype(np.int32), kept[1], y_test.astype(np.int32)))
    return arrays_task(data=data, classes=classes, normalise=normalise)
