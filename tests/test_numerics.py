"""The small numerical pieces, at the scales credit has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal, relative

from jcredit.numerics import (
    batch_normalise,
    clamp,
    clamped_cosine,
    clip_by_norm,
    cosine,
    layer_norm,
    layer_norm_tangent,
    norm,
    pearson,
    rms_normalise,
    scale_free,
)

pytestmark = pytest.mark.usefixtures("strict")
A, B = np.random.default_rng(0).normal(size=(2, 5, 7))


def exact_cosine(a, b):
    return np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize("scale_a", [1e-30, 1e-10, 1.0, 1e30])
@pytest.mark.parametrize("scale_b", [1e-30, 1.0, 1e30])
def test_cosine_is_exact_at_any_scale(scale_a, scale_b):
    found = cosine(jnp.asarray(scale_a * A, jnp.float32), jnp.asarray(scale_b * B, jnp.float32))
    assert found.shape == (5,)
    np.testing.assert_allclose(found, exact_cosine(A, B), atol=1e-6)


def test_cosine_of_a_vector_with_itself_and_its_opposite_is_one():
    a = jnp.asarray(1e-25 * A, jnp.float32)
    np.testing.assert_allclose(cosine(a, a), 1, rtol=3e-7)
    np.testing.assert_allclose(cosine(a, -1e20 * a), -1, rtol=3e-7)


def test_cosine_with_a_zero_vector_is_zero_and_so_is_its_gradient():
    one, zero = jnp.ones((2, 3)), jnp.zeros((2, 3)).at[1].set(1.0)  # the second sample is ordinary
    np.testing.assert_array_equal(cosine(one, zero)[0], 0)
    np.testing.assert_array_equal(cosine(zero, zero)[0], 0)
    for argument in (0, 1):
        for pair in ((one, zero), (zero, one), (zero, zero)):
            gradient = jax.grad(lambda a, b: jnp.sum(cosine(a, b)), argument)(*pair)
            assert np.isfinite(gradient).all()
            np.testing.assert_array_equal(gradient[0], 0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_has_no_cosine(wrong):
    credit, other = jnp.ones((3, 4)).at[1, 2].set(wrong), jnp.arange(12.0).reshape(3, 4)
    for found in (cosine(credit, other), cosine(other, credit)):
        np.testing.assert_array_equal(np.isnan(found), [False, True, False])
    assert np.isnan(pearson(credit, other)) and np.isnan(pearson(other, credit))


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_gradient_of_cosine(scale):
    # d cos(a, b) / da = (b / |b| - cos a / |a|) / |a|
    a, b = jnp.asarray(scale * A, jnp.float32), jnp.asarray(B, jnp.float32)
    unit_a, unit_b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (A, B))
    expected = (unit_b - exact_cosine(A, B)[:, None] * unit_a) / np.linalg.norm(A, axis=-1, keepdims=True)
    found = jax.grad(lambda x: jnp.sum(cosine(x, b)))(a)
    assert relative(np.asarray(found, np.float64) * scale, expected) < 1e-5


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e37])
def test_norm_is_exact_at_any_scale(scale):
    found = norm(jnp.asarray(scale * A, jnp.float32))
    np.testing.assert_allclose(np.asarray(found, np.float64), scale * np.linalg.norm(A, axis=-1), rtol=3e-7)


def test_norm_and_clamped_cosine_have_the_bits_of_the_plain_formula_where_that_is_exact():
    a, b = jnp.asarray(1e-4 * A, jnp.float32), jnp.asarray(1e-4 * B, jnp.float32)  # products about 7e-8
    norms = jnp.linalg.norm(a, axis=-1), jnp.linalg.norm(b, axis=-1)
    np.testing.assert_array_equal(norm(a), norms[0])
    for least in (1e-8, 7e-8, 1e-3):  # none, some, all are clamped
        plain = jnp.sum(a * b, axis=-1) / jnp.maximum(norms[0] * norms[1], least)
        np.testing.assert_array_equal(clamped_cosine(a, b, least), plain)
    np.testing.assert_array_equal(norm(jnp.zeros((2, 3))), 0)
    np.testing.assert_array_equal(clamped_cosine(jnp.zeros((2, 3)), jnp.ones((2, 3)), 1e-8), 0)


def test_pearson_is_the_correlation_coefficient():
    a, b = A.astype(np.float32), (0.3 * A + B).astype(np.float32)
    assert pearson(jnp.asarray(a), jnp.asarray(b)) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-6)
    assert pearson(jnp.asarray(a), jnp.asarray(7 - 2 * a)) == pytest.approx(-1, abs=1e-6)
    a, b = 1000 + a, b - 300  # a large common offset does not wash it out
    expected = np.corrcoef(a.ravel().astype(np.float64), b.ravel().astype(np.float64))[0, 1]
    assert pearson(jnp.asarray(a), jnp.asarray(b)) == pytest.approx(expected, abs=1e-5)
    tiny = pearson(jnp.asarray(1e-12 * A, jnp.float32), jnp.asarray(1e-12 * (0.3 * A + B), jnp.float32))
    assert tiny == pytest.approx(np.corrcoef(A.ravel(), (0.3 * A + B).ravel())[0, 1], abs=1e-5)


@pytest.mark.parametrize("samples", [1, 3, 10, 1000])  # means of .1 and .3 round differently for each
def test_pearson_of_a_constant_is_zero(samples):
    constants = [jnp.full((samples, 2), value) for value in (0.1, 0.3, 0.0)]
    varying = jnp.arange(2.0 * samples).reshape(samples, 2)
    for a in constants:
        for b in (*constants, varying):
            assert pearson(a, b) == 0 and pearson(b, a) == 0


def test_layer_norm_by_hand():
    # centred (-1, 1), variance 1; centred (-2, 2), variance 4
    found = layer_norm(jnp.asarray([[1.0, 3.0], [0.0, 4.0]]))
    expected = [[-1 / np.sqrt(1 + 1e-5), 1 / np.sqrt(1 + 1e-5)], [-2 / np.sqrt(4 + 1e-5), 2 / np.sqrt(4 + 1e-5)]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(layer_norm(jnp.full((1, 4), 5.0)), 0)


def test_layer_norm_tangent_is_the_symmetric_jacobian(x64):
    h, v, w = normal(0, 3, 4, 5, 7)  # leading layer axis, as the maps use it
    exact = jax.jvp(layer_norm, (h,), (v,))[1]
    assert relative(layer_norm_tangent(h, v), exact) < 1e-12
    assert relative(jax.vjp(layer_norm, h)[1](v)[0], exact) < 1e-12
    np.testing.assert_allclose(jnp.sum(w * layer_norm_tangent(h, v)), jnp.sum(v * layer_norm_tangent(h, w)), rtol=1e-12)


def test_normalisations_by_hand():
    # RMS of (3, 4) is 5 / sqrt 2; of both samples (3, 4), (0, 0) together 5 / 2
    a = jnp.asarray([[3.0, 4.0], [0.0, 0.0]])
    each, batch = 5 / np.sqrt(2) + 1e-6, 2.5 + 1e-6
    np.testing.assert_allclose(rms_normalise(a), [[3 / each, 4 / each], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(batch_normalise(a), [[3 / batch, 4 / batch], [0, 0]], rtol=1e-6)
    layers = jnp.stack([a, 10 * a])  # one scale for each layer
    np.testing.assert_allclose(batch_normalise(layers), jnp.stack([batch_normalise(a)] * 2), rtol=1e-5)


@pytest.mark.parametrize("normalise", [rms_normalise, batch_normalise])
def test_a_credit_as_small_as_the_guard_is_halved(normalise):
    # a / (RMS + 1e-6): the guard stands outside the root, so that RMS = 1e-6 gives 1/2, not 1 / sqrt 2.
    np.testing.assert_allclose(normalise(jnp.full((3, 4), 1e-6)), 0.5, rtol=1e-5)


def test_scale_free_by_hand():
    assert scale_free(jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 4.0])) == pytest.approx(5 / 25)
    assert scale_free(jnp.zeros(2), jnp.zeros(2)) == 0
    assert scale_free(jnp.ones(2), jnp.zeros(2)) == 2  # nothing to explain: the error as it is


def test_clip_by_norm_by_hand():
    tree = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([[4.0]])}  # norm 5
    clipped = clip_by_norm(tree, jnp.asarray(2.0))
    np.testing.assert_allclose(clipped["a"], [1.2, 0], rtol=1e-6)
    np.testing.assert_allclose(clipped["b"], [[1.6]], rtol=1e-6)
    for limit in (0.0, 5.0, 7.0):  # off, just reached, not reached
        unchanged = clip_by_norm(tree, jnp.asarray(limit))
        assert all(jnp.array_equal(unchanged[k], tree[k]) for k in tree)
    np.testing.assert_array_equal(clip_by_norm(jnp.zeros(3), jnp.asarray(1.0)), 0)
    assert clip_by_norm({}, jnp.asarray(1.0)) == {}
    for huge in (1e19, 2e19, 3e38):  # squares of which are no float32: such a gradient must not become zero
        np.testing.assert_allclose(clip_by_norm(jnp.asarray([huge, -huge]), jnp.asarray(1.0)), [0.5**0.5, -(0.5**0.5)])
    for tiny in (1e-30, 1e-37):
        np.testing.assert_array_equal(clip_by_norm(jnp.asarray([tiny]), jnp.asarray(1.0)), jnp.asarray([tiny]))
    rows = jax.vmap(clip_by_norm, (0, None))(jnp.asarray([[3.0, 4.0], [0.3, 0.4]]), jnp.asarray(1.0))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0.3, 0.4]], rtol=1e-6)  # each block has a norm of its own


def test_clamp_by_hand():
    tree = [jnp.asarray([-3.0, 0.5, 2.0])]
    np.testing.assert_array_equal(clamp(tree, jnp.asarray(1.0))[0], [-1, 0.5, 1])
    np.testing.assert_array_equal(clamp(tree, jnp.asarray(0.0))[0], tree[0])
