"""Every loss and every diagnostic against plain numpy in double precision, written from the formulas of docs/method.md.

The reference knows numpy and the formulas alone: network, loss and back-propagated gradient are its own too.  Only
random directions, which no formula fixes, are drawn as the code draws them.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_scene, normal

from jcredit import diagnostics
from jcredit.losses import bridge, perturbation
from jcredit.tasks.classification import cross_entropy
from jcredit.tasks.targets import squared_error

RHO_EPSILON, NUDGE_ETA = 1e-3, 1e-2


def double(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


# --- section 1: the image network, its loss and its gradient ----------------------------------------------------------


def layer_norm(h):
    centred = h - h.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def layer_norm_jacobian(h, v):
    u, v = layer_norm(h), v - v.mean(-1, keepdims=True)
    return (v - u * (u * v).mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)


def phi_cumulative(z):
    return np.vectorize(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))))(z)


class Reference:
    """An image network in numpy: h_l -> loss, and delta_l by section 4's pull with the blocks' own weights."""

    def __init__(self, scene):
        params, self.y = double(scene.params), np.asarray(scene.target_B)
        inner, outer = params.blocks["inner"], params.blocks["outer"]
        self.w1, self.b1, self.w2, self.b2 = inner["w"], inner["b"], outer["w"], outer["b"]
        self.w_in, self.b_in = params.embed["w"], params.embed["b"]
        self.w_out, self.b_out = params.readout["w"], params.readout["b"]
        self.depth = len(self.w1)
        self.h = [double(scene.x_BxI) @ self.w_in + self.b_in]
        for l in range(self.depth):  # noqa: E741
            self.h.append(self.block(l, self.h[-1]))
        self.delta = self.gradients()

    def block(self, l, h):  # noqa: E741
        z = layer_norm(h) @ self.w1[l] + self.b1[l]
        return h + (z * phi_cumulative(z)) @ self.w2[l] + self.b2[l]

    def logits(self, h_last):
        return layer_norm(h_last) @ self.w_out + self.b_out

    def loss_of_logits(self, logits):
        return np.log(np.exp(logits).sum(-1)) - logits[..., np.arange(len(self.y)), self.y]

    def loss_from(self, l, h):  # noqa: E741
        for block in range(l, self.depth):
            h = self.block(block, h)
        return self.loss_of_logits(self.logits(h))

    def gradients(self):
        logits = self.logits(self.h[-1])
        error = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) - np.eye(logits.shape[1])[self.y]
        a = [layer_norm_jacobian(self.h[-1], error @ self.w_out.T)]
        for l in reversed(range(self.depth)):  # noqa: E741
            z = layer_norm(self.h[l]) @ self.w1[l] + self.b1[l]
            gates = phi_cumulative(z) + z * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
            a.insert(0, a[0] + layer_norm_jacobian(self.h[l], (a[0] @ self.w2[l].T * gates) @ self.w1[l].T))
        return np.stack(a)


def test_the_reference_has_the_gradient_of_its_own_loss():
    # Central differences of 1e-5 in double precision are good to 1e-9 or so.
    reference = Reference(make_scene("image"))
    for l in range(reference.depth + 1):  # noqa: E741
        v = np.random.default_rng(l).normal(size=reference.h[l].shape)
        after, before = (reference.loss_from(l, reference.h[l] + sign * 1e-5 * v) for sign in (1, -1))
        np.testing.assert_allclose((reference.delta[l] * v).sum(-1), (after - before) / 2e-5, atol=1e-8)


# --- section 6: diagnostics -------------------------------------------------------------------------------------------


def gamma(a, delta, least=0.0):
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(delta, axis=-1)
    return np.mean((a * delta).sum(-1) / np.maximum(norms, least))


def expected_scores(reference, a, fresh, directions, spacing):
    """Each diagnostic at the hidden layers; ``spacing`` is that of the floats of the code that is compared."""
    scores = {}
    h, delta = reference.h, reference.delta
    here = reference.loss_from(reference.depth, h[-1])
    for l, v in enumerate(directions):  # noqa: E741
        inner = (a[l] * v).sum(-1).ravel()
        exact = (delta[l] * v).sum(-1).ravel()
        forward = np.stack([(reference.loss_from(l, h[l] + RHO_EPSILON * one) - here) / RHO_EPSILON for one in v])
        rms = np.sqrt((a[l] ** 2).mean(-1, keepdims=True))
        effect = np.linalg.norm(delta[l], axis=-1) / math.sqrt(delta[l].shape[-1])
        one = {
            "gamma": gamma(a[l], delta[l]),
            "gamma_clamped": gamma(a[l], delta[l], 1e-8),
            "gamma_fresh": gamma(fresh[l], delta[l]),
            "rho": np.corrcoef(inner, exact)[0, 1],
            "rho_one_sided": np.corrcoef(inner, forward.ravel())[0, 1],
            "difference_noise": np.median(spacing(here) / RHO_EPSILON / effect),
            # RMS with the 1e-6 of section 5's normalisation
            "nudge": np.mean(reference.loss_from(l, h[l] - NUDGE_ETA * a[l] / (rms + 1e-6)) - here),
            "credit_norm": np.linalg.norm(a[l], axis=-1).mean(),
            "delta_norm": np.linalg.norm(delta[l], axis=-1).mean(),
        }
        for name, value in one.items():
            scores.setdefault(name, []).append(value)
    return {**scores, "h_rms": [np.sqrt((state**2).mean()) for state in h]}


# Differences of losses of order 1 are resolved to 1e-7 in float32; what is not a difference, to a few units.
SINGLE = {"nudge": 1e-6, "rho_one_sided": 5e-3, "difference_noise": 1e-5}


@pytest.mark.parametrize("precision", ["double", "single"])
def test_every_score_is_the_formulas(request, precision):
    if precision == "double":
        request.getfixturevalue("x64")
    scene = make_scene("image")
    reference, key = Reference(scene), jax.random.key(3)
    depth, batch, width = reference.depth, *reference.h[0].shape
    a = jnp.asarray(scene.delta_KxBxD + 0.3 * jnp.std(scene.delta_KxBxD) * normal(11, depth + 1, batch, width))
    fresh = normal(12, depth + 1, batch, width)
    found = jax.jit(
        lambda a, fresh, delta: diagnostics.score_credit(
            scene.env, scene.ctx, a, fresh, delta, key, rho_epsilon=RHO_EPSILON, nudge_eta=NUDGE_ETA
        )
    )(a, fresh, scene.delta_KxBxD)
    keys, shape = jax.random.split(key, diagnostics.RHO_DIRECTIONS), (depth, batch, width)
    drawn = np.stack([double(jax.random.normal(k, (depth * batch, width), a.dtype)).reshape(shape) for k in keys], 1)
    directions = list(drawn / np.linalg.norm(drawn, axis=-1, keepdims=True))
    expected = expected_scores(
        reference, double(a), double(fresh), directions, lambda loss: np.spacing(loss.astype(a.dtype))
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = 1e-8 if precision == "double" else SINGLE.get(name, 1e-6)
        np.testing.assert_allclose(found[name], value, rtol=10 * tolerance, atol=tolerance, err_msg=name)
    summary = diagnostics.summarise(found)
    for name in ("gamma", "rho", "nudge"):
        assert summary[name] == pytest.approx(np.mean(expected[name]), rel=1e-2, abs=1e-6)
        assert summary[f"{name}_deep"] == pytest.approx(np.mean(expected[name][1:]), rel=1e-2, abs=1e-6)
    assert summary["h_rms_last"] == pytest.approx(expected["h_rms"][-1], rel=1e-5)


A, DELTA = np.random.default_rng(5).normal(size=(2, 9, 6))


def single(x):
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("scale_a", [1e-20, 1e-10, 1.0, 1e10, 1e20])
@pytest.mark.parametrize("scale_delta", [1e-20, 1e-4, 1.0, 1e20])
def test_cosines_and_norms_are_exact_over_forty_orders_of_magnitude(scale_a, scale_delta):
    a, delta = scale_a * A, scale_delta * DELTA
    assert diagnostics.gamma(single(a), single(delta)) == pytest.approx(gamma(a, delta), abs=1e-6)
    clamped = float(diagnostics.clamped_gamma(single(a), single(delta)))
    assert clamped == pytest.approx(gamma(a, delta, 1e-8), rel=1e-5, abs=1e-30)
    blocks = {"w": single(a.reshape(3, 3, 6)), "b": single(scale_a * np.ones((3, 2)))}
    exact = {"w": single(delta.reshape(3, 3, 6)), "b": single(scale_delta * np.ones((3, 2)))}
    flat = [np.concatenate([s * np.ones((3, 2)), x.reshape(3, 18)], 1) for s, x in ((scale_a, a), (scale_delta, delta))]
    cosines = (flat[0] * flat[1]).sum(-1) / np.linalg.norm(flat[0], axis=-1) / np.linalg.norm(flat[1], axis=-1)
    np.testing.assert_allclose(diagnostics.weight_cosine(blocks, exact), cosines, atol=1e-6)


@pytest.mark.parametrize("scale_a", [1e-20, 1e-10, 1.0, 1e20])
@pytest.mark.parametrize("scale_b", [1e-20, 1.0, 1e20])
def test_correlations_are_exact_over_forty_orders_of_magnitude(scale_a, scale_b):
    expected = np.corrcoef(A.ravel(), (A + DELTA).ravel())[0, 1]
    found = diagnostics.pearson(single(scale_a * A), single(scale_b * (A + DELTA)))
    assert found == pytest.approx(expected, abs=2e-6)


# --- section 4: losses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_losses_of_bridges_are_the_formulas(scale):
    rng = np.random.default_rng(1)
    value, loss = scale * rng.normal(size=(2, 50))
    assert bridge.terminal_value_loss(single(value), single(loss)) == pytest.approx(
        np.mean((value - loss) ** 2), rel=1e-5
    )
    a, delta = scale * rng.normal(size=(2, 20, 8))
    expected = ((a - delta) ** 2).sum() / (delta**2).sum()
    assert bridge.terminal_gradient_loss(single(a), single(delta)) == pytest.approx(expected, rel=1e-5)
    values, targets = scale * rng.normal(size=(2, 4, 30))
    expected = np.mean((values - targets) ** 2)
    assert bridge.bridge_consistency_loss(single(values), single(targets)) == pytest.approx(expected, rel=1e-5)
    prediction, last = scale * rng.normal(size=(3, 20, 8)), scale * rng.normal(size=(20, 8))
    error, size = ((prediction - last) ** 2).sum(-1).mean(), (last**2).sum(-1).mean()
    for how, expected in (("raw", error), ("normalised", error / size)):
        found = bridge.state_prediction_loss(single(prediction), single(last), how)
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("lam", [1e-3, 0.1, 1.0, 30.0, 1e4])
def test_the_soft_minimum_is_the_formula(lam):
    value = np.random.default_rng(2).normal(size=(8, 40))
    # -lam log (1/R) sum exp(-V / lam); the smallest taken out, or the double reference would underflow itself
    lowest = value.min(0)
    expected = lowest - lam * np.log(np.mean(np.exp((lowest - value) / lam), axis=0))
    np.testing.assert_allclose(bridge.soft_min(single(value), lam), expected, rtol=1e-5, atol=1e-6)


def test_losses_of_tasks_are_the_formulas():
    rng = np.random.default_rng(3)
    logits, y = 5 * rng.normal(size=(30, 7)), rng.integers(0, 7, 30)
    expected = np.log(np.exp(logits).sum(-1)) - logits[np.arange(30), y]
    np.testing.assert_allclose(cross_entropy(single(logits), jnp.asarray(y, jnp.int32)), expected, rtol=1e-5, atol=1e-6)
    out, goal = rng.normal(size=(2, 30, 7))
    np.testing.assert_allclose(
        squared_error(single(out), single(goal)), ((out - goal) ** 2).sum(-1) / 2, rtol=1e-5
    )  # fmt: skip


def test_the_directional_loss_is_the_mean_over_layers_of_scale_free_errors():
    rng, layers = np.random.default_rng(4), np.asarray([0, 2, 2, 0, 3, 0])  # layer 1 meets no sample
    a, v, g = rng.normal(size=(6, 5)), rng.normal(size=(3, 6, 5)), rng.normal(size=(3, 6))
    g[:, 4] = 0  # and at layer 3 nothing was measured: neither counts
    errors = (((a * v).sum(-1) - g) ** 2).sum(0)
    expected = np.mean([errors[layers == l].sum() / (g[:, layers == l] ** 2).sum() for l in (0, 2)])  # noqa: E741
    ctx = make_scene("image").ctx
    four_layers = ctx._replace(trace=ctx.trace._replace(h_KxBxD=jnp.zeros((5, 6, 5))))
    probe = perturbation.Probe(four_layers, layers, single(a), np.arange(6))
    found = perturbation.directional_loss(single(a), single(v), single(g), probe)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scheme", ["central", "one_sided", "jvp"])
def test_measured_effects_are_the_formulas(x64, scheme):
    scene, epsilon = make_scene("image"), 1e-2
    reference, layers = Reference(scene), np.asarray([0, 2, 1, 2, 2, 0, 1, 0])
    states = np.stack([reference.h[layer][b] for b, layer in enumerate(layers)])
    v = np.asarray(normal(6, 2, 8, 12))
    probe = perturbation.Probe(scene.ctx, jnp.asarray(layers), jnp.asarray(states), jnp.arange(8))
    found = perturbation.measure(scene.env, probe, jnp.asarray(v), scheme, epsilon)

    def loss_at(h):  # of each sample from its own layer
        return np.stack([reference.loss_from(layer, np.tile(h[b], (8, 1)))[b] for b, layer in enumerate(layers)])

    for m, one in enumerate(v):
        after, before, here = (loss_at(states + step * epsilon * one) for step in (1, -1, 0))
        expected = {
            "central": (after - before) / (2 * epsilon),
            "one_sided": (after - here) / epsilon,
            "jvp": np.asarray([reference.delta[layer][b] @ one[b] for b, layer in enumerate(layers)]),
        }[scheme]
        np.testing.assert_allclose(found[m], expected, rtol=1e-8, atol=1e-9)


def test_the_unbiased_residual_is_the_formula(x64):
    scene, key = make_scene("image"), jax.random.key(8)
    reference = Reference(scene)
    a, directions = np.asarray(normal(7, 4, 8, 12)), 3
    found = perturbation.add_residual(scene.env, scene.ctx, jnp.asarray(a), key, directions)
    v = double(jax.random.normal(key, (directions, 3 * 8, 12), jnp.float64)).reshape(directions, 3, 8, 12)
    g = (reference.delta[None, :3] * v).sum(-1)
    missing = g - (a[None, :3] * v).sum(-1)
    expected = a.copy()
    expected[:3] += (missing[..., None] * v).mean(0)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
