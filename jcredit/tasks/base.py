"""The shape every task has, and the loss and accuracy of classification."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jcredit.config import Hparams
from jcredit.types import Array, Key, Network


class Data(NamedTuple):
    """Arrays of one task on the device: N training and T evaluation samples (images as uint8)."""

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array


class Task(NamedTuple):
    """A task as pure functions.

    Attributes:
      network: Hparams -> Network (the ladder's activation depends on the traced alpha).
      loss: (outputs_BxC, target_B) -> loss_B.
      accuracy: (outputs_BxC, target_B) -> correct_B in {0, 1}; None for a regression.
      make_data: (key, Hparams) -> Data of one run; None where all runs share ``shared``.
      shared: Data of all runs, or None.
      batch: (Data, index_B, key) -> (x_B, target_B) for training, augmented.
      prepare: x_B as stored -> x_B as the network takes it.
      noise: (key, batch size, Hparams) -> noise_LxBxD added to the hidden states; None where there is none.
      train_size: samples in an epoch.
    """

    network: Callable[[Hparams], Network]
    loss: Callable[[Array, Array], Array]
    accuracy: Callable[[Array, Array], Array] | None
    make_data: Callable[[Key, Hparams], Data] | None
    shared: Data | None
    batch: Callable[[Data, Array, Key], tuple[Array, Array]]
    prepare: Callable[[Array], Array]
    noise: Callable[[Key, int, Hparams], Array] | None
    train_size: int


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
