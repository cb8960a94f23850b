"""Losses that train estimators: numbers by hand, and the statistics of measured directions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_scene, normal, relative, same_bits

from jcredit.losses.bridge import (
    bridge_consistency_loss,
    soft_min,
    state_prediction_loss,
    terminal_gradient_loss,
    terminal_value_loss,
)
from jcredit.losses.perturbation import (
    Probe,
    add_residual,
    all_layers,
    directional_loss,
    measure,
    random_layers,
    shuffled_order,
    take_samples,
)
from jcredit.settings import ConfigError
from jcredit.tasks.classification import correct, cross_entropy
from jcredit.tasks.targets import squared_error

pytestmark = pytest.mark.usefixtures("strict")


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_task_losses_by_hand():
    logits = jnp.log(jnp.asarray([[1.0, 3.0], [4.0, 1.0]]))  # probabilities 1/4, 3/4 and 4/5, 1/5
    labels = jnp.asarray([1, 1], jnp.int32)
    np.testing.assert_allclose(cross_entropy(logits, labels), [math.log(4 / 3), math.log(5)], rtol=1e-6)
    np.testing.assert_array_equal(correct(logits, labels), [1, 0])
    extreme = cross_entropy(jnp.asarray([[1e4, -1e4]]), jnp.asarray([1], jnp.int32))
    np.testing.assert_allclose(extreme, 2e4)
    y, goal = jnp.asarray([[1.0, 2.0], [0.0, 0.0]]), jnp.asarray([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_array_equal(squared_error(y, goal), [2.5, 12.5])


def test_soft_min_by_hand():
    # values 0 and lam log 3: -lam log((1 + 1/3) / 2) = lam log 1.5; equal values give that value
    for lam in (0.1, 2.0):
        value = jnp.asarray([[0.0, 5.0], [lam * math.log(3), 5.0]])
        np.testing.assert_allclose(soft_min(value, lam), [lam * math.log(1.5), 5], rtol=1e-5)
    assert soft_min(jnp.asarray([1.0, 1001.0]), 0.1) == pytest.approx(1 + 0.1 * math.log(2))  # nothing overflows
    assert soft_min(jnp.asarray([-5000.0, 5000.0]), 0.1) == pytest.approx(-5000 + 0.1 * math.log(2))


def test_soft_min_lies_between_minimum_and_mean_and_tends_to_each():
    value = normal(0, 4, 50)
    low, mean = value.min(0), value.mean(0)
    previous = low
    for lam in (0.03, 0.3, 3.0, 30.0):
        found = soft_min(value, lam)
        assert (found >= previous - 1e-5).all() and (found <= mean + 1e-5).all()  # rises with the temperature
        previous = found
    np.testing.assert_allclose(soft_min(value, 1e-6), low, atol=1e-5)
    for lam in (1e4, 1e6, 1e8):  # in float32
        np.testing.assert_allclose(soft_min(value, lam), mean, atol=1e-3)


def test_bridge_consistency_by_hand_and_its_target_is_fixed():
    value, target = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[0.0, 4.0]])
    assert bridge_consistency_loss(value, target) == pytest.approx((1 + 4) / 2)
    by_value, by_target = jax.grad(bridge_consistency_loss, (0, 1))(value, target)
    np.testing.assert_allclose(by_value, [[1.0, -2.0]])  # 2 (V - T) / 2
    np.testing.assert_array_equal(by_target, 0)


def test_terminal_losses_by_hand():
    assert terminal_value_loss(jnp.asarray([1.0, 2.0]), jnp.asarray([0.0, 4.0])) == pytest.approx(2.5)
    a, delta = jnp.asarray([[1.0, 2.0], [0.0, 0.0]]), jnp.asarray([[1.0, 0.0], [0.0, 4.0]])
    assert terminal_gradient_loss(a, delta) == pytest.approx((4 + 16) / 17)  # over sums, not sample by sample
    assert terminal_gradient_loss(1e-6 * a, 1e-6 * delta) == pytest.approx(20 / 17)  # scale-free
    assert terminal_gradient_loss(0 * a, delta) == 1


def test_state_prediction_by_hand():
    last = jnp.asarray([[3.0, 4.0], [0.0, 1.0]])  # mean square norm 13
    prediction = jnp.stack([last, last + 1.0])  # errors 0, 0 and 2, 2: mean 1
    assert state_prediction_loss(prediction, last, "raw") == pytest.approx(1)
    assert state_prediction_loss(prediction, last, "normalised") == pytest.approx(1 / 13)
    assert state_prediction_loss(10 * prediction, 10 * last, "normalised") == pytest.approx(1 / 13)


def test_directional_loss_by_hand():
    a, v = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[[1.0, 0.0]], [[0.0, 1.0]]])  # <a, v> = 1, 2
    assert directional_loss(a, v, jnp.asarray([[3.0], [2.0]])) == pytest.approx((4 + 0) / (9 + 4))
    assert directional_loss(0 * a, v, jnp.asarray([[3.0], [2.0]])) == 1
    assert directional_loss(a, v, jnp.asarray([[1.0], [2.0]])) == 0


# --- measurements -----------------------------------------------------------------------------------------------------

LAYERS, SAMPLES = np.asarray([0, 2, 1, 2, 2, 0, 1, 0]), np.arange(8)


def placed(scene):
    """Every sample at a layer of its own: the probe, and the gradients there."""
    h, delta = (a[LAYERS, SAMPLES] for a in (scene.ctx.trace.h_KxBxD, scene.delta_KxBxD))
    return Probe(scene.ctx, jnp.asarray(LAYERS), h, jnp.asarray(SAMPLES)), delta


@pytest.mark.parametrize("kind", ["image", "ladder"])
def test_central_error_falls_as_the_square_of_epsilon_one_sided_as_epsilon(x64, kind):
    scene = make_scene(kind)
    probe, delta = placed(scene)
    v = normal(5, 2, 8, 12)
    exact = jnp.sum(delta[None] * v, -1)
    epsilons = [1e-2, 3e-3, 1e-3]

    @jax.jit
    def errors(epsilon):
        found = {s: measure(scene.env, probe, v, s, epsilon) for s in ("central", "one_sided")}
        return {s: jnp.linalg.norm(g - exact) for s, g in found.items()}

    found = [errors(e) for e in epsilons]
    for scheme, order in (("central", 2), ("one_sided", 1)):
        slope = np.polyfit(np.log(epsilons), np.log([e[scheme] for e in found]), 1)[0]
        assert slope == pytest.approx(order, abs=0.05)


def test_measure_by_jvp_is_the_inner_product_and_other_schemes_are_refused():
    scene = make_scene("image")
    probe, delta = placed(scene)
    v = normal(5, 2, 8, 12)
    found = measure(scene.env, probe, v, "jvp", jnp.nan)  # epsilon plays no part
    assert found.shape == (2, 8)
    assert relative(found, jnp.sum(delta[None] * v, -1)) < 1e-5
    with pytest.raises(ValueError, match="scheme='forward' is unknown; choose one of central, one_sided, jvp"):
        measure(scene.env, probe, v, "forward", 1e-3)  # type: ignore[arg-type]


def expected_error(directions: int, width: int) -> float:
    """Root of E ||mean_m <r, v_m> v_m - r||^2 / ||r||^2 for v ~ N(0, I_D): each v contributes (D + 1) ||r||^2 / M."""
    return math.sqrt((width + 1) / directions)


def test_measured_directions_average_to_the_gradient():
    scene = make_scene("image")
    probe, delta = placed(scene)
    v = normal(6, 4000, 8, 12)
    mean = jax.jit(lambda v: jnp.mean(measure(scene.env, probe, v)[..., None] * v, axis=0))(v)
    # Eight samples of twelve units: the error of the whole is within half of its expectation.
    assert 0.5 < relative(mean, delta) / expected_error(4000, 12) < 1.5


def test_unbiased_residual_is_unbiased_for_a_wrong_credit():
    scene = make_scene("image", depth=2, batch=4)
    wrong = 0.5 * jnp.roll(scene.delta_KxBxD, 1, axis=1)  # another sample's gradient
    wrong = wrong.at[-1].set(scene.delta_KxBxD[-1])
    corrected = jax.jit(lambda a, key: add_residual(scene.env, scene.ctx, a, key, 40))
    draws = np.stack([corrected(wrong, jax.random.key(i)) for i in range(100)])
    off = lambda a: np.linalg.norm(a[:-1] - scene.delta_KxBxD[:-1])  # noqa: E731
    assert 0.5 < off(draws.mean(0)) / off(wrong) / expected_error(4000, 12) < 1.5
    assert 0.5 < off(draws[0]) / off(wrong) / expected_error(40, 12) < 1.5  # one draw has the variance of 40 directions
    np.testing.assert_array_equal(draws[0, -1], wrong[-1])  # the last is returned as it came
    # Where nothing is missing no variance is added.
    assert relative(corrected(scene.delta_KxBxD, jax.random.key(0)), scene.delta_KxBxD) < 1e-5


@pytest.mark.parametrize(("kind", "batch"), [("image", 8), ("lq", 8), ("image", 2)])
def test_every_sample_has_a_layer_of_its_own(kind, batch):
    scene = make_scene(kind, batch=batch)
    probes = [random_layers(jax.random.key(i), scene.ctx) for i in range(40)]
    h_0, met = np.asarray(scene.ctx.trace.h_KxBxD[0]), np.zeros((batch, 3), int)
    for probe in probes:
        # Samples are known by their states at h_0; what else the probe holds of them must be theirs.
        who = [int(np.flatnonzero((h_0 == h).all(-1))[0]) for h in np.asarray(probe.ctx.trace.h_KxBxD[0])]
        assert sorted(who) == list(range(batch)) and who == list(probe.index_B)
        assert same_bits(probe.ctx, take_samples(scene.ctx, np.asarray(who)))
        np.testing.assert_array_equal(probe.h_BxD, scene.ctx.trace.h_KxBxD[probe.layer_B, who])
        met[who, probe.layer_B] += 1
        if batch >= 3:  # every layer has its share, and the tail knows where samples start
            assert isinstance(probe.layer_B, np.ndarray)
            np.testing.assert_array_equal(probe.layer_B, [0, 0, 0, 1, 1, 1, 2, 2])
    assert (met >= 4).all()  # 40 draws: every sample meets every layer, 10 times or more on average


def test_all_layers_hold_every_sample_at_every_layer():
    scene = make_scene("lq")
    ctx, layer_N, h_NxD, index_N = all_layers(scene.ctx)
    np.testing.assert_array_equal(index_N.reshape(3, 8), np.tile(np.arange(8), (3, 1)))
    np.testing.assert_array_equal(layer_N, np.repeat([0, 1, 2], 8))
    np.testing.assert_array_equal(h_NxD.reshape(3, 8, 12), scene.ctx.trace.h_KxBxD[:-1])
    for layer in range(3):
        part = jax.tree.leaves(take_samples(ctx, np.arange(8) + 8 * layer))
        for found, wanted in zip(part, jax.tree.leaves(scene.ctx), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_the_shuffled_order_moves_every_sample():
    # A sample that kept its own measurement would teach the control the gradient.
    for batch in (2, 5):
        orders = [np.asarray(shuffled_order(jax.random.key(i), batch)) for i in range(12)]
        assert all(sorted(order) == list(range(batch)) and (order != np.arange(batch)).all() for order in orders)
        assert len({tuple(order) for order in orders}) == batch - 1
    with pytest.raises(ConfigError, match="batch_size and diagnostic_samples of at least 2, not 1"):
        shuffled_order(jax.random.key(0), 1)
