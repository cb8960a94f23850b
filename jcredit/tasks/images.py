"""CIFAR-10 and Fashion-MNIST on the device: one uint8 array shared by all runs, augmented inside the step."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jcredit import parts
from jcredit.networks import image_mlp
from jcredit.numerics import float_type
from jcredit.settings import ConfigError, Size
from jcredit.sources import array_digest
from jcredit.tasks.classification import correct, cross_entropy
from jcredit.tasks.image_data import CLASSES, ImageArrays, ImageSet, channel_statistics, load_images
from jcredit.types import Array, Data, Key, Sizes, Task

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


@functools.lru_cache(maxsize=2)
def _digest(name, data_dir, environment) -> str:
    """Of all decoded images and labels: there are lossy copies about."""
    return array_digest(_loaded(name, data_dir, environment))


def _arrays(name, data_dir, train_size: int, test_size: int, evaluate_on: str) -> Data:
    images = _loaded(name, data_dir, os.environ.get("TFDS_DATA_DIR"))
    train_x, train_y = images.train_images, images.train_labels
    test_x, test_y = images.test_images, images.test_labels
    if evaluate_on == "validation":
        test_x, test_y = train_x[-VALIDATION_SAMPLES:], train_y[-VALIDATION_SAMPLES:]
        train_x, train_y = train_x[:-VALIDATION_SAMPLES], train_y[:-VALIDATION_SAMPLES]
    if train_size > len(train_x) or test_size > len(test_x):
        raise ConfigError(
            f"train_size={train_size} or test_size={test_size} exceeds the {len(train_x)} and {len(test_x)} images of"
            f" {name}; use 0 for all"
        )
    train, test = train_size or len(train_x), test_size or len(test_x)
    return Data(train_x[:train], train_y[:train], test_x[:test], test_y[:test])  # type: ignore[arg-type]


def image_task(name: ImageSet, shared: Data, crops: bool, flips: bool, origin: str = "") -> Task:
    """Classification of uint8 images of the named data set's shape, channel-normalised, augmented in the step.

    Args:
      name: whose shape and channel statistics the images have.
      shared: the samples.
      crops: random crops after padding by four pixels.
      flips: random horizontal flips.
      origin: hash of the data set that they were taken from.
    """
    mean, std = (np.asarray(v) for v in channel_statistics(name))

    def prepare(x_uint8):
        # One multiply and one add per pixel: (x / 255 - mean) / std.
        scale, shift = (jnp.asarray(v, float_type())[None, None, None] for v in (1 / (255 * std), -mean / std))
        return x_uint8.astype(float_type()) * scale + shift

    def batch(data, index_B, key):
        images = data.train_x[index_B]
        if crops or flips:
            images = crop_and_flip(images, key, crops, flips)
        return prepare(images), data.train_y[index_B]

    sizes = Sizes(shared.train_x.shape[1:], CLASSES)
    return Task(sizes, cross_entropy, correct, shared, batch, prepare, shared.train_x.shape[0], origin=origin)


def _image_task(name: ImageSet, data_dir, train_size, test_size, evaluate_on, crops, flips) -> Task:
    shared = _arrays(name, data_dir, train_size, test_size, evaluate_on)
    return image_task(name, shared, crops, flips, _digest(name, data_dir, os.environ.get("TFDS_DATA_DIR")))


@parts.task(image_mlp())
def cifar10(
    data_dir: str | Path | None,
    /,
    crops: bool = True,
    flips: bool = True,
    train_size: Size = 0,
    test_size: Size = 0,
    evaluate_on: Literal["test", "validation"] = "test",
) -> Task:
    """CIFAR-10 (Krizhevsky 2009), 32 x 32 x 3 pixels.

    Args:
      data_dir: folder with prepared image data.
      crops: random crops after padding by four pixels.
      flips: random horizontal flips.
      train_size: training images (0: all there are).
      test_size: evaluation images (0: all there are).
      evaluate_on: the test set, or the last 5,000 training images held out (for choosing hyperparameters).

    Raises:
      DataError: the data can neither be found nor downloaded.
      ConfigError: more samples asked for than there are.
    """
    return _image_task("cifar10", data_dir, train_size, test_size, evaluate_on, crops, flips)


@parts.task(image_mlp())
def fashion_mnist(
    data_dir: str | Path | None,
    /,
    crops: bool = False,
    flips: bool = False,
    train_size: Size = 0,
    test_size: Size = 0,
    evaluate_on: Literal["test", "validation"] = "test",
) -> Task:
    """Fashion-MNIST (Xiao et al. 2017), 28 x 28 grey pixels.

    Args:
      data_dir: folder with prepared image data.
      crops: random crops after padding by four pixels.
      flips: random horizontal flips.
      train_size: training images (0: all there are).
      test_size: evaluation images (0: all there are).
      evaluate_on: the test set, or the last 5,000 training images held out (for choosing hyperparameters).

    Raises:
      DataError: the data can neither be found nor downloaded.
      ConfigError: more samples asked for than there are.
    """
    return _image_task("fashion_mnist", data_dir, train_size, test_size, evaluate_on, crops, flips)
