"""The numbers of the image task: which pixels a crop holds, what is held out, what the network is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import quick

from jcredit.tasks import images
from jcredit.tasks.image_data import ImageArrays, channel_statistics
from jcredit.types import Data

SHAPE = (6, 5, 2)
TIMES = 4000
"""Copies of an image: 162 outcomes, so that one of them is missed once in 10^8 draws (the key is fixed anyway)."""


def crops_of(image, crops, flips):
    """Every image that may come out, by its bytes: windows into the zero-padded one, and their mirror images."""
    padded, found = np.pad(image, ((4, 4), (4, 4), (0, 0))), {}
    for top in range(9) if crops else (4,):
        for left in range(9) if crops else (4,):
            window = padded[top : top + SHAPE[0], left : left + SHAPE[1]]
            found[window.tobytes()] = (top, left, False)
            if flips:
                found[window[:, ::-1].tobytes()] = (top, left, True)
    return found


@pytest.mark.parametrize(("crops", "flips", "outcomes"), [(1, 1, 162), (1, 0, 81), (0, 1, 2), (0, 0, 1)])
def test_every_crop_and_its_mirror_image_come_out_and_nothing_else(crops, flips, outcomes):
    pixels = np.arange(1, 61, dtype=np.uint8).reshape(SHAPE)
    batch = np.stack([pixels, 200 - pixels] * (TIMES // 2))
    found = np.asarray(quick(lambda x, key: images.crop_and_flip(x, key, crops, flips))(batch, jax.random.key(0)))
    assert found.dtype == np.uint8 and found.shape == batch.shape
    for first in (0, 1):  # each made of its own image
        possible = crops_of(batch[first], crops, flips)
        assert len(possible) == outcomes
        drawn = [possible[image.tobytes()] for image in found[first::2]]
        assert len(set(drawn)) == outcomes
        assert not flips or 0.45 < np.mean([mirrored for *_, mirrored in drawn]) < 0.55


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_the_network_is_shown_normalised_channels(x64, name):
    mean, std = (np.asarray(v, np.float64) for v in channel_statistics(name))
    x = np.random.default_rng(0).integers(0, 256, (7, 6, 5, len(mean)), np.uint8)
    y = np.arange(7, dtype=np.int32)
    task = images.image_task(name, Data(x, y, x, y), crops=False, flips=False)
    index = jnp.asarray([3, 0, 5])
    shown, labels = quick(lambda data: task.batch(data, index, jax.random.key(0)))(task.data)
    np.testing.assert_allclose(shown, (x[[3, 0, 5]] / 255 - mean) / std, rtol=1e-12)
    np.testing.assert_array_equal(labels, [3, 0, 5])
    np.testing.assert_allclose(quick(task.prepare)(x), (x / 255 - mean) / std, rtol=1e-12)


@pytest.mark.parametrize(("crops", "flips", "outcomes"), [(True, False, 81), (False, True, 2)])
def test_a_batch_has_the_augmentation_that_was_asked_for_and_no_other(crops, flips, outcomes):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 6, 5, 3), np.uint8)
    data = Data(pixels, np.zeros(1, np.int32), pixels, np.zeros(1, np.int32))
    task = images.image_task("cifar10", data, crops=crops, flips=flips)
    index = jnp.zeros(2000, jnp.int32)
    shown, _ = quick(lambda data: task.batch(data, index, jax.random.key(0)))(task.data)
    mean, std = channel_statistics("cifar10")
    found = np.rint((np.asarray(shown, np.float64) * std + mean) * 255).astype(np.uint8)
    assert {image.tobytes() for image in found} == set(crops_of(pixels[0], crops, flips))
    assert len(crops_of(pixels[0], crops, flips)) == outcomes


def test_what_is_held_out_is_not_trained_on(monkeypatch):
    number = lambda n, start: np.arange(start, start + n).reshape(n, 1, 1, 1)  # noqa: E731
    arrays = ImageArrays(number(5010, 0), np.arange(5010), number(8, 9000), np.arange(8))
    monkeypatch.setattr(images, "_loaded", lambda *which: arrays)
    take = lambda **asked: [  # noqa: E731
        np.asarray(part).ravel().tolist()
        for part in images._arrays("cifar10", None, **{"train_size": 0, "test_size": 0, **asked})
    ]
    train, held_out = list(range(10)), list(range(10, 5010))
    assert take(evaluate_on="validation") == [train, train, held_out, held_out]
    assert take(evaluate_on="test") == [train + held_out, train + held_out, list(range(9000, 9008)), list(range(8))]
    assert take(evaluate_on="validation", train_size=4, test_size=3) == [train[:4]] * 2 + [held_out[:3]] * 2
