"""Exact credit through the local rule IS back-propagation, checked against forward passes written out in this file."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import IMAGE_NETWORK, TINY, first_batch, make_scene, relative, start, tiny, white

import jcredit as jc
from jcredit.observing import with_oracle
from jcredit.passes import forward_with_pulls, oracle_deltas
from jcredit.training import make_run


def plain_image_loss(params, x, labels):
    h = x @ params.embed["w"] + params.embed["b"][None]
    for layer in range(3):
        inner, outer = ({k: w[layer] for k, w in params.blocks[name].items()} for name in ("inner", "outer"))
        z = white(h) @ inner["w"] + inner["b"][None]
        h = h + (0.5 * z * (1 + jax.lax.erf(z / 2**0.5))) @ outer["w"] + outer["b"][None]
    return plain_loss(white(h) @ params.readout["w"] + params.readout["b"][None], labels)


def plain_ladder_loss(params, x, labels, alpha=0.7):
    h = x @ params.embed["w"] + params.embed["b"][None]
    for layer in range(3):
        z = white(h) @ params.blocks["w"][layer] + params.blocks["b"][layer][None]
        h = h + (1 - alpha) * z + alpha * jnp.tanh(z)
    return plain_loss(h @ params.readout["w"] + params.readout["b"][None], labels)


def plain_loss(logits, labels):
    chosen = jnp.sum(logits * jax.nn.one_hot(labels, 4, dtype=logits.dtype), axis=-1)
    return jnp.mean(jnp.log(jnp.sum(jnp.exp(logits), axis=-1)) - chosen)


NETWORKS = {
    "image": (IMAGE_NETWORK, plain_image_loss),
    "ladder": (TINY.network.replace(alpha=0.7), plain_ladder_loss),
}


def check_step_is_sgd(kind, tolerance):
    """A step of plain gradient descent so long that the parameters' own rounding disappears beside it."""
    network, loss = NETWORKS[kind]
    config = tiny(network=network, optimizer="sgd", learning_rate=1e5)
    run = make_run(config)
    state, hp, data = start(run, config)
    index = first_batch(config)
    new, metrics = jax.jit(run.step)(state, hp, data, index)
    value, expected = jax.jit(jax.value_and_grad(loss))(state.params, data.train_x[index], data.train_y[index])
    assert float(metrics["train_loss"]) == pytest.approx(float(value), rel=tolerance)
    found = jax.tree.map(lambda old, fresh: (old - fresh) / 1e5, state.params, new.params)
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    assert len(leaves) == (8 if kind == "image" else 6)
    for (path, wanted), grad in zip(leaves, jax.tree.leaves(found), strict=True):
        for layer in range(3) if path[0].name == "blocks" else [...]:  # type: ignore
            assert relative(grad[layer], wanted[layer]) < tolerance, (path, layer)


@pytest.mark.parametrize("kind", NETWORKS)
def test_oracle_and_inner_product_are_the_gradient_of_every_parameter(kind):
    check_step_is_sgd(kind, 1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_oracle_and_inner_product_are_the_gradient_in_double_precision(kind, x64):
    check_step_is_sgd(kind, 1e-10)


@pytest.mark.parametrize("kind", ["image", "ladder", "lq"])
def test_oracle_deltas_are_gradients_of_an_explicit_tail(kind, x64, strict):
    scene = make_scene(kind)

    @jax.jit
    def both(params):
        trace, pulls = forward_with_pulls(scene.network, params, scene.x_BxI, scene.noise_LxBxD, through_states=True)
        task: Any = SimpleNamespace(loss=scene.loss)
        oracle = with_oracle(task, scene.network, params, scene.ctx, pulls)
        return oracle_deltas(scene.network, scene.loss, params, trace, scene.target_B, pulls), oracle

    found, oracle = both(scene.params)
    for layer in range(4):
        assert relative(found[layer], scene.delta_KxBxD[layer]) < 1e-10
    assert relative(scene.ctx.delta_BxD, scene.delta_KxBxD[-1]) < 1e-10
    credit = jc.bp().build().credit(None, oracle, scene.env, None)
    assert relative(credit, scene.delta_KxBxD) < 1e-10


def test_several_steps_are_optax_adamw_on_back_propagation():
    """Adam, decoupled decay, cosine schedule and batch order, all against optax and jax.grad."""
    config = tiny(learning_rate=0.01, weight_decay=0.1, schedule="cosine", alpha=0.7, epochs=2, batch_size=16)
    run = make_run(config)
    state, hp, data = start(run, config)
    assert run.steps_per_epoch == 2 and float(hp.total_steps) == 4
    reference = optax.adamw(optax.cosine_decay_schedule(0.01, 4), weight_decay=0.1)
    params, moments = state.params, reference.init(state.params)  # type: ignore
    step = jax.jit(run.step)

    @jax.jit
    def reference_step(params, moments, x, y):
        updates, moments = reference.update(jax.grad(plain_ladder_loss)(params, x, y), moments, params)
        return optax.apply_updates(params, updates), moments

    for i in range(3):
        index = (16 * i + jnp.arange(16)) % 32
        state, _ = step(state, hp, data, index)
        params, moments = reference_step(params, moments, data.train_x[index], data.train_y[index])
        for found, expected in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
            assert relative(found, expected) < 1e-5
    assert int(state.step) == 3


def test_the_cosine_schedule_is_half_way_at_half_the_steps_and_stays_at_zero_after_them():
    config = tiny(optimizer="sgd", schedule="cosine", learning_rate=1e5)
    run = make_run(config)
    state, hp, data = start(run, config)
    at = lambda step: jax.jit(run.step)(  # noqa: E731
        state._replace(step=jnp.asarray(step, jnp.int32)), hp, data, first_batch(config)
    )[0].params.readout["w"]
    total, old = int(hp.total_steps), state.params.readout["w"]
    whole, half = at(0) - old, at(total // 2) - old
    np.testing.assert_allclose(half, whole / 2, rtol=1e-4)
    for after in (total, total + total // 2, 2 * total):
        np.testing.assert_array_equal(at(after), old)


def test_a_rate_from_zero_is_the_warmup_of_optax_over_a_tenth_of_the_run_and_stays_at_zero_after_it():
    config = tiny(optimizer="sgd", schedule="warmup_cosine", learning_rate=1e5, epochs=10, steps_per_epoch=4)
    run = make_run(config)
    state, hp, data = start(run, config)
    step = jax.jit(run.step)
    at = lambda i: step(state._replace(step=jnp.asarray(i, jnp.int32)), hp, data, first_batch(config))[0]  # noqa: E731
    old, total = state.params.readout["w"], 40
    assert int(hp.total_steps) == total
    rate = optax.warmup_cosine_decay_schedule(0.0, 1.0, total // 10, total)
    whole = at(4).params.readout["w"] - old  # at the end of the rise
    assert float(jnp.abs(whole).max()) > 1
    for i in (0, 1, 2, 3, 7, 22, 39, 40, 60):
        np.testing.assert_allclose(at(i).params.readout["w"] - old, float(rate(i)) * whole, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("kind", NETWORKS)
def test_diagnostics_of_the_oracle_are_one(kind):
    config = tiny(network=NETWORKS[kind][0])
    run = make_run(config)
    state, hp, data = start(run, config)
    found = jax.jit(run.diagnose)(state, hp, data)
    for name in ("gamma", "rho", "weight_cosine"):
        np.testing.assert_allclose(found["layers"][name], np.ones(3), atol=1e-5)
        assert float(found["metrics"][name]) == pytest.approx(1, abs=1e-5)
    assert (found["layers"]["nudge"] < 0).all()
    np.testing.assert_array_equal(found["layers"]["credit_norm"], found["layers"]["delta_norm"])


def test_forward_differences_give_the_oracle_almost_one(x64):
    # rho's study form: the error of a forward difference is of order epsilon, no more.
    config = tiny(alpha=0.7, rho_epsilon=1e-3)
    run = make_run(config)
    state, _, data = start(run, config)
    diagnose = jax.jit(run.diagnose)
    gaps = [
        1 - diagnose(state, run.hparams(config.replace(rho_epsilon=e)), data)["layers"]["rho_one_sided"]
        for e in (1e-2, 1e-3)
    ]
    assert (gaps[0] < 1e-3).all() and (gaps[1] > 0).all()
    np.testing.assert_allclose(gaps[0] / gaps[1], 100, rtol=0.1)  # a correlation's error is the square of it
