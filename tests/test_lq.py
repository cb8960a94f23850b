"""Toy LQ: the costate in closed form is the gradient, and nothing in the dynamics is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_scene, normal, relative, same_bits, small, tiny

import jcredit as jc
from jcredit.training import make_run
from jcredit.types import Array, NetParams, Sizes

LQ = tiny(
    small(jc.scalar_bridge),
    task=jc.tasks.lq(state_size=16, outputs=4, process_noise=0.03, test_size=16),
    network=jc.lq_dynamics(depth=3),
    trains="nothing",
    steps_per_epoch=2,
)


def costate(params: NetParams, error_BxC: Array) -> Array:
    """The closed form lambda_l = A_l^T ... A_{L-1}^T W^T (y - y*).

    Args:
      params: parameters of ``lq_dynamics`` (row convention: h_{l+1} = h_l A_l, y = h_L W).
      error_BxC: y - y*.

    Returns:
      lambda_0..lambda_L, shape (L+1, B, D).
    """
    last = error_BxC @ params.readout["w"].T
    retreat = lambda lam, a: (lam @ a.T, lam @ a.T)  # noqa: E731
    _, earlier = jax.lax.scan(retreat, last, params.blocks["a"], reverse=True)
    return jnp.concatenate([earlier, last[None]])


def test_costate_is_the_closed_form_and_the_gradient(x64, strict):
    scene = make_scene("lq")
    found = costate(scene.params, scene.ctx.error_BxC)
    # lambda_l = A_l^T ... A_{L-1}^T W^T (y - y*), in numpy; our states are rows, so the products stand on the right
    a, w = np.asarray(scene.params.blocks["a"]), np.asarray(scene.params.readout["w"])
    error = np.asarray(scene.ctx.trace.outputs_BxC - scene.target_B)
    np.testing.assert_allclose(scene.ctx.error_BxC, error, rtol=1e-12)
    for layer in range(4):
        carry = np.eye(12)
        for later in range(layer, 3):
            carry = carry @ a[later]  # h_L = h_l A_l ... A_{L-1}
        assert relative(found[layer], error @ (carry @ w).T) < 1e-12
        assert relative(found[layer], scene.delta_KxBxD[layer]) < 1e-10  # jax.grad of an explicit tail


def test_costate_is_the_gradient_in_single_precision():
    scene = make_scene("lq")
    assert relative(costate(scene.params, scene.ctx.error_BxC), scene.delta_KxBxD) < 1e-5


def test_an_epoch_trains_the_estimator_and_nothing_else():
    run = make_run(LQ)
    hp, key = run.hparams(LQ), jax.random.key(0)
    assert run.steps_per_epoch == 2 and not run.shared_data
    state, data = run.init(key, hp), run.data(key, hp)
    assert data.train_x.shape == (0, 16) and data.test_x.shape == (16, 16) and data.test_y.shape == (16, 4)
    new, metrics = jax.jit(run.epoch)(state, hp, data)
    assert same_bits(state.params, new.params)
    pairs = zip(*map(jax.tree.leaves, (state.est_state, new.est_state)), strict=True)
    assert all((a != b).any() for a, b in pairs)
    assert int(new.step) == 2 and np.isfinite(metrics["estimator_loss"])
    assert set(jax.jit(run.evaluate)(state, hp, data)) == {"test_loss"}  # a regression has no accuracy


def test_every_step_sees_fresh_samples_and_fresh_noise():
    seen = []
    task_run = make_run(LQ)
    hp, key = task_run.hparams(LQ), jax.random.key(0)
    state, data = task_run.init(key, hp), task_run.data(key, hp)
    step = jax.jit(task_run.step)
    for number in range(3):
        _, metrics = step(state._replace(step=jnp.asarray(number, jnp.int32)), hp, data, jnp.arange(8))
        seen.append(float(metrics["train_loss"]))
    assert len(set(seen)) == 3  # the same indices, other samples
    quiet = step(state, task_run.hparams(LQ.replace(process_noise=0.0)), data, jnp.arange(8))[1]["train_loss"]
    assert abs(float(quiet) - seen[0]) > 1e-6  # the process noise enters the states


def test_noise_is_fresh_in_every_step_and_of_the_size_it_says():
    built = LQ.task.build(None)
    x, y = normal(0, 8, 16), normal(1, 8, 4)

    @jc.task(jc.lq_dynamics(depth=3))
    def unchanging():
        return built._replace(batch=lambda data, index_B, key: (x, y))

    run = make_run(LQ.replace(task=unchanging()))
    hp, key = run.hparams(run.config), jax.random.key(0)
    state, data, step = run.init(key, hp), run.data(key, hp), jax.jit(run.step)
    seen = [
        float(step(state._replace(step=jnp.asarray(n, jnp.int32)), hp, data, jnp.arange(8))[1]["train_loss"])
        for n in range(3)
    ]
    assert len(set(seen)) == 3  # the same samples
    assert float(jnp.std(built.noise(key, (3, 500, 16)))) == pytest.approx(0.03, rel=0.03)


@pytest.mark.parametrize("near", ["isometry", "identity"])
def test_dynamics_near_what_they_are_near_to(near):
    blocks = lambda spread: np.asarray(  # noqa: E731
        jc.lq_dynamics(depth=3, near=near, spread=spread).build(Sizes((64,), 4)).init(jax.random.key(1)).blocks["a"]
    )
    exact = blocks(0.0)
    for a in exact:
        np.testing.assert_allclose(a @ a.T, np.eye(64), atol=1e-5)
        assert (np.abs(a - np.eye(64)).max() < 1e-6) == (near == "identity")
    assert np.std(blocks(0.13) - exact) == pytest.approx(0.13 / 8, rel=0.05)


@pytest.mark.parametrize("target", ["independent", "fixed"])
def test_goals_are_drawn_for_each_sample_or_once_for_each_run(target):
    task = LQ.task.replace(target=target).build(None)
    data = {seed: task.data(jax.random.key(seed), None) for seed in (0, 1)}
    goals = [np.asarray(task.batch(data[0], jnp.arange(8), jax.random.key(k))[1]) for k in (5, 6)]
    goals = np.concatenate([*goals, data[0].test_y])
    assert goals.shape == (8 + 8 + 16, 4)
    assert len(np.unique(goals, axis=0)) == (1 if target == "fixed" else 32)
    assert not np.array_equal(data[0].test_y[0], data[1].test_y[0])


def test_goals_are_independent_of_the_states_they_belong_to():
    task = LQ.task.build(None)
    data = task.data(jax.random.key(0), None)
    for x, y in (task.batch(data, jnp.arange(8), jax.random.key(1)), (data.test_x, data.test_y)):
        assert not np.isin(y, x).any()


def test_noise_is_another_in_every_layer():
    noise = np.asarray(LQ.task.build(None).noise(jax.random.key(0), (3, 500, 16)))
    # Variances add if the layers are independent; one draw for all of them would give 3 sigma.
    assert np.std(noise.sum(axis=0)) == pytest.approx(0.03 * np.sqrt(3), rel=0.05)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05


def test_the_loss_of_the_tail_keeps_the_noise_of_the_forward_pass():
    # Measured effects compare with the trajectory that was run, not with one of other noise.
    scene = make_scene("lq")
    for layer in range(4):
        again = scene.env.loss_at(scene.ctx, jnp.full(8, layer), scene.ctx.trace.h_KxBxD[layer])
        assert relative(again, scene.loss(scene.ctx.trace.outputs_BxC, scene.target_B)) < 1e-6
    moved = scene.env.next_states(scene.ctx, scene.ctx.trace.h_KxBxD[:-1])
    assert relative(moved, scene.ctx.trace.h_KxBxD[1:]) < 1e-6
