"""Scores of a credit on functions whose answers are known by hand; averages of an epoch and of an evaluation."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import IMAGE_NETWORK, VARIANTS, first_batch, flat, make_scene, normal, same_bits, start, tiny

import jcredit as jc
from jcredit import diagnostics, measuring
from jcredit.losses.perturbation import all_layers, measure
from jcredit.passes import forward
from jcredit.training import make_run
from jcredit.types import Context, Trace

strict = pytest.mark.usefixtures("strict")


def quadratic(h_BxD) -> tuple[Any, Any]:
    """Forward questions of loss = 0.5 ||h||^2 at one layer: delta = h, and a step v moves it by <h, v> + 0.5 |v|^2."""
    loss_at = lambda ctx, layer_B, h: 0.5 * jnp.sum(h * h, axis=-1)  # noqa: E731
    env = SimpleNamespace(loss_at=loss_at, readout_loss=lambda h, target: loss_at(None, None, h))
    nothing = jnp.zeros((len(h_BxD), 1))
    trace = Trace(jnp.stack([h_BxD, h_BxD]), nothing, None, nothing[None, :, :0])
    return env, Context(trace, nothing[:, 0], nothing, h_BxD)


def with_last(a_BxD):
    """The credit at h_0, and something at h_1 = h_L, which is not scored."""
    return jnp.stack([a_BxD, jnp.full_like(a_BxD, jnp.nan)])


@strict
def test_gamma_by_hand():
    # cosines 1, -1, 4/5 and, for a zero credit, 0
    a = jnp.asarray([[1.0, 0.0], [2e-12, 0.0], [1e-30, 0.0], [0.0, 0.0]])
    delta = jnp.asarray([[5.0, 0.0], [-1.0, 0.0], [4e-10, 3e-10], [1.0, 1.0]])
    assert diagnostics.gamma(a, delta) == pytest.approx((1 - 1 + 0.8 + 0) / 4, abs=1e-6)


@strict
def test_nudge_by_hand():
    # ||h||^2 = 25, RMS(h) = 5 / sqrt 2: a step eta along h / RMS shrinks h by the factor 1 - eta sqrt 2 / 5
    env, ctx = quadratic(jnp.asarray([[3.0, 4.0], [3.0, -4.0]]))
    h, eta = ctx.trace.h_KxBxD[0], 0.1
    nudge = lambda a: float(diagnostics.nudge(env, ctx, with_last(a), eta)[0])  # noqa: E731
    shrunk = 0.5 * 25 * ((1 - eta * 2**0.5 / 5) ** 2 - 1)
    assert nudge(h) == pytest.approx(shrunk, rel=1e-4)
    assert nudge(1e-2 * h) == pytest.approx(shrunk, rel=1e-3)  # credit is normalised
    grown = 0.5 * 25 * ((1 + eta * 2**0.5 / 5) ** 2 - 1)
    assert nudge(-h) == pytest.approx(grown, rel=1e-4)
    assert nudge(0 * h) == 0
    half = nudge(h.at[1].set(0.0))  # a mean over samples
    assert half == pytest.approx(shrunk / 2, rel=1e-4)


@strict
@pytest.mark.parametrize("which", [0, 1], ids=["exact", "forward difference"])
def test_rho_by_hand(which):
    # A forward difference of the quadratic is <h, v> + eps / 2 for unit v: shifted alike, so the correlation is exact.
    h = normal(0, 40, 6)
    env, ctx = quadratic(h)

    def rho(a, directions=400):
        return diagnostics.rho(env, ctx, with_last(a), with_last(h), jax.random.key(0), 0.01, directions)[which][0]

    assert rho(h) == pytest.approx(1, abs=1e-5)
    assert rho(-1e-4 * h) == pytest.approx(-1, abs=1e-5)
    assert rho(0 * h) == 0
    # Directions are isotropic: cov(<a, v>, <h, v>) = mean <a, h> / D, so half the credit missing gives
    # sum |h|^2 over the kept samples / sqrt of that sum times the sum over all; 16000 products, error about 1/126.
    squares = jnp.sum(h * h, axis=-1)
    expected = (jnp.sum(squares[:20]) / jnp.sum(squares)) ** 0.5
    assert rho(h.at[20:].set(0.0)) == pytest.approx(float(expected), abs=0.03)
    other = normal(1, 40, 6)
    expected = jnp.sum(h * other) / jnp.sqrt(jnp.sum(h * h) * jnp.sum(other * other))
    assert rho(other) == pytest.approx(float(expected), abs=0.03)


@strict
def test_rho_draws_unit_directions():
    seen = []
    env, ctx = quadratic(jnp.zeros((3, 5)))
    env.loss_at = lambda ctx, layer_B, h: jax.debug.callback(seen.append, h) or jnp.sum(h * h, axis=-1)
    zero = jnp.zeros((2, 3, 5))
    jax.block_until_ready(diagnostics.rho(env, ctx, zero, zero, jax.random.key(0), 1.0))
    jax.effects_barrier()
    v = np.concatenate([np.reshape(h, (-1, 3, 5)) for h in seen])  # moved from zero by epsilon 1
    assert v.shape == (32, 3, 5)
    np.testing.assert_allclose(np.linalg.norm(v, axis=-1), 1, rtol=1e-5)
    assert abs(np.mean(v)) < 0.1


@strict
def test_the_exact_effect_of_a_direction_is_what_a_forward_tangent_measures():
    scene = make_scene("image")
    probe = all_layers(scene.ctx)
    v = normal(0, 4, *probe.h_BxD.shape)
    measured = measure(scene.env, probe, v)
    exact = jnp.sum(scene.delta_KxBxD[:-1].reshape(1, *probe.h_BxD.shape) * v, axis=-1)
    np.testing.assert_allclose(measured, exact, rtol=1e-4, atol=1e-6)


@strict
def test_weight_cosine_by_hand():
    # per block: (1, 0 | 0) and (0, 2 | 0) against (1, 0 | 0) and (0, 3 | 4)
    grads = {"w": jnp.asarray([[1.0, 0.0], [0.0, 2.0]]), "b": jnp.asarray([[0.0], [0.0]])}
    exact = {"w": jnp.asarray([[1.0, 0.0], [0.0, 3.0]]), "b": jnp.asarray([[0.0], [4.0]])}
    np.testing.assert_allclose(diagnostics.weight_cosine(grads, exact), [1, 0.6], rtol=1e-6)


@strict
def test_every_layer_is_scored_with_its_own_credit():
    scene = make_scene("image")
    a = scene.delta_KxBxD.at[1].multiply(-2.0).at[2].set(0.0).at[3].set(jnp.nan)  # a_L is not scored
    scores = jax.jit(
        lambda a, delta: diagnostics.score_credit(
            scene.env, scene.ctx, a, -delta, delta, jax.random.key(0), rho_epsilon=1e-3, nudge_eta=1e-3
        )
    )(a, scene.delta_KxBxD)
    np.testing.assert_allclose(scores["gamma"], [1, -1, 0], atol=1e-5)
    np.testing.assert_allclose(scores["gamma_clamped"], [1, -1, 0], atol=1e-5)
    np.testing.assert_allclose(scores["gamma_fresh"], [-1, -1, -1], atol=1e-5)
    np.testing.assert_allclose(scores["rho"], [1, -1, 0], atol=1e-5)
    np.testing.assert_allclose(scores["rho_one_sided"], [1, -1, 0], atol=1e-2)
    assert (scores["difference_noise"] > 0).all() and (scores["difference_noise"] < 0.1).all()
    assert scores["nudge"][0] < 0 < scores["nudge"][1] and scores["nudge"][2] == 0
    norms = np.linalg.norm(scene.delta_KxBxD[:3], axis=-1).mean(-1)
    np.testing.assert_allclose(scores["delta_norm"], norms, rtol=1e-5)
    np.testing.assert_allclose(scores["credit_norm"], [norms[0], 2 * norms[1], 0], rtol=1e-5)
    h = np.asarray(scene.ctx.trace.h_KxBxD)
    np.testing.assert_allclose(scores["h_rms"], np.sqrt((h**2).mean((1, 2))), rtol=1e-5)


def test_the_clamped_cosine_of_a_small_gradient_with_itself_is_not_one():
    v = jnp.asarray([[3e-5, 4e-5], [3.0, 4.0]])  # norms 5e-5 and 5: products 2.5e-9 and 25
    assert float(diagnostics.gamma(v, v)) == pytest.approx(1)
    assert float(diagnostics.clamped_gamma(v, v)) == pytest.approx((0.25 + 1) / 2, rel=1e-5)


def test_noise_of_a_difference_is_the_grid_of_floats_over_the_effect():
    scene = make_scene("image")
    loss = np.asarray(scene.env.readout_loss(scene.ctx.trace.h_KxBxD[-1], scene.target_B))
    effect = np.linalg.norm(np.asarray(scene.delta_KxBxD[0]), axis=-1) / np.sqrt(12)
    expected = np.median(np.spacing(loss) / 1e-3 / effect)
    found = diagnostics.difference_noise(scene.env, scene.ctx, scene.delta_KxBxD[0], 1e-3)
    assert float(found) == pytest.approx(expected, rel=1e-3)


def test_summaries_by_hand():
    layers = {"gamma": [0.0, 0.3, 0.6], "rho": [0.9, 0.0, 0.0], "nudge": [-3.0, 0.0, 0.0], "weight_cosine": [1.0, 0, 0]}
    layers = {name: jnp.asarray(value) for name, value in layers.items()} | {"h_rms": jnp.asarray([1.0, 2, 3, 4])}
    summary = {name: float(value) for name, value in diagnostics.summarise(layers).items()}
    expected = {"gamma": 0.3, "gamma_deep": 0.45, "rho": 0.3, "rho_deep": 0, "nudge": -1, "nudge_deep": 0}
    assert summary == pytest.approx({**expected, "weight_cosine": 1 / 3, "h_rms_last": 4})
    shallow = diagnostics.summarise({name: value[:1] for name, value in layers.items()})
    assert "gamma" in shallow and "gamma_deep" not in shallow


# --- averages of the shared step --------------------------------------------------------------------------------------


def test_evaluation_counts_every_sample_once(monkeypatch):
    # 16 samples in chunks of 7: the last chunk is padded.
    config = tiny()
    run = make_run(config)
    state, hp, data = start(run, config)
    monkeypatch.setattr(measuring, "EVALUATION_BATCH", 7)
    found = jax.jit(run.evaluate)(state, hp, data)
    outputs = np.asarray(forward(run.built(hp).network, state.params, data.test_x).outputs_BxC, np.float64)
    log_p = outputs - np.log(np.exp(outputs).sum(1, keepdims=True))
    assert float(found["test_loss"]) == pytest.approx(-log_p[np.arange(16), np.asarray(data.test_y)].mean(), rel=1e-5)
    assert float(found["test_accuracy"]) == pytest.approx((outputs.argmax(1) == np.asarray(data.test_y)).mean())


def test_an_epoch_sees_every_sample_once_in_an_order_of_its_own():
    # With nothing learned the mean over an epoch is the mean over the training set, in whatever order.
    config = tiny()
    run = make_run(config)
    state, hp, data = start(run, config)
    hp = hp._replace(learning_rate=jnp.zeros(()))
    epoch = jax.jit(run.epoch)
    _, found = epoch(state, hp, data)
    task, network, *_ = run.built(hp)
    outputs = forward(network, state.params, data.train_x).outputs_BxC
    loss = task.loss(outputs, data.train_y)
    assert float(found["train_loss"]) == pytest.approx(float(jnp.mean(loss)), rel=1e-5)
    # Spoiling one sample changes one batch of an epoch: which one tells the order.
    spoiled = data._replace(train_x=data.train_x.at[5].set(jnp.nan))
    step = jax.jit(run.step)
    assert np.isnan(step(state, hp, spoiled, first_batch(config))[1]["train_loss"])
    learning = hp._replace(learning_rate=jnp.asarray(0.01))
    later, _ = epoch(state._replace(step=state.step + 4), learning, data)
    first, _ = epoch(state, learning, data)
    assert not jnp.array_equal(later.params.readout["w"], first.params.readout["w"])  # another permutation
    other, _ = epoch(state._replace(key=jax.random.key(9)), learning, data)
    assert not jnp.array_equal(other.params.readout["w"], first.params.readout["w"])  # and another for each seed


def test_a_network_is_scored_as_it_learns():
    # DFA under the study's scale and the cosine rule: no two of these scores are 1, or each other.
    config = tiny(jc.dfa(), rule=jc.cosine_rule(), network=IMAGE_NETWORK, normalise="rms")
    run = make_run(config)
    state, hp, data = start(run, config)
    score = jax.jit(run.diagnose)
    layers = score(state, hp, data)["layers"]
    # Its own rounding of the same pass apart: what each block's gradient is, from the rule's signal on scaled credit.
    network, rule = run.built(hp).network, run.built(hp).rule
    x, y = data.test_x, data.test_y
    ctx, a_KxBxD = run.credit(state, hp, x, y, jax.random.key(0))
    h = ctx.trace.h_KxBxD
    spent = a_KxBxD / (jnp.sqrt(jnp.mean(a_KxBxD**2, axis=-1, keepdims=True)) + 1e-6)
    exact = jax.grad(
        lambda blocks: jnp.mean(
            run.built(hp).task.loss(forward(network, state.params._replace(blocks=blocks), x).outputs_BxC, y)
        )
    )(state.params.blocks)
    for layer in range(3):
        block = jax.tree.map(lambda p: p[layer], state.params.blocks)  # noqa: B023
        after, pull = jax.vjp(lambda p: network.block(p, h[layer]), block)  # noqa: B023
        mine = flat(pull(rule.signal(h[layer], after, rule.goal(h[layer], after, spent[layer + 1]))))
        bp = flat(jax.tree.map(lambda g: g[layer], exact))  # noqa: B023
        wanted = mine @ bp / np.linalg.norm(mine) / np.linalg.norm(bp)
        assert float(layers["weight_cosine"][layer]) == pytest.approx(wanted, abs=1e-3)
    # Fresh matrices are not those it trains with, nor of the state at all.
    assert not np.allclose(layers["gamma_fresh"], layers["gamma"], atol=1e-3)
    moved = score(state._replace(warmup=jax.tree.map(lambda b: -b, state.warmup)), hp, data)["layers"]
    np.testing.assert_array_equal(moved["gamma_fresh"], layers["gamma_fresh"])
    # The same directions, samples and matrices for every seed.
    assert same_bits(score(state._replace(key=jax.random.key(9)), hp, data)["layers"], layers)


def test_every_number_of_a_row_is_explained():
    parts = {part.name: part for part in VARIANTS.values()}  # one of each estimator
    names = {"test_accuracy", "test_loss", "start_unexplained"}  # the last is of sweeps with a start, left out here
    for part in parts.values():
        config = tiny(part)
        run = make_run(config)
        hp, key = run.hparams(config), jax.random.key(0)
        state, data = jax.eval_shape(run.init, key, hp), jax.eval_shape(run.data, key, hp)
        index = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
        _, metrics = jax.eval_shape(run.step, state, hp, data, index)
        scores = jax.eval_shape(run.diagnose, state, hp, data)
        names |= {*metrics, *scores["layers"]}
        names |= {name for name in scores["metrics"] if name.removeprefix("test_") not in metrics}
    page = (Path(__file__).parent.parent / "docs/reading.md").read_text(encoding="utf-8")
    assert len(names) > 30 and [name for name in sorted(names) if f"`{name}`" not in page] == []
