"""What a training step reports, and what it hands an estimator that learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import as_part, first_batch, flat, normal, relative, same_bits, small, start, tiny

import jcredit as jc
from jcredit.passes import forward
from jcredit.training import make_run
from jcredit.types import EstState, adam


def test_a_step_reports_the_forward_pass_that_it_learns_from():
    config = tiny(jc.dfa())
    run = make_run(config)
    state, hp, data = start(run, config)
    _, metrics = jax.jit(run.step)(state, hp, data, jnp.arange(32))
    trace = forward(run.built(hp).network, state.params, data.train_x)
    outputs, h_last, y = (np.asarray(x, np.float64) for x in (trace.outputs_BxC, trace.h_KxBxD[-1], data.train_y))
    right, least = (np.mean(chosen(outputs, axis=1) == y) for chosen in (np.argmax, np.argmin))
    assert right != least and metrics["train_accuracy"] == pytest.approx(right)
    assert metrics["train_h_rms"] == pytest.approx(np.sqrt(np.mean(h_last**2)), rel=1e-5)
    own = outputs[np.arange(32), y.astype(int)]
    assert metrics["train_loss"] == pytest.approx(np.mean(np.log(np.exp(outputs).sum(1)) - own), rel=1e-5)


def test_adam_is_optax_s_unless_a_clip_is_asked_for():
    ours, theirs, params = adam(0.25), optax.adam(0.25), jnp.zeros(100)
    state, other = ours.init(params), theirs.init(params)
    for step in range(3):
        gradient = 1e3 * normal(step, 100)
        (moved, state), (expected, other) = ours.update(gradient, state, params), theirs.update(gradient, other, params)
        np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_clip_of_an_estimators_adam_stands_before_its_scaling(size):
    # Adam's first step is the rate times the gradient's sign, whatever its size: clipped after it, a hundred entries of
    # norm 10 would be a tenth of that.
    params, optimizer = jnp.zeros(100), adam(0.25, 1.0)
    sign = jnp.sign(normal(0, 100))
    moved, _ = optimizer.update(size * sign, optimizer.init(params), params)
    np.testing.assert_allclose(moved, -0.25 * sign, rtol=1e-4)


def test_the_slow_copy_follows_what_a_step_has_learned():
    config = tiny(small(jc.scalar_bridge, ema=0.75))
    run = make_run(config)
    state, hp, data = start(run, config)
    slow, before = flat(state.est_state.extra["slow"]), flat(state.est_state.params)
    assert same_bits(state.est_state.extra["slow"], state.est_state.params)  # they start as one
    step = jax.jit(run.step)
    for _ in range(2):
        state, _ = step(state, hp, data, first_batch(config))
        expected = 0.75 * slow + 0.25 * flat(state.est_state.params)
        moved = flat(state.est_state.extra["slow"]) - slow
        assert np.abs(moved).max() > 1e-4 and relative(moved, expected - slow) < 1e-3
        slow = flat(state.est_state.extra["slow"])
    assert not np.array_equal(before, flat(state.est_state.params))


def test_an_estimator_that_learns_keeps_what_it_followed():
    both = (
        jc.broadcast()
        .build()
        ._replace(
            init=lambda key, shapes: EstState({"w": jnp.ones(2)}, {"steps": jnp.zeros(())}),
            loss=lambda state, ctx, env, key: (jnp.sum(state.params["w"] ** 2), {}),
            follow=lambda state, env, step, keep: state._replace(extra={"steps": state.extra["steps"] + 1}),
            optimizer=adam(0.01),
        )
    )
    config = tiny(as_part(jc.estimator, both))
    run = make_run(config)
    state, hp, data = start(run, config)
    step = jax.jit(run.step)
    for count in range(1, 4):
        state, _ = step(state, hp, data, first_batch(config))
        assert state.est_state.extra["steps"] == count
        np.testing.assert_allclose(state.est_state.params["w"], 1 - 0.01 * count, rtol=1e-3)
