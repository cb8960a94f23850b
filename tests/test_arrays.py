"""Arrays of one's own as a task."""

import gc
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import refused, tiny

import jcredit as jc
from jcredit.config import config_hash, described
from jcredit.training import make_run


def my_arrays(*shape, dtype: Any = np.float32, classes=3):
    random = np.random.default_rng(0)
    x, y = random.normal(3.0, 2.0, size=(24, *shape)), np.arange(24) % classes
    x = (10 * x).clip(0, 255).astype(dtype) if dtype == np.uint8 else x.astype(dtype)
    return x[:16], y[:16], x[16:], y[16:]


@pytest.mark.parametrize(
    ("shape", "dtype"), [((5,), np.float64), ((5,), np.float16), ((4, 4, 2), np.float32), ((4, 4, 2), np.uint8)]
)
def test_arrays_are_a_task(shape, dtype):
    data = my_arrays(*shape, dtype=dtype)
    config = tiny(jc.dfa(), task=jc.tasks.arrays(*data), network=jc.image_mlp(depth=2, width=16))
    run = make_run(config)
    hp, key = run.hparams(config), jax.random.key(0)
    task, kept = run.built(hp).task, np.uint8 if dtype == np.uint8 else np.float32
    assert task.sizes == jc.Sizes(shape, 3) and run.shared_data and run.steps_per_epoch == 2
    prepared = np.asarray(task.prepare(jnp.asarray(data[0].astype(kept))))
    axes = tuple(range(prepared.ndim - 1)) if len(shape) > 1 else (0,)  # each channel of images, each feature
    np.testing.assert_allclose(prepared.mean(axes), 0, atol=2e-3 if dtype == np.float16 else 1e-5)
    np.testing.assert_allclose(prepared.std(axes), 1, rtol=2e-3 if dtype == np.float16 else 1e-5)
    state, found = run.init(key, hp), run.data(key, hp)
    x, y = task.batch(found, jnp.asarray([3, 1]), key)
    np.testing.assert_array_equal(x, prepared[[3, 1]])
    np.testing.assert_array_equal(y, data[1][[3, 1]])
    _, metrics = jax.jit(run.epoch)(state, hp, found)
    assert np.isfinite(metrics["train_loss"]) and 0 <= run.evaluate(state, hp, found)["test_accuracy"] <= 1
    plain = jc.tasks.arrays(*data, normalise=False).build()
    np.testing.assert_allclose(plain.prepare(jnp.asarray(data[0])), data[0].astype(np.float32), rtol=1e-6)


def test_truth_values_are_two_classes():
    x = np.random.default_rng(0).normal(size=(8, 3))
    y = x[:, 0] > 0
    assert jc.tasks.arrays(x, y, x, y) == jc.tasks.arrays(x, y.astype(int), x, y.astype(int))


@pytest.mark.parametrize("value", [7.0, 0.0, 0.1, 1e5 + 1 / 3])
def test_a_feature_that_is_constant_in_training_keeps_its_scale(value):
    x, y, x_test, y_test = my_arrays(5)
    x, x_test = x.copy(), x_test.copy()
    x[:, 2], x_test[:, 2] = value, value + 1
    prepare = jc.tasks.arrays(x, y, x_test, y_test).build().prepare
    np.testing.assert_allclose(prepare(x)[:, 2], 0, atol=1e-2)
    np.testing.assert_allclose(prepare(x_test)[:, 2], 1, atol=1e-2)
    # One that varies is scaled, however small it is.
    x[:, 3] = 1e-9 * np.arange(16)
    assert np.std(jc.tasks.arrays(x, y, x_test, y_test).build().prepare(x)[:, 3]) == pytest.approx(1, rel=1e-3)


def test_the_key_of_arrays_depends_on_their_contents():
    data = my_arrays(5)
    part = jc.tasks.arrays(*data)
    same = jc.tasks.arrays(*(np.array(a) for a in data))
    assert part == same and config_hash(tiny(task=part)) == config_hash(tiny(task=same))
    for i in range(4):
        changed = [np.array(a) for a in data]
        changed[i].flat[0] += 1
        assert config_hash(tiny(task=jc.tasks.arrays(*changed))) != config_hash(tiny(task=part))
    assert len(repr(tiny(task=part))) < 1500 and "sha256" in str(described(tiny(task=part)))
    # What happens to the arrays later does not reach the task, whose key is known.
    x = my_arrays(4, 4, 2, dtype=np.uint8)
    task, kept = jc.tasks.arrays(*x), x[0].copy()
    x[0][:] = 0
    np.testing.assert_array_equal(task.settings["data"][0], kept)


def test_what_is_odd_about_arrays_is_said(caplog):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3, 6, 6)), np.arange(8) % 2
    jc.tasks.arrays(x, y, x[:2], y[:2])
    jc.tasks.arrays(np.moveaxis(x, 1, -1), y, np.moveaxis(x, 1, -1)[:2], y[:2] + 1)
    channels, classes = caplog.messages
    assert "taken for 3 x 6 pixels of 6 channels" in channels and "np.moveaxis(x, 1, -1)" in channels
    assert classes == "y_test has label 2, of which y has no sample: nothing can learn it"


def test_labels_with_gaps_are_said(caplog):
    x, y = np.random.default_rng(0).normal(size=(8, 3)), np.arange(8) % 2 * 5
    assert jc.tasks.arrays(x, y, x, y).settings["classes"] == 6
    [gaps] = caplog.messages
    assert gaps.startswith("y has no sample of 4 of the classes 0 to 5, first 1, and they have outputs all the same")
    jc.tasks.arrays(x, np.arange(8) % 2 * (2**31 - 2), x, y * 0)  # identities taken for classes: no list of all of them
    assert caplog.messages[-1].startswith("y has no sample of 2147483645 of the classes 0 to 2147483646, first 1, and")


def test_arrays_can_be_forgotten():
    """Folds of a cross-validation must not pile up."""
    x, y = np.random.default_rng(0).normal(size=(8, 3)), np.arange(8) % 2
    task = jc.tasks.arrays(x, y, x, y)
    task.build()
    kept = weakref.ref(task.settings["data"][0])
    del task
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, u, v: (x[:, 0], y, u, v), r"x has shape \(16,\); give \(samples, \.\.\.\)"),
        (lambda x, y, u, v: (x, y, u[:, :4], v), r"x_test has shape \(8, 4\)"),
        (lambda x, y, u, v: (x, y[:5], u, v), r"y has shape \(5,\); give labels, one for each of the 16 samples of x"),
        (lambda x, y, u, v: (x, y, u, v[:, None]), r"y_test has labels of .* shape \(\d+, 1\)"),
        (lambda x, y, u, v: (x[:0], y[:0], u, v), r"x has shape \(0, 5\); give \(samples, ...\), at least one of each"),
        (lambda x, y, u, v: (x, y, u[:0], v[:0]), r"x_test has shape \(0, 5\); give"),
        (lambda x, y, u, v: (x[:, :0], y, u[:, :0], v), r"x has shape \(16, 0\); give"),
        (lambda x, y, u, v: (x, y.astype(float), u, v), "y has labels of type float64 .* give one whole number from 0"),
        (lambda x, y, u, v: (x, y - 1, u, v), "y has labels of type int64 .* such as -1, 0.*; give one whole number"),
        (lambda x, y, u, v: (x, y.astype(str), u, v), "y has labels of type <U.* such as 0, 1"),
        (lambda x, y, u, v: (x.astype(str), y, u, v), "x is of type <U.*; give numbers"),
        (lambda x, y, u, v: (x + 0j, y, u, v), "x is of type complex64; give numbers"),
        (lambda x, y, u, v: ([[1.0], [1.0, 2.0]], y, u, v), "x is no array"),
        (lambda x, y, u, v: (x.astype(float) * 1e39, y, u, v), "x holds values that are not finite in float32"),
        (lambda x, y, u, v: (np.where(x > 5, np.nan, x), y, u, v), "x holds values that are not finite"),
        (lambda x, y, u, v: (x, y, u / 0, v), "x_test holds values that are not finite"),
        (lambda x, y, u, v: (x[..., None], y, u[..., None], v), r"x has shape \(16, 5, 1\), and which axis"),
        (lambda x, y, u, v: (np.ma.masked_less(x, 0), y, u, v), "x is masked; fill or drop"),
        (lambda x, y, u, v: (x, y + 2**31, u, v), "y has a label 214748.*; classes are 0, 1"),
        (lambda x, y, u, v: (x, 0 * y + 2, u, v), "all 16 labels are 2; give samples of at least two classes"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_arrays_that_do_not_fit_are_refused(change, message):
    refused(lambda: jc.tasks.arrays(*change(*my_arrays(5))), message)


def test_the_mean_over_samples_is_taken_once_for_all_runs():
    x, *rest = my_arrays(5)
    task = jc.tasks.arrays(x + 1, *rest)
    first, taken = task.build().prepare(jnp.asarray(x)), task.settings["data"].moments
    np.testing.assert_array_equal(first, task.build().prepare(jnp.asarray(x)))
    assert task.settings["data"].moments is taken
    taken[0][:] = 0  # what they are is what samples are scaled by
    np.testing.assert_allclose(np.asarray(task.build().prepare(jnp.asarray(x))) * taken[1], x, rtol=1e-6)
