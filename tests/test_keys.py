"""Randomness: who draws, draws afresh, and no two share what they draw."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import as_part, first_batch, flat, make_scene, normal, shapes_of, start, tiny

import jcredit as jc
from jcredit import diagnostics
from jcredit.estimators.linear_maps import random_branches
from jcredit.passes import NetworkEnv
from jcredit.training import make_run

KEY = jax.random.key(6)


def of_my_own(**changes):
    """The broadcast with functions of a test's own in place of its own."""
    return as_part(jc.estimator, jc.broadcast().build()._replace(**changes))


def correlation(a, b) -> float:
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


# --- training steps ---------------------------------------------------------------------------------------------------


def test_every_step_and_every_seed_fits_with_draws_of_its_own():
    drawing = of_my_own(loss=lambda state, ctx, env, key: (jnp.zeros(()), {"drawn": jax.random.uniform(key)}))
    config = tiny(drawing, trains="nothing")
    run = make_run(config)
    step, drawn = jax.jit(run.step), []
    for seed in (0, 1):
        state, hp, data = start(run, config, seed)
        for _ in range(3):
            state, metrics = step(state, hp, data, first_batch(config))
            drawn.append(float(metrics["drawn"]))
    assert len(set(drawn)) == 6


def test_every_step_draws_its_credit_afresh():
    # Plain gradient steps at a constant rate: at the same state and batch the credit alone tells two steps apart.
    noise = of_my_own(credit=lambda state, ctx, env, key: jax.random.normal(key, ctx.trace.h_KxBxD.shape))
    config = tiny(noise, optimizer="sgd", schedule="constant")
    run = make_run(config)
    state, hp, data = start(run, config)
    step = jax.jit(run.step)
    at = lambda number: step(state._replace(step=jnp.asarray(number, jnp.int32)), hp, data, first_batch(config))[0]  # noqa: E731
    moves = [flat(at(number).params.blocks) - flat(state.params.blocks) for number in (0, 0, 1)]
    np.testing.assert_array_equal(moves[0], moves[1])
    assert abs(correlation(moves[0], moves[2])) < 0.3


# --- scores -----------------------------------------------------------------------------------------------------------


def test_no_direction_of_rho_is_drawn_from_a_key_that_the_credit_has(monkeypatch):
    # The first n keys of a split are the split into n: what a credit may draw from is its key, and this of any length.
    given: dict[str, Any] = {}

    def credit(state, ctx, env, key):
        given["credit"] = key
        return jnp.ones_like(ctx.trace.h_KxBxD)

    def rho(env, ctx, a_KxBxD, delta_KxBxD, key, epsilon):
        given["rho"] = key
        return jnp.zeros(3), jnp.zeros(3)

    monkeypatch.setattr(diagnostics, "rho", rho)
    config = tiny(of_my_own(credit=credit))
    run = make_run(config)
    state, hp, data = start(run, config)
    keys = jax.jit(lambda: (run.diagnose(state, hp, data), dict(given))[1])()
    own, directions = (
        {tuple(np.asarray(jax.random.key_data(k)).tolist()) for k in (keys[who], *jax.random.split(keys[who], count))}
        for who, count in (("credit", 256), ("rho", diagnostics.RHO_DIRECTIONS))
    )
    assert len(own) == 257 and len(directions) == 33 and not own & directions


# --- maps and mirrors -------------------------------------------------------------------------------------------------


def starts(name, shapes):
    """The random first matrices of every branch of an estimator at its start, one after the other."""
    if name == "fa":
        return random_branches(KEY, shapes, 1.0, "test")["u"]
    part: Any = getattr(jc, f"tangent_{name}")
    return part().build().init(KEY, shapes).params["u"]


@pytest.mark.parametrize(("name", "branches"), [("gate", 3), ("mask", 3), ("chain", 3), ("coarse", 4), ("fa", 3)])
def test_every_branch_starts_with_a_matrix_of_its_own(name, branches):
    u = np.reshape(starts(name, shapes_of(make_scene("image"))), (branches, -1))
    assert np.abs(np.corrcoef(u) - np.eye(branches)).max() < 0.4  # 144 entries or more: a deviation of 1/12


def test_every_block_is_fitted_to_tangents_of_its_own():
    scene, drawn = make_scene("image"), []

    class Recording(NetworkEnv):
        def block_tangents(self, h_LxBxD, v_LxBxD):
            drawn.append(np.asarray(v_LxBxD))
            return scene.env.block_tangents(h_LxBxD, v_LxBxD)

    chain: Any = jc.tangent_chain(samples=8).build()
    chain.loss(chain.init(KEY, shapes_of(scene)), scene.ctx, Recording(scene.network, scene.loss, scene.params), KEY)
    (v,) = drawn
    assert v.shape == (3, 8, 12)
    assert np.abs(np.corrcoef(v.reshape(3, -1)) - np.eye(3)).max() < 0.4  # 96 entries: a deviation of 0.1


def test_every_matrix_of_a_block_is_mirrored_by_noise_of_its_own():
    # With W1 = W2 the same noise would give the same mirror, error for error.
    scene, w = make_scene("image"), normal(8, 3, 12, 12)
    blocks = {"inner": {"w": w}, "outer": {"w": w}}
    env = dataclasses.replace(scene.env, _params=scene.params._replace(blocks=blocks))
    errors = {name: np.asarray(found - w) for name, found in env.mirrored(KEY, 64).items()}
    assert np.linalg.norm(errors["u"]) > 1
    assert abs(correlation(errors["u"], errors["v"])) < 0.2  # 432 entries: a deviation of 1/20
    for error in errors.values():
        assert abs(correlation(error[0], error[1])) < 0.4  # nor do blocks share it
