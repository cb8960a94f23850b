"""CIFAR-10 and Fashion-MNIST on the device: one uint8 array shared by all runs, augmented inside the step."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jcredit.config import Config, ConfigError
from jcredit.networks import image_mlp
from jcredit.numerics import float_type
from jcredit.tasks.base import Data, Task, correct, cross_entropy
from jcredit.tasks.image_data import ImageArrays, channel_statistics, load_images
from jcredit.types import Array, Key

VALIDATION_SAMPLES = 5000
PADDING = 4


def crop_and_flip(images_BxHxWxC: Array, key: Key, crops: bool, flips: bool) -> Array:
    """Random crops after zero padding by four pixels, and horizontal flips; same shape and dtype.

    Written as one gather of whole pixels, row and column indices first, which costs the same with or without flips.
    """
    batch, height, width, _ = images_BxHxWxC.shape
    offset_key, flip_key = jax.random.split(key)
    offset_Bx2 = jax.random.randint(offset_key, (batch, 2), -PADDING, PADDING + 1) * int(crops)
    flipped_Bx1 = jax.random.bernoulli(flip_key, 0.5, (batch, 1)) & flips
    rows = jnp.arange(height)[None, :] + offset_Bx2[:, :1]
    columns = jnp.arange(width)[None, :] + offset_Bx2[:, 1:]
    columns = jnp.where(flipped_Bx1, columns[:, ::-1], columns)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    pixels = images_BxHxWxC[jnp.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return jnp.where(inside[..., None], pixels, jnp.zeros_like(pixels))


@functools.lru_cache(maxsize=2)
def _loaded(name, data_dir, environment) -> ImageArrays:
    """The decoded images, read once for all programs of a sweep."""
    del environment  # part of the key: it decides what ``data_dir=None`` means
    return load_images(name, data_dir)


def _arrays(config: Config, data_dir: str | Path | None) -> Data:
    images = _loaded(config.task, data_dir, os.environ.get("TFDS_DATA_DIR"))
    train_x, train_y = images.train_images, images.train_labels
    test_x, test_y = images.test_images, images.test_labels
    if config.evaluate_on == "validation":
        test_x, test_y = train_x[-VALIDATION_SAMPLES:], train_y[-VALIDATION_SAMPLES:]
        train_x, train_y = train_x[:-VALIDATION_SAMPLES], train_y[:-VALIDATION_SAMPLES]
    if config.train_size > len(train_x) or config.test_size > len(test_x):
        raise ConfigError(
            f"train_size={config.train_size} or test_size={config.test_size} exceeds the {len(train_x)} and"
            f" {len(test_x)} images of {config.task}; use 0 for all"
        )
    train, test = config.train_size or len(train_x), config.test_size or len(test_x)
    return Data(train_x[:train], train_y[:train], test_x[:test], test_y[:test])  # type: ignore[arg-type]


def image_task(config: Config, data_dir: str | Path | None = None) -> Task:
    """Real images, channel-normalised, for ``image_mlp``.

    Raises:
      DataError: the data can neither be found nor downloaded.
      ConfigError: more samples asked for than there are.
    """
    return image_task_on(config, _arrays(config, data_dir))


def image_task_on(config: Config, shared: Data) -> Task:
    """The same task on images at hand: uint8 arrays of the named data set's shape (benchmarks, tests)."""
    mean, std = (np.asarray(v) for v in channel_statistics(config.task))  # type: ignore[arg-type]
    inputs = int(np.prod(shared.train_x.shape[1:]))
    network = image_mlp(inputs, config.width, config.depth, config.classes)

    def prepare(x_uint8):
        # One multiply and one add per pixel: (x / 255 - mean) / std.
        scale, shift = (jnp.asarray(v, float_type())[None, None, None] for v in (1 / (255 * std), -mean / std))
        return x_uint8.astype(float_type()) * scale + shift

    def batch(data, index_B, key):
        images = data.train_x[index_B]
        if config.crops or config.flips:
            images = crop_and_flip(images, key, config.crops, config.flips)
        return prepare(images), data.train_y[index_B]

    return Task(
        network=lambda hp: network,
        loss=cross_entropy,
        accuracy=correct,
        make_data=None,
        shared=shared,
        batch=batch,
        prepare=prepare,
        noise=None,
        train_size=shared.train_x.shape[0],
    )
